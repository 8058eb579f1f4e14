//! What a kubelet may not do although its role lets it: touch other nodes and their pods.
//!
//! After kube-apiserver's Node authorizer and NodeRestriction admission.

use schema::kinds::kind_by_resource;
use serde_json::Value;

use super::{Attributes, User};
use crate::app::App;
use crate::http::error::Result;
use crate::rest::object;

/// Prefix of the user names of kubelets.
const NODE_USER: &str = "system:node:";

/// The node a user is the kubelet of.
pub fn node_of(user: &User) -> Option<&str> {
    user.in_group("system:nodes")
        .then(|| user.name.strip_prefix(NODE_USER))?
}

/// Why a kubelet may not do this; none when it may, or when the user is no kubelet.
pub async fn objection(app: &App, user: &User, asked: &Attributes<'_>) -> Result<Option<String>> {
    let Some(node) = node_of(user) else {
        return Ok(None);
    };
    let writes = !matches!(asked.verb, "get" | "list" | "watch");
    let no = |text: String| Ok(Some(text));
    match (asked.resource, asked.subresource) {
        ("nodes", _) if writes && asked.verb != "create" && asked.name != node => no(format!(
            "node {node:?} is not allowed to modify node {:?}",
            asked.name
        )),
        ("leases", _) if writes && asked.namespace == "kube-node-lease" => {
            if asked.name.is_empty() || asked.name == node {
                Ok(None)
            } else {
                no(format!(
                    "node {node:?} can only access the node lease with its own name"
                ))
            }
        }
        ("pods", _) if writes && !asked.name.is_empty() => {
            let Some(kind) = kind_by_resource("", "v1", "pods") else {
                return Ok(None);
            };
            let key = object::key(kind, asked.namespace, asked.name);
            let Some(kv) = app.store.get(&key).await?.0 else {
                return Ok(None);
            };
            let pod: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
            if object::text(&pod, "/spec/nodeName") == node {
                Ok(None)
            } else {
                no(format!(
                    "node {node:?} can only touch pods with spec.nodeName set to itself"
                ))
            }
        }
        _ => Ok(None),
    }
}
