//! Forwarding entries of a VXLAN device: behind which outer address a hardware address lives.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use crate::mac::Mac;

/// A permanent forwarding entry of the device itself (`NTF_SELF`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// Inner destination; all zero is where everything unknown goes.
    pub mac: Mac,
    /// Outer destination.
    pub dst: Option<IpAddr>,
}

/// The message that sets or deletes `entry` on link `index`.
pub(crate) fn message(index: u32, entry: &FdbEntry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    message.attributes.extend(
        entry
            .dst
            .map(|ip| NeighbourAttribute::Destination(ip.into())),
    );
    message
}

/// The message that lists the forwarding entries of link `index`.
pub(crate) fn list(index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message
}

/// Reads an entry and the index of its link. `None` for entries of a bridge and for those that were
/// learned from traffic.
pub fn parse(message: &NeighbourMessage) -> Option<(u32, FdbEntry)> {
    let state = message.header.state;
    let lasting = matches!(state, NeighbourState::Permanent | NeighbourState::Noarp);
    if !lasting || !message.header.flags.contains(NeighbourFlags::Own) {
        return None;
    }
    let mut mac = None;
    let mut dst = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = Mac::try_from(bytes.as_slice()).ok();
            }
            NeighbourAttribute::Destination(address) => dst = ip(address),
            _ => {}
        }
    }
    Some((message.header.ifindex, FdbEntry { mac: mac?, dst }))
}

/// The address of an entry. Its family is told by its length only, as the message's is "bridge".
fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_not_v4| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}
