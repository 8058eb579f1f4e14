//! Links: what one looks like, what can be asked of it, and the netlink messages for both.

use std::net::IpAddr;

use netlink_packet_route::link::{
    AfSpecBridge, AfSpecInet6, AfSpecUnspec, BridgePortState, BridgeStpState, BridgeVlanInfo,
    BridgeVlanInfoFlags, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind,
    InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::mac::Mac;
use crate::netns::NsRef;

/// The kernel's limit for a link's name (`IFNAMSIZ` less the final zero).
pub const NAME_BYTES_MAX: usize = 15;

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Interface index in its namespace.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// `veth`, `bridge`, `vxlan`, ...; none for physical and loopback devices.
    pub kind: Option<String>,
    /// Hardware address; none for devices that have none or another length.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Index of the bridge (or other master) it is a port of.
    pub master: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Operationally up: packets can flow.
    pub running: bool,
    /// Receives all packets.
    pub promisc: bool,
    /// The free text that marks a link as ours.
    pub alias: Option<String>,
    /// For a veth, the peer's index (in the peer's namespace); for others the lower link's.
    pub peer: Option<u32>,
    /// By which number this namespace knows the peer's; none: it is this one.
    pub peer_netns: Option<i32>,
    /// What a bridge port is told to do.
    pub port: Option<Port>,
    /// What a VXLAN device is made of.
    pub vxlan: Option<Vxlan>,
    /// A bridge on which packets stay within their VLANs.
    pub vlan_filtering: bool,
}

/// Options and state of a bridge port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Port {
    /// A packet may go out of the port it came in by (a pod reaching itself through a service).
    pub hairpin: bool,
    /// Isolated ports do not talk to each other.
    pub isolated: bool,
    /// The port forwards; only read, never set.
    pub forwarding: bool,
}

/// What a VXLAN device is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Index of the underlay device; none leaves the choice to routing.
    pub underlay: Option<u32>,
    /// Learns forwarding entries from traffic.
    pub learning: bool,
    /// Carries the mark of the packet in its header (group based policy).
    pub gbp: bool,
}

/// A bridge to be made. It is made down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewBridge {
    /// Interface name.
    pub name: String,
    /// Fixed hardware address. Without one, the bridge's address changes with its ports.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
}

/// A pair of veths to be made in one request. Both are made down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewVeth {
    /// The end that stays in the namespace of the request.
    pub name: String,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Largest packet in bytes, for both ends.
    pub mtu: Option<u32>,
    /// The bridge this end becomes a port of.
    pub master: Option<String>,
    /// The other end's name.
    pub peer_name: String,
    /// The other end's hardware address.
    pub peer_mac: Option<Mac>,
    /// The other end's namespace; none: the same.
    pub peer_netns: Option<NsRef>,
}

/// A VXLAN device to be made. It is made down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewVxlan {
    /// Interface name.
    pub name: String,
    /// Fixed hardware address.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// VXLAN network identifier, 0 to 2^24-1.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Outer source address; its family is the outer family.
    pub local: Option<IpAddr>,
    /// Name of the underlay device.
    pub underlay: Option<String>,
    /// Learns forwarding entries from traffic.
    pub learning: bool,
    /// Carries the mark of the packet in its header (group based policy).
    pub gbp: bool,
}

/// Changes to one link, made in one request. What is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkChange {
    /// Sets it up or down.
    pub up: Option<bool>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// A new name; the link must be down.
    pub name: Option<String>,
    /// The bridge it becomes a port of; an empty text takes it out of its bridge.
    pub master: Option<String>,
    /// The free text that marks a link as ours.
    pub alias: Option<String>,
    /// Moves it to another namespace (which sets it down and takes its addresses).
    pub netns: Option<NsRef>,
    /// Receives all packets.
    pub promisc: Option<bool>,
    /// Bridge port option; the link must be a port already.
    pub hairpin: Option<bool>,
    /// Bridge port option; the link must be a port already.
    pub isolated: Option<bool>,
    /// Whether the kernel gives the link an IPv6 link-local address when it comes up.
    pub link_local: Option<bool>,
    /// Bridge option: packets stay within their VLANs.
    pub vlan_filtering: Option<bool>,
}

/// VLANs that a bridge port takes part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PortVlan {
    /// The first one, 1 to 4094.
    pub first: u16,
    /// The last one.
    pub last: u16,
    /// Packets without a tag that come in belong to it, and its packets go out without one.
    pub untagged: bool,
}

