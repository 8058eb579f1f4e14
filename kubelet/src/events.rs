//! Events of pods and of the node, for `kubectl describe`.

use client::Client;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

pub use client::events::{Happened, Severity, Subject};

/// The program, as events name it.
const COMPONENT: &str = "kubelet";

/// Where events go in.
#[derive(Debug, Clone)]
pub struct Recorder(client::events::Recorder);

impl Recorder {
    /// A recorder, and the end events come out of.
    pub fn new() -> (Self, mpsc::Receiver<Happened>) {
        let (recorder, out) = client::events::Recorder::new();
        (Self(recorder), out)
    }

    /// Something happened to `pod`, or to its container `container`.
    pub fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let field = |name: &str| {
            let init = crate::pod::init_containers(pod).any(|(c, _)| c.name == name);
            let list = if init { "initContainers" } else { "containers" };
            format!("spec.{list}{{{name}}}")
        };
        let meta = &pod.metadata;
        let subject = Subject {
            kind: "Pod",
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone(),
            field: container.map(field),
            ..Subject::default()
        };
        self.send(subject, severity, reason, message.into());
    }

    /// Something happened to this node.
    pub fn node(&self, name: &str, reason: &'static str, message: impl Into<String>) {
        let subject = Subject {
            kind: "Node",
            name: name.to_owned(),
            uid: name.to_owned(),
            ..Subject::default()
        };
        self.send(subject, Severity::Normal, reason, message.into());
    }

    fn send(&self, subject: Subject, severity: Severity, reason: &'static str, message: String) {
        self.0.send(Happened {
            subject,
            severity,
            reason,
            message,
            at: Timestamp::now(),
        });
    }
}

/// Sends events until every recorder is dropped. An event that cannot be sent is told in the log.
pub async fn run(client: Client, node: String, events: mpsc::Receiver<Happened>) {
    client::events::run(client, COMPONENT, &node, events, |_sent| {}).await;
}
