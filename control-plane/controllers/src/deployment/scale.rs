//! Sizes of ReplicaSets.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::{Value, json};

use super::{
    COMPONENT, MAX_REPLICAS, Rollout, available, is_recreate, replicas, revision, set_patch,
};
use crate::kinds::Kind;
use crate::meta;
use crate::note::Note;
use crate::write::Write;

/// Sets the size of a ReplicaSet and says so.
pub(super) fn to(rollout: &Rollout<'_>, set: &ReplicaSet, size: i32) -> Vec<Write> {
    let annotations = Value::Object(revision::sizes(rollout));
    let mut writes = vec![set_patch(
        set,
        Some(annotations),
        Some(json!({"replicas": size})),
    )];
    let before = replicas(set);
    if before != size {
        let direction = if size > before { "up" } else { "down" };
        let name = meta::name(&set.metadata);
        let text = format!("Scaled {direction} replica set {name} from {before} to {size}");
        let meta = &rollout.deployment.metadata;
        let note = Note::new(Kind::Deployment, meta, COMPONENT, "ScalingReplicaSet", text);
        writes.push(Write::Event(note));
    }
    writes
}

/// Brings the sizes in line with a new wanted number without moving the rollout on: the only active ReplicaSet gets
/// it all, several share the difference by their sizes.
pub(super) fn proportionally(rollout: &Rollout<'_>) -> Vec<Write> {
    let wanted = rollout.replicas();
    let active: Vec<&Arc<ReplicaSet>> = rollout.all().filter(|set| replicas(set) > 0).collect();
    let single = match active.as_slice() {
        [] => rollout.new.as_ref().or_else(|| rollout.old.last()),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(set) = single {
        let stale =
            meta::annotation(&set.metadata, super::DESIRED_REPLICAS) != Some(&wanted.to_string());
        return if replicas(set) == wanted && !stale {
            Vec::new()
        } else {
            to(rollout, set, wanted)
        };
    }
    if let Some(new) = rollout
        .new
        .as_ref()
        .filter(|new| is_saturated(rollout, new))
    {
        let old = rollout.old.iter().filter(|set| replicas(set) > 0);
        let mut writes: Vec<Write> = old.flat_map(|set| to(rollout, set, 0)).collect();
        writes.extend(to(rollout, new, replicas(new)));
        return writes;
    }
    if is_recreate(rollout.spec) {
        return Vec::new();
    }
    share(rollout, active)
}

fn is_saturated(rollout: &Rollout<'_>, new: &ReplicaSet) -> bool {
    let desired = meta::annotation(&new.metadata, super::DESIRED_REPLICAS)
        .and_then(|text| text.parse::<i32>().ok());
    let wanted = rollout.replicas();
    replicas(new) == wanted && desired == Some(wanted) && available(new) == wanted
}

fn share(rollout: &Rollout<'_>, mut active: Vec<&Arc<ReplicaSet>>) -> Vec<Write> {
    let wanted = rollout.replicas();
    let allowed = if wanted > 0 {
        wanted.saturating_add(rollout.max_surge())
    } else {
        0
    };
    let total: i32 = active.iter().map(|set| replicas(set)).sum();
    let to_add = allowed - total;
    // The larger first; of equals the newer when growing, the older when shrinking.
    active.sort_by(|a, b| {
        let by_age = a
            .metadata
            .creation_timestamp
            .cmp(&b.metadata.creation_timestamp);
        replicas(b)
            .cmp(&replicas(a))
            .then(if to_add > 0 { by_age.reverse() } else { by_age })
    });
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::new();
    for set in &active {
        let part = proportion(rollout, set, to_add, added);
        sizes.push(replicas(set) + part);
        added += part;
    }
    // Rounding leaves a rest: it goes to the largest.
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    active
        .into_iter()
        .zip(sizes)
        .flat_map(|(set, size)| to(rollout, set, size.max(0)))
        .collect()
}

fn proportion(rollout: &Rollout<'_>, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if replicas(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let part = fraction(rollout, set);
    let left = to_add - added;
    if to_add > 0 {
        part.min(left)
    } else {
        part.max(left)
    }
}

/// The set's part of the new total, by its part of the total it was sized for.
fn fraction(rollout: &Rollout<'_>, set: &ReplicaSet) -> i32 {
    let wanted = rollout.replicas();
    if wanted == 0 {
        return -replicas(set);
    }
    let most = i64::from(wanted.saturating_add(rollout.max_surge()));
    let before = meta::annotation(&set.metadata, MAX_REPLICAS)
        .and_then(|text| text.parse::<i64>().ok())
        .filter(|most| *most > 0)
        .unwrap_or(most);
    let size = i64::from(replicas(set));
    let rounded = (size * most * 2 + before).div_euclid(before * 2);
    i32::try_from(rounded - size).unwrap_or(0)
}
