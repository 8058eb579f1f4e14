//! The nftables form: one table for both families of IP and one for bridged frames, each with a
//! fixed set of rules. A pod is nothing but elements of sets and maps, so a packet costs the same
//! look-ups however many pods there are, and a change makes the kernel validate no rule.

use std::net::IpAddr;

use linux::nftables::{
    Base, Batch, Chain, ChainKind, CtKey, DataType, Element, Expr, Family, FibResult, Hook,
    MetaKey, NatFlags, NatKind, Reg, Rule, Set, TableRef, Verdict, concat, fib, priority,
};

use super::{Entries, Forward, Masquerade};

/// The name of both tables.
const TABLE: &str = "seaway-cni";

/// `IPS_DST_NAT` of `linux/netfilter/nf_conntrack_common.h`.
const DESTINATION_TRANSLATED: u32 = 1 << 5;

/// Length of an interface name in a register (`IFNAMSIZ`).
const IFNAME_BYTES: usize = 16;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const NFPROTO: [u8; 2] = [2, 10];

/// The chain that translates host ports.
const HOSTPORTS: &str = "hostports";

/// Sets and maps of one family.
struct Sets {
    /// Host port of one address, and where it leads.
    ports: Set,
    /// Host port of every address, and where it leads.
    ports_any: Set,
    /// Pods with host ports, twice in each key.
    pods: Set,
    /// Pods' ports that everyone's address is masqueraded for.
    everyone: Set,
    /// Pods whose packets are masqueraded when they leave.
    masquerade: Set,
    /// Pods with the link of their own network, where they are not.
    own: Set,
}

impl Sets {
    fn of(v6: bool) -> Self {
        use DataType::{InterfaceName, Ipv4, Ipv6, Port, Protocol};
        let (family, ip) = if v6 { (6, Ipv6) } else { (4, Ipv4) };
        Self {
            ports: Set::map(format!("ports{family}"), [ip, Protocol, Port], [ip, Port]),
            ports_any: Set::map(format!("ports{family}-any"), [Protocol, Port], [ip, Port]),
            pods: Set::new(format!("pods{family}"), [ip, ip]),
            everyone: Set::new(format!("everyone{family}"), [ip, Protocol, Port]),
            masquerade: Set::new(format!("masquerade{family}"), [ip]),
            own: Set::new(format!("own{family}"), [ip, InterfaceName]),
        }
    }

    fn all(self) -> [Set; 6] {
        [
            self.ports,
            self.ports_any,
            self.pods,
            self.everyone,
            self.masquerade,
            self.own,
        ]
    }
}

/// Bridge ports that are checked.
fn checked() -> Set {
    Set::new("checked", [DataType::InterfaceName])
}

/// Bridge ports with the hardware addresses that may send there.
fn senders() -> Set {
    Set::new("senders", [DataType::InterfaceName, DataType::Mac])
}

/// The table for packets.
pub(super) fn ip_table() -> TableRef {
    TableRef::new(Family::Inet, TABLE)
}

/// The table for bridged frames.
pub(super) fn bridge_table() -> TableRef {
    TableRef::new(Family::Bridge, TABLE)
}

/// All sets and maps of a table.
pub(super) fn sets(table: &TableRef) -> Vec<Set> {
    if table.family == Family::Bridge {
        return vec![checked(), senders()];
    }
    let both = [false, true].map(|v6| Sets::of(v6).all());
    both.into_iter().flatten().collect()
}

/// An element, and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Table.
    pub(super) table: TableRef,
    /// Set or map.
    pub(super) set: Set,
    /// Element with its owner as the comment.
    pub(super) element: Element,
    /// The host port, where it is one: it may be somebody else's.
    pub(super) forward: Option<Forward>,
}

