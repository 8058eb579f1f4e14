//! What this node should have, given its own object, the other nodes and the underlay. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use api::cidr::host_net;
use ipnetwork::IpNetwork;

use super::backend::{Backend, WireGuard, WireGuardMode};
use super::checksum;
use super::model::{
    Desired, Device, DeviceKind, Entry, Family, FdbEntry, Footing, Ground, Mac, Neigh, NewVxlan,
    Own, Peer, Plan, Pods, Reach, Route, Settings, Sysctl, Underlay, Way, WgConfig, WgPeer,
};
use super::{node, path};

/// The smallest packet size with which a family works (RFC 791: 576 that every host takes; RFC 8200:
/// 1280 that every link takes).
pub(super) fn mtu_min(family: Family) -> u32 {
    match family {
        Family::V4 => 576,
        Family::V6 => 1280,
    }
}

/// The hardware address of a node's device: the same as long as the node has its name, whatever is
/// lost otherwise. 64-bit FNV-1a, cut to 40 bits; a collision is told as a problem.
pub fn vtep_mac(node: &str, family: Family) -> Mac {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let salt: &[u8] = match family {
        Family::V4 => b"/seaway",
        Family::V6 => b"/seaway-v6",
    };
    for byte in node.as_bytes().iter().chain(salt) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    Mac([0x0a, a ^ f, b ^ g, c ^ h, d, e])
}

/// The plan for this node; the other nodes come on top with [`entries`].
pub fn plan(settings: &Settings, own: &Own, underlay: &Underlay) -> Plan {
    let mut plan = Plan::default();
    let mut told = BTreeMap::new();
    let mut mtu_of_all = None;
    let mut subnets = Vec::new();
    for subnet in &own.subnets {
        let family = Family::of_net(subnet);
        let outcome = footing(settings, *subnet, underlay)
            .and_then(|footing| Ok((footing, mtu(settings, family, underlay)?)));
        match outcome {
            Ok((footing, mtu)) => {
                add_device(
                    &mut plan.desired,
                    settings,
                    *subnet,
                    mtu,
                    &footing,
                    underlay,
                );
                told.extend(tell(settings, family, own, &footing));
                // One number serves both families of a pod: the smaller one.
                mtu_of_all = Some(mtu_of_all.unwrap_or(u32::MAX).min(mtu));
                subnets.push(*subnet);
                plan.desired
                    .sysctls
                    .extend(sysctls(family, &footing.dev, underlay));
                *plan.ground.of_mut(family) = Some(footing);
            }
            Err(why) => plan.problems.push(why),
        }
    }
    plan.pods = mtu_of_all.map(|mtu| Pods { mtu, subnets });
    plan.annotations = changed(&told, own);
    plan.ground.subnets.clone_from(&own.subnets);
    plan.ground.underlay = Some(underlay.clone());
    plan
}

/// What this node stands on for the family of `subnet`.
fn footing(settings: &Settings, subnet: IpNetwork, underlay: &Underlay) -> Result<Footing, String> {
    let family = Family::of_net(&subnet);
    let outer = match &settings.backend {
        Backend::WireGuard(wg) => wg_outer(wg.mode, family, underlay),
        _ => family,
    };
    let dev = &underlay.dev;
    let outer_ip = underlay.ip(outer).ok_or_else(|| {
        format!(
            "this node has {family} pods ({subnet}), but {dev} has no {outer} address: they reach no other node"
        )
    })?;
    let way = match &settings.backend {
        Backend::Vxlan(_) => Way::Vxlan(vtep_mac(&settings.node_name, family)),
        Backend::HostGw(_) => Way::HostGw,
        Backend::WireGuard(wg) => Way::WireGuard(wg.public.unwrap_or_default()),
    };
    let dev = settings.backend.device(family);
    // Pods of one family may travel over the other, and still this node is known by its own.
    let local = underlay.ip(family).unwrap_or(outer_ip);
    Ok(Footing {
        dev: dev.unwrap_or_else(|| underlay.dev.clone()),
        way,
        local,
    })
}

/// Over which family WireGuard carries the pods of one family.
pub(super) fn wg_outer(mode: WireGuardMode, family: Family, underlay: &Underlay) -> Family {
    match mode {
        WireGuardMode::Separate => family,
        WireGuardMode::V4 => Family::V4,
        WireGuardMode::V6 => Family::V6,
        WireGuardMode::Auto if underlay.v4.is_some() => Family::V4,
        WireGuardMode::Auto => Family::V6,
    }
}

/// The largest packet of pods of one family.
fn mtu(settings: &Settings, family: Family, underlay: &Underlay) -> Result<u32, String> {
    let outer = settings.outer_mtu(underlay);
    let mtu = outer.saturating_sub(settings.backend.overhead(family));
    let min = mtu_min(family);
    if mtu < min {
        let dev = &underlay.dev;
        return Err(format!(
            "mtu {outer} of {dev} leaves {mtu} bytes to {family} pods, which need {min}"
        ));
    }
    Ok(mtu)
}

