//! Events: what happened to an object, for `kubectl describe`. Repeated ones are counted in one
//! object, and each object may cause only so many (as upstream's `EventCorrelator`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::requests::{Client, Patch};
use crate::resource::Resource;

/// Events waiting to be sent; more are dropped with a log line.
const QUEUE: usize = 256;

/// An object may cause so many events at once, and one more in each of these seconds (client-go's
/// defaults).
const BURST: f64 = 25.0;

/// See [`BURST`].
const REFILL_SECONDS: f64 = 300.0;

/// How many different events are remembered for counting.
const REMEMBERED: usize = 512;

/// The longest message of an event that the API server takes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// The longest name of an object.
const NAME_BYTES_MAX: usize = 253;

/// Normal or Warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// The object that something happened to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Kind, e.g. `Pod`.
    pub kind: &'static str,
    /// API group and version; empty: `v1`.
    pub api_version: &'static str,
    /// Namespace; empty for what has none.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Identity, when known.
    pub uid: String,
    /// Its resourceVersion, when known.
    pub version: Option<String>,
    /// The part of it, e.g. `spec.containers{web}`.
    pub field: Option<String>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Happened {
    /// To which object.
    pub subject: Subject,
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

    /// Takes an event; false when too many wait.
    pub fn send(&self, event: Happened) -> bool {
        let Err(e) = self.queue.try_send(event) else {
            return true;
        };
        tracing::warn!("an event is dropped: {e}");
        false
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
    /// What to send for `event` of program `component` on `host`; `None` when its object has caused
    /// too many.
    pub fn take(&mut self, event: &Happened, component: &str, host: &str) -> Option<Send> {
        if !self.may_send(event) {
            return None;
        }
        let subject = &event.subject;
        let field = subject.field.as_deref().unwrap_or_default();
        let key = format!(
            "{}/{field}/{}/{}",
            identity(subject),
            event.reason,
            event.message
        );
        let time = seconds(event.at);
        if let Some(sent) = self.sent.get_mut(&key) {
            sent.count += 1;
            sent.last = event.at;
            let patch = json!({"count": sent.count, "lastTimestamp": time});
            return Some(Send::Count(sent.name.clone(), patch));
        }
        self.forget_oldest();
        self.number += 1;
        let unique = event.at.as_nanosecond().unsigned_abs();
        let end = format!(".{unique:x}{:x}", self.number % 16);
        let name = cut(&subject.name, NAME_BYTES_MAX - end.len());
        let name = format!("{name}{end}");
        let sent = Sent {
            name: name.clone(),
            count: 1,
            last: event.at,
        };
        self.sent.insert(key, sent);
        let severity = match event.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        Some(Send::Create(json!({
            "kind": "Event", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": namespace(event)},
            "involvedObject": reference(subject),
            "reason": event.reason,
            "message": cut(&event.message, MESSAGE_BYTES_MAX),
            "type": severity,
            "source": {"component": component, "host": host},
            "reportingComponent": component, "reportingInstance": host,
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
            .entry(identity(&event.subject))
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

fn identity(subject: &Subject) -> String {
    if subject.uid.is_empty() {
        format!("{}/{}/{}", subject.kind, subject.namespace, subject.name)
    } else {
        subject.uid.clone()
    }
}

fn reference(subject: &Subject) -> Value {
    let version = match subject.api_version {
        "" => "v1",
        version => version,
    };
    let mut object = json!({
        "kind": subject.kind, "apiVersion": version, "name": subject.name,
    });
    let more = [
        ("uid", Some(&subject.uid)),
        ("namespace", Some(&subject.namespace)),
        ("resourceVersion", subject.version.as_ref()),
        ("fieldPath", subject.field.as_ref()),
    ];
    for (key, value) in more {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            object[key] = json!(value);
        }
    }
    object
}

/// RFC 3339 without fractions, as Kubernetes' times are.
fn seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second())
        .unwrap_or(at)
        .to_string()
}

/// The first so many bytes, or a little less, so that no character is cut.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Events of what has no namespace lie in `default`.
fn namespace(event: &Happened) -> &str {
    match event.subject.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    }
}

/// Sends events of program `component` on `host` until every recorder is dropped; `told` hears of
/// each whether it was sent. One that cannot be sent is told in the log.
pub async fn run(
    client: Client,
    component: &str,
    host: &str,
    mut events: mpsc::Receiver<Happened>,
    told: impl Fn(bool),
) {
    let mut aggregator = Aggregator::default();
    while let Some(event) = events.recv().await {
        let object = &event.subject.name;
        let Some(send) = aggregator.take(&event, component, host) else {
            tracing::debug!(object, reason = event.reason, "too many events");
            told(false);
            continue;
        };
        let space = Some(namespace(&event));
        let (name, result) = match &send {
            Send::Create(body) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let sent = client
                    .create::<_, Value>(Resource::EVENTS, space, body)
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
        told(result.is_ok());
        if let Err(e) = result {
            aggregator.lost(name);
            tracing::debug!(object, reason = event.reason, error = %e, "event not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: &'static str, at: i64) -> Happened {
        Happened {
            subject: Subject {
                kind: "Pod",
                namespace: "ns".into(),
                name: "web".into(),
                uid: "u".into(),
                field: Some("spec.containers{c}".into()),
                ..Subject::default()
            },
            severity: Severity::Warning,
            reason,
            message: "m".into(),
            at: Timestamp::from_second(1_700_000_000 + at).unwrap(),
        }
    }

    #[test]
    fn repeats_are_counted_in_one_object() {
        let mut a = Aggregator::default();
        let Some(Send::Create(first)) = a.take(&event("BackOff", 0), "kubelet", "n1") else {
            panic!("a new object");
        };
        assert_eq!(first["involvedObject"]["fieldPath"], "spec.containers{c}");
        assert_eq!(first["firstTimestamp"], "2023-11-14T22:13:20Z");
        assert_eq!(
            first["source"],
            json!({"component": "kubelet", "host": "n1"})
        );
        let Some(Send::Count(name, patch)) = a.take(&event("BackOff", 5), "kubelet", "n1") else {
            panic!("a count");
        };
        assert_eq!(first["metadata"]["name"], name);
        assert_eq!(patch["count"], 2);
        a.lost(&name);
        assert!(matches!(
            a.take(&event("BackOff", 6), "kubelet", "n1"),
            Some(Send::Create(_))
        ));
    }

    #[test]
    fn an_object_causes_only_so_many() {
        let mut a = Aggregator::default();
        let sent = (0..40)
            .filter(|_| a.take(&event("X", 0), "c", "n").is_some())
            .count();
        assert_eq!(sent, 25);
        assert!(a.take(&event("X", 301), "c", "n").is_some());
        assert!(a.take(&event("X", 302), "c", "n").is_none());
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let mut long = event("X", 0);
        long.subject.name = "\u{e9}".repeat(5000);
        long.message = "m".repeat(5000);
        let Some(Send::Create(object)) = Aggregator::default().take(&long, "c", "n") else {
            panic!("a new object");
        };
        let name = object["metadata"]["name"].as_str().unwrap();
        assert!(name.len() <= NAME_BYTES_MAX && name.len() > NAME_BYTES_MAX - 4);
        assert_eq!(object["message"].as_str().unwrap().len(), MESSAGE_BYTES_MAX);
    }
}