/// Everything of `entries`, as elements.
pub(super) fn elements(entries: &Entries) -> Vec<Entry> {
    let comment = entries.tag.to_string();
    let mut all: Vec<Entry> = Vec::new();
    let mut put = |table: TableRef, set: Set, element: Element, forward: Option<Forward>| {
        let element = element.comment(comment.clone());
        let entry = Entry {
            table,
            set,
            element,
            forward,
        };
        // A pod has one entry in `pods`, however many ports it has.
        if !all.contains(&entry) {
            all.push(entry);
        }
    };
    for forward in &entries.forwards {
        let sets = Sets::of(forward.to.is_ipv6());
        let (to, to_port) = (bytes(forward.to), forward.to_port.to_be_bytes());
        let (protocol, port) = ([forward.protocol.number()], forward.host_port.to_be_bytes());
        let value = concat(&[&to, &to_port]);
        let (set, key) = match forward.host_ip {
            Some(ip) => (sets.ports, concat(&[&bytes(ip), &protocol, &port])),
            None => (sets.ports_any, concat(&[&protocol, &port])),
        };
        put(ip_table(), set, Element::data(key, value), Some(*forward));
        if entries.options.snat {
            let twice = concat(&[&to, &to]);
            put(ip_table(), sets.pods, Element::new(twice), None);
        }
        if entries.options.masq_all {
            let target = concat(&[&to, &protocol, &to_port]);
            put(ip_table(), sets.everyone, Element::new(target), None);
        }
    }
    for Masquerade { pod, bridge, .. } in &entries.masquerades {
        let sets = Sets::of(pod.is_ipv6());
        let ip = bytes(*pod);
        let own = concat(&[&ip, &ifname(bridge)]);
        put(ip_table(), sets.masquerade, Element::new(ip), None);
        put(ip_table(), sets.own, Element::new(own), None);
    }
    if let Some((port, mac)) = &entries.guard {
        let port = ifname(port);
        let sender = concat(&[&port, &mac.0]);
        put(bridge_table(), senders(), Element::new(sender), None);
        put(bridge_table(), checked(), Element::new(port), None);
    }
    all
}

/// Writes the fixed part of `table` as it has to be, whether it is there or not.
pub(super) fn add_layout(batch: &mut Batch, table: &TableRef) {
    batch.add_table(table, Some("pods of seaway-cni"));
    for set in sets(table) {
        batch.add_set(table, &set);
    }
    let chains = if table.family == Family::Bridge {
        bridge_chains()
    } else {
        ip_chains()
    };
    for (chain, _) in &chains {
        batch.add_chain(table, chain);
    }
    for (chain, rules) in &chains {
        batch.flush_chain(table, &chain.name);
        for rule in rules {
            batch.add_rule(table, &chain.name, rule);
        }
    }
}

fn bridge_chains() -> Vec<(Chain, Vec<Rule>)> {
    let name = Reg::at(0);
    let only_from = Rule::new([
        Expr::Meta {
            key: MetaKey::InputInterface,
            to: name,
        },
        lookup(&checked(), name, false),
        Expr::Payload {
            base: Base::Link,
            offset: 6,
            length: 6,
            to: Reg::at(4),
        },
        lookup(&senders(), name, true),
        Expr::Verdict(Verdict::Drop),
    ]);
    let chain = Chain::base(
        "senders",
        ChainKind::Filter,
        Hook::Prerouting,
        priority::RAW,
    );
    let comment = "a pod sends from its own hardware address only";
    vec![(chain, vec![only_from.comment(comment)])]
}

fn ip_chains() -> Vec<(Chain, Vec<Rule>)> {
    let to_us = [
        Expr::Fib {
            flags: fib::DESTINATION,
            result: FibResult::AddressType,
            to: Reg::at(0),
        },
        Expr::equals(Reg::at(0), fib::LOCAL.to_ne_bytes()),
        Expr::Verdict(Verdict::Jump(HOSTPORTS.to_owned())),
    ];
    let nat = |name: &str, hook, at| Chain::base(name, ChainKind::Nat, hook, at);
    let before = nat("prerouting", Hook::Prerouting, priority::DSTNAT);
    let output = nat("output", Hook::Output, priority::DSTNAT);
    let after = nat("postrouting", Hook::Postrouting, priority::SRCNAT);
    let guard = Chain::base(
        "martians",
        ChainKind::Filter,
        Hook::Prerouting,
        priority::RAW,
    );
    vec![
        (Chain::regular(HOSTPORTS), hostports()),
        (before, vec![Rule::new(to_us.clone())]),
        // Nothing leaves a machine with the source ::1, so it stays what it is without us.
        (output, vec![not_from_ipv6_loopback(), Rule::new(to_us)]),
        (after, postrouting()),
        (guard, vec![martians()]),
    ]
}

fn hostports() -> Vec<Rule> {
    let mut rules = Vec::new();
    for v6 in [false, true] {
        let sets = Sets::of(v6);
        let words = address_words(v6);
        for (with_address, map) in [(true, sets.ports), (false, sets.ports_any)] {
            let mut at = 0;
            let mut rule = vec![];
            rule.extend(only_family(v6));
            if with_address {
                rule.push(Expr::destination(v6, Reg::at(0)));
                at += words;
            }
            rule.push(Expr::Meta {
                key: MetaKey::L4Protocol,
                to: Reg::at(at),
            });
            rule.push(Expr::destination_port(Reg::at(at + 1)));
            let to = Reg::at(8);
            rule.push(Expr::Map {
                map: map.name,
                key: Reg::at(0),
                to,
            });
            rule.push(Expr::Nat {
                kind: NatKind::Destination,
                family: if v6 { Family::Ipv6 } else { Family::Ipv4 },
                address: Some(to),
                address_last: None,
                port: Some(Reg::at(8 + words)),
                port_last: None,
                flags: NatFlags::default(),
            });
            rules.push(Rule::new(rule));
        }
    }
    rules
}

