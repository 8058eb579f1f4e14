//! Pods that nobody else removes: finished ones beyond the threshold, and those of nodes that are gone.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::view::{Key, Now, View};
use crate::write::{Plan, Target, Write};

/// How long a node must be gone before its pods are: it may only be re-registering (upstream: 40 s quarantine).
const QUARANTINE: Duration = Duration::from_secs(40);

/// The keys are node names, and the empty name for all finished pods.
pub(crate) fn route(view: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    match touch {
        Touch::Node {
            old: Some(node),
            new: None,
        } => {
            wake.insert(Key::new("", meta::name(&node.metadata)));
        }
        Touch::Pod { new: Some(pod), .. } => {
            if let Some(node) = meta::node_of(pod)
                && view.nodes.named("", node).is_none()
            {
                wake.insert(Key::new("", node));
            }
            if meta::pod_finished(pod) && view.pods.len() > view.config.terminated_pod_threshold {
                wake.insert(Key::default());
            }
        }
        _ => {}
    }
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    if key.name.is_empty() {
        return finished(view);
    }
    if view.nodes.named("", &key.name).is_some() {
        return Plan::nothing();
    }
    let mut plan = Plan::nothing();
    if view.pods_on(&key.name).next().is_none() {
        return plan;
    }
    let since = view
        .missing_nodes
        .get(&key.name)
        .copied()
        .unwrap_or(now.mono);
    let waited = now.mono.saturating_sub(since);
    if waited < QUARANTINE {
        plan.again_in(QUARANTINE.saturating_sub(waited));
        return plan;
    }
    for (_, pod) in view.pods_on(&key.name) {
        plan.push(remove(pod));
    }
    plan
}

fn finished(view: &View) -> Plan {
    let mut finished: Vec<_> = view
        .pods
        .values()
        .filter(|pod| meta::pod_finished(pod))
        .collect();
    let excess = finished
        .len()
        .saturating_sub(view.config.terminated_pod_threshold);
    finished.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
    Plan::of(
        finished
            .into_iter()
            .take(excess)
            .map(|pod| remove(pod))
            .collect(),
    )
}

fn remove(pod: &Pod) -> Write {
    Write::Delete {
        target: Target::of(Kind::Pod, &pod.metadata),
        uid: meta::uid(&pod.metadata).to_owned(),
        grace_seconds: Some(0),
        propagation: None,
        announce: None,
    }
}
