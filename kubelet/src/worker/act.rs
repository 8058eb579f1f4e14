//! Beginning what a plan says, and taking in how it ended.

use jiff::{SignedDuration, Timestamp};

use super::task::failed;
use super::{Outcome, Worker};
use crate::backoff::Backoff;
use crate::events::Severity;
use crate::observed::State;
use crate::plan::{Action, GRACE_MIN};
use crate::pod;
use crate::rt::Signal;
use crate::soft::{Kill, Step};
use crate::volumes;

/// Wait before the runtime is asked again what there is, when it could not say.
const FACTS_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

impl Worker {
    pub(super) fn begin(&mut self, action: Action, now: Timestamp) {
        tracing::debug!(pod = %self.id, ?action, "begin");
        match action {
            Action::MountVolumes => self.begin_volumes(),
            Action::CreateSandbox => self.begin_sandbox(),
            Action::RemoveSandbox => self.begin_sandbox_removal(),
            Action::StartContainer { name, attempt } => self.begin_start(&name, attempt, now),
            Action::BeginKill { id, message, grace } => {
                let grace = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
                self.begin_kill(&id, &message, now + grace);
            }
            Action::Hasten { id, deadline } => {
                if let Some(kill) = self.soft.kills.get_mut(&id) {
                    kill.deadline = deadline;
                }
            }
            Action::SignalTerm { id } => {
                if let Some(kill) = self.soft.kills.get_mut(&id) {
                    kill.term_sent = true;
                    kill.hook_running = false;
                    kill.deadline = kill.deadline.max(now + GRACE_MIN);
                }
                self.signal(id, Signal::Term);
            }
            Action::SignalKill { id } => {
                if let Some(kill) = self.soft.kills.get_mut(&id) {
                    kill.kill_sent = true;
                }
                self.signal(id, Signal::Kill);
            }
            Action::RemoveContainer { id } => self.begin_removal(id),
            Action::FailPod { reason, message } => {
                self.event(None, Severity::Normal, reason, message.clone());
                self.soft.failed = Some((reason, message));
            }
            Action::Cleanup => {
                self.soft.cleanup = Step::Running;
                let (id, gone) = (self.id.clone(), self.soft.gone);
                self.spawn(move |ctx| Outcome::Cleaned {
                    gone,
                    result: super::sandbox::cleanup(ctx, &id, gone),
                });
            }
            Action::DeletePod => self.begin_delete(),
        }
    }

    pub(super) fn event(
        &self,
        container: Option<&str>,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let events = &self.ctx.events;
        events.pod(&self.pod, container, severity, reason, message);
    }

    fn begin_volumes(&mut self) {
        self.soft.volumes = Step::Running;
        let prepare = self.prepare_volumes();
        self.spawn_async(false, async move { Outcome::Volumes(prepare.await) });
    }

    fn prepare_volumes(&self) -> impl Future<Output = Result<volumes::Volumes, String>> + use<> {
        let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
        let facts = ctx.node.facts(&self.ips, pod::host_network(&pod));
        async move { volumes::prepare(&*ctx.api, &ctx.node.root_dir, &pod, facts).await }
    }

    /// Brings the volumes up to date when it is time; when to look again.
    pub(super) fn begin_refresh(&mut self, now: Timestamp) -> Option<Timestamp> {
        let at = self.volumes.refresh_at?;
        let ended = self.soft.gone || self.soft.cleanup != Step::Idle;
        if self.refreshing || ended || self.soft.volumes != Step::Done {
            return None;
        }
        if at > now {
            return Some(at);
        }
        self.refreshing = true;
        let prepare = self.prepare_volumes();
        self.spawn_async(false, async move { Outcome::Refreshed(prepare.await) });
        None
    }

