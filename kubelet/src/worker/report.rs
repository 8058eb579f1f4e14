//! Reporting: the computed status goes to the API when it differs from what the API has. One patch is under
//! way at a time, and the newest status wins.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::Value;

use super::{Outcome, Worker, shown};
use crate::events::Severity;
use crate::kube_api::ApiError;
use crate::status::{self, patch};

/// First and longest wait after a patch that failed.
const RETRY_FIRST: SignedDuration = SignedDuration::from_millis(200);
const RETRY_MAX: SignedDuration = SignedDuration::from_secs(10);
/// See [`Report::hold_until`]: longer than a usual start, shorter than a person notices.
const MAKING_QUIET: SignedDuration = SignedDuration::from_millis(200);

/// Why a patch did not work.
#[derive(Debug)]
pub(super) enum PatchError {
    /// The pod is not there any more.
    Gone,
    /// Tried again later.
    Again(String),
}

/// What the API has, as far as we know.
#[derive(Debug)]
pub(super) struct Report {
    /// The status last seen or written.
    known: PodStatus,
    /// resourceVersion our last patch made.
    version: Option<u64>,
    /// When the worker began.
    begun: Timestamp,
    in_flight: bool,
    failures: u32,
    retry_at: Option<Timestamp>,
    /// The API does not have the pod any more.
    gone: bool,
    /// Runs whose back-off was told, by container.
    backing_off: BTreeMap<String, i32>,
}

fn version_of(pod: &Pod) -> Option<u64> {
    pod.metadata.resource_version.as_deref()?.parse().ok()
}

impl Report {
    pub(super) fn new(pod: &Pod) -> Self {
        Self {
            known: status::shown(pod),
            version: None,
            begun: Timestamp::now(),
            in_flight: false,
            failures: 0,
            retry_at: None,
            gone: false,
            backing_off: BTreeMap::new(),
        }
    }

    /// Until when a status that only says "being made" is held back: a pod that starts as fast as it should
    /// costs one write, not three.
    fn hold_until(&self, want: &PodStatus) -> Option<Timestamp> {
        let waiting = |s: &ContainerStatus| {
            let state = s.state.as_ref()?;
            let reason = state.waiting.as_ref()?.reason.clone()?;
            Some(reason)
        };
        let mut all = want
            .container_statuses
            .iter()
            .chain(&want.init_container_statuses)
            .flatten();
        let making = all.all(|s| {
            let reason = waiting(s).unwrap_or_default();
            matches!(&*reason, "ContainerCreating" | "PodInitializing")
        });
        making.then_some(self.begun + MAKING_QUIET)
    }

    /// A pod came by watch: its status counts unless it is older than what we wrote.
    pub(super) fn saw(&mut self, pod: &Pod) {
        let older = self.in_flight
            || match (version_of(pod), self.version) {
                (Some(seen), Some(ours)) => seen < ours,
                _ => false,
            };
        if !older {
            self.known = status::shown(pod);
        }
    }
}

impl Worker {
    fn wanted(&self, now: Timestamp) -> PodStatus {
        status::status(self.view(now), &self.ctx.node.ips, &self.report.known)
    }

    /// Sends the status when it differs; when to try again.
    pub(super) fn report_status(&mut self, now: Timestamp) -> Option<Timestamp> {
        let want = self.wanted(now);
        self.tell_back_off(&want);
        let shown = shown(&self.pod, &self.observed, &want);
        self.ctx.board.show(&self.id.uid, shown);
        if self.report.in_flight || self.soft.gone || self.report.gone {
            return None;
        }
        let Some(body) = patch::patch(&self.id.uid, &self.report.known, &want) else {
            self.report.retry_at = None;
            return None;
        };
        let later = [self.report.retry_at, self.report.hold_until(&want)];
        if let Some(at) = later.into_iter().flatten().filter(|at| *at > now).max() {
            return Some(at);
        }
        self.report.in_flight = true;
        let (ctx, id) = (self.ctx.clone(), self.id.clone());
        self.spawn_async(false, async move {
            Outcome::Patched(match ctx.api.patch_status(&id, body).await {
                Ok(pod) => Ok((Box::new(want), version_of(&pod))),
                Err(ApiError::Gone(_)) => Err(PatchError::Gone),
                Err(ApiError::Other(e)) => Err(PatchError::Again(e)),
            })
        });
        None
    }

    /// One event for each run that has to wait for the next.
    fn tell_back_off(&mut self, status: &PodStatus) {
        let all = status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten();
        for c in all {
            let waiting = c.state.as_ref().and_then(|s| s.waiting.as_ref());
            let reason = waiting.and_then(|w| w.reason.as_deref());
            let told = self.report.backing_off.get(&c.name) == Some(&c.restart_count);
            if reason != Some("CrashLoopBackOff") || told {
                continue;
            }
            let (name, id) = (c.name.clone(), &self.id);
            let text = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                id.name, id.namespace, id.uid
            );
            self.event(Some(&name), Severity::Warning, "BackOff", text);
            self.report.backing_off.insert(name, c.restart_count);
        }
    }

    /// What the API still has to hear before the object goes.
    pub(super) fn final_patch(&self, now: Timestamp) -> Option<Value> {
        patch::patch(&self.id.uid, &self.report.known, &self.wanted(now))
    }

    pub(super) fn patched(&mut self, result: Result<(Box<PodStatus>, Option<u64>), PatchError>) {
        let report = &mut self.report;
        report.in_flight = false;
        match result {
            Ok((status, version)) => {
                report.known = *status;
                report.version = version.or(report.version);
                report.failures = 0;
                report.retry_at = None;
            }
            Err(PatchError::Gone) => report.gone = true,
            Err(PatchError::Again(e)) => {
                let factor = 1i32 << report.failures.min(6);
                report.failures = report.failures.saturating_add(1);
                report.retry_at = Some(Timestamp::now() + (RETRY_FIRST * factor).min(RETRY_MAX));
                if report.failures == 1 {
                    tracing::warn!(pod = %self.id, error = e, "status not sent; trying again");
                }
            }
        }
    }
}
