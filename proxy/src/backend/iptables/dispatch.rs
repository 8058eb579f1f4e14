//! Dispatch trees: from a packet's destination to the rules for it in a few steps, however many
//! services there are.
//!
//! A tree has up to 16 branches at a node, one for each value of the next four bits of the key
//! (address, protocol, port), and steps over bits that all keys below share. Up to [`LEAF_MAX`]
//! rules are listed in one chain without branching, so a small cluster's chain looks as
//! kube-proxy's does. The shape depends on the set of keys alone, and adding or removing one
//! touches only the chains on the way to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::cidr::Family;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::names;
use super::rule::{ChainName, Match, Rule};
use crate::model::{PortName, Protocol};

/// Rules that one chain lists without branching.
pub const LEAF_MAX: usize = 8;

/// Digits (of four bits) of protocol and port.
const TAIL_DIGITS: usize = 5;

/// What is dispatched on: address (left-aligned), then protocol (4 bits) and port (16 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    ip: u128,
    tail: u32,
}

impl Key {
    /// An address, protocol and port.
    pub fn address(ip: IpAddr, protocol: Protocol, port: u16) -> Self {
        let ip = match ip {
            IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
            IpAddr::V6(v6) => u128::from(v6),
        };
        Self {
            ip,
            ..Self::port(protocol, port)
        }
    }

    /// A protocol and port, in a tree without addresses.
    pub fn port(protocol: Protocol, port: u16) -> Self {
        let protocol: u32 = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Sctp => 2,
        };
        Self {
            ip: 0,
            tail: (protocol << 28) | (u32::from(port) << 12),
        }
    }
}

/// Which keys a tree has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Address, protocol, port.
    Addresses(Family),
    /// Protocol, port.
    Ports,
}

impl Shape {
    fn ip_digits(self) -> usize {
        match self {
            Self::Addresses(family) => usize::from(family.bits()) / 4,
            Self::Ports => 0,
        }
    }

    fn digits(self) -> usize {
        self.ip_digits() + TAIL_DIGITS
    }

    fn digit(self, key: Key, i: usize) -> u8 {
        let digit = match i.checked_sub(self.ip_digits()) {
            None => (key.ip >> (124 - 4 * i)) & 15,
            Some(i) => u128::from((key.tail >> (28 - 4 * i)) & 15),
        };
        u8::try_from(digit).unwrap_or_default()
    }

    /// The first and last key with the first `len` digits of `key`.
    fn range(self, key: Key, len: usize) -> (Key, Key) {
        let (ip_len, tail_len) = match len.checked_sub(self.ip_digits()) {
            None => (len, 0),
            Some(tail) => (self.ip_digits(), tail),
        };
        let ip_free = low_bits(128 - 4 * ip_len);
        let tail_free = u32::MAX
            .checked_shr(u32::try_from(4 * tail_len).unwrap_or(32))
            .unwrap_or(0);
        let first = Key {
            ip: key.ip & !ip_free,
            tail: key.tail & !tail_free,
        };
        let last = Key {
            ip: key.ip
                | if ip_len < self.ip_digits() {
                    ip_free
                } else {
                    0
                },
            tail: key.tail | tail_free,
        };
        (first, last)
    }

    /// How many leading digits two keys share.
    fn common(self, a: Key, b: Key) -> usize {
        let differs = |i: &usize| self.digit(a, *i) != self.digit(b, *i);
        (0..self.digits()).find(differs).unwrap_or(self.digits())
    }
}

fn low_bits(n: usize) -> u128 {
    match n {
        128.. => u128::MAX,
        n => (1 << n) - 1,
    }
}

/// A node of the tree: all keys that begin with the first `len` digits of `first`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    first: Key,
    len: usize,
}

/// A dispatch tree and the chains that make it up.
#[derive(Debug, Clone)]
pub struct Dispatch {
    shape: Shape,
    root: ChainName,
    prefix: &'static str,
    /// By name of the service port, hardly ever more than one of a key.
    rules: BTreeMap<Key, Vec<(PortName, Rule)>>,
}

const ROOT: Node = Node {
    first: Key { ip: 0, tail: 0 },
    len: 0,
};

impl Dispatch {
    /// An empty tree that starts in chain `root` and names its other chains with `prefix`.
    pub fn new(shape: Shape, root: &str, prefix: &'static str) -> Self {
        Self {
            shape,
            root: ChainName::new(root),
            prefix,
            rules: BTreeMap::new(),
        }
    }

