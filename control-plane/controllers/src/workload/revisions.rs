//! ControllerRevisions: the templates a StatefulSet or DaemonSet has had, which `kubectl rollout undo` goes back to.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::template_hash;
use crate::kinds::Kind;
use crate::meta;
use crate::view::View;
use crate::write::{PatchKind, Target, Write};

/// The label that says which revision a pod or a ControllerRevision is of.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";

/// The revisions of an owner.
pub(crate) struct Revisions {
    /// The revision of the template as it is now.
    pub(crate) name: String,
    pub(crate) hash: String,
    /// What must be written for it; nothing else should be done before.
    pub(crate) writes: Vec<Write>,
    known: Vec<Arc<ControllerRevision>>,
}

pub(crate) fn revisions(
    view: &View,
    kind: Kind,
    owner: &ObjectMeta,
    template: &PodTemplateSpec,
    collisions: Option<i32>,
) -> Revisions {
    let mut known: Vec<Arc<ControllerRevision>> = view
        .revisions
        .controlled_by(meta::uid(owner))
        .cloned()
        .collect();
    known.sort_by_key(|it| (it.revision, it.metadata.name.clone()));
    let data = data_of(template);
    let newest = known.last().map_or(0, |it| it.revision);
    if let Some(equal) = known
        .iter()
        .rev()
        .find(|it| it.data.as_ref().is_some_and(|it| it.0 == data))
    {
        let mut writes = Vec::new();
        if equal.revision != newest {
            writes.push(Write::Patch {
                target: Target::of(Kind::ControllerRevision, &equal.metadata),
                subresource: None,
                how: PatchKind::Merge,
                body: json!({"revision": newest + 1}),
            });
        }
        let hash = meta::label(&equal.metadata, HASH_LABEL)
            .unwrap_or_default()
            .to_owned();
        return Revisions {
            name: meta::name(&equal.metadata).to_owned(),
            hash,
            writes,
            known,
        };
    }
    let hash = template_hash(template, collisions);
    let name = format!("{}-{hash}", meta::name(owner));
    let mut labels = template
        .metadata
        .clone()
        .unwrap_or_default()
        .labels
        .unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let create = Write::Create {
        kind: Kind::ControllerRevision,
        namespace: meta::namespace(owner).to_owned(),
        object: Box::new(json!({
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "namespace": meta::namespace(owner),
                "labels": labels,
                "annotations": cause(owner),
                "ownerReferences": [meta::owner_reference(kind, owner)],
            },
            "data": data,
            "revision": newest + 1,
        })),
        announce: None,
    };
    Revisions {
        name,
        hash,
        writes: vec![create],
        known,
    }
}

/// What `kubectl rollout history` shows as the change's cause.
fn cause(owner: &ObjectMeta) -> Value {
    match meta::annotation(owner, "kubernetes.io/change-cause") {
        Some(cause) => json!({"kubernetes.io/change-cause": cause}),
        None => Value::Null,
    }
}

/// A revision's data: a patch that brings the template back.
fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = meta::to_value(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

impl Revisions {
    /// The template of a revision by its name.
    pub(crate) fn template(&self, name: &str) -> Option<PodTemplateSpec> {
        let revision = self
            .known
            .iter()
            .find(|it| meta::name(&it.metadata) == name)?;
        serde_json::from_value(revision.data.as_ref()?.0["spec"]["template"].clone()).ok()
    }

    /// Removes the oldest revisions that nothing uses, beyond `limit`.
    pub(crate) fn clean_up(
        &self,
        limit: Option<i32>,
        used: impl Fn(&ControllerRevision) -> bool,
    ) -> Vec<Write> {
        let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
        let idle: Vec<_> = self.known.iter().filter(|it| !used(it)).collect();
        let excess = idle.len().saturating_sub(limit);
        idle.into_iter()
            .take(excess)
            .map(|revision| Write::Delete {
                target: Target::of(Kind::ControllerRevision, &revision.metadata),
                uid: meta::uid(&revision.metadata).to_owned(),
                grace_seconds: None,
                propagation: None,
                announce: None,
            })
            .collect()
    }
}
