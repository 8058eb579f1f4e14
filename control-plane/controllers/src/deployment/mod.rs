//! Deployments: a ReplicaSet for each template, and a careful move from the old ones to the new one.
//!
//! Follows upstream's controller step by step, since `kubectl rollout` reads what it leaves behind: annotations,
//! conditions, generations.

mod revision;
mod rolling;
mod scale;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::note::Note;
use crate::view::{Key, Now, View};
use crate::workload::claim;
use crate::write::{PatchKind, Plan, Propagation, Target, Write, precondition};

const COMPONENT: &str = "deployment-controller";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const HASH_LABEL: &str = "pod-template-hash";

pub(crate) fn route(view: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    match touch {
        Touch::Deployment {
            new: Some(deployment),
            ..
        } => {
            wake.insert(Key::of(&deployment.metadata));
        }
        Touch::ReplicaSet { old, new } => {
            for set in old.iter().chain(new) {
                if let Some(owner) = meta::controller_of_kind(&set.metadata, Kind::Deployment) {
                    wake.insert(Key::new(meta::namespace(&set.metadata), &owner.name));
                }
            }
            if let Some(set) = new
                && meta::controller_of(&set.metadata).is_none()
            {
                wake.extend(matching(view, set));
            }
        }
        // The Recreate strategy waits until the last old pod is gone.
        Touch::Pod {
            old: Some(pod),
            new,
        } if new.as_ref().is_none_or(|it| meta::pod_finished(it)) => {
            wake.extend(recreated_by(view, pod));
        }
        _ => {}
    }
}

fn matching(view: &View, set: &ReplicaSet) -> Vec<Key> {
    view.deployments
        .in_namespace(meta::namespace(&set.metadata))
        .filter(|(_, deployment)| {
            let spec = deployment.spec.as_ref();
            let selector = spec.and_then(|spec| meta::selector(&spec.selector));
            selector.is_some_and(|selector| meta::matches(&selector, &set.metadata))
        })
        .map(|(key, _)| key.clone())
        .collect()
}

fn recreated_by(view: &View, pod: &Pod) -> Option<Key> {
    let namespace = meta::namespace(&pod.metadata);
    let set = meta::controller_of_kind(&pod.metadata, Kind::ReplicaSet)?;
    let set = view.replica_sets.named(namespace, &set.name)?;
    let owner = meta::controller_of_kind(&set.metadata, Kind::Deployment)?;
    let key = Key::new(namespace, &owner.name);
    let deployment = view.deployments.get(&key)?;
    let recreate = deployment.spec.as_ref().is_some_and(is_recreate);
    recreate.then_some(key)
}

fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|it| it.type_.as_deref()) == Some("Recreate")
}

/// A deployment with its ReplicaSets sorted out.
struct Rollout<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    /// The ReplicaSet of the current template.
    new: Option<Arc<ReplicaSet>>,
    /// All others, oldest first.
    old: Vec<Arc<ReplicaSet>>,
}

impl Rollout<'_> {
    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    /// How many pods there may be beyond the wanted ones.
    fn max_surge(&self) -> i32 {
        self.limits().0
    }

    /// How many of the wanted pods may be missing.
    fn max_unavailable(&self) -> i32 {
        let unavailable = if is_recreate(self.spec) {
            0
        } else {
            self.limits().1
        };
        unavailable.min(self.replicas())
    }

    fn limits(&self) -> (i32, i32) {
        if is_recreate(self.spec) {
            return (0, 0);
        }
        let rolling = self
            .spec
            .strategy
            .as_ref()
            .and_then(|it| it.rolling_update.as_ref());
        let quarter =
            k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String("25%".to_owned());
        let surge = rolling
            .and_then(|it| it.max_surge.as_ref())
            .unwrap_or(&quarter);
        let unavailable = rolling
            .and_then(|it| it.max_unavailable.as_ref())
            .unwrap_or(&quarter);
        let surge = meta::scaled(surge, self.replicas(), true);
        let unavailable = meta::scaled(unavailable, self.replicas(), false);
        // Both zero would never move (validation forbids it, percentages may round to it).
        if surge == 0 && unavailable == 0 {
            (0, 1)
        } else {
            (surge, unavailable)
        }
    }
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    let Some(deployment) = view.deployments.get(key) else {
        return Plan::nothing();
    };
    let Some(spec) = &deployment.spec else {
        return Plan::nothing();
    };
    let Some(selector) = meta::selector(&spec.selector) else {
        let text = "This deployment is selecting all pods. A non-empty selector is required.";
        let note = Note::new(
            Kind::Deployment,
            &deployment.metadata,
            COMPONENT,
            "SelectingAll",
            text,
        );
        return Plan::of(vec![Write::Event(note.warning())]);
    };
    let meta = &deployment.metadata;
    let claimed = claim(
        &view.replica_sets,
        Kind::ReplicaSet,
        Kind::Deployment,
        meta,
        &selector,
    );
    if !claimed.writes.is_empty() {
        return Plan::of(claimed.writes);
    }
    let rollout = revision::sort_out(deployment, spec, claimed.objects);
    if meta::is_deleting(meta) {
        return Plan::of(status::counted(&rollout, now).into_iter().collect());
    }
    if let Some(write) = status::paused_condition(&rollout, now) {
        return Plan::of(vec![write]);
    }
    let paused = spec.paused == Some(true);
    if let Some(plan) = revision::sync(&rollout, now) {
        return plan;
    }
    if paused || is_scaling(&rollout) {
        let mut plan = Plan::of(scale::proportionally(&rollout));
        if paused {
            plan.writes.extend(clean_up(&rollout));
        }
        plan.writes.extend(status::counted(&rollout, now));
        return plan;
    }
    if is_recreate(spec) {
        recreate(view, &rollout, now)
    } else {
        rolling(&rollout, now)
    }
}

