//! Default values, as upstream fills them in before validation and storage.
//! Addresses, node ports, names and times are allocated by the API server, not here.

use serde_json::{Map, Value, json};

use crate::kinds::Kind;

mod config;
mod pod;
mod service;
#[cfg(test)]
mod tests;
mod workloads;

/// A JSON object.
type Object = Map<String, Value>;

/// Fills in every default of the kind.
pub fn apply(kind: &Kind, object: &mut Value) {
    let Value::Object(o) = object else { return };
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::pod(o),
        ("", "PodTemplate") => at(o, "template", |t| at(t, "spec", pod::spec)),
        ("", "ReplicationController") => workloads::replication_controller(o),
        ("", "Service") => service::service(o),
        ("", "Endpoints") => each(o, "subsets", |s| {
            each(s, "ports", |p| set(p, "protocol", "TCP"))
        }),
        ("", "Secret") => config::secret(o),
        ("", "Namespace") => config::namespace(o),
        ("", "PersistentVolume") => config::persistent_volume(o),
        ("", "PersistentVolumeClaim") => at(o, "spec", |s| set(s, "volumeMode", "Filesystem")),
        ("", "LimitRange") => config::limit_range(o),
        ("", "Node") => config::node(o),
        ("apps", "Deployment") => workloads::deployment(o),
        ("apps", "ReplicaSet") => workloads::replica_set(o),
        ("apps", "StatefulSet") => workloads::stateful_set(o),
        ("apps", "DaemonSet") => workloads::daemon_set(o),
        ("batch", "Job") => workloads::job(o),
        ("batch", "CronJob") => workloads::cron_job(o),
        ("autoscaling", "HorizontalPodAutoscaler") => {
            workloads::autoscaler(o, kind.version == "v2");
        }
        ("discovery.k8s.io", "EndpointSlice") => service::endpoint_slice(o),
        ("networking.k8s.io", "NetworkPolicy") => service::network_policy(o),
        ("networking.k8s.io", "IngressClass") => {
            at(o, "spec", |s| {
                at(s, "parameters", |p| set(p, "scope", "Cluster"))
            });
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            config::role_binding(o);
        }
        ("storage.k8s.io", "StorageClass") => {
            set(o, "reclaimPolicy", "Delete");
            set(o, "volumeBindingMode", "Immediate");
        }
        ("storage.k8s.io", "CSIDriver") => config::csi_driver(o),
        ("scheduling.k8s.io", "PriorityClass") => {
            set(o, "preemptionPolicy", "PreemptLowerPriority");
        }
        ("admissionregistration.k8s.io", _) => config::admission(kind.kind, o),
        _ => {}
    }
}

/// Sets a field that is absent or null.
fn set(object: &mut Object, name: &str, value: impl Into<Value>) {
    match object.get_mut(name) {
        Some(present) if !present.is_null() => {}
        Some(null) => *null = value.into(),
        None => {
            object.insert(name.to_owned(), value.into());
        }
    }
}

/// Sets a string field that is absent, null or empty.
fn set_text(object: &mut Object, name: &str, value: &str) {
    if object
        .get(name)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .is_empty()
    {
        object.insert(name.to_owned(), value.into());
    }
}

/// Does something with the object in a field, when there is one.
fn at(object: &mut Object, name: &str, then: impl FnOnce(&mut Object)) {
    if let Some(Value::Object(inner)) = object.get_mut(name) {
        then(inner);
    }
}

/// Does something with the object in a field, which is made when absent.
fn make(object: &mut Object, name: &str, then: impl FnOnce(&mut Object)) {
    set(object, name, json!({}));
    at(object, name, then);
}

/// Does something with each object in a list.
fn each(object: &mut Object, name: &str, mut then: impl FnMut(&mut Object)) {
    if let Some(Value::Array(items)) = object.get_mut(name) {
        for item in items {
            if let Value::Object(item) = item {
                then(item);
            }
        }
    }
}
