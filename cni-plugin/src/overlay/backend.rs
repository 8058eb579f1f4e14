//! The ways from node to node, with their settings. Pure.

use std::path::PathBuf;

use api::cidr::Family;

/// Where the kernel listens for VXLAN unless told otherwise (`VXLAN_PORT` of Linux, older than
/// IANA's 4789), as flannel has it.
pub const VXLAN_PORT: u16 = 8472;

/// How packets get from node to node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// In VXLAN.
    Vxlan(Vxlan),
    /// As they are: every node is the router of its pods.
    HostGw(HostGw),
    /// Encrypted by WireGuard.
    WireGuard(WireGuard),
}

/// Settings of VXLAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Group based policy: the packet's mark travels along.
    pub gbp: bool,
    /// Learn forwarding entries from traffic.
    pub learning: bool,
    /// Nodes on the same link are reached without VXLAN.
    pub direct_routing: bool,
    /// Largest packet of the underlay in bytes, if not what its link says.
    pub mtu: Option<u32>,
}

impl Default for Vxlan {
    fn default() -> Self {
        Self {
            vni: 1,
            port: VXLAN_PORT,
            gbp: false,
            learning: false,
            direct_routing: false,
            mtu: None,
        }
    }
}

/// Settings of host-gw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostGw {
    /// Largest packet of the underlay in bytes, if not what its link says.
    pub mtu: Option<u32>,
}

/// Settings of WireGuard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireGuard {
    /// UDP port of the first device.
    pub port: u16,
    /// UDP port of the device for IPv6 pods, where there are two.
    pub port_v6: u16,
    /// A secret that all nodes share besides their keys.
    pub psk: Option<linux::wireguard::Key>,
    /// Which device carries what.
    pub mode: WireGuardMode,
    /// Seconds between packets that keep a way through NAT open; 0: none.
    pub keepalive: u16,
    /// Largest packet of the underlay in bytes, if not what its link says.
    pub mtu: Option<u32>,
    /// The file with this node's private key; made if it is not there.
    pub key_file: PathBuf,
    /// The private key, once it was read.
    pub private: Option<linux::wireguard::Key>,
    /// The public key that belongs to it.
    pub public: Option<linux::wireguard::Key>,
}

/// Which WireGuard device carries what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WireGuardMode {
    /// A device for each family of pods, over that family.
    #[default]
    Separate,
    /// One device for all pods, over IPv4 where both ends have it, else IPv6.
    Auto,
    /// One device for all pods, over IPv4.
    V4,
    /// One device for all pods, over IPv6.
    V6,
}

impl Backend {
    /// The name in `backend-type` and in `net-conf.json`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw(_) => "host-gw",
            Self::WireGuard(_) => "wireguard",
        }
    }

    /// The device that carries pods of one family; none when it is the underlay itself.
    pub fn device(&self, family: Family) -> Option<String> {
        match (self, family) {
            (Self::Vxlan(vxlan), Family::V4) => Some(format!("seaway.{}", vxlan.vni)),
            (Self::Vxlan(vxlan), Family::V6) => Some(format!("seaway-v6.{}", vxlan.vni)),
            (Self::HostGw(_), _) => None,
            (Self::WireGuard(wg), Family::V6) if wg.mode == WireGuardMode::Separate => {
                Some("seaway-wg-v6".to_owned())
            }
            (Self::WireGuard(_), _) => Some("seaway-wg".to_owned()),
        }
    }

    /// All devices, each once.
    pub fn devices(&self) -> Vec<String> {
        let mut all: Vec<String> = Family::BOTH
            .into_iter()
            .filter_map(|family| self.device(family))
            .collect();
        all.dedup();
        all
    }

    /// Bytes that this costs of each packet of pods of one family. VXLAN: inner Ethernet 14, VXLAN
    /// 8, UDP 8 and the outer IP header. WireGuard: outer IPv6 40, UDP 8, header 16, tag 16, which
    /// is what flannel and `wg-quick` count for either family.
    pub fn overhead(&self, family: Family) -> u32 {
        match (self, family) {
            (Self::Vxlan(_), Family::V4) => 14 + 8 + 8 + 20,
            (Self::Vxlan(_), Family::V6) => 14 + 8 + 8 + 40,
            (Self::HostGw(_), _) => 0,
            (Self::WireGuard(_), _) => 40 + 8 + 16 + 16,
        }
    }

    /// The underlay's largest packet, if it was set.
    pub fn mtu(&self) -> Option<u32> {
        match self {
            Self::Vxlan(vxlan) => vxlan.mtu,
            Self::HostGw(host_gw) => host_gw.mtu,
            Self::WireGuard(wg) => wg.mtu,
        }
    }

    /// Says how large the underlay's packets may be.
    pub fn set_mtu(&mut self, mtu: u32) {
        let of = match self {
            Self::Vxlan(vxlan) => &mut vxlan.mtu,
            Self::HostGw(host_gw) => &mut host_gw.mtu,
            Self::WireGuard(wg) => &mut wg.mtu,
        };
        *of = Some(mtu);
    }

    /// Whether it matters which nodes are on the same link.
    pub fn asks_for_neighbours(&self) -> bool {
        match self {
            Self::Vxlan(vxlan) => vxlan.direct_routing,
            Self::HostGw(_) => true,
            Self::WireGuard(_) => false,
        }
    }
}
