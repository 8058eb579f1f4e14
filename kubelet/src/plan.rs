//! From a pod (wanted) and the facts (observed) to what has to be done next. Pure.
//!
//! The plan is level-triggered: it is computed anew after each event from everything known, and names
//! only steps that nobody is at. Applying it until it is empty leads to the wanted state.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::backoff::Backoff;
use crate::observed::{self, Observed};
use crate::pod::{self, RestartPolicy, Role};
use crate::soft::{Soft, Step};
use crate::status;

mod terminate;
#[cfg(test)]
mod tests;

/// After SIGTERM a container always gets this long, also when its hook used up the grace period
/// (upstream: minimumGracePeriodInSeconds).
pub const GRACE_MIN: SignedDuration = SignedDuration::from_secs(2);

/// Everything a decision may look at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The pod as the API has it.
    pub pod: &'a Pod,
    /// What the runtime says.
    pub observed: &'a Observed,
    /// What the kubelet remembers.
    pub soft: &'a Soft,
    /// The time.
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make the pod's cgroup, volumes and /etc files.
    MountVolumes,
    /// Make the sandbox and its network.
    CreateSandbox,
    /// Take down the network and the sandbox.
    RemoveSandbox,
    /// Make and start a container.
    StartContainer {
        /// Name in the spec.
        name: String,
        /// Number of this run.
        attempt: u32,
    },
    /// Begin to end a container: preStop hook first.
    BeginKill {
        /// The container's id.
        id: String,
        /// For the Killing event.
        message: String,
        /// Until SIGKILL.
        grace: Duration,
    },
    /// The deadline of a kill came nearer.
    Hasten {
        /// The container's id.
        id: String,
        /// The new one.
        deadline: Timestamp,
    },
    /// Send SIGTERM (or the stop signal).
    SignalTerm {
        /// The container's id.
        id: String,
    },
    /// Send SIGKILL.
    SignalKill {
        /// The container's id.
        id: String,
    },
    /// Forget a dead container.
    RemoveContainer {
        /// The container's id.
        id: String,
    },
    /// The pod as a whole failed; its containers must end.
    FailPod {
        /// status.reason
        reason: &'static str,
        /// status.message
        message: String,
    },
    /// Unmount and remove what the pod has on this node.
    Cleanup,
    /// Remove the API object (the pod has really ended).
    DeletePod,
}