    fn begin_start(&mut self, name: &str, attempt: u32, now: Timestamp) {
        let Some((container, _)) = pod::container(&self.pod, name) else {
            return;
        };
        let container = container.clone();
        if let Some(ended) = self.observed.latest(name).and_then(|r| r.exit()) {
            let ended = ended.finished.unwrap_or(now);
            let old = self.soft.backoff.get(name);
            let failing = matches!(self.soft.starts.get(name), Some(Step::Failed(_)));
            if !failing {
                let next = Backoff::next(old, ended, now);
                self.soft.backoff.insert(name.to_owned(), next);
            }
        }
        let before = self.soft.starts.remove(name).unwrap_or_default();
        let tries = before.tries();
        self.soft.starts.insert(name.to_owned(), Step::Running);
        let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
        let (volumes, ips) = (self.volumes.clone(), self.ips.clone());
        let name = name.to_owned();
        self.spawn_async(true, async move {
            let job = super::start::Job {
                pod: &pod,
                container: &container,
                attempt,
                volumes: &volumes,
                ips: &ips,
                tries,
            };
            let result = super::start::start(&ctx, job).await;
            Outcome::Started { name, result }
        });
    }

    fn begin_kill(&mut self, id: &str, message: &str, deadline: Timestamp) {
        let Some(run) = self.observed.by_id(id) else {
            return;
        };
        let name = run.name.clone();
        self.event(Some(&name), Severity::Normal, "Killing", message);
        let hook = self.begin_pre_stop(id, &name);
        let kill = Kill {
            deadline,
            hook_running: hook,
            term_sent: false,
            kill_sent: false,
        };
        self.soft.kills.insert(id.to_owned(), kill);
        if !hook {
            // Nothing to wait for: the next plan would only say TERM.
            self.begin(Action::SignalTerm { id: id.to_owned() }, Timestamp::now());
        }
    }

    fn signal(&self, id: String, signal: Signal) {
        let pod = self.id.clone();
        self.spawn(move |ctx| {
            if let Err(e) = ctx.rt.signal(&id, signal) {
                tracing::warn!(pod = %pod, container = id, error = %e, "signal not sent");
            }
            Outcome::Signalled
        });
    }

    fn begin_removal(&mut self, id: String) {
        let step = self.soft.removals.entry(id.clone()).or_default();
        *step = Step::Running;
        let run = self.observed.by_id(&id);
        let log = run.map(|r| {
            let dir = self.ctx.node.log_dir(&self.id);
            let file = format!("{}-{}", r.name, r.attempt);
            let termination = self
                .ctx
                .node
                .pod_dir(&self.id.uid)
                .join("containers")
                .join(file);
            (crate::spec::log_path(&dir, &r.name, r.attempt), termination)
        });
        self.spawn(move |ctx| {
            let result = ctx.rt.remove_container(&id).map_err(|e| e.to_string());
            if let (Ok(()), Some((log, termination))) = (&result, log) {
                // A log that is not there needs no removal.
                drop(std::fs::remove_file(log));
                drop(std::fs::remove_file(termination));
            }
            Outcome::Removed { id, result }
        });
    }

