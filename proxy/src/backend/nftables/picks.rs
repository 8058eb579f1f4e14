//! Numbers of the chains that choose.

use std::collections::{BTreeMap, BTreeSet};

use super::item::{LOW_MAX, Pick};

/// Chains that choose, and their numbers. They stay when nobody needs them any more, until the next
/// comparison with the kernel.
#[derive(Debug, Clone, Default)]
pub struct Picks {
    numbers: BTreeMap<Pick, u16>,
    taken: BTreeSet<u16>,
}

impl Picks {
    /// The number of a chain. When there are no more, that of one with fewer endpoints: some are
    /// then not chosen.
    pub fn number(&mut self, pick: Pick) -> u16 {
        if let Some(number) = self.numbers.get(&pick) {
            return *number;
        }
        let last = self.taken.last().copied().unwrap_or_default();
        let next = if last < LOW_MAX {
            Some(last + 1)
        } else {
            (1..=LOW_MAX).find(|number| !self.taken.contains(number))
        };
        if let Some(next) = next {
            self.insert(pick, next);
            return next;
        }
        tracing::error!("more than {LOW_MAX} different numbers of endpoints");
        let fewer = self.numbers.range(..pick).next_back();
        fewer.map_or(last, |(_, number)| *number)
    }

    /// Takes a number that a chain has already.
    pub fn insert(&mut self, pick: Pick, number: u16) {
        if self.taken.insert(number) {
            self.numbers.insert(pick, number);
        }
    }

    /// The chain of a number.
    pub fn get(&self, number: u16) -> Option<Pick> {
        let mut all = self.numbers.iter();
        all.find_map(|(pick, known)| (*known == number).then_some(*pick))
    }

    /// All chains.
    pub fn iter(&self) -> impl Iterator<Item = Pick> + '_ {
        self.numbers.keys().copied()
    }
}
