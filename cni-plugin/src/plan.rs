//! Plans: what to change, in which order, given what is asked for and what is there. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::cni::{self, AddResult, Attachment, Error, ErrorCode};
use ipnetwork::IpNetwork;

use crate::ipam::Lease;
use crate::observe::{Attached, BridgeSeen, FORWARD_IPV4, FORWARD_IPV6, Leftover, Observed};
use crate::request::{BridgeConf, Net, Pod};
use crate::step::{Addr, LinkChange, Mac, NewBridge, NewVeth, PROTOCOL_BOOT, Route, Side, Step};

/// The kernel's limit for a link's alias in bytes (`IFALIASZ` less one).
const ALIAS_BYTES_MAX: usize = 255;

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
    /// The pod's routes.
    pub routes: Vec<cni::Route>,
}

/// A name for the node's end of the pair that follows from whom it belongs to, so that it is found
/// again when the pod's namespace is gone. 44 bits of a hash: two pods of a node do not meet.
pub fn host_link_name(network: &str, owner: &Attachment) -> String {
    format!("veth{:011x}", owner_hash(network, owner) & 0xfff_ffff_ffff)
}

/// What marks the node's end of a pair: all links of `network` start with it.
pub fn alias_prefix(network: &str) -> String {
    format!("seaway:{network}:")
}

