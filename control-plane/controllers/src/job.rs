//! Jobs: pods that run to their end, so many times.
//!
//! Finished pods are counted while they exist; nothing removes them but the Job's own end (owner, TTL) or a person.
//! Left out: podFailurePolicy, successPolicy, backoffLimitPerIndex.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::kinds::{Kind, Touch};
use crate::meta;
use crate::note::Note;
use crate::view::{Key, Now, View};
use crate::workload::{BURST, create_pod, delete_pod, owners_of_pod, pod_from};
use crate::write::{Plan, Propagation, Target, Write, status_patch};

use status::condition;

mod status;

const COMPONENT: &str = "job-controller";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The wait after a failed pod; it doubles with each further one.
const BACKOFF_FIRST_SECONDS: i64 = 10;
const BACKOFF_MAX_SECONDS: i64 = 600;

pub(crate) fn route(_: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
    if let Touch::Job { new: Some(job), .. } = touch {
        wake.insert(Key::of(&job.metadata));
    }
    owners_of_pod(touch, Kind::Job, |_| Vec::new(), wake);
}

/// A job with its pods sorted by what has become of them.
struct Run<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    active: Vec<Arc<Pod>>,
    succeeded: Vec<Arc<Pod>>,
    failed: Vec<Arc<Pod>>,
    now: Now,
}

pub(crate) fn reconcile(view: &View, key: &Key, now: Now) -> Plan {
    let Some(job) = view.jobs.get(key) else {
        return Plan::nothing();
    };
    let Some(spec) = &job.spec else {
        return Plan::nothing();
    };
    if meta::is_deleting(&job.metadata)
        || spec
            .managed_by
            .as_deref()
            .is_some_and(|it| it != "kubernetes.io/job-controller")
    {
        return Plan::nothing();
    }
    let mut run = Run {
        job,
        spec,
        active: Vec::new(),
        succeeded: Vec::new(),
        failed: Vec::new(),
        now,
    };
    for pod in view.pods.controlled_by(meta::uid(&job.metadata)) {
        match meta::pod_phase(pod) {
            "Succeeded" => run.succeeded.push(Arc::clone(pod)),
            "Failed" => run.failed.push(Arc::clone(pod)),
            _ if meta::is_deleting(&pod.metadata) => {}
            _ => run.active.push(Arc::clone(pod)),
        }
    }
    if run.finished().is_some() {
        run.after()
    } else {
        run.step()
    }
}

fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses
        .iter()
        .filter_map(|it| it.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref())
        .map(|time| time.0)
        .max()
}

enum Verdict {
    GoesOn,
    Complete,
    Failed {
        reason: &'static str,
        message: String,
    },
    Suspended,
}

