//! Change and failure, seen through kubectl.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use linux::process;
use nix::sys::signal::Signal;
use seaway_tests::cluster::Cluster;
use seaway_tests::wait_until;

use crate::pods::{POD_TIMEOUT, a_web_pod};

/// Container ids of the ready replicas by pod name.
fn containers(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let list = cluster.get(&["pods", "-l", "app=web"])?;
    let mut found = BTreeMap::new();
    for pod in list["items"].as_array().context("items")? {
        let status = &pod["status"]["containerStatuses"][0];
        if pod["metadata"]["deletionTimestamp"].is_null() && status["ready"] == true {
            let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
            found.insert(text(&pod["metadata"]["name"]), text(&status["containerID"]));
        }
    }
    Ok(found)
}

fn wait_containers(cluster: &Cluster, count: usize) -> Result<BTreeMap<String, String>> {
    wait_until(&format!("{count} ready replicas"), POD_TIMEOUT, || {
        let found = containers(cluster)?;
        if found.len() == count {
            Ok(found)
        } else {
            bail!("there are {found:?}")
        }
    })
}

fn served(cluster: &Cluster) -> Result<()> {
    let script =
        "for i in $(seq 10); do timeout 5 wget -qO- http://web/cgi-bin/whoami || exit 1; done";
    // The name is served by the node's proxy, which may have just been started, and the replica that was
    // asked may be on its way out.
    wait_until("the service to answer ten times", POD_TIMEOUT, || {
        cluster
            .kubectl(&["exec", "client", "--", "sh", "-c", script])
            .map(|_| ())
    })
}

pub(crate) fn scale_and_rollout(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["scale", "deployment/web", "--replicas=5"])?;
    wait_containers(cluster, 5)?;
    cluster.kubectl(&["scale", "deployment/web", "--replicas=3"])?;
    wait_containers(cluster, 3)?;
    cluster.kubectl(&["set", "env", "deployment/web", "ROUND=two"])?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    served(cluster)?;
    let pod = a_web_pod(cluster)?;
    let env = cluster.kubectl(&["exec", &pod, "--", "sh", "-c", "echo $ROUND"])?;
    ensure!(env.trim() == "two", "the new pods have ROUND={env:?}");
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"])?;
    ensure!(history.lines().any(|l| l.starts_with('2')), "{history}");
    cluster.kubectl(&["rollout", "undo", "deployment/web"])?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    wait_containers(cluster, 3)?;
    served(cluster)
}

pub(crate) fn delete_pod(cluster: &Cluster) -> Result<()> {
    let before = wait_containers(cluster, 3)?;
    let victim = before.keys().next().context("no pod")?;
    cluster.kubectl(&["delete", "pod", victim])?;
    let after = wait_containers(cluster, 3)?;
    ensure!(!after.contains_key(victim), "{victim} is still there");
    let kept = before
        .keys()
        .filter(|name| after.contains_key(*name))
        .count();
    ensure!(kept == 2, "{kept} of the two others stayed");
    served(cluster)
}

pub(crate) fn killed_container(cluster: &Cluster) -> Result<()> {
    let before = wait_containers(cluster, 3)?;
    let victim = before.keys().next().context("no pod")?;
    let pod = cluster.get(&["pod", victim])?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let (uid, node) = (
        text(&pod["metadata"]["uid"]),
        text(&pod["spec"]["nodeName"]),
    );
    let id = before[victim].rsplit('/').next().unwrap_or_default();
    let own = id
        .strip_prefix(&format!("{}-", uid.replace('-', "")))
        .context("the container's id")?;
    let group = format!("{}/{node}/kubepods/pod{uid}/{own}", cluster.cgroup());
    let groups = linux::cgroup::Hierarchies::detect()?;
    ensure!(
        !groups.pids(&group).is_empty(),
        "no process in control group {group}"
    );
    // PID 1 of a container can only be killed from outside.
    for pid in groups.pids(&group) {
        process::signal(pid, Signal::SIGKILL)?;
    }
    wait_until("the container to come back", POD_TIMEOUT, || {
        let now = containers(cluster)?;
        match now.get(victim) {
            Some(id) if *id != before[victim] => Ok(()),
            other => bail!("it is {other:?}"),
        }
    })?;
    let previous = cluster.kubectl_output(&["logs", "--previous", victim], "")?;
    ensure!(
        previous.status.success(),
        "{}",
        String::from_utf8_lossy(&previous.stderr)
    );
    let status = cluster.get(&["pod", victim])?["status"]["containerStatuses"][0].clone();
    ensure!(
        status["restartCount"].as_u64() >= Some(1),
        "restartCount is {}",
        status["restartCount"]
    );
    ensure!(
        status["lastState"]["terminated"]["exitCode"] == 137,
        "lastState is {}",
        status["lastState"]
    );
    served(cluster)
}

