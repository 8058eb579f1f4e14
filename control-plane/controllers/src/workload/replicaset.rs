//! ReplicaSets: as many pods as asked for, no more and no fewer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{BURST, claim, create_pod, delete_pod, last_failure, pod_from, rank_for_deletion};
use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::view::{Key, Now, View};
use crate::write::{Plan, Write, status_patch};

const COMPONENT: &str = "replicaset-controller";
const LABEL: &str = "replicaset";

pub(crate) fn route(view: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    if let Touch::ReplicaSet { new: Some(set), .. } = touch {
        wake.insert(Key::of(&set.metadata));
    }
    let selects = |pod: &Pod| {
        let sets = view
            .replica_sets
            .in_namespace(meta::namespace(&pod.metadata));
        sets.filter(|(_, set)| {
            let selector = set
                .spec
                .as_ref()
                .and_then(|spec| meta::selector(&spec.selector));
            selector.is_some_and(|selector| meta::matches(&selector, &pod.metadata))
        })
        .map(|(key, _)| key.clone())
        .collect()
    };
    super::owners_of_pod(touch, Kind::ReplicaSet, selects, wake);
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    let Some(set) = view.replica_sets.get(key) else {
        return Plan::nothing();
    };
    let Some(spec) = &set.spec else {
        return Plan::nothing();
    };
    let Some(selector) = meta::selector(&spec.selector) else {
        return Plan::nothing();
    };
    let claimed = claim(
        &view.pods,
        Kind::Pod,
        Kind::ReplicaSet,
        &set.metadata,
        &selector,
    );
    let active: Vec<Arc<Pod>> = claimed
        .objects
        .iter()
        .filter(|pod| meta::pod_active(pod))
        .cloned()
        .collect();
    let mut plan = Plan::of(claimed.writes);
    let changes = if meta::is_deleting(&set.metadata) {
        Vec::new()
    } else {
        resize(view, set, &active)
    };
    let failure = last_failure(view, LABEL, key).filter(|_| !changes.is_empty());
    let status = status(set, &active, failure, now);
    let status = status_patch(
        Kind::ReplicaSet,
        &set.metadata,
        set.status.as_ref(),
        &status,
    );
    // The pods come first, unless they have just failed: then the condition must be told before the next failure.
    if failure.is_some() {
        plan.writes.extend(status);
        plan.writes.extend(changes);
    } else {
        plan.writes.extend(changes);
        plan.writes.extend(status);
    }
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    for at in active
        .iter()
        .filter_map(|pod| meta::pod_available_at(pod, min_ready))
    {
        if at > now.wall {
            plan.again_in(Duration::try_from(at.duration_since(now.wall)).unwrap_or_default());
        }
    }
    plan
}

fn wanted(set: &ReplicaSet) -> usize {
    let replicas = set
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

fn resize(view: &View, set: &ReplicaSet, active: &[Arc<Pod>]) -> Vec<Write> {
    let wanted = wanted(set);
    if active.len() < wanted {
        let Some(template) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else {
            return Vec::new();
        };
        let pod = pod_from(template, Kind::ReplicaSet, &set.metadata);
        let create = create_pod(Kind::ReplicaSet, &set.metadata, COMPONENT, pod);
        return vec![create; (wanted - active.len()).min(BURST)];
    }
    let excess = (active.len() - wanted).min(BURST);
    if excess == 0 {
        return Vec::new();
    }
    let mut pods = active.to_vec();
    let related = related_pods(view, set);
    rank_for_deletion(&mut pods, |pod| {
        let node = meta::node_of(pod);
        related
            .iter()
            .filter(|other| node.is_some() && meta::node_of(other) == node)
            .count()
    });
    pods.iter()
        .take(excess)
        .map(|pod| delete_pod(Kind::ReplicaSet, &set.metadata, COMPONENT, pod))
        .collect()
}

/// The active pods of all ReplicaSets with the same controller: where they crowd, one goes first.
fn related_pods(view: &View, set: &ReplicaSet) -> Vec<Arc<Pod>> {
    let sets: Vec<&ReplicaSet> = match meta::controller_of(&set.metadata) {
        Some(owner) => view
            .replica_sets
            .controlled_by(&owner.uid)
            .map(Arc::as_ref)
            .collect(),
        None => vec![set],
    };
    sets.iter()
        .flat_map(|set| view.pods.controlled_by(meta::uid(&set.metadata)))
        .filter(|pod| meta::pod_active(pod))
        .cloned()
        .collect()
}

fn count(pods: impl Iterator) -> i32 {
    i32::try_from(pods.count()).unwrap_or(i32::MAX)
}

fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    failure: Option<&str>,
    now: Now,
) -> ReplicaSetStatus {
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let labels = spec
        .and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.as_ref())
        .cloned()
        .unwrap_or_default();
    let labeled = active.iter().filter(|pod| {
        let have = pod.metadata.labels.as_ref();
        labels
            .iter()
            .all(|(key, value)| have.and_then(|it| it.get(key)) == Some(value))
    });
    let available = active
        .iter()
        .filter(|pod| meta::pod_available_at(pod, min_ready).is_some_and(|at| at <= now.wall));
    let old = set.status.as_ref();
    ReplicaSetStatus {
        replicas: count(active.iter()),
        fully_labeled_replicas: some(count(labeled)),
        ready_replicas: some(count(active.iter().filter(|pod| meta::pod_ready(pod)))),
        available_replicas: some(count(available)),
        observed_generation: set.metadata.generation,
        conditions: conditions(old, failure, active.len() < wanted(set), now),
        terminating_replicas: old.and_then(|old| old.terminating_replicas),
    }
}

/// Counts of zero are left out on the wire.
fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn conditions(
    old: Option<&ReplicaSetStatus>,
    failure: Option<&str>,
    creating: bool,
    now: Now,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old
        .and_then(|old| old.conditions.clone())
        .unwrap_or_default();
    let known = conditions
        .iter()
        .position(|condition| condition.type_ == "ReplicaFailure");
    match (known, failure) {
        (Some(index), None) => {
            conditions.remove(index);
        }
        (None, Some(message)) => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(
                if creating {
                    "FailedCreate"
                } else {
                    "FailedDelete"
                }
                .to_owned(),
            ),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(now.wall)),
        }),
        _ => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

#[cfg(test)]
mod tests;
