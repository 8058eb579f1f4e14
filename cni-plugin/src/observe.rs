//! What a plan needs to know of node and pod. Nothing here changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::cni::Attachment;
use ipnetwork::IpNetwork;
use linux::link::Link;
use linux::route::RouteFilter;
use linux::{Host, Mac, Result};

use crate::apply::Hosts;
use crate::ipam::{Range, RangeSet};
use crate::plan::host_link_name;
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
    let (ipv6, ipv4) = (
        sets.iter().any(|s| s.is_ipv6()),
        sets.iter().any(|s| !s.is_ipv6()),
    );
    let mut bridge = observe_bridge(&net.bridge.name, node)?;
    if let Some(there) = &mut bridge
        && net.bridge.gateway
        && !sets.iter().all(|set| has_gateway(set, &there.addrs))
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
        ..
    } = link;
    let addrs = addrs.into_iter().map(|addr| addr.net).collect();
    Ok(Some(BridgeSeen {
        kind,
        mac,
        mtu,
        up,
        promisc,
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
    /// Destinations and gateways of the pod's routes.
    pub routes: Vec<(IpNetwork, Option<IpAddr>)>,
}

/// Looks at what ADD has left.
///
/// # Errors
/// The kernel's refusal.
pub fn observe_check(
    net: &Net,
    host_link: &str,
    ifname: &str,
    node: &mut dyn Host,
    pod: &mut dyn Host,
) -> Result<Attached> {
    let pod_link = pod.link(ifname)?;
    let mut seen = Attached {
        bridge: observe_bridge(&net.bridge.name, node)?,
        bridge_index: node.link(&net.bridge.name)?.map(|link| link.index),
        host_link: node.link(host_link)?,
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
            ..RouteFilter::default()
        };
        let routes = pod.routes(&of_link)?;
        seen.routes = routes
            .into_iter()
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
    /// The node's end is not there, but the pod has a veth under the interface's name.
    pub pod_link: bool,
}

/// Looks at what DEL has to remove.
///
/// # Errors
/// The kernel's refusal.
pub fn observe_del(net: &Net, owner: &Attachment, hosts: &mut Hosts<'_>) -> Result<Leftover> {
    if hosts
        .node
        .link(&host_link_name(&net.name, owner))?
        .is_some()
    {
        return Ok(Leftover {
            host_link: true,
            pod_link: false,
        });
    }
    let link = match &mut hosts.pod {
        Some(pod) => pod.link(&owner.ifname)?,
        None => None,
    };
    let pod_link = link.is_some_and(|link| link.kind.as_deref() == Some("veth"));
    Ok(Leftover {
        host_link: false,
        pod_link,
    })
}

/// Names and aliases of the node's links that have one, for GC.
///
/// # Errors
/// The kernel's refusal.
pub fn observe_gc(node: &mut dyn Host) -> Result<BTreeMap<String, String>> {
    let links = node.links()?.into_iter();
    Ok(links
        .filter_map(|link| Some((link.name, link.alias?)))
        .collect())
}
