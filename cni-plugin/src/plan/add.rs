//! ADD: the pair, its port, the pod's addresses and routes.

use std::net::IpAddr;

use api::cni::{self, Dns, Error, ErrorCode};
use ipnetwork::IpNetwork;

use super::addition::{self, Addition, entries_of};
use super::bridge::plan_bridge;
use super::{alias, host_link_name, mac_of, mac_of_owner};
use crate::ipam::Lease;
use crate::observe::Observed;
use crate::request::{Net, Pod};
use crate::step::{
    Addr, LinkChange, Mac, NewVeth, PROTOCOL_BOOT, PortVlan, Route, Scope, Side, Step,
};

/// The VLAN that every port of a bridge is in from the start.
const DEFAULT_VLAN: u16 = 1;

/// Everything ADD does, and what the result tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddPlan {
    /// Changes, in order.
    pub steps: Vec<Step>,
    /// The node's end of the pair.
    pub host_link: String,
    /// Its hardware address.
    pub host_mac: Mac,
    /// The hardware address of the pod's end.
    pub pod_mac: Mac,
    /// The bridge's hardware address.
    pub bridge_mac: Option<Mac>,
    /// The pod's routes, as they were asked for.
    pub routes: Vec<cni::Route>,
    /// Host ports and rate limits.
    pub addition: Addition,
}

/// What the allocator, or a plugin in its place, gives a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// Addresses with their gateways.
    pub leases: Vec<Lease>,
    /// Routes.
    pub routes: Vec<cni::Route>,
    /// Name servers.
    pub dns: Dns,
}

impl Addresses {
    /// Of the built-in allocator.
    pub fn leased(net: &Net, leases: Vec<Lease>, dns: Dns) -> Self {
        let routes = net.ipam.iter().flat_map(|ipam| ipam.routes.clone());
        Self {
            leases,
            routes: routes.collect(),
            dns,
        }
    }

    fn gateway_of(&self, ipv4: bool) -> Option<IpAddr> {
        let mut leases = self.leases.iter();
        leases.find(|l| l.address.is_ipv4() == ipv4)?.gateway
    }

    fn has(&self, ipv4: bool) -> bool {
        self.leases.iter().any(|l| l.address.is_ipv4() == ipv4)
    }
}

/// Whether the pair is made before there are addresses: a plugin that gives them may need it, as DHCP
/// does.
fn is_wired_first(net: &Net) -> bool {
    net.ipam_plugin.is_some()
}

/// Plans what comes before a plugin is asked for addresses: the bridge and the pair, so that packets
/// pass.
///
/// # Errors
/// As [`plan_add`].
pub fn plan_wire(net: &Net, pod: &Pod, seen: &Observed) -> Result<Vec<Step>, Error> {
    refuse_second(pod, seen)?;
    let (mut steps, _) = plan_bridge(net, &[], seen)?;
    let host_link = host_link_name(&net.name, &pod.owner);
    steps.extend(plan_pair(
        net,
        pod,
        &host_link,
        pod_mac(net, pod, &[]),
        seen,
    ));
    if net.bridge.container_interface {
        let up = LinkChange::up();
        steps.push(Step::SetLink(Side::Pod, pod.owner.ifname.clone(), up));
        steps.push(Step::AwaitPort(host_link));
    }
    Ok(steps)
}

