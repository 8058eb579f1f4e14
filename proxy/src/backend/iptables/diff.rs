//! What is wanted against what is known to be in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::desired::Desired;
use super::render::{hook_suffix, unhook};
use super::rule::{ChainName, ChainRef, Hook, Rule, Table};

/// What is known of a chain of ours in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is there, made by an earlier process or changed by someone.
    Something,
    /// It is there as this process wrote it.
    Written {
        /// A hash of its rules.
        hash: u64,
        /// How many they are.
        rules: usize,
    },
}

impl Known {
    fn written(rules: &[Rule]) -> Self {
        Self::Written {
            hash: fingerprint(rules),
            rules: rules.len(),
        }
    }

    fn rules(self) -> usize {
        match self {
            Self::Something => 0,
            Self::Written { rules, .. } => rules,
        }
    }
}

/// What is known to be in the kernel of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Our chains.
    pub chains: BTreeMap<ChainRef, Known>,
    /// Rules in built-in chains that lead into ours: as `iptables-save` printed them.
    pub hooks: BTreeMap<(ChainRef, ChainName), String>,
    /// How many rules this process wrote that are there.
    pub rules: BTreeMap<Table, usize>,
}

/// A change of the kernel's rules: what to write, in one transaction for each table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Chains to make or to replace as a whole.
    pub write: BTreeMap<ChainRef, Vec<Rule>>,
    /// Chains to delete.
    pub delete: BTreeSet<ChainRef>,
    /// Rules to put into built-in chains.
    pub hooks: Vec<Hook>,
    /// Rules to take out of built-in chains.
    pub unhook: Vec<(Table, String)>,
}

impl Change {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.write.is_empty()
            && self.delete.is_empty()
            && self.hooks.is_empty()
            && self.unhook.is_empty()
    }

    /// Takes out what a failed transaction may have failed on: chains that others still refer to.
    pub fn split_deletes(mut self) -> (Self, Self) {
        let delete = std::mem::take(&mut self.delete);
        // Emptied at least, so that nothing refers to other chains through them.
        for chain in &delete {
            self.write.insert(chain.clone(), Vec::new());
        }
        let deletes = Self {
            delete,
            ..Self::default()
        };
        (self, deletes)
    }
}

/// A hash of a chain's rules, the same in every process.
pub fn fingerprint(rules: &[Rule]) -> u64 {
    let mut hasher = DefaultHasher::new();
    rules.hash(&mut hasher);
    hasher.finish()
}

/// The change for all chains.
pub fn full(desired: &Desired, seen: &Seen) -> Change {
    let chains = desired.chains();
    let mut change = Change {
        delete: seen
            .chains
            .keys()
            .filter(|chain| !chains.contains_key(chain))
            .cloned()
            .collect(),
        ..Change::default()
    };
    for (chain, rules) in chains {
        if differs(seen, &chain, &rules) {
            change.write.insert(chain, rules);
        }
    }
    change.hooks = missing_hooks(desired, seen);
    change.unhook = unwanted_hooks(desired, seen);
    change
}

/// The change for the chains that were touched.
pub fn touched(touched: BTreeMap<ChainRef, Option<Vec<Rule>>>, seen: &Seen) -> Change {
    let mut change = Change::default();
    for (chain, rules) in touched {
        match rules {
            Some(rules) if differs(seen, &chain, &rules) => {
                change.write.insert(chain, rules);
            }
            None if seen.chains.contains_key(&chain) => {
                change.delete.insert(chain);
            }
            _ => {}
        }
    }
    change
}

/// The change that takes away all that is ours.
pub fn cleanup(seen: &Seen) -> Change {
    Change {
        delete: seen.chains.keys().cloned().collect(),
        unhook: seen.hooks.iter().filter_map(unhook_line).collect(),
        ..Change::default()
    }
}

/// What is known after `change` was made.
pub fn applied(seen: &mut Seen, change: &Change) {
    for (chain, rules) in &change.write {
        let known = Known::written(rules);
        let before = match seen.chains.get_mut(chain) {
            Some(before) => Some(std::mem::replace(before, known)),
            // A name of its own: those of the change lie among its rules, and would keep that memory.
            None => seen.chains.insert(chain.copied(), known),
        };
        count(seen, chain.table, before, Some(known));
    }
    for chain in &change.delete {
        let before = seen.chains.remove(chain);
        count(seen, chain.table, before, None);
    }
    let unhooked: BTreeSet<&String> = change.unhook.iter().map(|(_, line)| line).collect();
    seen.hooks
        .retain(|_, saved| unhook(saved).is_none_or(|line| !unhooked.contains(&line)));
    for hook in &change.hooks {
        if let Some(target) = hook.target() {
            let saved = format!("-A {} {}", hook.chain.name, hook.rule);
            seen.hooks
                .insert((hook.chain.clone(), target.clone()), saved);
        }
    }
}

fn count(seen: &mut Seen, table: Table, before: Option<Known>, after: Option<Known>) {
    let total = seen.rules.entry(table).or_default();
    *total += after.map_or(0, Known::rules);
    *total = total.saturating_sub(before.map_or(0, Known::rules));
}

fn differs(seen: &Seen, chain: &ChainRef, rules: &[Rule]) -> bool {
    seen.chains.get(chain) != Some(&Known::written(rules))
}

fn missing_hooks(desired: &Desired, seen: &Seen) -> Vec<Hook> {
    let missing = desired.hooks().iter().filter(|hook| {
        hook.target().is_some_and(|target| {
            !seen
                .hooks
                .contains_key(&(hook.chain.clone(), target.clone()))
        })
    });
    missing.cloned().collect()
}

fn unwanted_hooks(desired: &Desired, seen: &Seen) -> Vec<(Table, String)> {
    let wanted: BTreeSet<(&ChainRef, &ChainName)> = desired
        .hooks()
        .iter()
        .filter_map(|hook| Some((&hook.chain, hook.target()?)))
        .collect();
    let unwanted = seen
        .hooks
        .iter()
        .filter(|((chain, target), _)| !wanted.contains(&(chain, target)));
    unwanted.filter_map(unhook_line).collect()
}

fn unhook_line(((chain, _), saved): (&(ChainRef, ChainName), &String)) -> Option<(Table, String)> {
    Some((chain.table, unhook(saved)?))
}

/// Whether a saved rule leads into `target`.
pub fn leads_into(saved: &str, target: &ChainName) -> bool {
    saved.ends_with(&hook_suffix(target))
}
