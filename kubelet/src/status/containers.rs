//! status.containerStatuses and status.initContainerStatuses.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, PodStatus,
};

use super::seconds;
use crate::backoff::Backoff;
use crate::observed::{self, Exit, State};
use crate::plan::{View, wants_restart};
use crate::pod::{self, PodId, RestartPolicy, Role};
use crate::soft::Step;

pub(crate) use k8s_openapi::api::core::v1::ContainerStatus as Status;

/// How many app containers are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Run now.
    pub running: usize,
    /// Wait for their first run.
    pub waiting: usize,
    /// Have ended (and perhaps wait for the next run).
    pub stopped: usize,
    /// Of those, with exit code 0.
    pub succeeded: usize,
}

impl Tally {
    pub(super) fn of(statuses: &[Status]) -> Self {
        let mut tally = Self::default();
        for status in statuses {
            let state = status.state.as_ref();
            let ended = |s: Option<&ContainerState>| {
                s.and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code)
            };
            if state.is_some_and(|s| s.running.is_some()) {
                tally.running += 1;
            } else if let Some(code) = ended(state) {
                tally.stopped += 1;
                tally.succeeded += usize::from(code == 0);
            } else if ended(status.last_state.as_ref()).is_some() {
                tally.stopped += 1;
            } else {
                tally.waiting += 1;
            }
        }
        tally
    }
}

/// How far initialization is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct InitState {
    /// Some init container has yet to end well (or a sidecar to start).
    pub pending: bool,
    /// Some init container ended with an error and is not tried again.
    pub failed: bool,
    /// Names of those not done.
    pub incomplete: Vec<String>,
}

pub(super) fn init_state(view: View<'_>, statuses: &[Status]) -> InitState {
    let mut state = InitState::default();
    // Once an app container was made, initialization is over for good.
    let apps = pod::app_containers(view.pod);
    if apps.iter().any(|c| view.observed.latest(&c.name).is_some()) {
        return state;
    }
    for ((_, role), status) in pod::init_containers(view.pod).zip(statuses) {
        let code = status
            .state
            .as_ref()
            .and_then(|s| s.terminated.as_ref())
            .map(|t| t.exit_code);
        let done = match role {
            Role::Sidecar => status.started == Some(true),
            _ => code == Some(0),
        };
        if !done {
            state.pending = true;
            state.failed |= role == Role::Init && code.is_some();
            state.incomplete.push(status.name.clone());
        }
    }
    state
}

/// One entry of containerStatuses.
pub(super) fn status(view: View<'_>, c: &Container, role: Role, before: &PodStatus) -> Status {
    let run = view.observed.latest(&c.name);
    let health = run.and_then(|r| view.soft.health.get(&r.id));
    let started = health.is_some_and(|h| h.started && !h.post_start_running);
    let (state, last) = states(view, c, role, run);
    if run.is_none() {
        // An ended container whose record is lost keeps what was shown of it.
        let shown = [&before.container_statuses, &before.init_container_statuses];
        let mut shown = shown.into_iter().flatten().flatten();
        let kept = shown
            .find(|s| s.name == c.name && s.state.as_ref().is_some_and(|s| s.terminated.is_some()));
        if let Some(kept) = kept {
            return kept.clone();
        }
    }
    let running = state.running.is_some();
    let ready = match role {
        Role::Init => state.terminated.as_ref().is_some_and(|t| t.exit_code == 0),
        Role::Sidecar | Role::App => running && started && health.is_some_and(|h| h.ready),
    };
    Status {
        name: c.name.clone(),
        image: c.image.clone().unwrap_or_default(),
        image_id: run.map(|r| r.image_id.clone()).unwrap_or_default(),
        container_id: run.map(|r| container_id(&r.id)),
        restart_count: run.map_or(0, |r| i32::try_from(r.attempt).unwrap_or(i32::MAX)),
        started: Some(running && (started || role == Role::Init)),
        ready,
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        ..Status::default()
    }
}

/// A container id as the API shows it.
pub fn container_id(id: &str) -> String {
    format!("seaway://{id}")
}

fn states(
    view: View<'_>,
    c: &Container,
    role: Role,
    run: Option<&observed::Container>,
) -> (ContainerState, Option<ContainerState>) {
    let ended = |run: &observed::Container| run.exit().map(|e| terminated(&run.id, e));
    let before = |run: &observed::Container| {
        let last = view.observed.last_exit(&c.name, run.attempt);
        last.and_then(ended)
    };
    let ending = view.soft.gone || pod::is_deleting(view.pod) || view.soft.failed.is_some();
    if !ending && let Some(Step::Failed(failure)) = view.soft.starts.get(&c.name) {
        let last = run.and_then(|r| ended(r).or_else(|| before(r)));
        return (waiting(failure.reason, Some(failure.message.clone())), last);
    }
    let Some(run) = run else {
        let initializing = role == Role::App && spec_has_init(view);
        let reason = if initializing {
            "PodInitializing"
        } else {
            "ContainerCreating"
        };
        return (waiting(reason, None), None);
    };
    match &run.state {
        State::Created => (waiting("ContainerCreating", None), before(run)),
        State::Running { started } => {
            let running = ContainerStateRunning {
                started_at: Some(seconds(*started)),
            };
            let state = ContainerState {
                running: Some(running),
                ..ContainerState::default()
            };
            (state, before(run))
        }
        State::Exited(exit) => {
            if let Some(message) = back_off(view, c, role, exit).filter(|_| !ending) {
                return (waiting("CrashLoopBackOff", Some(message)), ended(run));
            }
            (terminated(&run.id, exit), before(run))
        }
    }
}

fn spec_has_init(view: View<'_>) -> bool {
    pod::init_containers(view.pod).next().is_some()
}

/// The CrashLoopBackOff message while the next run has to wait.
fn back_off(view: View<'_>, c: &Container, role: Role, exit: &Exit) -> Option<String> {
    let policy = match (role, pod::restart_policy(view.pod)) {
        (Role::Sidecar, _) => RestartPolicy::Always,
        (Role::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
        (_, policy) => policy,
    };
    if view.soft.starts.get(&c.name) == Some(&Step::Running) {
        return None;
    }
    let state = view.soft.backoff.get(&c.name)?;
    let ended = exit.finished?;
    if !wants_restart(policy, exit.code) {
        return None;
    }
    Backoff::until(Some(state), ended, view.now)?;
    let id = PodId::of(view.pod);
    Some(format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        go_duration(state.delay.as_secs()),
        c.name,
        id.name,
        id.namespace,
        id.uid
    ))
}

/// Seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_duration(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ContainerState::default()
    }
}

fn terminated(id: &str, exit: &Exit) -> ContainerState {
    let reason = match &exit.reason {
        Some(reason) => reason.as_str(),
        None if exit.oom => "OOMKilled",
        None if exit.code == 0 => "Completed",
        None => "Error",
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(container_id(id)),
            exit_code: exit.code,
            reason: Some(reason.to_owned()),
            message: exit.message.clone().filter(|m| !m.is_empty()),
            started_at: exit.started.map(seconds),
            finished_at: exit.finished.map(seconds),
            signal: None,
        }),
        ..ContainerState::default()
    }
}
