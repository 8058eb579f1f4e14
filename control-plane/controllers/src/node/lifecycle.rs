//! Node readiness: a node that is silent becomes `Ready=Unknown`, and its conditions become taints.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::kinds::{Kind, LEASE_NAMESPACE, Touch};
use crate::meta;
use crate::note::{Note, format_time};
use crate::view::{Key, Now, View};
use crate::write::{PatchKind, Plan, Target, Write, precondition};

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub(crate) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// Conditions that become a NoSchedule taint while they are True.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];
/// Conditions nobody vouches for once the kubelet is silent.
const HEARTBEAT_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub(crate) fn route(_: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    match touch {
        Touch::Node {
            new: Some(node), ..
        } => {
            wake.insert(Key::of(&node.metadata));
        }
        Touch::Lease {
            new: Some(lease), ..
        } => {
            wake.insert(Key::new("", meta::name(&lease.metadata)));
        }
        _ => {}
    }
}

/// What counts as a sign of life: the Lease and the heartbeat of the Ready condition. Only a change of it is looked
/// at, never its age, so the clocks of nodes need not agree with ours.
pub(crate) fn heartbeat_stamp(view: &View, name: &str) -> (Option<Timestamp>, Option<Timestamp>) {
    let lease = view
        .leases
        .named(LEASE_NAMESPACE, name)
        .and_then(|lease| Some(lease.spec.as_ref()?.renew_time.as_ref()?.0));
    let condition = view.nodes.named("", name).and_then(|node| {
        condition(node, "Ready")?
            .last_heartbeat_time
            .as_ref()
            .map(|time| time.0)
    });
    (lease, condition)
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    let Some(node) = view.nodes.get(key) else {
        return Plan::nothing();
    };
    let grace = view.config.node_monitor_grace;
    let heard = view
        .heartbeats
        .get(&key.name)
        .map_or(now.mono, |heartbeat| heartbeat.at);
    let silent = now.mono.saturating_sub(heard);
    let mut plan = Plan::nothing();
    if silent >= grace {
        if let Some(write) = unknown(node, now) {
            plan.push(write);
            let message = format!("Node {} status is now: NodeNotReady", key.name);
            let note = Note::new(
                Kind::Node,
                &node.metadata,
                "node-controller",
                "NodeNotReady",
                message,
            );
            plan.push(Write::Event(note));
            // The answer brings the node back here, for its taints.
            return plan;
        }
    } else {
        plan.again_in(grace.saturating_sub(silent));
    }
    let current = super::taints(node);
    let wanted = wanted_taints(node, now);
    if current != wanted {
        plan.push(Write::Patch {
            target: Target::of(Kind::Node, &node.metadata),
            subresource: None,
            how: PatchKind::Merge,
            body: json!({
                "metadata": precondition(&node.metadata),
                "spec": {"taints": if wanted.is_empty() { Value::Null } else { json!(wanted) }},
            }),
        });
    }
    plan
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn unknown(node: &Node, now: Now) -> Option<Write> {
    let stale: Vec<Value> = HEARTBEAT_CONDITIONS
        .iter()
        .filter_map(|kind| {
            let known = condition(node, kind);
            if known.is_some_and(|known| known.status == "Unknown") {
                return None;
            }
            let (reason, message) = match known {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => (
                    "NodeStatusNeverUpdated",
                    "Kubelet never posted node status.",
                ),
            };
            Some(json!({
                "type": kind,
                "status": "Unknown",
                "reason": reason,
                "message": message,
                "lastTransitionTime": format_time(now.wall),
            }))
        })
        .collect();
    (!stale.is_empty()).then(|| Write::Patch {
        target: Target::of(Kind::Node, &node.metadata),
        subresource: Some("status"),
        how: PatchKind::Strategic,
        body: json!({"status": {"conditions": stale}}),
    })
}

/// The taints the node should have: those that are not ours as they are, and ours by its conditions.
fn wanted_taints(node: &Node, now: Now) -> Vec<Taint> {
    let mut ours: Vec<(&str, &str)> = Vec::new();
    match super::readiness(node) {
        Some("True") => {}
        Some("Unknown") => ours.extend([(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)]),
        Some(_) => ours.extend([(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)]),
        // A node that has just registered: nothing is scheduled to it, nothing is evicted.
        None => ours.push((NOT_READY, NO_SCHEDULE)),
    }
    for (kind, taint) in PRESSURES {
        if condition(node, kind).is_some_and(|condition| condition.status == "True") {
            ours.push((taint, NO_SCHEDULE));
        }
    }
    if node
        .spec
        .as_ref()
        .is_some_and(|spec| spec.unschedulable == Some(true))
    {
        ours.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let is_ours = |taint: &Taint| {
        let keys = [NOT_READY, UNREACHABLE, UNSCHEDULABLE];
        let key = taint.key.as_str();
        (keys.contains(&key) || PRESSURES.iter().any(|(_, pressure)| *pressure == key))
            && taint.effect != "PreferNoSchedule"
    };
    let current = super::taints(node);
    let mut wanted: Vec<Taint> = current
        .iter()
        .filter(|taint| {
            !is_ours(taint) || ours.contains(&(taint.key.as_str(), taint.effect.as_str()))
        })
        .cloned()
        .collect();
    for (key, effect) in ours {
        if !wanted
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            wanted.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: (effect == NO_EXECUTE).then_some(Time(now.wall)),
            });
        }
    }
    wanted
}

#[cfg(test)]
mod tests;
