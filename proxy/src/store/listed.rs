//! A map that a relist replaces at its end, so that nothing that is in use goes away while a list
//! comes in.

use std::collections::BTreeMap;

use api::watch::Event;

/// Objects of one kind by key.
#[derive(Debug)]
pub(super) struct Listed<K, V> {
    pub(super) current: BTreeMap<K, V>,
    incoming: Option<BTreeMap<K, V>>,
    /// Listed as a whole once.
    pub(super) synced: bool,
}

impl<K, V> Default for Listed<K, V> {
    fn default() -> Self {
        Self {
            current: BTreeMap::new(),
            incoming: None,
            synced: false,
        }
    }
}

impl<K: Ord + Clone, V: PartialEq> Listed<K, V> {
    /// Takes an event in; returns the keys whose value changed, with the value before.
    pub(super) fn apply(&mut self, event: Event<(K, Option<V>)>) -> Vec<(K, Option<V>)> {
        match event {
            Event::Init => {
                self.incoming = Some(BTreeMap::new());
                Vec::new()
            }
            Event::InitApply((key, value)) => {
                if let (Some(incoming), Some(value)) = (&mut self.incoming, value) {
                    incoming.insert(key, value);
                }
                Vec::new()
            }
            Event::InitDone => {
                self.synced = true;
                let Some(incoming) = self.incoming.take() else {
                    return Vec::new();
                };
                let mut old = std::mem::replace(&mut self.current, incoming);
                let mut changed = Vec::new();
                for (key, value) in &self.current {
                    let before = old.remove(key);
                    if before.as_ref() != Some(value) {
                        changed.push((key.clone(), before));
                    }
                }
                changed.extend(old.into_iter().map(|(key, value)| (key, Some(value))));
                changed
            }
            Event::Apply((key, Some(value))) => {
                let before = self.current.get(&key);
                if before == Some(&value) {
                    return Vec::new();
                }
                let before = self.current.insert(key.clone(), value);
                vec![(key, before)]
            }
            Event::Apply((key, None)) | Event::Delete((key, _)) => {
                match self.current.remove(&key) {
                    Some(before) => vec![(key, Some(before))],
                    None => Vec::new(),
                }
            }
        }
    }
}
