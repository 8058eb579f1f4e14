//! StatefulSets: pods with names that stay, made and replaced in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::note::Note;
use crate::view::{Key, Now, View};
use crate::workload::revisions::{HASH_LABEL, Revisions, revisions};
use crate::workload::{claim, owners_of_pod, pod_from};
use crate::write::{Announce, Plan, Target, Write, status_patch};

const COMPONENT: &str = "statefulset-controller";
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

pub(crate) fn route(view: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    match touch {
        Touch::StatefulSet { new: Some(set), .. } => {
            wake.insert(Key::of(&set.metadata));
        }
        Touch::ControllerRevision { old, new } => {
            for revision in old.iter().chain(new) {
                let owner = meta::controller_of_kind(&revision.metadata, Kind::StatefulSet);
                if let Some(owner) = owner {
                    wake.insert(Key::new(meta::namespace(&revision.metadata), &owner.name));
                }
            }
        }
        _ => {}
    }
    let selects = |pod: &Pod| {
        let sets = view
            .stateful_sets
            .in_namespace(meta::namespace(&pod.metadata));
        sets.filter(|(key, set)| {
            let selector = set
                .spec
                .as_ref()
                .and_then(|spec| meta::selector(&spec.selector));
            ordinal(&key.name, pod).is_some()
                && selector.is_some_and(|selector| meta::matches(&selector, &pod.metadata))
        })
        .map(|(key, _)| key.clone())
        .collect()
    };
    owners_of_pod(touch, Kind::StatefulSet, selects, wake);
}

/// The number in a pod's name.
fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    meta::name(&pod.metadata)
        .strip_prefix(set)?
        .strip_prefix('-')?
        .parse()
        .ok()
}

struct Set<'a> {
    view: &'a View,
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    revisions: &'a Revisions,
    /// The revision all pods had before the current update.
    current: String,
    pods: BTreeMap<i32, Arc<Pod>>,
    now: Now,
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    let Some(set) = view.stateful_sets.get(key) else {
        return Plan::nothing();
    };
    let Some(spec) = &set.spec else {
        return Plan::nothing();
    };
    let Some(selector) = meta::selector(&spec.selector) else {
        return Plan::nothing();
    };
    let mut claimed = claim(
        &view.pods,
        Kind::Pod,
        Kind::StatefulSet,
        &set.metadata,
        &selector,
    );
    // Only pods with a name of the set can be its own.
    let foreign = |write: &Write| {
        matches!(write, Write::Patch { target, .. }
            if !target.name.strip_prefix(key.name.as_str()).is_some_and(|rest| rest.starts_with('-')))
    };
    claimed.writes.retain(|write| !foreign(write));
    if !claimed.writes.is_empty() {
        return Plan::of(claimed.writes);
    }
    if meta::is_deleting(&set.metadata) {
        return Plan::nothing();
    }
    let collisions = set
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let revisions = revisions(
        view,
        Kind::StatefulSet,
        &set.metadata,
        &spec.template,
        collisions,
    );
    if !revisions.writes.is_empty() {
        return Plan::of(revisions.writes);
    }
    let current = set
        .status
        .as_ref()
        .and_then(|status| status.current_revision.clone());
    let pods = claimed
        .objects
        .into_iter()
        .filter_map(|pod| Some((ordinal(&key.name, &pod)?, pod)))
        .collect();
    let current = current
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| revisions.name.clone());
    let this = Set {
        view,
        set,
        spec,
        revisions: &revisions,
        current,
        pods,
        now,
    };
    let mut plan = Plan::of(this.step());
    if plan.writes.is_empty() {
        plan.writes = revisions.clean_up(spec.revision_history_limit, |revision| {
            let name = meta::name(&revision.metadata);
            name == this.current
                || name == this.revisions.name
                || this.pods.values().any(|pod| revision_of(pod) == name)
        });
    }
    plan.writes.extend(this.status());
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    for at in this
        .pods
        .values()
        .filter_map(|pod| meta::pod_available_at(pod, min_ready))
    {
        if at > now.wall {
            plan.again_in(at.duration_since(now.wall).unsigned_abs());
        }
    }
    plan
}