fn postrouting() -> Vec<Rule> {
    let masquerade = Expr::Masquerade(NatFlags {
        fully_random: true,
        ..NatFlags::default()
    });
    let mut rules = Vec::new();
    for v6 in [false, true] {
        let sets = Sets::of(v6);
        let words = address_words(v6);
        let (first, second) = (Reg::at(0), Reg::at(words));
        let mut add = |comment: &str, body: Vec<Expr>| {
            let mut rule: Vec<Expr> = only_family(v6).to_vec();
            rule.extend(body);
            rule.push(masquerade.clone());
            rules.push(Rule::new(rule).comment(comment));
        };
        add(
            "a pod that uses its own host port",
            vec![
                Expr::source(v6, first),
                Expr::destination(v6, second),
                lookup(&sets.pods, first, false),
            ],
        );
        if !v6 {
            let loopback = Reg::at(4);
            add(
                "the node's 127.0.0.1 that uses a host port",
                vec![
                    Expr::source(v6, loopback),
                    Expr::and(loopback, [255, 0, 0, 0]),
                    Expr::equals(loopback, [127, 0, 0, 0]),
                    Expr::destination(v6, first),
                    Expr::destination(v6, second),
                    lookup(&sets.pods, first, false),
                ],
            );
        }
        add(
            "masqAll",
            vec![
                Expr::Ct {
                    key: CtKey::Status,
                    to: first,
                },
                Expr::and(first, DESTINATION_TRANSLATED.to_ne_bytes()),
                Expr::differs(first, [0; 4]),
                Expr::destination(v6, first),
                Expr::Meta {
                    key: MetaKey::L4Protocol,
                    to: second,
                },
                Expr::destination_port(Reg::at(words + 1)),
                lookup(&sets.everyone, first, false),
            ],
        );
        let mut leave = vec![
            Expr::source(v6, first),
            lookup(&sets.masquerade, first, false),
            Expr::Meta {
                key: MetaKey::OutputInterface,
                to: second,
            },
            lookup(&sets.own, first, true),
        ];
        leave.extend(not_multicast(v6));
        add("ipMasq", leave);
    }
    rules
}

/// 224.0.0.0/4 and ff00::/8 are not masqueraded: nobody answers to them.
fn not_multicast(v6: bool) -> [Expr; 3] {
    let reg = Reg::at(8);
    let (mask, prefix, length) = if v6 {
        (0xff, 0xff, 16)
    } else {
        (0xf0, 0xe0, 4)
    };
    let first = |byte: u8| {
        let mut bytes = vec![byte];
        bytes.resize(length, 0);
        bytes
    };
    [
        Expr::destination(v6, reg),
        Expr::and(reg, first(mask)),
        Expr::differs(reg, first(prefix)),
    ]
}

/// With `route_localnet` a neighbour could reach what only listens on 127.0.0.1. Replies to
/// connections from there have the node's own address until they are translated back, later on.
fn martians() -> Rule {
    let (address, name) = (Reg::at(0), Reg::at(4));
    let mut rule = only_family(false).to_vec();
    rule.extend([
        Expr::destination(false, address),
        Expr::and(address, [255, 0, 0, 0]),
        Expr::equals(address, [127, 0, 0, 0]),
        Expr::Meta {
            key: MetaKey::InputInterface,
            to: name,
        },
        Expr::differs(name, ifname("lo")),
        Expr::Verdict(Verdict::Drop),
    ]);
    Rule::new(rule).comment("127.0.0.0/8 is no address on a wire")
}

fn not_from_ipv6_loopback() -> Rule {
    let address = Reg::at(0);
    let mut rule = only_family(true).to_vec();
    rule.extend([
        Expr::destination(true, address),
        Expr::equals(address, std::net::Ipv6Addr::LOCALHOST.octets()),
        Expr::Verdict(Verdict::Return),
    ]);
    Rule::new(rule)
}

fn only_family(v6: bool) -> [Expr; 2] {
    let reg = Reg::at(0);
    [
        Expr::Meta {
            key: MetaKey::NfProtocol,
            to: reg,
        },
        Expr::equals(reg, [NFPROTO[usize::from(v6)]]),
    ]
}

fn lookup(set: &Set, key: Reg, not: bool) -> Expr {
    Expr::Lookup {
        set: set.name.clone(),
        key,
        not,
    }
}

/// Registers of 32 bits that an address fills.
fn address_words(v6: bool) -> u8 {
    if v6 { 4 } else { 1 }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An interface name as a key.
fn ifname(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAME_BYTES, 0);
    bytes
}
