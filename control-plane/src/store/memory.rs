//! The store that forgets everything at exit, for tests and throw-away clusters.

use futures::future::{BoxFuture, FutureExt, ready};

use super::history::{Shared, State, Watch, decide};
use super::{Error, Kv, Op, Page, Range, Rev, Store};

/// A store in memory alone.
#[derive(Default)]
pub struct Memory(Shared);

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Store for Memory {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Kv>, Rev), Error>> {
        let state = self.0.read();
        ready(Ok((state.current.get(key).cloned(), state.rev))).boxed()
    }

    fn list<'a>(&'a self, range: Range<'a>) -> BoxFuture<'a, Result<Page, Error>> {
        ready(self.0.read().page(range)).boxed()
    }

    fn txn(&self, ops: Vec<Op>) -> BoxFuture<'_, Result<Rev, Error>> {
        ready(commit(&mut self.0.write(), &ops)).boxed()
    }

    fn watch(&self, prefix: &str, from: Rev) -> Result<Watch, Error> {
        self.0.write().watch(prefix, from)
    }

    fn compact(&self, rev: Rev) -> Result<(), Error> {
        self.0.write().compact(rev)
    }

    fn current_rev(&self) -> Rev {
        self.0.read().rev
    }
}

fn commit(state: &mut State, ops: &[Op]) -> Result<Rev, Error> {
    let rev = state.rev + 1;
    let events = decide(ops, rev, |key| state.current.get(key).cloned())?;
    if events.is_empty() {
        return Ok(state.rev);
    }
    state.publish(rev, events);
    Ok(rev)
}
