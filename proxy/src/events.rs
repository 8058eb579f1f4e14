//! Events of this program about objects, sent through the API server where there is one; always in
//! the log.

use std::sync::Arc;

use client::Client;
use client::events::{Happened, Recorder, Severity, Subject};
use jiff::Timestamp;

use crate::metrics::Metrics;
use crate::model::ObjectRef;

/// The program, as Events name it: kube-proxy's name, so that whoever looks for it finds ours.
const COMPONENT: &str = "kube-proxy";

/// Where events go in. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Events {
    recorder: Option<Recorder>,
}

impl Events {
    /// To nobody but the log.
    pub fn log_only() -> Self {
        Self::default()
    }

    /// To an API server, from node `node`. Needs a tokio runtime.
    pub fn to(client: Client, node: &str, metrics: Arc<Metrics>) -> Self {
        let (recorder, events) = Recorder::new();
        let node = node.to_owned();
        tokio::spawn(async move {
            let told = |sent: bool| {
                let number = if sent {
                    &metrics.events
                } else {
                    &metrics.events_dropped
                };
                number.add(1);
            };
            client::events::run(client, COMPONENT, &node, events, told).await;
        });
        Self {
            recorder: Some(recorder),
        }
    }

    /// Somebody should look at an object. Never waits.
    pub fn warning(&self, object: &ObjectRef, reason: &'static str, message: String) {
        tracing::warn!("{object}: {message}");
        let Some(recorder) = &self.recorder else {
            return;
        };
        let api_version = match object.kind {
            "EndpointSlice" => "discovery.k8s.io/v1",
            "ServiceCIDR" => "networking.k8s.io/v1",
            _ => "v1",
        };
        // What is dropped here is told in the log by the recorder.
        recorder.send(Happened {
            subject: Subject {
                kind: object.kind,
                api_version,
                namespace: object.namespace.to_string(),
                name: object.name.to_string(),
                uid: object.uid.to_string(),
                ..Subject::default()
            },
            severity: Severity::Warning,
            reason,
            message,
            at: Timestamp::now(),
        });
    }
}
