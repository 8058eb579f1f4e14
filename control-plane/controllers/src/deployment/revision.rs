//! Which ReplicaSet belongs to the current template, and the revision numbers that `kubectl rollout` reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use super::{
    COMPONENT, DESIRED_REPLICAS, HASH_LABEL, MAX_REPLICAS, Rollout, rolling, set_patch, status,
};
use crate::kinds::Kind;
use crate::meta;
use crate::note::Note;
use crate::view::Now;
use crate::workload::template_hash;
use crate::write::{Announce, PatchKind, Plan, Target, Write};

const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Longest revision history kept in an annotation (upstream: 2000 characters).
const REVISION_HISTORY_MAX: usize = 2000;
/// Annotations of a deployment that its ReplicaSets do not inherit.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// The revision an object carries, 0 without one.
pub(super) fn of(meta: &ObjectMeta) -> i64 {
    meta::annotation(meta, REVISION)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// Finds the ReplicaSet of the current template: the oldest with an equal one.
pub(super) fn sort_out<'a>(
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    mut sets: Vec<Arc<ReplicaSet>>,
) -> Rollout<'a> {
    sets.sort_by_cached_key(|set| {
        (
            set.metadata.creation_timestamp.clone(),
            set.metadata.name.clone(),
        )
    });
    let wanted = without_hash(&spec.template);
    let index = sets.iter().position(|set| {
        let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        template.is_some_and(|template| without_hash(template) == wanted)
    });
    let new = index.map(|index| sets.remove(index));
    Rollout {
        deployment,
        spec,
        new,
        old: sets,
    }
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let metadata = template.metadata.get_or_insert_default();
    metadata.creation_timestamp = None;
    if let Some(labels) = &mut metadata.labels {
        labels.remove(HASH_LABEL);
        if labels.is_empty() {
            metadata.labels = None;
        }
    }
    template
}

/// Brings revision annotations, copied annotations and minReadySeconds up to date; `None` when nothing is to do.
pub(super) fn sync(rollout: &Rollout<'_>, now: Now) -> Option<Plan> {
    let new = rollout.new.as_ref()?;
    let next = rollout
        .old
        .iter()
        .map(|set| of(&set.metadata))
        .max()
        .unwrap_or(0)
        + 1;
    let mut annotations = copied(rollout.deployment, Some(&new.metadata));
    let known = of(&new.metadata);
    if known < next {
        annotations.insert(REVISION.to_owned(), json!(next.to_string()));
        if known > 0 {
            annotations.insert(
                REVISION_HISTORY.to_owned(),
                json!(history(&new.metadata, known)),
            );
        }
    }
    let min_ready = rollout.spec.min_ready_seconds.unwrap_or(0);
    let min_ready_differs = new
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or(0)
        != min_ready;
    if !annotations.is_empty() || min_ready_differs {
        let annotations = (!annotations.is_empty()).then_some(Value::Object(annotations));
        let spec = min_ready_differs.then(|| json!({"minReadySeconds": min_ready}));
        return Some(Plan::of(vec![set_patch(new, annotations, spec)]));
    }
    let mut writes: Vec<Write> = deployment_revision(rollout, known).into_iter().collect();
    if writes.is_empty() {
        writes.extend(status::found_new(rollout, new, now));
    }
    (!writes.is_empty()).then(|| Plan::of(writes))
}

fn deployment_revision(rollout: &Rollout<'_>, revision: i64) -> Option<Write> {
    let meta = &rollout.deployment.metadata;
    (of(meta) != revision).then(|| Write::Patch {
        target: Target::of(Kind::Deployment, meta),
        subresource: None,
        how: PatchKind::Merge,
        body: json!({"metadata": {
            "uid": meta.uid,
            "annotations": {REVISION: revision.to_string()},
        }}),
    })
}

