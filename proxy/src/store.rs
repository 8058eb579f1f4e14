//! The single owner of what was watched: events in, changed decisions out.
//!
//! Only services that an event touched are decided anew, and only ports whose decision differs come out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::cidr::{Family, parse_cidr};
use api::core::{Node, Service};
use api::discovery::EndpointSlice;
use api::meta::ObjectMeta;
use api::networking::ServiceCidr;
use api::watch::Event;
use ipnetwork::IpNetwork;
use jiff::Timestamp;

use crate::metrics::Changed;
use crate::model::claims::Claims;
use crate::model::decide::decide;
use crate::model::endpoint::{self, Slice};
use crate::model::service::{self, ServicePort};
use crate::model::{
    Decision, NodeView, ObjectRef, Policy, PortName, Problem, ServiceName, Snapshot,
};

mod facts;
mod listed;

pub use facts::NodeFacts;
use listed::Listed;

/// Another proxy serves a service with this label.
pub const LABEL_OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

/// Slices of headless services have this label; they are for DNS only.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";

/// The annotation with the time of the change in the cluster that a slice is the answer to.
const ANNOTATION_TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// One event of any kind.
#[derive(Debug, Clone)]
pub enum Input {
    /// Of Services.
    Service(Event<Arc<Service>>),
    /// Of EndpointSlices.
    Slice(Event<Arc<EndpointSlice>>),
    /// Of the own Node.
    Node(Event<Arc<Node>>),
    /// Of ServiceCIDRs.
    ServiceCidr(Event<Arc<ServiceCidr>>),
}

impl Input {
    /// A change of a service or of its endpoints, as opposed to a part of a list.
    pub fn is_change(&self) -> bool {
        matches!(
            self,
            Self::Service(Event::Apply(_) | Event::Delete(_))
                | Self::Slice(Event::Apply(_) | Event::Delete(_))
        )
    }
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

/// Namespace and name.
type Key = (Arc<str>, Arc<str>);

/// A slice, and the service it belongs to.
#[derive(Debug, PartialEq, Eq)]
struct OwnedSlice {
    service: Arc<str>,
    slice: Slice,
}

/// Where a problem was found; a later look at the same place replaces it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// In a Service.
    Service(Key),
    /// In an EndpointSlice.
    Slice(Key),
    /// Between services: what another one has already, in one family.
    Claims(ServiceName, Family),
    /// In a ServiceCIDR.
    ServiceCidr(Key),
}

/// What was watched, and what follows from it.
#[derive(Debug)]
pub struct Store {
    node: NodeView,
    facts: NodeFacts,
    policies: BTreeMap<Family, Policy>,
    services: Listed<Key, Box<[ServicePort]>>,
    slices: Listed<Key, OwnedSlice>,
    service_cidrs: Listed<Key, Vec<IpNetwork>>,
    /// Names of slices by service, sorted.
    members: BTreeMap<ServiceName, Vec<Arc<str>>>,
    claims: Claims,
    dirty: BTreeSet<ServiceName>,
    problems: BTreeMap<Place, Vec<Problem>>,
    news: Vec<Problem>,
    /// When what changed since was caused, as far as slices tell.
    triggers: BTreeMap<Family, Vec<Timestamp>>,
    counts: BTreeMap<Family, Changed>,
    snapshot: Snapshot,
}

