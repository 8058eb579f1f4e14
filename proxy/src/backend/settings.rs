//! What a backend must know of one family beside the decisions.

use std::net::IpAddr;

use api::cidr::Family;
use ipnetwork::IpNetwork;

/// How packets of local pods are told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectLocal {
    /// By their source address.
    Net(IpNetwork),
    /// By the interface they come from.
    Interface(String),
    /// By the first letters of the interface they come from.
    InterfacePrefix(String),
}

/// On which of the node's addresses node ports are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortScope {
    /// All that are local.
    All,
    /// These.
    Only(Vec<IpAddr>),
}

/// Settings of the rules of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Family.
    pub family: Family,
    /// The bit that marks packets for masquerading.
    pub mark: u32,
    /// How packets of local pods are told from others.
    pub detect_local: Option<DetectLocal>,
    /// Where node ports are served.
    pub node_ports: NodePortScope,
    /// Node ports are served on loopback, too (IPv4 only).
    pub localhost_node_ports: bool,
    /// MASQUERADE takes `--random-fully`.
    pub random_fully: bool,
    /// Packets that conntrack calls invalid are not forwarded.
    pub drop_invalid: bool,
    /// Addresses of cluster DNS on loopback: node ports are not served on them.
    pub dns_ips: Vec<IpAddr>,
    /// Networks of cluster IPs, sorted; empty where they are not known.
    pub service_cidrs: Vec<IpNetwork>,
}

impl Settings {
    /// Whether node ports are served on loopback.
    pub fn serves_localhost(&self) -> bool {
        self.localhost_node_ports
            && self.family == Family::V4
            && match &self.node_ports {
                NodePortScope::All => true,
                NodePortScope::Only(ips) => ips.iter().any(IpAddr::is_loopback),
            }
    }
}
