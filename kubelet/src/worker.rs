//! The worker of one pod: takes what happens as messages, plans, begins what the plan says, reports the status.
//! It never blocks; everything slow is a task that sends a message back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::checkpoint;
use crate::context::{Context, Shown, blocking};
use crate::observed::Observed;
use crate::plan::{self, View};
use crate::pod::{self, PodId};
use crate::probe::Kind as ProbeKind;
use crate::soft::{Soft, Step};
use crate::volumes::Volumes;

mod act;
mod health;
mod hooks;
mod messages;
mod report;
mod sandbox;
mod start;
mod task;
#[cfg(test)]
mod tests;

/// Messages of one worker that may wait.
const QUEUE: usize = 64;
/// What a worker is told.
#[derive(Debug)]
pub enum Msg {
    /// The pod as the API has it now.
    Pod(Arc<Pod>),
    /// The pod is gone from the API.
    Gone,
    /// The runtime saw a change.
    Facts,
    /// Something failed steps wait for has come: try them now.
    Retry,
    /// A ConfigMap or Secret this pod uses has changed.
    Object,
    /// Something the worker began has ended.
    Done(Box<Done>),
}

/// The end of something a worker began.
#[derive(Debug)]
pub struct Done {
    outcome: Outcome,
    facts: Option<Facts>,
}

/// The runtime's facts, numbered by when reading them began.
#[derive(Debug)]
struct Facts {
    number: u64,
    observed: Observed,
}

#[derive(Debug)]
enum Outcome {
    Read,
    Signalled,
    Volumes(Result<Volumes, String>),
    Refreshed(Result<Volumes, String>),
    SandboxUp(Result<Vec<IpAddr>, String>),
    SandboxDown(Result<(), String>),
    Started {
        name: String,
        result: Result<String, start::StartError>,
    },
    Removed {
        id: String,
        result: Result<(), String>,
    },
    PostStart {
        id: String,
        result: Result<(), String>,
    },
    PreStop {
        id: String,
    },
    Probe {
        id: String,
        kind: ProbeKind,
        good: bool,
    },
    Patched(Result<(Box<PodStatus>, Option<u64>), report::PatchError>),
    Cleaned {
        gone: bool,
        result: Result<(), String>,
    },
    Deleted(Result<(), String>),
}

/// How to reach a worker.
#[derive(Debug, Clone)]
pub struct Handle {
    queue: mpsc::Sender<Msg>,
    #[cfg(test)]
    task: Option<tokio::task::AbortHandle>,
}

impl Handle {
    /// Tells the worker something; waits while its queue is full. A worker that ended hears nothing.
    pub async fn tell(&self, msg: Msg) {
        if self.queue.send(msg).await.is_err() {
            tracing::trace!("a worker has ended");
        }
    }
}

/// One pod's worker.
pub struct Worker {
    ctx: Context,
    id: PodId,
    pod: Arc<Pod>,
    observed: Observed,
    soft: Soft,
    volumes: Volumes,
    ips: Vec<IpAddr>,
    counter: Arc<AtomicU64>,
    facts_number: u64,
    facts_read: bool,
    reading: bool,
    read_again: bool,
    refreshing: bool,
    tries: BTreeMap<&'static str, u32>,
    probes: BTreeMap<(String, ProbeKind), AbortOnDropHandle<()>>,
    report: report::Report,
    queue: mpsc::Sender<Msg>,
    inbox: mpsc::Receiver<Msg>,
}

/// Starts a worker for `pod`. `ended` is told its uid when nothing of the pod is left.
pub fn spawn(ctx: Context, pod: Arc<Pod>, ended: mpsc::Sender<String>) -> Handle {
    let (queue, inbox) = mpsc::channel(QUEUE);
    let to_worker = queue.clone();
    let id = PodId::of(&pod);
    let worker = Worker {
        report: report::Report::new(&pod),
        ctx,
        id,
        pod,
        observed: Observed::default(),
        soft: Soft::default(),
        volumes: Volumes::default(),
        ips: Vec::new(),
        counter: Arc::new(AtomicU64::new(1)),
        facts_number: 0,
        facts_read: false,
        reading: false,
        read_again: false,
        refreshing: false,
        tries: BTreeMap::new(),
        probes: BTreeMap::new(),
        queue,
        inbox,
    };
    let task = tokio::spawn(worker.run(ended));
    #[cfg(not(test))]
    drop(task);
    Handle {
        queue: to_worker,
        #[cfg(test)]
        task: Some(task.abort_handle()),
    }
}

