//! `meta.k8s.io/v1` Tables: what `kubectl get` prints. Columns and cells follow upstream's printers;
//! kinds that upstream prints by default only have a name and a creation time.

use std::borrow::Borrow;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kinds::Kind;

mod cells;
mod columns;
mod core;
mod network;
mod others;
mod pod;
#[cfg(test)]
mod tests;
mod time;
mod workloads;

pub use columns::Column;
pub use time::human_duration;

/// What of the object a row carries (`includeObject` of the request).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncludeObject {
    /// Only the cells.
    None,
    /// A PartialObjectMetadata: the default.
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// From the query parameter; absent or empty is `Metadata`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// The columns of a kind; those with a priority above 0 are shown by `-o wide` only.
pub fn columns(kind: &Kind) -> &'static [Column] {
    columns::of(kind)
}

/// A whole Table over `objects`. `metadata` holds nothing: the caller adds the list's.
/// `now` is what ages are counted to.
pub fn render<V: Borrow<Value>>(
    kind: &Kind,
    objects: &[V],
    include: IncludeObject,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| row(kind, object.borrow(), include, now))
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": definitions(kind),
        "rows": rows,
    })
}

/// The `columnDefinitions` of a kind's Table.
pub fn definitions(kind: &Kind) -> Value {
    let definitions: Vec<Value> = columns(kind)
        .iter()
        .map(|c| {
            json!({
                "name": c.name,
                "type": c.kind,
                "format": c.format,
                "description": c.description,
                "priority": c.priority,
            })
        })
        .collect();
    definitions.into()
}

/// One row.
pub fn row(kind: &Kind, object: &Value, include: IncludeObject, now: Timestamp) -> Value {
    let mut row = Map::new();
    row.insert("cells".into(), cells(kind, object, now).into());
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => {
            row.insert("object".into(), partial_metadata(object));
        }
        IncludeObject::Object => {
            row.insert("object".into(), object.clone());
        }
    }
    Value::Object(row)
}

/// The PartialObjectMetadata of an object.
pub fn partial_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

fn cells(kind: &Kind, object: &Value, now: Timestamp) -> Vec<Value> {
    let o = cells::Object { value: object, now };
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::pod(&o),
        ("", "Service") => network::service(&o),
        ("", "Endpoints") => network::endpoints(&o),
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice(&o),
        ("networking.k8s.io", "Ingress") => network::ingress(&o),
        ("networking.k8s.io", "IngressClass") => network::ingress_class(&o),
        ("networking.k8s.io", "NetworkPolicy") => network::network_policy(&o),
        ("networking.k8s.io", "ServiceCIDR") => network::service_cidr(&o),
        ("networking.k8s.io", "IPAddress") => network::ip_address(&o),
        ("", "Node") => core::node(&o),
        ("", "Namespace") => core::namespace(&o),
        ("", "Event") => core::event(&o),
        ("events.k8s.io", "Event") => core::event_v1(&o),
        ("", "ConfigMap") => core::config_map(&o),
        ("", "Secret") => core::secret(&o),
        ("", "ServiceAccount") => core::service_account(&o),
        ("", "PersistentVolume") => core::persistent_volume(&o),
        ("", "PersistentVolumeClaim") => core::persistent_volume_claim(&o),
        ("", "ResourceQuota") => core::resource_quota(&o),
        ("", "PodTemplate") => workloads::pod_template(&o),
        ("", "ReplicationController") | ("apps", "ReplicaSet") => workloads::replica_set(&o),
        ("apps", "Deployment") => workloads::deployment(&o),
        ("apps", "DaemonSet") => workloads::daemon_set(&o),
        ("apps", "StatefulSet") => workloads::stateful_set(&o),
        ("apps", "ControllerRevision") => workloads::controller_revision(&o),
        ("batch", "Job") => workloads::job(&o),
        ("batch", "CronJob") => workloads::cron_job(&o),
        ("policy", "PodDisruptionBudget") => workloads::disruption_budget(&o),
        ("autoscaling", _) => others::autoscaler(&o),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            others::role_binding(&o)
        }
        ("certificates.k8s.io", _) => others::signing_request(&o),
        ("coordination.k8s.io", "Lease") => o.named(vec![o.text("/spec/holderIdentity").into()]),
        ("node.k8s.io", "RuntimeClass") => o.named(vec![o.text("/handler").into()]),
        ("scheduling.k8s.io", "PriorityClass") => others::priority_class(&o),
        ("storage.k8s.io", "StorageClass") => others::storage_class(&o),
        ("storage.k8s.io", "CSINode") => o.named(vec![o.count("/spec/drivers")]),
        ("storage.k8s.io", "CSIDriver") => others::csi_driver(&o),
        ("storage.k8s.io", "VolumeAttachment") => others::volume_attachment(&o),
        ("storage.k8s.io", "VolumeAttributesClass") => o.named(vec![o.text("/driverName").into()]),
        ("admissionregistration.k8s.io", _) => others::admission(kind, &o),
        _ => vec![
            o.name().into(),
            o.text("/metadata/creationTimestamp").into(),
        ],
    }
}