fn alias(network: &str, owner: &Attachment) -> String {
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
fn mac_of(ip: IpAddr) -> Mac {
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
fn mac_of_owner(kind: u8, network: &str, owner: &Attachment) -> Mac {
    let [.., a, b, c, d] = owner_hash(network, owner).to_be_bytes();
    Mac::local([kind, a, b, c, d])
}

/// Plans ADD.
///
/// # Errors
/// The pod has the interface already, or the bridge cannot serve this network.
pub fn plan_add(net: &Net, pod: &Pod, leases: &[Lease], seen: &Observed) -> Result<AddPlan, Error> {
    let ifname = &pod.owner.ifname;
    if seen.pod_links.contains(ifname) {
        let why = format!(
            "CNI_IFNAME: {ifname} exists in {} already",
            pod.netns.display()
        );
        return Err(Error::new(ErrorCode::INVALID_ENVIRONMENT, why));
    }
    let (mut steps, bridge_mac) = plan_bridge(net, leases, seen)?;
    let host_link = host_link_name(&net.name, &pod.owner);
    let host_mac = mac_of_owner(0x5b, &net.name, &pod.owner);
    let first = leases
        .iter()
        .find(|l| l.address.is_ipv4())
        .or(leases.first());
    let natural = first.map_or_else(
        || mac_of_owner(0x5a, &net.name, &pod.owner),
        |lease| mac_of(lease.address.ip()),
    );
    let pod_mac = pod.mac.unwrap_or(natural);
    steps.push(Step::AddVeth(NewVeth {
        name: host_link.clone(),
        mac: Some(host_mac),
        mtu: net.bridge.mtu,
        master: Some(net.bridge.name.clone()),
        peer_name: ifname.clone(),
        peer_mac: Some(pod_mac),
        peer_netns: None,
    }));
    let port = LinkChange {
        hairpin: net.bridge.hairpin.then_some(true),
        isolated: net.bridge.isolated.then_some(true),
        alias: Some(alias(&net.name, &pod.owner)),
        ..LinkChange::up()
    };
    steps.push(Step::SetLink(Side::Node, host_link.clone(), port));
    if !seen.lo_up {
        steps.push(Step::SetLink(Side::Pod, "lo".to_owned(), LinkChange::up()));
    }
    let has_ipv6 = leases.iter().any(|lease| lease.address.is_ipv6());
    if has_ipv6 && seen.pod_without_ipv6 {
        let key = format!("net/ipv6/conf/{ifname}/disable_ipv6");
        steps.push(Step::EnsureSysctl(Side::Pod, key, "0".to_owned()));
    }
    steps.push(Step::SetLink(Side::Pod, ifname.clone(), LinkChange::up()));
    for lease in leases {
        let addr = Addr::new(lease.address);
        steps.push(Step::EnsureAddr(Side::Pod, ifname.clone(), addr));
    }
    let routes = pod_routes(net, leases);
    for route in &routes {
        steps.push(Step::AddRoute(Side::Pod, kernel_route(route, ifname)));
    }
    steps.push(Step::AwaitPort(host_link.clone()));
    Ok(AddPlan {
        steps,
        host_link,
        host_mac,
        pod_mac,
        bridge_mac,
        routes,
    })
}

/// The gateways' addresses, each with its subnet's length.
fn gateways(net: &Net, leases: &[Lease]) -> Vec<IpNetwork> {
    if !net.bridge.gateway {
        return Vec::new();
    }
    // The length comes from a network of the same family, so it always fits.
    let with_length = |l: &Lease| IpNetwork::new(l.gateway, l.address.prefix()).ok();
    leases.iter().filter_map(with_length).collect()
}

fn plan_bridge(
    net: &Net,
    leases: &[Lease],
    seen: &Observed,
) -> Result<(Vec<Step>, Option<Mac>), Error> {
    let conf = &net.bridge;
    let name = || conf.name.clone();
    let gateways = gateways(net, leases);
    let mut steps = Vec::new();
    let nothing = BridgeSeen::default();
    let (there, mac) = match &seen.bridge {
        Some(there) if there.kind.as_deref() != Some("bridge") => {
            let kind = there.kind.as_deref().unwrap_or("network device");
            let why = format!("bridge: {} exists and is a {kind}, not a bridge", conf.name);
            return Err(Error::new(ErrorCode::INVALID_CONFIG, why));
        }
        Some(there) => (there, there.mac),
        None => {
            let first = gateways.iter().find(|g| g.is_ipv4()).or(gateways.first());
            let mac = first.map(|gateway| mac_of(gateway.ip()));
            steps.push(Step::EnsureBridge(NewBridge {
                name: name(),
                mac,
                mtu: conf.mtu,
            }));
            if gateways.iter().any(IpNetwork::is_ipv6) {
                // The node routes for its pods; a pod must not route for the node.
                let key = format!("net/ipv6/conf/{}/accept_ra", conf.name);
                steps.push(Step::EnsureSysctl(Side::Node, key, "0".to_owned()));
            }
            (&nothing, mac)
        }
    };
    let promisc = (conf.promisc && !there.promisc).then_some(true);
    if !there.up || promisc.is_some() {
        let change = LinkChange {
            promisc,
            ..LinkChange::up()
        };
        steps.push(Step::SetLink(Side::Node, name(), change));
    }
    for gateway in &gateways {
        if there.addrs.contains(gateway) {
            continue;
        }
        for other in conflicting(conf, there, *gateway, &gateways)? {
            steps.push(Step::RemoveAddr(Side::Node, name(), other));
        }
        steps.push(Step::EnsureAddr(Side::Node, name(), Addr::new(*gateway)));
    }
    if conf.gateway {
        for (done, key) in [
            (seen.forwards_ipv4, FORWARD_IPV4),
            (seen.forwards_ipv6, FORWARD_IPV6),
        ] {
            if !done {
                steps.push(Step::EnsureSysctl(
                    Side::Node,
                    key.to_owned(),
                    "1".to_owned(),
                ));
            }
        }
    }
    Ok((steps, mac))
}

/// Addresses of the bridge that have to go for `gateway`: another network of IPv4, or an IPv6
/// network that overlaps with it. Without pods on the bridge nobody needs them: they are of a
/// cluster that this node was in before.
fn conflicting(
    conf: &BridgeConf,
    there: &BridgeSeen,
    gateway: IpNetwork,
    gateways: &[IpNetwork],
) -> Result<Vec<IpNetwork>, Error> {
    let overlap = |a: &IpNetwork, b: &IpNetwork| a.contains(b.network()) || b.contains(a.network());
    let in_the_way = |other: &&IpNetwork| match (other, &gateway) {
        (IpNetwork::V4(_), IpNetwork::V4(_)) => !gateways.contains(other),
        (IpNetwork::V6(_), IpNetwork::V6(_)) => overlap(other, &gateway),
        _ => false,
    };
    let others: Vec<IpNetwork> = there.addrs.iter().filter(in_the_way).copied().collect();
    match others.first() {
        Some(other) if !conf.force_address && there.ports > 0 => {
            let why = format!(
                "bridge: {} has address {other} and {} pods, the network wants {gateway}; \
                 set forceAddress to replace it",
                conf.name, there.ports
            );
            Err(Error::new(ErrorCode::INVALID_CONFIG, why))
        }
        _ => Ok(others),
    }
}

/// The pod's routes: those of the configuration, and a default route for each family that has none
/// yet, if the network gives one.
fn pod_routes(net: &Net, leases: &[Lease]) -> Vec<cni::Route> {
    let gateway_of = |dst: &IpNetwork| {
        leases
            .iter()
            .find(|l| l.address.is_ipv4() == dst.is_ipv4())
            .map(|l| l.gateway)
    };
    let mut routes = Vec::new();
    for route in net.ipam.iter().flat_map(|ipam| &ipam.routes) {
        // A route of a family that the pod has no address of leads nowhere.
        let Some(gateway) = gateway_of(&route.dst) else {
            continue;
        };
        routes.push(cni::Route {
            gw: route.gw.or(Some(gateway)),
            ..route.clone()
        });
    }
    if net.bridge.default_route {
        for lease in leases {
            let any = any(lease.gateway);
            if routes.iter().all(|route| route.dst != any) {
                let gw = Some(lease.gateway);
                routes.push(cni::Route {
                    dst: any,
                    gw,
                    mtu: None,
                    priority: None,
                    table: None,
                });
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

fn kernel_route(route: &cni::Route, ifname: &str) -> Route {
    let mut to = Route::to(route.dst).dev(ifname);
    to.gateway = route.gw;
    to.mtu = route.mtu;
    to.metric = route.priority;
    to.table = route.table.unwrap_or(to.table);
    // The pod's own routing table shows what it shows with the reference plugins.
    to.protocol = PROTOCOL_BOOT;
    to
}

/// Plans DEL. The link goes first: an address must not be free while an interface still has it.
pub fn plan_del(net: &Net, owner: &Attachment, seen: &Leftover) -> Vec<Step> {
    let mut steps = Vec::new();
    if seen.host_link {
        steps.push(Step::RemoveLink(
            Side::Node,
            host_link_name(&net.name, owner),
        ));
    }
    if seen.pod_link {
        steps.push(Step::RemoveLink(Side::Pod, owner.ifname.clone()));
    }
    steps
}

/// Plans GC: removes the links of this network whose owner is not to be kept. `links` are names
/// and aliases of the node's links.
pub fn plan_gc(net: &Net, valid: &[Attachment], links: &BTreeMap<String, String>) -> Vec<Step> {
    let keep: Vec<String> = valid
        .iter()
        .map(|owner| host_link_name(&net.name, owner))
        .collect();
    let prefix = alias_prefix(&net.name);
    let ours = links.iter().filter(|(_, alias)| alias.starts_with(&prefix));
    ours.filter(|(name, _)| !keep.contains(name))
        .map(|(name, _)| Step::RemoveLink(Side::Node, name.clone()))
        .collect()
}

/// Compares what is there with the result of ADD.
///
/// # Errors
/// Everything that is not as it was.
pub fn check(
    net: &Net,
    pod: &Pod,
    previous: &AddResult,
    leased: &[IpAddr],
    seen: &Attached,
) -> Result<(), Error> {
    let mut wrong = Vec::new();
    let (ifname, bridge) = (&pod.owner.ifname, &net.bridge.name);
    let host_link = host_link_name(&net.name, &pod.owner);
    let inside = previous
        .interfaces
        .iter()
        .find(|i| i.name == *ifname && !i.sandbox.is_empty());
    if inside.is_none() && !previous.interfaces.is_empty() {
        wrong.push(format!("prevResult has no interface {ifname} in the pod"));
    }
    check_links(net, seen, &host_link, &mut wrong);
    match &seen.pod_link {
        None => wrong.push(format!("{ifname} is not there")),
        Some(link) => {
            let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
            let wanted = inside.map(|i| i.mac.as_str()).filter(|mac| !mac.is_empty());
            if let Some(wanted) = wanted.filter(|wanted| !wanted.eq_ignore_ascii_case(&mac)) {
                wrong.push(format!("{ifname} has hardware address {mac}, not {wanted}"));
            }
            if let Some(mtu) = inside.and_then(|i| i.mtu).filter(|mtu| *mtu != link.mtu) {
                wrong.push(format!("{ifname} has mtu {}, not {mtu}", link.mtu));
            }
            if !link.up {
                wrong.push(format!("{ifname} is down"));
            }
        }
    }
    let addresses = previous.addresses_of(ifname);
    for address in &addresses {
        if !seen.addrs.contains(address) {
            wrong.push(format!("{ifname} has no address {address}"));
        }
        if net.ipam.is_some() && !leased.contains(&address.ip()) {
            wrong.push(format!("{} is not leased to this container", address.ip()));
        }
    }
    for route in &previous.routes {
        let there = |(dst, gw): &(IpNetwork, Option<IpAddr>)| {
            *dst == route.dst && (route.gw.is_none() || *gw == route.gw)
        };
        if route.table.is_none() && !seen.routes.iter().any(there) {
            wrong.push(format!("no route to {}", route.dst));
        }
    }
    if net.bridge.gateway {
        for gateway in previous.ips.iter().filter_map(|ip| ip.gateway) {
            let there = |b: &BridgeSeen| b.addrs.iter().any(|a| a.ip() == gateway);
            if !seen.bridge.as_ref().is_some_and(there) {
                wrong.push(format!("{bridge} has no address {gateway}"));
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let msg = format!("{} is not as ADD left it", pod.owner.container_id);
    Err(Error {
        details: wrong.join("; "),
        ..Error::new(ErrorCode::CHECK, msg)
    })
}

fn check_links(net: &Net, seen: &Attached, host_link: &str, wrong: &mut Vec<String>) {
    let bridge = &net.bridge.name;
    match &seen.bridge {
        None => wrong.push(format!("bridge {bridge} is not there")),
        Some(there) if !there.up => wrong.push(format!("bridge {bridge} is down")),
        Some(_) => {}
    }
    let Some(link) = &seen.host_link else {
        wrong.push(format!("{host_link} is not there"));
        return;
    };
    if !link.up {
        wrong.push(format!("{host_link} is down"));
    }
    if link.master.is_none() || link.master != seen.bridge_index {
        wrong.push(format!("{host_link} is not a port of {bridge}"));
    }
    if net.bridge.hairpin && !link.port.is_some_and(|port| port.hairpin) {
        wrong.push(format!("{host_link} has hairpin off"));
    }
}

#[cfg(test)]
mod tests;