impl LinkChange {
    /// Sets a link up.
    pub fn up() -> Self {
        Self {
            up: Some(true),
            ..Self::default()
        }
    }

    /// Sets a link down.
    pub fn down() -> Self {
        Self {
            up: Some(false),
            ..Self::default()
        }
    }

    /// The words of this change for an error, e.g. `set master of veth3 to cni0`.
    pub(crate) fn title(&self, link: &str) -> String {
        let mut parts = Vec::new();
        let on = |on| if on { "on" } else { "off" };
        if let Some(name) = &self.name {
            parts.push(format!("rename {link} to {name}"));
        }
        match self.master.as_deref() {
            Some("") => parts.push(format!("take {link} out of its bridge")),
            Some(master) => parts.push(format!("set master of {link} to {master}")),
            None => {}
        }
        if let Some(mtu) = self.mtu {
            parts.push(format!("set mtu of {link} to {mtu}"));
        }
        if let Some(mac) = self.mac {
            parts.push(format!("set address of {link} to {mac}"));
        }
        if let Some(alias) = &self.alias {
            parts.push(format!("set alias of {link} to {alias:?}"));
        }
        if self.netns.is_some() {
            parts.push(format!("move {link} to another network namespace"));
        }
        if let Some(value) = self.promisc {
            parts.push(format!("set promiscuous mode of {link} {}", on(value)));
        }
        if let Some(value) = self.hairpin {
            parts.push(format!("set hairpin of {link} {}", on(value)));
        }
        if let Some(value) = self.isolated {
            parts.push(format!("set isolation of {link} {}", on(value)));
        }
        if let Some(value) = self.link_local {
            parts.push(format!("set link-local addressing of {link} {}", on(value)));
        }
        if let Some(value) = self.vlan_filtering {
            parts.push(format!("set VLAN filtering of {link} {}", on(value)));
        }
        if let Some(up) = self.up {
            parts.push(format!("set {link} {}", if up { "up" } else { "down" }));
        }
        parts.join(", ")
    }
}

/// A request that names a link by index, or by name when the index is not known.
pub(crate) fn get(index: Option<u32>, name: Option<&str>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index.unwrap_or(0);
    if let Some(name) = name {
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
    }
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

pub(crate) fn create_bridge(new: &NewBridge) -> LinkMessage {
    let mut message = named(&new.name, new.mac, new.mtu);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        // Without spanning tree a port forwards at once.
        LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::StpState(
            BridgeStpState::Disabled,
        )])),
    ]));
    message
}

pub(crate) fn create_dummy(name: &str) -> LinkMessage {
    let mut message = named(name, None, None);
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
            InfoKind::Dummy,
        )]));
    message
}

pub(crate) fn create_veth(new: &NewVeth, master: Option<u32>) -> LinkMessage {
    let mut peer = named(&new.peer_name, new.peer_mac, new.mtu);
    if let Some(NsRef(fd)) = new.peer_netns {
        peer.attributes.push(LinkAttribute::NetNsFd(fd));
    }
    let mut message = named(&new.name, new.mac, new.mtu);
    if let Some(master) = master {
        message.attributes.push(LinkAttribute::Controller(master));
    }
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    message
}

pub(crate) fn create_vxlan(new: &NewVxlan, underlay: Option<u32>) -> LinkMessage {
    let mut data = vec![
        InfoVxlan::Id(new.vni),
        InfoVxlan::Port(new.port),
        InfoVxlan::Learning(new.learning),
    ];
    match new.local {
        Some(IpAddr::V4(local)) => data.push(InfoVxlan::Local(local)),
        Some(IpAddr::V6(local)) => data.push(InfoVxlan::Local6(local)),
        None => {}
    }
    data.extend(underlay.map(InfoVxlan::Link));
    data.extend(new.gbp.then_some(InfoVxlan::Gbp));
    let mut message = named(&new.name, new.mac, new.mtu);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(data)),
    ]));
    message
}

/// A WireGuard device, which has neither keys nor peers yet.
pub(crate) fn create_wireguard(name: &str, mtu: Option<u32>) -> LinkMessage {
    let mut message = named(name, None, mtu);
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
            InfoKind::Wireguard,
        )]));
    message
}

fn named(name: &str, mac: Option<Mac>, mtu: Option<u32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    message
        .attributes
        .extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message
}

