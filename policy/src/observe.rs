//! What is in our table in the kernel.

use std::collections::BTreeMap;
use std::sync::Arc;

use linux::Result;
use linux::nftables::{Family, Nftables, TableRef};

use crate::objects::{Desired, Seen, sort};
use crate::plan::names::TABLE;

/// Our table.
pub fn table() -> TableRef {
    TableRef::new(Family::Inet, TABLE)
}

/// Lists our table; what is like `want` is taken as such. Nothing is there: empty.
///
/// # Errors
/// The kernel's refusal.
pub fn observe(nft: &mut Nftables, want: &Desired) -> Result<Seen> {
    let table = table();
    let mut seen = Seen::default();
    if !nft.has_table(&table)? {
        return Ok(seen);
    }
    let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for chain in nft.chains(&table)? {
        chains.insert(chain.name, Vec::new());
    }
    for rule in nft.rules(&table)? {
        let comments = chains.entry(rule.chain).or_default();
        comments.push(rule.comment.unwrap_or_default());
    }
    seen.chains = chains;
    for listed in nft.sets(&table)? {
        let wanted = want
            .sets
            .get(&listed.name)
            .filter(|set| listed.is_like(set));
        if let Some(set) = wanted {
            let name: Arc<str> = listed.name.as_str().into();
            let elements = nft.elements(&table, set)?;
            seen.elements
                .extend(elements.into_iter().map(|element| (name.clone(), element)));
        }
        seen.sets.insert(listed.name, wanted.is_some());
    }
    sort(&mut seen.elements);
    Ok(seen)
}
