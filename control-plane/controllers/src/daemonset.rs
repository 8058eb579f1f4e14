//! DaemonSets: one pod on every node that takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use serde_json::json;

use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::schedule::{matches_node, tolerates};
use crate::view::{Key, Now, View};
use crate::workload::revisions::{HASH_LABEL, revisions};
use crate::workload::{BURST, claim, create_pod, delete_pod, owners_of_pod, pod_from};
use crate::write::{Plan, Write, status_patch};
use crate::{node, note::Note};

mod update;

const COMPONENT: &str = "daemonset-controller";

/// What every daemon tolerates, as (taint, effect): it belongs to the node, well or not.
const TOLERATIONS: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

pub(crate) fn route(view: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    match touch {
        Touch::DaemonSet { new: Some(set), .. } => {
            wake.insert(Key::of(&set.metadata));
        }
        Touch::Node { old, new } => {
            let same = matches!((old, new), (Some(old), Some(new))
                if old.metadata.labels == new.metadata.labels && node::taints(old) == node::taints(new)
                    && old.spec.as_ref().map(|it| it.unschedulable) == new.spec.as_ref().map(|it| it.unschedulable));
            if !same {
                wake.extend(view.daemon_sets.values().map(|set| Key::of(&set.metadata)));
            }
        }
        Touch::ControllerRevision { old, new } => {
            for revision in old.iter().chain(new) {
                if let Some(owner) = meta::controller_of_kind(&revision.metadata, Kind::DaemonSet) {
                    wake.insert(Key::new(meta::namespace(&revision.metadata), &owner.name));
                }
            }
        }
        _ => {}
    }
    let selects = |pod: &Pod| {
        let sets = view
            .daemon_sets
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
    owners_of_pod(touch, Kind::DaemonSet, selects, wake);
}

/// The pods of a set, and what each node is to it.
struct Daemons<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    hash: String,
    /// By the node a pod is on or is meant for.
    by_node: BTreeMap<String, Vec<Arc<Pod>>>,
    /// Nodes that should have a pod.
    wanted: BTreeSet<String>,
    /// Nodes whose pod may stay, wanted or not.
    tolerated: BTreeSet<String>,
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    let Some(set) = view.daemon_sets.get(key) else {
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
        Kind::DaemonSet,
        &set.metadata,
        &selector,
    );
    if !claimed.writes.is_empty() {
        return Plan::of(claimed.writes);
    }
    let collisions = set
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let revisions = revisions(
        view,
        Kind::DaemonSet,
        &set.metadata,
        &spec.template,
        collisions,
    );
    if meta::is_deleting(&set.metadata) {
        return Plan::nothing();
    }
    if !revisions.writes.is_empty() {
        return Plan::of(revisions.writes);
    }
    let tolerations = tolerations(spec);
    let (mut wanted, mut tolerated) = (BTreeSet::new(), BTreeSet::new());
    for node in view.nodes.values() {
        let (should_run, may_stay) = suits(spec, &tolerations, node);
        let name = meta::name(&node.metadata);
        if should_run {
            wanted.insert(name.to_owned());
        }
        if may_stay {
            tolerated.insert(name.to_owned());
        }
    }
    let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in claimed.objects {
        by_node.entry(node_of(&pod)).or_default().push(pod);
    }
    let daemons = Daemons {
        set,
        spec,
        hash: revisions.hash.clone(),
        by_node,
        wanted,
        tolerated,
    };
    let mut plan = Plan::of(daemons.manage(&tolerations));
    if plan.writes.is_empty() {
        plan.writes = daemons.update(now);
    }
    if plan.writes.is_empty() {
        let used = |hash: Option<&str>| {
            hash == Some(daemons.hash.as_str())
                || daemons
                    .pods()
                    .any(|pod| meta::label(&pod.metadata, HASH_LABEL) == hash)
        };
        plan.writes = revisions.clean_up(spec.revision_history_limit, |it| {
            used(meta::label(&it.metadata, HASH_LABEL))
        });
    }
    plan.writes.extend(daemons.status(now));
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    for at in daemons
        .pods()
        .filter_map(|pod| meta::pod_available_at(pod, min_ready))
    {
        if at > now.wall {
            plan.again_in(at.duration_since(now.wall).unsigned_abs());
        }
    }
    plan
}

fn tolerations(spec: &DaemonSetSpec) -> Vec<Toleration> {
    let pod = spec.template.spec.as_ref();
    let mut tolerations = pod
        .and_then(|pod| pod.tolerations.clone())
        .unwrap_or_default();
    let mut add = |key: &str, effect: &str| {
        tolerations.push(Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        });
    };
    for (key, effect) in TOLERATIONS {
        add(key, effect);
    }
    // A daemon on the host's network may be what makes the network available.
    if pod.is_some_and(|pod| pod.host_network == Some(true)) {
        add("node.kubernetes.io/network-unavailable", "NoSchedule");
    }
    tolerations
}

