//! From the model to the table. Pure: the same model gives the same bytes.
//!
//! What a pod's coming and going changes are elements only, those of [`address`].

mod base;
pub mod bridge;
pub mod names;
mod rules;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use api::cidr::{Family, of_family};

use crate::decide::holds;
use crate::model::Model;
use crate::nft::{DataType, Element, Set, Verdict, concat};
use crate::objects::{Desired, Elements, sort};
use crate::parse::{Direction, Key, PodSet, Protocol};
use crate::ranges::{address_bytes, number, of_net};

/// What the policies at work on this node ask of every pod of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Is it one of these?
    pub pods: BTreeSet<PodSet>,
    /// What are its ports of these names?
    pub names: BTreeSet<(Protocol, String)>,
    /// The policies.
    pub policies: BTreeSet<(Direction, Key)>,
}

/// What is asked.
pub fn asked(model: &Model) -> Asked {
    let mut asked = Asked::default();
    for (direction, group) in model.groups() {
        asked
            .policies
            .extend(group.iter().map(|key| (*direction, key.clone())));
    }
    for (direction, key) in &asked.policies {
        let rules = model
            .policy(key)
            .and_then(|policy| policy.rules(*direction));
        for rule in rules.unwrap_or_default() {
            asked
                .pods
                .extend(rule.peers.iter().flat_map(|p| p.pods.iter().cloned()));
            asked
                .names
                .extend(rule.ports.iter().flat_map(|p| p.names.iter().cloned()));
        }
    }
    asked
}

/// The whole table.
pub fn plan(model: &Model) -> Desired {
    let asked = asked(model);
    let mut desired = Desired::default();
    for family in Family::BOTH {
        base::add(&mut desired, family);
        groups(model, family, &mut desired);
        for set in &asked.pods {
            let def = Set::new(&*names::pods(set, family), [data_type(family)]);
            add_set(&mut desired, def, &set.to_string());
        }
        for (protocol, name) in &asked.names {
            let key = [data_type(family), DataType::Port];
            let def = Set::new(&*names::named(*protocol, name, family), key);
            add_set(
                &mut desired,
                def,
                &format!("{protocol} ports with the name {name}"),
            );
        }
        for (direction, key) in &asked.policies {
            rules::add(model, *direction, key, family, &mut desired);
        }
    }
    desired.fixed.extend(closed(model));
    sort(&mut desired.fixed);
    let planned = model.ips().map(|ip| (ip, address(model, &asked, ip)));
    desired.addresses = planned
        .filter(|(_, elements)| !elements.is_empty())
        .collect();
    desired
}

/// What belongs to an address.
pub fn address(model: &Model, asked: &Asked, ip: IpAddr) -> Elements {
    let Some((key, pod)) = model.owner(ip) else {
        return Elements::new();
    };
    let family = Family::of(ip);
    let bytes = address_bytes(family, number(ip));
    let mut out = Elements::new();
    for set in asked.pods.iter().filter(|set| holds(model, set, key, pod)) {
        out.push((names::pods(set, family), Element::new(bytes.clone())));
    }
    for port in &pod.ports {
        if asked.names.contains(&(port.protocol, port.name.clone())) {
            let key = concat(&[&bytes, &port.port.to_be_bytes()]);
            out.push((
                names::named(port.protocol, &port.name, family),
                Element::new(key),
            ));
        }
    }
    if model.is_here(key) {
        let comment = key.to_string();
        out.push((
            names::of("known", family).into(),
            Element::new(bytes.clone()).comment(comment),
        ));
        let mut isolated = false;
        for direction in Direction::BOTH {
            if let Some(group) = model.group(key, direction) {
                isolated = true;
                let chain = names::group_chain(direction, family, group);
                out.push((
                    names::of_direction(direction, "pods", family).into(),
                    Element::verdict(bytes.clone(), Verdict::Goto(chain)),
                ));
            }
        }
        if isolated {
            out.push((
                names::of("isolated", family).into(),
                Element::new(bytes.clone()),
            ));
            let both = concat(&[&bytes, &bytes]);
            out.push((names::of("self", family).into(), Element::new(both)));
        }
    }
    sort(&mut out);
    // Two containers may give the same port the same name.
    out.dedup();
    out
}

/// Networks in which addresses that nobody knows are closed.
pub fn closed(model: &Model) -> Elements {
    let mut out = Elements::new();
    for family in Family::BOTH {
        for direction in Direction::BOTH {
            if !model.is_waiting(direction) {
                continue;
            }
            let nets = of_family(model.nets(), family)
                .map(|net| of_net(&net))
                .collect();
            let set: Arc<str> = names::of_direction(direction, "closed", family).into();
            for element in range_elements(family, &crate::ranges::union(nets)) {
                out.push((set.clone(), element));
            }
        }
    }
    sort(&mut out);
    out
}

/// A chain for each group.
fn groups(model: &Model, family: Family, desired: &mut Desired) {
    for (direction, group) in model.groups() {
        let chain = names::group_chain(*direction, family, group);
        base::group_chain(&chain, *direction, family, group, desired);
    }
}

fn data_type(family: Family) -> DataType {
    match family {
        Family::V4 => DataType::Ipv4,
        Family::V6 => DataType::Ipv6,
    }
}

fn add_set(desired: &mut Desired, mut set: Set, comment: &str) {
    set.comment = Some(comment.to_owned());
    desired.sets.insert(set.name.clone(), set);
}

fn range_elements(family: Family, ranges: &[(u128, u128)]) -> Vec<Element> {
    let bytes = |n| address_bytes(family, n);
    let ranges = ranges.iter();
    ranges
        .map(|(first, last)| Element::range(bytes(*first), bytes(*last)))
        .collect()
}