/// What to do, and when to look again if nothing happens before.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// All may be begun at once.
    pub actions: Vec<Action>,
    /// Look again then.
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wake_at(&mut self, at: Option<Timestamp>) {
        self.wake = match (self.wake, at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

/// What to do next for this pod.
pub fn plan(view: View<'_>) -> Plan {
    let mut plan = Plan::default();
    if view.soft.gone || pod::is_deleting(view.pod) {
        terminate::plan_end(view, &mut plan);
    } else if view.soft.failed.is_some() || status::is_finished(view) {
        terminate::plan_finished(view, &mut plan);
    } else {
        plan_run(view, &mut plan);
    }
    plan_kills(view, &mut plan);
    plan
}

fn plan_run(view: View<'_>, plan: &mut Plan) {
    plan_active_deadline(view, plan);
    remove_old_runs(view, plan);
    let Soft {
        volumes, sandbox, ..
    } = view.soft;
    if volumes.may_begin(view.now) {
        plan.push(Action::MountVolumes);
    }
    plan.wake_at(volumes.retry_at().filter(|at| *at > view.now));
    match &view.observed.sandbox {
        Some(sb) if sb.ready => {}
        // A sandbox that died takes its containers along; all begin anew in the next one.
        Some(_) if sandbox.may_begin(view.now) || *sandbox == Step::Done => {
            kill_all(
                view,
                plan,
                "Pod sandbox changed, it will be killed and re-created.",
            );
            if !view.observed.any_running() {
                plan.push(Action::RemoveSandbox);
            }
            return;
        }
        None if sandbox.may_begin(view.now) || *sandbox == Step::Done => {
            plan.push(Action::CreateSandbox);
            return;
        }
        Some(_) | None => {
            plan.wake_at(sandbox.retry_at());
            return;
        }
    }
    if *volumes == Step::Done && *sandbox != Step::Running {
        plan_containers(view, plan);
    }
}

/// spec.activeDeadlineSeconds counts from status.startTime.
fn plan_active_deadline(view: View<'_>, plan: &mut Plan) {
    let Some(limit) = pod::spec(view.pod).active_deadline_seconds else {
        return;
    };
    let status = view.pod.status.as_ref();
    let Some(start) = status.and_then(|s| s.start_time.as_ref()) else {
        return;
    };
    let end = start.0 + SignedDuration::from_secs(limit);
    if end <= view.now {
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        let reason = "DeadlineExceeded";
        plan.push(Action::FailPod { reason, message });
    } else {
        plan.wake_at(Some(end));
    }
}

/// Of the dead runs of a container only the newest is kept, for `logs --previous` and lastState.
fn remove_old_runs(view: View<'_>, plan: &mut Plan) {
    for run in &view.observed.containers {
        let newest = view.observed.last_exit(&run.name, u32::MAX);
        let old = run.exit().is_some() && newest.is_some_and(|n| n.attempt > run.attempt);
        if old && removal_may_begin(view, &run.id) {
            plan.push(Action::RemoveContainer { id: run.id.clone() });
        }
    }
}

fn removal_may_begin(view: View<'_>, id: &str) -> bool {
    let step = view.soft.removals.get(id);
    step.is_none_or(|s| s.may_begin(view.now))
}

/// The run of `name` that counts: the newest one, if it was made in the sandbox that stands.
pub(crate) fn current<'a>(view: &View<'a>, name: &str) -> Option<&'a observed::Container> {
    let sandbox = view.observed.sandbox.as_ref();
    let run = view.observed.latest(name)?;
    sandbox
        .is_none_or(|sb| sb.id == run.sandbox_id)
        .then_some(run)
}

fn plan_containers(view: View<'_>, plan: &mut Plan) {
    for (container, _) in pod::all_containers(view.pod) {
        if let Some(run) = current(&view, &container.name) {
            kill_if_wrong(view, plan, container, run);
        }
    }
    let apps_begun = pod::app_containers(view.pod)
        .iter()
        .any(|c| current(&view, &c.name).is_some());
    for (container, role) in pod::init_containers(view.pod) {
        match role {
            Role::Sidecar => {
                start_if_needed(view, plan, container, RestartPolicy::Always);
                if !apps_begun && !is_started(&view, &container.name) {
                    return;
                }
            }
            _ if apps_begun => {}
            _ => {
                let done = current(&view, &container.name)
                    .and_then(observed::Container::exit)
                    .is_some_and(|e| e.code == 0);
                if !done {
                    // An init container that failed is tried again also under Always.
                    let policy = match pod::restart_policy(view.pod) {
                        RestartPolicy::Never => RestartPolicy::Never,
                        _ => RestartPolicy::OnFailure,
                    };
                    start_if_needed(view, plan, container, policy);
                    return;
                }
            }
        }
    }
    let policy = pod::restart_policy(view.pod);
    for container in pod::app_containers(view.pod) {
        start_if_needed(view, plan, container, policy);
    }
}

/// The container runs, its postStart hook is done and its startup probe has succeeded.
pub(crate) fn is_started(view: &View<'_>, name: &str) -> bool {
    current(view, name).is_some_and(|run| {
        let health = view.soft.health.get(&run.id);
        run.is_running() && health.is_some_and(|h| h.started && !h.post_start_running)
    })
}

