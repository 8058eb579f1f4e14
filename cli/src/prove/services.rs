//! Proofs about Services: ClusterIP, NodePort, headless, ExternalName, names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use linux::NetNs;
use linux::conntrack::{Conntrack, Flow};

use super::{NODE_PORT, POD_PORT, Prover, Replica, WHOAMI, fact, traffic};

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// Requests for the question whether all replicas get some: missing one of three by chance has a
/// probability of 3 x (2/3)^60, about one in ten billion.
const REQUESTS: usize = 60;

fn spread(servers: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for server in servers {
        *counts.entry(server).or_default() += 1;
    }
    counts
}

fn shares(counts: &BTreeMap<String, usize>) -> String {
    counts
        .values()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(" / ")
}

impl Prover {
    /// From a pod and from a node, spread over all replicas.
    pub(super) async fn cluster_ip(&self) -> Result<()> {
        let client = self.client_pod().await?;
        let ip = self.cluster_ip_of("web").await?;
        let wget = traffic::wget(&format!("http://{ip}{WHOAMI}"));
        let script = format!("for i in $(seq {REQUESTS}); do {wget} || exit 1; done");
        let text = self.sh(&client.name, &script).await?;
        let answers = text
            .lines()
            .map(traffic::parse)
            .collect::<Result<Vec<_>>>()?;
        let counts = spread(answers.into_iter().map(|a| a.server));
        ensure!(
            counts.len() == 3,
            "a pod reached only {counts:?} through {ip}"
        );
        fact(&format!(
            "ClusterIP {ip} from a pod: {REQUESTS} connections, {}",
            shares(&counts)
        ));
        if self.layout.args.proxy_mode == "ebpf" {
            self.untranslated(&client)?;
        }
        let node = self.node("node-1")?;
        let address = SocketAddr::new(ip.parse()?, 80);
        let answers = traffic::get_from(&node, address, REQUESTS)?;
        let counts = spread(answers.into_iter().map(|a| a.server));
        ensure!(
            counts.len() == 3,
            "node-1 reached only {counts:?} through {ip}"
        );
        fact(&format!(
            "ClusterIP {ip} from a node: {REQUESTS} connections, {}",
            shares(&counts)
        ));
        Ok(())
    }

    /// No rule has translated an address of the pod's connections: each is tracked on its node from
    /// the pod to the endpoint, and back from there.
    fn untranslated(&self, pod: &Replica) -> Result<()> {
        let client: IpAddr = pod.ip.parse()?;
        let netns = NetNs::open(&self.node(&pod.node)?.netns)?;
        let flows = netns.run(|| Conntrack::open()?.list(client.is_ipv6(), TCP))??;
        let flows: Vec<Flow> = flows
            .into_iter()
            .filter(|flow| flow.original.source.ip() == client)
            .filter(|flow| flow.original.destination.port() == POD_PORT || flow.is_translated())
            .collect();
        ensure!(
            flows.len() >= REQUESTS,
            "the connections of {client} are not tracked on its node: {} of {REQUESTS}",
            flows.len()
        );
        if let Some(flow) = flows.iter().find(|flow| flow.is_translated()) {
            bail!("a rule has translated a connection of {client}: {flow:?}");
        }
        fact(&format!(
            "mode ebpf: {} connections of {client} are tracked on {}, none of them translated by a rule",
            flows.len(),
            pod.node
        ));
        Ok(())
    }

    /// From the machine, which is outside the nodes, to every node in both families.
    pub(super) async fn node_port(&self) -> Result<()> {
        for node in self.layout.nodes() {
            for address in [IpAddr::from(node.v4), node.v6.into()] {
                let address = SocketAddr::new(address, NODE_PORT);
                let get = tokio::task::spawn_blocking(move || traffic::get(address));
                get.await?
                    .with_context(|| format!("NodePort of {}", node.name))?;
            }
        }
        fact(&format!(
            "NodePort {NODE_PORT} from outside: every node answers, IPv4 and IPv6"
        ));
        Ok(())
    }

    /// Names as a pod resolves them through its resolv.conf.
    pub(super) async fn dns(&self) -> Result<()> {
        let client = self.client_pod().await?;
        let names = [
            "web",
            "web.default",
            "web.default.svc",
            "web.default.svc.cluster.local",
        ];
        for name in names {
            let url = format!("http://{name}{WHOAMI}");
            self.sh(&client.name, &traffic::wget(&url)).await?;
        }
        fact(&format!("cluster DNS: a pod reaches {}", names.join(", ")));
        let pods = self.wait_pods("app=web", 3).await?;
        let expect: BTreeSet<&str> = pods
            .iter()
            .flat_map(|p| &p.ips)
            .map(String::as_str)
            .collect();
        let text = self
            .sh(
                &client.name,
                "nslookup web-headless.default.svc.cluster.local",
            )
            .await?;
        let found: BTreeSet<&str> = addresses(&text).filter(|a| expect.contains(a)).collect();
        ensure!(
            found == expect,
            "the headless name gave {found:?}, the pods are {expect:?}"
        );
        fact(&format!(
            "headless Service: {} addresses, one for each pod and family",
            found.len()
        ));
        let name = "web-elsewhere.default.svc.cluster.local";
        let text = self
            .sh(&client.name, &format!("nslookup -type=a {name}"))
            .await?;
        let ip = self.cluster_ip_of("web").await?;
        ensure!(
            text.contains("canonical name = web.default.svc.cluster.local")
                && addresses(&text).any(|a| a == ip),
            "the ExternalName gave {text:?}"
        );
        fact(&format!(
            "ExternalName: {name} is web.default.svc.cluster.local, {ip}"
        ));
        Ok(())
    }
}

/// The addresses in the output of busybox's `nslookup`.
fn addresses(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|l| l.strip_prefix("Address:"))
        .filter_map(|l| l.split_whitespace().next())
}
