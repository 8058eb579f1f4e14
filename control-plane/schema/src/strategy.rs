//! What the server itself writes into objects: which part of a request counts, the generation, the
//! first status. Names, uids, times and resource versions are the caller's (they are not pure).

use serde_json::{Map, Value, json};

use crate::kinds::Kind;

mod service;

/// Kinds whose `metadata.generation` counts changes of the wanted state.
fn has_generation(kind: &Kind) -> bool {
    matches!(
        (kind.group, kind.kind),
        ("", "Pod" | "ReplicationController")
            | (
                "apps",
                "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet"
            )
            | ("batch", "CronJob" | "Job")
            | ("discovery.k8s.io", "EndpointSlice")
            | (
                "networking.k8s.io",
                "Ingress" | "IngressClass" | "NetworkPolicy"
            )
            | ("policy", "PodDisruptionBudget")
            | ("node.k8s.io", "RuntimeClass")
            | ("scheduling.k8s.io", "PriorityClass")
            | ("admissionregistration.k8s.io", _)
    )
}

/// Whether the kind has a `status` subresource, so that `status` is not written through the object.
pub fn has_status(kind: &Kind) -> bool {
    kind.subresource("status").is_some()
}

/// Before create: drops what a client must not set (status, generation, deletion marks) and writes
/// the first status.
pub fn prepare_create(kind: &Kind, object: &mut Value) {
    let Value::Object(map) = object else { return };
    // A kubelet registers its node with the status.
    let keeps_status = (kind.group, kind.kind) == ("", "Node");
    if has_status(kind) && !keeps_status {
        map.shift_remove("status");
    }
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    if let Value::Object(metadata) = metadata {
        for name in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "generation",
        ] {
            metadata.shift_remove(name);
        }
        if has_generation(kind) {
            metadata.insert("generation".into(), 1.into());
        }
    }
    if (kind.group, kind.kind) == ("batch", "Job") {
        job_selector(map);
    }
    let status = match (kind.group, kind.kind) {
        ("", "Pod") => Some(json!({"phase": "Pending", "qosClass": qos_class(&map["spec"])})),
        ("", "Namespace") => {
            let spec = map.entry("spec").or_insert_with(|| json!({}));
            if spec.get("finalizers").is_none() {
                spec["finalizers"] = json!(["kubernetes"]);
            }
            Some(json!({"phase": "Active"}))
        }
        ("", "PersistentVolume") => Some(json!({"phase": "Pending"})),
        ("", "PersistentVolumeClaim") => Some(json!({"phase": "Pending"})),
        ("", "Service") => Some(json!({"loadBalancer": {}})),
        ("networking.k8s.io", "Ingress") => Some(json!({"loadBalancer": {}})),
        _ if has_status(kind) && map.get("status").is_none() => Some(json!({})),
        _ => None,
    };
    if let Some(status) = status {
        map.insert("status".into(), status);
    }
}

/// Before update: status and server-owned metadata stay as they are; the generation grows when
/// anything but metadata and status changed.
pub fn prepare_update(kind: &Kind, old: &Value, new: &mut Value) {
    keep_server_metadata(old, new);
    if has_status(kind) {
        copy_member(old, new, "status");
    }
    if matches!((kind.group, kind.kind), ("", "Namespace")) {
        copy_member(old, new, "spec");
    }
    if (kind.group, kind.kind) == ("", "Service") {
        service::keep_allocated(&old["spec"], &mut new["spec"]);
    }
    if has_generation(kind) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let grown = if same_wanted_state(old, new) {
            generation
        } else {
            generation + 1
        };
        if grown > 0 {
            new["metadata"]["generation"] = grown.into();
        }
    }
}

