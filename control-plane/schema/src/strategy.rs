//! What the server itself writes into objects: which part of a request counts, the generation, the
//! first status. Names, uids, times and resource versions are the caller's (they are not pure).

use serde_json::{Map, Value, json};

use crate::kinds::Kind;

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
    if has_status(kind) {
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
        _ if has_status(kind) => Some(json!({})),
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

/// Before an update of `/status`: only the status counts; of the metadata, only managed fields
/// (and, for nodes and pods, labels and annotations stay the old ones as everywhere).
pub fn prepare_status_update(_kind: &Kind, old: &Value, new: &mut Value) {
    let Value::Object(before) = old else { return };
    let status = new.get("status").cloned();
    let version = new["metadata"].get("resourceVersion").cloned();
    let managed = new["metadata"].get("managedFields").cloned();
    let mut out: Map<String, Value> = before.clone();
    match status {
        Some(status) => out.insert("status".into(), status),
        None => out.shift_remove("status"),
    };
    if let Some(Value::Object(metadata)) = out.get_mut("metadata") {
        if let Some(version) = version {
            metadata.insert("resourceVersion".into(), version);
        }
        if let Some(managed) = managed {
            metadata.insert("managedFields".into(), managed);
        }
    }
    *new = Value::Object(out);
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
mod tests {
    use super::*;
    use crate::kind_by_gvk;

    #[test]
    fn create_drops_status_and_starts_at_generation_1() {
        let pod = kind_by_gvk("", "v1", "Pod").unwrap();
        let mut object = json!({"metadata": {"name": "a", "generation": 7}, "spec": {"containers": []},
            "status": {"phase": "Running"}});
        prepare_create(pod, &mut object);
        assert_eq!(
            object,
            json!({"metadata": {"name": "a", "generation": 1}, "spec": {"containers": []},
                "status": {"phase": "Pending", "qosClass": "BestEffort"}})
        );
        let namespace = kind_by_gvk("", "v1", "Namespace").unwrap();
        let mut object = json!({"metadata": {"name": "a"}});
        prepare_create(namespace, &mut object);
        assert_eq!(object["spec"], json!({"finalizers": ["kubernetes"]}));
        assert_eq!(object["status"], json!({"phase": "Active"}));
    }

    #[test]
    fn generation_follows_the_spec_alone() {
        let kind = kind_by_gvk("apps", "v1", "Deployment").unwrap();
        let old = json!({"metadata": {"name": "a", "uid": "u", "generation": 3}, "spec": {"replicas": 1},
            "status": {"replicas": 1}});
        let mut new = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"replicas": 1},
            "status": {"replicas": 9}});
        prepare_update(kind, &old, &mut new);
        assert_eq!(new["metadata"]["generation"], 3);
        assert_eq!(new["metadata"]["uid"], "u");
        assert_eq!(new["status"], json!({"replicas": 1}));
        new["spec"]["replicas"] = 2.into();
        prepare_update(kind, &old, &mut new);
        assert_eq!(new["metadata"]["generation"], 4);
    }

    #[test]
    fn status_update_keeps_the_spec() {
        let kind = kind_by_gvk("apps", "v1", "Deployment").unwrap();
        let old = json!({"metadata": {"name": "a", "labels": {"l": "1"}}, "spec": {"replicas": 1}});
        let mut new = json!({"metadata": {"name": "a", "resourceVersion": "5"}, "spec": {"replicas": 7},
            "status": {"replicas": 1}});
        prepare_status_update(kind, &old, &mut new);
        assert_eq!(
            new,
            json!({"metadata": {"name": "a", "labels": {"l": "1"}, "resourceVersion": "5"},
                "spec": {"replicas": 1}, "status": {"replicas": 1}})
        );
    }

    #[test]
    fn qos() {
        let class =
            |resources: Value| qos_class(&json!({"containers": [{"resources": resources}]}));
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(class(json!({"limits": both})), "Guaranteed");
        assert_eq!(
            class(json!({"limits": both, "requests": {"cpu": "500m"}})),
            "Burstable"
        );
    }
}
