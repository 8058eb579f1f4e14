//! Rules and sets of nf_tables, in a table of our own for each family.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::cidr::Family;
use ipnetwork::IpNetwork;
use linux::Result;
use linux::nftables::{
    Batch, Chain, ChainKind, CtKey, DataType, Element as Wire, Expr, Family as NftFamily,
    FibResult, Hook as NftHook, MetaKey, NatFlags, Nftables, Reg, Reject, Rule as NftRule, Set,
    TableRef, Value, Verdict, concat, fib, priority,
};
use sha2::{Digest, Sha256};

use super::Filter;
use crate::backend::ipvs::rules::{Action, Hook, Match, Rule, rules};
use crate::backend::ipvs::sets::{Element, Entry, Key, SetId, Shape};
use crate::backend::{DetectLocal, Settings};
use crate::model::Protocol;

/// Name of the tables.
pub const TABLE: &str = "seaway-ipvs";

/// "Port unreachable" of ICMP and of ICMPv6.
const PORT_UNREACHABLE_V4: u8 = 3;
const PORT_UNREACHABLE_V6: u8 = 4;

/// The kernel's bit for the first packet of a connection (`NF_CT_STATE_BIT(IP_CT_NEW)`).
const NEW: u32 = 8;

/// Before the load balancer sees what the node sends (it does at `NF_IP_PRI_NAT_DST` + 2).
const BEFORE_IPVS: i32 = priority::MANGLE + 1;

const R0: Reg = Reg::at(0);
/// Behind any key.
const RESULT: Reg = Reg::at(12);

/// One family's.
pub struct Nft {
    v6: bool,
    table: TableRef,
    door: Nftables,
}

impl Nft {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or none for this family.
    pub fn open(family: Family) -> Result<Self> {
        let v6 = family == Family::V6;
        let of = if v6 { NftFamily::Ipv6 } else { NftFamily::Ipv4 };
        Ok(Self {
            v6,
            table: TableRef::new(of, TABLE),
            door: Nftables::open_for(of)?,
        })
    }

    fn family(&self) -> Family {
        if self.v6 { Family::V6 } else { Family::V4 }
    }

    fn has_rules(&mut self, settings: &Settings) -> Result<bool> {
        if !self.door.has_table(&self.table)? {
            return Ok(false);
        }
        let found: Vec<(String, Option<String>)> = self
            .door
            .rules(&self.table)?
            .into_iter()
            .map(|rule| (rule.chain, rule.comment))
            .collect();
        let mut wanted: Vec<(String, Option<String>)> = Vec::new();
        let mut chains = chains(settings);
        chains.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        for (chain, rules) in chains {
            wanted.extend(
                rules
                    .into_iter()
                    .map(|rule| (chain.name.clone(), rule.comment)),
            );
        }
        // Within a chain the order counts, between chains it does not.
        let mut found = found;
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found == wanted)
    }

    /// Whether there are sets that we do not make so: those of another version of this program.
    fn has_other_sets(&mut self) -> Result<bool> {
        let found = self.door.sets(&self.table)?;
        let family = self.family();
        Ok(!found.iter().all(|listed| {
            SetId::ALL
                .iter()
                .any(|set| listed.is_like(&set_of(*set, family)))
        }))
    }

    /// Whether all sets are there as we make them.
    fn has_sets(&mut self) -> Result<bool> {
        let found = self.door.sets(&self.table)?;
        let family = self.family();
        Ok(SetId::ALL.iter().all(|set| {
            found
                .iter()
                .any(|listed| listed.is_like(&set_of(*set, family)))
        }))
    }
}

impl Filter for Nft {
    fn install(&mut self, settings: &Settings) -> Result<BTreeSet<Entry>> {
        let there = self.door.has_table(&self.table)?;
        let good_sets = there && self.has_sets()?;
        if !(good_sets && self.has_rules(settings)?) {
            let mut batch = Batch::new();
            if there && !good_sets && self.has_other_sets()? {
                batch.delete_table(&self.table);
            }
            let comment = "virtual servers of IPVS: what they cannot tell apart";
            batch.add_table(&self.table, Some(comment));
            for set in SetId::ALL {
                batch.add_set(&self.table, &set_of(set, self.family()));
            }
            for (chain, rules) in chains(settings) {
                batch.add_chain(&self.table, &chain);
                batch.flush_chain(&self.table, &chain.name);
                for rule in rules {
                    batch.add_rule(&self.table, &chain.name, &rule);
                }
            }
            self.door.commit(&batch)?;
        }
        self.entries()
    }

