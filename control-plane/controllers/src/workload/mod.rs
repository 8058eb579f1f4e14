//! What controllers of pods share: which objects are theirs, how a pod is made from a template, which pods go first.

pub(crate) mod replicaset;
pub(crate) mod revisions;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::Selector;
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::note::Note;
use crate::view::{Key, View};
use crate::write::{Announce, PatchKind, Target, Write, precondition};

/// Most pods made or removed in one run (upstream's burst).
pub(crate) const BURST: usize = 500;

/// The objects an owner manages, and the writes that make it so.
pub(crate) struct Claimed<K> {
    pub(crate) objects: Vec<Arc<K>>,
    pub(crate) writes: Vec<Write>,
}

/// Adopts orphans that match the selector and releases owned objects that do not (any more).
pub(crate) fn claim<K: Resource>(
    cache: &Cache<K>,
    kind: Kind,
    owner_kind: Kind,
    owner: &ObjectMeta,
    selector: &Selector,
) -> Claimed<K> {
    let mut claimed = Claimed {
        objects: Vec::new(),
        writes: Vec::new(),
    };
    for object in cache.controlled_by(meta::uid(owner)) {
        if meta::matches(selector, object.meta()) {
            claimed.objects.push(Arc::clone(object));
        } else if !meta::is_deleting(owner) && !meta::is_deleting(object.meta()) {
            claimed
                .writes
                .push(disown(kind, object.meta(), meta::uid(owner)));
        }
    }
    if meta::is_deleting(owner) {
        return claimed;
    }
    for object in cache.orphans(meta::namespace(owner)) {
        if meta::matches(selector, object.meta()) && !meta::is_deleting(object.meta()) {
            claimed
                .writes
                .push(adopt(kind, object.meta(), owner_kind, owner));
            claimed.objects.push(Arc::clone(object));
        }
    }
    claimed
}

fn owner_patch(kind: Kind, object: &ObjectMeta, owners: &Value) -> Write {
    let mut metadata = precondition(object);
    metadata["ownerReferences"] = owners.clone();
    Write::Patch {
        target: Target::of(kind, object),
        subresource: None,
        how: PatchKind::Merge,
        body: json!({"metadata": metadata}),
    }
}

fn adopt(kind: Kind, object: &ObjectMeta, owner_kind: Kind, owner: &ObjectMeta) -> Write {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.push(meta::owner_reference(owner_kind, owner));
    owner_patch(kind, object, &json!(owners))
}

fn disown(kind: Kind, object: &ObjectMeta, uid: &str) -> Write {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.uid != uid);
    let owners = if owners.is_empty() {
        Value::Null
    } else {
        json!(owners)
    };
    owner_patch(kind, object, &owners)
}

/// A pod of a template as its controller makes it; the server completes the name when it is `generateName`.
pub(crate) fn pod_from(template: &PodTemplateSpec, owner_kind: Kind, owner: &ObjectMeta) -> Value {
    let from = template.metadata.as_ref();
    let mut metadata = json!({
        "generateName": format!("{}-", meta::name(owner)),
        "namespace": meta::namespace(owner),
        "ownerReferences": [meta::owner_reference(owner_kind, owner)],
    });
    if let Some(labels) = from.and_then(|from| from.labels.as_ref()) {
        metadata["labels"] = json!(labels);
    }
    if let Some(annotations) = from.and_then(|from| from.annotations.as_ref()) {
        metadata["annotations"] = json!(annotations);
    }
    if let Some(finalizers) = from.and_then(|from| from.finalizers.as_ref()) {
        metadata["finalizers"] = json!(finalizers);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.spec})
}

/// Creates a pod and says so with the owner's events.
pub(crate) fn create_pod(
    owner_kind: Kind,
    owner: &ObjectMeta,
    component: &'static str,
    pod: Value,
) -> Write {
    let note = |reason, text: &str| Note::new(owner_kind, owner, component, reason, text);
    Write::Create {
        kind: Kind::Pod,
        namespace: meta::namespace(owner).to_owned(),
        object: Box::new(pod),
        announce: Some(Box::new(Announce {
            done: Some(note("SuccessfulCreate", "Created pod: ")),
            failed: Some(note("FailedCreate", "Error creating: ").warning()),
        })),
    }
}

