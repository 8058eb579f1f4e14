//! The default store: all values in memory, every write in a redb file before it is acknowledged.
//!
//! One thread writes. It takes whatever is queued, decides each transaction on top of the ones before
//! it, commits them together with one fsync, publishes, and answers. It never waits for more to come:
//! while one commit is in the disk's hands the next batch gathers by itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use super::history::{Shared, Watch, decide};
use super::{Error, Event, Kv, Op, Page, Range, Rev, Store};

/// key -> (create revision, modification revision, value)
const CURRENT: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("current");
/// name -> number; `rev` is the newest revision, `format` the layout of this file.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Layout written by this program.
const FORMAT: u64 = 1;
/// redb's page cache; reads are served from memory, so it only helps writes.
const CACHE_BYTES: usize = 4 << 20;
/// Transactions that share one commit at most, so that one commit stays short.
const BATCH_MAX: usize = 1_024;

/// A store in one file.
pub struct Embedded {
    shared: Arc<Shared>,
    queue: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

struct Job {
    ops: Vec<Op>,
    reply: oneshot::Sender<Result<Rev, Error>>,
}

struct Writer {
    database: Database,
    shared: Arc<Shared>,
    path: String,
    /// Set by a failed commit: what reached the disk is unknown, so nothing more is written.
    failed: Option<String>,
}

impl Embedded {
    /// Opens or creates the file and loads it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let fail = |reason: String| Error::Backend {
            path: name.clone(),
            reason,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| fail(e.to_string()))?;
        }
        let database = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|e| fail(e.to_string()))?;
        let (rev, current) = load(&database).map_err(|e| fail(e.to_string()))??;
        let shared = Arc::new(Shared::restored(rev, current));
        let (queue, jobs) = mpsc::channel();
        let mut writer = Writer {
            database,
            shared: Arc::clone(&shared),
            path: name.clone(),
            failed: None,
        };
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&jobs))
            .map_err(|e| fail(e.to_string()))?;
        Ok(Self {
            shared,
            queue: Some(queue),
            writer: Some(writer),
        })
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

impl Store for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Option<Kv>, Rev), Error>> {
        let state = self.shared.read();
        ready(Ok((state.current.get(key).cloned(), state.rev))).boxed()
    }

    fn list<'a>(&'a self, range: Range<'a>) -> BoxFuture<'a, Result<Page, Error>> {
        ready(self.shared.read().page(range)).boxed()
    }

    fn txn(&self, ops: Vec<Op>) -> BoxFuture<'_, Result<Rev, Error>> {
        let (reply, answer) = oneshot::channel();
        let sent = self
            .queue
            .as_ref()
            .is_some_and(|queue| queue.send(Job { ops, reply }).is_ok());
        async move {
            if !sent {
                return Err(Error::Closed);
            }
            answer.await.unwrap_or(Err(Error::Closed))
        }
        .boxed()
    }

    fn watch(&self, prefix: &str, from: Rev) -> Result<Watch, Error> {
        self.shared.write().watch(prefix, from)
    }

    fn compact(&self, rev: Rev) -> Result<(), Error> {
        self.shared.write().compact(rev)
    }

    fn current_rev(&self) -> Rev {
        self.shared.read().rev
    }
}

type Loaded = Result<(Rev, BTreeMap<Arc<str>, Kv>), Error>;

fn load(database: &Database) -> Result<Loaded, redb::Error> {
    let txn = database.begin_write()?;
    let stale = {
        let mut meta = txn.open_table(META)?;
        txn.open_table(CURRENT)?;
        let format = meta.get("format")?.map(|value| value.value());
        if format.is_none() {
            meta.insert("format", FORMAT)?;
        }
        format.filter(|format| *format != FORMAT)
    };
    txn.commit()?;
    if let Some(format) = stale {
        return Ok(Err(Error::Backend {
            path: "store.redb".to_owned(),
            reason: format!("has layout {format}, this program reads layout {FORMAT}"),
        }));
    }
    let txn = database.begin_read()?;
    let rev = txn
        .open_table(META)?
        .get("rev")?
        .map_or(0, |value| value.value());
    let mut current = BTreeMap::new();
    for row in txn.open_table(CURRENT)?.iter()? {
        let (key, value) = row?;
        let key: Arc<str> = Arc::from(key.value());
        let (create_rev, mod_rev, value) = value.value();
        let kv = Kv {
            key: Arc::clone(&key),
            value: Bytes::copy_from_slice(value),
            create_rev,
            mod_rev,
        };
        current.insert(key, kv);
    }
    Ok(Ok((rev, current)))
}

impl Writer {
    fn run(&mut self, jobs: &mpsc::Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Ok(job) = jobs.try_recv()
            {
                batch.push(job);
            }
            self.commit(batch);
        }
    }

    fn commit(&mut self, batch: Vec<Job>) {
        let mut rev = self.shared.read().rev;
        let mut pending: BTreeMap<Arc<str>, Option<Kv>> = BTreeMap::new();
        let mut written: Vec<(Rev, Vec<Event>)> = Vec::new();
        let mut answers = Vec::with_capacity(batch.len());
        for job in batch {
            if let Some(reason) = &self.failed {
                answers.push((job.reply, Err(self.error(reason))));
                continue;
            }
            let decided = {
                let state = self.shared.read();
                decide(&job.ops, rev + 1, |key| match pending.get(key) {
                    Some(kv) => kv.clone(),
                    None => state.current.get(key).cloned(),
                })
            };
            let outcome = decided.map(|events| {
                if !events.is_empty() {
                    rev += 1;
                    for event in &events {
                        pending.insert(Arc::clone(&event.key), event.now.clone());
                    }
                    written.push((rev, events));
                }
                rev
            });
            answers.push((job.reply, outcome));
        }
        if !written.is_empty() {
            match self.persist(rev, &pending) {
                Ok(()) => {
                    let mut state = self.shared.write();
                    for (rev, events) in written {
                        state.publish(rev, events);
                    }
                }
                Err(error) => {
                    let reason = format!("commit: {error}");
                    tracing::error!(path = self.path, reason, "the store takes no more writes");
                    for (_, answer) in &mut answers {
                        *answer = Err(self.error(&reason));
                    }
                    self.failed = Some(reason);
                }
            }
        }
        for (reply, answer) in answers {
            // The asker may be gone (its connection closed); the write stands all the same.
            drop(reply.send(answer));
        }
    }

    fn persist(
        &self,
        rev: Rev,
        pending: &BTreeMap<Arc<str>, Option<Kv>>,
    ) -> Result<(), redb::Error> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        {
            let mut current = txn.open_table(CURRENT)?;
            for (key, kv) in pending {
                match kv {
                    Some(kv) => {
                        current.insert(&**key, (kv.create_rev, kv.mod_rev, &kv.value[..]))?;
                    }
                    None => {
                        current.remove(&**key)?;
                    }
                }
            }
            txn.open_table(META)?.insert("rev", rev)?;
        }
        txn.commit()?;
        Ok(())
    }

    fn error(&self, reason: &str) -> Error {
        Error::Backend {
            path: self.path.clone(),
            reason: reason.to_owned(),
        }
    }
}
