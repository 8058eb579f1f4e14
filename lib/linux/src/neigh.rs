//! Neighbours: which hardware address an IP address on a link has.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteProtocol, RouteType};

use crate::link::family;
use crate::mac::Mac;

/// A neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neigh {
    /// The neighbour's IP address.
    pub dst: IpAddr,
    /// Its hardware address; none while it is being resolved.
    pub mac: Option<Mac>,
    /// Never expires.
    pub permanent: bool,
    /// Who made it (`RTPROT_*`); 0: not told.
    pub protocol: u8,
}

impl Neigh {
    /// A permanent entry, marked as ours.
    pub fn permanent(dst: IpAddr, mac: Mac) -> Self {
        let protocol = crate::route::PROTOCOL_SEAWAY;
        Self {
            dst,
            mac: Some(mac),
            permanent: true,
            protocol,
        }
    }
}

/// The message that sets or deletes `neigh` on link `index`.
pub(crate) fn message(index: u32, neigh: &Neigh) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(&neigh.dst);
    message.header.ifindex = index;
    message.header.kind = RouteType::Unicast;
    message.header.state = if neigh.permanent {
        NeighbourState::Permanent
    } else {
        NeighbourState::Reachable
    };
    let attributes = &mut message.attributes;
    attributes.push(NeighbourAttribute::Destination(neigh.dst.into()));
    attributes.extend(
        neigh
            .mac
            .map(|m| NeighbourAttribute::LinkLayerAddress(m.0.to_vec())),
    );
    if neigh.protocol != 0 {
        attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(
            neigh.protocol,
        )));
    }
    message
}

/// The message that lists the neighbours of one family on link `index`, or on all.
pub(crate) fn list(ipv6: bool, index: Option<u32>) -> NeighbourMessage {
    let any: IpAddr = if ipv6 {
        [0u8; 16].into()
    } else {
        [0u8; 4].into()
    };
    let mut message = NeighbourMessage::default();
    message.header.family = family(&any);
    message
        .attributes
        .extend(index.map(NeighbourAttribute::IfIndex));
    message
}

/// Reads a neighbour and the index of its link. `None` for multicast and proxy entries, which the
/// kernel makes for itself.
pub fn parse(message: &NeighbourMessage) -> Option<(u32, Neigh)> {
    let header = &message.header;
    if header.state == NeighbourState::Noarp || header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut dst = None;
    let mut mac = None;
    let mut protocol = 0;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => dst = Some((*ip).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                dst = Some((*ip).into());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = Mac::try_from(bytes.as_slice()).ok();
            }
            NeighbourAttribute::Protocol(p) => protocol = u8::from(*p),
            _ => {}
        }
    }
    let permanent = header.state == NeighbourState::Permanent;
    Some((
        header.ifindex,
        Neigh {
            dst: dst?,
            mac,
            permanent,
            protocol,
        },
    ))
}
