//! The store: what the API server remembers, with etcd's semantics.
//!
//! Keys are `/registry/<group>/<resource>/[namespace/]name`, values are JSON. Every transaction gets
//! one revision; a revision never comes twice, also not after a crash. A write is durable, then
//! published to the watchers, then acknowledged, in this order: whoever got an answer can be sure that
//! every later read and every watch shows the write.
//!
//! Source of the model: etcd's API guarantees (<https://etcd.io/docs/v3.5/learning/api_guarantees/>).

mod embedded;
mod history;
mod memory;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use embedded::Embedded;
pub use history::Watch;
pub use memory::Memory;

/// A point in the history of the whole store. Grows by one with every transaction that writes.
pub type Rev = u64;

/// One stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    /// The full key.
    pub key: Arc<str>,
    /// The value as written.
    pub value: Bytes,
    /// Revision that created the key.
    pub create_rev: Rev,
    /// Revision that wrote this value.
    pub mod_rev: Rev,
}

/// What must hold for a key, or the whole transaction is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key does not exist.
    Absent,
    /// The key exists and was last written at this revision.
    ModRev(Rev),
}

/// What to do with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write a value.
    Put(Bytes),
    /// Remove the key; removing what is absent is no error.
    Delete,
    /// Only look at the expectation.
    Check,
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The full key.
    pub key: String,
    /// Condition on the state before the transaction.
    pub expect: Expect,
    /// What to do when all conditions of the transaction hold.
    pub change: Change,
}

impl Op {
    /// Creates `key`, which must not exist.
    pub fn create(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            expect: Expect::Absent,
            change: Change::Put(value.into()),
        }
    }

    /// Replaces the value written at `rev`.
    pub fn replace(key: impl Into<String>, rev: Rev, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            expect: Expect::ModRev(rev),
            change: Change::Put(value.into()),
        }
    }

    /// Removes the value written at `rev`.
    pub fn delete(key: impl Into<String>, rev: Rev) -> Self {
        Self {
            key: key.into(),
            expect: Expect::ModRev(rev),
            change: Change::Delete,
        }
    }

    /// Removes whatever is there.
    pub fn remove(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            expect: Expect::Any,
            change: Change::Delete,
        }
    }
}

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An expectation did not hold; nothing was written.
    #[error("key {key} is not as expected")]
    Conflict {
        /// Index of the first step whose expectation failed.
        index: usize,
        /// Its key.
        key: String,
        /// What is there.
        current: Option<Kv>,
    },
    /// The revision is older than the kept history.
    #[error("revision {asked} is compacted, the oldest kept is {oldest}")]
    Compacted {
        /// The revision asked for.
        asked: Rev,
        /// The oldest revision that can be asked for.
        oldest: Rev,
    },
    /// The revision lies in the future.
    #[error("revision {asked} is not there yet, the newest is {newest}")]
    Future {
        /// The revision asked for.
        asked: Rev,
        /// The newest revision.
        newest: Rev,
    },
    /// The file cannot be opened, read or written. After a failed write the store refuses all writes,
    /// since nobody knows what reached the disk.
    #[error("store {path}: {reason}")]
    Backend {
        /// The file.
        path: String,
        /// What the library said.
        reason: String,
    },
    /// The kind of store is not built in.
    #[error("--store {0}: {1}")]
    Unsupported(String, &'static str),
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// A slice of the keys in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The values, sorted by key.
    pub items: Vec<Kv>,
    /// The revision the page shows.
    pub rev: Rev,
    /// How many keys of the prefix follow after the last item.
    pub remaining: usize,
}

/// A change that happened.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// Revision of the change.
    pub rev: Rev,
    /// The key that changed.
    pub key: Arc<str>,
    /// The value now, none when deleted.
    pub now: Option<Kv>,
    /// The value before, none when created.
    pub before: Option<Kv>,
}

/// What a page should hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range<'a> {
    /// Keys start with this.
    pub prefix: &'a str,
    /// Keys are greater than this.
    pub after: Option<&'a str>,
    /// At most this many, zero means all.
    pub limit: usize,
    /// As of this revision; none means now.
    pub at: Option<Rev>,
}

/// Where objects live.
pub trait Store: Send + Sync + 'static {
    /// The value of one key and the revision of the store it was read at.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Kv>, Rev), Error>>;
    /// The values of a range.
    fn list<'a>(&'a self, range: Range<'a>) -> BoxFuture<'a, Result<Page, Error>>;
    /// Does all steps or none and returns the revision of the write.
    /// A transaction that changes nothing returns the current revision.
    fn txn(&self, ops: Vec<Op>) -> BoxFuture<'_, Result<Rev, Error>>;
    /// Every change under `prefix` after `from`, in order, without gaps.
    fn watch(&self, prefix: &str, from: Rev) -> Result<Watch, Error>;
    /// Forgets the history up to and including `rev`; the current values stay.
    fn compact(&self, rev: Rev) -> Result<(), Error>;
    /// The newest revision. Every event up to it has been handed to every watch already.
    fn current_rev(&self) -> Rev;
}

/// Opens the store that `--store` names. `dir` is the data directory.
pub fn open(kind: &str, dir: &Path) -> Result<Arc<dyn Store>, Error> {
    match kind {
        "memory" => Ok(Arc::new(Memory::new())),
        "embedded" => Ok(Arc::new(Embedded::open(&dir.join("store.redb"))?)),
        other if other.starts_with("etcd://") => Err(Error::Unsupported(
            other.to_owned(),
            "etcd is not yet supported, use embedded",
        )),
        other => Err(Error::Unsupported(
            other.to_owned(),
            "use embedded, memory or etcd://HOST:PORT",
        )),
    }
}