impl Worker {
    async fn run(mut self, ended: mpsc::Sender<String>) {
        let (root, uid) = (self.ctx.node.root_dir.clone(), self.id.uid.clone());
        let record = blocking(move || checkpoint::load(&root, &uid)).await;
        if let Some(network) = record.and_then(|r| r.network) {
            self.ips = network.ips();
        }
        if pod::is_deleting(&self.pod) {
            self.set_end();
        }
        self.read_facts();
        loop {
            let wake = self.turn();
            if self.is_over() {
                break;
            }
            let sleep = wake.map(|at| {
                let left = at.duration_since(Timestamp::now());
                // A little more, so that "at or after" holds when we wake.
                let left = left.max(SignedDuration::ZERO) + SignedDuration::from_millis(1);
                tokio::time::sleep(left.unsigned_abs())
            });
            tokio::select! {
                msg = self.inbox.recv() => match msg {
                    Some(msg) => self.take(msg),
                    None => break,
                },
                () = async { match sleep { Some(s) => s.await, None => std::future::pending().await } } => {}
            }
            // Whatever else has come is taken before the next plan.
            while let Ok(msg) = self.inbox.try_recv() {
                self.take(msg);
            }
        }
        self.ctx.board.remove(&self.id.uid);
        self.ctx.api.release(&self.id.uid);
        // Nobody may wait for a place in the queue of a worker that has ended.
        drop(self.inbox);
        if ended.send(self.id.uid).await.is_err() {
            tracing::trace!("the manager has ended");
        }
    }

    /// Plans and begins what there is to do; when to look again.
    fn turn(&mut self) -> Option<Timestamp> {
        if !self.facts_read {
            return None;
        }
        let now = Timestamp::now();
        let plan = plan::plan(self.view(now));
        for action in plan.actions {
            self.begin(action, now);
        }
        self.tend_probes();
        let again = self.report_status(now);
        let refresh = self.begin_refresh(now);
        [plan.wake, again, refresh].into_iter().flatten().min()
    }

    fn view(&self, now: Timestamp) -> View<'_> {
        View {
            pod: &self.pod,
            observed: &self.observed,
            soft: &self.soft,
            now,
        }
    }

    /// Nothing of the pod is left, here and in the API.
    fn is_over(&self) -> bool {
        self.soft.gone
            && self.soft.cleanup == Step::Done
            && self.observed.sandbox.is_none()
            && self.observed.containers.is_empty()
    }

    fn take(&mut self, msg: Msg) {
        match msg {
            Msg::Pod(pod) => {
                self.report.saw(&pod);
                let labels_changed = self.pod.metadata.labels != pod.metadata.labels
                    || self.pod.metadata.annotations != pod.metadata.annotations;
                self.pod = pod;
                if labels_changed {
                    self.volumes.refresh_at = Some(Timestamp::now());
                }
                if pod::is_deleting(&self.pod) {
                    self.set_end();
                }
            }
            Msg::Gone => {
                self.soft.gone = true;
                if self.soft.cleanup == Step::Done {
                    self.soft.cleanup = Step::Idle;
                }
                self.set_end();
            }
            Msg::Facts => self.read_facts(),
            Msg::Retry => self.retry_now(),
            Msg::Object => {
                self.volumes.refresh_at = Some(Timestamp::now());
                self.retry_now();
            }
            Msg::Done(done) => {
                if let Some(facts) = done.facts {
                    self.take_facts(facts);
                }
                self.finish(done.outcome);
            }
        }
    }

    /// The pod has to end: by when.
    fn set_end(&mut self) {
        let grace = pod::grace(&self.pod);
        let end = Timestamp::now() + SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
        let before = self.soft.end_by.unwrap_or(end);
        self.soft.end_by = Some(before.min(end));
    }

    fn take_facts(&mut self, facts: Facts) {
        if facts.number <= self.facts_number {
            return;
        }
        self.facts_number = facts.number;
        let before = std::mem::replace(&mut self.observed, facts.observed);
        self.remember_runs(before);
        if let Some(sandbox) = &mut self.observed.sandbox {
            sandbox.ips.clone_from(&self.ips);
        }
        let first = !self.facts_read;
        self.facts_read = true;
        self.tend_health(first);
    }

    /// Runs that went with their sandbox stay known: how they ended and how many there were. Only those
    /// removed one by one are forgotten.
    fn remember_runs(&mut self, before: Observed) {
        for mut run in before.containers {
            let there = self.observed.by_id(&run.id).is_some();
            if there || self.soft.gone || self.soft.removals.contains_key(&run.id) {
                continue;
            }
            run.sandbox_id.clear();
            if run.exit().is_some() {
                self.observed.containers.push(run);
            }
        }
    }

    /// Reads the runtime's facts; a second wish while it is being done is done after it.
    fn read_facts(&mut self) {
        if self.reading {
            self.read_again = true;
            return;
        }
        self.reading = true;
        self.spawn(|_| Outcome::Read);
    }

    /// Failed steps are tried again at once.
    fn retry_now(&mut self) {
        let soft = &mut self.soft;
        let steps = [
            &mut soft.volumes,
            &mut soft.sandbox,
            &mut soft.cleanup,
            &mut soft.delete,
        ];
        for step in steps.into_iter().chain(soft.starts.values_mut()) {
            if let Step::Failed(failure) = step {
                failure.retry_at = Timestamp::now();
            }
        }
    }
}

/// What the server shows of this pod.
fn shown(pod: &Arc<Pod>, observed: &Observed, status: &PodStatus) -> Shown {
    Shown {
        pod: Arc::clone(pod),
        observed: Arc::new(observed.clone()),
        status: Arc::new(status.clone()),
    }
}