/// Adds the device of a family, or its address to the one that carries both.
fn add_device(
    desired: &mut Desired,
    settings: &Settings,
    subnet: IpNetwork,
    mtu: u32,
    footing: &Footing,
    underlay: &Underlay,
) {
    let kind = match (&settings.backend, footing.way) {
        (Backend::Vxlan(vxlan), Way::Vxlan(mac)) => DeviceKind::Vxlan {
            new: NewVxlan {
                name: footing.dev.clone(),
                mac: Some(mac),
                mtu: Some(mtu),
                vni: vxlan.vni,
                port: vxlan.port,
                local: Some(footing.local),
                underlay: Some(underlay.dev.clone()),
                learning: vxlan.learning,
                gbp: vxlan.gbp,
            },
            underlay: underlay.index,
        },
        (Backend::WireGuard(wg), _) => {
            let second = wg.mode == WireGuardMode::Separate && subnet.is_ipv6();
            DeviceKind::WireGuard(WgConfig {
                private: wg.private.unwrap_or_default(),
                port: if second { wg.port_v6 } else { wg.port },
            })
        }
        // The underlay itself.
        _ => return,
    };
    let no_tx_checksum =
        matches!(kind, DeviceKind::Vxlan { .. }) && checksum::is_broken_by_kernel(&settings.kernel);
    let device = desired
        .devices
        .entry(footing.dev.clone())
        .or_insert_with(|| Device {
            kind,
            mtu,
            addrs: Vec::new(),
            no_tx_checksum,
        });
    device.addrs.push(host_net(subnet.network()));
}

/// What another node brings. `told` hears what could not be honoured.
pub fn entries(
    settings: &Settings,
    ground: &Ground,
    name: &str,
    peer: &Peer,
    mut told: impl FnMut(String),
) -> Vec<Entry> {
    let mut all = Vec::new();
    for family in Family::BOTH {
        let (Some(reach), Some(footing)) = (peer.reach(family), ground.of(family)) else {
            continue;
        };
        if let Some(why) = clash(ground, footing, reach) {
            told(format!("node {name} is left out: {why}"));
            continue;
        }
        let before = all.len();
        match &settings.backend {
            Backend::Vxlan(_) | Backend::HostGw(_) => {
                match plain(settings, ground, footing, reach) {
                    Ok(more) => all.extend(more),
                    Err(why) => told(format!("node {name} is left out: {why}")),
                }
            }
            Backend::WireGuard(wg) => {
                all.push(Entry::Route(Route::to(reach.subnet).dev(&footing.dev)));
                add_far_end(&mut all, wg, ground, &footing.dev, peer, reach);
            }
        }
        for entry in all.iter_mut().skip(before) {
            if let Entry::Route(route) = entry
                && let Err(why) = path::fit(settings, ground, peer, route)
            {
                told(format!("node {name}: {why}"));
            }
        }
    }
    all
}

/// What a node must not claim.
fn clash(ground: &Ground, footing: &Footing, reach: &Reach) -> Option<String> {
    if ground
        .subnets
        .iter()
        .any(|net| overlaps(net, &reach.subnet))
    {
        Some(format!("{} overlaps with this node's own", reach.subnet))
    } else if footing.local == reach.public {
        Some(format!("{} is this node's own address", reach.public))
    } else {
        match reach.way {
            Way::Vxlan(mac) if footing.way == reach.way => {
                Some(format!("hardware address {mac} is this node's own"))
            }
            Way::WireGuard(key) if footing.way == reach.way => {
                Some(format!("public key {key} is this node's own"))
            }
            _ => None,
        }
    }
}

fn overlaps(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a.contains(b.network()) || b.contains(a.network()))
}

/// VXLAN, or a route through the node itself where it is on the same link.
fn plain(
    settings: &Settings,
    ground: &Ground,
    footing: &Footing,
    reach: &Reach,
) -> Result<Vec<Entry>, String> {
    let underlay = ground.underlay.as_ref();
    let direct =
        underlay.filter(|u| settings.backend.asks_for_neighbours() && u.is_direct(reach.public));
    if let Some(underlay) = direct {
        let route = Route::to(reach.subnet).via(reach.public).dev(&underlay.dev);
        return Ok(vec![Entry::Route(route)]);
    }
    let Way::Vxlan(mac) = reach.way else {
        let (ip, dev) = (reach.public, &footing.dev);
        return Err(format!("{ip} is not on the link {dev} itself"));
    };
    let dev = &footing.dev;
    let gateway = reach.subnet.network();
    let fdb = FdbEntry {
        mac,
        dst: Some(reach.public),
    };
    let route = Route::to(reach.subnet).via(gateway).dev(dev).onlink();
    Ok(vec![
        Entry::Fdb(dev.clone(), fdb),
        Entry::Neigh(dev.clone(), Neigh::permanent(gateway, mac)),
        Entry::Route(route),
    ])
}

