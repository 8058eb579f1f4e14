//! The verdict on the first packet of a connection, straight from the model: what the table in the
//! kernel has to come to.

use std::net::IpAddr;

use api::cidr::{Family, any_contains};

use crate::model::Model;
use crate::parse::{Direction, Key, Pod, Ports, Protocol, Rule};
use crate::ranges::number;

/// The first packet of a connection, with the addresses that remain after translation of the
/// destination and before that of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Who connects.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port; 0 for protocols without.
    pub port: u16,
}

/// Whether this node lets it pass, when it is neither from nor to the node itself.
pub fn allows(model: &Model, packet: &Packet) -> bool {
    let ends = [
        (Direction::Egress, packet.source),
        (Direction::Ingress, packet.destination),
    ];
    if ends
        .iter()
        .any(|(direction, ip)| is_closed(model, *direction, *ip))
    {
        return false;
    }
    // Nobody can forbid a pod to talk to itself.
    packet.source == packet.destination
        || ends
            .iter()
            .all(|(direction, ip)| side(model, packet, *direction, *ip))
}

/// Nobody knows whose the address is, and a pod that is to be isolated has none yet.
fn is_closed(model: &Model, direction: Direction, ip: IpAddr) -> bool {
    let is_known = model.owner(ip).is_some_and(|(key, _)| model.is_here(key));
    !is_known && model.is_waiting(direction) && any_contains(model.nets(), ip)
}

fn side(model: &Model, packet: &Packet, direction: Direction, ip: IpAddr) -> bool {
    let Some((key, _)) = model.owner(ip) else {
        return true;
    };
    let Some(group) = model.group(key, direction) else {
        return true;
    };
    let policies = group.iter().filter_map(|key| model.policy(key));
    let mut rules = policies.flat_map(|policy| policy.rules(direction).unwrap_or_default());
    rules.any(|rule| fits(model, rule, packet, direction))
}

fn fits(model: &Model, rule: &Rule, packet: &Packet, direction: Direction) -> bool {
    let peer = match direction {
        Direction::Ingress => packet.source,
        Direction::Egress => packet.destination,
    };
    let peers = rule.peers.as_ref().is_none_or(|peers| {
        let n = number(peer);
        let ranges = peers.ranges(Family::of(peer));
        ranges.iter().any(|(first, last)| *first <= n && n <= *last)
            || model
                .owner(peer)
                .is_some_and(|(key, pod)| peers.pods.iter().any(|set| holds(model, set, key, pod)))
    });
    peers
        && rule
            .ports
            .as_ref()
            .is_none_or(|ports| fits_port(model, ports, packet))
}

/// Whether a pod is one of a set.
pub(crate) fn holds(model: &Model, set: &crate::parse::PodSet, key: &Key, pod: &Pod) -> bool {
    set.holds(&key.namespace, model.namespace(&key.namespace), &pod.labels)
}

fn fits_port(model: &Model, ports: &Ports, packet: &Packet) -> bool {
    let is_it = |protocol: &Protocol| protocol.number() == packet.protocol;
    let port = u128::from(packet.port);
    let by_number = ports.numbers.iter().any(|(protocol, ranges)| {
        is_it(protocol)
            && ranges
                .iter()
                .any(|(first, last)| *first <= port && port <= *last)
    });
    let by_name = || {
        let named = model.owner(packet.destination).map(|(_, pod)| &pod.ports);
        named.into_iter().flatten().any(|named| {
            let name = (named.protocol, named.name.clone());
            is_it(&named.protocol) && named.port == packet.port && ports.names.contains(&name)
        })
    };
    by_number || by_name()
}
