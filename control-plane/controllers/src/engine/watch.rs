//! Watches: one for each typed kind, and metadata of every other kind for the garbage collector.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt, pin_mut};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::discovery::{Discovery, Scope};
use kube::runtime::utils::{Backoff, StreamBackoff};
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::brain::Change;
use crate::gc::GraphEvent;
use crate::kinds::{Kind, LEASE_NAMESPACE, Object, ROOT_CA_CONFIG_MAP, Trim};
use crate::resources::ResourceInfo;
use crate::write::Target;

/// What discovery has found.
pub(crate) type Resources = Arc<Vec<ResourceInfo>>;

/// Back-off of a watch that fails: from the first to the second.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How often discovery looks for new kinds once it has succeeded. Nothing waits for it but the garbage collection of
/// kinds that did not exist before.
const DISCOVERY_PERIOD: Duration = Duration::from_secs(60);

/// Delays that double; the first event after a failure starts them anew.
struct Retry(Duration);

impl Iterator for Retry {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let delay = self.0;
        self.0 = (delay * 2).min(RETRY_MAX);
        Some(delay)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = RETRY_FIRST;
    }
}

/// Starts the watches of all typed kinds.
pub(crate) fn spawn(tasks: &mut JoinSet<()>, client: &Client, changes: &mpsc::Sender<Change>) {
    macro_rules! all {
        ($($kind:ident),*) => {
            $({
                let api = Api::<DeserializeGuard<_>>::all(client.clone());
                tasks.spawn(typed(api, watcher::Config::default(), Kind::$kind, Object::$kind, changes.clone()));
            })*
        };
    }
    all!(
        Pod,
        Node,
        Namespace,
        Service,
        ServiceAccount,
        EndpointSlice,
        ReplicaSet,
        Deployment
    );
    all!(
        StatefulSet,
        DaemonSet,
        ControllerRevision,
        Job,
        PersistentVolumeClaim
    );
    let leases = Api::namespaced(client.clone(), LEASE_NAMESPACE);
    let config = watcher::Config::default();
    tasks.spawn(typed(
        leases,
        config,
        Kind::Lease,
        Object::Lease,
        changes.clone(),
    ));
    let config_maps = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={ROOT_CA_CONFIG_MAP}"));
    tasks.spawn(typed(
        config_maps,
        config,
        Kind::ConfigMap,
        Object::ConfigMap,
        changes.clone(),
    ));
}

/// Watches one kind for ever. An object that cannot be read is left out, which is logged.
async fn typed<K>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    kind: Kind,
    wrap: fn(Arc<K>) -> Object,
    changes: mpsc::Sender<Change>,
) where
    K: Resource + Trim + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default + Clone,
{
    let read = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(mut object) => {
            object.trim();
            Some(wrap(Arc::new(object)))
        }
        Err(invalid) => {
            let (namespace, name) = (&invalid.metadata.namespace, &invalid.metadata.name);
            tracing::warn!(
                kind = kind.name(),
                ?namespace,
                ?name,
                "ignore an object: {}",
                invalid.error
            );
            None
        }
    };
    let events = watched(watcher::watcher(api, config), kind.plural());
    pin_mut!(events);
    while let Some(event) = events.next().await {
        let change = match event {
            Event::Init => Some(Change::Init(kind)),
            Event::InitDone => Some(Change::InitDone(kind)),
            Event::InitApply(guard) | Event::Apply(guard) => read(guard).map(Change::Seen),
            Event::Delete(guard) => read(guard).map(Change::Gone),
        };
        if let Some(change) = change
            && changes.send(change).await.is_err()
        {
            return;
        }
    }
}

/// How many watches are failing. A server that goes away fails them all, and the first says enough.
static FAILING: AtomicUsize = AtomicUsize::new(0);

/// Whether one watch is failing; counted in [`FAILING`] also when the watch itself ends.
#[derive(Default)]
struct Health {
    failing: bool,
}

impl Health {
    fn set(&mut self, failing: bool, tell: impl FnOnce(bool)) {
        if failing && !self.failing {
            tell(FAILING.fetch_add(1, Ordering::Relaxed) == 0);
        } else if !failing && self.failing && FAILING.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::info!("all watches work again");
        }
        self.failing = failing;
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        if self.failing {
            FAILING.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The events of a watch that is started again after errors, of which only the first is told.
fn watched<T: Send + 'static>(
    stream: impl Stream<Item = watcher::Result<Event<T>>> + Send + 'static,
    what: &str,
) -> impl Stream<Item = Event<T>> + Send + 'static {
    let what = what.to_owned();
    let mut health = Health::default();
    StreamBackoff::new(stream, Retry(RETRY_FIRST)).filter_map(move |event| {
        let event = match event {
            Ok(event) => {
                health.set(false, |_| {});
                Some(event)
            }
            Err(error) => {
                health.set(true, |first| {
                    if first {
                        tracing::warn!("watch {what}: {error}; trying again");
                    } else {
                        tracing::debug!("watch {what}: {error}; trying again");
                    }
                });
                None
            }
        };
        std::future::ready(event)
    })
}

