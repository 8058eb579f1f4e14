//! The controllers against the real API server, with kubelets that only pretend.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails where something unexpected happens"
)]

mod kubelet;
mod network;

use std::time::{Duration, Instant};

use control_plane::http::inprocess;
use control_plane::server::{CONTROLLERS_USER, Options, Server};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

/// How long a condition may take; a loaded machine is slow.
const DEADLINE: Duration = Duration::from_secs(60);

struct Cluster {
    server: Option<Server>,
    client: Client,
    data: Option<tempfile::TempDir>,
}

fn options(data: &std::path::Path, store: &str) -> Options {
    Options {
        data_dir: data.to_owned(),
        bind: vec!["127.0.0.1:0".parse().unwrap()],
        advertise: vec!["127.0.0.1".parse().unwrap()],
        service_cidrs: vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:10:96::/112".parse().unwrap(),
        ],
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/56".parse().unwrap(),
        ],
        node_masks: (24, 64),
        node_ports: 30000..=32767,
        store: store.to_owned(),
        controllers: true,
    }
}

impl Cluster {
    async fn start(data: tempfile::TempDir, store: &str) -> Self {
        let server = Server::start(options(data.path(), store)).await.unwrap();
        let client = inprocess::client(&server.app, CONTROLLERS_USER);
        Self {
            server: Some(server),
            client,
            data: Some(data),
        }
    }

    async fn stop(self) -> Option<tempfile::TempDir> {
        if let Some(server) = self.server {
            server.stop().await;
        }
        self.data
    }

    async fn with_nodes(names: &[&str]) -> Self {
        let cluster = Self::start(tempfile::tempdir().unwrap(), "memory").await;
        for name in names {
            kubelet::register(&cluster.client, name).await;
        }
        tokio::spawn(kubelet::run(cluster.client.clone()));
        cluster
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create<K>(&self, object: Value)
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>()
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
    }

    async fn patch<K>(&self, name: &str, patch: Value)
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let patch = Patch::Merge(&patch);
        self.api::<K>()
            .patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    async fn pods(&self) -> Vec<Pod> {
        self.api::<Pod>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
    }

    /// Pods that count, with the node each is on.
    async fn places(&self) -> Vec<String> {
        let mut nodes: Vec<String> = self
            .pods()
            .await
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .filter_map(|pod| pod.spec.as_ref()?.node_name.clone())
            .collect();
        nodes.sort();
        nodes
    }

    async fn available(&self, name: &str) -> i32 {
        let deployment = self.api::<Deployment>().get(name).await.unwrap();
        let status = deployment.status.unwrap_or_default();
        if status.observed_generation != deployment.metadata.generation {
            return -1;
        }
        let (updated, available) = (
            status.updated_replicas.unwrap_or(0),
            status.available_replicas.unwrap_or(0),
        );
        if status.replicas.unwrap_or(0) == updated {
            updated.min(available)
        } else {
            -1
        }
    }

    async fn endpoints(&self, service: &str) -> usize {
        let slices = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let slices = self.api::<EndpointSlice>().list(&slices).await.unwrap();
        slices
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten())
            .filter(|endpoint| {
                endpoint
                    .conditions
                    .as_ref()
                    .is_some_and(|it| it.ready == Some(true))
            })
            .count()
    }
}

/// Waits for a condition, which is asked again and again until the deadline.
async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(
            start.elapsed() < DEADLINE,
            "not within {DEADLINE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn template(app: &str, image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "main", "image": image}]},
    })
}

fn workload(name: &str, replicas: i32) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "serviceName": name,
            "selector": {"matchLabels": {"app": name}},
            "template": template(name, "sample:1"),
        },
    })
}

