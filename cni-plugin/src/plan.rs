//! Plans: what to change, in which order, given what is asked for and what is there. Pure.

mod add;
mod addition;
mod bridge;
mod check;

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::cni::Attachment;

use crate::firewall::{Tag, Whose};
use crate::observe::Leftover;
use crate::request::Net;
use crate::step::{Mac, Side, Step};

pub use add::{AddPlan, Addresses, plan_add, plan_wire};
pub use addition::{Addition, Target, entries_of, ifb_name, plan_addition, ports_of};
pub use check::{check, check_addition, check_limits};

/// The kernel's limit for a link's alias in bytes (`IFALIASZ` less one).
const ALIAS_BYTES_MAX: usize = 255;

/// Hexadecimal digits of a hash in a link's name.
const NAME_HASH_DIGITS: usize = 11;

/// The bits of a hash in a link's name.
const NAME_HASH_MASK: u64 = 0xfff_ffff_ffff;

/// A name for the node's end of the pair that follows from whom it belongs to, so that it is found
/// again when the pod's namespace is gone. 44 bits of a hash: two pods of a node do not meet.
pub fn host_link_name(network: &str, owner: &Attachment) -> String {
    link_name_of_hash(owner_hash(network, owner))
}

/// The same, from the hash of network, container and interface.
pub fn link_name_of_hash(hash: u64) -> String {
    format!("veth{:011x}", hash & NAME_HASH_MASK)
}

/// Whether a link's name is one of those: `veth` or `ifb` and eleven hexadecimal digits.
pub fn is_ours(name: &str) -> bool {
    let digits = ["veth", "ifb"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    digits.is_some_and(|digits| digits.len() == NAME_HASH_DIGITS && digits.bytes().all(is_digit))
}

/// What marks the node's end of a pair: all links of `network` start with it.
pub fn alias_prefix(network: &str) -> String {
    format!("seaway:{network}:")
}

pub(crate) fn alias(network: &str, owner: &Attachment) -> String {
    let mut alias = format!(
        "{}{}:{}",
        alias_prefix(network),
        owner.container_id,
        owner.ifname
    );
    // Names of containers and networks are ASCII, so any length is a border between characters.
    alias.truncate(ALIAS_BYTES_MAX);
    alias
}

fn owner_hash(network: &str, owner: &Attachment) -> u64 {
    fnv1a(&[network, &owner.container_id, &owner.ifname])
}

/// FNV-1a over texts with a zero between them, 64 bits: the same on every machine and in every
/// build.
pub(crate) fn fnv1a(parts: &[&str]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for (at, part) in parts.iter().enumerate() {
        let between = if at == 0 { "" } else { "\0" };
        for byte in between.bytes().chain(part.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// A hardware address that follows from an IP address: when an address is used again, what the
/// neighbours remember of it is still right.
pub(crate) fn mac_of(ip: IpAddr) -> Mac {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            Mac::local([0x58, a, b, c, d])
        }
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            Mac::local([0x59, a, b, c, d])
        }
    }
}

/// A hardware address that follows from whom the link belongs to.
pub(crate) fn mac_of_owner(kind: u8, network: &str, owner: &Attachment) -> Mac {
    let [.., a, b, c, d] = owner_hash(network, owner).to_be_bytes();
    Mac::local([kind, a, b, c, d])
}

/// Plans DEL. The address is given back after all of it: it must not be free while an interface still
/// has it.
pub fn plan_del(net: &Net, owner: &Attachment, seen: &Leftover) -> Vec<Step> {
    let mut steps = Vec::new();
    let host_link = host_link_name(&net.name, owner);
    if seen.host_link {
        // From now on nothing passes, so the entries may go.
        steps.push(Step::StopLink(host_link.clone()));
    }
    // Before the links: the kernel lets nobody leave nf_tables before a grace period is over, and
    // spends it while it deletes the pair.
    steps.push(Step::RemoveEntries(Whose::One(Tag::of(&net.name, owner))));
    if seen.host_link {
        steps.push(Step::RemoveLink(Side::Node, host_link));
    }
    if seen.pod_link {
        steps.push(Step::RemoveLink(Side::Pod, owner.ifname.clone()));
    }
    if seen.ifb {
        steps.push(Step::RemoveLink(Side::Node, ifb_name(&net.name, owner)));
    }
    steps
}

/// Plans GC: removes the links and entries of this network whose owner is not to be kept. `links`
/// are names and aliases of the node's links.
pub fn plan_gc(net: &Net, valid: &[Attachment], links: &BTreeMap<String, String>) -> Vec<Step> {
    let names = |owner: &Attachment| [host_link_name(&net.name, owner), ifb_name(&net.name, owner)];
    let keep: Vec<String> = valid.iter().flat_map(names).collect();
    let prefix = alias_prefix(&net.name);
    let ours = links.iter().filter(|(_, alias)| alias.starts_with(&prefix));
    let mut steps: Vec<Step> = ours
        .filter(|(name, _)| !keep.contains(name))
        .map(|(name, _)| Step::RemoveLink(Side::Node, name.clone()))
        .collect();
    let tags = valid.iter().map(|owner| Tag::of(&net.name, owner).owner);
    steps.push(Step::RemoveEntries(Whose::AllBut {
        network: fnv1a(&[&net.name]),
        keep: tags.collect(),
    }));
    steps
}

#[cfg(test)]
mod tests;
