//! What this node should have, given its own object, the other nodes and the underlay. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::model::{
    Conflist, Device, Family, Mac, NewVxlan, Own, Peer, Plan, Settings, Sysctl, Underlay,
};
use super::node;

/// What VXLAN adds to a packet: inner Ethernet 14, VXLAN 8, UDP 8, and the outer IP header.
fn overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => 14 + 8 + 8 + 20,
        Family::V6 => 14 + 8 + 8 + 40,
    }
}

/// The smallest packet size with which a family works (RFC 791: 576 that every host takes; RFC 8200:
/// 1280 that every link takes).
fn mtu_min(family: Family) -> u32 {
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

/// The plan for this node. `peers` does not hold the node itself.
pub fn plan(
    settings: &Settings,
    own: &Own,
    underlay: &Underlay,
    peers: &BTreeMap<String, Peer>,
) -> Plan {
    let mut plan = Plan::default();
    let mut told = BTreeMap::new();
    let mut mtu = None;
    let mut subnets = Vec::new();
    for subnet in &own.subnets {
        let family = Family::of_net(subnet);
        match device(settings, *subnet, underlay) {
            Ok(mut device) => {
                add_peers(&mut device, family, own, peers, &mut plan.problems);
                told.extend(tell(settings, family, own, &device));
                let device_mtu = device.vxlan.mtu.unwrap_or(u32::MAX);
                // One number serves both families of a pod: the smaller one.
                mtu = Some(mtu.unwrap_or(u32::MAX).min(device_mtu));
                subnets.push(*subnet);
                plan.desired
                    .sysctls
                    .extend(sysctls(family, &device, underlay));
                plan.desired
                    .devices
                    .insert(device.vxlan.name.clone(), device);
            }
            Err(why) => plan.problems.push(why),
        }
    }
    plan.conflist = mtu.map(|mtu| Conflist { mtu, subnets });
    plan.annotations = changed(&told, own);
    plan
}

/// The device for the family of `subnet`, with nobody on it yet.
fn device(settings: &Settings, subnet: IpNetwork, underlay: &Underlay) -> Result<Device, String> {
    let family = Family::of_net(&subnet);
    let dev = &underlay.dev;
    let Some(local) = underlay.ip(family) else {
        return Err(format!(
            "this node has {family} pods ({subnet}), but {dev} has no {family} address: they reach no other node"
        ));
    };
    let mtu = underlay.mtu.saturating_sub(overhead(family));
    let min = mtu_min(family);
    if mtu < min {
        return Err(format!(
            "mtu {} of {dev} leaves {mtu} bytes to {family} pods, which need {min}",
            underlay.mtu
        ));
    }
    let length = family.bits();
    let addr = IpNetwork::new(subnet.network(), length).map_err(|e| e.to_string())?;
    Ok(Device {
        vxlan: NewVxlan {
            name: settings.device(family),
            mac: Some(vtep_mac(&settings.node_name, family)),
            mtu: Some(mtu),
            vni: settings.vni,
            port: settings.port,
            local: Some(local),
            underlay: Some(dev.clone()),
            learning: false,
        },
        underlay: underlay.index,
        addr,
        neighs: BTreeMap::new(),
        fdb: BTreeMap::new(),
        routes: BTreeMap::new(),
    })
}

/// Puts every peer on the device. Of two that claim the same, the first by name keeps it.
fn add_peers(
    device: &mut Device,
    family: Family,
    own: &Own,
    peers: &BTreeMap<String, Peer>,
    problems: &mut Vec<String>,
) {
    for (name, peer) in peers {
        let Some(reach) = peer.reach(family) else {
            continue;
        };
        let claim = if own.subnets.iter().any(|net| overlaps(net, &reach.subnet)) {
            Some(format!("{} overlaps with this node's own", reach.subnet))
        } else if device.routes.contains_key(&reach.subnet) {
            Some(format!("{} is another node's too", reach.subnet))
        } else if device.fdb.contains_key(&reach.mac) || device.vxlan.mac == Some(reach.mac) {
            Some(format!("hardware address {} is another's too", reach.mac))
        } else if device.vxlan.local == Some(reach.public) {
            Some(format!("{} is this node's own address", reach.public))
        } else {
            None
        };
        if let Some(why) = claim {
            problems.push(format!("node {name} is left out: {why}"));
            continue;
        }
        let gateway = reach.subnet.network();
        device.neighs.insert(gateway, reach.mac);
        device.fdb.insert(reach.mac, reach.public);
        device.routes.insert(reach.subnet, gateway);
    }
}

fn overlaps(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a.contains(b.network()) || b.contains(a.network()))
}

/// The annotations by which others find this device.
fn tell(
    settings: &Settings,
    family: Family,
    own: &Own,
    device: &Device,
) -> BTreeMap<&'static str, String> {
    let (data_name, public_name, overwrite) = node::annotations_of(family);
    let mac = device.vxlan.mac.unwrap_or_default();
    let data = format!(r#"{{"VNI":{},"VtepMAC":"{mac}"}}"#, settings.vni);
    let wanted = own
        .annotations
        .get(overwrite)
        .and_then(|text| text.parse::<IpAddr>().ok())
        .filter(|ip| Family::of(*ip) == family);
    let public = wanted.or(device.vxlan.local).map(|ip| ip.to_string());
    BTreeMap::from([
        (data_name, data),
        (public_name, public.unwrap_or_default()),
        (node::BACKEND_TYPE, node::VXLAN.to_owned()),
        (node::SUBNET_MANAGER, "true".to_owned()),
    ])
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
        let (data, public, _) = node::annotations_of(family);
        for key in [data, public] {
            if !told.contains_key(key) && own.annotations.contains_key(key) {
                changes.insert(key.to_owned(), None);
            }
        }
    }
    changes
}

/// Settings without which the kernel forwards nothing.
fn sysctls(family: Family, device: &Device, underlay: &Underlay) -> Vec<Sysctl> {
    let set = |key: String, value| Sysctl {
        key,
        value,
        only_from: None,
    };
    match family {
        Family::V4 => vec![set("net/ipv4/ip_forward".to_owned(), "1")],
        Family::V6 => vec![
            // A host that forwards takes no routes from routers unless told to: it would lose its
            // default route.
            Sysctl {
                key: format!("net/ipv6/conf/{}/accept_ra", underlay.dev),
                value: "2",
                only_from: Some("1"),
            },
            set("net/ipv6/conf/all/forwarding".to_owned(), "1"),
            // Nobody on the other side may give this device addresses or routes.
            set(
                format!("net/ipv6/conf/{}/accept_ra", device.vxlan.name),
                "0",
            ),
        ],
    }
}
