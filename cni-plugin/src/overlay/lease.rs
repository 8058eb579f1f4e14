//! Leases of node networks in etcd, as flannel lays them out (`pkg/subnet/etcd`): keys such as
//! `subnets/10.244.1.0-24` or `subnets/10.244.1.0-24&fd00:10:244:1::-64`, values such as
//! `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{...}}`. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use api::cidr::Family;
use api::core::Node;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::netconf::{Cut, NetConf};
use super::node;

/// How many free networks are looked at before one is drawn, so that nodes that start together do
/// not all want the same.
const DRAW_MAX: usize = 100;

/// The networks of one node, which are also its lease's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseKey {
    /// For IPv4 pods; flannel has no lease without.
    pub v4: IpNetwork,
    /// For IPv6 pods.
    pub v6: Option<IpNetwork>,
}

/// A text that names no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no networks (such as 10.244.1.0-24)")]
pub struct BadKey(String);

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.network(), self.v4.prefix())?;
        match self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.network(), v6.prefix()),
            None => Ok(()),
        }
    }
}

impl FromStr for LeaseKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let net = |part: &str, family: Family| {
            let (ip, length) = part.split_once('-')?;
            let net = IpNetwork::new(ip.parse().ok()?, length.parse().ok()?).ok()?;
            let fits = Family::of_net(&net) == family && net.prefix() > 0;
            fits.then_some(net).filter(|net| net.ip() == net.network())
        };
        let read = || match text.split_once('&') {
            Some((v4, v6)) => Some(Self {
                v4: net(v4, Family::V4)?,
                v6: Some(net(v6, Family::V6)?),
            }),
            None => Some(Self {
                v4: net(text, Family::V4)?,
                v6: None,
            }),
        };
        read().ok_or_else(|| BadKey(text.to_owned()))
    }
}

/// What a node tells in its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attrs {
    /// Its IPv4 address on the underlay, which also tells its lease from others.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// Its IPv6 address on the underlay.
    #[serde(rename = "PublicIPv6", default)]
    pub public_ipv6: Option<Ipv6Addr>,
    /// How it is reached.
    #[serde(
        rename = "BackendType",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub backend_type: String,
    /// What the backend has to know of it, for IPv4 pods.
    #[serde(
        rename = "BackendData",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub backend_data: Option<Value>,
    /// The same for IPv6 pods.
    #[serde(
        rename = "BackendV6Data",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub backend_v6_data: Option<Value>,
}

impl Attrs {
    /// The same as annotations of a Node.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut put = |key: &str, value: String| drop(all.insert(key.to_owned(), value));
        if !self.backend_type.is_empty() {
            put(node::SUBNET_MANAGER, "true".to_owned());
            put(node::BACKEND_TYPE, self.backend_type.clone());
        }
        // Host-gw has nothing to tell, which flannel leaves out here and writes as `null` there.
        let host_gw = self.backend_type == "host-gw";
        let text = |data: &Option<Value>| match data {
            Some(data) => Some(data.to_string()),
            None => host_gw.then(|| "null".to_owned()),
        };
        put(node::PUBLIC_IP, self.public_ip.to_string());
        if let Some(data) = text(&self.backend_data) {
            put(node::BACKEND_DATA, data);
        }
        if let Some(ip) = self.public_ipv6 {
            put(node::PUBLIC_IPV6, ip.to_string());
            if let Some(data) = text(&self.backend_v6_data) {
                put(node::BACKEND_V6_DATA, data);
            }
        }
        all
    }

    /// With changed annotations; `None` takes one away. What cannot be told in a lease stays as it is.
    #[must_use]
    pub fn changed(&self, changes: &BTreeMap<String, Option<String>>) -> Self {
        let mut new = self.clone();
        for (key, value) in changes {
            let value = value.as_deref();
            let data = || {
                let data: Option<Value> = value.and_then(|text| serde_json::from_str(text).ok());
                data.filter(|data| !data.is_null())
            };
            match key.as_str() {
                node::BACKEND_TYPE => new.backend_type = value.unwrap_or_default().to_owned(),
                node::BACKEND_DATA => new.backend_data = data(),
                node::BACKEND_V6_DATA => new.backend_v6_data = data(),
                node::PUBLIC_IP => {
                    let ip = value.and_then(|text| text.parse().ok());
                    new.public_ip = ip.unwrap_or(new.public_ip);
                }
                node::PUBLIC_IPV6 => {
                    new.public_ipv6 = value.and_then(|text| text.parse().ok());
                }
                _ => {}
            }
        }
        new
    }
}

