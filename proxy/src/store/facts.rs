//! What the Node object says about the node.

use std::net::IpAddr;
use std::sync::Arc;

use api::cidr::{Family, parse_cidr, parse_ip};
use api::core::Node;
use ipnetwork::IpNetwork;

/// The label that names a node's zone.
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

/// The taint by which the cluster autoscaler says that it will take the node away.
const TAINT_AUTOSCALER: &str = "ToBeDeletedByClusterAutoscaler";

/// What matters of the Node object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Zone.
    pub zone: Option<Arc<str>>,
    /// The first internal (or else external) address of each family.
    pub ips: Vec<IpAddr>,
    /// Networks of the node's pods.
    pub pod_networks: Vec<IpNetwork>,
    /// It is being taken away.
    pub goes: bool,
}

impl NodeFacts {
    /// Reads a Node.
    pub fn of(node: &Node) -> Self {
        let zone = node
            .metadata
            .label(LABEL_ZONE)
            .filter(|zone| !zone.is_empty());
        let networks = node.spec.pod_networks().into_iter();
        Self {
            zone: zone.map(Into::into),
            ips: primary_ips(node),
            pod_networks: networks.filter_map(|text| parse_cidr(text).ok()).collect(),
            goes: node.metadata.deletion_timestamp.is_some()
                || node.spec.taints.iter().any(|t| t.key == TAINT_AUTOSCALER),
        }
    }
}

fn primary_ips(node: &Node) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for type_ in ["InternalIP", "ExternalIP"] {
        for ip in node.status.addresses_of(type_).filter_map(parse_ip) {
            if !ips.iter().any(|known| Family::of(*known) == Family::of(ip)) {
                ips.push(ip);
            }
        }
    }
    ips.sort_unstable();
    ips
}
