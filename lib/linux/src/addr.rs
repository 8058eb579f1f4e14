//! Addresses of links.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};

use crate::link::family;

/// An address on a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addr {
    /// Address with the length of its network, e.g. `10.244.1.1/24`.
    pub net: IpNetwork,
    /// IPv6: usable at once, without duplicate address detection. Not shown for IPv4.
    pub nodad: bool,
    /// Valid on this host only (`scope host`).
    pub host_scope: bool,
    /// IPv4 label, which starts with the link's name; none: the link's name.
    pub label: Option<String>,
    /// Who made it (`IFA_PROTO`); 0: not told.
    pub protocol: u8,
    /// IPv6: not yet usable since duplicate address detection is under way. Only read.
    pub tentative: bool,
    /// Made by someone on purpose, not by router advertisement with a lifetime. Only read.
    pub permanent: bool,
}

impl Addr {
    /// A permanent address without duplicate address detection.
    pub fn new(net: IpNetwork) -> Self {
        Self {
            nodad: net.is_ipv6(),
            net,
            host_scope: false,
            label: None,
            protocol: 0,
            tentative: false,
            permanent: true,
        }
    }

    /// Marks who made it.
    #[must_use]
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }
}

/// The message that adds or deletes `addr` on link `index`.
pub(crate) fn message(index: u32, addr: &Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    let ip = addr.net.ip();
    message.header.family = family(&ip);
    message.header.prefix_len = addr.net.prefix();
    message.header.index = index;
    if addr.host_scope {
        message.header.scope = AddressScope::Host;
    }
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    if let IpNetwork::V4(net) = addr.net
        && net.prefix() < 31
    {
        message
            .attributes
            .push(AddressAttribute::Broadcast(net.broadcast()));
    }
    message
        .attributes
        .extend(addr.label.clone().map(AddressAttribute::Label));
    if addr.nodad && ip.is_ipv6() {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    if addr.protocol != 0 {
        message
            .attributes
            .push(AddressAttribute::Protocol(AddressProtocol::from(
                addr.protocol,
            )));
    }
    message
}

/// The message that lists the addresses of link `index`, or of all.
pub(crate) fn list(index: Option<u32>) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index.unwrap_or(0);
    message
}

/// Reads an address and the index of its link; `None` for what is no IP address.
pub(crate) fn parse(message: &AddressMessage) -> Option<(u32, Addr)> {
    let mut address: Option<IpAddr> = None;
    let mut local: Option<IpAddr> = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let mut label = None;
    let mut protocol = 0;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::Label(text) => label = Some(text.clone()),
            AddressAttribute::Protocol(p) => protocol = u8::from(*p),
            _ => {}
        }
    }
    let net = IpNetwork::new(local.or(address)?, message.header.prefix_len).ok()?;
    let addr = Addr {
        nodad: net.is_ipv6() && flags.contains(AddressFlags::Nodad),
        host_scope: message.header.scope == AddressScope::Host,
        label,
        protocol,
        tentative: flags.contains(AddressFlags::Tentative),
        permanent: flags.contains(AddressFlags::Permanent),
        net,
    };
    Some((message.header.index, addr))
}
