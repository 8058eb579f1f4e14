//! Validation of objects before they are stored, with upstream's fields, reasons and texts:
//! `spec.ports[0].port: Invalid value: 99999: must be between 1 and 65535, inclusive`.
//!
//! Defaults must have been applied. What is checked is what users run into; a kind without special
//! rules has its metadata checked.

use std::fmt;

use serde_json::{Value, json};

use crate::kinds::Kind;

mod affinity;
mod config;
mod containers;
mod metadata;
mod names;
mod network;
mod pod;
mod service;
#[cfg(test)]
mod tests;
mod volumes;
mod workloads;

pub use names::{dns_label, dns_subdomain, label_value, qualified_name};

/// Why a field was refused; the `reason` of a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The value is malformed or out of range.
    Invalid,
    /// The value is missing.
    Required,
    /// The value occurs twice.
    Duplicate,
    /// The value is none of those allowed.
    NotSupported,
    /// The value may not be given here.
    Forbidden,
    /// The value is too long.
    TooLong,
    /// The value names something that is not there.
    NotFound,
}

impl Reason {
    /// The API's word, e.g. `FieldValueInvalid`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Invalid => "FieldValueInvalid",
            Reason::Required => "FieldValueRequired",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::TooLong => "FieldValueTooLong",
            Reason::NotFound => "FieldValueNotFound",
        }
    }
}

/// One refused field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field: `spec.containers[0].name`.
    pub field: String,
    /// Why.
    pub reason: Reason,
    /// The text after the field: `Invalid value: "x": ...`.
    pub detail: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.detail)
    }
}

impl FieldError {
    /// An error with a ready text.
    pub fn new(field: impl Into<String>, reason: Reason, detail: impl Into<String>) -> Self {
        FieldError {
            field: field.into(),
            reason,
            detail: detail.into(),
        }
    }

    /// `Invalid value: VALUE: why`.
    pub fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        FieldError::new(
            field,
            Reason::Invalid,
            format!("Invalid value: {value}: {why}"),
        )
    }

    /// `Required value`, and why if that is said.
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let detail = if why.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {why}")
        };
        FieldError::new(field, Reason::Required, detail)
    }

    /// `Duplicate value: VALUE`.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        FieldError::new(
            field,
            Reason::Duplicate,
            format!("Duplicate value: {value}"),
        )
    }

    /// `Forbidden: why`.
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        FieldError::new(field, Reason::Forbidden, format!("Forbidden: {why}"))
    }

    /// `Not found: VALUE`.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        FieldError::new(field, Reason::NotFound, format!("Not found: {value}"))
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        let detail = format!("Too long: may not be more than {limit} bytes");
        FieldError::new(field, Reason::TooLong, detail)
    }

    /// `Unsupported value: VALUE: supported values: "A", "B"`.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let mut quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        quoted.sort();
        let detail = format!(
            "Unsupported value: {value}: supported values: {}",
            quoted.join(", ")
        );
        FieldError::new(field, Reason::NotSupported, detail)
    }
}

/// Collects errors.
type Errors = Vec<FieldError>;

/// Everything that is wrong with a new object; empty when it may be stored.
pub fn create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    metadata::check(kind, object, &mut errors);
    content(kind, object, &mut errors);
    errors
}

/// Everything that is wrong with a changed object: as for a new one, and what may not change.
pub fn update(kind: &Kind, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    metadata::check(kind, new, &mut errors);
    metadata::update(old, new, &mut errors);
    // An object that is going away must not be held back by rules it was stored without.
    if new["metadata"]["deletionTimestamp"].is_null() || old.get("spec") != new.get("spec") {
        content(kind, new, &mut errors);
    }
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::update(old, new, &mut errors),
        ("", "Service") => service::update(old, new, &mut errors),
        ("", "Secret" | "ConfigMap") => config::update(kind, old, new, &mut errors),
        ("", "PersistentVolumeClaim") => config::claim_update(old, new, &mut errors),
        ("apps", _) | ("batch", "Job") => workloads::update(kind, old, new, &mut errors),
        ("discovery.k8s.io", "EndpointSlice") => {
            immutable(old, new, "/addressType", "addressType", &mut errors);
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding")
            if old["roleRef"] != new["roleRef"] =>
        {
            errors.push(FieldError::invalid(
                "roleRef",
                &new["roleRef"],
                "cannot change roleRef",
            ));
        }
        ("storage.k8s.io", "StorageClass") => {
            for field in [
                "parameters",
                "provisioner",
                "reclaimPolicy",
                "volumeBindingMode",
            ] {
                if old[field] != new[field] {
                    let why = "updates to parameters, provisioner, reclaimPolicy and volumeBindingMode are forbidden.";
                    errors.push(FieldError::forbidden(field, why));
                }
            }
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            for field in ["value", "preemptionPolicy"] {
                immutable(old, new, &format!("/{field}"), field, &mut errors);
            }
        }
        _ => {}
    }
    errors
}