/// The deployment's annotations that the ReplicaSet lacks or has otherwise.
fn copied(deployment: &Deployment, set: Option<&ObjectMeta>) -> Map<String, Value> {
    let annotations = deployment.metadata.annotations.as_ref();
    annotations
        .into_iter()
        .flatten()
        .filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()))
        .filter(|(key, value)| {
            set.and_then(|set| meta::annotation(set, key)) != Some(value.as_str())
        })
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect()
}

fn history(set: &ObjectMeta, revision: i64) -> String {
    let mut history = meta::annotation(set, REVISION_HISTORY)
        .unwrap_or_default()
        .to_owned();
    if !history.is_empty() {
        history.push(',');
    }
    history.push_str(&revision.to_string());
    while history.len() > REVISION_HISTORY_MAX {
        match history.split_once(',') {
            Some((_, rest)) => history = rest.to_owned(),
            None => break,
        }
    }
    history
}

/// Makes the ReplicaSet of the current template, already sized for the first step of the rollout.
pub(super) fn create(rollout: &Rollout<'_>, now: Now) -> Vec<Write> {
    let deployment = rollout.deployment;
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let hash = template_hash(&rollout.spec.template, collisions);
    let name = format!("{}-{hash}", meta::name(&deployment.metadata));
    // A ReplicaSet of that name with another template: a hash collision, or one that is being deleted.
    if rollout
        .old
        .iter()
        .any(|set| meta::name(&set.metadata) == name)
    {
        return status::count_collision(rollout, collisions)
            .into_iter()
            .collect();
    }
    let revision = rollout
        .old
        .iter()
        .map(|set| of(&set.metadata))
        .max()
        .unwrap_or(0)
        + 1;
    let replicas = rolling::new_size(rollout, None);
    let mut annotations = copied(deployment, None);
    annotations.insert(REVISION.to_owned(), json!(revision.to_string()));
    annotations.extend(sizes(rollout));
    let mut template = rollout.spec.template.clone();
    add_label(&mut template.metadata.get_or_insert_default().labels, &hash);
    let mut labels = rollout
        .spec
        .template
        .metadata
        .clone()
        .unwrap_or_default()
        .labels;
    add_label(&mut labels, &hash);
    let mut selector = rollout.spec.selector.clone();
    add_label(&mut selector.match_labels, &hash);
    let note = |reason, text: String| {
        Note::new(
            Kind::Deployment,
            &deployment.metadata,
            COMPONENT,
            reason,
            text,
        )
    };
    let mut writes = vec![Write::Create {
        kind: Kind::ReplicaSet,
        namespace: meta::namespace(&deployment.metadata).to_owned(),
        object: Box::new(json!({
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "namespace": meta::namespace(&deployment.metadata),
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [meta::owner_reference(Kind::Deployment, &deployment.metadata)],
            },
            "spec": {
                "replicas": replicas,
                "minReadySeconds": rollout.spec.min_ready_seconds.unwrap_or(0),
                "selector": selector,
                "template": template,
            },
        })),
        announce: Some(Box::new(Announce {
            done: None,
            failed: Some(
                note(
                    "ReplicaSetCreateError",
                    "Failed to create new replica set: ".to_owned(),
                )
                .warning(),
            ),
        })),
    }];
    if replicas > 0 {
        let text = format!("Scaled up replica set {name} from 0 to {replicas}");
        writes.push(Write::Event(note("ScalingReplicaSet", text)));
    }
    writes.extend(status::created_new(rollout, &name, now));
    writes
}

fn add_label(labels: &mut Option<BTreeMap<String, String>>, hash: &str) {
    labels
        .get_or_insert_default()
        .insert(HASH_LABEL.to_owned(), hash.to_owned());
}

/// The annotations that say what a ReplicaSet was sized for.
pub(super) fn sizes(rollout: &Rollout<'_>) -> Map<String, Value> {
    let desired = rollout.replicas();
    let most = desired.saturating_add(rollout.max_surge());
    Map::from_iter([
        (DESIRED_REPLICAS.to_owned(), json!(desired.to_string())),
        (MAX_REPLICAS.to_owned(), json!(most.to_string())),
    ])
}
