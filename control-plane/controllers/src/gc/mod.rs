//! Garbage collection: dependents follow their owners, the way each deletion asks for.
//!
//! The graph holds the metadata of every object. An owner that is not in it is asked for before anything is deleted,
//! since a cache may be behind.

mod graph;
pub(crate) mod pods;

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use graph::{Entry, FOREGROUND, ORPHAN};
pub(crate) use graph::{Graph, GraphEvent};

use crate::kinds::Touch;
use crate::resources;
use crate::view::{Key, Now, View};
use crate::write::{PatchKind, Plan, Propagation, Target, Write};

/// The graph itself tells what a change touches (see [`Graph::touch`]).
pub(crate) fn route(_: &View, _: &Touch, _: &mut BTreeSet<Key>) {}

/// Decides about the object whose uid is the key's name.
pub(crate) fn reconcile(view: &View, key: &Key, _: Now) -> Plan {
    let Some(entry) = view.graph.get(&key.name) else {
        return Plan::nothing();
    };
    if entry.deleting {
        return deleting(view, &key.name, entry);
    }
    if entry.owners.is_empty() {
        Plan::nothing()
    } else {
        dependent(view, &key.name, entry)
    }
}

/// The object is on its way out and may wait for us with one of our finalizers.
fn deleting(view: &View, uid: &str, entry: &Entry) -> Plan {
    let mut plan = Plan::nothing();
    if entry.finalizers.iter().any(|finalizer| finalizer == ORPHAN) {
        for dependent in view
            .graph
            .dependents(uid)
            .filter_map(|uid| view.graph.get(uid))
        {
            plan.push(without_owners(dependent, |owner| owner.uid == uid));
        }
        plan.push(without_finalizer(entry, ORPHAN));
    } else if entry
        .finalizers
        .iter()
        .any(|finalizer| finalizer == FOREGROUND)
    {
        let blocked = view
            .graph
            .dependents(uid)
            .filter_map(|uid| view.graph.get(uid))
            .any(|it| {
                it.owners
                    .iter()
                    .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
            });
        if !blocked {
            plan.push(without_finalizer(entry, FOREGROUND));
        }
    }
    plan
}

enum Owner {
    Solid,
    /// Is being deleted in the foreground: it waits for this object to go first.
    Waiting,
    Gone,
    Unknown,
}

fn dependent(view: &View, uid: &str, entry: &Entry) -> Plan {
    let mut plan = Plan::nothing();
    let (mut solid, mut waiting, mut gone) = (0, BTreeSet::new(), BTreeSet::new());
    for owner in &entry.owners {
        match classify(view, entry, owner) {
            Owner::Solid => solid += 1,
            Owner::Waiting => {
                waiting.insert(owner.uid.as_str());
            }
            Owner::Gone => {
                gone.insert(owner.uid.as_str());
            }
            Owner::Unknown => match probe(view, entry, owner) {
                Some(probe) => plan.push(probe),
                // A kind that this API server does not serve: nobody can say that the owner is gone.
                None => return Plan::nothing(),
            },
        }
    }
    if !plan.writes.is_empty() {
        return plan;
    }
    if solid > 0 {
        if !(gone.is_empty() && waiting.is_empty()) {
            plan.push(without_owners(entry, |owner| {
                gone.contains(owner.uid.as_str()) || waiting.contains(owner.uid.as_str())
            }));
        }
        return plan;
    }
    let has = |finalizer: &str| entry.finalizers.iter().any(|known| known == finalizer);
    let has_dependents = view.graph.dependents(uid).next().is_some();
    let propagation = if has(ORPHAN) {
        Propagation::Orphan
    } else if has(FOREGROUND) || (!waiting.is_empty() && has_dependents) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    plan.push(Write::Delete {
        target: entry.target.clone(),
        uid: uid.to_owned(),
        grace_seconds: None,
        propagation: Some(propagation),
        announce: None,
    });
    plan
}

fn classify(view: &View, entry: &Entry, owner: &OwnerReference) -> Owner {
    if let Some(known) = view.graph.get(&owner.uid) {
        // An owner is in the same namespace or in none; any other cannot own.
        if !known.target.namespace.is_empty() && known.target.namespace != entry.target.namespace {
            return Owner::Gone;
        }
        let foreground = known
            .finalizers
            .iter()
            .any(|finalizer| finalizer == FOREGROUND);
        return if known.deleting && foreground {
            Owner::Waiting
        } else {
            Owner::Solid
        };
    }
    match view.graph.is_present(&owner.uid) {
        Some(true) => Owner::Solid,
        Some(false) => Owner::Gone,
        None => Owner::Unknown,
    }
}

fn probe(view: &View, entry: &Entry, owner: &OwnerReference) -> Option<Write> {
    let resource = resources::find(&view.resources, &owner.api_version, &owner.kind)?;
    let target = Target::dynamic(resource, &entry.target.namespace, &owner.name);
    if resource.namespaced && entry.target.namespace.is_empty() {
        return None;
    }
    Some(Write::ProbeOwner {
        target,
        uid: owner.uid.clone(),
    })
}

fn without_owners(entry: &Entry, drop: impl Fn(&OwnerReference) -> bool) -> Write {
    let kept: Vec<&OwnerReference> = entry.owners.iter().filter(|owner| !drop(owner)).collect();
    let kept = if kept.is_empty() {
        json!(null)
    } else {
        json!(kept)
    };
    metadata_patch(entry, &json!({"ownerReferences": kept}))
}

fn without_finalizer(entry: &Entry, finalizer: &str) -> Write {
    let kept: Vec<&String> = entry
        .finalizers
        .iter()
        .filter(|known| *known != finalizer)
        .collect();
    let kept = if kept.is_empty() {
        json!(null)
    } else {
        json!(kept)
    };
    metadata_patch(entry, &json!({"finalizers": kept}))
}

fn metadata_patch(entry: &Entry, change: &serde_json::Value) -> Write {
    let mut metadata = change.clone();
    metadata["resourceVersion"] = json!(entry.resource_version);
    Write::Patch {
        target: entry.target.clone(),
        subresource: None,
        how: PatchKind::Merge,
        body: json!({"metadata": metadata}),
    }
}

#[cfg(test)]
mod tests;