    pub(super) fn finish(&mut self, outcome: Outcome) {
        tracing::debug!(pod = %self.id, ?outcome, "end");
        match outcome {
            Outcome::Signalled => {}
            Outcome::Read => {
                self.reading = false;
                if std::mem::take(&mut self.read_again) {
                    self.read_facts();
                } else if !self.facts_read {
                    self.reading = true;
                    let wait = tokio::time::sleep(FACTS_RETRY);
                    self.spawn_async(true, async move {
                        wait.await;
                        Outcome::Read
                    });
                }
            }
            Outcome::Volumes(Ok(volumes)) => {
                self.tries.remove("volumes");
                self.volumes = volumes;
                self.soft.volumes = Step::Done;
            }
            Outcome::Volumes(Err(message)) => {
                self.event(None, Severity::Warning, "FailedMount", message.clone());
                self.soft.volumes = failed("FailedMount", message, self.tries_of("volumes"));
            }
            Outcome::Refreshed(result) => self.refreshed(result),
            Outcome::SandboxUp(result) => self.sandbox_is_up(result),
            Outcome::SandboxDown(result) => self.sandbox_is_down(result),
            Outcome::Started { name, result } => self.started(&name, result),
            Outcome::Removed { id, result } => {
                self.soft.removals.remove(&id);
                if let Err(message) = result {
                    tracing::warn!(pod = %self.id, container = id, error = message, "cannot remove container");
                    let step = failed("RemoveContainer", message, 3);
                    self.soft.removals.insert(id, step);
                }
            }
            Outcome::PostStart { id, result } => self.post_start_ended(&id, result),
            Outcome::PreStop { id } => {
                if let Some(kill) = self.soft.kills.get_mut(&id) {
                    kill.hook_running = false;
                }
            }
            Outcome::Probe { id, kind, good } => self.probed(&id, kind, good),
            Outcome::Patched(result) => self.patched(result),
            // The logs stay until the pod is gone from the API.
            Outcome::Cleaned {
                gone,
                result: Ok(()),
            } => {
                let all = gone || !self.soft.gone;
                self.soft.cleanup = if all { Step::Done } else { Step::Idle };
            }
            Outcome::Cleaned {
                result: Err(message),
                ..
            } => {
                tracing::warn!(pod = %self.id, error = message, "cannot clean up");
                self.soft.cleanup = failed("Cleanup", message, self.tries_of("cleanup"));
            }
            Outcome::Deleted(Ok(())) => self.soft.delete = Step::Done,
            Outcome::Deleted(Err(message)) => {
                tracing::warn!(pod = %self.id, error = message, "cannot delete");
                self.soft.delete = failed("Delete", message, self.tries_of("delete"));
            }
        }
    }

    /// Counts failures in a row of one of the pod's own steps.
    pub(super) fn tries_of(&mut self, step: &'static str) -> u32 {
        let tries = self.tries.entry(step).or_default();
        *tries = tries.saturating_add(1);
        *tries - 1
    }

    fn refreshed(&mut self, result: Result<volumes::Volumes, String>) {
        /// Wait after a failed refresh; what is there goes on being used.
        const AGAIN: SignedDuration = SignedDuration::from_secs(10);
        self.refreshing = false;
        match result {
            Ok(volumes) => self.volumes = volumes,
            Err(message) => {
                self.event(None, Severity::Warning, "FailedMount", message);
                self.volumes.refresh_at = Some(Timestamp::now() + AGAIN);
            }
        }
    }

    fn started(&mut self, name: &str, result: Result<String, super::start::StartError>) {
        self.soft.starts.remove(name);
        match result {
            Ok(id) => {
                let running = self
                    .observed
                    .by_id(&id)
                    .is_some_and(|r| matches!(r.state, State::Running { .. }));
                if running {
                    self.begin_post_start(&id, name);
                }
            }
            Err(error) => {
                self.event(
                    Some(name),
                    Severity::Warning,
                    error.event,
                    error.event_message(),
                );
                self.soft.starts.insert(name.to_owned(), error.step());
            }
        }
    }

    fn begin_delete(&mut self) {
        self.soft.delete = Step::Running;
        let last = self.final_patch(Timestamp::now());
        let (ctx, id) = (self.ctx.clone(), self.id.clone());
        self.spawn_async(false, async move {
            use crate::kube_api::ApiError;
            if let Some(body) = last {
                match ctx.api.patch_status(&id, body).await {
                    Ok(_) | Err(ApiError::Gone(_)) => {}
                    Err(ApiError::Other(e)) => return Outcome::Deleted(Err(e)),
                }
            }
            Outcome::Deleted(match ctx.api.delete_pod(&id).await {
                Ok(()) | Err(ApiError::Gone(_)) => Ok(()),
                Err(ApiError::Other(e)) => Err(e),
            })
        });
    }
}
