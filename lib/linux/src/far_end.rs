//! The far ends of veths, in whatever network namespace they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use netlink_packet_route::RouteNetlinkMessage as M;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use crate::error::Result;
use crate::host::Host;
use crate::kernel::Kernel;
use crate::link::{Link, LinkChange};
use crate::netlink::Netlink;
use crate::netns::NetNs;

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

/// Every network namespace that this process can see: mounted ones, as runtimes make them, and
/// those of processes.
fn namespaces() -> Vec<NetNs> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut paths: Vec<String> = mounts.lines().filter_map(mounted).collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    paths.extend(processes.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some(format!("/proc/{pid}/ns/net"))
    }));
    let mut seen = BTreeSet::new();
    paths
        .into_iter()
        .filter_map(|path| NetNs::open(path).ok())
        .filter(|netns| seen.insert(netns.identity()))
        .collect()
}

/// Where a line of `mountinfo` has a network namespace (`proc(5)`): its root is `net:[4026532000]`,
/// and blanks in paths are written in octal.
fn mounted(line: &str) -> Option<String> {
    let mut fields = line.split(' ').skip(3);
    let root = fields.next()?;
    let point = fields.next()?;
    root.starts_with("net:[")
        .then(|| point.replace("\\040", " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = "1147 28 0:4 net:[4026532208] /run/netns/cni\\0401 rw shared:622 - nsfs nsfs rw";
        assert_eq!(mounted(line).as_deref(), Some("/run/netns/cni 1"));
        assert_eq!(mounted("28 1 0:26 / /run rw - tmpfs tmpfs rw"), None);
        assert_eq!(mounted(""), None);
    }
}