/// A change of link `index`; `master` is the index behind `change.master`.
pub(crate) fn set(index: u32, change: &LinkChange, master: Option<u32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let mut flag = |flag: LinkFlags, on: Option<bool>| {
        if let Some(on) = on {
            message.header.change_mask |= flag;
            message.header.flags.set(flag, on);
        }
    };
    flag(LinkFlags::Up, change.up);
    flag(LinkFlags::Promisc, change.promisc);
    let attributes = &mut message.attributes;
    attributes.extend(change.name.clone().map(LinkAttribute::IfName));
    attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    attributes.extend(change.alias.clone().map(LinkAttribute::IfAlias));
    attributes.extend(master.map(LinkAttribute::Controller));
    attributes.extend(change.netns.map(|NsRef(fd)| LinkAttribute::NetNsFd(fd)));
    let mut port: Vec<InfoBridgePort> = Vec::new();
    port.extend(change.hairpin.map(InfoBridgePort::HairpinMode));
    port.extend(change.isolated.map(InfoBridgePort::Isolated));
    if !port.is_empty() {
        attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port)),
        ]));
    }
    if let Some(on) = change.vlan_filtering {
        attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(on)])),
        ]));
    }
    if let Some(on) = change.link_local {
        let mode = if on {
            In6AddrGenMode::Eui64
        } else {
            In6AddrGenMode::None
        };
        attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
            vec![AfSpecInet6::AddrGenMode(mode)],
        )]));
    }
    message
}

/// The change that puts link `name` into VLANs or takes it out, and its words for an error.
pub(crate) fn port_vlan_change(
    name: &str,
    index: u32,
    vlan: PortVlan,
    on_bridge: bool,
    add: bool,
) -> (String, RouteNetlinkMessage) {
    let message = port_vlan(index, vlan, on_bridge);
    let PortVlan { first, last, .. } = vlan;
    if add {
        let title = format!("put {name} into VLANs {first} to {last}");
        (title, RouteNetlinkMessage::SetLink(message))
    } else {
        let title = format!("take {name} out of VLANs {first} to {last}");
        (title, RouteNetlinkMessage::DelLink(message))
    }
}

/// A message about the VLANs of port `index`; with `on_bridge`, of the bridge itself.
fn port_vlan(index: u32, vlan: PortVlan, on_bridge: bool) -> LinkMessage {
    let mut flags = BridgeVlanInfoFlags::empty();
    flags.set(BridgeVlanInfoFlags::Controller, on_bridge);
    flags.set(
        BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
        vlan.untagged,
    );
    let info = |flags, vid| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
    let infos = if vlan.first == vlan.last {
        vec![info(flags, vlan.first)]
    } else {
        vec![
            info(flags | BridgeVlanInfoFlags::RangeBegin, vlan.first),
            info(flags | BridgeVlanInfoFlags::RangeEnd, vlan.last),
        ]
    };
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = index;
    message.attributes.push(LinkAttribute::AfSpecBridge(infos));
    message
}

/// Reads a link from the kernel's message.
pub(crate) fn parse(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        promisc: flags.contains(LinkFlags::Promisc),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = Mac::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(*id),
            // Loopback reports "unknown", as devices without a notion of carrier do.
            LinkAttribute::OperState(state) => {
                link.running = matches!(state, State::Up | State::Unknown) && link.up;
            }
            LinkAttribute::LinkInfo(infos) => parse_info(&mut link, infos),
            _ => {}
        }
    }
    link
}

fn parse_info(link: &mut Link, infos: &[LinkInfo]) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(parse_vxlan(data)),
            LinkInfo::Data(InfoData::Bridge(data)) => {
                link.vlan_filtering = data.contains(&InfoBridge::VlanFiltering(true));
            }
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                link.port = Some(parse_port(data));
            }
            _ => {}
        }
    }
}

fn parse_port(data: &[InfoBridgePort]) -> Port {
    let mut port = Port::default();
    for info in data {
        match info {
            InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            InfoBridgePort::State(state) => port.forwarding = *state == BridgePortState::Forwarding,
            _ => {}
        }
    }
    port
}

fn parse_vxlan(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for info in data {
        match info {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Local6(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Link(index) => vxlan.underlay = Some(*index),
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::Gbp => vxlan.gbp = true,
            _ => {}
        }
    }
    vxlan
}

/// Whether the kernel would take `name` for a link.
pub fn is_valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && !name.contains(['/', ':'])
        && !name.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// The family of an address, as netlink names it.
pub(crate) fn family(address: &IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}
