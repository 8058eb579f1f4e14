//! The scheduler as a controller: pods without a node in, bindings out.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use super::place;
use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::node;
use crate::note::{Note, format_time};
use crate::view::{Key, Now, View};
use crate::write::{PatchKind, Plan, Target, Write};

pub(crate) fn route(view: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    match touch {
        Touch::Pod {
            new: Some(pod),
            old,
        } => {
            if waits(view, pod) {
                wake.insert(Key::of(&pod.metadata));
            } else if meta::pod_finished(pod) || old.as_ref().is_some_and(|old| moved(old, pod)) {
                wake.extend(view.unschedulable.iter().cloned());
            }
        }
        Touch::Pod { new: None, .. } | Touch::Namespace { .. } => {
            wake.extend(view.unschedulable.iter().cloned());
        }
        Touch::Node {
            old,
            new: Some(node),
        } if old.as_ref().is_none_or(|old| may_help(old, node)) => {
            wake.extend(view.unschedulable.iter().cloned());
        }
        _ => {}
    }
}

fn moved(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels != new.metadata.labels
        || meta::is_deleting(&old.metadata) != meta::is_deleting(&new.metadata)
        || meta::node_of(old) != meta::node_of(new)
}

/// A heartbeat alone does not make room.
fn may_help(old: &Node, new: &Node) -> bool {
    let room = |node: &Node| {
        node.status
            .as_ref()
            .and_then(|status| status.allocatable.clone())
    };
    old.metadata.labels != new.metadata.labels
        || node::taints(old) != node::taints(new)
        || node::readiness(old) != node::readiness(new)
        || old.spec.as_ref().map(|it| it.unschedulable)
            != new.spec.as_ref().map(|it| it.unschedulable)
        || room(old) != room(new)
}

fn waits(view: &View, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec
        .scheduler_name
        .as_ref()
        .is_none_or(|name| name.is_empty() || *name == view.config.scheduler_name);
    ours && meta::node_of(pod).is_none() && meta::pod_active(pod)
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    let Some(pod) = view.pods.get(key) else {
        return Plan::nothing();
    };
    let uid = meta::uid(&pod.metadata);
    if !waits(view, pod) {
        return Plan::nothing();
    }
    let assumed = view.assumed.get(key).filter(|assumed| assumed.uid == uid);
    if let Some(assumed) = assumed {
        return if assumed.again {
            bind(pod, assumed.node.clone())
        } else {
            Plan::nothing()
        };
    }
    let gated = pod.spec.as_ref().is_some_and(|spec| {
        spec.scheduling_gates
            .as_ref()
            .is_some_and(|gates| !gates.is_empty())
    });
    if gated {
        let message = "Scheduling is blocked due to non-empty scheduling gates";
        return Plan::of(
            condition(pod, "SchedulingGated", message, now)
                .into_iter()
                .collect(),
        );
    }
    match place(&view.schedule, pod) {
        Ok(node) => bind(pod, node),
        Err(unfit) => {
            let message = unfit.to_string();
            let mut plan = Plan::of(
                condition(pod, "Unschedulable", &message, now)
                    .into_iter()
                    .collect(),
            );
            // Tried again without a change of the answer: nothing new to tell.
            if !plan.writes.is_empty() {
                plan.push(Write::Event(
                    note(pod, "FailedScheduling", message).warning(),
                ));
            }
            plan.park = true;
            plan
        }
    }
}

fn bind(pod: &Pod, node: String) -> Plan {
    let key = Key::of(&pod.metadata);
    let message = format!("Successfully assigned {key} to {node}");
    Plan::of(vec![
        Write::Bind {
            namespace: key.namespace,
            pod: key.name,
            uid: meta::uid(&pod.metadata).to_owned(),
            node,
        },
        Write::Event(note(pod, "Scheduled", message)),
    ])
}

fn note(pod: &Pod, reason: &'static str, message: String) -> Note {
    Note::new(
        Kind::Pod,
        &pod.metadata,
        "default-scheduler",
        reason,
        message,
    )
}

/// Sets PodScheduled=False unless it already says so.
fn condition(pod: &Pod, reason: &str, message: &str, now: Now) -> Option<Write> {
    let known = meta::pod_condition(pod, "PodScheduled");
    if known.is_some_and(|it| {
        it.status == "False"
            && it.reason.as_deref() == Some(reason)
            && it.message.as_deref() == Some(message)
    }) {
        return None;
    }
    let since = known
        .filter(|it| it.status == "False")
        .and_then(|it| it.last_transition_time.as_ref())
        .map_or(now.wall, |time| time.0);
    Some(Write::Patch {
        target: Target::of(Kind::Pod, &pod.metadata),
        subresource: Some("status"),
        how: PatchKind::Strategic,
        body: json!({
            "metadata": {"uid": meta::uid(&pod.metadata)},
            "status": {"conditions": [{
                "type": "PodScheduled",
                "status": "False",
                "reason": reason,
                "message": message,
                "lastTransitionTime": format_time(since),
            }]},
        }),
    })
}