fn content(kind: &Kind, object: &Value, errors: &mut Errors) {
    match (kind.group, kind.kind) {
        ("", "Pod") => {
            pod::spec(&object["spec"], "spec", pod::Place::Pod, errors);
        }
        ("", "Service") => service::check(object, errors),
        ("", "Endpoints") => network::endpoints(object, errors),
        ("", "ConfigMap") => config::config_map(object, errors),
        ("", "Secret") => config::secret(object, errors),
        ("", "Node") => config::node(object, errors),
        ("", "PersistentVolume") => config::volume(object, errors),
        ("", "PersistentVolumeClaim") => config::claim(object, errors),
        ("", "Event") => config::event(object, errors),
        ("", "Binding") => config::binding(object, errors),
        ("", "ReplicationController") | ("apps" | "batch", _) => {
            workloads::check(kind, object, errors);
        }
        ("autoscaling", _) => workloads::autoscaler(object, errors),
        ("policy", "PodDisruptionBudget") => workloads::disruption_budget(object, errors),
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(object, errors),
        ("networking.k8s.io", "Ingress") => network::ingress(object, errors),
        ("networking.k8s.io", "NetworkPolicy") => network::network_policy(object, errors),
        ("rbac.authorization.k8s.io", _) => config::rbac(kind, object, errors),
        ("storage.k8s.io", "StorageClass") => config::storage_class(object, errors),
        ("scheduling.k8s.io", "PriorityClass") => config::priority_class(object, errors),
        _ => {}
    }
}

/// The 422 Status that tells a client what is wrong.
pub fn status(kind: &Kind, name: &str, errors: &[FieldError]) -> Value {
    let texts: Vec<String> = errors.iter().map(FieldError::to_string).collect();
    let text = match &texts[..] {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    let causes: Vec<Value> = errors
        .iter()
        .map(|e| json!({"reason": e.reason.as_str(), "message": e.detail, "field": e.field}))
        .collect();
    let mut details =
        json!({"name": name, "group": kind.group, "kind": kind.kind, "causes": causes});
    if kind.group.is_empty()
        && let Some(details) = details.as_object_mut()
    {
        details.shift_remove("group");
    }
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": format!("{} {name:?} is invalid: {text}", kind.group_kind()),
        "reason": "Invalid",
        "details": details,
        "code": 422,
    })
}

const IMMUTABLE: &str = "field is immutable";

fn immutable(old: &Value, new: &Value, pointer: &str, field: &str, errors: &mut Errors) {
    let at = |object: &Value| object.pointer(pointer).cloned().unwrap_or(Value::Null);
    let (before, after) = (at(old), at(new));
    if before != after {
        errors.push(FieldError::invalid(field, &after, IMMUTABLE));
    }
}

/// A text that must be one of a few.
fn one_of(value: &Value, field: &str, allowed: &[&str], errors: &mut Errors) {
    match value.as_str() {
        None | Some("") => errors.push(FieldError::required(field, "")),
        Some(text) if allowed.contains(&text) => {}
        Some(_) => errors.push(FieldError::not_supported(field, value, allowed)),
    }
}

/// An integer that must not be negative; absent is fine.
fn not_negative(value: &Value, field: &str, errors: &mut Errors) {
    if value.as_i64().is_some_and(|n| n < 0) {
        errors.push(FieldError::invalid(
            field,
            value,
            "must be greater than or equal to 0",
        ));
    }
}

const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

fn is_port(value: &Value) -> bool {
    value.as_i64().is_some_and(|n| (1..=65535).contains(&n))
}

/// A port number or a port name.
fn port_or_name(value: &Value, field: &str, errors: &mut Errors) {
    match value {
        Value::Number(_) if !is_port(value) => {
            errors.push(FieldError::invalid(field, value, PORT_RANGE));
        }
        Value::String(name) => {
            for why in names::port_name(name) {
                errors.push(FieldError::invalid(field, value, why));
            }
        }
        Value::Null => errors.push(FieldError::required(field, "")),
        _ => {}
    }
}

/// Items of a list; nothing when there is none.
fn items<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object
        .get(name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// A text field; empty when absent.
fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}