/// Before an update of `/status`: only the status counts. Of the metadata, managed fields count
/// too, and for pods and nodes labels and annotations, which their kubelet may set with the status.
pub fn prepare_status_update(kind: &Kind, old: &Value, new: &mut Value) {
    let Value::Object(before) = old else { return };
    let mut out: Map<String, Value> = before.clone();
    match new.get("status").cloned() {
        Some(status) => out.insert("status".into(), status),
        None => out.shift_remove("status"),
    };
    let from_kubelet = matches!((kind.group, kind.kind), ("", "Pod" | "Node"));
    if from_kubelet {
        let owners = old["metadata"].get("ownerReferences").cloned();
        keep_server_metadata(old, new);
        let mut metadata = new["metadata"].take();
        if let Value::Object(metadata) = &mut metadata {
            metadata.shift_remove("ownerReferences");
            metadata.extend(owners.map(|owners| ("ownerReferences".to_owned(), owners)));
        }
        out.insert("metadata".into(), metadata);
        if let (Some(class), Some(Value::Object(status))) =
            (old["status"].get("qosClass"), out.get_mut("status"))
        {
            status.entry("qosClass").or_insert_with(|| class.clone());
        }
    } else if let Some(Value::Object(metadata)) = out.get_mut("metadata") {
        for name in ["resourceVersion", "managedFields"] {
            if let Some(value) = new["metadata"].get(name) {
                metadata.insert(name.to_owned(), value.clone());
            }
        }
    }
    *new = Value::Object(out);
}

/// A Job that does not bring its own selector selects its pods by its uid. Needs `metadata.uid`.
fn job_selector(job: &mut Map<String, Value>) {
    let text = |name: &str| {
        job.get("metadata")
            .and_then(|m| m.get(name))
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let (Some(uid), Some(name)) = (text("uid"), text("name")) else {
        return;
    };
    let Some(Value::Object(spec)) = job.get_mut("spec") else {
        return;
    };
    if spec.get("manualSelector") == Some(&Value::Bool(true)) {
        return;
    }
    let own = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    spec.insert("selector".into(), own);
    let Some(Value::Object(template)) = spec.get_mut("template") else {
        return;
    };
    let metadata = template.entry("metadata").or_insert_with(|| json!({}));
    if !metadata["labels"].is_object() {
        metadata["labels"] = json!({});
    }
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        metadata["labels"][key] = value.as_str().into();
    }
}

fn keep_server_metadata(old: &Value, new: &mut Value) {
    let Value::Object(map) = new else { return };
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    let Value::Object(metadata) = metadata else {
        return;
    };
    for name in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "name",
        "namespace",
    ] {
        match old["metadata"].get(name) {
            Some(value) => {
                metadata.insert(name.to_owned(), value.clone());
            }
            None => {
                metadata.shift_remove(name);
            }
        }
    }
}

fn copy_member(old: &Value, new: &mut Value, name: &str) {
    let Value::Object(map) = new else { return };
    match old.get(name) {
        Some(value) => {
            map.insert(name.to_owned(), value.clone());
        }
        None => {
            map.shift_remove(name);
        }
    }
}

fn same_wanted_state(old: &Value, new: &Value) -> bool {
    let wanted = |value: &Value| -> Map<String, Value> {
        let Value::Object(map) = value else {
            return Map::new();
        };
        map.iter()
            .filter(|(name, _)| {
                !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind")
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    wanted(old) == wanted(new)
}

/// Quality of service of a pod: `Guaranteed` when every container limits CPU and memory to what it
/// requests, `BestEffort` when none asks for either, `Burstable` otherwise.
pub fn qos_class(spec: &Value) -> &'static str {
    let containers = ["containers", "initContainers"]
        .into_iter()
        .filter_map(|name| spec[name].as_array())
        .flatten();
    let (mut any, mut guaranteed) = (false, true);
    for container in containers {
        for name in ["cpu", "memory"] {
            let amount =
                |side: &str| quantity(&container["resources"][side][name]).filter(|q| !q.is_zero());
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn quantity(value: &Value) -> Option<api::quantity::Quantity> {
    value.as_str().and_then(|text| text.parse().ok())
}

#[cfg(test)]
mod tests;
