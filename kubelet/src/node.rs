//! The Node object: made or adopted at the start, kept true from then on, and the Lease that says we live.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::watch::Event;
use client::{Client, Patch, Resource, Selection};
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::cni::Network;
use crate::context::{Node, blocking};
use crate::events::Recorder;
use crate::rt::PodRuntime;

pub mod facts;
pub mod object;

use object::{Conditions, Shape};

/// The lease is renewed this often, and lasts four times as long (upstream: 10 s of 40 s).
const LEASE_RENEW: Duration = Duration::from_secs(10);
const LEASE_SECONDS: u32 = 40;
/// The conditions' heartbeat, when nothing else changes (upstream: 5 min), and how often pressure is looked at.
const STATUS_REFRESH: Duration = Duration::from_secs(300);
const PRESSURE_LOOK: Duration = Duration::from_secs(10);
/// First and longest wait after a request that failed.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Keeps the Node object and the Lease.
pub struct Keeper {
    client: Client,
    node: Arc<Node>,
    shape: Shape,
    net: Arc<dyn Network>,
    rt: Arc<dyn PodRuntime>,
    events: Recorder,
    known: Option<Value>,
    sent_at: Option<Timestamp>,
}

impl Keeper {
    /// A keeper of the node `node`, listening at `port`.
    pub fn new(
        client: Client,
        node: Arc<Node>,
        net: Arc<dyn Network>,
        rt: Arc<dyn PodRuntime>,
        events: Recorder,
        port: u16,
    ) -> Self {
        let shape = facts::shape(&node, port);
        Self {
            client,
            node,
            shape,
            net,
            rt,
            events,
            known: None,
            sent_at: None,
        }
    }

    /// Makes or adopts the Node object; tries until it works.
    pub async fn register(&mut self) {
        let mut wait = RETRY_FIRST;
        let mut told = false;
        loop {
            match self.try_register().await {
                Ok(()) => break,
                Err(e) if !told => {
                    told = true;
                    tracing::warn!(error = %e, "cannot register the node; trying again");
                }
                Err(e) => tracing::debug!(error = %e, "cannot register the node"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
        tracing::info!(node = self.node.name, "registered");
        self.events
            .node(&self.node.name, "Starting", "Starting kubelet.");
    }

    async fn try_register(&mut self) -> client::Result<()> {
        let name = &self.node.name;
        let labels = object::labels(name);
        let found = self.client.get::<Value>(Resource::NODES, None, name).await;
        let node: Value = match found {
            Ok(node) => {
                let missing = object::missing_labels(&node, &labels);
                if !missing.is_empty() {
                    let patch = json!({"metadata": {"labels": missing}});
                    let nodes = Resource::NODES;
                    let kind = Patch::Merge;
                    let _: Value = self.client.patch(nodes, None, name, kind, &patch).await?;
                }
                node
            }
            Err(e) if e.is_not_found() => {
                let new = object::new(name, &labels);
                self.client.create(Resource::NODES, None, &new).await?
            }
            Err(e) => return Err(e),
        };
        self.known = Some(node);
        self.send_status().await
    }

    /// Follows the Node object and the machine for ever.
    pub async fn run(mut self, mut wake: mpsc::Receiver<()>) {
        tokio::spawn(lease(self.client.clone(), self.node.name.clone()));
        let selection = Selection::fields(format!("metadata.name={}", self.node.name));
        let mut nodes = self.client.watch::<Value>(Resource::NODES, selection);
        let mut look = tokio::time::interval(PRESSURE_LOOK);
        loop {
            let mut listed = false;
            tokio::select! {
                event = nodes.next() => match event {
                    Some(Event::InitApply(node) | Event::Apply(node)) => self.known = Some(node),
                    Some(Event::Delete(_)) => self.register().await,
                    Some(Event::InitDone) => listed = true,
                    Some(Event::Init) => continue,
                    None => return,
                },
                _ = look.tick() => {}
                woken = wake.recv() => if woken.is_none() { return },
            }
            if listed && self.known.is_none() {
                self.register().await;
            }
            if let Err(e) = self.send_status().await {
                tracing::warn!(error = %e, "node status not sent");
            }
        }
    }

    /// Sends the status when what the API shows is not true, or is old.
    async fn send_status(&mut self) -> client::Result<()> {
        let (net, rt, root) = (
            self.net.clone(),
            self.rt.clone(),
            self.node.root_dir.clone(),
        );
        let (conditions, images) = blocking(move || {
            let conditions = Conditions {
                network: net.current().map(drop).map_err(|e| e.to_string()),
                ..facts::pressure(&root)
            };
            let images = rt.images().unwrap_or_else(|e| {
                tracing::warn!(error = %e, "cannot list images");
                Vec::new()
            });
            (conditions, images)
        })
        .await;
        let now = Timestamp::now();
        let Some(known) = &self.known else {
            return Ok(());
        };
        let fresh = self
            .sent_at
            .is_some_and(|at| now.duration_since(at).unsigned_abs() < STATUS_REFRESH);
        let status = object::status(&self.shape, &conditions, &images, known, now);
        let Some(patch) = object::patch(known, status, fresh) else {
            return Ok(());
        };
        let was_ready = object::is_ready(known);
        let name = self.node.name.clone();
        let answer: Value = self
            .client
            .patch_status(Resource::NODES, None, &name, Patch::Strategic, &patch)
            .await?;
        let ready = conditions.network.is_ok();
        if ready != was_ready {
            let reason = if ready { "NodeReady" } else { "NodeNotReady" };
            let text = format!("Node {name} status is now: {reason}");
            tracing::info!("{text}");
            self.events.node(&name, reason, text);
        }
        self.known = Some(answer);
        self.sent_at = Some(now);
        Ok(())
    }
}

/// Renews the node's Lease for ever.
async fn lease(client: Client, name: String) {
    const NAMESPACE: Option<&str> = Some("kube-node-lease");
    let mut tick = tokio::time::interval(LEASE_RENEW);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut quiet = false;
    let mut wait = RETRY_FIRST;
    loop {
        tick.tick().await;
        while let Err(e) = renew(&client, NAMESPACE, &name).await {
            if !std::mem::replace(&mut quiet, true) {
                tracing::warn!(error = %e, "lease not renewed; trying again");
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
        (quiet, wait) = (false, RETRY_FIRST);
    }
}

async fn renew(client: &Client, space: Option<&str>, name: &str) -> client::Result<()> {
    let now = Timestamp::now();
    let time = now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    let patch = json!({"spec": {
        "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": time,
    }});
    let leases = Resource::LEASES;
    let done = client
        .patch::<Value>(leases, space, name, Patch::Merge, &patch)
        .await;
    match done {
        Err(e) if e.is_not_found() => {
            let mut lease = json!({
                "kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
                "metadata": {"name": name, "namespace": space},
            });
            lease["spec"] = patch["spec"].clone();
            client
                .create::<_, Value>(leases, space, &lease)
                .await
                .map(drop)
        }
        other => other.map(drop),
    }
}

/// Labels as JSON merges them.
pub type Labels = BTreeMap<String, String>;