impl Store {
    /// Empty, for one node, with a policy for each family.
    pub fn new(node: NodeView, policies: BTreeMap<Family, Policy>) -> Self {
        Self {
            node,
            facts: NodeFacts::default(),
            policies,
            services: Listed::default(),
            slices: Listed::default(),
            service_cidrs: Listed::default(),
            members: BTreeMap::new(),
            claims: Claims::default(),
            dirty: BTreeSet::new(),
            problems: BTreeMap::new(),
            news: Vec::new(),
            triggers: BTreeMap::new(),
            counts: BTreeMap::new(),
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

    /// What the Node object says, as far as it has come.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// The networks of cluster IPs of both families, sorted.
    pub fn service_cidrs(&self) -> Vec<IpNetwork> {
        let mut all: Vec<IpNetwork> = self
            .service_cidrs
            .current
            .values()
            .flatten()
            .copied()
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Problems found since the last call, each once as long as it lasts.
    pub fn take_news(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.news)
    }

    /// When the changes of slices since the last call were caused, for each family.
    pub fn take_triggers(&mut self) -> BTreeMap<Family, Vec<Timestamp>> {
        std::mem::take(&mut self.triggers)
    }

    /// How many objects changed since the last call, for each family.
    pub fn take_counts(&mut self) -> BTreeMap<Family, Changed> {
        std::mem::take(&mut self.counts)
    }

    /// Whether a decision is to be made anew.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Takes one event in.
    pub fn apply(&mut self, input: Input) {
        match input {
            Input::Service(event) => self.apply_service(event),
            Input::Slice(event) => self.apply_slice(event),
            Input::Node(event) => self.apply_node(&event),
            Input::ServiceCidr(event) => self.apply_service_cidr(event),
        }
    }

    /// Uses another address of the node, or other DNS addresses.
    pub fn set_node(&mut self, node: NodeView) {
        if node != self.node {
            self.node = node;
            self.dirty_all();
        }
    }

    /// Uses another policy for a family.
    pub fn set_policy(&mut self, family: Family, policy: Policy) {
        let known = self.policies.entry(family).or_default();
        if *known != policy {
            *known = policy;
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
            self.note(Place::Service(key.clone()), parsed.problems);
            (key, Some(parsed.ports.into()))
        });
        for (key, before) in self.services.apply(event) {
            let before = before.unwrap_or_default();
            let after = self.services.current.get(&key);
            let ports = after.map_or(&[][..], AsRef::as_ref);
            self.dirty.extend(self.claims.replace(&before, ports));
            let both = before.first().into_iter().chain(ports.first());
            let families: BTreeSet<Family> = both
                .flat_map(|port| port.shared.cluster_ips.iter().map(|ip| Family::of(*ip)))
                .collect();
            for family in families {
                self.counts.entry(family).or_default().services += 1;
            }
            if after.is_none() {
                self.problems.remove(&Place::Service(key.clone()));
            }
            let (namespace, name) = key;
            self.dirty.insert(ServiceName { namespace, name });
        }
    }

    fn apply_slice(&mut self, event: Event<Arc<EndpointSlice>>) {
        let trigger = match &event {
            Event::Apply(slice) => slice
                .metadata
                .annotation(ANNOTATION_TRIGGER)
                .and_then(|text| text.parse::<Timestamp>().ok()),
            _ => None,
        };
        let event = event.map(|slice| {
            let key = key_of(&slice.metadata);
            let headless = slice.metadata.labels.contains_key(LABEL_HEADLESS);
            let Some(service) = slice.service_name().filter(|_| !headless) else {
                return (key, None);
            };
            let (parsed, problems) = endpoint::parse(&slice, &self.node.name);
            self.note(Place::Slice(key.clone()), problems);
            let owned = parsed.map(|slice| OwnedSlice {
                service: service.into(),
                slice,
            });
            (key, owned)
        });
        for ((namespace, name), before) in self.slices.apply(event) {
            let after = self.slices.current.get(&(namespace.clone(), name.clone()));
            if after.is_none() {
                let place = Place::Slice((namespace.clone(), name.clone()));
                self.problems.remove(&place);
            }
            if let Some(owned) = after.or(before.as_ref()) {
                let family = owned.slice.family;
                self.counts.entry(family).or_default().endpoints += 1;
                // The time of a slice that goes is that of its last change.
                let trigger = trigger.filter(|_| after.is_some());
                self.triggers.entry(family).or_default().extend(trigger);
            }
            if let Some(before) = before {
                let service = ServiceName {
                    namespace: namespace.clone(),
                    name: before.service,
                };
                if let Some(members) = self.members.get_mut(&service) {
                    members.retain(|member| *member != name);
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
                let members = self.members.entry(service.clone()).or_default();
                if let Err(place) = members.binary_search(&name) {
                    members.reserve_exact(1);
                    members.insert(place, name);
                }
                self.dirty.insert(service);
            }
        }
    }

    fn apply_node(&mut self, event: &Event<Arc<Node>>) {
        let Some(node) = event.object() else { return };
        if *node.metadata.name != *self.node.name {
            return;
        }
        let mut facts = NodeFacts::of(node);
        if matches!(event, Event::Delete(_)) {
            // All else stays as it was: traffic goes on until the machine is gone.
            facts = NodeFacts {
                goes: true,
                ..self.facts.clone()
            };
        }
        let view = NodeView {
            zone: facts.zone.clone(),
            ..self.node.clone()
        };
        self.facts = facts;
        self.set_node(view);
    }

    fn apply_service_cidr(&mut self, event: Event<Arc<ServiceCidr>>) {
        let event = event.map(|object| {
            let key = key_of(&object.metadata);
            let mut problems = Vec::new();
            let mut nets = Vec::new();
            for (i, text) in object.spec.cidrs.iter().enumerate() {
                match parse_cidr(text) {
                    Ok(net) => nets.push(net),
                    Err(e) => problems.push(Problem {
                        object: ObjectRef::new("ServiceCIDR", &object.metadata),
                        field: format!("spec.cidrs[{i}]"),
                        message: e.to_string(),
                    }),
                }
            }
            self.note(Place::ServiceCidr(key.clone()), problems);
            (key, Some(nets))
        });
        self.service_cidrs.apply(event);
    }

    /// Keeps the problems of a place, and announces new ones.
    fn note(&mut self, place: Place, problems: Vec<Problem>) {
        if problems.is_empty() {
            self.problems.remove(&place);
            return;
        }
        let known = self.problems.get(&place);
        let new = problems
            .iter()
            .filter(|problem| known.is_none_or(|known| !known.contains(problem)));
        self.news.extend(new.cloned());
        self.problems.insert(place, problems);
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
            .map_or(&[][..], AsRef::as_ref);
        let policy = self.policies.get(&family).copied().unwrap_or_default();
        let mut decided: BTreeMap<&PortName, Decision> = BTreeMap::new();
        let mut lost = Vec::new();
        for port in ports {
            let slices = self.slices_of(name);
            let (of, protocol) = (&port.name.port, port.name.protocol);
            let endpoints = endpoint::merge(slices, family, of, protocol);
            if let Some(mut decision) = decide(port, family, &endpoints, &self.node, policy) {
                lost.extend(self.claims.settle(port, &mut decision));
                decided.insert(&port.name, decision);
            }
        }
        let known = self.snapshot.of(family);
        let mut new = Vec::new();
        for (port, _) in known.range(PortName::first(name)..) {
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
        for (port, new) in new {
            let old = match &new {
                Some(new) => snapshot.insert(port.clone(), new.clone()),
                None => snapshot.remove(&port),
            };
            changes.push(
                family,
                PortChange {
                    name: port,
                    old,
                    new,
                },
            );
        }
        self.note(Place::Claims(name.clone(), family), lost);
    }

    /// Distinct addresses of ready endpoints of a service on this node, over all its ports.
    /// Terminating ones never count.
    pub fn local_ready(&self, service: &ServiceName, family: Family) -> usize {
        let slices = self.slices_of(service);
        let of_family = slices.filter(|slice| slice.family == family);
        let endpoints = of_family.flat_map(|slice| slice.endpoints.iter());
        let ready = endpoints.filter(|e| e.local && e.ready && !e.terminating);
        ready.map(|e| e.ip).collect::<BTreeSet<_>>().len()
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

#[cfg(test)]
mod tests;
