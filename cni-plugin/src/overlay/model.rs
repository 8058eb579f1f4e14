//! The types between the steps: what is set, what nodes say, what this node should have.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnetwork::IpNetwork;

pub use linux::Mac;
pub use linux::addr::Addr;
pub use linux::fdb::FdbEntry;
pub use linux::link::{Link, LinkChange, NewVxlan};
pub use linux::neigh::Neigh;
pub use linux::route::{PROTOCOL_SEAWAY, Route};

pub use api::cidr::Family;

/// Valid settings of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// This node's name in the API.
    pub node_name: String,
    /// The link that leads to the other nodes; none: found by node address or default route.
    pub iface: Option<String>,
    /// Where the CNI configuration is written.
    pub cni_conf_dir: PathBuf,
    /// Where the plugin keeps the leases of pod addresses.
    pub cni_state_dir: PathBuf,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Networks of all pods of the cluster. Traffic that leaves them is masqueraded.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// Whether to keep the iptables chains.
    pub masquerade: bool,
}

impl Settings {
    /// The VXLAN device that carries one family.
    pub fn device(&self, family: Family) -> String {
        match family {
            Family::V4 => format!("seaway.{}", self.vni),
            Family::V6 => format!("seaway-v6.{}", self.vni),
        }
    }

    /// Both devices.
    pub fn devices(&self) -> [String; 2] {
        Family::BOTH.map(|family| self.device(family))
    }
}

/// Another node, as far as it has told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// How its IPv4 pods are reached.
    pub v4: Option<Reach>,
    /// How its IPv6 pods are reached.
    pub v6: Option<Reach>,
}

impl Peer {
    /// How its pods of one family are reached.
    pub fn reach(&self, family: Family) -> Option<&Reach> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

/// How pods of one family of another node are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The network of its pods.
    pub subnet: IpNetwork,
    /// The hardware address of its VXLAN device.
    pub mac: Mac,
    /// Its address on the underlay.
    pub public: IpAddr,
}

/// What the API knows of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Networks of its pods, at most one of each family.
    pub subnets: Vec<IpNetwork>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Those of its annotations that concern the overlay.
    pub annotations: BTreeMap<String, String>,
}

/// The link that leads to the other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Its name.
    pub dev: String,
    /// Its index.
    pub index: u32,
    /// Its largest packet in bytes.
    pub mtu: u32,
    /// This node's IPv4 address on it.
    pub v4: Option<Ipv4Addr>,
    /// This node's IPv6 address on it.
    pub v6: Option<Ipv6Addr>,
}

impl Underlay {
    /// This node's address of one family.
    pub fn ip(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }
}

/// What this node should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// VXLAN devices by name.
    pub devices: BTreeMap<String, Device>,
    /// Kernel settings, in order.
    pub sysctls: Vec<Sysctl>,
}

/// A kernel setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Its name, with slashes.
    pub key: String,
    /// The value it should have.
    pub value: &'static str,
    /// Only if it has this value; else it stays as it is.
    pub only_from: Option<&'static str>,
}

/// One VXLAN device with all that is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device itself. Hardware address and largest packet are always set.
    pub vxlan: NewVxlan,
    /// Index of the underlay link.
    pub underlay: u32,
    /// The address of this end.
    pub addr: IpNetwork,
    /// The far ends' inner addresses and hardware addresses.
    pub neighs: BTreeMap<IpAddr, Mac>,
    /// Behind which outer address each hardware address is.
    pub fdb: BTreeMap<Mac, IpAddr>,
    /// Which inner address each network is behind.
    pub routes: BTreeMap<IpNetwork, IpAddr>,
}

impl Device {
    /// The route to `subnet` through the far end at `gateway`.
    pub fn route(&self, subnet: IpNetwork, gateway: IpAddr) -> Route {
        Route::to(subnet)
            .via(gateway)
            .dev(&self.vxlan.name)
            .onlink()
    }
}

/// Everything that follows from the nodes and the underlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// For the kernel.
    pub desired: Desired,
    /// What this node tells the others; `None` takes an annotation away.
    pub annotations: BTreeMap<String, Option<String>>,
    /// For the CNI plugin; none when no pod could be reached.
    pub conflist: Option<Conflist>,
    /// What could not be honoured, for the log.
    pub problems: Vec<String>,
}

/// What the CNI configuration says of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflist {
    /// Largest packet of pods in bytes.
    pub mtu: u32,
    /// Networks of the pods.
    pub subnets: Vec<IpNetwork>,
}
