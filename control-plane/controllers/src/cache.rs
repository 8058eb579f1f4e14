//! The objects of one kind, kept up to date by a watch and by the answers to our own writes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use crate::meta::{controller_of, resource_version};
use crate::view::Key;

/// How many deletions each cache remembers, to know an answer or event that is older than the deletion.
const TOMBSTONES_MAX: usize = 4096;

/// All objects of one kind, by name and by the controller that owns them.
pub(crate) struct Cache<K> {
    items: BTreeMap<Key, Arc<K>>,
    by_controller: BTreeMap<String, BTreeSet<Key>>,
    /// Names seen in the initial list that is running.
    listing: Option<BTreeSet<Key>>,
    /// Creations of our own that no watch event has confirmed, and those of them that a sweep has seen.
    unconfirmed: BTreeSet<Key>,
    doubtful: BTreeSet<Key>,
    tombs: BTreeSet<String>,
    tomb_order: VecDeque<String>,
    synced: bool,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            items: BTreeMap::new(),
            by_controller: BTreeMap::new(),
            listing: None,
            unconfirmed: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            tombs: BTreeSet::new(),
            tomb_order: VecDeque::new(),
            synced: false,
        }
    }
}

impl<K: Resource> Cache<K> {
    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.items.get(key)
    }

    pub(crate) fn named(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.items.get(&Key::new(namespace, name))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<K>> {
        self.items.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// The objects of one namespace, by name.
    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&Key, &Arc<K>)> {
        let first = Key::new(namespace, "");
        let namespace = namespace.to_owned();
        self.items
            .range(first..)
            .take_while(move |(key, _)| key.namespace == namespace)
    }

    /// The objects whose controller has this uid, by name.
    pub(crate) fn controlled_by(&self, uid: &str) -> impl Iterator<Item = &Arc<K>> {
        self.by_controller
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|key| self.items.get(key))
    }

    /// The objects of a namespace without a controller, by name.
    pub(crate) fn orphans(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        self.controlled_by("")
            .filter(move |object| object.meta().namespace.as_deref() == Some(namespace))
    }

    pub(crate) fn synced(&self) -> bool {
        self.synced
    }

    pub(crate) fn init(&mut self) {
        self.listing = Some(BTreeSet::new());
        self.unconfirmed.clear();
    }

    /// Ends the initial list: what it did not show is gone, except what was created while it ran.
    pub(crate) fn init_done(&mut self) -> Vec<Arc<K>> {
        self.synced = true;
        let Some(listed) = self.listing.take() else {
            return Vec::new();
        };
        let missing: Vec<Key> = self
            .items
            .keys()
            .filter(|key| !listed.contains(*key) && !self.unconfirmed.contains(*key))
            .cloned()
            .collect();
        missing.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Takes in an object from the watch. `None` when it is no news; else what it replaces.
    pub(crate) fn seen(&mut self, object: Arc<K>) -> Option<Option<Arc<K>>> {
        let key = Key::of(object.meta());
        self.unconfirmed.remove(&key);
        self.doubtful.remove(&key);
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        }
        self.insert(key, object)
    }

    /// Takes in an object that a write of our own answered with.
    pub(crate) fn written(&mut self, object: Arc<K>, created: bool) -> Option<Option<Arc<K>>> {
        let key = Key::of(object.meta());
        if !self.items.contains_key(&key) {
            if !created {
                return None;
            }
            self.unconfirmed.insert(key.clone());
        }
        self.insert(key, object)
    }

    fn insert(&mut self, key: Key, object: Arc<K>) -> Option<Option<Arc<K>>> {
        let meta = object.meta();
        if meta
            .uid
            .as_ref()
            .is_some_and(|uid| self.tombs.contains(uid))
        {
            self.unconfirmed.remove(&key);
            return None;
        }
        if let Some(old) = self.items.get(&key)
            && let (Some(old), Some(new)) = (resource_version(old.meta()), resource_version(meta))
            && new <= old
        {
            return None;
        }
        let owner = controller_uid(meta);
        let old = self.items.insert(key.clone(), object);
        let old_owner = old.as_ref().map(|old| controller_uid(old.meta()));
        if old_owner.as_ref() != Some(&owner) {
            if let Some(uid) = old_owner {
                self.unindex(&uid, &key);
            }
            self.by_controller.entry(owner).or_default().insert(key);
        }
        Some(old)
    }

    /// Drops creations that the watch did not show between two sweeps: they were gone before it could.
    pub(crate) fn sweep(&mut self) -> Vec<Arc<K>> {
        let lost = std::mem::replace(&mut self.doubtful, std::mem::take(&mut self.unconfirmed));
        lost.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// The watch says that this object is gone.
    pub(crate) fn gone(&mut self, meta: &ObjectMeta) -> Option<Arc<K>> {
        let key = Key::of(meta);
        self.deleted(
            &key.namespace,
            &key.name,
            meta.uid.as_deref().unwrap_or_default(),
        )
    }

    /// The object with this uid is gone; a newer one of the same name stays.
    pub(crate) fn deleted(&mut self, namespace: &str, name: &str, uid: &str) -> Option<Arc<K>> {
        if self.tombs.insert(uid.to_owned()) {
            self.tomb_order.push_back(uid.to_owned());
            if self.tomb_order.len() > TOMBSTONES_MAX
                && let Some(oldest) = self.tomb_order.pop_front()
            {
                self.tombs.remove(&oldest);
            }
        }
        let key = Key::new(namespace, name);
        let same = self.items.get(&key)?.meta().uid.as_deref() == Some(uid);
        if same { self.remove(&key) } else { None }
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.items.remove(key)?;
        self.unconfirmed.remove(key);
        self.doubtful.remove(key);
        self.unindex(&controller_uid(old.meta()), key);
        Some(old)
    }

    fn unindex(&mut self, uid: &str, key: &Key) {
        if let Some(keys) = self.by_controller.get_mut(uid) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_controller.remove(uid);
            }
        }
    }
}

/// The uid of the controller, empty without one.
fn controller_uid(meta: &ObjectMeta) -> String {
    controller_of(meta)
        .map(|owner| owner.uid.clone())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
