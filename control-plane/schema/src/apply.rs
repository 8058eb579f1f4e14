//! Server-side apply: who owns which field, what an applied configuration changes, and with whom it
//! conflicts. The rules are those of structured-merge-diff, driven by the list and map types of
//! `types`.
//!
//! An object has `managedFields` from its first server-side apply on. What it held before belongs to
//! the manager `before-first-apply`, as for objects that are older than the feature upstream. Other
//! writes are tracked from then on, by `track_update`.

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::strategy::has_status;
use crate::types;

mod managers;
mod set;
#[cfg(test)]
mod tests;
mod walk;

use managers::{Managers, Operation};
use set::Set;
use walk::Node;

const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager of `kubectl apply --server-side`, which takes over what it applied client-side.
const KUBECTL: &str = "kubectl";

/// Who writes, and when.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// The `fieldManager` of the request.
    pub manager: &'a str,
    /// `status`, `scale`, or empty for the object itself.
    pub subresource: &'a str,
    /// Time of the request.
    pub now: jiff::Timestamp,
}

/// A field that somebody else owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The owner, as messages name it: `"kubectl-edit" using apps/v1 at 2026-01-02T03:04:05Z`.
    pub manager: String,
    /// The field's path: `.spec.replicas`.
    pub field: String,
}

/// Why a configuration was not applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Other managers own fields it changes, and it was not forced: HTTP 409.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration cannot be applied: HTTP 400.
    #[error("{0}")]
    Malformed(String),
}

/// Applies a configuration to the stored object (`None`: there is none yet). Returns the object
/// with its managed fields; defaults, strategy and validation follow as for any other write.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    applied: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Error> {
    let Some(schema) = types::get(kind.type_name) else {
        return Err(Error::Malformed(format!("{} cannot be applied", kind.kind)));
    };
    let mut config = applied.clone();
    if config["metadata"]
        .get("managedFields")
        .is_some_and(|m| m != &json!([]))
    {
        return Err(Error::Malformed(
            "metadata.managedFields must be nil".into(),
        ));
    }
    only_subresource(kind, &mut config, writer.subresource);
    let root = Node::Struct(schema);
    if let Some(why) = walk::first_bad_element(root, &config) {
        return Err(Error::Malformed(why));
    }
    let own_set = owned(root, &config);
    let version = kind.api_version();

    let Some(live) = live else {
        let mut managers = Managers::default();
        managers.set(Operation::Apply, writer, &version, own_set);
        managers.write_to(&mut config);
        return Ok(config);
    };
    let mut managers = Managers::read_from(live);
    if managers.is_empty() {
        let before = Writer {
            manager: BEFORE_FIRST_APPLY,
            subresource: "",
            ..*writer
        };
        managers.set(Operation::Update, &before, &version, owned(root, live));
    }

    let last = managers
        .of(Operation::Apply, writer)
        .cloned()
        .unwrap_or_default();
    let mut merged = walk::merge(root, live, &config);
    let keep = own_set.union(&managers.all_but(Operation::Apply, writer));
    walk::prune(root, &mut merged, &last, &keep);

    let change = walk::compare(root, live, &merged);
    let written = strip(change.added.union(&change.modified));
    let conflicts = managers.conflicts(&written, Operation::Apply, writer);
    if !conflicts.is_empty() && !force && !takes_over(root, live, writer, &conflicts) {
        let listed = conflicts
            .into_iter()
            .flat_map(|(manager, fields)| {
                let fields = fields.paths();
                fields.into_iter().map(move |field| Conflict {
                    manager: manager.clone(),
                    field,
                })
            })
            .collect();
        return Err(Error::Conflicts(listed));
    }
    managers.take_away(&written.union(&change.removed), Operation::Apply, writer);
    managers.set(Operation::Apply, writer, &version, own_set);
    managers.write_to(&mut merged);
    Ok(merged)
}

