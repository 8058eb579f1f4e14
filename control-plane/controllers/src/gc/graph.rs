//! Who owns whom: the metadata of every object of the cluster, by uid.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::kinds::Touch;
use crate::view::Key;
use crate::write::Target;

/// The object waits until its dependents are gone.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The object waits until its dependents do not name it any more.
pub(super) const ORPHAN: &str = "orphan";

/// How many uids of deleted owners are remembered.
const ABSENT_MAX: usize = 8192;

/// What the graph keeps of an object.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(super) target: Target,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) finalizers: Vec<String>,
    pub(super) deleting: bool,
    pub(super) resource_version: Option<String>,
}

/// A change to an object without a typed cache.
#[derive(Debug)]
pub(crate) enum GraphEvent {
    Listing {
        path: String,
    },
    Seen {
        target: Target,
        meta: Box<ObjectMeta>,
    },
    Listed {
        path: String,
    },
    Gone {
        uid: String,
    },
}

/// All objects by uid, with the edges from owners to dependents.
#[derive(Default)]
pub(crate) struct Graph {
    entries: BTreeMap<String, Entry>,
    dependents: BTreeMap<String, BTreeSet<String>>,
    /// Owners outside the graph whose existence the API server was asked for.
    probed: BTreeSet<String>,
    absent: BTreeSet<String>,
    absent_order: VecDeque<String>,
    /// Initial lists that are running, by collection path, with the uids they have shown.
    listing: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Entry> {
        self.entries.get(uid)
    }

    /// The uids of the objects that name this one as an owner.
    pub(super) fn dependents(&self, uid: &str) -> impl Iterator<Item = &String> {
        self.dependents.get(uid).into_iter().flatten()
    }

    /// What is known of an owner that has no entry.
    pub(super) fn is_present(&self, uid: &str) -> Option<bool> {
        if self.absent.contains(uid) {
            Some(false)
        } else if self.probed.contains(uid) {
            Some(true)
        } else {
            None
        }
    }

    /// Takes in a change of a typed cache; returns the uids (as keys) to look at.
    pub(crate) fn touch(&mut self, touch: &Touch) -> Vec<Key> {
        let Some(meta) = touch.meta() else {
            return Vec::new();
        };
        if !touch.kind().complete() {
            return Vec::new();
        }
        if touch.is_removal() {
            return self.gone(meta.uid.as_deref().unwrap_or_default());
        }
        self.seen(Target::of(touch.kind(), meta), meta)
    }

    /// Takes in a change of an object without a typed cache.
    pub(crate) fn observe(&mut self, event: GraphEvent) -> Vec<Key> {
        match event {
            GraphEvent::Listing { path } => {
                self.listing.insert(path, BTreeSet::new());
                Vec::new()
            }
            GraphEvent::Seen { target, meta } => {
                let collection = format!("{}/{}", target.prefix, target.plural);
                if let (Some(listing), Some(uid)) = (self.listing.get_mut(&collection), &meta.uid) {
                    listing.insert(uid.clone());
                }
                self.seen(target, &meta)
            }
            GraphEvent::Listed { path } => {
                let Some(listed) = self.listing.remove(&path) else {
                    return Vec::new();
                };
                let missing: Vec<String> = self
                    .entries
                    .iter()
                    .filter(|(uid, entry)| {
                        format!("{}/{}", entry.target.prefix, entry.target.plural) == path
                            && !listed.contains(*uid)
                    })
                    .map(|(uid, _)| uid.clone())
                    .collect();
                missing.iter().flat_map(|uid| self.gone(uid)).collect()
            }
            GraphEvent::Gone { uid } => self.gone(&uid),
        }
    }

    /// The namespace that loses an object by this event.
    pub(crate) fn namespace_losing(&self, event: &GraphEvent) -> Option<String> {
        let GraphEvent::Gone { uid } = event else {
            return None;
        };
        let namespace = self.entries.get(uid)?.target.namespace.clone();
        (!namespace.is_empty()).then_some(namespace)
    }

    /// Takes in whether an owner exists; returns its dependents.
    pub(crate) fn probed(&mut self, uid: &str, present: bool) -> Vec<Key> {
        if present {
            self.probed.insert(uid.to_owned());
        } else {
            self.forget(uid);
        }
        self.keys_of_dependents(uid)
    }

    /// All objects with owners: to be looked at when more is known of the API server's kinds.
    pub(crate) fn dependents_to_check(&self) -> Vec<Key> {
        self.entries
            .iter()
            .filter(|(_, entry)| !entry.owners.is_empty())
            .map(|(uid, _)| Key::new("", uid))
            .collect()
    }

    fn seen(&mut self, target: Target, meta: &ObjectMeta) -> Vec<Key> {
        let Some(uid) = meta.uid.clone() else {
            return Vec::new();
        };
        let new = Entry {
            target,
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            resource_version: meta.resource_version.clone(),
        };
        let old = self.entries.insert(uid.clone(), new.clone());
        let (known, old_owners, was) = match old {
            Some(old) => (true, old.owners, (old.deleting, old.finalizers)),
            None => (false, Vec::new(), (false, Vec::new())),
        };
        let mut wake = Vec::new();
        if old_owners != new.owners {
            for owner in &old_owners {
                if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                    dependents.remove(&uid);
                }
                wake.extend(self.waiting_owner(&owner.uid));
            }
            for owner in &new.owners {
                self.dependents
                    .entry(owner.uid.clone())
                    .or_default()
                    .insert(uid.clone());
            }
        }
        let state_changed = was != (new.deleting, new.finalizers.clone());
        if (state_changed && new.deleting)
            || old_owners != new.owners
            || (!known && !new.owners.is_empty())
        {
            wake.push(Key::new("", &uid));
        }
        if state_changed && new.deleting && new.finalizers.iter().any(|it| it == FOREGROUND) {
            wake.extend(self.keys_of_dependents(&uid));
        }
        wake
    }

    fn gone(&mut self, uid: &str) -> Vec<Key> {
        self.forget(uid);
        let mut wake = self.keys_of_dependents(uid);
        if let Some(entry) = self.entries.remove(uid) {
            for owner in entry.owners {
                if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                    dependents.remove(uid);
                    if dependents.is_empty() {
                        self.dependents.remove(&owner.uid);
                    }
                }
                wake.extend(self.waiting_owner(&owner.uid));
            }
        }
        wake
    }

    fn forget(&mut self, uid: &str) {
        self.probed.remove(uid);
        if self.absent.insert(uid.to_owned()) {
            self.absent_order.push_back(uid.to_owned());
            if self.absent_order.len() > ABSENT_MAX
                && let Some(oldest) = self.absent_order.pop_front()
            {
                self.absent.remove(&oldest);
            }
        }
    }

    fn keys_of_dependents(&self, uid: &str) -> Vec<Key> {
        self.dependents(uid).map(|uid| Key::new("", uid)).collect()
    }

    /// The owner, if it is on its way out and may wait for this dependent.
    fn waiting_owner(&self, uid: &str) -> Option<Key> {
        self.entries
            .get(uid)
            .filter(|owner| owner.deleting)
            .map(|_| Key::new("", uid))
    }
}
