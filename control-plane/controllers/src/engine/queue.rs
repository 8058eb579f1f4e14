//! A work queue of keys: each key waits once, runs once at a time, and backs off on its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::view::Key;

/// First delay after a failure; it doubles with every further one (upstream starts at 5 ms too).
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// Longest delay between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// The queue of one controller.
#[derive(Debug)]
pub(crate) struct Queue {
    ready: VecDeque<Key>,
    waiting: BTreeSet<Key>,
    active: BTreeSet<Key>,
    /// Touched while active: runs again at once when it is done.
    dirty: BTreeSet<Key>,
    delayed: BTreeSet<(Duration, Key)>,
    due: BTreeMap<Key, Duration>,
    failures: BTreeMap<Key, u32>,
    workers: usize,
}

impl Queue {
    /// A queue of which at most `workers` keys are active at a time.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            active: BTreeSet::new(),
            dirty: BTreeSet::new(),
            delayed: BTreeSet::new(),
            due: BTreeMap::new(),
            failures: BTreeMap::new(),
            workers,
        }
    }

    pub(crate) fn add(&mut self, key: Key) {
        if self.active.contains(&key) {
            self.dirty.insert(key);
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Adds the key at `at` (monotonic); the earliest of several times counts.
    pub(crate) fn add_at(&mut self, key: Key, at: Duration) {
        if let Some(known) = self.due.get(&key) {
            if *known <= at {
                return;
            }
            self.delayed.remove(&(*known, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key));
    }

    /// When the next delayed key is due.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.delayed.first().map(|(at, _)| *at)
    }

    /// Takes the next key that may run, and marks it active.
    pub(crate) fn take(&mut self, now: Duration) -> Option<Key> {
        while let Some((at, key)) = self.delayed.first() {
            if *at > now {
                break;
            }
            let (at, key) = (*at, key.clone());
            self.delayed.remove(&(at, key.clone()));
            self.due.remove(&key);
            self.add(key);
        }
        if self.active.len() >= self.workers {
            return None;
        }
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.active.insert(key.clone());
        Some(key)
    }

    /// Ends a run. A failed key comes back after its back-off; the delay is returned.
    pub(crate) fn done(&mut self, key: &Key, ended: Ended, now: Duration) -> Option<Duration> {
        self.active.remove(key);
        let dirty = self.dirty.remove(key);
        if ended == Ended::Well {
            self.failures.remove(key);
        }
        match ended {
            // What it conflicted with has been seen meanwhile.
            Ended::Well | Ended::Conflict if dirty => self.add(key.clone()),
            Ended::Well => {}
            Ended::Conflict | Ended::Badly => {
                let failures = self.failures.entry(key.clone()).or_insert(0);
                let delay = BACKOFF_FIRST
                    .checked_mul(2_u32.saturating_pow(*failures))
                    .map_or(BACKOFF_MAX, |delay| delay.min(BACKOFF_MAX));
                *failures = failures.saturating_add(1);
                self.add_at(key.clone(), now + delay);
                return Some(delay);
            }
        }
        None
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Well,
    /// Another writer was faster.
    Conflict,
    Badly,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_key_waits_once_and_runs_once_at_a_time() {
        let mut queue = Queue::new(2);
        queue.add(key("a"));
        queue.add(key("a"));
        assert_eq!(queue.take(ms(0)), Some(key("a")));
        assert_eq!(queue.take(ms(0)), None);
        queue.add(key("a"));
        assert_eq!(queue.take(ms(0)), None, "active");
        queue.done(&key("a"), Ended::Well, ms(0));
        assert_eq!(queue.take(ms(0)), Some(key("a")), "touched while active");
        queue.done(&key("a"), Ended::Well, ms(0));
        assert_eq!(queue.take(ms(0)), None);
    }

    #[test]
    fn workers_bound_the_active_keys() {
        let mut queue = Queue::new(1);
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!(queue.take(ms(0)), Some(key("a")));
        assert_eq!(queue.take(ms(0)), None);
        queue.done(&key("a"), Ended::Well, ms(0));
        assert_eq!(queue.take(ms(0)), Some(key("b")));
    }

    #[test]
    fn failures_back_off_and_success_forgets_them() {
        let mut queue = Queue::new(1);
        queue.add(key("a"));
        let mut delays = Vec::new();
        let mut now = ms(0);
        for _ in 0..20 {
            let taken = queue.take(now).unwrap();
            let delay = queue.done(&taken, Ended::Badly, now).unwrap();
            assert_eq!(queue.take(now), None);
            delays.push(delay);
            now += delay;
        }
        assert_eq!(delays[..4], [ms(5), ms(10), ms(20), ms(40)]);
        assert_eq!(delays[19], BACKOFF_MAX);
        queue.take(now).unwrap();
        queue.done(&key("a"), Ended::Well, now);
        queue.add(key("a"));
        queue.take(now).unwrap();
        assert_eq!(queue.done(&key("a"), Ended::Badly, now), Some(ms(5)));
    }

    #[test]
    fn the_earliest_of_several_times_counts() {
        let mut queue = Queue::new(1);
        queue.add_at(key("a"), ms(50));
        queue.add_at(key("a"), ms(20));
        queue.add_at(key("a"), ms(80));
        assert_eq!(queue.next_due(), Some(ms(20)));
        assert_eq!(queue.take(ms(10)), None);
        assert_eq!(queue.take(ms(20)), Some(key("a")));
        assert_eq!(queue.next_due(), None);
    }
}