#[tokio::test]
async fn a_deployment_serves_rolls_and_scales() {
    let cluster = Cluster::with_nodes(&["n1", "n2", "n3"]).await;
    cluster.create::<Deployment>(workload("web", 3)).await;
    let service = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    cluster.create::<Service>(service).await;
    wait_until("three pods available", async || {
        cluster.available("web").await == 3
    })
    .await;
    assert_eq!(cluster.places().await, ["n1", "n2", "n3"]);
    wait_until("three endpoints", async || {
        cluster.endpoints("web").await == 3
    })
    .await;

    cluster
        .patch::<Deployment>("web", json!({"spec": {"replicas": 6}}))
        .await;
    wait_until("six pods available", async || {
        cluster.available("web").await == 6
    })
    .await;
    assert_eq!(cluster.places().await, ["n1", "n1", "n2", "n2", "n3", "n3"]);

    cluster
        .patch::<Deployment>(
            "web",
            json!({"spec": {"template": template("web", "sample:2")}}),
        )
        .await;
    wait_until("the new template everywhere", async || {
        cluster.available("web").await == 6
    })
    .await;
    let sets = cluster
        .api::<ReplicaSet>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    assert_eq!(sets.len(), 2);

    let victim = cluster.pods().await[0].name_any();
    cluster
        .api::<Pod>()
        .delete(&victim, &DeleteParams::default())
        .await
        .unwrap();
    wait_until("the pod replaced", async || {
        !cluster
            .pods()
            .await
            .iter()
            .any(|pod| pod.name_any() == victim)
            && cluster.places().await.len() == 6
    })
    .await;
    wait_until("six endpoints", async || {
        cluster.endpoints("web").await == 6
    })
    .await;

    wait_until("events", async || {
        let events = cluster
            .api::<Event>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items;
        let has = |reason: &str| events.iter().any(|it| it.reason.as_deref() == Some(reason));
        has("ScalingReplicaSet") && has("SuccessfulCreate") && has("Scheduled")
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn other_workloads_and_the_end_of_a_namespace() {
    let cluster = Cluster::with_nodes(&["n1", "n2"]).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let team = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces
        .create(&PostParams::default(), &team)
        .await
        .unwrap();
    let sets: Api<StatefulSet> = Api::namespaced(cluster.client.clone(), "team");
    let set = serde_json::from_value(workload("db", 2)).unwrap();
    sets.create(&PostParams::default(), &set).await.unwrap();
    let daemons: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), "team");
    let mut daemon = workload("agent", 0);
    daemon["spec"]
        .as_object_mut()
        .unwrap()
        .retain(|key, _| key != "replicas" && key != "serviceName");
    daemons
        .create(
            &PostParams::default(),
            &serde_json::from_value(daemon).unwrap(),
        )
        .await
        .unwrap();
    wait_until("two members and two daemons ready", async || {
        let set = sets.get("db").await.unwrap().status.unwrap_or_default();
        let daemon = daemons
            .get("agent")
            .await
            .unwrap()
            .status
            .unwrap_or_default();
        set.ready_replicas == Some(2) && daemon.number_ready == 2
    })
    .await;
    namespaces
        .delete("team", &DeleteParams::default())
        .await
        .unwrap();
    wait_until("the namespace gone", async || {
        namespaces.get_opt("team").await.unwrap().is_none()
    })
    .await;
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    assert!(
        pods.list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    cluster.stop().await;
}

#[tokio::test]
async fn owners_of_kinds_without_a_typed_cache() {
    let cluster = Cluster::with_nodes(&[]).await;
    cluster
        .create::<Secret>(json!({"metadata": {"name": "owner"}}))
        .await;
    let uid = cluster
        .api::<Secret>()
        .get("owner")
        .await
        .unwrap()
        .metadata
        .uid
        .unwrap();
    let owned = |name: &str, uid: &str| {
        json!({"metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "v1", "kind": "Secret", "name": "owner", "uid": uid},
        ]}})
    };
    cluster.create::<Secret>(owned("kept", &uid)).await;
    cluster
        .create::<Secret>(owned("dangling", "another-uid"))
        .await;
    let gone = async |name: &str| {
        cluster
            .api::<Secret>()
            .get_opt(name)
            .await
            .unwrap()
            .is_none()
    };
    wait_until("the dependent of nobody gone", async || {
        gone("dangling").await
    })
    .await;
    assert!(!gone("kept").await);
    cluster
        .api::<Secret>()
        .delete("owner", &DeleteParams::foreground())
        .await
        .unwrap();
    wait_until("owner and dependent gone", async || {
        gone("owner").await && gone("kept").await
    })
    .await;
    cluster.stop().await;
}

#[test]
fn slices_of_the_pod_network_are_never_given_twice_also_after_a_restart() {
    let mut data = tempfile::tempdir().unwrap();
    let mut known: Vec<String> = Vec::new();
    for round in 0..3 {
        // A runtime of its own for each life: its end is the end of everything in it, as of a process.
        let life = tokio::runtime::Runtime::new().unwrap();
        (data, known) = life.block_on(give_slices(round, data, known));
    }
}

/// Adds four nodes; gives all slices when every node has its own.
async fn give_slices(
    round: usize,
    data: tempfile::TempDir,
    known: Vec<String>,
) -> (tempfile::TempDir, Vec<String>) {
    let cluster = Cluster::start(data, "embedded").await;
    for index in 0..4 {
        kubelet::register(&cluster.client, &format!("n{round}-{index}")).await;
    }
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let cidrs = async || -> Vec<String> {
        let nodes = nodes.list(&ListParams::default()).await.unwrap().items;
        let specs = nodes.into_iter().filter_map(|node| node.spec?.pod_cidrs);
        specs.flatten().collect()
    };
    wait_until("slices for all nodes", async || {
        cidrs().await.len() == (round + 1) * 8
    })
    .await;
    let mut all = cidrs().await;
    all.sort();
    all.dedup();
    assert_eq!(all.len(), (round + 1) * 8, "{all:?}");
    assert!(known.iter().all(|cidr| all.contains(cidr)), "slices stay");
    let data = cluster.stop().await;
    (data.unwrap(), all)
}
