//! The steps of a rolling update.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::{Rollout, available, is_recreate, replicas, scale};
use crate::write::Write;

/// How large the new ReplicaSet may be: all replicas, as far as the surge allows beside the old ones.
pub(super) fn new_size(rollout: &Rollout<'_>, new: Option<&ReplicaSet>) -> i32 {
    let wanted = rollout.replicas();
    if is_recreate(rollout.spec) {
        return wanted;
    }
    let now = new.map_or(0, replicas);
    let total: i32 = rollout.all().map(|set| replicas(set)).sum();
    let most = wanted.saturating_add(rollout.max_surge());
    if total >= most {
        return now;
    }
    (now + (most - total)).min(wanted).max(now)
}

/// Moves the new ReplicaSet towards the wanted size.
pub(super) fn scale_up(rollout: &Rollout<'_>, new: &Arc<ReplicaSet>) -> Vec<Write> {
    let (now, wanted) = (replicas(new), rollout.replicas());
    let size = if now > wanted {
        wanted
    } else {
        new_size(rollout, Some(new))
    };
    if size == now {
        Vec::new()
    } else {
        scale::to(rollout, new, size)
    }
}

/// Shrinks the old ReplicaSets as far as enough pods stay available: first what is not healthy, then the rest.
pub(super) fn scale_down(rollout: &Rollout<'_>, new: &ReplicaSet) -> Vec<Write> {
    let mut old: Vec<(&Arc<ReplicaSet>, i32)> =
        rollout.old.iter().map(|set| (set, replicas(set))).collect();
    let total: i32 = rollout.all().map(|set| replicas(set)).sum();
    let least = rollout.replicas() - rollout.max_unavailable();
    let new_missing = replicas(new) - available(new);
    let mut may_go = total - least - new_missing;
    if may_go <= 0 || old.iter().all(|(_, size)| *size == 0) {
        return Vec::new();
    }
    for (set, size) in &mut old {
        let unhealthy = (*size - available(set)).max(0).min(may_go);
        *size -= unhealthy;
        may_go -= unhealthy;
    }
    let mut spare = rollout.all().map(|set| available(set)).sum::<i32>() - least;
    for (_, size) in &mut old {
        let gone = (*size).min(spare.max(0));
        *size -= gone;
        spare -= gone;
    }
    old.into_iter()
        .filter(|(set, size)| *size != replicas(set))
        .flat_map(|(set, size)| scale::to(rollout, set, size))
        .collect()
}
