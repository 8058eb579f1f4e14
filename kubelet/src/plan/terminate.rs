//! The end of a pod: containers first, sidecars after them in reverse order, then network and sandbox,
//! then what lies on disk, then the API object.

use std::time::Duration;

use super::{Action, GRACE_MIN, Plan, View, removal_may_begin};
use crate::observed::Container;
use crate::pod::{self, Role};
use crate::soft::Step;

/// The pod is deleted (or gone already).
pub(super) fn plan_end(view: View<'_>, plan: &mut Plan) {
    if !stop_containers(view, plan, "Stopping container") || !drop_sandbox(view, plan) {
        return;
    }
    if view.soft.gone {
        for run in &view.observed.containers {
            if removal_may_begin(view, &run.id) {
                plan.push(Action::RemoveContainer { id: run.id.clone() });
            }
        }
        if !view.observed.containers.is_empty() {
            return;
        }
    }
    if view.soft.cleanup != Step::Done {
        begin(view, plan, &view.soft.cleanup, Action::Cleanup);
    } else if !view.soft.gone && view.soft.delete != Step::Done {
        begin(view, plan, &view.soft.delete, Action::DeletePod);
    }
}

/// The pod ran to its end by itself, or failed as a whole; its object stays.
pub(super) fn plan_finished(view: View<'_>, plan: &mut Plan) {
    let ended = stop_containers(view, plan, "Stopping container") && drop_sandbox(view, plan);
    if ended && view.soft.cleanup != Step::Done {
        begin(view, plan, &view.soft.cleanup, Action::Cleanup);
    }
}

fn begin(view: View<'_>, plan: &mut Plan, step: &Step, action: Action) {
    if step.may_begin(view.now) {
        plan.push(action);
    } else {
        plan.wake_at(step.retry_at());
    }
}

/// Ends what runs; true when nothing does and nothing is about to.
fn stop_containers(view: View<'_>, plan: &mut Plan, verb: &str) -> bool {
    let sidecars: Vec<_> = pod::init_containers(view.pod)
        .filter(|(_, role)| *role == Role::Sidecar)
        .map(|(c, _)| c.name.as_str())
        .collect();
    let order = |c: &Container| sidecars.iter().position(|s| *s == c.name);
    let running = || view.observed.containers.iter().filter(|c| c.is_running());
    let starting = view.soft.starts.values().any(|s| *s == Step::Running);
    let apps_run = running().any(|c| order(c).is_none());
    let last_sidecar = running().filter_map(order).max();
    for run in running() {
        let turn = match order(run) {
            None => true,
            Some(i) => !apps_run && Some(i) == last_sidecar,
        };
        match view.soft.kills.get(&run.id) {
            None if turn => plan.push(Action::BeginKill {
                id: run.id.clone(),
                message: format!("{verb} {}", run.name),
                grace: grace_left(view),
            }),
            None => {}
            Some(kill) => {
                let end_by = view.soft.end_by.map(|end| end.max(view.now + GRACE_MIN));
                let sooner = end_by.filter(|end| *end < kill.deadline && !kill.kill_sent);
                if let Some(deadline) = sooner {
                    let id = run.id.clone();
                    plan.push(Action::Hasten { id, deadline });
                }
            }
        }
    }
    running().next().is_none() && !starting
}

fn grace_left(view: View<'_>) -> Duration {
    let Some(end_by) = view.soft.end_by else {
        return pod::grace(view.pod);
    };
    Duration::try_from(end_by.duration_since(view.now)).unwrap_or_default()
}

/// Removes the sandbox and its network; true when there is none.
fn drop_sandbox(view: View<'_>, plan: &mut Plan) -> bool {
    let step = &view.soft.sandbox;
    if view.observed.sandbox.is_none() {
        return *step != Step::Running;
    }
    if step.may_begin(view.now) || *step == Step::Done {
        plan.push(Action::RemoveSandbox);
    } else {
        plan.wake_at(step.retry_at());
    }
    false
}