/// The far end of a WireGuard device; one device may carry both families.
fn add_far_end(
    all: &mut Vec<Entry>,
    wg: &WireGuard,
    ground: &Ground,
    dev: &str,
    peer: &Peer,
    reach: &Reach,
) {
    let Way::WireGuard(key) = reach.way else {
        return;
    };
    let there = all.iter_mut().find_map(|entry| match entry {
        Entry::WgPeer(on, far) if on == dev && far.key == key => Some(far),
        _ => None,
    });
    if let Some(far) = there {
        far.allowed.push(reach.subnet);
        far.allowed.sort();
        return;
    }
    let outer = match &ground.underlay {
        Some(underlay) => wg_outer(wg.mode, Family::of_net(&reach.subnet), underlay),
        None => Family::of_net(&reach.subnet),
    };
    let public = peer.reach(outer).unwrap_or(reach).public;
    let second = wg.mode == WireGuardMode::Separate && reach.subnet.is_ipv6();
    let port = if second { wg.port_v6 } else { wg.port };
    let far = WgPeer {
        key,
        psk: wg.psk,
        endpoint: Some(SocketAddr::new(public, port)),
        keepalive: wg.keepalive,
        allowed: vec![reach.subnet],
    };
    all.push(Entry::WgPeer(dev.to_owned(), far));
}

/// The annotations by which others find this node.
fn tell(
    settings: &Settings,
    family: Family,
    own: &Own,
    footing: &Footing,
) -> BTreeMap<&'static str, String> {
    let names = node::annotations_of(family);
    let vni = match &settings.backend {
        Backend::Vxlan(vxlan) => vxlan.vni,
        _ => 0,
    };
    let public = public(settings, family, own, footing.local);
    let public = Some(public).filter(|ip| Family::of(*ip) == family);
    let public = public.map(|ip| (names.public, ip.to_string()));
    let told = [
        (names.data, node::data_of(&footing.way, vni)),
        (node::BACKEND_TYPE, settings.backend.name().to_owned()),
        (node::SUBNET_MANAGER, "true".to_owned()),
    ];
    told.into_iter().chain(public).collect()
}

/// The address that the others send to: what the administrator wrote into the Node, else what the
/// flags say, else the underlay's own.
pub fn public(settings: &Settings, family: Family, own: &Own, local: IpAddr) -> IpAddr {
    let names = node::annotations_of(family);
    let written = |name: &str| {
        let text = own.annotations.get(name)?;
        node::public_ip(text, family)
    };
    let flag = || {
        let mut all = settings.public.iter().copied();
        all.find(|ip| Family::of(*ip) == family)
    };
    written(names.overwrite)
        .or_else(flag)
        .or_else(|| written(names.chosen))
        .unwrap_or(local)
}

/// What has to change in the node's annotations so that they tell this.
fn changed(told: &BTreeMap<&'static str, String>, own: &Own) -> BTreeMap<String, Option<String>> {
    let mut changes = BTreeMap::new();
    for (key, value) in told {
        if own.annotations.get(*key) != Some(value) {
            changes.insert((*key).to_owned(), Some(value.clone()));
        }
    }
    // Nobody may send to a device that is not there any more.
    for family in Family::BOTH {
        let names = node::annotations_of(family);
        for key in [names.data, names.public] {
            if !told.contains_key(key) && own.annotations.contains_key(key) {
                changes.insert(key.to_owned(), None);
            }
        }
    }
    changes
}

/// Settings without which the kernel forwards nothing.
fn sysctls(family: Family, dev: &str, underlay: &Underlay) -> Vec<Sysctl> {
    let set = |key: String, value| Sysctl {
        key,
        value,
        only_from: None,
    };
    match family {
        Family::V4 => vec![set("net/ipv4/ip_forward".to_owned(), "1")],
        Family::V6 => {
            let mut all = vec![
                // A host that forwards takes no routes from routers unless told to: it would lose
                // its default route.
                Sysctl {
                    key: format!("net/ipv6/conf/{}/accept_ra", underlay.dev),
                    value: "2",
                    only_from: Some("1"),
                },
                set("net/ipv6/conf/all/forwarding".to_owned(), "1"),
            ];
            if dev != underlay.dev {
                // Nobody on the other side may give this device addresses or routes.
                all.push(set(format!("net/ipv6/conf/{dev}/accept_ra"), "0"));
            }
            all
        }
    }
}
