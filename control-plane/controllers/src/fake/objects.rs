//! Objects for tests, and the kubelet's part in a [`Sim`].

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Sim, stamp};
use crate::engine::brain::Change;
use crate::kinds::Kind;
use crate::resources::ResourceInfo;

/// A node that is ready, with room for a few pods.
pub(crate) fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

pub(crate) fn template(app: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "main", "image": "sample:1"}]},
    })
}

pub(crate) fn pod(name: &str) -> Value {
    let mut pod = template("web");
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["namespace"] = json!("default");
    pod
}

pub(crate) fn replica_set(name: &str, replicas: i32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template("web"),
        },
    })
}

pub(crate) fn deployment(name: &str, replicas: i32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
            },
            "template": template("web"),
        },
    })
}

pub(crate) fn service(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": "10.96.0.20",
            "ipFamilies": ["IPv4"],
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
        },
    })
}

impl Sim {
    /// Tells the brain what discovery would.
    pub(crate) fn know_resources(&mut self) {
        let resources = Kind::ALL
            .iter()
            .map(|kind| ResourceInfo {
                api_version: kind.api_version().to_owned(),
                kind: kind.name().to_owned(),
                plural: kind.plural().to_owned(),
                namespaced: kind.namespaced(),
                verbs: ["list", "watch", "delete"].map(str::to_owned).to_vec(),
            })
            .collect();
        let now = self.now();
        self.brain
            .observe(Change::Resources(Arc::new(resources)), now);
    }

    /// What kubelets do: pods with a node run and become ready, deleted ones end.
    pub(crate) fn kubelets(&mut self) -> bool {
        let mut acted = false;
        let pods: Vec<Value> = self.list(Kind::Pod).into_iter().cloned().collect();
        for (index, mut pod) in pods.into_iter().enumerate() {
            if pod["spec"]["nodeName"].is_null() || !pod["status"]["phase"].is_null() {
                continue;
            }
            pod["status"] = json!({
                "phase": "Running",
                "podIP": format!("10.244.0.{}", index + 1),
                "podIPs": [{"ip": format!("10.244.0.{}", index + 1)}],
                "conditions": [{
                    "type": "Ready",
                    "status": "True",
                    "lastTransitionTime": stamp(self.seconds),
                }],
            });
            self.put(Kind::Pod, pod);
            acted = true;
        }
        acted
    }

    /// Works with kubelets until nothing is left to do.
    pub(crate) fn settle_with_kubelets(&mut self) {
        loop {
            self.settle();
            if !self.kubelets() {
                return;
            }
        }
    }
}