/// The wanted number of replicas differs from the one the ReplicaSets were last sized for.
fn is_scaling(rollout: &Rollout<'_>) -> bool {
    rollout.all().filter(|set| replicas(set) > 0).any(|set| {
        meta::annotation(&set.metadata, DESIRED_REPLICAS)
            .and_then(|text| text.parse::<i32>().ok())
            .is_some_and(|desired| desired != rollout.replicas())
    })
}

fn rolling(rollout: &Rollout<'_>, now: Now) -> Plan {
    let Some(new) = &rollout.new else {
        return Plan::of(revision::create(rollout, now));
    };
    let mut writes = rolling::scale_up(rollout, new);
    if writes.is_empty() {
        writes = rolling::scale_down(rollout, new);
    }
    if writes.is_empty() && status::is_complete(rollout) {
        writes = clean_up(rollout);
    }
    finish(Plan::of(writes), rollout, now)
}

fn recreate(view: &View, rollout: &Rollout<'_>, now: Now) -> Plan {
    let down: Vec<Write> = rollout
        .old
        .iter()
        .filter(|set| replicas(set) > 0)
        .flat_map(|set| scale::to(rollout, set, 0))
        .collect();
    if !down.is_empty() {
        return finish(Plan::of(down), rollout, now);
    }
    let running = rollout
        .old
        .iter()
        .flat_map(|set| view.pods.controlled_by(meta::uid(&set.metadata)))
        .any(|pod| !meta::pod_finished(pod));
    if running {
        return finish(Plan::nothing(), rollout, now);
    }
    let Some(new) = &rollout.new else {
        return Plan::of(revision::create(rollout, now));
    };
    let mut writes = Vec::new();
    if replicas(new) != rollout.replicas() {
        writes = scale::to(rollout, new, rollout.replicas());
    }
    if writes.is_empty() && status::is_complete(rollout) {
        writes = clean_up(rollout);
    }
    finish(Plan::of(writes), rollout, now)
}

/// Adds the status to what was decided.
fn finish(mut plan: Plan, rollout: &Rollout<'_>, now: Now) -> Plan {
    let status = status::sync(rollout, now);
    plan.writes.extend(status.writes);
    if let Some(delay) = status.again {
        plan.again_in(delay);
    }
    plan
}

/// Removes old ReplicaSets beyond the history limit, oldest revision first.
fn clean_up(rollout: &Rollout<'_>) -> Vec<Write> {
    let limit = rollout.spec.revision_history_limit.unwrap_or(10);
    let limit = usize::try_from(limit).unwrap_or(0);
    let mut idle: Vec<&Arc<ReplicaSet>> = rollout
        .old
        .iter()
        .filter(|set| {
            let status = set.status.as_ref();
            replicas(set) == 0
                && status.map_or(0, |it| it.replicas) == 0
                && set.metadata.generation <= status.and_then(|it| it.observed_generation)
                && !meta::is_deleting(&set.metadata)
        })
        .collect();
    idle.sort_by_key(|set| revision::of(&set.metadata));
    let excess = idle.len().saturating_sub(limit);
    idle.into_iter()
        .take(excess)
        .map(|set| Write::Delete {
            target: Target::of(Kind::ReplicaSet, &set.metadata),
            uid: meta::uid(&set.metadata).to_owned(),
            grace_seconds: None,
            propagation: Some(Propagation::Background),
            announce: None,
        })
        .collect()
}

/// A merge patch of a ReplicaSet that fails when it has changed since.
fn set_patch(
    set: &ReplicaSet,
    annotations: Option<serde_json::Value>,
    spec: Option<serde_json::Value>,
) -> Write {
    let mut metadata = precondition(&set.metadata);
    if let Some(annotations) = annotations {
        metadata["annotations"] = annotations;
    }
    let mut body = json!({"metadata": metadata});
    if let Some(spec) = spec {
        body["spec"] = spec;
    }
    Write::Patch {
        target: Target::of(Kind::ReplicaSet, &set.metadata),
        subresource: None,
        how: PatchKind::Merge,
        body,
    }
}

#[cfg(test)]
mod tests;
