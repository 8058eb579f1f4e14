//! The state both built-in stores share: current values, a ring of past changes, and the watchers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::mpsc;

use super::{Change, Error, Event, Expect, Kv, Op, Page, Range, Rev};

/// Changes kept for watches that resume and lists that continue. kube-apiserver's watch cache keeps
/// 100 to 102400 per resource; this is for all resources together.
const HISTORY_EVENTS_MAX: usize = 16_384;
/// Bytes of old values the history may hold.
const HISTORY_BYTES_MAX: usize = 8 << 20;
/// Events that may wait for one watcher before it is closed as too slow.
const WATCH_QUEUE_EVENTS: usize = 8_192;

/// Current values, history and watchers behind one lock.
#[derive(Default)]
pub(super) struct Shared(RwLock<State>);

#[derive(Default)]
pub(super) struct State {
    pub(super) rev: Rev,
    /// Changes up to here are forgotten.
    compacted: Rev,
    pub(super) current: BTreeMap<Arc<str>, Kv>,
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    watchers: Vec<Watcher>,
}

struct Watcher {
    prefix: String,
    queue: mpsc::Sender<Arc<Event>>,
}

/// A running watch.
pub struct Watch {
    backlog: VecDeque<Arc<Event>>,
    queue: mpsc::Receiver<Arc<Event>>,
}

impl Watch {
    /// The next change; none when the watch was closed, because its reader was too slow or the store ends.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        match self.backlog.pop_front() {
            Some(event) => Some(event),
            None => self.queue.recv().await,
        }
    }

    /// Whether no more changes will come.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// A change that is already there.
    pub fn ready(&mut self) -> Option<Arc<Event>> {
        self.backlog
            .pop_front()
            .or_else(|| self.queue.try_recv().ok())
    }
}

