//! What the programs must know of the node: its addresses, its interfaces, how pods are told from
//! others. Reading it is one function, deciding what the maps get of it another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::cidr::Family;
use ebpf_common::abi::{
    Addr, CONFIG_LOCALHOST, CONFIG_OFFSETS, Config, IFACE_PODS, Iface, NODE_PORTS, NodeAddr,
    Offsets,
};
use linux::btf::Btf;
use linux::{Host, Kernel};

use super::plan::{addr, bits};
use crate::backend::{DetectLocal, NodePortScope, Settings};
use crate::node::primary_ips;

/// The loopback interface.
const LOOPBACK: &str = "lo";

/// An interface of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Kind of link; none for physical ones.
    pub kind: Option<String>,
    /// The bridge or the like that it is a port of.
    pub master: Option<u32>,
    /// Its frames have Ethernet headers.
    pub is_ethernet: bool,
    /// Its addresses, without link-local ones.
    pub ips: Vec<IpAddr>,
}

impl Interface {
    /// Whether programs are attached to it.
    pub fn is_attached(&self) -> bool {
        self.name != LOOPBACK && self.is_ethernet
    }

    /// Whether what goes out there is translated. What goes out of a bridge's port was translated
    /// when it went out of the bridge. What comes in is translated at the port already: a bridge
    /// that asks the node's filters (`bridge-nf-call-iptables`) has connections tracked there, which
    /// must see the client that they see in the other direction.
    pub fn is_exit(&self) -> bool {
        self.is_attached() && self.master.is_none()
    }
}

/// What was found on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Cookie of the node's network namespace.
    pub netns: u64,
    /// Interfaces by index.
    pub interfaces: Vec<Interface>,
    /// All addresses of the node, link-local ones too.
    pub ips: Vec<IpAddr>,
    /// The primary address of each family.
    pub primary: Vec<IpAddr>,
}

/// How often interfaces are listed until those that are there are all listed.
const LISTINGS: usize = 5;

/// Looks at the calling thread's network namespace. `known` are interfaces that were there: one that
/// is missing from the list counts as gone when the kernel, asked for it alone, has none, either. A
/// list read while interfaces come and go may leave out one that stays, and programs and addresses
/// taken away for that would leave clients unserved.
///
/// # Errors
/// The kernel's refusal.
pub fn facts(known: &BTreeSet<u32>) -> linux::Result<Facts> {
    let mut host = Kernel::open()?;
    for _ in 0..LISTINGS {
        let facts = list(&mut host)?;
        let is_there = |index| Ok(host.link_by_index(index)?.is_some());
        match left_out(known, &facts, is_there)? {
            None => return Ok(facts),
            Some(index) => tracing::debug!(index, "an interface was not listed: once more"),
        }
    }
    Err(linux::Error::other(
        "list interfaces",
        "one that is there is left out again and again",
    ))
}

/// An interface that is there and not in the list.
fn left_out(
    known: &BTreeSet<u32>,
    facts: &Facts,
    mut is_there: impl FnMut(u32) -> linux::Result<bool>,
) -> linux::Result<Option<u32>> {
    let listed: BTreeSet<u32> = facts.interfaces.iter().map(|i| i.index).collect();
    for index in known.difference(&listed) {
        if is_there(*index)? {
            return Ok(Some(*index));
        }
    }
    Ok(None)
}

fn list(host: &mut Kernel) -> linux::Result<Facts> {
    let mut facts = Facts {
        netns: linux::bpf::netns_cookie()?,
        ..Facts::default()
    };
    for link in host.links()? {
        let addrs = match host.addrs(&link.name) {
            Ok(addrs) => addrs,
            // A link that went away since it was listed, or has another name now.
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e),
        };
        let ips: Vec<IpAddr> = addrs.iter().map(|addr| addr.net.ip()).collect();
        facts.ips.extend(&ips);
        facts.interfaces.push(Interface {
            index: link.index,
            kind: link.kind,
            master: link.master,
            is_ethernet: link.mac.is_some(),
            ips: ips.into_iter().filter(|ip| !is_link_local(ip)).collect(),
            name: link.name,
        });
    }
    facts.ips.sort_unstable();
    facts.ips.dedup();
    facts.primary = primary_ips(None, &facts.ips);
    Ok(facts)
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The entries of the maps about the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePlan {
    /// Settings.
    pub config: Config,
    /// Addresses.
    pub addrs: BTreeMap<Addr, NodeAddr>,
    /// Interfaces.
    pub ifaces: BTreeMap<u32, Iface>,
}

