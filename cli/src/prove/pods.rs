//! Proofs about pods: real containers, spread over the nodes, reaching each other.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use linux::cgroup::Hierarchies;

use super::{POD_PORT, Prover, Replica, WHOAMI, fact, traffic};

/// The memory limit that the sample asks for, in bytes.
const MEMORY_LIMIT: u64 = 64 << 20;
/// Namespaces that a container must not share with the machine.
const NAMESPACES: [&str; 5] = ["ipc", "mnt", "net", "pid", "uts"];

impl Prover {
    /// Three replicas run, on different nodes, each a real container.
    pub(super) async fn pods(&self) -> Result<()> {
        let pods = self.wait_pods("app=web", 3).await?;
        let nodes: BTreeSet<_> = pods.iter().map(|p| p.node.as_str()).collect();
        let expect = usize::from(self.layout.args.nodes).min(3);
        ensure!(
            nodes.len() == expect,
            "the replicas sit on {nodes:?}, not on {expect} nodes"
        );
        let mut namespaces = BTreeSet::new();
        for pod in &pods {
            namespaces.extend(self.own_namespaces(pod).await?);
            self.memory_limit(pod)?;
        }
        ensure!(
            namespaces.len() == pods.len() * NAMESPACES.len(),
            "some pods share a namespace: {namespaces:?}"
        );
        let list: Vec<_> = pods
            .iter()
            .map(|p| format!("{} ({}) on {}", p.name, p.ips.join(" "), p.node))
            .collect();
        fact(&format!("3 replicas are Running: {}", list.join(", ")));
        fact(&format!(
            "each has {} namespaces of its own and a memory limit of {} MiB in its control group",
            NAMESPACES.join(", "),
            MEMORY_LIMIT >> 20
        ));
        Ok(())
    }

    /// The container's namespaces, none of which is the machine's.
    async fn own_namespaces(&self, pod: &Replica) -> Result<Vec<String>> {
        let script = "for n in ipc mnt net pid uts; do readlink /proc/self/ns/$n; done";
        let inside: Vec<String> = self
            .sh(&pod.name, script)
            .await?
            .lines()
            .map(str::to_owned)
            .collect();
        for name in NAMESPACES {
            let ours = fs::read_link(format!("/proc/self/ns/{name}"))?;
            let ours = ours.to_string_lossy().into_owned();
            ensure!(
                !inside.contains(&ours),
                "pod {} is in the machine's {ours}",
                pod.name
            );
        }
        Ok(inside)
    }

    /// The limit as the kernel has it.
    fn memory_limit(&self, pod: &Replica) -> Result<()> {
        let group = self.container_cgroup(pod)?;
        let dirs = Hierarchies::detect()?.dirs(&group);
        let limit = dirs.iter().find_map(|dir| {
            ["memory.limit_in_bytes", "memory.max"]
                .iter()
                .find_map(|file| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok())
        });
        match limit {
            Some(MEMORY_LIMIT) => Ok(()),
            other => bail!("control group {group} has memory limit {other:?}"),
        }
    }

    /// Same node over the bridge, other node over the overlay, the source address kept.
    pub(super) async fn pod_to_pod(&self) -> Result<()> {
        let client = self.client_pod().await?;
        let pods = self.wait_pods("app=web", 3).await?;
        let near = pods.iter().find(|p| p.node == client.node);
        let far = pods.iter().find(|p| p.node != client.node);
        let near = near.context("no replica on the client's node")?;
        self.direct(&client, near, "on one node, over cni0").await?;
        if let Some(far) = far {
            self.direct(&client, far, "across nodes, over VXLAN")
                .await?;
        }
        Ok(())
    }

    async fn direct(&self, client: &Replica, server: &Replica, how: &str) -> Result<()> {
        let mut seen = Vec::new();
        for (to, from) in server.ips.iter().zip(&client.ips) {
            let host = if to.contains(':') {
                format!("[{to}]")
            } else {
                to.clone()
            };
            let url = format!("http://{host}:{POD_PORT}{WHOAMI}");
            let text = self.sh(&client.name, &traffic::wget(&url)).await?;
            let answer = traffic::parse(&text)?;
            ensure!(
                answer.server == server.name,
                "{to} is {}, not {}",
                answer.server,
                server.name
            );
            ensure!(
                answer.client.to_string() == *from,
                "{to} saw {} instead of the client's {from}",
                answer.client
            );
            seen.push(format!("{to} saw {from}"));
        }
        fact(&format!("pod to pod {how}: {}", seen.join(", ")));
        Ok(())
    }
}
