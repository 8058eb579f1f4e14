//! Making changes. One that fails does not stop the others: what depends on it fails too and is
//! tried again with it.

use linux::{Host, Replacement, Result};

use super::diff::Change;
use super::model::{Entry, NewVxlan, Route};

/// Makes the changes, in order. Gives what failed; what is gone already, or there already, did not.
pub fn apply(host: &mut dyn Host, changes: &[Change]) -> Vec<linux::Error> {
    let mut failed = Vec::new();
    let mut rest = changes;
    while let Some(change) = rest.first() {
        let many: Vec<Replacement<'_>> = rest.iter().map_while(replacement).collect();
        if many.len() > 1 {
            let (together, others) = rest.split_at(many.len());
            // Most are made; why one was not, and whether another way leads there, is found alone.
            for at in host.replace_many(&many) {
                failed.extend(together.get(at).and_then(|change| one(host, change).err()));
            }
            rest = others;
        } else {
            failed.extend(one(host, change).err());
            rest = &rest[1..];
        }
    }
    for change in changes {
        tracing::debug!("{change}");
    }
    failed
}

/// A change that may be made with others at once.
fn replacement(change: &Change) -> Option<Replacement<'_>> {
    match change {
        Change::Set(Entry::Neigh(dev, neigh)) => Some(Replacement::Neigh(dev, neigh)),
        Change::Set(Entry::Fdb(dev, entry)) => Some(Replacement::Fdb(dev, entry)),
        Change::Set(Entry::Route(route)) => Some(Replacement::Route(route)),
        _ => None,
    }
}

fn one(host: &mut dyn Host, change: &Change) -> Result<()> {
    match change {
        Change::DelLink(name) => host.ensure_no_link(name).map(drop),
        Change::AddVxlan(new) => add_vxlan(host, new),
        Change::AddWireGuard(name, mtu) => host.add_wireguard(name, Some(*mtu)),
        Change::SetWireGuard(name, config) => host.set_wireguard(name, config),
        Change::SetLink(name, change) => host.set_link(name, change),
        Change::NoTxChecksum(name) => host.set_tx_checksum(name, false),
        Change::DelAddr(dev, net) => host.ensure_no_addr(dev, *net).map(drop),
        Change::AddAddr(dev, addr) => host.ensure_addr(dev, addr).map(drop),
        Change::Sysctl(key, value) => host.ensure_sysctl(key, value).map(drop),
        Change::Set(Entry::Neigh(dev, neigh)) => host.replace_neigh(dev, neigh),
        Change::Set(Entry::Fdb(dev, entry)) => host.replace_fdb(dev, entry),
        Change::Set(Entry::WgPeer(dev, peer)) => host.set_wireguard_peer(dev, peer),
        Change::Set(Entry::Route(route)) => set_route(host, route),
        Change::Del(Entry::Neigh(dev, neigh)) => unless_gone(host.del_neigh(dev, neigh)),
        Change::Del(Entry::Fdb(dev, entry)) => unless_gone(host.del_fdb(dev, entry)),
        Change::Del(Entry::WgPeer(dev, peer)) => {
            unless_gone(host.del_wireguard_peer(dev, peer.key))
        }
        Change::Del(Entry::Route(route)) => unless_gone(host.del_route(route)),
    }
}

fn unless_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.is_not_found() => Ok(()),
        other => other,
    }
}
/// Two devices of one VNI and port cannot be: says which one is in the way.
fn add_vxlan(host: &mut dyn Host, new: &NewVxlan) -> Result<()> {
    let error = match host.add_vxlan(new) {
        Err(e) if e.is_exists() => e,
        other => return other,
    };
    let same = |link: &linux::link::Link| {
        let vxlan = link.vxlan.as_ref();
        vxlan.is_some_and(|vxlan| vxlan.vni == new.vni && vxlan.port == new.port)
    };
    match host.links()?.into_iter().find(same) {
        Some(other) => Err(error.with_detail(format!(
            "{} has VNI {} and port {} already",
            other.name, new.vni, new.port
        ))),
        None => Err(error),
    }
}

/// The kernel takes an IPv6 next hop on a link only if no other route leads to it by another link
/// (`ip6_route_check_nh_onlink`), which is the case when it is just such a route that is to be
/// replaced. A route to the next hop alone, for as long as this takes, settles it.
fn set_route(host: &mut dyn Host, route: &Route) -> Result<()> {
    let error = match host.replace_route(route) {
        Err(e) if e.source.kind() == std::io::ErrorKind::InvalidInput => e,
        other => return other,
    };
    let (Some(gateway @ std::net::IpAddr::V6(_)), Some(dev)) = (route.gateway, &route.dev) else {
        return Err(error);
    };
    let bridge = Route::to(api::cidr::host_net(gateway)).dev(dev);
    host.replace_route(&bridge)?;
    let result = host.replace_route(route);
    host.ensure_no_route(&bridge)?;
    result
}