impl Shared {
    /// Starts from what was on disk. History before `rev` is gone.
    pub(super) fn restored(rev: Rev, current: BTreeMap<Arc<str>, Kv>) -> Self {
        Self(RwLock::new(State {
            rev,
            compacted: rev,
            current,
            ..State::default()
        }))
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn page(&self, range: Range<'_>) -> Result<Page, Error> {
        let at = range.at.unwrap_or(self.rev);
        if at > self.rev {
            return Err(Error::Future {
                asked: at,
                newest: self.rev,
            });
        }
        if at == self.rev {
            return Ok(take_page(&self.current, range, at));
        }
        if at < self.compacted {
            return Err(Error::Compacted {
                asked: at,
                oldest: self.compacted,
            });
        }
        let mut old: BTreeMap<Arc<str>, Kv> = within(&self.current, range.prefix, None)
            .map(|(key, kv)| (Arc::clone(key), kv.clone()))
            .collect();
        for event in self.history.iter().rev().take_while(|event| event.rev > at) {
            if event.key.starts_with(range.prefix) {
                match &event.before {
                    Some(kv) => old.insert(Arc::clone(&event.key), kv.clone()),
                    None => old.remove(&event.key),
                };
            }
        }
        Ok(take_page(&old, range, at))
    }

    pub(super) fn watch(&mut self, prefix: &str, from: Rev) -> Result<Watch, Error> {
        if from < self.compacted {
            return Err(Error::Compacted {
                asked: from,
                oldest: self.compacted,
            });
        }
        if from > self.rev {
            return Err(Error::Future {
                asked: from,
                newest: self.rev,
            });
        }
        let start = self.history.partition_point(|event| event.rev <= from);
        let backlog = self
            .history
            .range(start..)
            .filter(|event| event.key.starts_with(prefix))
            .cloned()
            .collect();
        let (sender, queue) = mpsc::channel(WATCH_QUEUE_EVENTS);
        self.watchers.push(Watcher {
            prefix: prefix.to_owned(),
            queue: sender,
        });
        Ok(Watch { backlog, queue })
    }

    pub(super) fn compact(&mut self, rev: Rev) -> Result<(), Error> {
        if rev > self.rev {
            return Err(Error::Future {
                asked: rev,
                newest: self.rev,
            });
        }
        while self.history.front().is_some_and(|event| event.rev <= rev) {
            self.forget_oldest();
        }
        self.compacted = self.compacted.max(rev);
        Ok(())
    }

    /// Makes the changes of one transaction visible and hands them to the watchers.
    pub(super) fn publish(&mut self, rev: Rev, events: Vec<Event>) {
        for event in events {
            match &event.now {
                Some(kv) => self.current.insert(Arc::clone(&event.key), kv.clone()),
                None => self.current.remove(&event.key),
            };
            let event = Arc::new(event);
            self.watchers.retain(|watcher| {
                if !event.key.starts_with(&watcher.prefix) {
                    return !watcher.queue.is_closed();
                }
                let sent = watcher.queue.try_send(Arc::clone(&event));
                if matches!(sent, Err(mpsc::error::TrySendError::Full(_))) {
                    tracing::warn!(
                        prefix = watcher.prefix,
                        "closed a watch whose reader is too slow"
                    );
                }
                sent.is_ok()
            });
            self.history_bytes += weight(&event);
            self.history.push_back(event);
        }
        self.rev = rev;
        while self.history.len() > HISTORY_EVENTS_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            // A revision is forgotten as a whole, so that nobody resumes in the middle of one.
            let Some(oldest) = self.history.front().map(|event| event.rev) else {
                break;
            };
            while self
                .history
                .front()
                .is_some_and(|event| event.rev == oldest)
            {
                self.forget_oldest();
            }
            self.compacted = oldest;
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(event) = self.history.pop_front() {
            self.history_bytes -= weight(&event);
        }
    }
}

/// The bytes an event keeps from being freed: the value it replaced.
fn weight(event: &Event) -> usize {
    event.key.len() + event.before.as_ref().map_or(0, |kv| kv.value.len())
}

fn within<'a>(
    map: &'a BTreeMap<Arc<str>, Kv>,
    prefix: &'a str,
    after: Option<&'a str>,
) -> impl Iterator<Item = (&'a Arc<str>, &'a Kv)> {
    let start = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        Some(_) | None => Bound::Included(prefix),
    };
    map.range::<str, _>((start, Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
}

fn take_page(map: &BTreeMap<Arc<str>, Kv>, range: Range<'_>, rev: Rev) -> Page {
    let mut rest = within(map, range.prefix, range.after);
    let limit = if range.limit == 0 {
        usize::MAX
    } else {
        range.limit
    };
    let items: Vec<Kv> = rest
        .by_ref()
        .take(limit)
        .map(|(_, kv)| kv.clone())
        .collect();
    Page {
        items,
        rev,
        remaining: rest.count(),
    }
}

/// Decides one transaction against `lookup`, without doing it: its events at `rev`, or the conflict.
pub(super) fn decide(
    ops: &[Op],
    rev: Rev,
    lookup: impl Fn(&str) -> Option<Kv>,
) -> Result<Vec<Event>, Error> {
    let seen: Vec<Option<Kv>> = ops.iter().map(|op| lookup(&op.key)).collect();
    for (index, (op, current)) in ops.iter().zip(&seen).enumerate() {
        let holds = match (op.expect, current) {
            (Expect::Any, _) | (Expect::Absent, None) => true,
            (Expect::ModRev(rev), Some(kv)) => kv.mod_rev == rev,
            (Expect::Absent, Some(_)) | (Expect::ModRev(_), None) => false,
        };
        if !holds {
            return Err(Error::Conflict {
                index,
                key: op.key.clone(),
                current: current.clone(),
            });
        }
    }
    let mut events: Vec<Event> = Vec::with_capacity(ops.len());
    for (op, before) in ops.iter().zip(seen) {
        let key: Arc<str> = match &before {
            Some(kv) => Arc::clone(&kv.key),
            None => Arc::from(op.key.as_str()),
        };
        match &op.change {
            Change::Check => {}
            Change::Delete if before.is_none() => {}
            Change::Delete => events.push(Event {
                rev,
                key,
                now: None,
                before,
            }),
            Change::Put(value) => {
                let create_rev = before.as_ref().map_or(rev, |kv| kv.create_rev);
                let now = Kv {
                    key: Arc::clone(&key),
                    value: value.clone(),
                    create_rev,
                    mod_rev: rev,
                };
                events.push(Event {
                    rev,
                    key,
                    now: Some(now),
                    before,
                });
            }
        }
    }
    Ok(events)
}
