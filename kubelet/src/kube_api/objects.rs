//! ConfigMaps and Secrets of the node's pods: each one is watched as long as a pod uses it, so that a pod that
//! starts asks nothing twice and a change reaches the volumes at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::watch::Event;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::{Client, Resource, Selection};
use futures::StreamExt;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{ApiError, Data};
use crate::volumes::payload::Kind;

/// A pod waits for the first answer about an object at most this long.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Which object.
type Key = (Kind, String, String);

/// `None` until the first answer; then the data, or `None` when there is no such object.
type Known = Option<Option<Data>>;

/// All objects in use.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    entries: Arc<Mutex<BTreeMap<Key, Entry>>>,
    changes: mpsc::Sender<Vec<String>>,
}

struct Entry {
    users: BTreeSet<String>,
    known: watch::Receiver<Known>,
    _task: AbortOnDropHandle<()>,
}

/// A ConfigMap or Secret as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Slim {
    data: Option<BTreeMap<String, String>>,
    binary_data: Option<BTreeMap<String, String>>,
}

impl Slim {
    fn decode(self, kind: Kind) -> BTreeMap<String, Vec<u8>> {
        let base64 = |text: String| STANDARD.decode(text.as_bytes()).unwrap_or_default();
        let plain = self.data.into_iter().flatten().map(|(key, text)| {
            let bytes = match kind {
                Kind::ConfigMap => text.into_bytes(),
                Kind::Secret => base64(text),
            };
            (key, bytes)
        });
        let binary = self.binary_data.into_iter().flatten();
        plain.chain(binary.map(|(k, t)| (k, base64(t)))).collect()
    }
}

impl Objects {
    /// None yet. `changes` gets the uids of the pods that use an object that changed.
    pub fn new(client: Client, changes: mpsc::Sender<Vec<String>>) -> Self {
        Self {
            client,
            entries: Arc::default(),
            changes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data of an object for pod `user`.
    pub async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        user: &str,
    ) -> Result<Option<Data>, ApiError> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let mut known = {
            let mut entries = self.lock();
            let entry = entries
                .entry(key.clone())
                .or_insert_with(|| self.follow(key));
            entry.users.insert(user.to_owned());
            entry.known.clone()
        };
        let title = kind.title();
        let answer = tokio::time::timeout(FIRST_ANSWER, known.wait_for(Option::is_some)).await;
        match answer {
            Ok(Ok(known)) => Ok(known.clone().flatten()),
            Ok(Err(_)) | Err(_) => Err(ApiError::Other(format!(
                "failed to sync {title} cache: no answer about {title} \"{name}\" yet"
            ))),
        }
    }

    /// Pod `user` needs nothing any more.
    pub fn release(&self, user: &str) {
        self.lock().retain(|_, entry| {
            entry.users.remove(user);
            !entry.users.is_empty()
        });
    }

    fn follow(&self, key: Key) -> Entry {
        let (tell, known) = watch::channel(None);
        let task = tokio::spawn(follow(self.clone(), key, tell));
        Entry {
            users: BTreeSet::new(),
            known,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The object is now this; pods that had another hear of it.
    async fn set(&self, key: &Key, tell: &watch::Sender<Known>, now: Option<Data>) {
        let first = tell.borrow().is_none();
        let changed = tell.send_if_modified(|known| {
            let differs = known.as_ref() != Some(&now);
            *known = Some(now);
            differs
        });
        if first || !changed {
            return;
        }
        let users = self.lock().get(key).map(|e| e.users.clone());
        let users = users.into_iter().flatten().collect();
        if self.changes.send(users).await.is_err() {
            tracing::trace!("the manager has ended");
        }
    }
}

async fn follow(objects: Objects, key: Key, tell: watch::Sender<Known>) {
    let (kind, namespace, name) = &key;
    let resource = match kind {
        Kind::ConfigMap => Resource::CONFIG_MAPS,
        Kind::Secret => Resource::SECRETS,
    };
    let selection = Selection::fields(format!("metadata.name={name}")).in_namespace(namespace);
    let mut events = objects.client.watch::<Slim>(resource, selection);
    let mut listed = None;
    while let Some(event) = events.next().await {
        match event {
            Event::Init => listed = None,
            Event::InitApply(object) => listed = Some(Arc::new(object.decode(*kind))),
            Event::InitDone => objects.set(&key, &tell, listed.take()).await,
            Event::Apply(object) => {
                let data = Arc::new(object.decode(*kind));
                objects.set(&key, &tell, Some(data)).await;
            }
            Event::Delete(_) => objects.set(&key, &tell, None).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_decoded_by_kind() {
        let slim = |json: &str| serde_json::from_str::<Slim>(json).unwrap();
        let text = r#"{"data":{"a":"aGk="},"binaryData":{"b":"aGk="}}"#;
        let config = slim(text).decode(Kind::ConfigMap);
        assert_eq!(
            (&config["a"][..], &config["b"][..]),
            (&b"aGk="[..], &b"hi"[..])
        );
        assert_eq!(slim(text).decode(Kind::Secret)["a"], b"hi");
        assert!(slim(r#"{"data":null}"#).decode(Kind::Secret).is_empty());
    }
}
