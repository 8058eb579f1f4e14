//! The chains of policies.

use std::sync::Arc;

use api::cidr::Family;

use super::base::{add_chain, address_of, lookup, protocol_is, rule, verdict};
use super::{add_set, data_type, names, range_elements};
use crate::model::Model;
use crate::nft::{Chain, CmpOp, DataType, Element, Expr, Reg, Set, Verdict};
use crate::objects::Desired;
use crate::parse::{Direction, Key, Peers, Ports, Protocol};
use crate::ranges::Range;

/// A test: some steps of a rule, which go on only if it holds.
type Test = Vec<Expr>;

const R: Reg = Reg::at(0);

/// Adds the chain of a policy for one direction and family, with the sets that it alone defines.
pub(super) fn add(
    model: &Model,
    direction: Direction,
    key: &Key,
    family: Family,
    desired: &mut Desired,
) {
    let rules = model.policy(key).and_then(|policy| policy.rules(direction));
    let allowed = match direction {
        Direction::Ingress => Verdict::Accept,
        // The other end has a say, too.
        Direction::Egress => Verdict::Goto(names::of("ingress", family)),
    };
    let mut out = Vec::new();
    for (i, spec) in rules.unwrap_or_default().iter().enumerate() {
        let peers = match &spec.peers {
            None => vec![Test::new()],
            Some(peers) => peer_tests(peers, direction, family, desired),
        };
        let ports = match &spec.ports {
            None => vec![Test::new()],
            Some(ports) => port_tests(ports, family, desired),
        };
        for peer in &peers {
            for port in &ports {
                let steps = peer.iter().chain(port).cloned();
                let steps = steps.chain([verdict(allowed.clone())]);
                out.push(rule(&format!("{key} {direction}[{i}]"), steps));
            }
        }
    }
    let chain = Chain::regular(names::policy_chain(direction, family, key));
    add_chain(desired, chain, out);
}

/// One test for each set of pods, one for all networks.
fn peer_tests(
    peers: &Peers,
    direction: Direction,
    family: Family,
    desired: &mut Desired,
) -> Vec<Test> {
    // Who is at the other end of what goes to a pod is where it comes from.
    let other = match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    };
    let within = |set: &str| vec![address_of(other, family, R), lookup(set, R)];
    let pods = peers
        .pods
        .iter()
        .map(|set| within(&names::pods(set, family)));
    let mut tests: Vec<Test> = pods.collect();
    let ranges = peers.ranges(family);
    if !ranges.is_empty() {
        let name = names::nets(ranges, family);
        let elements = range_elements(family, ranges);
        add_ranges(desired, &name, data_type(family), elements);
        tests.push(within(&name));
    }
    tests
}

/// One test for the numbers of a protocol, one for each name.
fn port_tests(ports: &Ports, family: Family, desired: &mut Desired) -> Vec<Test> {
    let mut tests = Vec::new();
    for (protocol, ranges) in &ports.numbers {
        tests.push(number_test(*protocol, ranges, desired));
    }
    for (protocol, name) in &ports.names {
        let v6 = family == Family::V6;
        let second = if v6 { Reg::at(4) } else { Reg::at(1) };
        let mut test = protocol_is(protocol.number()).to_vec();
        test.push(Expr::destination(v6, R));
        test.push(Expr::destination_port(second));
        test.push(lookup(&names::named(*protocol, name, family), R));
        tests.push(test);
    }
    tests
}

fn number_test(protocol: Protocol, ranges: &[Range], desired: &mut Desired) -> Test {
    let mut test = protocol_is(protocol.number()).to_vec();
    match ranges {
        [(0, 65535)] => return test,
        [(first, last)] => {
            test.push(Expr::destination_port(R));
            if first == last {
                test.push(Expr::equals(R, port_bytes(*first)));
            } else {
                for (op, bound) in [(CmpOp::Ge, first), (CmpOp::Le, last)] {
                    test.push(Expr::Cmp {
                        reg: R,
                        op,
                        value: port_bytes(*bound),
                    });
                }
            }
        }
        several => {
            let name = names::ports(several);
            let range =
                |(first, last): &Range| Element::range(port_bytes(*first), port_bytes(*last));
            let elements = several.iter().map(range).collect();
            add_ranges(desired, &name, DataType::Port, elements);
            test.push(Expr::destination_port(R));
            test.push(lookup(&name, R));
        }
    }
    test
}

fn port_bytes(port: u128) -> Vec<u8> {
    port.to_be_bytes()[14..].to_vec()
}

/// A set of ranges, which says all by its name: whoever needs the same uses the same.
fn add_ranges(desired: &mut Desired, name: &Arc<str>, key: DataType, elements: Vec<Element>) {
    if desired.sets.contains_key(&**name) {
        return;
    }
    let set = Set {
        interval: true,
        ..Set::new(&**name, [key])
    };
    let what = if key == DataType::Port {
        "ports"
    } else {
        "addresses of ipBlock"
    };
    add_set(desired, set, what);
    desired
        .fixed
        .extend(elements.into_iter().map(|element| (name.clone(), element)));
}
