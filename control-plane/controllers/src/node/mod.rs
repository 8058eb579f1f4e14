//! Nodes: a slice of the pod network for each, readiness by heartbeat, taints, and the pods of dead nodes.

pub(crate) mod eviction;
pub(crate) mod ipam;
pub(crate) mod lifecycle;

use k8s_openapi::api::core::v1::{Node, Taint};

/// Whether a node's Ready condition is `True`, `False`, `Unknown`; `None` while it has never been set.
pub(crate) fn readiness(node: &Node) -> Option<&str> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .map(|condition| condition.status.as_str())
}

pub(crate) fn taints(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
}
