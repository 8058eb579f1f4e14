//! What a kubelet may not do although its role lets it: touch other nodes and their pods.
//!
//! After kube-apiserver's Node authorizer and NodeRestriction admission.

use schema::kinds::kind_by_resource;
use serde_json::Value;

use super::{Attributes, User};
use crate::app::App;
use crate::http::error::Result;
use crate::rest::object;
use crate::store::Range;

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
        ("secrets" | "configmaps", _) => {
            if asked.name.is_empty() {
                return no(format!(
                    "node {node:?} may only read single objects its pods refer to"
                ));
            }
            if uses(app, node, asked).await? {
                Ok(None)
            } else {
                no(format!(
                    "no relationship found between node {node:?} and this object"
                ))
            }
        }
        _ => Ok(None),
    }
}

/// Whether a pod on the node refers to the Secret or ConfigMap asked for.
async fn uses(app: &App, node: &str, asked: &Attributes<'_>) -> Result<bool> {
    let Some(pods) = kind_by_resource("", "v1", "pods") else {
        return Ok(false);
    };
    if asked.resource == "configmaps" && asked.name == crate::admit::namespace::ROOT_CA {
        return Ok(true);
    }
    let prefix = object::prefix(pods, asked.namespace);
    let page = app
        .store
        .list(Range {
            prefix: &prefix,
            ..Range::default()
        })
        .await?;
    Ok(page.items.iter().any(|kv| {
        let pod: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
        object::text(&pod, "/spec/nodeName") == node
            && refers(&pod["spec"], asked.resource == "secrets", asked.name)
    }))
}

/// Whether a part of a pod's spec names a Secret (or else a ConfigMap) in one of the fields meant for it.
fn refers(part: &Value, secret: bool, name: &str) -> bool {
    let fields: &[&str] = if secret {
        &[
            "secret",
            "secretRef",
            "secretKeyRef",
            "nodePublishSecretRef",
            "imagePullSecrets",
        ]
    } else {
        &["configMap", "configMapRef", "configMapKeyRef"]
    };
    match part {
        Value::Object(map) => map.iter().any(|(key, value)| {
            fields.contains(&key.as_str()) && names(value, name) || refers(value, secret, name)
        }),
        Value::Array(list) => list.iter().any(|item| refers(item, secret, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn names(reference: &Value, name: &str) -> bool {
    match reference {
        Value::Array(list) => list.iter().any(|item| names(item, name)),
        other => other["name"] == name || other["secretName"] == name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_way_to_refer() {
        let spec = json!({
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{
                "name": "c",
                "env": [
                    {"name": "e", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}},
                    {"name": "f", "valueFrom": {"configMapKeyRef": {"name": "key-map", "key": "k"}}},
                ],
                "envFrom": [{"secretRef": {"name": "from"}}, {"configMapRef": {"name": "from-map"}}],
            }],
            "volumes": [
                {"name": "v", "secret": {"secretName": "volume"}},
                {"name": "w", "configMap": {"name": "volume-map"}},
                {"name": "x", "projected": {"sources": [
                    {"secret": {"name": "projected"}}, {"configMap": {"name": "projected-map"}},
                ]}},
            ],
        });
        for name in ["pull", "key", "from", "volume", "projected"] {
            assert!(
                refers(&spec, true, name) && !refers(&spec, false, name),
                "{name}"
            );
        }
        for name in ["key-map", "from-map", "volume-map", "projected-map"] {
            assert!(
                refers(&spec, false, name) && !refers(&spec, true, name),
                "{name}"
            );
        }
        for name in ["c", "e", "v", "w"] {
            assert!(
                !refers(&spec, true, name) && !refers(&spec, false, name),
                "{name}"
            );
        }
    }
}
