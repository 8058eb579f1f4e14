//! Which link leads to the other nodes.

use std::net::IpAddr;

use api::cidr::{Family, host_net, parse_ip};
use linux::addr::Addr;
use linux::link::Link;
use linux::route::{Kind, RouteFilter};
use linux::{Host, Result};

use super::model::{Own, PROTOCOL_SEAWAY, Settings, Underlay};
use super::node;

/// A link that could be the underlay, with its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The link.
    pub link: Link,
    /// Its addresses.
    pub addrs: Vec<Addr>,
}

impl Candidate {
    fn has(&self, ip: IpAddr) -> bool {
        self.addrs.iter().any(|addr| addr.net.ip() == ip)
    }
}

/// Why there is no underlay.
#[derive(Debug, thiserror::Error)]
pub enum NoUnderlay {
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] linux::Error),
    /// What was chosen leads to no link.
    #[error("{0}: no such link")]
    NotChosen(String),
    /// Neither the node's addresses nor a default route lead to one.
    #[error(
        "no link has one of the node's addresses {0:?}, and there is no default route: say --iface"
    )]
    NotFound(Vec<IpAddr>),
}

/// Finds the underlay: as chosen by `--iface` and its like; else the link with the address to be
/// told, or an address of the node; else the default route's.
///
/// # Errors
/// There is none, or the kernel refuses to list.
pub fn find(
    host: &mut dyn Host,
    settings: &Settings,
    own: &Own,
) -> std::result::Result<Underlay, NoUnderlay> {
    let candidates = candidates(host, settings)?;
    let wanted = wanted_ips(settings, own);
    let found = match chosen(host, settings, &candidates)? {
        Some(found) => found,
        None => by_itself(host, &candidates, &wanted)?,
    };
    let mut underlay = underlay(found, &wanted);
    if settings.backend.asks_for_neighbours() {
        underlay.routes = routes(host, &underlay.dev)?;
    }
    Ok(underlay)
}

/// The addresses to prefer, first the ones that were said.
fn wanted_ips(settings: &Settings, own: &Own) -> Vec<IpAddr> {
    let annotated = Family::BOTH.into_iter().filter_map(|family| {
        let text = own.annotations.get(node::annotations_of(family).chosen)?;
        node::public_ip(text, family)
    });
    let all = settings.public.iter().copied().chain(annotated);
    all.chain(own.ips.iter().copied()).collect()
}

/// What the flags choose, each in turn; `None` when there is no such flag.
fn chosen<'a>(
    host: &mut dyn Host,
    settings: &Settings,
    candidates: &'a [Candidate],
) -> std::result::Result<Option<&'a Candidate>, NoUnderlay> {
    let choice = &settings.iface;
    if choice.is_empty() {
        return Ok(None);
    }
    let mut tried = Vec::new();
    for name in &choice.names {
        let ip = parse_ip(name);
        let fits = |c: &&Candidate| c.link.name == *name || ip.is_some_and(|ip| c.has(ip));
        if let Some(found) = candidates.iter().find(fits) {
            return Ok(Some(found));
        }
        tried.push(format!("--iface {name}"));
    }
    for pattern in &choice.patterns {
        let fits = |c: &&Candidate| {
            let mut addrs = c.addrs.iter();
            addrs.any(|addr| pattern.matches(&addr.net.ip().to_string()))
                || pattern.matches(&c.link.name)
        };
        if let Some(found) = candidates.iter().find(fits) {
            return Ok(Some(found));
        }
        tried.push(format!("--iface-regex {pattern}"));
    }
    if let Some(ip) = choice.can_reach {
        let dev = host.route_to(ip)?.and_then(|route| route.dev);
        if let Some(found) = candidates
            .iter()
            .find(|c| dev.as_ref() == Some(&c.link.name))
        {
            return Ok(Some(found));
        }
        tried.push(format!("--iface-can-reach {ip}"));
    }
    Err(NoUnderlay::NotChosen(tried.join(", ")))
}

