//! What the table is made of, as it should be and as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::nft::{Chain, Element, Rule, Set};

/// Elements with the names of their sets, sorted by both.
pub type Elements = Vec<(Arc<str>, Element)>;

/// The whole table as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name, with their rules.
    pub chains: BTreeMap<String, ChainPlan>,
    /// Elements that belong to no address.
    pub fixed: Elements,
    /// Elements that belong to an address: all that a pod that comes or goes changes.
    pub addresses: BTreeMap<IpAddr, Elements>,
}

impl Desired {
    /// All elements, sorted.
    pub fn elements(&self) -> Elements {
        let mut all = self.fixed.clone();
        all.extend(self.addresses.values().flatten().cloned());
        sort(&mut all);
        all
    }
}

/// Sorts by set and key.
pub fn sort(elements: &mut Elements) {
    elements.sort_by(|(a, x), (b, y)| (a, &x.key).cmp(&(b, &y.key)));
}

/// A chain and its rules. Their comments end in a digest, so equal comments mean equal rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainPlan {
    /// The chain.
    pub chain: Chain,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// The table as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Sets by name; whether they are as wanted (if they are wanted).
    pub sets: BTreeMap<String, bool>,
    /// Comments of the rules of each chain.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Elements, sorted.
    pub elements: Elements,
}

impl From<&Desired> for Seen {
    /// What is seen once all of it is there.
    fn from(desired: &Desired) -> Self {
        Self {
            sets: desired
                .sets
                .keys()
                .map(|name| (name.clone(), true))
                .collect(),
            chains: desired
                .chains
                .iter()
                .map(|(name, plan)| (name.clone(), comments(&plan.rules)))
                .collect(),
            elements: desired.elements(),
        }
    }
}

/// The comments of rules.
pub fn comments(rules: &[Rule]) -> Vec<String> {
    rules
        .iter()
        .map(|rule| rule.comment.clone().unwrap_or_default())
        .collect()
}

/// What is to be changed, all in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The table is deleted first.
    pub rebuild: bool,
    /// Sets to make.
    pub add_sets: Vec<Set>,
    /// Chains to make.
    pub add_chains: Vec<Chain>,
    /// Chains that get these rules in place of what they have.
    pub rules: BTreeMap<String, Vec<Rule>>,
    /// Elements to delete.
    pub delete_elements: Elements,
    /// Elements to add.
    pub add_elements: Elements,
    /// Chains to delete.
    pub delete_chains: Vec<String>,
    /// Sets to delete.
    pub delete_sets: Vec<String>,
}

impl Changes {
    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether nothing but elements changes.
    pub fn is_elements_only(&self) -> bool {
        let elements = Self {
            delete_elements: self.delete_elements.clone(),
            add_elements: self.add_elements.clone(),
            ..Self::default()
        };
        *self == elements
    }

    /// Kernel objects that are made, changed or deleted.
    pub fn count(&self) -> usize {
        let rules = self.rules.values().map(Vec::len).sum::<usize>();
        self.add_sets.len()
            + self.add_chains.len()
            + rules
            + self.delete_elements.len()
            + self.add_elements.len()
            + self.delete_chains.len()
            + self.delete_sets.len()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{} sets, {} chains, {} rule lists and {} elements made; {} elements, {} chains and {} sets deleted",
            if self.rebuild {
                "table made anew: "
            } else {
                ""
            },
            self.add_sets.len(),
            self.add_chains.len(),
            self.rules.len(),
            self.add_elements.len(),
            self.delete_elements.len(),
            self.delete_chains.len(),
            self.delete_sets.len(),
        )
    }
}
