//! What the controllers know of the cluster: a cache for each kind, and what follows from all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::config::Config;
use crate::gc::Graph;
use crate::kinds::{Caches, Touch};
use crate::meta;
use crate::resources::ResourceInfo;
use crate::schedule::{PodInfo, State};

/// Names an object; `resource` is empty where the kind is clear from the context.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) resource: String,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            resource: String::new(),
        }
    }

    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.resource.is_empty() {
            write!(f, "{} ", self.resource)?;
        }
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// The time of an event: `wall` for what is written into objects, `mono` (since the start of the process) for every
/// delay and deadline, so that a clock that is set does not evict a node's pods.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) wall: Timestamp,
    pub(crate) mono: Duration,
}

/// When a node was last heard of, by our own clock.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Heartbeat {
    /// What was heard: the Lease's renewTime and the Ready condition's lastHeartbeatTime.
    pub(crate) stamp: (Option<Timestamp>, Option<Timestamp>),
    pub(crate) at: Duration,
}

/// A binding that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assumed {
    pub(crate) uid: String,
    pub(crate) node: String,
    /// Nobody knows whether it arrived: it must be sent again, to the same node.
    pub(crate) again: bool,
}

/// What a namespace still held when it was last emptied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remaining {
    /// `resource: count`, and for each finalizer how many objects wait for it.
    pub(crate) objects: BTreeMap<String, usize>,
    pub(crate) finalizers: BTreeMap<String, usize>,
    pub(crate) failures: Vec<String>,
}

impl Remaining {
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty()
    }
}

/// The caches and what is derived from them or known from our own writes.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) config: Config,
    caches: Caches,
    pods_by_node: BTreeMap<String, BTreeSet<Key>>,
    /// Bindings that were sent and that the cached pod does not show.
    pub(crate) assumed: BTreeMap<Key, Assumed>,
    /// Pod CIDRs that were sent to a node (by uid) and that the cached node does not show.
    pub(crate) reserved: BTreeMap<String, Vec<IpNetwork>>,
    pub(crate) heartbeats: BTreeMap<String, Heartbeat>,
    /// Pods that found no node; they are tried again when something changes that may help.
    pub(crate) unschedulable: BTreeSet<Key>,
    pub(crate) graph: Graph,
    /// Nodes and their pods as the scheduler sees them, with what is assumed.
    pub(crate) schedule: State,
    /// Nodes that pods name and that do not exist, and since when.
    pub(crate) missing_nodes: BTreeMap<String, Duration>,
    pub(crate) resources: Arc<Vec<ResourceInfo>>,
    /// What the last run of a controller failed with, by its label and the key.
    pub(crate) failures: BTreeMap<(&'static str, Key), String>,
    /// By namespace uid.
    pub(crate) emptied: BTreeMap<String, Remaining>,
}

impl Deref for View {
    type Target = Caches;
    fn deref(&self) -> &Caches {
        &self.caches
    }
}

impl DerefMut for View {
    fn deref_mut(&mut self) -> &mut Caches {
        &mut self.caches
    }
}

impl View {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    /// The pods that are bound to a node.
    pub(crate) fn pods_on(&self, node: &str) -> impl Iterator<Item = (&Key, &Arc<Pod>)> {
        self.pods_by_node
            .get(node)
            .into_iter()
            .flatten()
            .filter_map(|key| self.pods.get(key).map(|pod| (key, pod)))
    }

