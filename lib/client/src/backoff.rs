//! How long to wait before trying again: doubling, jittered, bounded.

use std::time::Duration;

use rand::Rng;

/// The first wait. A server that restarts is back within some of these.
const MIN: Duration = Duration::from_millis(50);

/// The longest wait; a thousand nodes then ask a server that is away a hundred times a second.
const MAX: Duration = Duration::from_secs(10);

/// Waits of one thing that is tried again and again.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked: the next wait is the shortest again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// It failed once more: how long to wait. Between half and all of the doubled time, so that
    /// many clients that lost one server do not come back in step.
    pub(crate) fn next(&mut self) -> Duration {
        let full = MIN.saturating_mul(1 << self.failures.min(16)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Whether this failure is worth a line at the usual log level: the first ones, then each that
    /// waits long.
    pub(crate) fn is_loud(&self) -> bool {
        self.failures <= 1 || self.failures >= 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_with_jitter_up_to_the_limit_and_starts_again() {
        let mut backoff = Backoff::default();
        let mut full = MIN;
        for _ in 0..100 {
            let wait = backoff.next();
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
            full = (full * 2).min(MAX);
        }
        backoff.reset();
        assert!(backoff.next() <= MIN);
    }
}