    fn installed(&mut self, settings: &Settings) -> Result<Option<BTreeSet<Entry>>> {
        if !self.has_rules(settings)? || !self.has_sets()? {
            return Ok(None);
        }
        self.entries().map(Some)
    }

    fn entries(&mut self) -> Result<BTreeSet<Entry>> {
        let mut entries = BTreeSet::new();
        if !self.door.has_table(&self.table)? {
            return Ok(entries);
        }
        let family = self.family();
        let found = self.door.sets(&self.table)?;
        for set in SetId::ALL {
            let wire = set_of(set, family);
            if !found.iter().any(|listed| listed.is_like(&wire)) {
                continue;
            }
            let all = self.door.elements(&self.table, &wire)?;
            let read = |wire: &Wire| Some((set, from_wire(set, wire, family)?));
            entries.extend(all.iter().filter_map(read));
        }
        Ok(entries)
    }

    fn change(&mut self, add: &[Entry], delete: &[Entry]) -> Result<()> {
        let family = self.family();
        let mut batch = Batch::new();
        for set in SetId::ALL {
            let of = |entries: &[Entry]| -> Vec<Wire> {
                let own = entries.iter().filter(|(of, _)| *of == set);
                own.map(|(_, element)| to_wire(set, element)).collect()
            };
            let wire = set_of(set, family);
            let (gone, new) = (of(delete), of(add));
            if !gone.is_empty() {
                batch.delete_elements(&self.table, &wire, &gone);
            }
            if !new.is_empty() {
                batch.add_elements(&self.table, &wire, &new);
            }
        }
        self.door.commit(&batch)
    }

    fn remove(&mut self) -> Result<()> {
        self.door.ensure_no_table(&self.table).map(drop)
    }
}