/// The link with the first of these addresses that any has, else the default route's.
fn by_itself<'a>(
    host: &mut dyn Host,
    candidates: &'a [Candidate],
    wanted: &[IpAddr],
) -> std::result::Result<&'a Candidate, NoUnderlay> {
    let having = |ip: &IpAddr| candidates.iter().find(|c| c.has(*ip));
    if let Some(found) = wanted.iter().find_map(having) {
        return Ok(found);
    }
    for ipv6 in [false, true] {
        if let Some(dev) = default_route(host, ipv6)?
            && let Some(found) = candidates.iter().find(|c| c.link.name == dev)
        {
            return Ok(found);
        }
    }
    Err(NoUnderlay::NotFound(wanted.to_vec()))
}

/// All links but our own, loopback, and ports of bridges (pods).
fn candidates(host: &mut dyn Host, settings: &Settings) -> Result<Vec<Candidate>> {
    let own = settings.devices();
    let mut all = Vec::new();
    for link in host.links()? {
        if link.name == "lo" || link.master.is_some() || own.contains(&link.name) {
            continue;
        }
        // A link that goes away meanwhile is none.
        match host.addrs(&link.name) {
            Ok(addrs) => all.push(Candidate { link, addrs }),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

fn default_route(host: &mut dyn Host, ipv6: bool) -> Result<Option<String>> {
    let filter = RouteFilter {
        ipv6: Some(ipv6),
        ..RouteFilter::default()
    };
    let mut defaults: Vec<_> = host
        .routes(&filter)?
        .into_iter()
        .filter(|route| route.is_default() && route.dev.is_some())
        .collect();
    defaults.sort_by_key(|route| route.metric.unwrap_or(0));
    Ok(defaults.into_iter().next().and_then(|route| route.dev))
}

/// Where this host sends what is not for pods, and whether that is on link `dev` itself.
fn routes(host: &mut dyn Host, dev: &str) -> Result<Vec<(ipnetwork::IpNetwork, bool)>> {
    let mut all: Vec<_> = host
        .routes(&RouteFilter::default())?
        .into_iter()
        .filter(|route| route.protocol != PROTOCOL_SEAWAY)
        .map(|route| {
            let here = route.dev.as_deref() == Some(dev) && route.kind == Kind::Unicast;
            (route.dst, here && route.gateway.is_none())
        })
        .collect();
    // The kernel makes a route for the network of each address; what a peer-to-peer address leads
    // to is no network.
    for addr in host.addrs(dev)? {
        let net = addr.net;
        let single = host_net(net.ip()).prefix() == net.prefix();
        if let Ok(net) = ipnetwork::IpNetwork::new(net.network(), net.prefix())
            && !single
            && !all.iter().any(|(dst, _)| *dst == net)
        {
            all.push((net, true));
        }
    }
    all.sort();
    Ok(all)
}

/// The addresses to use on a link: the wanted ones where it has them, else the first that is global.
fn underlay(candidate: &Candidate, wanted: &[IpAddr]) -> Underlay {
    let Candidate { link, addrs } = candidate;
    let pick = |of_family: fn(&IpAddr) -> bool| {
        let mut usable: Vec<&Addr> = addrs
            .iter()
            .filter(|addr| of_family(&addr.net.ip()) && !is_link_local(addr.net.ip()))
            .collect();
        // Stable: the kernel's order decides between equals.
        usable.sort_by_key(|addr| {
            let at = wanted.iter().position(|ip| *ip == addr.net.ip());
            (at.unwrap_or(usize::MAX), !addr.permanent)
        });
        usable.first().map(|addr| addr.net.ip())
    };
    Underlay {
        dev: link.name.clone(),
        index: link.index,
        mtu: link.mtu,
        v4: match pick(IpAddr::is_ipv4) {
            Some(IpAddr::V4(ip)) => Some(ip),
            _ => None,
        },
        v6: match pick(IpAddr::is_ipv6) {
            Some(IpAddr::V6(ip)) => Some(ip),
            _ => None,
        },
        routes: Vec::new(),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
    }
}
