//! From what is there to what should be there.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::objects::{ChainPlan, Changes, Desired, Elements, Seen, comments};

/// What makes `seen` into `want`.
pub fn diff(seen: &Seen, want: &Desired) -> Changes {
    // The kernel changes no set's type: the table is made anew, in one transaction.
    let differs = |name: &String| seen.sets.get(name) == Some(&false);
    if want.sets.keys().any(differs) {
        return Changes {
            rebuild: true,
            ..diff(&Seen::default(), want)
        };
    }
    let mut changes = Changes::default();
    let new_sets = want
        .sets
        .iter()
        .filter(|(name, _)| !seen.sets.contains_key(*name));
    changes.add_sets = new_sets.map(|(_, set)| set.clone()).collect();
    let old_sets = seen
        .sets
        .keys()
        .filter(|name| !want.sets.contains_key(*name));
    changes.delete_sets = old_sets.cloned().collect();
    chains(&seen.chains, &want.chains, &mut changes);
    elements(&seen.elements, &want.elements(), &mut changes);
    // They go with their sets.
    let gone = &changes.delete_sets;
    changes
        .delete_elements
        .retain(|(set, _)| !gone.iter().any(|name| **name == **set));
    changes
}

/// The same between two plans, without looking at what belongs to addresses that did not change.
pub fn between(old: &Desired, new: &Desired) -> Changes {
    diff(&Seen::from(old), new)
}

/// What changes at elements that lead from `old` to `new`; both sorted.
pub fn elements(old: &Elements, new: &Elements, changes: &mut Changes) {
    let (mut a, mut b) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a_set, a)), Some((b_set, b))) => (a_set, &a.key).cmp(&(b_set, &b.key)),
        };
        let old = if order.is_le() { a.next() } else { None };
        let new = if order.is_ge() { b.next() } else { None };
        if old != new {
            changes.delete_elements.extend(old.cloned());
            changes.add_elements.extend(new.cloned());
        }
    }
}

fn chains(
    seen: &BTreeMap<String, Vec<String>>,
    want: &BTreeMap<String, ChainPlan>,
    changes: &mut Changes,
) {
    for (name, plan) in want {
        let there = seen.get(name);
        if there.is_none() {
            changes.add_chains.push(plan.chain.clone());
        }
        if there.map_or(&[][..], Vec::as_slice) != comments(&plan.rules) {
            changes.rules.insert(name.clone(), plan.rules.clone());
        }
    }
    let gone = seen.keys().filter(|name| !want.contains_key(*name));
    changes.delete_chains = gone.cloned().collect();
}
