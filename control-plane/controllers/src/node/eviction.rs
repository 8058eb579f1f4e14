//! Pods on nodes that are not ready: they stop being endpoints when the node is unreachable, and leave it when they
//! do not tolerate its NoExecute taints (any more).

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use serde_json::json;

use super::lifecycle::{NOT_READY, UNREACHABLE};
use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::note::{Note, format_time};
use crate::schedule::tolerates;
use crate::view::{Key, Now, View};
use crate::write::{PatchKind, Plan, Target, Write};

/// A static pod: the kubelet's file decides about it, not the API.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The keys are node names.
pub(crate) fn route(view: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    match touch {
        Touch::Node {
            old,
            new: Some(node),
        } => {
            let changed = old.as_ref().is_none_or(|old| {
                super::taints(old) != super::taints(node)
                    || super::readiness(old) != super::readiness(node)
            });
            if changed {
                wake.insert(Key::of(&node.metadata));
            }
            let ready = |node: &Node| super::readiness(node) == Some("True");
            if ready(node) && !old.as_deref().is_some_and(ready) {
                // Evictions that waited because no node was ready.
                let waiting = view
                    .nodes
                    .values()
                    .filter(|it| no_execute(it).next().is_some());
                wake.extend(waiting.map(|node| Key::of(&node.metadata)));
            }
        }
        Touch::Pod { new: Some(pod), .. } => {
            let Some(name) = meta::node_of(pod) else {
                return;
            };
            let Some(node) = view.nodes.named("", name) else {
                return;
            };
            if super::readiness(node) == Some("Unknown") || no_execute(node).next().is_some() {
                wake.insert(Key::new("", name));
            }
        }
        _ => {}
    }
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    let Some(node) = view.nodes.get(key) else {
        return Plan::nothing();
    };
    let mut plan = Plan::nothing();
    let dead = super::readiness(node) == Some("Unknown");
    // When no node is heard of, it is more likely us who are cut off: nobody is evicted for that.
    let cut_off = view
        .nodes
        .values()
        .all(|node| super::readiness(node) != Some("True"));
    for (_, pod) in view.pods_on(&key.name) {
        if dead && meta::pod_ready(pod) {
            plan.push(not_ready(pod, now));
            let note = Note::new(
                Kind::Pod,
                &pod.metadata,
                "node-controller",
                "NodeNotReady",
                "Node is not ready",
            );
            plan.push(Write::Event(note.warning()));
        }
        if meta::is_deleting(&pod.metadata)
            || meta::pod_finished(pod)
            || meta::annotation(&pod.metadata, MIRROR).is_some()
        {
            continue;
        }
        match leaves_at(pod, node, cut_off, view.config.default_toleration, now.wall) {
            Some(at) if at <= now.wall => {
                let message = format!("Marking for deletion Pod {}", Key::of(&pod.metadata));
                let note = Note::new(
                    Kind::Pod,
                    &pod.metadata,
                    "taint-eviction-controller",
                    "TaintManagerEviction",
                    message,
                );
                plan.push(Write::Event(note));
                plan.push(Write::Delete {
                    target: Target::of(Kind::Pod, &pod.metadata),
                    uid: meta::uid(&pod.metadata).to_owned(),
                    grace_seconds: None,
                    propagation: None,
                    announce: None,
                });
            }
            Some(at) => {
                let wait = at.duration_since(now.wall);
                plan.again_in(Duration::try_from(wait).unwrap_or(Duration::ZERO));
            }
            None => {}
        }
    }
    plan
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    super::taints(node)
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
}

/// When the pod must leave the node; `None` when it may stay for ever.
fn leaves_at(
    pod: &Pod,
    node: &Node,
    cut_off: bool,
    default: Duration,
    now: Timestamp,
) -> Option<Timestamp> {
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default();
    let mut leaves: Option<Timestamp> = None;
    for taint in no_execute(node) {
        let matching: Vec<_> = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .collect();
        let lifecycle = taint.key == NOT_READY || taint.key == UNREACHABLE;
        if lifecycle && cut_off {
            continue;
        }
        let seconds = if matching.is_empty() {
            // Admission gives pods these tolerations; one that has none was made without it.
            if lifecycle {
                i64::try_from(default.as_secs()).unwrap_or(i64::MAX)
            } else {
                0
            }
        } else {
            match matching
                .iter()
                .filter_map(|toleration| toleration.toleration_seconds)
                .min()
            {
                Some(seconds) => seconds.max(0),
                None => continue,
            }
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let at = since
            .saturating_add(jiff::SignedDuration::from_secs(seconds))
            .ok()?;
        leaves = Some(leaves.map_or(at, |known| known.min(at)));
    }
    leaves
}

fn not_ready(pod: &Pod, now: Now) -> Write {
    Write::Patch {
        target: Target::of(Kind::Pod, &pod.metadata),
        subresource: Some("status"),
        how: PatchKind::Strategic,
        body: json!({
            "metadata": {"uid": meta::uid(&pod.metadata)},
            "status": {"conditions": [{
                "type": "Ready",
                "status": "False",
                "lastTransitionTime": format_time(now.wall),
            }]},
        }),
    }
}

#[cfg(test)]
mod tests;
