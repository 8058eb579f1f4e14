//! The single owner of what was watched: events in, changed decisions out.
//!
//! A relist swaps at its end, so nothing that is in use goes away while a list comes in. Only
//! services that an event touched are decided anew, and only ports whose decision differs come out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::cidr::Family;
use api::core::{Node, Service};
use api::discovery::EndpointSlice;
use api::meta::ObjectMeta;
use api::watch::Event;

use crate::model::decide::decide;
use crate::model::endpoint::{self, Slice};
use crate::model::service::{self, ServicePort};
use crate::model::{
    Decision, NodeView, Policy, PortName, Problem, Protocol, ServiceName, Snapshot,
};

/// Another proxy serves a service with this label.
pub const LABEL_OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

/// Slices of headless services have this label; they are for DNS only.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";

/// The label that names a node's zone.
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

/// One event of any kind.
#[derive(Debug, Clone)]
pub enum Input {
    /// Of Services.
    Service(Event<Arc<Service>>),
    /// Of EndpointSlices.
    Slice(Event<Arc<EndpointSlice>>),
    /// Of the own Node.
    Node(Event<Arc<Node>>),
}

/// A port that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortChange {
    /// Which.
    pub name: PortName,
    /// What was decided before; `None`: it is new.
    pub old: Option<Arc<Decision>>,
    /// What is decided now; `None`: it is gone.
    pub new: Option<Arc<Decision>>,
}

/// Ports that changed, for each family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// IPv4.
    pub v4: Vec<PortChange>,
    /// IPv6.
    pub v6: Vec<PortChange>,
}

