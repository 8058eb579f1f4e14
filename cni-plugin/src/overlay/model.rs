//! The types between the steps: what is set, what nodes say, what this node should have.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnetwork::IpNetwork;

pub use linux::Mac;
pub use linux::addr::Addr;
pub use linux::fdb::FdbEntry;
pub use linux::link::{Link, LinkChange, NewVxlan};
pub use linux::neigh::Neigh;
pub use linux::route::{PROTOCOL_SEAWAY, Route};
pub use linux::wireguard::{Config as WgConfig, Key as WgKey, Peer as WgPeer};

pub use api::cidr::Family;

use super::backend::Backend;
use super::firewall::Masquerader;
use super::path::Pace;

/// Valid settings of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// This node's name in the API.
    pub node_name: String,
    /// Which link leads to the other nodes.
    pub iface: IfaceChoice,
    /// Addresses to tell the other nodes in place of the underlay's own.
    pub public: Vec<IpAddr>,
    /// Where the CNI configuration is written.
    pub cni_conf_dir: PathBuf,
    /// Where the plugin keeps the leases of pod addresses.
    pub cni_state_dir: PathBuf,
    /// Where flannel's `subnet.env` is written; none: it is not.
    pub subnet_file: Option<PathBuf>,
    /// How packets get from node to node.
    pub backend: Backend,
    /// Networks of all pods of the cluster. Traffic that leaves them is masqueraded.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// Whether to masquerade.
    pub masquerade: bool,
    /// Who does it.
    pub masquerader: Masquerader,
    /// How the paths to other nodes are probed; none: they are not.
    pub pace: Option<Pace>,
    /// The release of the running kernel, e.g. `6.1.0-13-amd64`.
    pub kernel: String,
}

impl Settings {
    /// The devices that this daemon may make, whether they are wanted or not.
    pub fn devices(&self) -> Vec<String> {
        self.backend.devices()
    }

    /// The underlay's largest packet in bytes: as it was set, else what its link says.
    pub fn outer_mtu(&self, underlay: &Underlay) -> u32 {
        self.backend.mtu().unwrap_or(underlay.mtu)
    }
}

/// Which link leads to the other nodes. The first that leads to a link decides; without any, it is
/// the link with one of the node's addresses, else the default route's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IfaceChoice {
    /// Names or addresses of links.
    pub names: Vec<String>,
    /// Patterns for names or addresses of links.
    pub patterns: Vec<Pattern>,
    /// The link by which this address is reached.
    pub can_reach: Option<IpAddr>,
}

impl IfaceChoice {
    /// Whether nothing was chosen.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty() && self.can_reach.is_none()
    }
}

/// A regular expression, equal to another of the same text.
#[derive(Debug, Clone)]
pub struct Pattern(regex::Regex);

impl Pattern {
    /// Reads an expression.
    ///
    /// # Errors
    /// It is none.
    pub fn new(text: &str) -> Result<Self, String> {
        regex::Regex::new(text).map(Self).map_err(|e| {
            let text = e.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.trim_start_matches("error: ").to_owned()
        })
    }

    /// Whether any part of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
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
    /// Its address on the underlay.
    pub public: IpAddr,
    /// What else is needed.
    pub way: Way,
}

/// What a backend has to know of the far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The hardware address of its VXLAN device.
    Vxlan(Mac),
    /// Nothing: the underlay takes the packets as they are.
    HostGw,
    /// The public key of its WireGuard device.
    WireGuard(WgKey),
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
    /// Where this host sends packets that are not for pods: networks, and whether they are on this
    /// link itself. Known only where the backend asks.
    pub routes: Vec<(IpNetwork, bool)>,
}

impl Underlay {
    /// This node's address of one family.
    pub fn ip(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// Whether `ip` is on this link, with no router between.
    pub fn is_direct(&self, ip: IpAddr) -> bool {
        let fitting = self.routes.iter().filter(|(net, _)| net.contains(ip));
        let best = fitting.max_by_key(|(net, direct)| (net.prefix(), *direct));
        best.is_some_and(|(_, direct)| *direct)
    }
}

/// What this node should have besides what each other node brings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Devices by name.
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

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// The addresses of this end; none are left alone.
    pub addrs: Vec<IpNetwork>,
    /// Checksums are to be filled in before a packet comes to this device.
    pub no_tx_checksum: bool,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKind {
    /// VXLAN. The hardware address is always set.
    Vxlan {
        /// The device itself.
        new: NewVxlan,
        /// Index of the underlay link.
        underlay: u32,
    },
    /// WireGuard.
    WireGuard(WgConfig),
}

/// One thing in the kernel that a single other node brings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// A forwarding entry of a VXLAN device.
    Fdb(String, FdbEntry),
    /// A permanent neighbour.
    Neigh(String, Neigh),
    /// The far end of a WireGuard device.
    WgPeer(String, WgPeer),
    /// A route.
    Route(Route),
}

/// What tells one entry from another: two with the same key cannot be in the kernel together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Device and hardware address.
    Fdb(String, Mac),
    /// Device and address.
    Neigh(String, IpAddr),
    /// Device and public key.
    WgPeer(String, WgKey),
    /// Destination and metric.
    Route(IpNetwork, Option<u32>),
}

impl Entry {
    /// Its key.
    pub fn key(&self) -> Key {
        match self {
            Self::Fdb(dev, entry) => Key::Fdb(dev.clone(), entry.mac),
            Self::Neigh(dev, neigh) => Key::Neigh(dev.clone(), neigh.dst),
            Self::WgPeer(dev, peer) => Key::WgPeer(dev.clone(), peer.key),
            Self::Route(route) => Key::Route(route.dst, route.metric),
        }
    }
}

/// Entries by their keys.
pub type Entries = BTreeMap<Key, Entry>;

/// Everything that follows from this node and the underlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// For the kernel.
    pub desired: Desired,
    /// On what the entries of other nodes stand.
    pub ground: Ground,
    /// What this node tells the others; `None` takes an annotation away.
    pub annotations: BTreeMap<String, Option<String>>,
    /// For the CNI plugin; none when no pod could be reached.
    pub pods: Option<Pods>,
    /// What could not be honoured, for the log.
    pub problems: Vec<String>,
}

/// What the entries of other nodes are made from, by family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ground {
    /// For IPv4 pods.
    pub v4: Option<Footing>,
    /// For IPv6 pods.
    pub v6: Option<Footing>,
    /// Networks of this node's own pods.
    pub subnets: Vec<IpNetwork>,
    /// The underlay.
    pub underlay: Option<Underlay>,
    /// Addresses of other nodes to which the path carries less than the link: bytes of the largest
    /// packet.
    pub narrow: BTreeMap<IpAddr, u32>,
}

impl Ground {
    /// That of one family.
    pub fn of(&self, family: Family) -> Option<&Footing> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// That of one family, to be set.
    pub fn of_mut(&mut self, family: Family) -> &mut Option<Footing> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// What this node has for one family of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footing {
    /// The device their packets leave by.
    pub dev: String,
    /// This end, as the others know it.
    pub way: Way,
    /// This node's own address that others send to.
    pub local: IpAddr,
}

/// What the CNI plugin has to know of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pods {
    /// Largest packet of pods in bytes.
    pub mtu: u32,
    /// Networks of the pods.
    pub subnets: Vec<IpNetwork>,
}
