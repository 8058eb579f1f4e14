//! What is in the table whatever the policies say.
//!
//! ```text
//! forward, output -> (established? accept) -> judge -> egress group -> ingress -> ingress group
//! ```

use api::cidr::Family;

use super::{add_set, data_type, names};
use crate::nft::{
    Base, Chain, ChainKind, CmpOp, CtKey, Expr, FibResult, Hook, MetaKey, Reg, Reject, Rule, Set,
    Verdict, fib,
};
use crate::objects::{ChainPlan, Desired};
use crate::parse::{Direction, Key};

/// Before other filters (0): what they reject with an answer is not told to those who may not ask.
const PRIORITY: i32 = -10;

/// `NF_CT_STATE_BIT` of established and related (`linux/netfilter/nf_conntrack_common.h`).
const GOES_ON: u32 = 2 | 4;
/// The same of new, and of untracked.
const IS_NEW: u32 = 8 | 64;

/// EtherTypes.
pub(super) const IPV4: [u8; 2] = [0x08, 0x00];
pub(super) const IPV6: [u8; 2] = [0x86, 0xdd];

const TCP: u8 = 6;
const ICMPV6: u8 = 58;

/// The byte of flags in a TCP header, and those of a packet that opens or aborts a connection.
const TCP_FLAGS_AT: u32 = 13;
const SYN_OR_RST: u8 = 0x02 | 0x04;

/// ICMPv6 types that belong to the link itself: listener and neighbour discovery (RFC 4861,
/// RFC 2710), and the newer listener report (RFC 3810).
const LINK_TYPES: (u8, u8) = (130, 137);
const LISTENER_REPORT: u8 = 143;

const R: Reg = Reg::at(0);

pub(super) fn rule(what: &str, expressions: impl IntoIterator<Item = Expr>) -> Rule {
    let rule = Rule::new(expressions);
    let digest = names::digest(&format!("{:?}", rule.expressions), 16);
    // The digest must survive: comments are cut at 253 bytes.
    let mut what = what.to_owned();
    while what.len() > 200 {
        what.pop();
    }
    rule.comment(format!("{what} #{digest}"))
}

pub(super) fn verdict(verdict: Verdict) -> Expr {
    Expr::Verdict(verdict)
}

/// The address of the pod in question: where packets come from, or go to.
pub(super) fn address_of(direction: Direction, family: Family, to: Reg) -> Expr {
    let v6 = family == Family::V6;
    match direction {
        Direction::Ingress => Expr::destination(v6, to),
        Direction::Egress => Expr::source(v6, to),
    }
}

pub(super) fn lookup(set: &str, key: Reg) -> Expr {
    Expr::Lookup {
        set: set.to_owned(),
        key,
        not: false,
    }
}

pub(super) fn protocol_is(protocol: u8) -> [Expr; 2] {
    [
        Expr::Meta {
            key: MetaKey::L4Protocol,
            to: R,
        },
        Expr::equals(R, [protocol]),
    ]
}

fn compare(op: CmpOp, value: u8) -> Expr {
    Expr::Cmp {
        reg: R,
        op,
        value: vec![value],
    }
}

/// Goes on with the type of an ICMPv6 message, and with nothing else.
fn icmpv6_type() -> [Expr; 3] {
    let [load, is_icmpv6] = protocol_is(ICMPV6);
    let type_of = Expr::Payload {
        base: Base::Transport,
        offset: 0,
        length: 1,
        to: R,
    };
    [load, is_icmpv6, type_of]
}

/// Goes on with neighbour and listener discovery.
pub(super) fn is_discovery() -> impl Iterator<Item = Expr> {
    let range = [
        compare(CmpOp::Ge, LINK_TYPES.0),
        compare(CmpOp::Le, LINK_TYPES.1),
    ];
    icmpv6_type().into_iter().chain(range)
}

/// Whether the connection's state is one of these.
fn state_is(bits: u32) -> [Expr; 3] {
    [
        Expr::Ct {
            key: CtKey::State,
            to: R,
        },
        Expr::and(R, bits.to_ne_bytes()),
        Expr::differs(R, 0_u32.to_ne_bytes()),
    ]
}

pub(super) fn add_chain(desired: &mut Desired, chain: Chain, rules: Vec<Rule>) {
    let name = chain.name.clone();
    desired.chains.insert(name, ChainPlan { chain, rules });
}

/// Adds all of it for one family, and what serves both.
pub(super) fn add(desired: &mut Desired, family: Family) {
    sets(desired, family);
    let judge = judge(family);
    add_chain(desired, Chain::regular(names::of("judge", family)), judge);
    let midstream = midstream(family);
    add_chain(
        desired,
        Chain::regular(names::of("midstream", family)),
        midstream,
    );
    let mut ingress = vec![into_group(Direction::Ingress, family)];
    ingress.push(rule("allowed", [verdict(Verdict::Accept)]));
    add_chain(
        desired,
        Chain::regular(names::of("ingress", family)),
        ingress,
    );
    for (name, hook) in [
        (names::FORWARD, Hook::Forward),
        (names::OUTPUT, Hook::Output),
    ] {
        let chain = Chain::base(name, ChainKind::Filter, hook, PRIORITY);
        add_chain(desired, chain, entry(hook));
    }
}

