//! Kubelets without containers: nodes that are ready, pods that run as soon as they are bound and end at once.

use std::sync::atomic::{AtomicU32, Ordering};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;

/// Registers a node and makes it ready.
pub(crate) async fn register(client: &Client, name: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
    nodes
        .create(
            &PostParams::default(),
            &serde_json::from_value(node).unwrap(),
        )
        .await
        .unwrap();
    let status = json!({"status": {
        "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": now()}],
    }});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(&status))
        .await
        .unwrap();
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Runs the pods of all nodes.
pub(crate) async fn run(client: Client) {
    let pods: Api<Pod> = Api::all(client.clone());
    // Without a rest after an error it never lets go of its thread once the server is gone for good.
    let events = watcher(pods, watcher::Config::default()).default_backoff();
    futures::pin_mut!(events);
    while let Some(event) = events.next().await {
        let Ok(Event::Apply(pod) | Event::InitApply(pod)) = event else {
            continue;
        };
        tokio::spawn(sync(client.clone(), pod));
    }
}

async fn sync(client: Client, pod: Pod) {
    static ADDRESSES: AtomicU32 = AtomicU32::new(1);
    if pod
        .spec
        .as_ref()
        .is_none_or(|spec| spec.node_name.is_none())
    {
        return;
    }
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap());
    // The pod may have gone or changed meanwhile: then the next event tells.
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_some() {
        drop(
            pods.delete(&name, &DeleteParams::default().grace_period(0))
                .await,
        );
        return;
    }
    if pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        == Some("Running")
    {
        return;
    }
    let number = ADDRESSES.fetch_add(1, Ordering::Relaxed);
    let address = format!("10.244.{}.{}", number / 250, number % 250 + 1);
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now()});
    let status = json!({"status": {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [condition("Initialized"), condition("ContainersReady"), condition("Ready")],
    }});
    drop(
        pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&status))
            .await,
    );
}