/// Kills a daemon and waits until another process has its place.
fn kill_daemon(cluster: &Cluster, name: &str) -> Result<()> {
    let pid = cluster.pid(name)?;
    process::signal(pid, Signal::SIGKILL)?;
    wait_until(&format!("{name} to come back"), POD_TIMEOUT, || {
        let now = cluster.pid(name)?;
        if now != pid && process::is_alive(now) {
            Ok(())
        } else {
            bail!("not yet")
        }
    })
}

pub(crate) fn killed_kubelet(cluster: &Cluster) -> Result<()> {
    let before = wait_containers(cluster, 3)?;
    for node in ["node-1", "node-2", "node-3"] {
        kill_daemon(cluster, &format!("{node}/kubelet"))?;
    }
    served(cluster)?;
    // Its work goes on: pods come and go.
    cluster.kubectl(&["scale", "deployment/web", "--replicas=6"])?;
    let more = wait_containers(cluster, 6)?;
    ensure!(
        before.iter().all(|(name, id)| more.get(name) == Some(id)),
        "containers were started anew"
    );
    cluster.kubectl(&["scale", "deployment/web", "--replicas=3"])?;
    wait_containers(cluster, 3)?;
    Ok(())
}

pub(crate) fn killed_proxy(cluster: &Cluster) -> Result<()> {
    for node in ["node-1", "node-2", "node-3"] {
        kill_daemon(cluster, &format!("{node}/proxy"))?;
    }
    served(cluster)?;
    delete_pod(cluster)
}

pub(crate) fn killed_overlay(cluster: &Cluster) -> Result<()> {
    for node in ["node-1", "node-2", "node-3"] {
        kill_daemon(cluster, &format!("{node}/overlay"))?;
    }
    served(cluster)
}

pub(crate) fn killed_control_plane(cluster: &Cluster) -> Result<()> {
    let mut acknowledged = Vec::new();
    let pid = cluster.pid("control-plane")?;
    for i in 0..20 {
        let name = format!("kept-{i}");
        if i == 10 {
            process::signal(pid, Signal::SIGKILL)?;
        }
        let output = cluster.kubectl_output(&["create", "configmap", &name], "")?;
        if output.status.success() {
            acknowledged.push(name);
        }
    }
    served_from_host(cluster)?;
    wait_until("the API server to come back", POD_TIMEOUT, || {
        cluster.kubectl(&["get", "--raw", "/readyz"])
    })?;
    let there = cluster.kubectl(&["get", "configmaps", "-o", "name"])?;
    for name in &acknowledged {
        ensure!(
            there.contains(&format!("configmap/{name}\n")),
            "{name} was acknowledged and is lost"
        );
    }
    ensure!(
        acknowledged.len() >= 10,
        "only {} creates were acknowledged",
        acknowledged.len()
    );
    let args: Vec<_> = ["delete", "configmap"]
        .into_iter()
        .chain(acknowledged.iter().map(String::as_str))
        .collect();
    cluster.kubectl(&args)?;
    delete_pod(cluster)
}

/// Without the API: a NodePort of the first node.
fn served_from_host(cluster: &Cluster) -> Result<()> {
    use std::io::{Read, Write};
    let args: serde_json::Value =
        serde_json::from_slice(&fs::read(cluster.dir().join("cluster.json"))?)?;
    let underlay = args["underlay"].as_str().context("underlay")?;
    let node = underlay.replace(".0", ".11");
    let mut stream = std::net::TcpStream::connect((node.as_str(), 30080)).context("NodePort")?;
    stream.write_all(b"GET /cgi-bin/whoami HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text.contains(" 200 OK"), "{text:?}");
    Ok(())
}