fn kill_if_wrong(
    view: View<'_>,
    plan: &mut Plan,
    container: &Container,
    run: &observed::Container,
) {
    if !run.is_running() || view.soft.kills.contains_key(&run.id) {
        return;
    }
    let name = &container.name;
    let health = view.soft.health.get(&run.id);
    let (message, grace) = if let Some(bad) = health.and_then(|h| h.unhealthy.as_ref()) {
        let own = bad
            .grace_seconds
            .map(|s| Duration::from_secs(s.max(1).unsigned_abs()));
        (bad.message.clone(), own)
    } else if container.image.as_deref().is_some_and(|i| i != run.image) {
        let message = format!("Container {name} definition changed, will be restarted");
        (message, None)
    } else {
        return;
    };
    plan.push(Action::BeginKill {
        id: run.id.clone(),
        message,
        grace: grace.unwrap_or_else(|| pod::grace(view.pod)),
    });
}

fn start_if_needed(view: View<'_>, plan: &mut Plan, container: &Container, policy: RestartPolicy) {
    let name = &container.name;
    let step = view.soft.starts.get(name);
    if let Some(step) = step.filter(|s| !s.may_begin(view.now)) {
        plan.wake_at(step.retry_at());
        return;
    }
    let attempt = next_attempt(&view, name);
    let start = Action::StartContainer {
        name: name.clone(),
        attempt,
    };
    let Some(run) = current(&view, name) else {
        let ended_well = view.observed.latest(name).and_then(|r| r.exit());
        let done =
            ended_well.is_some_and(|e| !wants_restart(policy, e.code)) && !is_init(&view, name);
        if !done {
            plan.push(start);
        }
        return;
    };
    match &run.state {
        observed::State::Running { .. } => {}
        // The kubelet died between making and starting it; the next run takes its place.
        observed::State::Created => {
            if removal_may_begin(view, &run.id) {
                plan.push(Action::RemoveContainer { id: run.id.clone() });
            }
        }
        observed::State::Exited(exit) => {
            if !wants_restart(policy, exit.code) {
                return;
            }
            let ended = exit.finished.unwrap_or(view.now);
            match Backoff::until(view.soft.backoff.get(name), ended, view.now) {
                Some(until) => plan.wake_at(Some(until)),
                None => plan.push(start),
            }
        }
    }
}

/// One more than the last run's number; after a reboot the API may be all that knows of runs.
fn next_attempt(view: &View<'_>, name: &str) -> u32 {
    if let Some(latest) = view.observed.latest(name) {
        return latest.attempt + 1;
    }
    let status = view.pod.status.as_ref();
    let lists = status.map(|s| [&s.container_statuses, &s.init_container_statuses]);
    let mut all = lists.into_iter().flatten().flatten().flatten();
    let shown = all.find(|s| s.name == name && s.container_id.is_some());
    shown.map_or(0, |s| u32::try_from(s.restart_count).unwrap_or(0) + 1)
}

fn is_init(view: &View<'_>, name: &str) -> bool {
    pod::container(view.pod, name).is_some_and(|(_, role)| role == Role::Init)
}

/// Whether a container that ended with `code` is started again.
pub(crate) fn wants_restart(policy: RestartPolicy, code: i32) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Never => false,
    }
}

fn kill_all(view: View<'_>, plan: &mut Plan, message: &str) {
    for run in view.observed.containers.iter().filter(|c| c.is_running()) {
        if !view.soft.kills.contains_key(&run.id) {
            plan.push(Action::BeginKill {
                id: run.id.clone(),
                message: message.to_owned(),
                grace: pod::grace(view.pod),
            });
        }
    }
}

/// The next signal of every kill under way.
fn plan_kills(view: View<'_>, plan: &mut Plan) {
    for (id, kill) in &view.soft.kills {
        let running = view.observed.by_id(id).is_some_and(|c| c.is_running());
        if !running {
            continue;
        }
        let late = kill.deadline <= view.now;
        if !kill.term_sent && (!kill.hook_running || late) {
            plan.push(Action::SignalTerm { id: id.clone() });
        } else if kill.term_sent && !kill.kill_sent && late {
            plan.push(Action::SignalKill { id: id.clone() });
        } else if !late {
            plan.wake_at(Some(kill.deadline));
        }
    }
}
