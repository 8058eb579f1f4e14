//! Events (core/v1) for people: what to say about which object, and how repeated ones are counted.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::meta;

/// One thing to tell about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// Who says it, e.g. `replicaset-controller`.
    pub(crate) component: &'static str,
}

impl Note {
    pub(crate) fn new(
        kind: Kind,
        object: &ObjectMeta,
        component: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            api_version: kind.api_version(),
            kind: kind.name(),
            namespace: meta::namespace(object).to_owned(),
            name: meta::name(object).to_owned(),
            uid: meta::uid(object).to_owned(),
            resource_version: object.resource_version.clone().unwrap_or_default(),
            warning: false,
            reason,
            message: message.into(),
            component,
        }
    }

    pub(crate) fn warning(mut self) -> Self {
        self.warning = true;
        self
    }

    /// The same note with more text: in the place of `{}`, or at its end.
    pub(crate) fn with(&self, text: &str) -> Self {
        let mut note = self.clone();
        if note.message.contains("{}") {
            note.message = note.message.replace("{}", text);
        } else {
            note.message.push_str(text);
        }
        note
    }
}

/// How many different notes are remembered for counting.
const REMEMBERED_MAX: usize = 1024;

/// What has been said, so that a repeated note raises a count and does not become a second Event.
#[derive(Default)]
pub(crate) struct Recorder {
    known: BTreeMap<String, Known>,
    order: VecDeque<String>,
    /// Makes names differ when one object gets two notes in the same instant.
    sequence: u32,
}

struct Known {
    event: String,
    count: i32,
}

/// What to send for a note.
#[derive(Debug, PartialEq)]
pub(crate) enum Saying {
    Create {
        namespace: String,
        event: Value,
    },
    Count {
        namespace: String,
        name: String,
        patch: Value,
        then_create: Value,
    },
}

impl Recorder {
    pub(crate) fn say(&mut self, note: &Note, now: Timestamp) -> Saying {
        let key = format!(
            "{}\n{}\n{}\n{}",
            note.uid, note.name, note.reason, note.message
        );
        // Nodes and other cluster-scoped objects have their events in `default`.
        let namespace = if note.namespace.is_empty() {
            "default".to_owned()
        } else {
            note.namespace.clone()
        };
        let stamp = format_time(now);
        if let Some(known) = self.known.get_mut(&key) {
            known.count += 1;
            return Saying::Count {
                namespace: namespace.clone(),
                name: known.event.clone(),
                patch: json!({"count": known.count, "lastTimestamp": stamp}),
                then_create: event(note, &namespace, &known.event, known.count, &stamp),
            };
        }
        self.sequence = self.sequence.wrapping_add(1) % 0xfff;
        let name = format!(
            "{}.{:x}{:03x}",
            note.name,
            now.as_microsecond(),
            self.sequence
        );
        self.known.insert(
            key.clone(),
            Known {
                event: name.clone(),
                count: 1,
            },
        );
        self.order.push_back(key);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        Saying::Create {
            event: event(note, &namespace, &name, 1, &stamp),
            namespace,
        }
    }
}

/// Kubernetes writes times with whole seconds.
pub(crate) fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn event(note: &Note, namespace: &str, name: &str, count: i32, stamp: &str) -> Value {
    let mut involved = json!({
        "apiVersion": note.api_version,
        "kind": note.kind,
        "name": note.name,
        "uid": note.uid,
        "resourceVersion": note.resource_version,
    });
    if !note.namespace.is_empty() {
        involved["namespace"] = json!(note.namespace);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved,
        "reason": note.reason,
        "message": note.message,
        "type": if note.warning { "Warning" } else { "Normal" },
        "source": {"component": note.component},
        "reportingComponent": note.component,
        "reportingInstance": "",
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": count,
    })
}

#[cfg(test)]
mod tests;