fn revision_of(pod: &Pod) -> &str {
    meta::label(&pod.metadata, HASH_LABEL).unwrap_or_default()
}

impl Set<'_> {
    fn ordinals(&self) -> std::ops::Range<i32> {
        let start = self
            .spec
            .ordinals
            .as_ref()
            .and_then(|it| it.start)
            .unwrap_or(0);
        start..start.saturating_add(self.spec.replicas.unwrap_or(1))
    }

    fn in_order(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn healthy(&self, pod: &Pod) -> bool {
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        !meta::is_deleting(&pod.metadata)
            && meta::pod_phase(pod) == "Running"
            && meta::pod_available_at(pod, min_ready).is_some_and(|at| at <= self.now.wall)
    }

    /// The next thing to do: missing pods from the first on, pods too many from the last on, then old pods.
    fn step(&self) -> Vec<Write> {
        let mut writes = Vec::new();
        for ordinal in self.ordinals() {
            match self.pods.get(&ordinal) {
                None => writes.extend(self.create(ordinal)),
                Some(pod) if meta::pod_finished(pod) && !meta::is_deleting(&pod.metadata) => {
                    writes.push(self.delete(pod));
                }
                Some(pod) if self.healthy(pod) || !self.in_order() => continue,
                Some(_) => {}
            }
            if self.in_order() {
                return writes;
            }
        }
        let wanted = self.ordinals();
        for (_, pod) in self
            .pods
            .iter()
            .rev()
            .filter(|(ordinal, _)| !wanted.contains(ordinal))
        {
            if !meta::is_deleting(&pod.metadata) {
                writes.push(self.delete(pod));
            }
            if self.in_order() {
                return writes;
            }
        }
        if writes.is_empty() {
            self.update()
        } else {
            writes
        }
    }

    /// Replaces one pod of an older template at a time, the last first.
    fn update(&self) -> Vec<Write> {
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.and_then(|it| it.type_.as_deref()) == Some("OnDelete") {
            return Vec::new();
        }
        for ordinal in self.ordinals().rev() {
            if ordinal < self.ordinals().start.saturating_add(self.partition()) {
                break;
            }
            let Some(pod) = self.pods.get(&ordinal) else {
                return Vec::new();
            };
            if revision_of(pod) != self.revisions.name && !meta::is_deleting(&pod.metadata) {
                return vec![self.delete(pod)];
            }
            if !self.healthy(pod) {
                return Vec::new();
            }
        }
        Vec::new()
    }

    fn partition(&self) -> i32 {
        let rolling = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|it| it.rolling_update.as_ref());
        rolling.and_then(|it| it.partition).unwrap_or(0)
    }

    fn note(&self, reason: &'static str, text: String) -> Note {
        Note::new(
            Kind::StatefulSet,
            &self.set.metadata,
            COMPONENT,
            reason,
            text,
        )
    }

    fn delete(&self, pod: &Pod) -> Write {
        let (set, pod_name) = (meta::name(&self.set.metadata), meta::name(&pod.metadata));
        let done = format!("delete Pod {{}} in StatefulSet {set} successful");
        let failed = format!("delete Pod {pod_name} in StatefulSet {set} failed error: {{}}");
        Write::Delete {
            target: Target::of(Kind::Pod, &pod.metadata),
            uid: meta::uid(&pod.metadata).to_owned(),
            grace_seconds: None,
            propagation: None,
            announce: Some(Box::new(Announce {
                done: Some(self.note("SuccessfulDelete", done)),
                failed: Some(self.note("FailedDelete", failed).warning()),
            })),
        }
    }

    /// The pod's claims that do not exist, and the pod.
    fn create(&self, ordinal: i32) -> Vec<Write> {
        let set = meta::name(&self.set.metadata);
        let name = format!("{set}-{ordinal}");
        let old = ordinal < self.ordinals().start.saturating_add(self.partition());
        let revision = if old {
            &self.current
        } else {
            &self.revisions.name
        };
        let template = self
            .revisions
            .template(revision)
            .unwrap_or_else(|| self.spec.template.clone());
        let mut pod = pod_from(&template, Kind::StatefulSet, &self.set.metadata);
        let meta = &mut pod["metadata"];
        meta["generateName"] = Value::Null;
        meta["name"] = json!(name);
        meta["labels"][HASH_LABEL] = json!(revision);
        meta["labels"][POD_NAME_LABEL] = json!(name);
        meta["labels"][POD_INDEX_LABEL] = json!(ordinal.to_string());
        pod["spec"]["hostname"] = json!(name);
        pod["spec"]["subdomain"] = json!(self.spec.service_name);
        let mut writes = self.claims(&name, &mut pod);
        let done = format!("create Pod {{}} in StatefulSet {set} successful");
        let failed = format!("create Pod {name} in StatefulSet {set} failed error: {{}}");
        writes.push(Write::Create {
            kind: Kind::Pod,
            namespace: meta::namespace(&self.set.metadata).to_owned(),
            object: Box::new(pod),
            announce: Some(Box::new(Announce {
                done: Some(self.note("SuccessfulCreate", done)),
                failed: Some(self.note("FailedCreate", failed).warning()),
            })),
        });
        writes
    }

    fn claims(&self, pod_name: &str, pod: &mut Value) -> Vec<Write> {
        let namespace = meta::namespace(&self.set.metadata);
        let mut volumes = pod["spec"]["volumes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let mut writes = Vec::new();
        for template in self.spec.volume_claim_templates.iter().flatten() {
            let volume = meta::name(&template.metadata);
            let claim = format!("{volume}-{pod_name}");
            volumes.retain(|it| it["name"] != volume);
            volumes.push(json!({"name": volume, "persistentVolumeClaim": {"claimName": claim}}));
            if self.view.claims.named(namespace, &claim).is_none() {
                let labels = self.spec.selector.match_labels.clone();
                writes.push(Write::Create {
                    kind: Kind::PersistentVolumeClaim,
                    namespace: namespace.to_owned(),
                    object: Box::new(json!({
                        "apiVersion": "v1",
                        "kind": "PersistentVolumeClaim",
                        "metadata": {
                            "name": claim,
                            "namespace": namespace,
                            "labels": labels,
                            "annotations": template.metadata.annotations,
                        },
                        "spec": template.spec,
                    })),
                    announce: None,
                });
            }
        }
        if !volumes.is_empty() {
            pod["spec"]["volumes"] = Value::Array(volumes);
        }
        writes
    }

    fn status(&self) -> Option<Write> {
        let count = |is: &dyn Fn(&Pod) -> bool| {
            i32::try_from(self.pods.values().filter(|pod| is(pod)).count()).unwrap_or(i32::MAX)
        };
        let living = |pod: &Pod| meta::pod_active(pod);
        let ready = count(&|pod| living(pod) && meta::pod_ready(pod));
        let updated = count(&|pod| living(pod) && revision_of(pod) == self.revisions.name);
        let replicas = count(&|pod| !meta::pod_finished(pod));
        let wanted = self.spec.replicas.unwrap_or(1);
        // The update is through: the new revision is the current one.
        let through = updated == wanted && replicas == wanted && ready == wanted;
        let current = if through {
            &self.revisions.name
        } else {
            &self.current
        };
        let old = self.set.status.as_ref();
        let status = StatefulSetStatus {
            replicas,
            ready_replicas: Some(ready),
            available_replicas: Some(count(&|pod| living(pod) && self.healthy(pod))),
            current_replicas: Some(count(&|pod| living(pod) && revision_of(pod) == current)),
            updated_replicas: Some(updated),
            current_revision: Some(current.clone()),
            update_revision: Some(self.revisions.name.clone()),
            observed_generation: self.set.metadata.generation,
            collision_count: Some(old.and_then(|old| old.collision_count).unwrap_or(0)),
            conditions: old.and_then(|old| old.conditions.clone()),
        };
        status_patch(Kind::StatefulSet, &self.set.metadata, old, &status)
    }
}

#[cfg(test)]
mod tests;