    /// Adds the rules of one service port for `key`, or replaces them.
    pub fn insert(&mut self, key: Key, port: PortName, rule: Rule) {
        let rules = self.rules.entry(key).or_default();
        match rules.binary_search_by(|(known, _)| known.cmp(&port)) {
            Ok(at) => rules[at].1 = rule,
            Err(at) => {
                rules.reserve_exact(1);
                rules.insert(at, (port, rule));
            }
        }
    }

    /// Removes the rule of one service port for `key`.
    pub fn remove(&mut self, key: Key, port: &PortName) {
        if let Some(rules) = self.rules.get_mut(&key) {
            rules.retain(|(known, _)| known != port);
            if rules.is_empty() {
                self.rules.remove(&key);
            }
        }
    }

    /// The rule of a service port for `key`.
    pub fn get(&self, key: Key, port: &PortName) -> Option<&Rule> {
        let mut all = self.rules.get(&key)?.iter();
        all.find_map(|(known, rule)| (known == port).then_some(rule))
    }

    /// The nodes whose chains can change when `key` does: those on the way to it, and all below a
    /// node that is about to stop branching, or has just begun to. To be asked before and after.
    pub fn affected(&self, key: Key) -> BTreeSet<Node> {
        let mut nodes = BTreeSet::from([ROOT]);
        let mut node = ROOT;
        while self.branches(node) {
            if self.count(node, LEAF_MAX + 2) <= LEAF_MAX + 1 {
                self.collect(node, &mut nodes);
            }
            let branch = self.shape.range(key, node.len + 1);
            let Some(child) = self.child(branch) else {
                break;
            };
            // Also where the key is not under it: without the key, or with it, another node (that
            // steps over fewer or more bits) stands for the branch.
            nodes.insert(child);
            if self.shape.common(child.first, key) < child.len {
                break;
            }
            node = child;
        }
        nodes
    }

    /// All nodes.
    pub fn nodes(&self) -> BTreeSet<Node> {
        let mut nodes = BTreeSet::from([ROOT]);
        self.collect(ROOT, &mut nodes);
        nodes
    }

    fn collect(&self, node: Node, nodes: &mut BTreeSet<Node>) {
        for branch in self.branch_ranges(node) {
            if let Some(child) = self.child(branch) {
                nodes.insert(child);
                self.collect(child, nodes);
            }
        }
    }

    /// Whether a node is the tree's first.
    pub fn is_root(&self, node: Node) -> bool {
        node == ROOT
    }

    /// The chain of a node.
    pub fn chain(&self, node: Node) -> ChainName {
        if node == ROOT {
            return self.root.clone();
        }
        let text = self.describe(node);
        let net = (node.len <= self.shape.ip_digits())
            .then(|| self.net(node))
            .flatten();
        names::dispatch(self.prefix, net, &text)
    }

    /// The rules of a node's chain; `None` when there is no such node any more.
    pub fn rules(&self, node: Node) -> Option<Vec<Rule>> {
        let exists = node == ROOT || self.is_node(node);
        if !exists {
            return None;
        }
        if !self.branches(node) {
            return Some(self.under(node).cloned().collect());
        }
        let mut rules = Vec::new();
        for branch in self.branch_ranges(node) {
            match self.child(branch) {
                Some(child) => {
                    let text = format!("services of {}", self.describe(child));
                    let jump = Rule::jump(self.matches(child), &self.chain(child));
                    rules.push(jump.comment(text));
                }
                None => rules.extend(self.within(branch).cloned()),
            }
        }
        Some(rules)
    }

    fn within(&self, (first, last): (Key, Key)) -> impl Iterator<Item = &Rule> {
        self.rules
            .range(first..=last)
            .flat_map(|(_, rules)| rules.iter().map(|(_, rule)| rule))
    }

    fn under(&self, node: Node) -> impl Iterator<Item = &Rule> {
        self.within(self.shape.range(node.first, node.len))
    }

    /// How many rules are under a node, counted up to `limit`.
    fn count(&self, node: Node, limit: usize) -> usize {
        self.under(node).take(limit).count()
    }

    fn branches(&self, node: Node) -> bool {
        node.len < self.shape.digits() && self.count(node, LEAF_MAX + 1) > LEAF_MAX
    }

