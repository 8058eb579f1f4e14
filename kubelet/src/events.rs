//! Events: what happened to a pod, for `kubectl describe`. Repeated ones are counted in one object, and each
//! pod may cause only so many (as upstream's `EventCorrelator`).

use std::collections::BTreeMap;

use client::{Client, Patch, Resource};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::pod::PodId;

/// Events waiting to be sent; more are dropped with a log line.
const QUEUE: usize = 256;
/// An object may cause so many events at once, and one more in each of these seconds (client-go's defaults).
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
/// How many different events are remembered for counting.
const REMEMBERED: usize = 512;

/// Normal or Warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Happened {
    /// The object's kind: `Pod` or `Node`.
    pub kind: &'static str,
    /// To which object.
    pub object: PodId,
    /// Its resourceVersion, when known.
    pub version: Option<String>,
    /// Container the event is about.
    pub container: Option<(&'static str, String)>,
    /// Normal or Warning.
    pub severity: Severity,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// Where events go in.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Happened>,
}

impl Recorder {
    /// A recorder, and the end events come out of.
    pub fn new() -> (Self, mpsc::Receiver<Happened>) {
        let (queue, out) = mpsc::channel(QUEUE);
        (Self { queue }, out)
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
            (list, name.to_owned())
        };
        self.send(Happened {
            kind: "Pod",
            object: PodId::of(pod),
            version: pod.metadata.resource_version.clone(),
            container: container.map(field),
            severity,
            reason,
            message: message.into(),
            at: Timestamp::now(),
        });
    }

    /// Something happened to this node.
    pub fn node(&self, name: &str, reason: &'static str, message: impl Into<String>) {
        self.send(Happened {
            kind: "Node",
            object: PodId {
                uid: name.to_owned(),
                namespace: String::new(),
                name: name.to_owned(),
            },
            version: None,
            container: None,
            severity: Severity::Normal,
            reason,
            message: message.into(),
            at: Timestamp::now(),
        });
    }

    fn send(&self, event: Happened) {
        let Err(e) = self.queue.try_send(event) else {
            return;
        };
        tracing::warn!("an event is dropped: {e}");
    }
}

/// What to send for one event: a new object, or a patch of the one that counts.
#[derive(Debug, Clone, PartialEq)]
pub enum Send {
    /// POST this.
    Create(Value),
    /// PATCH this name with that.
    Count(String, Value),
}

/// Remembers what was sent. Pure.
#[derive(Debug, Default)]
pub struct Aggregator {
    sent: BTreeMap<String, Sent>,
    tokens: BTreeMap<String, (f64, Timestamp)>,
    number: u64,
}

#[derive(Debug)]
struct Sent {
    name: String,
    count: u32,
    last: Timestamp,
}

impl Aggregator {
    /// What to send for `event`; `None` when its object has caused too many.
    pub fn take(&mut self, event: &Happened, node: &str) -> Option<Send> {
        if !self.may_send(event) {
            return None;
        }
        let severity = match event.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        let container = event.container.as_ref().map(|(_, name)| name.as_str());
        let key = format!(
            "{}/{}/{}/{}",
            event.object.uid,
            container.unwrap_or_default(),
            event.reason,
            event.message
        );
        let time = crate::status::seconds(event.at);
        if let Some(sent) = self.sent.get_mut(&key) {
            sent.count += 1;
            sent.last = event.at;
            let patch = json!({"count": sent.count, "lastTimestamp": time});
            return Some(Send::Count(sent.name.clone(), patch));
        }
        self.forget_oldest();
        self.number += 1;
        let unique = event.at.as_nanosecond().unsigned_abs();
        let name = format!("{}.{:x}{:x}", event.object.name, unique, self.number % 16);
        let last = event.at;
        let sent = Sent {
            name: name.clone(),
            count: 1,
            last,
        };
        self.sent.insert(key, sent);
        let field = event.container.as_ref();
        let mut object = json!({
            "kind": event.kind, "apiVersion": "v1", "name": event.object.name, "uid": event.object.uid,
        });
        if !event.object.namespace.is_empty() {
            object["namespace"] = json!(event.object.namespace);
        }
        if let Some(version) = &event.version {
            object["resourceVersion"] = json!(version);
        }
        if let Some((list, name)) = field {
            object["fieldPath"] = json!(format!("spec.{list}{{{name}}}"));
        }
        Some(Send::Create(json!({
            "kind": "Event", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": namespace(event)},
            "involvedObject": object,
            "reason": event.reason, "message": event.message, "type": severity,
            "source": {"component": "kubelet", "host": node},
            "reportingComponent": "kubelet", "reportingInstance": node,
            "firstTimestamp": time, "lastTimestamp": time, "count": 1,
        })))
    }

