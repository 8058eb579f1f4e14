//! When what failed is tried again.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest and longest wait after a failure.
const WAIT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(30));

/// Waits that double as long as nothing works. An attempt that something else brings about before
/// its time does not lengthen the wait: what the kernel tells comes in bursts, and a burst of
/// failures that last a moment would end in a wait of seconds.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// When the last failure is tried again, and how long that is after it.
    next: Option<(Instant, Duration)>,
}

impl Backoff {
    /// An attempt failed; gives the wait until the next one.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        let wait = match self.next {
            None => WAIT.0,
            Some((at, wait)) if now < at => wait,
            Some((_, wait)) => (wait * 2).min(WAIT.1),
        };
        self.next = Some((now + wait, wait));
        wait
    }

    /// An attempt worked.
    pub(super) fn worked(&mut self) {
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waits_that_were_in_vain_make_the_next_one_longer() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        let ms = Duration::from_millis;
        assert_eq!(backoff.failed(now), ms(20));
        // Told ten times that something changed, and failed each time.
        for _ in 0..10 {
            now += ms(1);
            assert_eq!(backoff.failed(now), ms(20));
        }
        for wanted in [40, 80, 160] {
            now += ms(wanted / 2);
            assert_eq!(backoff.failed(now), ms(wanted));
        }
        now += ms(50);
        assert_eq!(backoff.failed(now), ms(160));
        for _ in 0..20 {
            now += WAIT.1;
            backoff.failed(now);
        }
        assert_eq!(backoff.failed(now), WAIT.1);
        backoff.worked();
        assert_eq!(backoff.failed(now), ms(20));
    }
}