impl Changes {
    /// Of one family.
    pub fn of(&self, family: Family) -> &[PortChange] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn push(&mut self, family: Family, change: PortChange) {
        match family {
            Family::V4 => self.v4.push(change),
            Family::V6 => self.v6.push(change),
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A map that a relist replaces at its end.
#[derive(Debug)]
struct Listed<K, V> {
    current: BTreeMap<K, V>,
    incoming: Option<BTreeMap<K, V>>,
    synced: bool,
}

impl<K, V> Default for Listed<K, V> {
    fn default() -> Self {
        Self {
            current: BTreeMap::new(),
            incoming: None,
            synced: false,
        }
    }
}

impl<K: Ord + Clone, V: PartialEq> Listed<K, V> {
    /// Takes an event in; returns the keys whose value changed, with the value before.
    fn apply(&mut self, event: Event<(K, Option<V>)>) -> Vec<(K, Option<V>)> {
        match event {
            Event::Init => {
                self.incoming = Some(BTreeMap::new());
                Vec::new()
            }
            Event::InitApply((key, value)) => {
                if let (Some(incoming), Some(value)) = (&mut self.incoming, value) {
                    incoming.insert(key, value);
                }
                Vec::new()
            }
            Event::InitDone => {
                self.synced = true;
                let Some(incoming) = self.incoming.take() else {
                    return Vec::new();
                };
                let mut old = std::mem::replace(&mut self.current, incoming);
                let mut changed = Vec::new();
                for (key, value) in &self.current {
                    let before = old.remove(key);
                    if before.as_ref() != Some(value) {
                        changed.push((key.clone(), before));
                    }
                }
                changed.extend(old.into_iter().map(|(key, value)| (key, Some(value))));
                changed
            }
            Event::Apply((key, Some(value))) => {
                let before = self.current.get(&key);
                if before == Some(&value) {
                    return Vec::new();
                }
                let before = self.current.insert(key.clone(), value);
                vec![(key, before)]
            }
            Event::Apply((key, None)) | Event::Delete((key, _)) => {
                match self.current.remove(&key) {
                    Some(before) => vec![(key, Some(before))],
                    None => Vec::new(),
                }
            }
        }
    }
}

/// Namespace and name.
type Key = (Arc<str>, Arc<str>);

/// A slice, and the service it belongs to.
#[derive(Debug, PartialEq, Eq)]
struct OwnedSlice {
    service: Arc<str>,
    slice: Slice,
}

/// What was watched, and what follows from it.
#[derive(Debug)]
pub struct Store {
    node: NodeView,
    policies: BTreeMap<Family, Policy>,
    services: Listed<Key, Vec<ServicePort>>,
    slices: Listed<Key, OwnedSlice>,
    /// Slices by service.
    members: BTreeMap<ServiceName, BTreeSet<Arc<str>>>,
    dirty: BTreeSet<ServiceName>,
    problems: BTreeMap<String, Vec<Problem>>,
    news: Vec<Problem>,
    snapshot: Snapshot,
}

impl Store {
    /// Empty, for one node, with a policy for each family.
    pub fn new(node: NodeView, policies: BTreeMap<Family, Policy>) -> Self {
        Self {
            node,
            policies,
            services: Listed::default(),
            slices: Listed::default(),
            members: BTreeMap::new(),
            dirty: BTreeSet::new(),
            problems: BTreeMap::new(),
            news: Vec::new(),
            snapshot: Snapshot::default(),
        }
    }

    /// Whether services and slices have been listed: before, nothing may be programmed.
    pub fn ready(&self) -> bool {
        self.services.synced && self.slices.synced
    }

    /// What was decided so far.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The node as selection sees it.
    pub fn node(&self) -> &NodeView {
        &self.node
    }

    /// Problems found since the last call, each once as long as it lasts.
    pub fn take_news(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.news)
    }

    /// Takes one event in.
    pub fn apply(&mut self, input: Input) {
        match input {
            Input::Service(event) => self.apply_service(event),
            Input::Slice(event) => self.apply_slice(event),
            Input::Node(event) => self.apply_node(&event),
        }
    }

    /// Uses another address of the node, or other DNS addresses.
    pub fn set_node(&mut self, node: NodeView) {
        if node != self.node {
            self.node = node;
            self.dirty_all();
        }
    }

    /// Packets of local pods of a family can (or cannot) be told from others.
    pub fn set_detect_local(&mut self, family: Family, detect_local: bool) {
        let policy = self.policies.entry(family).or_default();
        if policy.detect_local != detect_local {
            policy.detect_local = detect_local;
            self.dirty_all();
        }
    }

    fn apply_service(&mut self, event: Event<Arc<Service>>) {
        let event = event.map(|service| {
            let key = key_of(&service.metadata);
            if service.metadata.labels.contains_key(LABEL_OTHER_PROXY) {
                return (key, None);
            }
            let parsed = service::parse(&service);
            let object = format!("Service {}/{}", key.0, key.1);
            self.note(object, parsed.problems);
            (key, Some(parsed.ports))
        });
        for ((namespace, name), _) in self.services.apply(event) {
            self.dirty.insert(ServiceName { namespace, name });
        }
    }

    fn apply_slice(&mut self, event: Event<Arc<EndpointSlice>>) {
        let event = event.map(|slice| {
            let key = key_of(&slice.metadata);
            let headless = slice.metadata.labels.contains_key(LABEL_HEADLESS);
            let Some(service) = slice.service_name().filter(|_| !headless) else {
                return (key, None);
            };
            let (parsed, problems) = endpoint::parse(&slice, &self.node.name);
            let object = format!("EndpointSlice {}/{}", key.0, key.1);
            self.note(object, problems);
            let owned = parsed.map(|slice| OwnedSlice {
                service: service.into(),
                slice,
            });
            (key, owned)
        });
        for ((namespace, name), before) in self.slices.apply(event) {
            if let Some(before) = before {
                let service = ServiceName {
                    namespace: namespace.clone(),
                    name: before.service,
                };
                if let Some(members) = self.members.get_mut(&service) {
                    members.remove(&name);
                    if members.is_empty() {
                        self.members.remove(&service);
                    }
                }
                self.dirty.insert(service);
            }
            if let Some(owned) = self.slices.current.get(&(namespace.clone(), name.clone())) {
                let service = ServiceName {
                    namespace,
                    name: owned.service.clone(),
                };
                self.members
                    .entry(service.clone())
                    .or_default()
                    .insert(name);
                self.dirty.insert(service);
            }
        }
    }

    fn apply_node(&mut self, event: &Event<Arc<Node>>) {
        let (Event::InitApply(node) | Event::Apply(node)) = event else {
            return;
        };
        if *node.metadata.name != *self.node.name {
            return;
        }
        let zone = node
            .metadata
            .label(LABEL_ZONE)
            .filter(|zone| !zone.is_empty());
        let mut view = self.node.clone();
        view.zone = zone.map(Into::into);
        let ips = primary_ips(node);
        if !ips.is_empty() {
            view.ips = ips;
        }
        self.set_node(view);
    }

    /// Keeps the problems of an object, and announces new ones.
    fn note(&mut self, object: String, problems: Vec<Problem>) {
        if problems.is_empty() {
            self.problems.remove(&object);
            return;
        }
        let known = self.problems.get(&object);
        let new = problems
            .iter()
            .filter(|problem| known.is_none_or(|known| !known.contains(problem)));
        self.news.extend(new.cloned());
        self.problems.insert(object, problems);
    }

    fn dirty_all(&mut self) {
        let all = self.services.current.keys();
        self.dirty.extend(
            all.cloned()
                .map(|(namespace, name)| ServiceName { namespace, name }),
        );
    }

    /// Decides what is dirty; returns the ports that came out different.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        for name in std::mem::take(&mut self.dirty) {
            for family in Family::BOTH {
                self.decide_service(&name, family, &mut changes);
            }
        }
        changes
    }