/// Finds the resources of the API server and watches the metadata of those without a typed cache.
pub(crate) async fn discover(
    client: Client,
    changes: mpsc::Sender<Change>,
    published: watch::Sender<Resources>,
) {
    let mut watches: BTreeMap<String, AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut delay = RETRY_FIRST;
    loop {
        match resources(&client).await {
            Ok(found) => {
                delay = DISCOVERY_PERIOD;
                if **published.borrow() != found {
                    watch_others(&client, &changes, &found, &mut watches, &mut tasks);
                    let found = Arc::new(found);
                    published.send_replace(Arc::clone(&found));
                    if changes.send(Change::Resources(found)).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                tracing::warn!("discover the API server's resources: {error}; trying again");
                delay = (delay * 2).min(RETRY_MAX);
            }
        }
        tokio::time::sleep(delay).await;
    }
}

async fn resources(client: &Client) -> kube::Result<Vec<ResourceInfo>> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        Err(error) => {
            tracing::debug!("aggregated discovery: {error}; asking each group");
            Discovery::new(client.clone()).run().await?
        }
    };
    let mut found = Vec::new();
    for group in discovery.groups_alphabetical() {
        for (resource, capabilities) in group.recommended_resources() {
            found.push(ResourceInfo {
                api_version: resource.api_version,
                kind: resource.kind,
                plural: resource.plural,
                namespaced: capabilities.scope == Scope::Namespaced,
                verbs: capabilities.operations,
            });
        }
    }
    Ok(found)
}

fn watch_others(
    client: &Client,
    changes: &mpsc::Sender<Change>,
    found: &[ResourceInfo],
    watches: &mut BTreeMap<String, AbortHandle>,
    tasks: &mut JoinSet<()>,
) {
    let wanted: BTreeMap<String, &ResourceInfo> = found
        .iter()
        .filter(|resource| has_metadata_watch(resource))
        .map(|resource| {
            (
                format!("{}/{}", resource.prefix(), resource.plural),
                resource,
            )
        })
        .collect();
    watches.retain(|path, handle| {
        let keep = wanted.contains_key(path);
        if !keep {
            handle.abort();
        }
        keep
    });
    for (path, resource) in wanted {
        watches.entry(path).or_insert_with(|| {
            tasks.spawn(metadata(client.clone(), resource.clone(), changes.clone()))
        });
    }
}

/// Typed kinds are watched in full; events are many, short-lived and own nothing; leases belong to nodes, which
/// outlive nothing of theirs.
fn has_metadata_watch(resource: &ResourceInfo) -> bool {
    let typed = Target::dynamic(resource, "", "")
        .kind
        .is_some_and(Kind::complete);
    !typed
        && resource.plural != "events"
        && ["list", "watch", "delete"]
            .iter()
            .all(|verb| resource.can(verb))
}

async fn metadata(client: Client, info: ResourceInfo, changes: mpsc::Sender<Change>) {
    let (group, version) = info
        .api_version
        .split_once('/')
        .unwrap_or(("", &info.api_version));
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: info.api_version.clone(),
        kind: info.kind.clone(),
        plural: info.plural.clone(),
    };
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource);
    let events = watched(
        watcher::watcher(api, watcher::Config::default()),
        &info.plural,
    );
    let info = Arc::new(info);
    pin_mut!(events);
    let seen = |object: PartialObjectMeta<DynamicObject>| GraphEvent::Seen {
        target: Target::dynamic(
            &info,
            object.metadata.namespace.as_deref().unwrap_or_default(),
            object.metadata.name.as_deref().unwrap_or_default(),
        ),
        meta: Box::new(object.metadata),
    };
    while let Some(event) = events.next().await {
        let path = format!("{}/{}", info.prefix(), info.plural);
        let event = match event {
            Event::Init => GraphEvent::Listing { path },
            Event::InitDone => GraphEvent::Listed { path },
            Event::InitApply(object) | Event::Apply(object) => seen(object),
            Event::Delete(object) => GraphEvent::Gone {
                uid: object.metadata.uid.unwrap_or_default(),
            },
        };
        if changes.send(Change::Graph(event)).await.is_err() {
            return;
        }
    }
}