/// Notes in `new` that `writer` changed an object that is under server-side apply. Objects that
/// never were stay without managed fields.
pub fn track_update(kind: &Kind, old: &Value, new: &mut Value, writer: &Writer<'_>) {
    let Some(schema) = types::get(kind.type_name) else {
        return;
    };
    let given = new["metadata"].get("managedFields");
    let reset = given == Some(&json!([{}])) || given == Some(&json!([]));
    // A client that sends none keeps those that are there; one empty entry asks to forget them.
    let mut managers = match given {
        Some(list) if !list.is_null() && !reset => Managers::read_from(new),
        _ if given == Some(&json!([{}])) => Managers::default(),
        _ => Managers::read_from(old),
    };
    if managers.is_empty() {
        if let Value::Object(metadata) = &mut new["metadata"] {
            metadata.shift_remove("managedFields");
        }
        return;
    }
    let root = Node::Struct(schema);
    let change = walk::compare(root, old, new);
    let written = strip(change.added.union(&change.modified));
    if !written.is_empty() || !change.removed.is_empty() {
        managers.take_away(&written.union(&change.removed), Operation::Update, writer);
        let own = managers
            .of(Operation::Update, writer)
            .cloned()
            .unwrap_or_default();
        let own = own.union(&written).difference(&change.removed);
        managers.set(Operation::Update, writer, &kind.api_version(), own);
    }
    managers.write_to(new);
}

/// The 409 Status that names the conflicts.
pub fn conflict_status(kind: &Kind, name: &str, conflicts: &[Conflict]) -> Value {
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|c| {
            json!({"reason": "FieldManagerConflict",
                "message": format!("conflict with {}", c.manager), "field": c.field})
        })
        .collect();
    let mut details = json!({"name": name, "causes": causes, "kind": kind.plural});
    if !kind.group.is_empty() {
        details["group"] = kind.group.into();
    }
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": conflict_message(conflicts),
        "reason": "Conflict",
        "details": details,
        "code": 409,
    })
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.field
        );
    }
    let mut texts: Vec<String> = Vec::new();
    let mut last = None;
    for conflict in conflicts {
        if last != Some(&conflict.manager) {
            texts.push(format!("conflicts with {}:", conflict.manager));
            last = Some(&conflict.manager);
        }
        texts.push(format!("- {}", conflict.field));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        texts.join("\n")
    )
}

/// Whether kubectl may take the conflicting fields without force: when all of them are what it
/// applied client-side before.
fn takes_over(root: Node, live: &Value, writer: &Writer<'_>, conflicts: &[(String, Set)]) -> bool {
    let annotation = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    let Some(last) = annotation.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return false;
    };
    writer.manager == KUBECTL && {
        let before = owned(root, &last);
        conflicts
            .iter()
            .all(|(_, fields)| fields.difference(&before).is_empty())
    }
}

/// An apply to the object does not write the status, one to a subresource nothing else.
fn only_subresource(kind: &Kind, config: &mut Value, subresource: &str) {
    let Value::Object(map) = config else { return };
    match subresource {
        "" => {
            if has_status(kind) {
                map.shift_remove("status");
            }
        }
        _ => {
            map.retain(|name, _| {
                matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status")
            });
            if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
                metadata.retain(|name, _| {
                    matches!(
                        name.as_str(),
                        "name" | "namespace" | "uid" | "resourceVersion"
                    )
                });
            }
        }
    }
}

fn owned(root: Node, object: &Value) -> Set {
    let mut set = Set::default();
    walk::field_set(root, object, &mut set);
    strip(set)
}

/// Without what nobody owns: identity and the server's own bookkeeping.
fn strip(set: Set) -> Set {
    let mut ignored = Set::default();
    for path in [
        &["f:apiVersion"][..],
        &["f:kind"],
        &["f:metadata"],
        &["f:metadata", "f:name"],
        &["f:metadata", "f:generateName"],
        &["f:metadata", "f:namespace"],
        &["f:metadata", "f:creationTimestamp"],
        &["f:metadata", "f:deletionTimestamp"],
        &["f:metadata", "f:deletionGracePeriodSeconds"],
        &["f:metadata", "f:selfLink"],
        &["f:metadata", "f:uid"],
        &["f:metadata", "f:generation"],
        &["f:metadata", "f:resourceVersion"],
    ] {
        ignored.insert(path);
    }
    let mut out = set.difference(&ignored);
    out.remove_below(&["f:metadata", "f:managedFields"]);
    out
}
