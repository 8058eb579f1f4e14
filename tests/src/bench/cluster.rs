//! `bench cluster`: the start of a cluster, of a pod, and the memory of each daemon.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client::{Client, Resource};
use serde_json::{Value, json};

use super::{Figure, ms};
use crate::cluster::Cluster;

/// Clusters started one after the other.
const STARTS: usize = 3;
/// Pods started one after the other.
const PODS: usize = 30;
/// A pod that takes longer has failed.
const POD_TIMEOUT: Duration = Duration::from_secs(30);

/// All figures of a cluster.
///
/// # Errors
/// A cluster or a pod does not start.
pub fn run() -> Result<Vec<Figure>> {
    let mut starts = Vec::new();
    let mut figures = Vec::new();
    for i in 0..STARTS {
        let cluster = Cluster::start("bench", 252, 26443)?;
        let line = cluster
            .said
            .lines()
            .find_map(|l| l.strip_prefix("all pods are Running after "));
        let seconds = line
            .and_then(|l| l.strip_suffix(" s"))
            .context("no start time was printed")?;
        starts.push(seconds.parse()?);
        if i + 1 == STARTS {
            figures.extend(memory(&cluster)?);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            figures.push(runtime.block_on(pods(&cluster))?);
        }
    }
    let note = "seaway up until the sample's pods are Running";
    figures.insert(0, Figure::of("cluster.start_s", "s", &starts, note));
    Ok(figures)
}

/// Resident memory of each daemon, the sample running.
fn memory(cluster: &Cluster) -> Result<Vec<Figure>> {
    let text = std::fs::read(cluster.dir().join("pids.json"))?;
    let pids: BTreeMap<String, i32> = serde_json::from_slice(&text)?;
    let mut by_daemon: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, pid) in pids {
        let daemon = name.rsplit('/').next().unwrap_or_default().to_owned();
        let bytes = u32::try_from(linux::process::resident_bytes(pid)? / 1000)?;
        by_daemon
            .entry(daemon)
            .or_default()
            .push(f64::from(bytes) / 1e3);
    }
    let figure = |(daemon, samples): (String, Vec<f64>)| {
        Figure::of(
            &format!("rss_mb.{daemon}"),
            "MB",
            &samples,
            "sample running",
        )
    };
    Ok(by_daemon.into_iter().map(figure).collect())
}

/// From the pod's creation to Running in the API, image already there.
async fn pods(cluster: &Cluster) -> Result<Figure> {
    let client = Client::connect(Some(&cluster.kubeconfig())).await?;
    let mut samples = Vec::new();
    for i in 0..PODS {
        let name = format!("bench-{i}");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "terminationGracePeriodSeconds": 0, "containers": [
                { "name": "a", "image": "seaway.local/sample:1", "command": ["/bin/rest"] }] },
        });
        let start = Instant::now();
        let _made: Value = client.create(Resource::PODS, Some("default"), &pod).await?;
        loop {
            let pod: Value = client.get(Resource::PODS, Some("default"), &name).await?;
            if pod["status"]["phase"] == "Running" {
                break;
            }
            if start.elapsed() > POD_TIMEOUT {
                bail!("pod {name} is {}", pod["status"]);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        samples.push(ms(start.elapsed()));
    }
    let note = "create to Running, one at a time, seen by asking every millisecond";
    Ok(Figure::of("cluster.pod_start_ms", "ms", &samples, note))
}