/// Whether a node should run the daemon, and whether it may keep one it has.
fn suits(spec: &DaemonSetSpec, tolerations: &[Toleration], node: &Node) -> (bool, bool) {
    let selected = spec.template.spec.as_ref().is_some_and(|pod| {
        pod.node_name
            .as_ref()
            .is_none_or(|name| Some(name) == node.metadata.name.as_ref())
            && matches_node(pod, node)
    });
    let blocked = |effects: &[&str]| {
        node::taints(node)
            .iter()
            .filter(|taint| effects.contains(&taint.effect.as_str()))
            .any(|taint| !tolerations.iter().any(|it| tolerates(it, taint)))
    };
    let runs = selected && !blocked(&["NoSchedule", "NoExecute"]);
    (runs, selected && !blocked(&["NoExecute"]))
}

/// The node a pod is on, or the one it was made for.
fn node_of(pod: &Pod) -> String {
    if let Some(node) = meta::node_of(pod) {
        return node.to_owned();
    }
    let affinity = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    affinity
        .and_then(|it| {
            it.required_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .and_then(|it| {
            it.node_selector_terms
                .first()?
                .match_fields
                .as_ref()?
                .first()?
                .values
                .as_ref()?
                .first()
        })
        .cloned()
        .unwrap_or_default()
}

impl Daemons<'_> {
    fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_node.values().flatten()
    }

    fn active(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_node
            .get(node)
            .into_iter()
            .flatten()
            .filter(|pod| meta::pod_active(pod))
    }

    fn is_new(&self, pod: &Pod) -> bool {
        meta::label(&pod.metadata, HASH_LABEL) == Some(&self.hash)
    }

    fn remove(&self, pod: &Pod) -> Write {
        delete_pod(Kind::DaemonSet, &self.set.metadata, COMPONENT, pod)
    }

    /// One pod where there should be one, none elsewhere; a failed pod makes room for the next.
    fn manage(&self, tolerations: &[Toleration]) -> Vec<Write> {
        let (mut create, mut delete) = (Vec::new(), Vec::new());
        for (node, pods) in &self.by_node {
            for pod in pods.iter().filter(|pod| !meta::is_deleting(&pod.metadata)) {
                if !self.tolerated.contains(node) {
                    delete.push(self.remove(pod));
                } else if meta::pod_finished(pod) {
                    let text = format!(
                        "Found failed daemon pod {} on node {node}, will try to kill it",
                        Key::of(&pod.metadata)
                    );
                    let meta = &self.set.metadata;
                    let note = Note::new(Kind::DaemonSet, meta, COMPONENT, "FailedDaemonPod", text);
                    delete.push(Write::Event(note.warning()));
                    delete.push(self.remove(pod));
                }
            }
            // Beside a pod of the new template an old one may stay until the new is available (surge).
            let mut active: Vec<_> = self.active(node).collect();
            active.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
            let (new, old): (Vec<_>, Vec<_>) = active.into_iter().partition(|pod| self.is_new(pod));
            delete.extend(new.into_iter().skip(1).map(|pod| self.remove(pod)));
            delete.extend(old.into_iter().skip(1).map(|pod| self.remove(pod)));
        }
        for node in &self.wanted {
            if self.by_node.get(node).is_none_or(Vec::is_empty) {
                create.push(self.create(node, tolerations));
            }
        }
        create.truncate(BURST);
        create.extend(delete);
        create
    }

    fn create(&self, node: &str, tolerations: &[Toleration]) -> Write {
        let mut pod = pod_from(&self.spec.template, Kind::DaemonSet, &self.set.metadata);
        pod["metadata"]["labels"][HASH_LABEL] = json!(self.hash);
        let spec = &mut pod["spec"];
        spec["tolerations"] = json!(tolerations);
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({
            "nodeSelectorTerms": [{
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}],
            }],
        });
        create_pod(Kind::DaemonSet, &self.set.metadata, COMPONENT, pod)
    }

    fn status(&self, now: Now) -> Option<Write> {
        let count = |found: usize| i32::try_from(found).unwrap_or(i32::MAX);
        let on = |node: &String, is: &dyn Fn(&Pod) -> bool| self.active(node).any(|pod| is(pod));
        let nodes = |is: &dyn Fn(&Pod) -> bool| {
            count(self.wanted.iter().filter(|node| on(node, is)).count())
        };
        let desired = count(self.wanted.len());
        let available = nodes(&|pod| self.available(pod, now));
        let some = |count: i32| (count != 0).then_some(count);
        let old = self.set.status.as_ref();
        let status = DaemonSetStatus {
            current_number_scheduled: nodes(&|_| true),
            desired_number_scheduled: desired,
            number_available: some(available),
            number_misscheduled: count(
                self.by_node
                    .keys()
                    .filter(|node| !self.wanted.contains(*node) && on(node, &|_| true))
                    .count(),
            ),
            number_ready: nodes(&meta::pod_ready),
            number_unavailable: some(desired - available),
            observed_generation: self.set.metadata.generation,
            updated_number_scheduled: some(nodes(&|pod| self.is_new(pod))),
            collision_count: old.and_then(|old| old.collision_count),
            conditions: old.and_then(|old| old.conditions.clone()),
        };
        status_patch(Kind::DaemonSet, &self.set.metadata, old, &status)
    }
}

#[cfg(test)]
mod tests;
