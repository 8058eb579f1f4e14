//! What a plan needs to know of node and pod. Nothing here changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::cni::Attachment;
use ipnetwork::IpNetwork;
use linux::link::Link;
use linux::route::{RouteFilter, TABLE_ANY, TABLE_LOCAL};
use linux::shape::TokenBucket;
use linux::{Host, Mac, Result};

use crate::apply::Hosts;
use crate::ipam::{Range, RangeSet};
use crate::plan::{Target, alias_prefix, host_link_name, ifb_name, is_ours};
use crate::request::Net;

/// What ADD builds on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The bridge, if there is a link of its name.
    pub bridge: Option<BridgeSeen>,
    /// The node forwards IPv4.
    pub forwards_ipv4: bool,
    /// The node forwards IPv6.
    pub forwards_ipv6: bool,
    /// The pod's `lo` is up.
    pub lo_up: bool,
    /// Names of the pod's links.
    pub pod_links: BTreeSet<String>,
    /// New links of the pod come without IPv6.
    pub pod_without_ipv6: bool,
}

impl Observed {
    /// The bridge's MTU, which a pod's link without one of its own has too.
    pub fn bridge_mtu(&self) -> Option<u32> {
        self.bridge.as_ref().map(|bridge| bridge.mtu)
    }
}

/// A link of the bridge's name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BridgeSeen {
    /// `bridge`, if it is one.
    pub kind: Option<String>,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// It is up.
    pub up: bool,
    /// It receives all packets.
    pub promisc: bool,
    /// Its addresses.
    pub addrs: Vec<IpNetwork>,
    /// Packets stay within their VLANs.
    pub vlan_filtering: bool,
    /// How many ports it has; only counted when it lacks a gateway's address.
    pub ports: usize,
}

/// Settings that make the node a router.
pub const FORWARD_IPV4: &str = "net/ipv4/ip_forward";
/// See [`FORWARD_IPV4`].
pub const FORWARD_IPV6: &str = "net/ipv6/conf/all/forwarding";
/// Whether new links of a namespace come without IPv6.
const WITHOUT_IPV6: &str = "net/ipv6/conf/default/disable_ipv6";

/// Looks at what ADD builds on.
///
/// # Errors
/// The kernel's refusal.
pub fn observe_add(net: &Net, node: &mut dyn Host, pod: &mut dyn Host) -> Result<Observed> {
    let sets = net.ipam.as_ref().map_or(&[][..], |ipam| &ipam.sets);
    // A plugin that gives addresses may give any.
    let foreign = net.ipam_plugin.is_some();
    let (ipv6, ipv4) = (
        foreign || sets.iter().any(|s| s.is_ipv6()),
        foreign || sets.iter().any(|s| !s.is_ipv6()),
    );
    let mut bridge = observe_bridge(&net.bridge.name, node)?;
    if let Some(there) = &mut bridge
        && net.bridge.gateway
        && (foreign || !sets.iter().all(|set| has_gateway(set, &there.addrs)))
    {
        // Rare, so the list is not on the way of an ordinary ADD.
        there.ports = count_ports(&net.bridge.name, node)?;
    }
    let pod_links = pod.links()?;
    Ok(Observed {
        bridge,
        // What is not asked for need not be changed, so it counts as done.
        forwards_ipv4: !ipv4 || node.sysctl(FORWARD_IPV4)? != "0",
        forwards_ipv6: !ipv6 || node.sysctl(FORWARD_IPV6)? != "0",
        lo_up: pod_links.iter().any(|link| link.name == "lo" && link.up),
        pod_without_ipv6: ipv6 && pod.sysctl(WITHOUT_IPV6)? != "0",
        pod_links: pod_links.into_iter().map(|link| link.name).collect(),
    })
}

/// Whether the bridge has the gateway of any range of `set`.
fn has_gateway(set: &RangeSet, addrs: &[IpNetwork]) -> bool {
    let there = |range: &Range| addrs.iter().any(|addr| addr.ip() == range.gateway);
    set.ranges().iter().any(there)
}

