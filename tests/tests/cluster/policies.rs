//! Network policies through kubectl: what pods reach under them.

use anyhow::{Context, Result, ensure};
use seaway_tests::cluster::Cluster;
use seaway_tests::wait_until;

use crate::pods::POD_TIMEOUT;

/// Nobody may talk to the replicas of the sample but pods with the label `to: web`.
const ONLY_LABELLED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: only-labelled }
spec:
  podSelector: { matchLabels: { app: web } }
  policyTypes: [Ingress]
  ingress:
    - from: [{ podSelector: { matchLabels: { to: web } } }]
      ports: [{ port: 8080 }]
";

/// The client may talk to nobody.
const NO_EGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: no-egress }
spec:
  podSelector: { matchLabels: { app: client } }
  policyTypes: [Egress]
";

/// Each way to the replicas: the service's address by its name, and each pod's own.
fn ways(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = cluster.get(&["pods", "-l", "app=web"])?;
    let pods = pods["items"].as_array().context("items")?;
    let mut ways: Vec<_> = pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .filter_map(|pod| pod["status"]["podIP"].as_str())
        .map(|ip| format!("{ip}:8080"))
        .collect();
    ensure!(ways.len() == 3, "the replicas are at {ways:?}");
    ways.push("web".into());
    Ok(ways)
}

/// Waits until the client reaches the replicas on every way, or on none.
fn expect(cluster: &Cluster, why: &str, reached: bool) -> Result<()> {
    let ways = ways(cluster)?;
    let script = format!(
        "for way in {}; do timeout 1 wget -qO- http://$way/cgi-bin/whoami >/dev/null && echo $way & done; wait",
        ways.join(" ")
    );
    wait_until(why, POD_TIMEOUT, || {
        let answer = cluster.kubectl(&["exec", "client", "--", "sh", "-c", &script])?;
        let open = answer.lines().count();
        ensure!(
            open == if reached { ways.len() } else { 0 },
            "reached: {answer}"
        );
        Ok(())
    })
}

pub(crate) fn network_policies(cluster: &Cluster) -> Result<()> {
    expect(cluster, "the client to reach the sample", true)?;
    cluster.apply(ONLY_LABELLED)?;
    expect(cluster, "the policy to shut the client out", false)?;
    cluster.kubectl(&["label", "pod", "client", "to=web"])?;
    expect(cluster, "the label to let the client in", true)?;
    cluster.apply(NO_EGRESS)?;
    expect(cluster, "the policy to keep the client in", false)?;
    let shown = cluster.kubectl(&["describe", "networkpolicy", "only-labelled"])?;
    ensure!(shown.contains("PodSelector: to=web"), "{shown}");
    // Probes and the service's other users on the nodes go on: the pods stay ready.
    let ready = cluster.kubectl(&["get", "pods", "-l", "app=web", "--no-headers"])?;
    ensure!(ready.matches("1/1").count() == 3, "{ready}");
    cluster.kubectl(&["delete", "networkpolicy", "only-labelled", "no-egress"])?;
    cluster.kubectl(&["label", "pod", "client", "to-"])?;
    expect(cluster, "the client to reach the sample again", true)
}