/// A lease in the words of a Node, which is what the rest of the daemon understands.
///
/// # Errors
/// None that can be thought of; the words of the reader of Nodes.
pub fn node(name: &str, key: &LeaseKey, attrs: Option<&Attrs>) -> serde_json::Result<Node> {
    let networks: Vec<String> = std::iter::once(key.v4)
        .chain(key.v6)
        .map(|net| net.to_string())
        .collect();
    let annotations = attrs.map(Attrs::annotations).unwrap_or_default();
    serde_json::from_value(json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"podCIDRs": networks},
    }))
}

/// Which lease a node should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its networks.
    pub key: LeaseKey,
    /// A lease of its own that the configuration does not allow any more.
    pub outdated: Option<LeaseKey>,
}

/// Chooses a lease for the node with this address: the one it has, else the one it had, else any
/// that is free.
///
/// # Errors
/// There is no free network, or none for IPv4 at all.
pub fn choose(
    conf: &NetConf,
    leases: &[(LeaseKey, Attrs)],
    public_ip: Ipv4Addr,
    previous: Option<LeaseKey>,
    seed: u64,
) -> Result<Choice, String> {
    let of = |family| {
        let mut cuts = conf.cuts.iter();
        cuts.find(|cut| Family::of_net(&cut.whole) == family)
    };
    let v4 = of(Family::V4).ok_or("leases in etcd need IPv4 (EnableIPv4)")?;
    let v6 = of(Family::V6);
    let allowed = |key: &LeaseKey| {
        let v6_fits = match (v6, &key.v6) {
            (Some(cut), Some(net)) => cut.has(net),
            (None, None) => true,
            _ => false,
        };
        v4.has(&key.v4) && v6_fits
    };
    let own = leases
        .iter()
        .find(|(_, attrs)| attrs.public_ip == public_ip);
    let mut outdated = None;
    if let Some((key, _)) = own {
        if allowed(key) {
            let (key, outdated) = (*key, None);
            return Ok(Choice { key, outdated });
        }
        outdated = Some(*key);
    }
    let others: Vec<&LeaseKey> = leases.iter().map(|(key, _)| key).collect();
    let is_free = |net: &IpNetwork| {
        !others.iter().any(|key| {
            let mut nets = std::iter::once(key.v4).chain(key.v6);
            nets.any(|taken| overlaps(&taken, net))
        })
    };
    let had = previous.filter(|key| {
        let mut nets = std::iter::once(key.v4).chain(key.v6);
        allowed(key) && nets.all(|net| is_free(&net))
    });
    if let Some(key) = had {
        return Ok(Choice { key, outdated });
    }
    let draw = |cut: &Cut| -> Result<IpNetwork, String> {
        let free: Vec<IpNetwork> = cut.networks().filter(is_free).take(DRAW_MAX).collect();
        let count = u64::try_from(free.len()).unwrap_or(u64::MAX);
        let at = seed
            .checked_rem(count)
            .and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| free.get(at).copied())
            .ok_or_else(|| format!("no network of {} is free", cut.whole))
    };
    let key = LeaseKey {
        v4: draw(v4)?,
        v6: v6.map(draw).transpose()?,
    };
    Ok(Choice { key, outdated })
}

fn overlaps(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a.contains(b.network()) || b.contains(a.network()))
}

/// The networks that a node had, by the `subnet.env` of its last run.
pub fn previous(subnet_env: &str) -> Option<LeaseKey> {
    let net = |name: &str| -> Option<IpNetwork> {
        let mut lines = subnet_env.lines().filter_map(|line| line.split_once('='));
        let (_, value) = lines.find(|(key, _)| *key == name)?;
        let net: IpNetwork = value.trim().parse().ok()?;
        IpNetwork::new(net.network(), net.prefix()).ok()
    };
    Some(LeaseKey {
        v4: net("FLANNEL_SUBNET").filter(IpNetwork::is_ipv4)?,
        v6: net("FLANNEL_IPV6_SUBNET").filter(IpNetwork::is_ipv6),
    })
}

/// The addresses of a node that has not told anything yet.
pub fn first(public: impl Fn(Family) -> Option<IpAddr>, v6: bool) -> Option<Attrs> {
    let Some(IpAddr::V4(public_ip)) = public(Family::V4) else {
        return None;
    };
    let public_ipv6 = match public(Family::V6) {
        Some(IpAddr::V6(ip)) if v6 => Some(ip),
        _ => None,
    };
    Some(Attrs {
        public_ip,
        public_ipv6,
        backend_type: String::new(),
        backend_data: None,
        backend_v6_data: None,
    })
}

#[cfg(test)]
mod tests;