/// How many links are ports of the bridge.
fn count_ports(name: &str, node: &mut dyn Host) -> Result<usize> {
    let links = node.links()?;
    let index = links
        .iter()
        .find(|link| link.name == name)
        .map(|link| link.index);
    Ok(links
        .iter()
        .filter(|link| link.master.is_some() && link.master == index)
        .count())
}

fn observe_bridge(name: &str, node: &mut dyn Host) -> Result<Option<BridgeSeen>> {
    let Some(link) = node.link(name)? else {
        return Ok(None);
    };
    let addrs = match node.addrs(name) {
        // Deleted in this moment.
        Err(e) if e.is_not_found() => return Ok(None),
        addrs => addrs?,
    };
    let Link {
        kind,
        mac,
        mtu,
        up,
        promisc,
        vlan_filtering,
        ..
    } = link;
    let addrs = addrs.into_iter().map(|addr| addr.net).collect();
    Ok(Some(BridgeSeen {
        kind,
        mac,
        mtu,
        up,
        promisc,
        vlan_filtering,
        addrs,
        ports: 0,
    }))
}

/// What CHECK compares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    /// The bridge.
    pub bridge: Option<BridgeSeen>,
    /// The bridge's index.
    pub bridge_index: Option<u32>,
    /// The node's end of the pair.
    pub host_link: Option<Link>,
    /// The pod's end of the pair.
    pub pod_link: Option<Link>,
    /// Addresses of the pod's end.
    pub addrs: Vec<IpNetwork>,
    /// Destinations and gateways of the pod's routes, in whatever table: plugins behind ours (`sbr`,
    /// `vrf`) move them to tables of their own.
    pub routes: Vec<(IpNetwork, Option<IpAddr>)>,
    /// Rate limits.
    pub limits: Limits,
    /// Entries of the firewall that are not there, in words.
    pub entries_missing: Vec<String>,
}

/// Rate limits of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// On what goes to it.
    pub ingress: Option<TokenBucket>,
    /// On what comes from it.
    pub egress: Option<TokenBucket>,
}

/// Looks at the rate limits of a pod whose link ends on the node as `host_link`. What nobody asked
/// for is not looked at.
///
/// # Errors
/// The kernel's refusal.
pub fn observe_limits(
    net: &Net,
    owner: &Attachment,
    host_link: Option<&str>,
    node: &mut dyn Host,
) -> Result<Limits> {
    let mut bucket = |link: Option<&str>, wanted: bool| match link {
        Some(link) if wanted => match node.token_bucket(link) {
            Err(e) if e.is_not_found() => Ok(None),
            found => found,
        },
        _ => Ok(None),
    };
    let ifb = ifb_name(&net.name, owner);
    Ok(Limits {
        ingress: bucket(host_link, net.shaping.ingress.is_some())?,
        egress: bucket(Some(&ifb), net.shaping.egress.is_some())?,
    })
}

/// Looks at what a pod of another plugin has on the node: its end of the pod's link, and the link by
/// which the pod is reached.
///
/// # Errors
/// The kernel's refusal.
pub fn observe_target(
    net: &Net,
    ifname: &str,
    addresses: &[IpAddr],
    node: &mut dyn Host,
    pod: &mut dyn Host,
) -> Result<Target> {
    let mut target = Target::default();
    if !net.shaping.is_empty() {
        let peer = pod.link(ifname)?.and_then(|link| link.peer);
        let links = node.links()?.into_iter();
        let veth = |link: &Link| link.kind.as_deref() == Some("veth");
        // Both ends of a pair name each other; numbers of other namespaces may be equal.
        let end = links.filter(veth).find(|link| Some(link.index) == peer);
        target.host_link = end.map(|link| (link.name, Some(link.mtu)));
    }
    let ipv4 = addresses.iter().copied().find(IpAddr::is_ipv4);
    if let Some(address) = ipv4.filter(|_| !net.ports.mappings.is_empty()) {
        let of_ipv4 = RouteFilter {
            ipv6: Some(false),
            ..RouteFilter::default()
        };
        let routes = node.routes(&of_ipv4)?.into_iter();
        let to_pod = routes.filter(|route| route.dst.contains(address));
        target.route_dev = to_pod.max_by_key(|r| r.dst.prefix()).and_then(|r| r.dev);
    }
    Ok(target)
}

