//! The bridge: made, set up, given the gateways' addresses.

use api::cni::{Attachment, Error, ErrorCode};
use ipnetwork::IpNetwork;

use super::{mac_of, mac_of_owner, owner_hash};
use crate::ipam::Lease;
use crate::observe::{BridgeSeen, FORWARD_IPV4, FORWARD_IPV6, Observed};
use crate::request::{BridgeConf, Net};
use crate::step::{Addr, LinkChange, Mac, NewBridge, NewVeth, PortVlan, Side, Step};

/// The gateways' addresses, each with its subnet's length.
pub(super) fn gateways(net: &Net, leases: &[Lease]) -> Vec<IpNetwork> {
    if !net.bridge.gateway {
        return Vec::new();
    }
    // The length comes from a network of the same family, so it always fits.
    let with_length = |l: &Lease| IpNetwork::new(l.gateway?, l.address.prefix()).ok();
    leases.iter().filter_map(with_length).collect()
}

/// The steps that make the bridge what this network needs, and its hardware address where it is
/// known.
pub(super) fn plan_bridge(
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
            let owner = Attachment {
                container_id: "bridge".to_owned(),
                ifname: conf.name.clone(),
            };
            // Without an address of its own a bridge takes that of a port, and changes it with them.
            let mac = first.map_or_else(
                || mac_of_owner(0x5e, &net.name, &owner),
                |gateway| mac_of(gateway.ip()),
            );
            let mac = Some(mac);
            steps.push(Step::EnsureBridge(NewBridge {
                name: name(),
                mac,
                mtu: conf.mtu,
            }));
            if gateways.iter().any(IpNetwork::is_ipv6) {
                steps.push(accept_ra_off(&conf.name));
            }
            (&nothing, mac)
        }
    };
    // A plugin tells its addresses only when the bridge is there.
    if seen.bridge.is_some() && net.ipam_plugin.is_some() {
        let new = |g: &IpNetwork| g.is_ipv6() && !there.addrs.contains(g);
        steps.extend(gateways.iter().any(new).then(|| accept_ra_off(&conf.name)));
    }
    let promisc = (conf.promisc && !there.promisc).then_some(true);
    let vlan_filtering = (conf.vlans.is_some() && !there.vlan_filtering).then_some(true);
    if !there.up || promisc.is_some() || vlan_filtering.is_some() {
        let change = LinkChange {
            promisc,
            vlan_filtering,
            ..LinkChange::up()
        };
        steps.push(Step::SetLink(Side::Node, name(), change));
    }
    if let Some(id) = conf.vlans.as_ref().and_then(|vlans| vlans.id) {
        steps.extend(vlan_gateway(net, id, &gateways));
    } else {
        for gateway in gateways.iter().filter(|g| !there.addrs.contains(g)) {
            for other in conflicting(conf, there, *gateway, &gateways)? {
                steps.push(Step::RemoveAddr(Side::Node, name(), other));
            }
            steps.push(Step::EnsureAddr(Side::Node, name(), Addr::new(*gateway)));
        }
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

/// The node routes for its pods; a pod must not route for the node.
fn accept_ra_off(bridge: &str) -> Step {
    let key = format!("net/ipv6/conf/{bridge}/accept_ra");
    Step::EnsureSysctl(Side::Node, key, "0".to_owned())
}

/// In a VLAN the gateway is not the bridge but the other end of a port of its own, named like the
/// bridge with the VLAN's number behind it.
fn vlan_gateway(net: &Net, id: u16, gateways: &[IpNetwork]) -> Vec<Step> {
    if gateways.is_empty() {
        return Vec::new();
    }
    let name = net.bridge.gateway_link();
    let owner = Attachment {
        container_id: "gateway".to_owned(),
        ifname: name.clone(),
    };
    let port = format!(
        "vg{:011x}",
        owner_hash(&net.name, &owner) & super::NAME_HASH_MASK
    );
    let mut steps = vec![Step::EnsureGatewayVeth(NewVeth {
        name: port.clone(),
        mac: None,
        mtu: net.bridge.mtu,
        master: Some(net.bridge.name.clone()),
        peer_name: name.clone(),
        peer_mac: Some(mac_of_owner(0x5d, &net.name, &owner)),
        peer_netns: None,
    })];
    let vlan = PortVlan {
        first: id,
        last: id,
        untagged: true,
    };
    steps.push(Step::AddPortVlan(port, vlan));
    steps.push(Step::SetLink(Side::Node, name.clone(), LinkChange::up()));
    let address = |net: &IpNetwork| Step::EnsureAddr(Side::Node, name.clone(), Addr::new(*net));
    steps.extend(gateways.iter().map(address));
    steps
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