/// Plans ADD; what is left of it where [`plan_wire`] came before.
///
/// # Errors
/// The pod has the interface already, or the bridge cannot serve this network.
pub fn plan_add(
    net: &Net,
    pod: &Pod,
    addresses: &Addresses,
    seen: &Observed,
) -> Result<AddPlan, Error> {
    let ifname = &pod.owner.ifname;
    let leases = &addresses.leases;
    let host_link = host_link_name(&net.name, &pod.owner);
    let pod_mac = pod_mac(net, pod, leases);
    if !is_wired_first(net) {
        refuse_second(pod, seen)?;
    }
    let (mut steps, bridge_mac) = plan_bridge(net, leases, seen)?;
    if !is_wired_first(net) {
        steps.extend(plan_pair(net, pod, &host_link, pod_mac, seen));
    }
    let routes = pod_routes(net, addresses);
    if net.bridge.container_interface {
        steps.extend(plan_inside(net, pod, addresses, seen));
        for route in &routes {
            let gateway = addresses.gateway_of(route.dst.is_ipv4());
            let route = kernel_route(route, gateway, ifname);
            steps.push(Step::AddRoute(Side::Pod, route));
        }
        if net.bridge.detect_duplicates && addresses.has(false) {
            steps.push(Step::AwaitAddrs(ifname.clone()));
        }
    }
    let mut entries = entries_of(net, &pod.owner, leases);
    if net.bridge.check_mac {
        entries.guard = Some((host_link.clone(), pod_mac));
    }
    let target = addition::Target {
        host_link: Some((host_link.clone(), net.bridge.mtu.or(seen.bridge_mtu()))),
        route_dev: Some(net.bridge.gateway_link()),
        localnet: false,
    };
    let addition = addition::plan_addition(net, &pod.owner, entries, &target)?;
    steps.extend(addition.steps.iter().cloned());
    if net.bridge.container_interface {
        steps.push(Step::AwaitPort(host_link.clone()));
    }
    Ok(AddPlan {
        steps,
        host_link,
        host_mac: host_mac(net, pod),
        pod_mac,
        bridge_mac,
        routes,
        addition,
    })
}

/// ADD must not come twice.
fn refuse_second(pod: &Pod, seen: &Observed) -> Result<(), Error> {
    let ifname = &pod.owner.ifname;
    if !seen.pod_links.contains(ifname) {
        return Ok(());
    }
    let why = format!(
        "CNI_IFNAME: {ifname} exists in {} already",
        pod.netns.display()
    );
    Err(Error::new(ErrorCode::INVALID_ENVIRONMENT, why))
}

/// The hardware address of the node's end.
fn host_mac(net: &Net, pod: &Pod) -> Mac {
    mac_of_owner(0x5b, &net.name, &pod.owner)
}

/// The hardware address of the pod's end. Where it follows from the address, neighbours that remember
/// another pod with it are right about this one.
fn pod_mac(net: &Net, pod: &Pod, leases: &[Lease]) -> Mac {
    let ipv4 = leases.iter().find(|l| l.address.is_ipv4());
    let first = ipv4.or(leases.first()).filter(|_| !is_wired_first(net));
    let natural = first.map_or_else(
        || mac_of_owner(0x5a, &net.name, &pod.owner),
        |lease| mac_of(lease.address.ip()),
    );
    pod.mac.unwrap_or(natural)
}

/// The pair, its port on the bridge, and the pod's `lo`.
fn plan_pair(net: &Net, pod: &Pod, host_link: &str, pod_mac: Mac, seen: &Observed) -> Vec<Step> {
    let mut steps = vec![Step::AddVeth(NewVeth {
        name: host_link.to_owned(),
        mac: Some(host_mac(net, pod)),
        mtu: net.bridge.mtu,
        master: Some(net.bridge.name.clone()),
        peer_name: pod.owner.ifname.clone(),
        peer_mac: Some(pod_mac),
        peer_netns: None,
    })];
    let port = LinkChange {
        hairpin: net.bridge.hairpin.then_some(true),
        isolated: net.bridge.isolated.then_some(true),
        alias: Some(alias(&net.name, &pod.owner)),
        ..LinkChange::up()
    };
    steps.push(Step::SetLink(Side::Node, host_link.to_owned(), port));
    steps.extend(port_vlans(net, host_link));
    if !seen.lo_up {
        steps.push(Step::SetLink(Side::Pod, "lo".to_owned(), LinkChange::up()));
    }
    steps
}

