//! The status of a deployment: counts, and the conditions that `kubectl rollout status` waits for.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Rollout, available, replicas};
use crate::kinds::Kind;
use crate::meta;
use crate::view::Now;
use crate::write::{Plan, Write, status_patch};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

fn condition(
    kind: &str,
    status: bool,
    reason: &str,
    message: String,
    now: Now,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now.wall)),
        last_transition_time: Some(Time(now.wall)),
    }
}

fn get<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind)
}

fn reason(condition: Option<&DeploymentCondition>) -> &str {
    condition
        .and_then(|condition| condition.reason.as_deref())
        .unwrap_or_default()
}

/// Puts a condition in; the same status and reason as before is no change, and a kept status keeps its time.
fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(known) = get(status, &condition.type_) {
        if known.status == condition.status && known.reason == condition.reason {
            return;
        }
        if known.status == condition.status {
            condition
                .last_transition_time
                .clone_from(&known.last_transition_time);
        }
    }
    remove(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

fn current(rollout: &Rollout<'_>) -> DeploymentStatus {
    rollout.deployment.status.clone().unwrap_or_default()
}

fn patch(rollout: &Rollout<'_>, status: &DeploymentStatus) -> Option<Write> {
    let deployment = rollout.deployment;
    status_patch(
        Kind::Deployment,
        &deployment.metadata,
        deployment.status.as_ref(),
        status,
    )
}

/// `None` when progress has no deadline.
fn deadline(rollout: &Rollout<'_>) -> Option<SignedDuration> {
    let seconds = rollout.spec.progress_deadline_seconds.unwrap_or(600);
    (seconds != i32::MAX).then(|| SignedDuration::from_secs(i64::from(seconds)))
}

fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn total(rollout: &Rollout<'_>, of: impl Fn(&ReplicaSet) -> i32) -> i32 {
    rollout.all().map(|set| of(set)).sum()
}

fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

fn counts(rollout: &Rollout<'_>, now: Now) -> DeploymentStatus {
    let mut status = current(rollout);
    let ready = |set: &ReplicaSet| {
        set.status
            .as_ref()
            .and_then(|it| it.ready_replicas)
            .unwrap_or(0)
    };
    let available = total(rollout, available);
    status.observed_generation = rollout.deployment.metadata.generation;
    status.replicas = some(total(rollout, actual));
    status.updated_replicas = some(rollout.new.as_ref().map_or(0, |set| actual(set)));
    status.ready_replicas = some(total(rollout, ready));
    status.available_replicas = some(available);
    status.unavailable_replicas = some((total(rollout, replicas) - available).max(0));
    let enough = available >= rollout.replicas() - rollout.max_unavailable();
    let (reason, text) = if enough {
        (
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    set(
        &mut status,
        condition(AVAILABLE, enough, reason, text.to_owned(), now),
    );
    status
}

fn complete(rollout: &Rollout<'_>, status: &DeploymentStatus) -> bool {
    let wanted = rollout.replicas();
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= rollout.deployment.metadata.generation
}

/// Every replica is of the current template and available, by the status the deployment has.
pub(super) fn is_complete(rollout: &Rollout<'_>) -> bool {
    complete(rollout, &current(rollout))
}

fn progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let updated = |status: &DeploymentStatus| status.updated_replicas.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - updated(status);
    updated(new) > updated(old)
        || outdated(new) < outdated(old)
        || new.ready_replicas.unwrap_or(0) > old.ready_replicas.unwrap_or(0)
        || new.available_replicas.unwrap_or(0) > old.available_replicas.unwrap_or(0)
}

/// Brings the counts up to date and leaves progress alone: nothing is rolled out.
pub(super) fn counted(rollout: &Rollout<'_>, now: Now) -> Option<Write> {
    patch(rollout, &counts(rollout, now))
}

/// Brings the status up to date, and says when to look again at a rollout that makes no progress.
pub(super) fn sync(rollout: &Rollout<'_>, now: Now) -> Plan {
    let old = current(rollout);
    let mut status = counts(rollout, now);
    let limit = deadline(rollout);
    if limit.is_none() {
        remove(&mut status, PROGRESSING);
    }
    let done = status.replicas == status.updated_replicas
        && reason(get(&status, PROGRESSING)) == NEW_AVAILABLE;
    if limit.is_some() && !done {
        progress(rollout, &old, &mut status, now);
    }
    match failure(rollout) {
        Some(failed) => set(&mut status, failed),
        None => remove(&mut status, REPLICA_FAILURE),
    }
    let mut plan = Plan::of(patch(rollout, &status).into_iter().collect());
    let waiting = !matches!(reason(get(&status, PROGRESSING)), NEW_AVAILABLE | TIMED_OUT);
    if waiting && let Some(at) = due(&status, limit) {
        let wait = Duration::try_from(at.duration_since(now.wall)).unwrap_or_default();
        // Times are written in whole seconds: look when the deadline has surely passed.
        plan.again_in(wait + Duration::from_secs(1));
    }
    plan
}

fn progress(
    rollout: &Rollout<'_>,
    old: &DeploymentStatus,
    status: &mut DeploymentStatus,
    now: Now,
) {
    let subject = || match &rollout.new {
        Some(set) => format!("ReplicaSet \"{}\"", meta::name(&set.metadata)),
        None => format!(
            "Deployment \"{}\"",
            meta::name(&rollout.deployment.metadata)
        ),
    };
    if complete(rollout, status) {
        let text = format!("{} has successfully progressed.", subject());
        set(
            status,
            condition(PROGRESSING, true, NEW_AVAILABLE, text, now),
        );
    } else if progressed(old, status) {
        let text = format!("{} is progressing.", subject());
        let mut moved = condition(PROGRESSING, true, "ReplicaSetUpdated", text, now);
        if let Some(known) = get(status, PROGRESSING)
            && known.status == "True"
        {
            moved
                .last_transition_time
                .clone_from(&known.last_transition_time);
        }
        // The same reason again is news here: its update time is what the deadline counts from.
        remove(status, PROGRESSING);
        set(status, moved);
    } else if timed_out(rollout, status, now) {
        let text = format!("{} has timed out progressing.", subject());
        set(status, condition(PROGRESSING, false, TIMED_OUT, text, now));
    }
}

fn due(status: &DeploymentStatus, limit: Option<SignedDuration>) -> Option<Timestamp> {
    let since = get(status, PROGRESSING)?.last_update_time.as_ref()?.0;
    since.checked_add(limit?).ok()
}

fn timed_out(rollout: &Rollout<'_>, status: &DeploymentStatus, now: Now) -> bool {
    let known = get(status, PROGRESSING);
    match reason(known) {
        _ if known.is_none() => false,
        NEW_AVAILABLE => false,
        TIMED_OUT => true,
        _ => due(status, deadline(rollout)).is_some_and(|at| at < now.wall),
    }
}

/// The ReplicaFailure condition of a ReplicaSet, the newest one's first.
fn failure(rollout: &Rollout<'_>) -> Option<DeploymentCondition> {
    rollout
        .new
        .iter()
        .chain(rollout.old.iter().rev())
        .find_map(|set| {
            let conditions = set.status.as_ref()?.conditions.as_ref()?;
            let failed = conditions.iter().find(|it| it.type_ == REPLICA_FAILURE)?;
            Some(DeploymentCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: failed.status.clone(),
                reason: failed.reason.clone(),
                message: failed.message.clone(),
                last_update_time: failed.last_transition_time.clone(),
                last_transition_time: failed.last_transition_time.clone(),
            })
        })
}

/// Tells that progress is not counted while the deployment is paused, and that it is again.
pub(super) fn paused_condition(rollout: &Rollout<'_>, now: Now) -> Option<Write> {
    deadline(rollout)?;
    let mut status = current(rollout);
    let known = reason(get(&status, PROGRESSING));
    // A rollout that has failed stays failed.
    if known == TIMED_OUT {
        return None;
    }
    let paused = rollout.spec.paused == Some(true);
    let (reason, text) = match (paused, known == PAUSED) {
        (true, false) => (PAUSED, "Deployment is paused"),
        (false, true) => (RESUMED, "Deployment is resumed"),
        _ => return None,
    };
    let mut changed = condition(PROGRESSING, true, reason, text.to_owned(), now);
    changed.status = "Unknown".to_owned();
    set(&mut status, changed);
    patch(rollout, &status)
}

/// A ReplicaSet with the current template exists already and no progress has been told: the rollout starts with it.
pub(super) fn found_new(rollout: &Rollout<'_>, new: &ReplicaSet, now: Now) -> Option<Write> {
    deadline(rollout)?;
    let mut status = current(rollout);
    if get(&status, PROGRESSING).is_some() {
        return None;
    }
    let text = format!("Found new replica set \"{}\"", meta::name(&new.metadata));
    set(
        &mut status,
        condition(PROGRESSING, true, "FoundNewReplicaSet", text, now),
    );
    patch(rollout, &status)
}

/// The rollout starts with a ReplicaSet that was just made.
pub(super) fn created_new(rollout: &Rollout<'_>, name: &str, now: Now) -> Option<Write> {
    deadline(rollout)?;
    let mut status = current(rollout);
    let text = format!("Created new replica set \"{name}\"");
    set(
        &mut status,
        condition(PROGRESSING, true, "NewReplicaSetCreated", text, now),
    );
    patch(rollout, &status)
}

/// The name for the new ReplicaSet is taken: the next one differs.
pub(super) fn count_collision(rollout: &Rollout<'_>, known: Option<i32>) -> Option<Write> {
    let mut status = current(rollout);
    status.collision_count = Some(known.unwrap_or(0).saturating_add(1));
    patch(rollout, &status)
}
