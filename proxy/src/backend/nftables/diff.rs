//! What is wanted against what is in the kernel.

use super::desired::Desired;
use super::item::{Key, Value};

/// Names of service ports by number, for comments.
pub trait Named {
    /// `namespace/name:port/protocol`.
    fn name(&self, number: u32) -> Option<String>;
}

/// Elements to add and to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Sorted. Where an element is there with another value, that is deleted in the same
    /// transaction.
    pub add: Vec<(Key, Value)>,
    /// Elements of `add` whose key is there with this value, and elements that go. Sorted.
    pub delete: Vec<(Key, Value)>,
}

impl Change {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.delete.is_empty()
    }

    /// How many elements are written or deleted.
    pub fn len(&self) -> usize {
        self.add.len() + self.delete.len()
    }

    /// Takes in one element. To be called in the order of keys.
    pub fn push(&mut self, key: Key, before: Option<Value>, now: Option<Value>) {
        if before == now {
            return;
        }
        self.delete.extend(before.map(|before| (key, before)));
        self.add.extend(now.map(|now| (key, now)));
    }

    /// In parts of about `size` elements, to be made one after the other. Nothing ever leads to
    /// what is not there: first comes what is added or gets another value, in the order of keys;
    /// then what goes, in the opposite order.
    pub fn split(self, size: usize) -> Vec<Self> {
        if self.len() <= size {
            return vec![self];
        }
        let mut parts = Vec::new();
        let mut part = Self::default();
        let mut old = self.delete.into_iter().peekable();
        let mut gone = Vec::new();
        for (key, value) in self.add {
            while let Some(next) = old.next_if(|(other, _)| *other <= key) {
                if next.0 == key {
                    part.delete.push(next);
                } else {
                    gone.push(next);
                }
            }
            part.add.push((key, value));
            if part.len() >= size {
                parts.push(std::mem::take(&mut part));
            }
        }
        gone.extend(old);
        parts.push(part);
        for chunk in gone.rchunks(size) {
            parts.push(Self {
                add: Vec::new(),
                delete: chunk.to_vec(),
            });
        }
        parts.retain(|part| !part.is_empty());
        parts
    }
}

/// The change that makes `seen`, which is sorted, what is wanted.
pub fn full(desired: &Desired, seen: &[(Key, Value)]) -> Change {
    let wanted = desired.contents();
    let mut change = Change::default();
    let mut seen = seen.iter().peekable();
    for (key, value) in wanted {
        while let Some((other, old)) = seen.next_if(|(other, _)| *other < key) {
            change.push(*other, Some(*old), None);
        }
        let before = seen.next_if(|(other, _)| *other == key);
        change.push(key, before.map(|(_, old)| *old), Some(value));
    }
    for (other, old) in seen {
        change.push(*other, Some(*old), None);
    }
    change
}
