//! `seaway prove`: uses the running sample as a person would and says what was seen, a line for
//! each fact. The first thing that does not hold ends it with an error.

mod faults;
mod pods;
mod services;
pub(crate) mod traffic;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use linux::patience::scaled;

use crate::api;
use crate::layout::{Layout, NodeLayout};

/// The namespace of the sample.
pub(crate) const NAMESPACE: &str = "default";
/// Where the sample's pods listen.
pub(crate) const POD_PORT: u16 = 8080;
/// The sample's NodePort.
pub(crate) const NODE_PORT: u16 = 30080;
/// How long pods may take to come (back).
const PODS_TIMEOUT: Duration = Duration::from_secs(60);
/// The page that says who served and who asked.
pub(crate) const WHOAMI: &str = "/cgi-bin/whoami";

/// What every proof needs.
pub(crate) struct Prover {
    pub(crate) client: Client,
    pub(crate) layout: Layout,
}

/// A pod of the sample as the API shows it.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: String,
    pub(crate) ip: String,
    pub(crate) ips: Vec<String>,
    pub(crate) container_id: String,
    pub(crate) restarts: i32,
}

/// Runs all proofs.
pub(crate) async fn run(layout: &Layout, kubeconfig: &Path) -> Result<()> {
    let client = api::connect(kubeconfig).await?;
    let prover = Prover {
        client,
        layout: layout.clone(),
    };
    prover.pods().await?;
    prover.pod_to_pod().await?;
    prover.cluster_ip().await?;
    prover.node_port().await?;
    prover.dns().await?;
    prover.scale().await?;
    prover.deleted_pod().await?;
    prover.killed_container().await?;
    prover.killed_daemon("kubelet").await?;
    prover.killed_daemon("proxy").await?;
    Ok(())
}

/// Prints one proven fact.
fn fact(text: &str) {
    crate::say(&format!("  ok  {text}"));
}

impl Prover {
    fn pod_api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Pods with this label that are ready and not on their way out.
    async fn ready_pods(&self, label: &str) -> Result<Vec<Replica>> {
        let list = self
            .pod_api()
            .list(&ListParams::default().labels(label))
            .await?;
        Ok(list.items.iter().filter_map(replica).collect())
    }

    /// Waits for exactly `count` ready pods with this label.
    pub(crate) async fn wait_pods(&self, label: &str, count: usize) -> Result<Vec<Replica>> {
        self.wait_pods_until(label, &format!("{count} ready pods"), |pods| {
            pods.len() == count
        })
        .await
    }

    /// Waits for exactly `count` pods with this label, all ready: those on their way out are gone.
    pub(crate) async fn wait_only_pods(&self, label: &str, count: usize) -> Result<Vec<Replica>> {
        let deadline = Instant::now() + scaled(PODS_TIMEOUT);
        loop {
            let params = ListParams::default().labels(label);
            let all = self.pod_api().list(&params).await?.items;
            let ready: Vec<Replica> = all.iter().filter_map(replica).collect();
            if all.len() == count && ready.len() == count {
                return Ok(ready);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} pods with label {label} are there, not {count}",
                    all.len()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn wait_pods_until(
        &self,
        label: &str,
        what: &str,
        done: impl Fn(&[Replica]) -> bool,
    ) -> Result<Vec<Replica>> {
        let deadline = Instant::now() + scaled(PODS_TIMEOUT);
        loop {
            let pods = self.ready_pods(label).await?;
            if done(&pods) {
                return Ok(pods);
            }
            if Instant::now() > deadline {
                let seen: Vec<_> = pods
                    .iter()
                    .map(|p| format!("{} on {}", p.name, p.node))
                    .collect();
                bail!(
                    "waited {} s for {what} with label {label}; ready are: [{}]; see `kubectl describe pods`",
                    scaled(PODS_TIMEOUT).as_secs(),
                    seen.join(", ")
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The pod from which things are tried.
    async fn client_pod(&self) -> Result<Replica> {
        let pods = self.wait_pods("app=client", 1).await?;
        pods.into_iter().next().context("no client pod")
    }

    async fn cluster_ip_of(&self, service: &str) -> Result<String> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
        let service = api.get(service).await?;
        service
            .spec
            .and_then(|s| s.cluster_ip)
            .context("the Service has no clusterIP")
    }

    async fn sh(&self, pod: &str, script: &str) -> Result<String> {
        api::exec(&self.client, NAMESPACE, pod, &["sh", "-c", script]).await
    }

    /// The control group of a pod's container.
    fn container_cgroup(&self, pod: &Replica) -> Result<String> {
        let id = pod.container_id.rsplit('/').next().unwrap_or_default();
        let own = id.strip_prefix(&format!("{}-", pod.uid.replace('-', "")));
        let own = own.with_context(|| format!("container id {id} is not one of ours"))?;
        Ok(format!(
            "{}/kubepods/pod{}/{own}",
            self.node(&pod.node)?.cgroup,
            pod.uid
        ))
    }

    fn node(&self, name: &str) -> Result<NodeLayout> {
        let node = self.layout.nodes().into_iter().find(|n| n.name == name);
        node.with_context(|| format!("no node {name} in this cluster"))
    }
}

/// A pod, when it is ready.
fn replica(pod: &Pod) -> Option<Replica> {
    let status = pod.status.as_ref()?;
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    if !ready || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let container = status.container_statuses.iter().flatten().next()?;
    Some(Replica {
        name: pod.name_any(),
        uid: pod.uid()?,
        node: pod.spec.as_ref()?.node_name.clone()?,
        ip: status.pod_ip.clone()?,
        ips: status
            .pod_ips
            .iter()
            .flatten()
            .map(|ip| ip.ip.clone())
            .collect(),
        container_id: container.container_id.clone()?,
        restarts: container.restart_count,
    })
}
