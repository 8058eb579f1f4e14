//! What a field selector may name, kind by kind.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kinds::Kind;

/// Field, and the path in the object where its value stands.
type Row = (&'static str, &'static [&'static str]);

const POD: &[Row] = &[
    ("spec.nodeName", &["spec", "nodeName"]),
    ("spec.restartPolicy", &["spec", "restartPolicy"]),
    ("spec.schedulerName", &["spec", "schedulerName"]),
    ("spec.serviceAccountName", &["spec", "serviceAccountName"]),
    ("spec.hostNetwork", &["spec", "hostNetwork"]),
    ("status.phase", &["status", "phase"]),
    ("status.podIP", &["status", "podIP"]),
    ("status.nominatedNodeName", &["status", "nominatedNodeName"]),
];
const EVENT: &[Row] = &[
    ("involvedObject.kind", &["involvedObject", "kind"]),
    ("involvedObject.namespace", &["involvedObject", "namespace"]),
    ("involvedObject.name", &["involvedObject", "name"]),
    ("involvedObject.uid", &["involvedObject", "uid"]),
    (
        "involvedObject.apiVersion",
        &["involvedObject", "apiVersion"],
    ),
    (
        "involvedObject.resourceVersion",
        &["involvedObject", "resourceVersion"],
    ),
    ("involvedObject.fieldPath", &["involvedObject", "fieldPath"]),
    ("reason", &["reason"]),
    ("reportingComponent", &["reportingComponent"]),
    ("source", &["source", "component"]),
    ("type", &["type"]),
];
const EVENTS_V1: &[Row] = &[
    ("regarding.kind", &["regarding", "kind"]),
    ("regarding.namespace", &["regarding", "namespace"]),
    ("regarding.name", &["regarding", "name"]),
    ("regarding.uid", &["regarding", "uid"]),
    ("regarding.apiVersion", &["regarding", "apiVersion"]),
    (
        "regarding.resourceVersion",
        &["regarding", "resourceVersion"],
    ),
    ("regarding.fieldPath", &["regarding", "fieldPath"]),
    ("reason", &["reason"]),
    ("reportingController", &["reportingController"]),
    ("type", &["type"]),
];

fn rows(kind: &Kind) -> &'static [Row] {
    match (kind.group, kind.kind) {
        ("", "Pod") => POD,
        ("", "Event") => EVENT,
        ("events.k8s.io", "Event") => EVENTS_V1,
        ("", "Node") => &[("spec.unschedulable", &["spec", "unschedulable"])],
        ("", "Namespace") => &[("status.phase", &["status", "phase"])],
        ("", "Secret") => &[("type", &["type"])],
        ("", "Service") => &[
            ("spec.clusterIP", &["spec", "clusterIP"]),
            ("spec.type", &["spec", "type"]),
        ],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            &[("status.replicas", &["status", "replicas"])]
        }
        ("batch", "Job") => &[("status.successful", &["status", "succeeded"])],
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            &[("spec.signerName", &["spec", "signerName"])]
        }
        _ => &[],
    }
}

/// Whether a field selector for this kind may name `field`; otherwise the request is answered with
/// 400 `field label not supported: FIELD`.
pub fn is_selectable(kind: &Kind, field: &str) -> bool {
    field == "metadata.name"
        || (field == "metadata.namespace" && kind.namespaced)
        || rows(kind).iter().any(|(name, _)| *name == field)
}

/// The values of all fields that selectors may name; a field the object lacks has the empty
/// string, or the zero of its type.
pub fn selectable(kind: &Kind, object: &Value) -> BTreeMap<&'static str, String> {
    let mut out = BTreeMap::new();
    out.insert("metadata.name", text(object, &["metadata", "name"]));
    if kind.namespaced {
        out.insert(
            "metadata.namespace",
            text(object, &["metadata", "namespace"]),
        );
    }
    for (name, path) in rows(kind) {
        let mut value = text(object, path);
        if value.is_empty() {
            value = zero(name, object).to_owned();
        }
        out.insert(name, value);
    }
    out
}

fn text(object: &Value, path: &[&str]) -> String {
    let mut at = object;
    for name in path {
        match at.get(name) {
            Some(inner) => at = inner,
            None => return String::new(),
        }
    }
    match at {
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => at.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
    }
}

fn zero<'a>(field: &str, object: &'a Value) -> &'a str {
    match field {
        "spec.unschedulable" | "spec.hostNetwork" => "false",
        "status.replicas" | "status.successful" => "0",
        "source" => object
            .get("reportingComponent")
            .and_then(Value::as_str)
            .unwrap_or_default(),
        _ => "",
    }
}
