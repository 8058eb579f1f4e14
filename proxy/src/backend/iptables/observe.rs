//! What is in the kernel: our own chains, and the rules in built-in chains that lead into them.
//! Everything else in the listing is skipped unread.

use std::collections::BTreeMap;

use super::names;
use super::rule::{ChainName, ChainRef, Table};

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
