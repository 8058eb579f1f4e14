//! Which link leads to the other nodes.

use std::net::IpAddr;

use linux::addr::Addr;
use linux::link::Link;
use linux::route::RouteFilter;
use linux::{Host, Result};

use super::model::{Settings, Underlay};

/// A link that could be the underlay, with its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The link.
    pub link: Link,
    /// Its addresses.
    pub addrs: Vec<Addr>,
}

/// Why there is no underlay.
#[derive(Debug, thiserror::Error)]
pub enum NoUnderlay {
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] linux::Error),
    /// `--iface` names no link.
    #[error("--iface {0}: no such link")]
    NoSuchLink(String),
    /// Neither the node's addresses nor a default route lead to one.
    #[error(
        "no link has one of the node's addresses {0:?}, and there is no default route: say --iface"
    )]
    NotFound(Vec<IpAddr>),
}

/// Finds the underlay: the link of `--iface`, else the one with an address of the node, else the
/// default route's.
///
/// # Errors
/// There is none, or the kernel refuses to list.
pub fn find(
    host: &mut dyn Host,
    settings: &Settings,
    node_ips: &[IpAddr],
) -> std::result::Result<Underlay, NoUnderlay> {
    if let Some(name) = &settings.iface {
        let link = host.link(name)?;
        let link = link.ok_or_else(|| NoUnderlay::NoSuchLink(name.clone()))?;
        let addrs = host.addrs(name)?;
        return Ok(underlay(&Candidate { link, addrs }, node_ips));
    }
    let candidates = candidates(host, settings)?;
    if let Some(found) = with_address(&candidates, node_ips) {
        return Ok(underlay(found, node_ips));
    }
    for ipv6 in [false, true] {
        if let Some(dev) = default_route(host, ipv6)?
            && let Some(found) = candidates.iter().find(|c| c.link.name == dev)
        {
            return Ok(underlay(found, node_ips));
        }
    }
    Err(NoUnderlay::NotFound(node_ips.to_vec()))
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

fn with_address<'a>(candidates: &'a [Candidate], node_ips: &[IpAddr]) -> Option<&'a Candidate> {
    node_ips.iter().find_map(|ip| {
        candidates
            .iter()
            .find(|c| c.addrs.iter().any(|addr| addr.net.ip() == *ip))
    })
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

/// The addresses to use on a link: the node's where it has them, else the first that is global.
fn underlay(candidate: &Candidate, node_ips: &[IpAddr]) -> Underlay {
    let Candidate { link, addrs } = candidate;
    let pick = |wanted: fn(&IpAddr) -> bool| {
        let mut usable: Vec<&Addr> = addrs
            .iter()
            .filter(|addr| wanted(&addr.net.ip()) && !is_link_local(addr.net.ip()))
            .collect();
        // Stable: the kernel's order decides between equals.
        usable.sort_by_key(|addr| (!node_ips.contains(&addr.net.ip()), !addr.permanent));
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
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
    }
}
