//! What every namespace has: the ServiceAccount `default` and the cluster's CA certificates.

use std::collections::BTreeSet;

use serde_json::json;

use crate::kinds::{Kind, ROOT_CA_CONFIG_MAP, Touch};
use crate::meta;
use crate::view::{Key, Now, View};
use crate::write::{PatchKind, Plan, Target, Write};

const DEFAULT: &str = "default";
const CA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

/// The keys are namespaces.
pub(crate) fn route(_: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    match touch {
        Touch::Namespace {
            new: Some(namespace),
            ..
        } => {
            wake.insert(Key::of(&namespace.metadata));
        }
        Touch::ServiceAccount {
            old: Some(account),
            new: None,
        } if meta::name(&account.metadata) == DEFAULT => {
            wake.insert(Key::new("", meta::namespace(&account.metadata)));
        }
        Touch::ConfigMap { old: Some(map), .. } => {
            wake.insert(Key::new("", meta::namespace(&map.metadata)));
        }
        _ => {}
    }
}

pub(crate) fn reconcile(view: &View, key: &Key, _: Now) -> Plan {
    let Some(namespace) = view.namespaces.get(key) else {
        return Plan::nothing();
    };
    if meta::is_deleting(&namespace.metadata) {
        return Plan::nothing();
    }
    let mut plan = Plan::nothing();
    if view.service_accounts.named(&key.name, DEFAULT).is_none() {
        plan.push(Write::Create {
            kind: Kind::ServiceAccount,
            namespace: key.name.clone(),
            object: Box::new(json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": DEFAULT, "namespace": key.name},
            })),
            announce: None,
        });
    }
    let pem = &view.config.root_ca_pem;
    if pem.is_empty() {
        return plan;
    }
    match view.config_maps.named(&key.name, ROOT_CA_CONFIG_MAP) {
        None => plan.push(Write::Create {
            kind: Kind::ConfigMap,
            namespace: key.name.clone(),
            object: Box::new(json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": ROOT_CA_CONFIG_MAP,
                    "namespace": key.name,
                    "annotations": {"kubernetes.io/description": DESCRIPTION},
                },
                "data": {CA_KEY: pem},
            })),
            announce: None,
        }),
        Some(map) if map.data.as_ref().and_then(|data| data.get(CA_KEY)) != Some(pem) => {
            plan.push(Write::Patch {
                target: Target::of(Kind::ConfigMap, &map.metadata),
                subresource: None,
                how: PatchKind::Merge,
                body: json!({"data": {CA_KEY: pem}}),
            });
        }
        Some(_) => {}
    }
    plan
}

#[cfg(test)]
mod tests;
