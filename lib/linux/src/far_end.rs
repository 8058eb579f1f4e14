//! The far ends of veths, in whatever network namespace they are.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::RouteNetlinkMessage as M;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use crate::error::Result;
use crate::host::Host;
use crate::kernel::Kernel;
use crate::link::{Link, LinkChange};
use crate::netlink::Netlink;
use crate::netns::NetNs;
use crate::netns::scan::namespaces;

/// Gives the far ends of `veths` this largest packet; tells the indices of those (on this side)
/// whose far end was found and has it. `netlink` belongs to the namespace of the near ends.
pub(crate) fn set_mtu(netlink: &mut Netlink, veths: &[Link], mtu: u32) -> Result<BTreeSet<u32>> {
    let mut wanted: BTreeMap<i32, Vec<&Link>> = BTreeMap::new();
    for veth in veths {
        if let Some(id) = veth.peer_netns {
            wanted.entry(id).or_default().push(veth);
        }
    }
    let mut done = BTreeSet::new();
    if wanted.is_empty() {
        return Ok(done);
    }
    for netns in namespaces() {
        let Some(near) = id_of(netlink, &netns)?.and_then(|id| wanted.remove(&id)) else {
            continue;
        };
        let mut host = Kernel::open_in(netns)?;
        for veth in near {
            let index = veth.peer.unwrap_or_default();
            let Some(far) = host.link_by_index(index)? else {
                continue;
            };
            let change = LinkChange {
                mtu: Some(mtu),
                ..LinkChange::default()
            };
            match host.set_link(&far.name, &change) {
                Ok(()) => drop(done.insert(veth.index)),
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(done)
}

/// The number by which the namespace of `netlink` knows another; none if it never met it.
fn id_of(netlink: &mut Netlink, netns: &NetNs) -> Result<Option<i32>> {
    let Ok(fd) = u32::try_from(netns.reference().0) else {
        return Ok(None);
    };
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(fd));
    let op = format_args!("ask for the number of a network namespace");
    let M::NewNsId(answer) = netlink.get(op, M::GetNsId(message))? else {
        return Ok(None);
    };
    let id = answer.attributes.iter().find_map(|a| match a {
        NsidAttribute::Id(id) => Some(*id),
        _ => None,
    });
    Ok(id.filter(|id| *id >= 0))
}

impl Kernel {
    /// The number by which this namespace knows another ([`Link::peer_netns`]); none if it never
    /// met it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn number_of(&mut self, netns: &NetNs) -> Result<Option<i32>> {
        id_of(&mut self.netlink, netns)
    }
}