    /// Brings the derived knowledge up to date with a change that the caches have taken in.
    /// Returns what the garbage collector should look at.
    pub(crate) fn derive(&mut self, touch: &Touch, now: Now) -> Vec<Key> {
        let wake = self.graph.touch(touch);
        match touch {
            Touch::Pod { old, new } => self.derive_pod(old.as_deref(), new.as_ref(), now),
            Touch::Namespace {
                new: Some(namespace),
                ..
            } => {
                self.schedule.set_namespace(namespace, true);
            }
            Touch::Node { old, new } => {
                if let Some(node) = new {
                    let name = meta::name(&node.metadata);
                    self.missing_nodes.remove(name);
                    self.schedule.set_node(name, Some(Arc::clone(node)));
                    let uid = meta::uid(&node.metadata);
                    if node
                        .spec
                        .as_ref()
                        .is_some_and(|spec| spec.pod_cidr.is_some())
                    {
                        self.reserved.remove(uid);
                    }
                    self.heard(name, now);
                } else if let Some(node) = old {
                    let name = meta::name(&node.metadata);
                    self.schedule.set_node(name, None);
                    self.missing_nodes.insert(name.to_owned(), now.mono);
                    self.reserved.remove(meta::uid(&node.metadata));
                    self.heartbeats.remove(name);
                }
            }
            Touch::Lease {
                new: Some(lease), ..
            } => {
                self.heard(meta::name(&lease.metadata), now);
            }
            Touch::Namespace {
                old: Some(old),
                new: None,
            } => {
                self.schedule.set_namespace(old, false);
                self.emptied.remove(meta::uid(&old.metadata));
            }
            _ => {}
        }
        wake
    }

    fn derive_pod(&mut self, old: Option<&Pod>, new: Option<&Arc<Pod>>, now: Now) {
        let node_of = |pod: Option<&Pod>| meta::node_of(pod?).map(str::to_owned);
        let (before, after) = (node_of(old), node_of(new.map(Arc::as_ref)));
        let Some(meta) = new.map(Arc::as_ref).or(old).map(|pod| &pod.metadata) else {
            return;
        };
        let key = Key::of(meta);
        if before != after {
            if let Some(node) = before
                && let Some(keys) = self.pods_by_node.get_mut(&node)
            {
                keys.remove(&key);
                if keys.is_empty() {
                    self.pods_by_node.remove(&node);
                }
            }
            if let Some(node) = &after {
                self.pods_by_node
                    .entry(node.clone())
                    .or_default()
                    .insert(key.clone());
            }
        }
        if after.is_some() || new.is_none() {
            self.assumed.remove(&key);
            self.unschedulable.remove(&key);
        }
        if let Some(node) = &after
            && self.nodes.named("", node).is_none()
        {
            self.missing_nodes.entry(node.clone()).or_insert(now.mono);
        }
        match (new, &after) {
            (Some(pod), Some(node)) if !meta::pod_finished(pod) => {
                self.schedule.set_pod(&key, Some((node, PodInfo::new(pod))));
            }
            // An assumed pod stays where it was put.
            (Some(pod), None) if self.is_assumed(&key, pod) => {}
            _ => self.schedule.set_pod(&key, None),
        }
    }

    fn is_assumed(&self, key: &Key, pod: &Pod) -> bool {
        let assumed = self.assumed.get(key);
        assumed.is_some_and(|it| it.uid == meta::uid(&pod.metadata)) && meta::pod_active(pod)
    }

    /// A binding was sent: the pod takes its place at once.
    pub(crate) fn assume(&mut self, key: &Key, uid: &str, node: &str) {
        self.unschedulable.remove(key);
        let assumed = Assumed {
            uid: uid.to_owned(),
            node: node.to_owned(),
            again: false,
        };
        self.assumed.insert(key.clone(), assumed);
        if let Some(pod) = self.pods.get(key) {
            let info = PodInfo::new(pod);
            self.schedule.set_pod(key, Some((node, info)));
        }
    }

    /// The binding failed: the pod has no place, unless the watch has shown one.
    pub(crate) fn forget(&mut self, key: &Key) {
        if self.assumed.remove(key).is_some() {
            self.schedule.set_pod(key, None);
        }
    }

    fn heard(&mut self, name: &str, now: Now) {
        if name.is_empty() || self.nodes.named("", name).is_none() {
            return;
        }
        let stamp = crate::node::lifecycle::heartbeat_stamp(self, name);
        match self.heartbeats.get_mut(name) {
            Some(known) if known.stamp == stamp => {}
            Some(known) => {
                *known = Heartbeat {
                    stamp,
                    at: now.mono,
                }
            }
            None => {
                self.heartbeats.insert(
                    name.to_owned(),
                    Heartbeat {
                        stamp,
                        at: now.mono,
                    },
                );
            }
        }
    }
}
