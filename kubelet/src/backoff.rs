//! The wait before a container is started again: none after the first end, then 10 s doubling to 5 min.
//! Same rule as client-go's `flowcontrol.Backoff` in the kubelet's `doBackOff`.

use jiff::{SignedDuration, Timestamp};

/// First wait.
pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// Longest wait.
pub const MAX: SignedDuration = SignedDuration::from_mins(5);
/// A run that ended this long after the last restart starts from [`INITIAL`] again (upstream: twice the longest wait).
pub const RESET_AFTER: SignedDuration = SignedDuration::from_mins(10);

/// The state kept for one container name (or one image) of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Wait that counts from the container's end.
    pub delay: SignedDuration,
    /// When the last restart was decided.
    pub updated: Timestamp,
}

impl Backoff {
    /// Until when a container that ended at `ended` has to wait; `None` when it may start at `now`.
    pub fn until(state: Option<&Self>, ended: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let state = state?;
        if ended.duration_since(state.updated) > RESET_AFTER {
            return None;
        }
        let until = ended + state.delay;
        (until > now).then_some(until)
    }

    /// The state after deciding at `now` to start again what ended at `ended`.
    pub fn next(state: Option<&Self>, ended: Timestamp, now: Timestamp) -> Self {
        let delay = match state {
            Some(s) if ended.duration_since(s.updated) <= RESET_AFTER => (s.delay * 2).min(MAX),
            _ => INITIAL,
        };
        let updated = now;
        Self { delay, updated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn first_restart_is_immediate_then_doubling_to_five_minutes() {
        assert_eq!(Backoff::until(None, at(0), at(0)), None);
        let mut state = None;
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let until = Backoff::until(state.as_ref(), at(now), at(now));
            let wait = until.map_or(0, |u| u.duration_since(at(now)).as_secs());
            waits.push(wait);
            state = Some(Backoff::next(state.as_ref(), at(now), at(now + wait)));
            now += wait;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_good_minutes_reset_it() {
        let state = Backoff {
            delay: MAX,
            updated: at(0),
        };
        assert!(Backoff::until(Some(&state), at(599), at(599)).is_some());
        assert_eq!(Backoff::until(Some(&state), at(601), at(601)), None);
        assert_eq!(Backoff::next(Some(&state), at(601), at(601)).delay, INITIAL);
    }
}