fn sets(desired: &mut Desired, family: Family) {
    let address = data_type(family);
    let known = Set::new(names::of("known", family), [address]);
    add_set(desired, known, "addresses of this node's pods");
    let isolated = Set::new(names::of("isolated", family), [address]);
    add_set(desired, isolated, "isolated pods of this node");
    let own = Set::new(names::of("self", family), [address, address]);
    add_set(desired, own, "isolated pods, each with itself");
    for direction in Direction::BOTH {
        let name = names::of_direction(direction, "pods", family);
        let pods = Set::verdict_map(name, [address]);
        add_set(
            desired,
            pods,
            "isolated pods of this node, and what their policies allow",
        );
        let closed = Set {
            interval: true,
            ..Set::new(names::of_direction(direction, "closed", family), [address])
        };
        add_set(desired, closed, "where an isolated pod is about to appear");
    }
}

/// The rules that the kernel enters.
fn entry(hook: Hook) -> Vec<Rule> {
    let goes_on = state_is(GOES_ON)
        .into_iter()
        .chain([verdict(Verdict::Accept)]);
    let mut rules = vec![rule("connections that were allowed", goes_on)];
    if hook == Hook::Output {
        // IPVS sends what it forwards through here, too, with the client's address.
        let local = [
            Expr::Fib {
                flags: fib::SOURCE,
                result: FibResult::AddressType,
                to: R,
            },
            Expr::equals(R, fib::LOCAL.to_ne_bytes()),
            verdict(Verdict::Accept),
        ];
        rules.push(rule("the node itself: probes", local));
    }
    for (family, kind) in [(Family::V4, IPV4), (Family::V6, IPV6)] {
        let of_family = [
            Expr::Meta {
                key: MetaKey::EtherType,
                to: R,
            },
            Expr::equals(R, kind),
            verdict(Verdict::Goto(names::of("judge", family))),
        ];
        rules.push(rule(&format!("{family}"), of_family));
    }
    rules
}

fn judge(family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    if family == Family::V6 {
        let accept = verdict(Verdict::Accept);
        let discovery = is_discovery().chain([accept.clone()]);
        rules.push(rule("neighbour and listener discovery", discovery));
        let is_report = compare(CmpOp::Eq, LISTENER_REPORT);
        let report = icmpv6_type().into_iter().chain([is_report, accept]);
        rules.push(rule("listener reports", report));
    }
    let flags = [
        Expr::Payload {
            base: Base::Transport,
            offset: TCP_FLAGS_AT,
            length: 1,
            to: R,
        },
        Expr::and(R, [SYN_OR_RST]),
        Expr::equals(R, [0]),
        verdict(Verdict::Jump(names::of("midstream", family))),
    ];
    let stray = state_is(IS_NEW)
        .into_iter()
        .chain(protocol_is(TCP))
        .chain(flags);
    rules.push(rule(
        "TCP in the middle of a connection that is not known",
        stray,
    ));
    for direction in Direction::BOTH {
        let closed = [
            address_of(direction, family, R),
            lookup(&names::of_direction(direction, "closed", family), R),
            Expr::Lookup {
                set: names::of("known", family),
                key: R,
                not: true,
            },
            Expr::Counter,
            verdict(Verdict::Drop),
        ];
        rules.push(rule(
            &format!("{direction} of a pod that is not known yet"),
            closed,
        ));
    }
    rules.push(into_group(Direction::Egress, family));
    rules.push(rule(
        "egress allowed",
        [verdict(Verdict::Goto(names::of("ingress", family)))],
    ));
    rules
}

/// Goes on at the chain of the pod's group, if it is isolated.
fn into_group(direction: Direction, family: Family) -> Rule {
    let steps = [
        address_of(direction, family, R),
        Expr::VerdictMap {
            map: names::of_direction(direction, "pods", family),
            key: R,
        },
    ];
    rule(&format!("{direction} of isolated pods"), steps)
}

/// A connection that was cut would come back with the next packet, as one from the other side. At
/// isolated pods it does not: who sends it is told by a reset.
fn midstream(family: Family) -> Vec<Rule> {
    let ends = [(Direction::Ingress, "to"), (Direction::Egress, "from")];
    let rules = ends.map(|(side, end)| {
        let steps = [
            address_of(side, family, R),
            lookup(&names::of("isolated", family), R),
            Expr::Counter,
            Expr::Reject(Reject::TcpReset),
        ];
        rule(&format!("{end} an isolated pod"), steps)
    });
    rules.into()
}

/// The chain of a group: whatever one of its policies allows, and what a pod says to itself.
pub(super) fn group_chain(
    chain: &str,
    direction: Direction,
    family: Family,
    group: &[Key],
    desired: &mut Desired,
) {
    let mut rules = Vec::new();
    for key in group {
        let policy = names::policy_chain(direction, family, key);
        rules.push(rule(&key.to_string(), [verdict(Verdict::Jump(policy))]));
    }
    let v6 = family == Family::V6;
    let second = if v6 { Reg::at(4) } else { Reg::at(1) };
    let itself = [
        Expr::source(v6, R),
        Expr::destination(v6, second),
        lookup(&names::of("self", family), R),
        verdict(Verdict::Accept),
    ];
    rules.push(rule("itself", itself));
    rules.push(rule("not allowed", [Expr::Counter, verdict(Verdict::Drop)]));
    add_chain(desired, Chain::regular(chain), rules);
}
