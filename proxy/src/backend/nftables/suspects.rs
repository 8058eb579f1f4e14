//! What somebody else may have changed in the table, as the kernel's notifications tell it: only that is
//! looked at again, so that a repair costs as much as the edit, however large the table is.

use std::collections::BTreeSet;

use api::cidr::Family;
use linux::nftables::{Edit, Subject};

use super::item::Key;
use super::sets::SetName;

/// Elements that are looked at one by one. Beyond, listing the sets is as quick.
pub const SUSPECTS_MAX: usize = 1000;

/// What is to be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspects {
    /// The table as a whole.
    pub everything: bool,
    /// Chains and their rules.
    pub chains: bool,
    /// These elements.
    pub keys: BTreeSet<Key>,
}

impl Suspects {
    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The table as a whole.
    pub fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    /// Takes in what somebody did to our table of `family`.
    pub fn add(&mut self, family: Family, edit: &Edit<'_>) {
        match edit.subject {
            Subject::Table | Subject::Set => self.everything = true,
            Subject::Chain => self.chains = true,
            Subject::Elements(elements) => {
                // Sets of others are nobody's business, and clients' endpoints come and go.
                let set = SetName::ALL.into_iter().find(|s| s.name() == elements.set);
                let Some(set) = set.filter(|set| *set != SetName::Affinity) else {
                    return;
                };
                if set.set(family).interval {
                    self.everything = true;
                    return;
                }
                for (element, _) in elements.each() {
                    match Key::read(set, family, &element) {
                        Some((key, _)) => self.keys.insert(key),
                        None => std::mem::replace(&mut self.everything, true),
                    };
                }
            }
        }
        if self.everything || self.keys.len() > SUSPECTS_MAX {
            *self = Self::everything();
        }
    }
}
