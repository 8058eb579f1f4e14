//! What is in the kernel of our own table. No other table is listed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use api::cidr::Family;
use linux::nftables::{Element, Nftables, TableRef};

use super::item::{Key, Value};
use super::sets::SetName;
use super::table;

/// The table as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// It is there.
    pub exists: bool,
    /// All sets that are there are as we make them. Else the whole table must go.
    pub usable: bool,
    /// Elements, sorted.
    pub items: Vec<(Key, Value)>,
    /// Elements of our sets that we would never write.
    pub strange: Vec<(SetName, Element)>,
    /// Comments of the rules of each chain, in order.
    pub chains: Chains,
    /// Numbers of service ports by the names in comments of elements.
    pub numbers: HashMap<String, u32>,
}

/// Chains of our table, with the comments of their rules in order.
pub type Chains = BTreeMap<String, Vec<String>>;

/// Lists chains and rules of our table.
///
/// # Errors
/// The kernel's refusal.
pub fn chains(nft: &mut Nftables, table: &TableRef) -> linux::Result<Chains> {
    let mut chains = Chains::new();
    for chain in nft.chains(table)? {
        chains.insert(chain.name, Vec::new());
    }
    for rule in nft.rules(table)? {
        let comments = chains.entry(rule.chain).or_default();
        comments.push(rule.comment.unwrap_or_default());
    }
    Ok(chains)
}

/// Elements by key, and what each leads to; `None`: it is not there.
pub type LookedUp = Vec<(Key, Option<Value>)>;

/// Looks elements up, none of them a range. `None`: one has a value that we would never write.
///
/// # Errors
/// The kernel's refusal.
pub fn look_up(
    nft: &mut Nftables,
    family: Family,
    keys: &BTreeSet<Key>,
) -> linux::Result<Option<LookedUp>> {
    let table = table(family);
    let mut found = Vec::new();
    for key in keys {
        let name = key.set();
        let element = nft.element(&table, &name.set(family), &key.key_bytes(family))?;
        let value = match element {
            None => None,
            Some(element) => match Key::read(name, family, &element) {
                Some((_, value)) => Some(value),
                None => return Ok(None),
            },
        };
        found.push((*key, value));
    }
    Ok(Some(found))
}

/// Lists our table.
///
/// # Errors
/// The kernel's refusal.
pub fn observe(nft: &mut Nftables, family: Family) -> linux::Result<Observed> {
    let table = table(family);
    let mut observed = Observed {
        exists: nft.has_table(&table)?,
        usable: true,
        ..Observed::default()
    };
    if !observed.exists {
        return Ok(observed);
    }
    observed.chains = chains(nft, &table)?;
    let listed = nft.sets(&table)?;
    for name in SetName::ALL {
        let set = name.set(family);
        let Some(found) = listed.iter().find(|found| found.name == set.name) else {
            continue;
        };
        if !found.is_like(&set) {
            observed.usable = false;
            return Ok(observed);
        }
        if name == SetName::Affinity {
            continue;
        }
        let mut read = |element: Element| {
            let Some((key, value)) = Key::read(name, family, &element) else {
                observed.strange.push((name, element));
                return None;
            };
            if let (Value::Service(service), Some(comment)) = (value, element.comment) {
                observed.numbers.insert(comment, service.port);
            }
            Some((key, value))
        };
        let items: Vec<_> = if set.interval {
            let all = nft.elements(&table, &set)?;
            all.into_iter().filter_map(read).collect()
        } else {
            nft.elements_with(&table, &set.name, &mut read)?
        };
        observed.items.extend(items);
    }
    observed.items.sort_unstable();
    Ok(observed)
}