impl Run<'_> {
    fn finished(&self) -> Option<&JobCondition> {
        let status = self.job.status.as_ref();
        condition(status, "Complete").or_else(|| condition(status, "Failed"))
    }

    fn indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    /// The indexes that have succeeded; without indexes, one for each pod.
    fn done_indexes(&self) -> BTreeSet<i32> {
        self.succeeded
            .iter()
            .filter_map(|pod| index_of(pod))
            .collect()
    }

    fn succeeded_count(&self) -> i32 {
        let count = if self.indexed() {
            self.done_indexes().len()
        } else {
            self.succeeded.len()
        };
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    /// A finished job goes after its time to live.
    fn after(&self) -> Plan {
        let mut plan = Plan::nothing();
        let Some(ttl) = self.spec.ttl_seconds_after_finished else {
            return plan;
        };
        let Some(since) = self
            .finished()
            .and_then(|it| it.last_transition_time.as_ref())
        else {
            return plan;
        };
        let at = since.0 + jiff::SignedDuration::from_secs(i64::from(ttl));
        if at > self.now.wall {
            plan.again_in(at.duration_since(self.now.wall).unsigned_abs());
        } else {
            plan.push(Write::Delete {
                target: Target::of(Kind::Job, &self.job.metadata),
                uid: meta::uid(&self.job.metadata).to_owned(),
                grace_seconds: None,
                propagation: Some(Propagation::Foreground),
                announce: None,
            });
        }
        plan
    }

    fn start_time(&self) -> Option<Timestamp> {
        self.job
            .status
            .as_ref()?
            .start_time
            .as_ref()
            .map(|time| time.0)
    }

    fn verdict(&self) -> Verdict {
        let failed = i32::try_from(self.failed.len()).unwrap_or(i32::MAX);
        if failed > self.spec.backoff_limit.unwrap_or(6) {
            let message = "Job has reached the specified backoff limit".to_owned();
            return Verdict::Failed {
                reason: "BackoffLimitExceeded",
                message,
            };
        }
        if let (Some(limit), Some(start)) = (self.spec.active_deadline_seconds, self.start_time())
            && self.now.wall.duration_since(start).as_secs() >= limit
        {
            let message = "Job was active longer than specified deadline".to_owned();
            return Verdict::Failed {
                reason: "DeadlineExceeded",
                message,
            };
        }
        let complete = match self.spec.completions {
            Some(completions) => self.succeeded_count() >= completions,
            // A work queue: one pod that succeeds says that the work is done; the others may end.
            None => !self.succeeded.is_empty() && self.active.is_empty(),
        };
        if complete {
            return Verdict::Complete;
        }
        if self.spec.suspend == Some(true) {
            Verdict::Suspended
        } else {
            Verdict::GoesOn
        }
    }

    fn step(&self) -> Plan {
        let mut plan = Plan::nothing();
        let verdict = self.verdict();
        match &verdict {
            Verdict::GoesOn => self.resize(&mut plan),
            Verdict::Complete | Verdict::Failed { .. } | Verdict::Suspended => {
                plan.writes
                    .extend(self.active.iter().map(|pod| self.remove(pod)));
            }
        }
        let status = self.status(&verdict);
        match &verdict {
            Verdict::Complete => plan.push(self.say("Completed", "Job completed", false)),
            Verdict::Failed { reason, message } => plan.push(self.say(reason, message, true)),
            _ => {}
        }
        plan.writes.extend(status_patch(
            Kind::Job,
            &self.job.metadata,
            self.job.status.as_ref(),
            &status,
        ));
        if let (Some(limit), Some(start)) = (self.spec.active_deadline_seconds, self.start_time()) {
            let at = start + jiff::SignedDuration::from_secs(limit);
            plan.again_in(Duration::try_from(at.duration_since(self.now.wall)).unwrap_or_default());
        }
        plan
    }

    fn say(&self, reason: &'static str, text: &str, warning: bool) -> Write {
        let note = Note::new(Kind::Job, &self.job.metadata, COMPONENT, reason, text);
        Write::Event(if warning { note.warning() } else { note })
    }

    fn remove(&self, pod: &Pod) -> Write {
        delete_pod(Kind::Job, &self.job.metadata, COMPONENT, pod)
    }

    fn resize(&self, plan: &mut Plan) {
        let parallelism = usize::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0);
        let wanted = match self.spec.completions {
            Some(completions) => {
                let left = completions.saturating_sub(self.succeeded_count());
                parallelism.min(usize::try_from(left).unwrap_or(0))
            }
            None if self.succeeded.is_empty() => parallelism,
            None => self.active.len().min(parallelism),
        };
        if self.active.len() > wanted {
            let excess = self.active.len() - wanted;
            plan.writes
                .extend(self.active.iter().take(excess).map(|pod| self.remove(pod)));
            return;
        }
        let missing = (wanted - self.active.len()).min(BURST);
        if missing == 0 {
            return;
        }
        if let Some(wait) = self.backoff() {
            plan.again_in(wait);
            return;
        }
        if self.indexed() {
            let taken: BTreeSet<i32> = self
                .active
                .iter()
                .filter_map(|pod| index_of(pod))
                .chain(self.done_indexes())
                .collect();
            let all = 0..self.spec.completions.unwrap_or(1);
            let free = all.filter(|index| !taken.contains(index)).take(missing);
            plan.writes
                .extend(free.map(|index| self.create(Some(index))));
        } else {
            plan.writes.extend((0..missing).map(|_| self.create(None)));
        }
    }

    /// How long to wait after the last failure.
    fn backoff(&self) -> Option<Duration> {
        let last = self.failed.iter().filter_map(|pod| ended_at(pod)).max()?;
        let doublings = u32::try_from(self.failed.len().saturating_sub(1))
            .unwrap_or(u32::MAX)
            .min(16);
        let seconds = (BACKOFF_FIRST_SECONDS << doublings).min(BACKOFF_MAX_SECONDS);
        let at = last + jiff::SignedDuration::from_secs(seconds);
        (at > self.now.wall).then(|| at.duration_since(self.now.wall).unsigned_abs())
    }

    fn create(&self, index: Option<i32>) -> Write {
        let mut pod = pod_from(&self.spec.template, Kind::Job, &self.job.metadata);
        let (name, uid) = (
            meta::name(&self.job.metadata),
            meta::uid(&self.job.metadata),
        );
        let labels = &mut pod["metadata"]["labels"];
        for (key, value) in [
            ("batch.kubernetes.io/controller-uid", uid),
            ("batch.kubernetes.io/job-name", name),
            ("controller-uid", uid),
            ("job-name", name),
        ] {
            labels[key] = json!(value);
        }
        if let Some(index) = index {
            let text = index.to_string();
            pod["metadata"]["generateName"] = json!(format!("{name}-{index}-"));
            pod["metadata"]["labels"][INDEX] = json!(text);
            pod["metadata"]["annotations"][INDEX] = json!(text);
            if pod["spec"]["hostname"].is_null() {
                pod["spec"]["hostname"] = json!(format!("{name}-{index}"));
            }
            for list in ["containers", "initContainers"] {
                for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                    add_index_variable(container, &text);
                }
            }
        }
        create_pod(Kind::Job, &self.job.metadata, COMPONENT, pod)
    }
}

fn index_of(pod: &Pod) -> Option<i32> {
    meta::annotation(&pod.metadata, INDEX)?.parse().ok()
}

fn add_index_variable(container: &mut Value, index: &str) {
    let variable = json!({"name": "JOB_COMPLETION_INDEX", "value": index});
    match container["env"].as_array_mut() {
        Some(env) => env.push(variable),
        None => container["env"] = json!([variable]),
    }
}

#[cfg(test)]
mod tests;
