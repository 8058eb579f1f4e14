//! Writes changes to the kernel, in one transaction: nobody ever sees half of them.

use std::collections::BTreeMap;

use linux::Result;
use linux::nftables::{Batch, Element, Nftables, Set};

use crate::objects::{Changes, Elements};
use crate::observe::table;

/// What `nft list ruleset` says of the table.
const COMMENT: &str = "Seaway: NetworkPolicy";

/// Makes all changes, or none. `sets` are the definitions of the sets that elements are in.
///
/// # Errors
/// The kernel's refusal, with the object it is about.
pub fn apply(nft: &mut Nftables, changes: &Changes, sets: &BTreeMap<String, Set>) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    nft.commit(&batch(changes, sets))
}

/// The transaction.
fn batch(changes: &Changes, sets: &BTreeMap<String, Set>) -> Batch {
    let table = table();
    let mut batch = Batch::new();
    batch.add_table(&table, Some(COMMENT));
    if changes.rebuild {
        batch.delete_table(&table);
        batch.add_table(&table, Some(COMMENT));
    }
    for set in &changes.add_sets {
        batch.add_set(&table, set);
    }
    for chain in &changes.add_chains {
        batch.add_chain(&table, chain);
    }
    // What refers to others goes before them, and comes after them.
    let made = |name: &String| changes.add_chains.iter().any(|chain| chain.name == *name);
    let emptied = changes.rules.keys().filter(|name| !made(name));
    for name in emptied.chain(&changes.delete_chains) {
        batch.flush_chain(&table, name);
    }
    by_set(&changes.delete_elements, sets, |set, elements| {
        batch.delete_elements(&table, set, elements);
    });
    by_set(&changes.add_elements, sets, |set, elements| {
        batch.add_elements(&table, set, elements);
    });
    for (name, rules) in &changes.rules {
        for rule in rules {
            batch.add_rule(&table, name, rule);
        }
    }
    for name in &changes.delete_chains {
        batch.delete_chain(&table, name);
    }
    for name in &changes.delete_sets {
        batch.delete_set(&table, name);
    }
    batch
}

/// Elements come sorted by set.
fn by_set<'a>(
    elements: &'a Elements,
    sets: &BTreeMap<String, Set>,
    mut each: impl FnMut(&Set, Vec<&'a Element>),
) {
    for same in elements.chunk_by(|(a, _), (b, _)| a == b) {
        if let Some(set) = same.first().and_then(|(name, _)| sets.get(&**name)) {
            each(set, same.iter().map(|(_, element)| element).collect());
        }
    }
}
