//! Proofs about change and failure, each with traffic running: the service keeps working and the
//! right pods come back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use linux::cgroup::Hierarchies;
use linux::patience::scaled;
use linux::process;
use nix::sys::signal::Signal;
use serde_json::json;

use super::traffic::Probe;
use super::{NAMESPACE, Prover, Replica, fact};
use crate::supervise::read_pids;

/// How long a daemon may take to come back.
const BACK_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests that must have been answered while something was broken.
const ANSWERS_MIN: usize = 20;

impl Prover {
    async fn probe(&self) -> Result<Probe> {
        let ip = self.cluster_ip_of("web").await?;
        let address = SocketAddr::new(ip.parse()?, 80);
        Probe::start(&self.node("node-1")?, address)
    }

    async fn set_replicas(&self, count: usize) -> Result<Vec<Replica>> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), NAMESPACE);
        let patch = json!({ "spec": { "replicas": count } });
        api.patch("web", &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        self.wait_pods("app=web", count).await
    }

    /// Up to five and back to three.
    pub(super) async fn scale(&self) -> Result<()> {
        let before = self.wait_pods("app=web", 3).await?;
        let probe = self.probe().await?;
        self.set_replicas(5).await?;
        let after = self.set_replicas(3).await?;
        let kept = after
            .iter()
            .filter(|p| before.iter().any(|b| b.uid == p.uid))
            .count();
        let (answered, failures) = probe.finish()?;
        ensure_unbroken(&failures)?;
        fact(&format!(
            "scale 3 to 5 to 3: {answered} requests meanwhile, none failed; {kept} of the first three stayed"
        ));
        Ok(())
    }

    /// A deleted pod is replaced.
    pub(super) async fn deleted_pod(&self) -> Result<()> {
        let victim = self.one("app=web").await?;
        let probe = self.probe().await?;
        self.pod_api()
            .delete(&victim.name, &DeleteParams::default())
            .await?;
        let is_replaced =
            |pods: &[Replica]| pods.len() == 3 && pods.iter().all(|p| p.uid != victim.uid);
        let pods = self
            .wait_pods_until("app=web", "a replacement", is_replaced)
            .await?;
        let (answered, failures) = probe.finish()?;
        ensure_unbroken(&failures)?;
        let new = pods.last().map(|p| p.name.clone()).unwrap_or_default();
        fact(&format!(
            "deleted pod {}: replaced ({new} among them), {answered} requests meanwhile, none failed",
            victim.name
        ));
        Ok(())
    }

    async fn one(&self, label: &str) -> Result<Replica> {
        self.wait_pods(label, 3)
            .await?
            .into_iter()
            .next()
            .context("no pod")
    }

    /// A killed container is started again in the same pod.
    pub(super) async fn killed_container(&self) -> Result<()> {
        let victim = self.one("app=web").await?;
        let group = self.container_cgroup(&victim)?;
        let groups = Hierarchies::detect()?;
        ensure!(
            !groups.pids(&group).is_empty(),
            "no process in control group {group}"
        );
        for pid in groups.pids(&group) {
            process::signal(pid, Signal::SIGKILL)?;
        }
        let is_back = |pods: &[Replica]| {
            let same = pods.iter().find(|p| p.uid == victim.uid);
            same.is_some_and(|p| {
                p.restarts > victim.restarts && p.container_id != victim.container_id
            })
        };
        let pods = self
            .wait_pods_until("app=web", "the killed container", is_back)
            .await?;
        let back = pods
            .iter()
            .find(|p| p.uid == victim.uid)
            .context("the pod is gone")?;
        ensure!(
            back.ip == victim.ip,
            "its address changed from {} to {}",
            victim.ip,
            back.ip
        );
        fact(&format!(
            "killed container of {}: runs again in the same pod, address {}, restarts {}",
            victim.name, back.ip, back.restarts
        ));
        Ok(())
    }

    /// A daemon of the first node, killed with SIGKILL: traffic goes on, containers stay, and the
    /// daemon does its work again afterwards.
    pub(super) async fn killed_daemon(&self, daemon: &str) -> Result<()> {
        let name = format!("node-1/{daemon}");
        // A pod that ends while a proxy is away is still served by it: no mode can know.
        let before = self.wait_only_pods("app=web", 3).await?;
        let probe = self.probe().await?;
        let pid = self.pid_of(&name)?;
        process::signal(pid, Signal::SIGKILL)?;
        let deadline = Instant::now() + scaled(BACK_TIMEOUT);
        while self.pid_of(&name)? == pid || probe.answered()? < ANSWERS_MIN {
            if Instant::now() > deadline {
                bail!(
                    "{name} did not come back in {} s",
                    scaled(BACK_TIMEOUT).as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let after = self.wait_pods("app=web", 3).await?;
        let ids = |pods: &[Replica]| {
            let mut ids: Vec<_> = pods.iter().map(|p| p.container_id.clone()).collect();
            ids.sort();
            ids
        };
        ensure!(
            ids(&before) == ids(&after),
            "containers changed when {name} was killed"
        );
        // Its work goes on: a pod more and a pod less reach this node's rules and containers.
        self.set_replicas(4).await?;
        self.set_replicas(3).await?;
        let (answered, failures) = probe.finish()?;
        ensure_unbroken(&failures)?;
        fact(&format!(
            "killed {name}: back, the same containers, {answered} requests meanwhile, none failed"
        ));
        Ok(())
    }

    fn pid_of(&self, name: &str) -> Result<i32> {
        let pids = read_pids(&self.layout)?;
        let pid = pids
            .get(name)
            .with_context(|| format!("no pid of {name} is known"))?;
        Ok(i32::try_from(*pid)?)
    }
}

fn ensure_unbroken(failures: &[String]) -> Result<()> {
    match failures.first() {
        None => Ok(()),
        Some(first) => bail!(
            "{} requests failed meanwhile, the first: {first}",
            failures.len()
        ),
    }
}
