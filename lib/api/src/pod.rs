//! Pods and namespaces, as far as the network of a node reads them.

use serde::{Deserialize, Serialize};

use crate::meta::{ObjectMeta, is_default, null_as_default, resource};

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    /// Name, namespace, labels.
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(deserialize_with = "null_as_default")]
    pub spec: PodSpec,
    /// What the kubelet found.
    #[serde(deserialize_with = "null_as_default")]
    pub status: PodStatus,
}

resource!(Pod: "", "v1", "Pod", "pods", namespaced true);

/// `spec` of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node it runs on; empty while it has none.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub node_name: String,
    /// It has the node's network, and no address of its own.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "is_default"
    )]
    pub host_network: bool,
    /// Containers that run to their end before the others start, or beside them
    /// (`restartPolicy: Always`).
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub init_containers: Vec<Container>,
    /// Containers.
    #[serde(deserialize_with = "null_as_default")]
    pub containers: Vec<Container>,
}

/// A container of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Ports it serves.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ports: Vec<ContainerPort>,
    /// `Always` for an init container that runs beside the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<String>,
}

/// A port of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Name; may be empty.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub name: String,
    /// Number.
    #[serde(deserialize_with = "null_as_default")]
    pub container_port: i64,
    /// `TCP`, `UDP` or `SCTP`; empty means `TCP`.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub protocol: String,
}

/// `status` of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(deserialize_with = "null_as_default")]
    pub phase: String,
    /// First address.
    #[serde(
        rename = "podIP",
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub pod_ip: String,
    /// One address for each family; the first is `podIP`.
    #[serde(
        rename = "podIPs",
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub pod_ips: Vec<PodIp>,
}

impl PodStatus {
    /// The pod's addresses: `podIPs`, or `podIP` where only that is set.
    pub fn addresses(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.pod_ips.iter().map(|ip| ip.ip.as_str()).collect();
        if all.is_empty() && !self.pod_ip.is_empty() {
            all.push(&self.pod_ip);
        }
        all
    }
}

/// An address of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    #[serde(deserialize_with = "null_as_default")]
    pub ip: String,
}

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Name, labels.
    pub metadata: ObjectMeta,
}

resource!(Namespace: "", "v1", "Namespace", "namespaces", namespaced false);