/// Looks at what ADD has left.
///
/// # Errors
/// The kernel's refusal.
pub fn observe_check(
    net: &Net,
    host_link: &str,
    owner: &Attachment,
    node: &mut dyn Host,
    pod: &mut dyn Host,
) -> Result<Attached> {
    let ifname = &owner.ifname;
    let pod_link = pod.link(ifname)?;
    let mut seen = Attached {
        bridge: observe_bridge(&net.bridge.name, node)?,
        bridge_index: node.link(&net.bridge.name)?.map(|link| link.index),
        host_link: node.link(host_link)?,
        limits: observe_limits(net, owner, Some(host_link), node)?,
        ..Attached::default()
    };
    if pod_link.is_some() {
        seen.addrs = pod
            .addrs(ifname)?
            .into_iter()
            .map(|addr| addr.net)
            .collect();
        let of_link = RouteFilter {
            dev: Some(ifname),
            table: Some(TABLE_ANY),
            ..RouteFilter::default()
        };
        let routes = pod.routes(&of_link)?;
        seen.routes = routes
            .into_iter()
            // The kernel's own, of each address.
            .filter(|route| route.table != TABLE_LOCAL)
            .map(|route| (route.dst, route.gateway))
            .collect();
    }
    seen.pod_link = pod_link;
    Ok(seen)
}

/// What DEL finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leftover {
    /// The node's end of the pair is there.
    pub host_link: bool,
    /// The node's end is not there, but the pod has a veth under the interface's name, and no other
    /// plugin made it.
    pub pod_link: bool,
    /// The device that holds back what comes from the pod is there.
    pub ifb: bool,
}

/// Looks at what DEL has to remove.
///
/// # Errors
/// The kernel's refusal.
pub fn observe_del(net: &Net, owner: &Attachment, hosts: &mut Hosts<'_>) -> Result<Leftover> {
    let node = &mut hosts.node;
    let ifb = node.link(&ifb_name(&net.name, owner))?.is_some();
    let host_link = node.link(&host_link_name(&net.name, owner))?.is_some();
    if host_link || !net.makes_link {
        return Ok(Leftover {
            host_link,
            pod_link: false,
            ifb,
        });
    }
    let link = match &mut hosts.pod {
        Some(pod) => pod.link(&owner.ifname)?,
        None => None,
    };
    let pod_link = link.is_some_and(|link| link.kind.as_deref() == Some("veth"));
    Ok(Leftover {
        host_link,
        pod_link,
        ifb,
    })
}

/// Names and aliases of the node's links that have one, for GC. A link of ours that got its alias
/// never, since whoever made it was killed, is told by its name: a veth on our bridge, or an `ifb`.
///
/// # Errors
/// The kernel's refusal.
pub fn observe_gc(net: &Net, node: &mut dyn Host) -> Result<BTreeMap<String, String>> {
    let links = node.links()?;
    let bridge = links.iter().find(|link| link.name == net.bridge.name);
    let bridge = bridge.map(|link| link.index);
    let unfinished = |link: &Link| match link.kind.as_deref() {
        Some("veth") => link.master.is_some() && link.master == bridge && is_ours(&link.name),
        Some("ifb") => !link.up && is_ours(&link.name),
        _ => false,
    };
    let named = |link: Link| match link.alias {
        Some(alias) => Some((link.name, alias)),
        None if unfinished(&link) => Some((link.name, alias_prefix(&net.name))),
        None => None,
    };
    Ok(links.iter().cloned().filter_map(named).collect())
}