    /// The key ranges of a node's branches; none when it does not branch.
    fn branch_ranges(&self, node: Node) -> Vec<(Key, Key)> {
        if !self.branches(node) {
            return Vec::new();
        }
        let mut ranges = Vec::new();
        let (mut at, end) = self.shape.range(node.first, node.len);
        while let Some((key, _)) = self.rules.range(at..=end).next() {
            let range = self.shape.range(*key, node.len + 1);
            ranges.push(range);
            match successor(range.1) {
                Some(next) if next <= end => at = next,
                _ => break,
            }
        }
        ranges
    }

    /// The node for a branch; `None` when the branch has but one rule, which its parent lists.
    fn child(&self, (first, last): (Key, Key)) -> Option<Node> {
        self.within((first, last)).nth(1)?;
        let mut keys = self.rules.range(first..=last).map(|(key, _)| *key);
        let low = keys.next()?;
        let high = keys.next_back().unwrap_or(low);
        let len = self.shape.common(low, high);
        let (first, _) = self.shape.range(low, len);
        Some(Node { first, len })
    }

    /// Whether the tree has this node at present.
    fn is_node(&self, node: Node) -> bool {
        let mut at = ROOT;
        while at.len < node.len && self.branches(at) {
            match self.child(self.shape.range(node.first, at.len + 1)) {
                Some(child) if child == node => return true,
                Some(child) if self.shape.common(child.first, node.first) >= child.len => {
                    at = child
                }
                _ => return false,
            }
        }
        false
    }

    /// The network of a node's addresses.
    fn net(&self, node: Node) -> Option<IpNetwork> {
        let len = u8::try_from(4 * node.len.min(self.shape.ip_digits())).ok()?;
        match self.shape {
            Shape::Addresses(Family::V4) => {
                let ip = u32::try_from(node.first.ip >> 96).ok()?;
                Some(IpNetwork::V4(
                    Ipv4Network::new(Ipv4Addr::from(ip), len).ok()?,
                ))
            }
            Shape::Addresses(Family::V6) => {
                let ip = Ipv6Addr::from(node.first.ip);
                Some(IpNetwork::V6(Ipv6Network::new(ip, len).ok()?))
            }
            Shape::Ports => None,
        }
    }

    /// Protocol and range of ports of a node, as far as its digits tell.
    fn ports(&self, node: Node) -> (Option<Protocol>, Option<(u16, u16)>) {
        let tail_len = node.len.saturating_sub(self.shape.ip_digits());
        if tail_len == 0 {
            return (None, None);
        }
        let protocol = match node.first.tail >> 28 {
            0 => Protocol::Tcp,
            1 => Protocol::Udp,
            _ => Protocol::Sctp,
        };
        let (first, last) = self.shape.range(node.first, node.len);
        let port = |key: Key| u16::try_from((key.tail >> 12) & 0xffff).unwrap_or_default();
        let ports = (tail_len > 1).then(|| (port(first), port(last)));
        (Some(protocol), ports)
    }

    fn matches(&self, node: Node) -> Vec<Match> {
        let mut matches = Vec::new();
        if let Some(net) = self.net(node) {
            matches.push(Match::Destination { net, not: false });
        }
        match self.ports(node) {
            (Some(protocol), Some((low, high))) => matches.push(Match::Ports(protocol, low, high)),
            (Some(protocol), None) => matches.push(Match::Protocol(protocol)),
            (None, _) => {}
        }
        matches
    }

    fn describe(&self, node: Node) -> String {
        Description {
            net: self.net(node),
            ports: self.ports(node),
        }
        .to_string()
    }
}

/// A node in words.
struct Description {
    net: Option<IpNetwork>,
    ports: (Option<Protocol>, Option<(u16, u16)>),
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(net) = self.net {
            write!(f, "{net}")?;
        }
        let dash = if self.net.is_some() { "-" } else { "" };
        match self.ports {
            (Some(protocol), Some((low, high))) if low == high => {
                write!(f, "{dash}{protocol}-{low}")
            }
            (Some(protocol), Some((low, high))) => write!(f, "{dash}{protocol}-{low}-{high}"),
            (Some(protocol), None) => write!(f, "{dash}{protocol}"),
            (None, _) => Ok(()),
        }
    }
}

/// The next key in order.
fn successor(key: Key) -> Option<Key> {
    match key.tail.checked_add(1) {
        Some(tail) => Some(Key { ip: key.ip, tail }),
        None => Some(Key {
            ip: key.ip.checked_add(1)?,
            tail: 0,
        }),
    }
}