    fn decide_service(&mut self, name: &ServiceName, family: Family, changes: &mut Changes) {
        let key = (name.namespace.clone(), name.name.clone());
        let ports = self
            .services
            .current
            .get(&key)
            .map_or(&[][..], Vec::as_slice);
        let policy = self.policies.get(&family).copied().unwrap_or_default();
        let mut decided: BTreeMap<&PortName, Decision> = BTreeMap::new();
        for port in ports {
            let slices = self.slices_of(name);
            let (of, protocol) = (&port.name.port, port.name.protocol);
            let endpoints = endpoint::merge(slices, family, of, protocol);
            if let Some(decision) = decide(port, family, &endpoints, &self.node, policy) {
                decided.insert(&port.name, decision);
            }
        }
        let known = self.snapshot.of(family);
        let mut new = Vec::new();
        for (port, _) in known.range(first_port(name)..) {
            if port.service != *name {
                break;
            }
            if !decided.contains_key(port) {
                new.push((port.clone(), None));
            }
        }
        for (port, decision) in decided {
            if known.get(port).is_none_or(|known| **known != decision) {
                new.push((port.clone(), Some(Arc::new(decision))));
            }
        }
        let snapshot = self.snapshot.of_mut(family);
        for (name, new) in new {
            let old = match &new {
                Some(new) => snapshot.insert(name.clone(), new.clone()),
                None => snapshot.remove(&name),
            };
            changes.push(family, PortChange { name, old, new });
        }
    }

    fn slices_of(&self, service: &ServiceName) -> impl Iterator<Item = &Slice> {
        let names = self.members.get(service).into_iter().flatten();
        names.filter_map(|name| {
            let key = (service.namespace.clone(), name.clone());
            self.slices.current.get(&key).map(|owned| &owned.slice)
        })
    }
}

fn key_of(meta: &ObjectMeta) -> Key {
    (meta.namespace.as_str().into(), meta.name.as_str().into())
}

/// The least possible port of a service.
fn first_port(service: &ServiceName) -> PortName {
    PortName {
        service: service.clone(),
        port: "".into(),
        protocol: Protocol::Tcp,
    }
}

/// The first internal (or else external) address of each family.
fn primary_ips(node: &Node) -> Vec<std::net::IpAddr> {
    let mut ips: Vec<std::net::IpAddr> = Vec::new();
    for type_ in ["InternalIP", "ExternalIP"] {
        for ip in node
            .status
            .addresses_of(type_)
            .filter_map(api::cidr::parse_ip)
        {
            if !ips.iter().any(|known| known.is_ipv4() == ip.is_ipv4()) {
                ips.push(ip);
            }
        }
    }
    ips.sort_unstable();
    ips
}

#[cfg(test)]
mod tests;
