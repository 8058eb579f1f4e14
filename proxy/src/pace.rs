//! When the loop acts: pure, every function is told what time it is.
//!
//! Its ancestor is kube-proxy's `runner/bounded_frequency_runner.go`. Different from there: a burst
//! is waited for only as long as a sync is worth, the rest after a sync is as long as the sync was,
//! a failed sync is tried again after a wait that doubles, and instead of syncing everything each
//! period the rules are compared with the kernel's.

use std::time::{Duration, Instant};

/// The longest wait for more events after the first: a rollout or a slice controller writes several
/// objects within a millisecond or two.
const COALESCE_MAX: Duration = Duration::from_millis(2);

/// Times below this are not waited for: a sync so quick is cheaper than the wait, which would be
/// rounded up to a millisecond at least.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// Waits after a failed sync; doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// The longest wait after a failed sync.
const RETRY_LAST: Duration = Duration::from_secs(10);

/// The longest rest between two syncs. A sync is followed by a rest as long as it took, so that
/// others that share the kernel's rules with us get their turn.
const REST_MAX: Duration = Duration::from_secs(1);

/// After a verification that lists all rules the next one waits this many times as long as it took,
/// however often others delete rules of theirs. One that looks at nothing takes no time.
const VERIFY_REST: u32 = 10;

/// After this time everything is written anew, whatever is known of the kernel's rules.
pub const FULL_PERIOD: Duration = Duration::from_secs(3600);

/// Settings of the pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The rules are verified this often.
    pub sync_period: Duration,
    /// The shortest time from the end of a sync to the next.
    pub min_sync_period: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// Compare the rules with the kernel's.
    Verify,
    /// Write everything anew.
    Full,
    /// Write what changed.
    Sync,
}

/// Keeps the times.
#[derive(Debug, Clone)]
pub struct Pacer {
    pace: Pace,
    /// When the oldest thing that is not synced came.
    waiting: Option<Instant>,
    /// No sync before.
    not_before: Instant,
    /// How long syncs take, as the last one did.
    typical: Duration,
    failures: u32,
    verify_at: Instant,
    verify_rest_until: Instant,
    full_at: Instant,
}

impl Pacer {
    /// Begins at `now`, with nothing to do.
    pub fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            waiting: None,
            not_before: now,
            typical: Duration::ZERO,
            failures: 0,
            verify_at: now + pace.sync_period,
            verify_rest_until: now,
            full_at: now + FULL_PERIOD,
        }
    }

    /// Something is to be synced.
    pub fn changed(&mut self, now: Instant) {
        self.waiting.get_or_insert(now);
    }

    /// Whether something is to be synced.
    pub fn is_pending(&self) -> bool {
        self.waiting.is_some()
    }

    /// Somebody may have changed our rules.
    pub fn suspect(&mut self, now: Instant) {
        let soon = self.verify_rest_until.max(now + COALESCE_MAX);
        self.verify_at = self.verify_at.min(soon);
    }

    /// When to look again. Before it is `ready` nothing may be synced.
    pub fn wake(&self, ready: bool) -> Instant {
        let verify = self.verify_at.min(self.full_at);
        match self.sync_at().filter(|_| ready) {
            Some(sync) => sync.min(verify),
            None => verify,
        }
    }

    /// What to do at `now`.
    pub fn due(&self, now: Instant, ready: bool) -> Due {
        if ready && self.sync_at().is_some_and(|at| at <= now) {
            return Due::Sync;
        }
        if ready && now >= self.full_at {
            return Due::Full;
        }
        if now >= self.verify_at {
            return Due::Verify;
        }
        Due::Nothing
    }

    fn sync_at(&self) -> Option<Instant> {
        let waiting = self.waiting?;
        let coalesce = match self.typical.min(COALESCE_MAX) {
            short if short < WAIT_MIN => Duration::ZERO,
            long => long,
        };
        Some(self.not_before.max(waiting + coalesce))
    }

    /// A verification took from `began` to `ended`.
    pub fn verified(&mut self, began: Instant, ended: Instant) {
        self.verify_at = ended + self.pace.sync_period;
        let rest = match ended - began {
            short if short < WAIT_MIN => Duration::ZERO,
            long => long * VERIFY_REST,
        };
        self.verify_rest_until = ended + rest;
    }

    /// Everything is going to be written anew.
    pub fn full(&mut self, now: Instant) {
        self.full_at = now + FULL_PERIOD;
    }

    /// A sync took from `began` to `ended`, and all that came before it is in the kernel if `ok`.
    pub fn synced(&mut self, began: Instant, ended: Instant, ok: bool) {
        if !ok {
            let wait = RETRY_FIRST * 2_u32.saturating_pow(self.failures.min(16));
            self.failures += 1;
            self.not_before = ended + wait.min(RETRY_LAST).max(self.pace.min_sync_period);
            return;
        }
        self.failures = 0;
        self.waiting = None;
        self.typical = ended - began;
        let rest = match self.typical.min(REST_MAX) {
            short if short < WAIT_MIN => Duration::ZERO,
            long => long,
        };
        self.not_before = ended + rest.max(self.pace.min_sync_period);
    }
}

#[cfg(test)]
mod tests;
