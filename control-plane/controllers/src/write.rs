//! What a reconcile may ask for: plain data, carried out by [`crate::engine::apply`].

use std::time::Duration;

use serde_json::Value;

use crate::kinds::Kind;
use crate::meta;
use crate::note::Note;
use crate::resources::ResourceInfo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Where an object lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The kind when it is a cached one: answers are then put into its cache.
    pub(crate) kind: Option<Kind>,
    pub(crate) prefix: String,
    pub(crate) plural: String,
    /// Empty for cluster-scoped objects.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Target {
    pub(crate) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind: Some(kind),
            prefix: kind.prefix().to_owned(),
            plural: kind.plural().to_owned(),
            namespace: if kind.namespaced() {
                namespace.to_owned()
            } else {
                String::new()
            },
            name: name.to_owned(),
        }
    }

    pub(crate) fn of(kind: Kind, meta: &ObjectMeta) -> Self {
        Self::new(kind, meta::namespace(meta), meta::name(meta))
    }

    pub(crate) fn dynamic(resource: &ResourceInfo, namespace: &str, name: &str) -> Self {
        let kind = Kind::ALL.iter().copied().find(|kind| {
            kind.plural() == resource.plural && kind.api_version() == resource.api_version
        });
        Self {
            kind,
            prefix: resource.prefix(),
            plural: resource.plural.clone(),
            namespace: if resource.namespaced {
                namespace.to_owned()
            } else {
                String::new()
            },
            name: name.to_owned(),
        }
    }

    /// The path of the object, or of the collection when the name is empty.
    pub(crate) fn path(&self) -> String {
        let mut path = self.prefix.clone();
        if !self.namespace.is_empty() {
            path.push_str("/namespaces/");
            path.push_str(&self.namespace);
        }
        path.push('/');
        path.push_str(&self.plural);
        if !self.name.is_empty() {
            path.push('/');
            path.push_str(&self.name);
        }
        path
    }
}

/// How a patch body is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Merge,
    Strategic,
}

/// How a delete treats dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// What is known once a write has succeeded or failed; `message` gets the object's name or the error appended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Announce {
    pub(crate) done: Option<Note>,
    pub(crate) failed: Option<Note>,
}

/// One change to the cluster.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    Create {
        kind: Kind,
        namespace: String,
        object: Box<Value>,
        announce: Option<Box<Announce>>,
    },
    Patch {
        target: Target,
        subresource: Option<&'static str>,
        how: PatchKind,
        body: Value,
    },
    Delete {
        target: Target,
        uid: String,
        grace_seconds: Option<i64>,
        propagation: Option<Propagation>,
        announce: Option<Box<Announce>>,
    },
    /// Assigns a pod to a node through the binding subresource.
    Bind {
        namespace: String,
        pod: String,
        uid: String,
        node: String,
    },
    /// Gives a node its pod CIDRs.
    AssignPodCidrs {
        node: String,
        uid: String,
        cidrs: Vec<ipnetwork::IpNetwork>,
        body: Value,
    },
    Event(Note),
    /// Asks whether an owner exists; the answer goes into the graph.
    ProbeOwner {
        target: Target,
        uid: String,
    },
    /// Deletes everything in a terminating namespace and tells what is left.
    EmptyNamespace {
        name: String,
        uid: String,
    },
    /// Removes the finalizer `kubernetes` from spec.finalizers.
    FinalizeNamespace {
        name: String,
    },
}

/// What a reconcile decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) writes: Vec<Write>,
    /// Run again after this time, even if nothing changes.
    pub(crate) again: Option<Duration>,
    /// The scheduler found no node: the pod waits for a change that may help.
    pub(crate) park: bool,
}

impl Plan {
    pub(crate) fn nothing() -> Self {
        Self::default()
    }

    pub(crate) fn of(writes: Vec<Write>) -> Self {
        Self {
            writes,
            ..Self::default()
        }
    }

    pub(crate) fn push(&mut self, write: Write) {
        self.writes.push(write);
    }

    /// Run again no later than after `delay`.
    pub(crate) fn again_in(&mut self, delay: Duration) {
        self.again = Some(self.again.map_or(delay, |known| known.min(delay)));
    }
}

/// A merge patch of a cached object's status from `old` to `new`; `None` when nothing changes.
///
/// It names the resourceVersion it was computed from, so a concurrent writer is never overwritten.
pub(crate) fn status_patch<T: serde::Serialize>(
    kind: Kind,
    object: &ObjectMeta,
    old: Option<&T>,
    new: &T,
) -> Option<Write> {
    let new = meta::to_value(new);
    let change = match old {
        Some(old) => meta::merge_diff(&meta::to_value(old), &new)?,
        None => new,
    };
    Some(Write::Patch {
        target: Target::of(kind, object),
        subresource: Some("status"),
        how: PatchKind::Merge,
        body: serde_json::json!({"metadata": precondition(object), "status": change}),
    })
}

/// Metadata for a patch body that makes it fail with a conflict if the object has changed since.
pub(crate) fn precondition(object: &ObjectMeta) -> Value {
    serde_json::json!({"resourceVersion": object.resource_version, "uid": object.uid})
}
