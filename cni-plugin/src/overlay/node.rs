//! Reading Node objects: what other nodes tell of themselves in flannel's annotations. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::cidr::{Family, parse_cidr, parse_ip};
use api::core::Node;
use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::model::{Mac, Own, Peer, Reach};

/// Every annotation of the overlay starts with this. The names and values are flannel's
/// (`pkg/subnet/kube/annotations.go`).
pub const PREFIX: &str = "flannel.alpha.coreos.com/";
/// `vxlan`.
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
/// JSON with VNI and hardware address of the IPv4 device.
pub const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
/// JSON with VNI and hardware address of the IPv6 device.
pub const BACKEND_V6_DATA: &str = "flannel.alpha.coreos.com/backend-v6-data";
/// The node's IPv4 address on the underlay.
pub const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
/// The node's IPv6 address on the underlay.
pub const PUBLIC_IPV6: &str = "flannel.alpha.coreos.com/public-ipv6";
/// Set by the administrator: publish this IPv4 address.
pub const PUBLIC_IP_OVERWRITE: &str = "flannel.alpha.coreos.com/public-ip-overwrite";
/// Set by the administrator: publish this IPv6 address.
pub const PUBLIC_IPV6_OVERWRITE: &str = "flannel.alpha.coreos.com/public-ipv6-overwrite";
/// `true`.
pub const SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";

/// The value of [`BACKEND_TYPE`].
pub const VXLAN: &str = "vxlan";

/// The value of [`BACKEND_DATA`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BackendData {
    /// VXLAN network identifier.
    #[serde(rename = "VNI")]
    pub vni: u32,
    /// The device's hardware address.
    #[serde(rename = "VtepMAC")]
    pub vtep_mac: String,
}

/// The annotations of one family: backend data, public address, its override.
pub fn annotations_of(family: Family) -> (&'static str, &'static str, &'static str) {
    match family {
        Family::V4 => (BACKEND_DATA, PUBLIC_IP, PUBLIC_IP_OVERWRITE),
        Family::V6 => (BACKEND_V6_DATA, PUBLIC_IPV6, PUBLIC_IPV6_OVERWRITE),
    }
}

/// How the pods of `node` are reached, as far as it has told. What is wrong with it goes to
/// `problems`.
pub fn peer(node: &Node, vni: u32, problems: &mut Vec<String>) -> Peer {
    let annotations = &node.metadata.annotations;
    let name = &node.metadata.name;
    match annotations.get(BACKEND_TYPE).map(String::as_str) {
        None => return Peer::default(),
        Some(VXLAN) => {}
        Some(other) => {
            let why = format!("node {name}: {BACKEND_TYPE} is {other:?}, only {VXLAN:?} is done");
            problems.push(why);
            return Peer::default();
        }
    }
    let mut reach = |family| match reach(node, family, vni) {
        Ok(reach) => reach,
        Err(why) => {
            problems.push(format!("node {name}: {why}"));
            None
        }
    };
    Peer {
        v4: reach(Family::V4),
        v6: reach(Family::V6),
    }
}

fn reach(node: &Node, family: Family, vni: u32) -> Result<Option<Reach>, String> {
    let annotations = &node.metadata.annotations;
    let (data_name, public_name, _) = annotations_of(family);
    let (Some(data), Some(public)) = (annotations.get(data_name), annotations.get(public_name))
    else {
        return Ok(None);
    };
    let data: BackendData =
        serde_json::from_str(data).map_err(|e| format!("{data_name} {data:?}: {e}"))?;
    if data.vni != vni {
        return Err(format!("{data_name}: VNI is {}, ours is {vni}", data.vni));
    }
    let mac: Mac = data
        .vtep_mac
        .parse()
        .map_err(|e| format!("{data_name}: VtepMAC: {e}"))?;
    if mac.is_multicast() || mac == Mac::default() {
        return Err(format!("{data_name}: VtepMAC: {mac} is not one device's"));
    }
    let ip = parse_ip(public).filter(|ip| Family::of(*ip) == family && usable(*ip));
    let public =
        ip.ok_or_else(|| format!("{public_name}: {public:?} is not an {family} address"))?;
    let subnet = subnets(node)?
        .into_iter()
        .find(|net| Family::of_net(net) == family);
    Ok(subnet.map(|subnet| Reach {
        subnet,
        mac,
        public,
    }))
}

/// An address that a packet can be sent to.
fn usable(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback()
}

/// What the API knows of this node.
///
/// # Errors
/// A pod network that is none.
pub fn own(node: &Node) -> Result<Own, String> {
    let annotations: BTreeMap<String, String> = node
        .metadata
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(PREFIX))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let ips = node.status.addresses_of("InternalIP");
    Ok(Own {
        subnets: subnets(node)?,
        ips: ips.filter_map(parse_ip).collect(),
        annotations,
    })
}

/// The pod networks of a node, the first of each family, IPv4 first.
fn subnets(node: &Node) -> Result<Vec<IpNetwork>, String> {
    let mut all = Vec::new();
    for text in node.spec.pod_networks() {
        let net = parse_cidr(text).map_err(|e| format!("spec.podCIDRs: {e}"))?;
        let family = Family::of_net(&net);
        if net.prefix() == 0 || net.prefix() >= family.bits() {
            return Err(format!("spec.podCIDRs: {net} is not a network for pods"));
        }
        if !all.iter().any(|other| Family::of_net(other) == family) {
            all.push(net);
        }
    }
    all.sort();
    Ok(all)
}