    /// The event's object was not stored: the next of its kind is a new one.
    pub fn lost(&mut self, name: &str) {
        self.sent.retain(|_, sent| sent.name != name);
    }

    fn may_send(&mut self, event: &Happened) -> bool {
        let (tokens, at) = self
            .tokens
            .entry(event.object.uid.clone())
            .or_insert((BURST, event.at));
        let passed = event.at.duration_since(*at).as_secs_f64().max(0.0);
        *tokens = (*tokens + passed / REFILL_SECONDS).min(BURST);
        *at = event.at;
        let may = *tokens >= 1.0;
        if may {
            *tokens -= 1.0;
        }
        if self.tokens.len() > REMEMBERED {
            self.tokens.retain(|_, (tokens, _)| *tokens < BURST - 1.0);
        }
        may
    }

    fn forget_oldest(&mut self) {
        if self.sent.len() < REMEMBERED {
            return;
        }
        let mut times: Vec<_> = self.sent.values().map(|s| s.last).collect();
        times.sort_unstable();
        let middle = times[times.len() / 2];
        self.sent.retain(|_, s| s.last > middle);
    }
}

/// Events of a node lie in `default`.
fn namespace(event: &Happened) -> &str {
    match event.object.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    }
}

/// Sends events until every recorder is dropped. An event that cannot be sent is told in the log.
pub async fn run(client: Client, node: String, mut events: mpsc::Receiver<Happened>) {
    let mut aggregator = Aggregator::default();
    while let Some(event) = events.recv().await {
        let Some(send) = aggregator.take(&event, &node) else {
            tracing::debug!(pod = %event.object, reason = event.reason, "too many events");
            continue;
        };
        let space = Some(namespace(&event));
        let (name, result) = match &send {
            Send::Create(object) => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let sent = client
                    .create::<_, Value>(Resource::EVENTS, space, object)
                    .await;
                (name, sent)
            }
            Send::Count(name, patch) => {
                let sent = client
                    .patch::<Value>(Resource::EVENTS, space, name, Patch::Merge, patch)
                    .await;
                (name.as_str(), sent)
            }
        };
        if let Err(e) = result {
            aggregator.lost(name);
            tracing::debug!(pod = %event.object, reason = event.reason, error = %e, "event not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: &'static str, at: i64) -> Happened {
        Happened {
            kind: "Pod",
            object: PodId {
                uid: "u".into(),
                namespace: "ns".into(),
                name: "web".into(),
            },
            version: None,
            container: Some(("containers", "c".into())),
            severity: Severity::Warning,
            reason,
            message: "m".into(),
            at: crate::testing::at(at),
        }
    }

    #[test]
    fn repeats_are_counted_in_one_object() {
        let mut a = Aggregator::default();
        let Some(Send::Create(first)) = a.take(&event("BackOff", 0), "n1") else {
            panic!("a new object");
        };
        assert_eq!(first["involvedObject"]["fieldPath"], "spec.containers{c}");
        assert_eq!(
            first["source"],
            json!({"component": "kubelet", "host": "n1"})
        );
        let Some(Send::Count(name, patch)) = a.take(&event("BackOff", 5), "n1") else {
            panic!("a count");
        };
        assert_eq!(first["metadata"]["name"], name);
        assert_eq!(patch["count"], 2);
        a.lost(&name);
        assert!(matches!(
            a.take(&event("BackOff", 6), "n1"),
            Some(Send::Create(_))
        ));
    }

    #[test]
    fn a_pod_causes_only_so_many() {
        let mut a = Aggregator::default();
        let sent = (0..40)
            .filter(|_| a.take(&event("X", 0), "n").is_some())
            .count();
        assert_eq!(sent, 25);
        assert!(a.take(&event("X", 301), "n").is_some());
        assert!(a.take(&event("X", 302), "n").is_none());
    }
}
