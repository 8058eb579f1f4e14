//! What the scheduler knows of nodes and the pods on them, kept up to date pod by pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Namespace, Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;

use crate::meta;
use crate::view::Key;

/// Amounts by resource name: `cpu` in millicores, all others in whole units.
pub(crate) type Amounts = BTreeMap<String, i64>;

/// Requests of pods without any, as scoring sees them (upstream: 100m, 200 MB): else a hundred of them weigh nothing.
pub(super) const DEFAULT_CPU_MILLI: i64 = 100;
pub(super) const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(super) address: String,
    pub(super) protocol: String,
    pub(super) port: i32,
}

impl HostPort {
    /// Two pods cannot have both on one node.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        let any = |address: &str| matches!(address, "" | "0.0.0.0" | "::");
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.address) || any(&other.address) || self.address == other.address)
    }
}

/// What a pod takes from its node.
#[derive(Clone, Debug)]
pub(crate) struct PodInfo {
    pub(super) pod: Arc<Pod>,
    pub(super) requests: Amounts,
    pub(super) ports: Vec<HostPort>,
}

impl PodInfo {
    pub(crate) fn new(pod: &Arc<Pod>) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            requests: spec.map(requests).unwrap_or_default(),
            ports: spec.map(host_ports).unwrap_or_default(),
            pod: Arc::clone(pod),
        }
    }

    pub(super) fn weight(&self, resource: &str) -> i64 {
        let default = match resource {
            "cpu" => DEFAULT_CPU_MILLI,
            "memory" => DEFAULT_MEMORY,
            _ => 0,
        };
        self.requests
            .get(resource)
            .copied()
            .filter(|amount| *amount > 0)
            .unwrap_or(default)
    }
}

/// A node with what is on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeInfo {
    /// `None` while pods name a node that is not there.
    pub(super) node: Option<Arc<Node>>,
    pub(super) allocatable: Amounts,
    pub(super) requested: Amounts,
    /// What scoring counts: pods without requests weigh something too.
    pub(super) weighed: Amounts,
    pub(super) pods: BTreeMap<Key, PodInfo>,
}

impl NodeInfo {
    pub(super) fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.node
            .as_ref()
            .and_then(|node| node.metadata.labels.as_ref())
            .unwrap_or(&NONE)
    }

    fn count(&mut self, info: &PodInfo, sign: i64) {
        for (resource, amount) in &info.requests {
            *self.requested.entry(resource.clone()).or_insert(0) += sign * amount;
        }
        for resource in ["cpu", "memory"] {
            *self.weighed.entry(resource.to_owned()).or_insert(0) += sign * info.weight(resource);
        }
    }
}

/// All nodes, and where each pod is.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    infos: BTreeMap<String, NodeInfo>,
    places: BTreeMap<Key, String>,
    /// Pods on nodes that repel others by required anti-affinity.
    repelling: BTreeSet<Key>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl State {
    /// The nodes that exist, by name.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&String, &NodeInfo)> {
        self.infos.iter().filter(|(_, info)| info.node.is_some())
    }

    pub(super) fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.infos.get(name).filter(|info| info.node.is_some())
    }

    /// Pods that repel others, with the node each is on.
    pub(super) fn repelling(&self) -> impl Iterator<Item = (&NodeInfo, &PodInfo)> {
        self.repelling.iter().filter_map(|key| {
            let info = self.node(self.places.get(key)?)?;
            Some((info, info.pods.get(key)?))
        })
    }

    pub(super) fn namespace_labels(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(name)
    }

    pub(crate) fn set_namespace(&mut self, namespace: &Namespace, present: bool) {
        let name = meta::name(&namespace.metadata);
        if present {
            let labels = namespace.metadata.labels.clone().unwrap_or_default();
            self.namespaces.insert(name.to_owned(), labels);
        } else {
            self.namespaces.remove(name);
        }
    }

    pub(crate) fn set_node(&mut self, name: &str, node: Option<Arc<Node>>) {
        let info = self.infos.entry(name.to_owned()).or_default();
        info.allocatable = node
            .as_ref()
            .and_then(|node| {
                let status = node.status.as_ref()?;
                status.allocatable.as_ref().or(status.capacity.as_ref())
            })
            .map(amounts)
            .unwrap_or_default();
        info.node = node;
        self.drop_if_empty(name);
    }

    /// Puts a pod on a node, or takes it off when `place` is `None`.
    pub(crate) fn set_pod(&mut self, key: &Key, place: Option<(&str, PodInfo)>) {
        if let Some(name) = self.places.remove(key) {
            if let Some(info) = self.infos.get_mut(&name)
                && let Some(old) = info.pods.remove(key)
            {
                info.count(&old, -1);
            }
            self.repelling.remove(key);
            self.drop_if_empty(&name);
        }
        if let Some((name, pod)) = place {
            if affinity::has_required_anti(&pod.pod) {
                self.repelling.insert(key.clone());
            }
            let info = self.infos.entry(name.to_owned()).or_default();
            info.count(&pod, 1);
            info.pods.insert(key.clone(), pod);
            self.places.insert(key.clone(), name.to_owned());
        }
    }

    fn drop_if_empty(&mut self, name: &str) {
        if self
            .infos
            .get(name)
            .is_some_and(|info| info.node.is_none() && info.pods.is_empty())
        {
            self.infos.remove(name);
        }
    }
}

use super::affinity;

fn amount(resource: &str, quantity: &WireQuantity) -> i64 {
    let Ok(quantity) = quantity.0.parse::<Quantity>() else {
        return 0;
    };
    if resource == "cpu" {
        quantity.milli_value()
    } else {
        quantity.value()
    }
}

fn amounts(quantities: &BTreeMap<String, WireQuantity>) -> Amounts {
    quantities
        .iter()
        .map(|(resource, quantity)| (resource.clone(), amount(resource, quantity)))
        .collect()
}

fn container_requests(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    resources
        .and_then(|resources| resources.requests.as_ref())
        .map(amounts)
        .unwrap_or_default()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (resource, amount) in more {
        *to.entry(resource.clone()).or_insert(0) += amount;
    }
}

fn at_least(to: &mut Amounts, least: &Amounts) {
    for (resource, amount) in least {
        let known = to.entry(resource.clone()).or_insert(0);
        *known = (*known).max(*amount);
    }
}

/// What a pod requests: its containers and sidecars together, or what an init container needs while it runs beside
/// the sidecars started before it, whichever is more; and the overhead of its runtime.
pub(crate) fn requests(spec: &PodSpec) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &container_requests(container));
    }
    let (mut sidecars, mut init_peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = container_requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &own);
            at_least(&mut init_peak, &sidecars);
        } else {
            let mut peak = sidecars.clone();
            add(&mut peak, &own);
            at_least(&mut init_peak, &peak);
        }
    }
    add(&mut total, &sidecars);
    at_least(&mut total, &init_peak);
    if let Some(pod_level) = spec.resources.as_ref().and_then(|it| it.requests.as_ref()) {
        total.extend(amounts(pod_level));
    }
    if let Some(overhead) = &spec.overhead {
        add(&mut total, &amounts(overhead));
    }
    total
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    meta::ports(spec)
        .filter_map(|port| {
            Some(HostPort {
                address: port.host_ip.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: port.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}