/// Deletes a pod and says so with the owner's events.
pub(crate) fn delete_pod(
    owner_kind: Kind,
    owner: &ObjectMeta,
    component: &'static str,
    pod: &Pod,
) -> Write {
    let note = |reason, text: &str| Note::new(owner_kind, owner, component, reason, text);
    Write::Delete {
        target: Target::of(Kind::Pod, &pod.metadata),
        uid: meta::uid(&pod.metadata).to_owned(),
        grace_seconds: None,
        propagation: None,
        announce: Some(Box::new(Announce {
            done: Some(note("SuccessfulDelete", "Deleted pod: ")),
            failed: Some(note("FailedDelete", "Error deleting: ").warning()),
        })),
    }
}

/// The keys of the owners of this kind that a pod's change touches: its controller before and after, and for an
/// orphan every owner of the namespace whose selector (by `selects`) takes it.
pub(crate) fn owners_of_pod(
    touch: &Touch,
    kind: Kind,
    selects: impl Fn(&Pod) -> Vec<Key>,
    wake: &mut std::collections::BTreeSet<Key>,
) {
    let Touch::Pod { old, new } = touch else {
        return;
    };
    for pod in old.iter().chain(new) {
        if let Some(owner) = meta::controller_of_kind(&pod.metadata, kind) {
            wake.insert(Key::new(meta::namespace(&pod.metadata), &owner.name));
        }
    }
    if let Some(pod) = new
        && meta::controller_of(&pod.metadata).is_none()
        && !meta::is_deleting(&pod.metadata)
    {
        wake.extend(selects(pod));
    }
}

/// Sorts pods so that those to remove first stand first, as upstream ranks them: not assigned, pending, not ready,
/// low deletion cost, crowded nodes, ready for a shorter time, more restarts, younger.
pub(crate) fn rank_for_deletion(pods: &mut [Arc<Pod>], crowd: impl Fn(&Pod) -> usize) {
    let phase = |pod: &Pod| match meta::pod_phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |pod: &Pod| -> i64 {
        meta::annotation(&pod.metadata, "controller.kubernetes.io/pod-deletion-cost")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let ready_since = |pod: &Pod| {
        meta::pod_condition(pod, "Ready").and_then(|it| it.last_transition_time.clone())
    };
    let restarts = |pod: &Pod| {
        let statuses = pod
            .status
            .as_ref()
            .and_then(|it| it.container_statuses.as_deref());
        statuses
            .unwrap_or_default()
            .iter()
            .map(|it| it.restart_count)
            .max()
            .unwrap_or(0)
    };
    pods.sort_by_cached_key(|pod| {
        (
            meta::node_of(pod).is_some(),
            phase(pod),
            meta::pod_ready(pod),
            cost(pod),
            std::cmp::Reverse(crowd(pod)),
            std::cmp::Reverse(ready_since(pod)),
            std::cmp::Reverse(restarts(pod)),
            std::cmp::Reverse(pod.metadata.creation_timestamp.clone()),
            pod.metadata.name.clone(),
        )
    });
}

/// The message of the last failed run of a controller for this key.
pub(crate) fn last_failure<'a>(view: &'a View, label: &'static str, key: &Key) -> Option<&'a str> {
    view.failures.get(&(label, key.clone())).map(String::as_str)
}

/// A short name for a template: FNV-1a over its canonical JSON, in letters that form no words.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut text = meta::to_value(template).to_string();
    if let Some(collisions) = collisions {
        text.push_str(&collisions.to_string());
    }
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash ^= u32::from(byte);
        hash = hash.wrapping_mul(0x0100_0193);
    }
    safe_encode(&hash.to_string())
}

/// Upstream's alphabet for generated names: no vowels, so no words; no 0, 1 and 3.
fn safe_encode(text: &str) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    text.bytes()
        .map(|byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()]))
        .collect()
}
