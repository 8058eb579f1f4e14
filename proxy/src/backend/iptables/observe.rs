//! What is in the kernel: our own chains, and the rules in built-in chains that lead into them.
//! Everything else in the listing is skipped unread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use api::cidr::parse_ip;

use super::names;
use super::rule::{ChainName, ChainRef, Table};
use crate::conntrack::Frontends;

/// What a listing shows of us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our chains, and how many rules each has.
    pub chains: BTreeMap<ChainRef, usize>,
    /// Rules of built-in chains that lead into ours, as printed.
    pub hooks: BTreeMap<(ChainRef, ChainName), String>,
}

/// Reads what `iptables-save` prints.
pub fn parse(listing: &str) -> Observed {
    let mut observed = Observed::default();
    let mut table = None;
    for line in listing.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name);
        } else if let (Some(table), Some(rest)) = (table, line.strip_prefix(':')) {
            let name = rest.split(' ').next().unwrap_or_default();
            if names::is_ours(name) && name.len() <= names::CHAIN_NAME_MAX {
                observed
                    .chains
                    .entry(ChainRef::new(table, name))
                    .or_insert(0);
            }
        } else if let (Some(table), Some(rest)) = (table, line.strip_prefix("-A ")) {
            rule(table, rest, line, &mut observed);
        }
    }
    observed
}

/// The built-in chains of what `iptables-save` prints that do nothing: without rules, and with the
/// policy to accept.
pub fn idle_chains(listing: &str) -> BTreeSet<ChainRef> {
    let mut idle = BTreeSet::new();
    let mut table = None;
    for line in listing.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name);
        } else if let (Some(table), [first, "ACCEPT", ..]) = (table, &words[..]) {
            let name = first.strip_prefix(':');
            idle.extend(name.map(|name| ChainRef::new(table, name)));
        } else if let (Some(table), ["-A", chain, ..]) = (table, &words[..]) {
            idle.remove(&ChainRef::new(table, chain));
        }
    }
    idle
}

/// The UDP addresses and node ports that rules of ours translate, of what `iptables-save` prints.
pub fn frontends(listing: &str) -> Frontends {
    let mut found = Frontends::default();
    let nat = listing.split("*nat").nth(1).unwrap_or_default();
    let nat = nat.split("COMMIT").next().unwrap_or_default();
    for line in nat.lines() {
        let mut words = line.split(' ');
        let ours = words.next() == Some("-A") && words.next().is_some_and(names::is_ours);
        let after = |flag: &str| {
            let rest = line.split_once(&format!(" {flag} "))?.1;
            rest.split(' ').next()
        };
        let port = after("--dport").and_then(|port| port.parse().ok());
        let (true, Some("udp"), Some(port)) = (ours, after("-p"), port) else {
            continue;
        };
        let address = after("-d").map(|net| net.split('/').next().and_then(parse_ip));
        match address {
            Some(Some(ip)) => found.addresses.extend([SocketAddr::new(ip, port)]),
            Some(None) => {}
            None => found.node_ports.extend([port]),
        }
    }
    found
}

fn rule(table: Table, rest: &str, line: &str, observed: &mut Observed) {
    let chain = rest.split(' ').next().unwrap_or_default();
    if chain.len() > names::CHAIN_NAME_MAX {
        return;
    }
    if names::is_ours(chain) {
        *observed
            .chains
            .entry(ChainRef::new(table, chain))
            .or_insert(0) += 1;
        return;
    }
    // No other of our targets is jumped to with options behind its name.
    let Some((_, target)) = rest.rsplit_once("-j ") else {
        return;
    };
    if names::FIXED.contains(&target.trim_end()) {
        let key = (
            ChainRef::new(table, chain),
            ChainName::new(target.trim_end()),
        );
        observed.hooks.insert(key, line.trim_end().to_owned());
    }
}