/// A set as the kernel has it.
fn set_of(set: SetId, family: Family) -> Set {
    let ip = match family {
        Family::V4 => DataType::Ipv4,
        Family::V6 => DataType::Ipv6,
    };
    let key = vec![ip, DataType::Protocol, DataType::Port];
    match set.shape() {
        Shape::Ip => Set::new(set.name(), vec![ip]),
        Shape::Port => Set::new(set.name(), vec![DataType::Port]),
        Shape::Key => Set::new(set.name(), key),
        Shape::KeyMark => Set::map(set.name(), key, vec![DataType::Mark]),
        Shape::KeySource => Set::new(set.name(), [key, vec![ip]].concat()),
        Shape::KeyNet => Set {
            interval: true,
            ..Set::new(set.name(), [key, vec![ip]].concat())
        },
    }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn key_bytes(key: &Key) -> Vec<u8> {
    concat(&[
        &bytes(key.ip),
        &[number(key.protocol)],
        &key.port.to_be_bytes(),
    ])
}

fn to_wire(set: SetId, element: &Element) -> Wire {
    match element {
        Element::Ip(ip) => Wire::new(bytes(*ip)),
        Element::Port(port) => Wire::new(port.to_be_bytes()),
        Element::Key(key) => Wire::new(key_bytes(key)),
        Element::From(key, net) => {
            let with = |ip| [key_bytes(key), bytes(ip)].concat();
            if set.shape() == Shape::KeySource {
                return Wire::new(with(net.ip()));
            }
            Wire::range(with(net.network()), with(net.broadcast()))
        }
        Element::Mark(key, mark) => Wire::data(key_bytes(key), mark.to_ne_bytes()),
    }
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn from_wire(set: SetId, wire: &Wire, family: Family) -> Option<Element> {
    let length = match family {
        Family::V4 => 4,
        Family::V6 => 16,
    };
    let shape = set.shape();
    if shape == Shape::Port {
        let port = wire.key.get(..2)?.try_into().ok()?;
        return Some(Element::Port(u16::from_be_bytes(port)));
    }
    let ip = ip_of(wire.key.get(..length)?)?;
    if shape == Shape::Ip {
        return Some(Element::Ip(ip));
    }
    let protocol = *wire.key.get(length)?;
    let port = wire.key.get(length + 4..length + 6)?;
    let key = Key {
        ip,
        protocol: Protocol::ALL.into_iter().find(|p| number(*p) == protocol)?,
        port: u16::from_be_bytes(port.try_into().ok()?),
    };
    let from = length + 8..2 * length + 8;
    match (shape, &wire.value) {
        (Shape::KeyMark, Some(Value::Data(mark))) => {
            let mark = mark.get(..4)?.try_into().ok()?;
            Some(Element::Mark(key, u32::from_ne_bytes(mark)))
        }
        (Shape::KeyMark, _) => None,
        (Shape::KeySource, _) => {
            let source = ip_of(wire.key.get(from)?)?;
            Some(Element::From(key, IpNetwork::from(source)))
        }
        (Shape::KeyNet, _) => {
            let first = ip_of(wire.key.get(from.clone())?)?;
            let end = wire.key_end.as_ref().unwrap_or(&wire.key);
            let last = ip_of(end.get(from)?)?;
            Some(Element::From(key, net_of(first, last)?))
        }
        _ => Some(Element::Key(key)),
    }
}

/// The network from its first to its last address.
fn net_of(first: IpAddr, last: IpAddr) -> Option<IpNetwork> {
    let same = |a: &[u8], b: &[u8]| {
        let mut bits = 0;
        for (a, b) in a.iter().zip(b) {
            bits += (a ^ b).leading_zeros();
            if a != b {
                break;
            }
        }
        bits
    };
    let bits = same(&bytes(first), &bytes(last));
    IpNetwork::new(first, u8::try_from(bits).ok()?).ok()
}

/// All chains with their rules.
fn chains(settings: &Settings) -> Vec<(Chain, Vec<NftRule>)> {
    use ChainKind::{Filter as Plain, Nat};
    let base = [
        (
            Hook::Prerouting,
            "prerouting",
            Plain,
            NftHook::Prerouting,
            priority::MANGLE,
        ),
        (
            Hook::Output,
            "output",
            Plain,
            NftHook::Output,
            priority::MANGLE,
        ),
        (
            Hook::Refuse,
            "refuse-in",
            Plain,
            NftHook::Input,
            priority::FILTER,
        ),
        (
            Hook::Refuse,
            "refuse-out",
            Plain,
            NftHook::Output,
            BEFORE_IPVS,
        ),
        (
            Hook::Leaving,
            "leaving",
            Plain,
            NftHook::Postrouting,
            priority::MANGLE,
        ),
        (
            Hook::Masquerade,
            "masquerade",
            Nat,
            NftHook::Postrouting,
            priority::SRCNAT,
        ),
    ];
    let chain = |(hook, name, kind, at, priority)| {
        let rules = rules(hook, settings);
        let rules = rules.iter().flat_map(|rule| write(rule, settings));
        (Chain::base(name, kind, at, priority), rules.collect())
    };
    base.into_iter().map(chain).collect()
}

/// One rule; what refuses is a rule for each protocol.
fn write(rule: &Rule, settings: &Settings) -> Vec<NftRule> {
    let protocols: &[Option<Protocol>] = match rule.action {
        Action::Reject => &[
            Some(Protocol::Tcp),
            Some(Protocol::Udp),
            Some(Protocol::Sctp),
        ],
        _ => &[None],
    };
    let one = |protocol: &Option<Protocol>| {
        let mut expressions = Vec::new();
        if let Some(protocol) = protocol {
            expressions.push(Expr::Meta {
                key: MetaKey::L4Protocol,
                to: R0,
            });
            expressions.push(Expr::equals(R0, [number(*protocol)]));
        }
        for each in &rule.matches {
            write_match(each, rule.action, settings, &mut expressions);
        }
        write_action(rule.action, *protocol, settings, &mut expressions);
        let plain = NftRule::new(expressions);
        // What the kernel lists is not what was written: the comment says whether it is.
        let digest = Sha256::digest(plain.bytes());
        let short: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
        plain.comment(short)
    };
    protocols.iter().map(one).collect()
}

/// Loads what a set looks at from register 0 on.
fn load(set: SetId, v6: bool, out: &mut Vec<Expr>) {
    let words = if v6 { 4 } else { 1 };
    match set.shape() {
        Shape::Ip => out.push(Expr::destination(v6, R0)),
        Shape::Port => out.push(Expr::destination_port(R0)),
        Shape::Key | Shape::KeyMark | Shape::KeySource | Shape::KeyNet => {
            out.push(Expr::destination(v6, R0));
            out.push(Expr::Meta {
                key: MetaKey::L4Protocol,
                to: Reg::at(words),
            });
            out.push(Expr::destination_port(Reg::at(words + 1)));
            if matches!(set.shape(), Shape::KeySource | Shape::KeyNet) {
                out.push(Expr::source(v6, Reg::at(words + 2)));
            }
        }
    }
}

fn write_match(each: &Match, action: Action, settings: &Settings, out: &mut Vec<Expr>) {
    let v6 = settings.family == Family::V6;
    let compare = |value: Vec<u8>, not: bool| {
        if not {
            Expr::differs(R0, value)
        } else {
            Expr::equals(R0, value)
        }
    };
    match each {
        Match::Pod { detect, not } => match detect {
            DetectLocal::Net(net) => {
                out.push(Expr::source(v6, R0));
                out.push(Expr::and(R0, bytes(net.mask())));
                out.push(compare(bytes(net.network()), *not));
            }
            DetectLocal::Interface(name) | DetectLocal::InterfacePrefix(name) => {
                let mut value = name.clone().into_bytes();
                if matches!(detect, DetectLocal::Interface(_)) {
                    value.resize(16, 0);
                }
                out.push(Expr::Meta {
                    key: MetaKey::InputInterface,
                    to: R0,
                });
                out.push(compare(value, *not));
            }
        },
        Match::New => {
            out.push(Expr::Ct {
                key: CtKey::State,
                to: R0,
            });
            out.push(Expr::and(R0, NEW.to_ne_bytes()));
            out.push(Expr::differs(R0, [0; 4]));
        }
        // The action looks it up by itself.
        Match::In {
            set: SetId::Inside, ..
        } if action == Action::MapMark => {}
        Match::In { set, not } => {
            load(*set, v6, out);
            out.push(Expr::Lookup {
                set: set.name().to_owned(),
                key: R0,
                not: *not,
            });
        }
        Match::SourceIsService => {
            out.push(Expr::source(v6, R0));
            out.push(Expr::Lookup {
                set: SetId::Addresses.name().to_owned(),
                key: R0,
                not: false,
            });
        }
        Match::SourceIsLocal => {
            out.push(Expr::Fib {
                flags: fib::SOURCE,
                result: FibResult::AddressType,
                to: R0,
            });
            out.push(Expr::equals(R0, fib::LOCAL.to_ne_bytes()));
        }
        // What is refused is told by protocol.
        Match::HasPorts => {}
        Match::Protocol(protocol) => {
            out.push(Expr::Meta {
                key: MetaKey::L4Protocol,
                to: R0,
            });
            out.push(Expr::equals(R0, [number(*protocol)]));
        }
        Match::Marked { value, mask } => {
            out.push(Expr::Meta {
                key: MetaKey::Mark,
                to: R0,
            });
            out.push(Expr::and(R0, mask.to_ne_bytes()));
            out.push(Expr::equals(R0, value.to_ne_bytes()));
        }
    }
}

fn write_action(
    action: Action,
    protocol: Option<Protocol>,
    settings: &Settings,
    out: &mut Vec<Expr>,
) {
    let v6 = settings.family == Family::V6;
    let read_mark = Expr::Meta {
        key: MetaKey::Mark,
        to: R0,
    };
    let write_mark = Expr::SetMeta {
        key: MetaKey::Mark,
        from: R0,
    };
    match action {
        Action::Return => out.push(Expr::Verdict(Verdict::Return)),
        Action::Accept => out.push(Expr::Verdict(Verdict::Accept)),
        Action::Drop => out.push(Expr::Verdict(Verdict::Drop)),
        Action::Reject => out.push(Expr::Reject(match (protocol, v6) {
            (Some(Protocol::Tcp), _) => Reject::TcpReset,
            (_, false) => Reject::Icmp(PORT_UNREACHABLE_V4),
            (_, true) => Reject::Icmp(PORT_UNREACHABLE_V6),
        })),
        Action::SetBits(bits) => {
            out.extend([read_mark, Expr::or(R0, bits.to_ne_bytes()), write_mark]);
        }
        Action::KeepBits(bits) => {
            out.extend([read_mark, Expr::and(R0, bits.to_ne_bytes()), write_mark]);
        }
        Action::MapMark => {
            load(SetId::Inside, v6, out);
            out.push(Expr::Map {
                map: SetId::Inside.name().to_owned(),
                key: R0,
                to: RESULT,
            });
            out.push(Expr::SetMeta {
                key: MetaKey::Mark,
                from: RESULT,
            });
        }
        Action::Masquerade { clear } => {
            if clear != 0 {
                out.extend([read_mark, Expr::and(R0, (!clear).to_ne_bytes()), write_mark]);
            }
            out.push(Expr::Masquerade(NatFlags {
                fully_random: settings.random_fully,
                ..NatFlags::default()
            }));
        }
    }
}
