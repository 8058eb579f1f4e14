//! Reading Node objects: what other nodes tell of themselves in flannel's annotations. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::cidr::{Family, parse_cidr, parse_ip};
use api::core::Node;
use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::backend::Backend;
use super::model::{Mac, Own, Peer, Reach, Way};

/// Every annotation of the overlay starts with this. The names and values are flannel's
/// (`pkg/subnet/kube/annotations.go`).
pub const PREFIX: &str = "flannel.alpha.coreos.com/";
/// `vxlan`, `host-gw` or `wireguard`.
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
/// JSON with what the backend has to know of the far end, for IPv4 pods.
pub const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
/// The same for IPv6 pods.
pub const BACKEND_V6_DATA: &str = "flannel.alpha.coreos.com/backend-v6-data";
/// The node's IPv4 address on the underlay.
pub const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
/// The node's IPv6 address on the underlay.
pub const PUBLIC_IPV6: &str = "flannel.alpha.coreos.com/public-ipv6";
/// Set by the administrator: publish this IPv4 address, although the node does not have it (NAT).
pub const PUBLIC_IP_OVERWRITE: &str = "flannel.alpha.coreos.com/public-ip-overwrite";
/// Set by the administrator: publish this IPv6 address, although the node does not have it.
pub const PUBLIC_IPV6_OVERWRITE: &str = "flannel.alpha.coreos.com/public-ipv6-overwrite";
/// Set by the administrator: use this IPv4 address and the link that has it.
pub const NODE_PUBLIC_IP: &str = "flannel.alpha.coreos.com/node-public-ip";
/// Set by the administrator: use this IPv6 address and the link that has it.
pub const NODE_PUBLIC_IPV6: &str = "flannel.alpha.coreos.com/node-public-ipv6";
/// `true` on nodes that take part.
pub const SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";

/// Backend data of VXLAN.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct VxlanData {
    /// VXLAN network identifier; old versions of flannel do not tell it.
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    /// The device's hardware address.
    #[serde(rename = "VtepMAC")]
    vtep_mac: String,
}

/// Backend data of WireGuard.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct WireGuardData {
    /// The device's public key.
    #[serde(rename = "PublicKey")]
    public_key: String,
}

/// The annotations of one family.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// Backend data.
    pub data: &'static str,
    /// Public address.
    pub public: &'static str,
    /// Its override.
    pub overwrite: &'static str,
    /// The address to use, and the link with it.
    pub chosen: &'static str,
}

/// The annotations of one family.
pub fn annotations_of(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            data: BACKEND_DATA,
            public: PUBLIC_IP,
            overwrite: PUBLIC_IP_OVERWRITE,
            chosen: NODE_PUBLIC_IP,
        },
        Family::V6 => Names {
            data: BACKEND_V6_DATA,
            public: PUBLIC_IPV6,
            overwrite: PUBLIC_IPV6_OVERWRITE,
            chosen: NODE_PUBLIC_IPV6,
        },
    }
}

/// The backend data by which others find this end.
pub fn data_of(way: &Way, vni: u32) -> String {
    match way {
        Way::Vxlan(mac) => format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#),
        Way::HostGw => "null".to_owned(),
        Way::WireGuard(key) => format!(r#"{{"PublicKey":"{key}"}}"#),
    }
}

/// How the pods of `node` are reached, as far as it has told. What is wrong with it goes to
/// `problems`.
pub fn peer(node: &Node, backend: &Backend, problems: &mut Vec<String>) -> Peer {
    let annotations = &node.metadata.annotations;
    let name = &node.metadata.name;
    if annotations.get(SUBNET_MANAGER).map(String::as_str) != Some("true") {
        return Peer::default();
    }
    match annotations.get(BACKEND_TYPE) {
        None => return Peer::default(),
        Some(kind) if kind == backend.name() => {}
        Some(other) => {
            let ours = backend.name();
            let why = format!("node {name}: {BACKEND_TYPE} is {other:?}, this node's is {ours:?}");
            problems.push(why);
            return Peer::default();
        }
    }
    let mut reach = |family| match reach(node, family, backend) {
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

fn reach(node: &Node, family: Family, backend: &Backend) -> Result<Option<Reach>, String> {
    let annotations = &node.metadata.annotations;
    let names = annotations_of(family);
    // WireGuard may carry pods of one family over the other, which is all that a node may have.
    let other = match (backend, family) {
        (Backend::WireGuard(_), Family::V4) => Some((PUBLIC_IPV6, Family::V6)),
        (Backend::WireGuard(_), Family::V6) => Some((PUBLIC_IP, Family::V4)),
        _ => None,
    };
    let public = [Some((names.public, family)), other]
        .into_iter()
        .flatten()
        .find_map(|(name, family)| Some((name, family, annotations.get(name)?)));
    let (Some(data), Some((public_name, public_family, public))) =
        (annotations.get(names.data), public)
    else {
        return Ok(None);
    };
    let Some(way) = way(names.data, data, backend)? else {
        return Ok(None);
    };
    let public = public_ip(public, public_family)
        .ok_or_else(|| format!("{public_name}: {public:?} is not an {public_family} address"))?;
    let subnet = subnets(node)?
        .into_iter()
        .find(|net| Family::of_net(net) == family);
    Ok(subnet.map(|subnet| Reach {
        subnet,
        public,
        way,
    }))
}

/// Reads backend data; `null` means that this family is not served.
fn way(name: &str, data: &str, backend: &Backend) -> Result<Option<Way>, String> {
    let broken = |e: serde_json::Error| format!("{name} {data:?}: {e}");
    match backend {
        Backend::HostGw(_) => Ok(Some(Way::HostGw)),
        _ if data == "null" => Ok(None),
        Backend::Vxlan(ours) => {
            let data: VxlanData = serde_json::from_str(data).map_err(broken)?;
            if let Some(vni) = data.vni.filter(|vni| *vni != ours.vni) {
                return Err(format!("{name}: VNI is {vni}, ours is {}", ours.vni));
            }
            let mac: Mac = data
                .vtep_mac
                .parse()
                .map_err(|e| format!("{name}: VtepMAC: {e}"))?;
            if mac.is_multicast() || mac == Mac::default() {
                return Err(format!("{name}: VtepMAC: {mac} is not one device's"));
            }
            Ok(Some(Way::Vxlan(mac)))
        }
        Backend::WireGuard(_) => {
            let data: WireGuardData = serde_json::from_str(data).map_err(broken)?;
            let key = data.public_key.parse();
            let key = key.map_err(|e| format!("{name}: PublicKey: {e}"))?;
            Ok(Some(Way::WireGuard(key)))
        }
    }
}

/// An address of this family that a packet can be sent to.
pub fn public_ip(text: &str, family: Family) -> Option<IpAddr> {
    let usable = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
    parse_ip(text).filter(|ip| Family::of(*ip) == family && usable(ip))
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
