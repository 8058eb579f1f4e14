//! Namespaces that are being deleted: emptied, and let go when nothing is left.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::engine::apply::describe;
use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::view::{Key, Now, Remaining, View};
use crate::write::{Plan, Write, status_patch};

/// How long after an unfinished attempt the next comes even if no deletion is seen.
const RETRY: Duration = Duration::from_secs(5);

pub(crate) fn route(_: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    if let Touch::Namespace {
        new: Some(namespace),
        ..
    } = touch
        && meta::is_deleting(&namespace.metadata)
    {
        wake.insert(Key::of(&namespace.metadata));
    }
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    let Some(namespace) = view.namespaces.get(key) else {
        return Plan::nothing();
    };
    if !meta::is_deleting(&namespace.metadata) || !waits_for_us(namespace) {
        return Plan::nothing();
    }
    let uid = meta::uid(&namespace.metadata);
    let empty = || Write::EmptyNamespace {
        name: key.name.clone(),
        uid: uid.to_owned(),
    };
    let Some(remaining) = view.emptied.get(uid) else {
        return Plan {
            again: Some(Duration::ZERO),
            ..Plan::of(vec![empty()])
        };
    };
    if remaining.is_empty() {
        return Plan::of(vec![Write::FinalizeNamespace {
            name: key.name.clone(),
        }]);
    }
    let mut plan = Plan::of(
        condition_patch(namespace, remaining, now)
            .into_iter()
            .collect(),
    );
    plan.push(empty());
    plan.again_in(RETRY);
    plan
}

fn waits_for_us(namespace: &Namespace) -> bool {
    let finalizers = namespace
        .spec
        .as_ref()
        .and_then(|spec| spec.finalizers.as_ref());
    finalizers.is_some_and(|it| it.iter().any(|finalizer| finalizer == "kubernetes"))
}

fn condition_patch(namespace: &Namespace, remaining: &Remaining, now: Now) -> Option<Write> {
    let mut status = namespace.status.clone().unwrap_or_default();
    let mut set = |kind: &str, reason: [&str; 2], problem: bool, text: [String; 2]| {
        let [good, bad] = reason;
        let [good_text, bad_text] = text;
        set(
            &mut status,
            NamespaceCondition {
                type_: kind.to_owned(),
                status: if problem { "True" } else { "False" }.to_owned(),
                reason: Some(if problem { bad } else { good }.to_owned()),
                message: Some(if problem { bad_text } else { good_text }),
                last_transition_time: Some(Time(now.wall)),
            },
        );
    };
    set(
        "NamespaceDeletionContentFailure",
        ["ContentDeleted", "ContentDeletionFailed"],
        !remaining.failures.is_empty(),
        [
            "All content successfully deleted, may be waiting on finalization".to_owned(),
            format!(
                "Failed to delete all resource types: {}",
                remaining.failures.join("; ")
            ),
        ],
    );
    let objects = describe(&remaining.objects, "has", "resource instances");
    set(
        "NamespaceContentRemaining",
        ["ContentRemoved", "SomeResourcesRemain"],
        !remaining.objects.is_empty(),
        [
            "All content successfully removed".to_owned(),
            format!("Some resources are remaining: {objects}"),
        ],
    );
    let finalizers = describe(&remaining.finalizers, "in", "resource instances");
    set(
        "NamespaceFinalizersRemaining",
        ["ContentHasNoFinalizers", "SomeFinalizersRemain"],
        !remaining.finalizers.is_empty(),
        [
            "All content-preserving finalizers finished".to_owned(),
            format!("Some content in the namespace has finalizers remaining: {finalizers}"),
        ],
    );
    status_patch(
        Kind::Namespace,
        &namespace.metadata,
        namespace.status.as_ref(),
        &status,
    )
}

fn set(status: &mut NamespaceStatus, mut condition: NamespaceCondition) {
    let conditions = status.conditions.get_or_insert_default();
    let Some(known) = conditions.iter_mut().find(|it| it.type_ == condition.type_) else {
        conditions.push(condition);
        return;
    };
    if known.status == condition.status {
        condition
            .last_transition_time
            .clone_from(&known.last_transition_time);
    }
    *known = condition;
}

#[cfg(test)]
mod tests;