/// The pod's end: up, with its addresses.
fn plan_inside(net: &Net, pod: &Pod, addresses: &Addresses, seen: &Observed) -> Vec<Step> {
    let ifname = &pod.owner.ifname;
    let mut steps = Vec::new();
    let sysctl = |key: String, value: &str| Step::EnsureSysctl(Side::Pod, key, value.to_owned());
    if addresses.has(false) && seen.pod_without_ipv6 {
        let key = format!("net/ipv6/conf/{ifname}/disable_ipv6");
        steps.push(sysctl(key, "0"));
    }
    let add = |lease: &Lease| {
        let mut addr = Addr::new(lease.address);
        addr.nodad &= !net.bridge.detect_duplicates;
        Step::EnsureAddr(Side::Pod, ifname.clone(), addr)
    };
    let up = Step::SetLink(Side::Pod, ifname.clone(), LinkChange::up());
    let is_wired = is_wired_first(net);
    if pod.mac.is_none() && !is_wired {
        steps.push(up);
        steps.extend(addresses.leases.iter().map(add));
        return steps;
    }
    // A hardware address that does not follow from the address: neighbours may remember another
    // one, so it is announced. The kernel does that for IPv4 when a link with addresses comes up,
    // for IPv6 when an address is ready.
    for (ipv4, key) in [(true, "ipv4"), (false, "ipv6")] {
        if addresses.has(ipv4) {
            let name = if ipv4 { "arp_notify" } else { "ndisc_notify" };
            steps.push(sysctl(format!("net/{key}/conf/{ifname}/{name}"), "1"));
        }
    }
    if is_wired {
        steps.push(Step::SetLink(Side::Pod, ifname.clone(), LinkChange::down()));
    }
    let (v4, v6): (Vec<&Lease>, Vec<&Lease>) =
        addresses.leases.iter().partition(|l| l.address.is_ipv4());
    steps.extend(v4.into_iter().map(add));
    steps.push(up);
    steps.extend(v6.into_iter().map(add));
    steps
}

/// VLANs of the pod's port.
fn port_vlans(net: &Net, host_link: &str) -> Vec<Step> {
    let Some(vlans) = &net.bridge.vlans else {
        return Vec::new();
    };
    let put = |vlan: PortVlan| Step::AddPortVlan(host_link.to_owned(), vlan);
    let mut steps = Vec::new();
    steps.extend(vlans.id.map(|id| {
        put(PortVlan {
            first: id,
            last: id,
            untagged: true,
        })
    }));
    steps.extend(vlans.trunk.iter().copied().map(put));
    if !vlans.preserve_default && vlans.id != Some(DEFAULT_VLAN) {
        let vlan = PortVlan {
            first: DEFAULT_VLAN,
            last: DEFAULT_VLAN,
            untagged: false,
        };
        steps.push(Step::RemovePortVlan(host_link.to_owned(), vlan));
    }
    steps
}

/// The pod's routes: those that were asked for, and a default route for each family that has none
/// yet, if the network gives one.
fn pod_routes(net: &Net, addresses: &Addresses) -> Vec<cni::Route> {
    let mut routes = addresses.routes.clone();
    // A route of a family that the pod has no address of leads nowhere.
    routes.retain(|route| addresses.has(route.dst.is_ipv4()));
    if net.bridge.default_route {
        for lease in &addresses.leases {
            let Some(gateway) = lease.gateway else {
                continue;
            };
            let any = any(gateway);
            if routes.iter().all(|route| route.dst != any) {
                routes.push(cni::Route::to(any, Some(gateway)));
            }
        }
    }
    routes
}

/// The network of all addresses of the family of `ip`.
fn any(ip: IpAddr) -> IpNetwork {
    let zero: IpAddr = if ip.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    // A length of zero always fits.
    IpNetwork::new(zero, 0).unwrap_or_else(|_fits| zero.into())
}

/// `gateway`: where a route goes that names no next hop.
fn kernel_route(route: &cni::Route, gateway: Option<IpAddr>, ifname: &str) -> Route {
    let mut to = Route::to(route.dst).dev(ifname);
    // `RT_SCOPE_LINK`, `RT_SCOPE_HOST`: the destination itself is on the link.
    let scope = route.scope.and_then(|scope| match scope {
        253 => Some(Scope::Link),
        254 => Some(Scope::Host),
        _ => None,
    });
    to.gateway = route.gw.or(gateway.filter(|_| scope.is_none()));
    to.scope = scope;
    to.mtu = route.mtu;
    to.advmss = route.advmss;
    to.metric = route.priority;
    to.table = route.table.unwrap_or(to.table);
    // The pod's own routing table shows what it shows with the reference plugins.
    to.protocol = PROTOCOL_BOOT;
    to
}