/// Plans them, from what was found and the settings of each family.
pub fn plan(facts: &Facts, settings: &[Settings], offsets: Option<Offsets>) -> NodePlan {
    let mut plan = NodePlan {
        config: Config {
            node_netns: facts.netns,
            offsets: offsets.unwrap_or_default(),
            flags: if offsets.is_some() { CONFIG_OFFSETS } else { 0 },
            ..Config::default()
        },
        ..NodePlan::default()
    };
    for settings in settings {
        family(&mut plan, facts, settings);
    }
    for interface in facts.interfaces.iter().filter(|i| i.is_attached()) {
        let of = |family| {
            let ip = interface.ips.iter().find(|ip| Family::of(**ip) == family);
            ip.map_or([0; 16], |ip| addr(*ip))
        };
        let masters = facts.interfaces.iter();
        let mut masters = masters.filter(|i| interface.master == Some(i.index));
        let is_of_pods = |name: &str| settings.iter().any(|s| is_of_pods(s, name));
        let pods = is_of_pods(&interface.name) || masters.any(|i| is_of_pods(&i.name));
        let iface = Iface {
            v4: of(Family::V4),
            v6: of(Family::V6),
            flags: if pods { IFACE_PODS } else { 0 },
        };
        plan.ifaces.insert(interface.index, iface);
    }
    plan
}

fn family(plan: &mut NodePlan, facts: &Facts, settings: &Settings) {
    let which = usize::from(settings.family == Family::V6);
    if let Some(DetectLocal::Net(net)) = &settings.detect_local {
        plan.config.pods[which] = addr(net.network());
        plan.config.pods_bits[which] = bits(net);
    }
    if settings.serves_localhost() {
        plan.config.flags |= CONFIG_LOCALHOST;
    }
    let own = |ips: &[IpAddr]| -> Vec<IpAddr> {
        let of_family = ips.iter().filter(|ip| Family::of(**ip) == settings.family);
        of_family.copied().collect()
    };
    if let Some(primary) = own(&facts.primary).first() {
        plan.config.masquerade[which] = addr(*primary);
    }
    for ip in own(&facts.ips).into_iter().filter(|ip| !ip.is_loopback()) {
        let serves = match &settings.node_ports {
            NodePortScope::All => true,
            NodePortScope::Only(ips) => ips.contains(&ip),
        };
        let flags = if serves && !settings.dns_ips.contains(&ip) {
            NODE_PORTS
        } else {
            0
        };
        plan.addrs.insert(addr(ip), NodeAddr { flags });
    }
}

fn is_of_pods(settings: &Settings, name: &str) -> bool {
    match &settings.detect_local {
        Some(DetectLocal::Interface(pods)) => name == pods,
        Some(DetectLocal::InterfacePrefix(prefix)) => name.starts_with(prefix),
        Some(DetectLocal::Net(_)) | None => false,
    }
}

/// Whether the kernel describes itself.
pub fn has_btf() -> bool {
    std::path::Path::new("/sys/kernel/btf/vmlinux").exists()
}

/// Finds out where the kernel keeps a socket's own address.
///
/// # Errors
/// The kernel does not describe itself, or is built otherwise.
pub fn offsets() -> linux::Result<Offsets> {
    let btf = Btf::kernel()?;
    Ok(Offsets {
        kern_sk: btf.offset("bpf_sock_addr_kern", "sk")?,
        sk_net: btf.offset("sock_common", "skc_net")?,
        net_devices: btf.offset("net", "dev_base_head")?,
        dev_list: btf.offset("net_device", "dev_list")?,
        dev_flags: btf.offset("net_device", "flags")?,
        dev_ip: btf.offset("net_device", "ip_ptr")?,
        dev_ip6: btf.offset("net_device", "ip6_ptr")?,
        in_addrs: btf.offset("in_device", "ifa_list")?,
        ifa_local: btf.offset("in_ifaddr", "ifa_local")?,
        in6_addrs: btf.offset("inet6_dev", "addr_list")?,
        ifa6_list: btf.offset("inet6_ifaddr", "if_list")?,
        ifa6_addr: btf.offset("inet6_ifaddr", "addr")?,
        ifa_next: btf.offset("in_ifaddr", "ifa_next")?,
        pad: [0; 3],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(indexes: &[u32]) -> Facts {
        let interface = |index: &u32| Interface {
            index: *index,
            kind: None,
            name: format!("eth{index}"),
            master: None,
            is_ethernet: true,
            ips: Vec::new(),
        };
        Facts {
            interfaces: indexes.iter().map(interface).collect(),
            ..Facts::default()
        }
    }

    #[test]
    fn an_interface_is_gone_only_when_the_kernel_says_so_of_it_alone() {
        let known = BTreeSet::from([2, 3]);
        let there = |all: &'static [u32]| move |index| Ok(all.contains(&index));
        for (listed, there, expect) in [
            (&[1, 2, 3][..], there(&[2, 3]), None),
            // Missing from the list, and there.
            (&[1, 3], there(&[2, 3]), Some(2)),
            // Really gone.
            (&[1, 3], there(&[3]), None),
            (&[1], there(&[3]), Some(3)),
            // A new one is nobody's question.
            (&[2, 3, 4], there(&[]), None),
        ] {
            let found = left_out(&known, &facts(listed), there).unwrap();
            assert_eq!(found, expect, "{listed:?}");
        }
        let refused = |_| Err(linux::Error::other("ask", "refused"));
        assert!(left_out(&known, &facts(&[1]), refused).is_err());
    }
}
