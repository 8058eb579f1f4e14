//! What is wanted against what is in the kernel.

use std::iter::Peekable;

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
    pub fn split(self, size: usize) -> Parts {
        let whole = self.len() <= size;
        let (small, large) = if whole {
            (Some(self), Self::default())
        } else {
            (None, self)
        };
        Parts {
            small,
            add: large.add.into_iter(),
            delete: large.delete.into_iter().peekable(),
            gone: Vec::new(),
            size,
        }
    }
}

/// The parts of a change: made one by one, since all of a cold start together are some megabytes.
#[derive(Debug)]
pub struct Parts {
    /// A change that is not divided.
    small: Option<Change>,
    add: std::vec::IntoIter<(Key, Value)>,
    delete: Peekable<std::vec::IntoIter<(Key, Value)>>,
    /// What goes without anything in its place, of what was passed so far.
    gone: Vec<(Key, Value)>,
    size: usize,
}

impl Iterator for Parts {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        if let Some(whole) = self.small.take() {
            return Some(whole);
        }
        let mut part = Change::default();
        while part.len() < self.size
            && let Some((key, value)) = self.add.next()
        {
            while let Some(next) = self.delete.next_if(|(other, _)| *other <= key) {
                if next.0 == key {
                    part.delete.push(next);
                } else {
                    self.gone.push(next);
                }
            }
            part.add.push((key, value));
        }
        if !part.is_empty() {
            return Some(part);
        }
        self.gone.extend(self.delete.by_ref());
        let from = self.gone.len().saturating_sub(self.size);
        let delete = self.gone.split_off(from);
        let add = Vec::new();
        Some(Change { add, delete }).filter(|part| !part.is_empty())
    }
}

/// The change that makes `seen`, which is sorted, what is wanted.
pub fn full(desired: &Desired, seen: &[(Key, Value)]) -> Change {
    let wanted = desired.contents();
    let mut change = Change::default();
    if seen.is_empty() {
        change.add = wanted;
        return change;
    }
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
