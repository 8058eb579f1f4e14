//! The deciding half of the engine: events and answers go in, jobs come out. No clock, no I/O.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::gc::GraphEvent;
use crate::kinds::{Kind, Object, Touch};
use crate::resources::ResourceInfo;
use crate::view::{Key, Now, Remaining, View};
use crate::write::{Plan, Write};
use crate::{daemonset, deployment, endpointslice, gc, job, meta, namespace, node, schedule};
use crate::{serviceaccount, statefulset, workload};

use super::queue::{Ended, Queue};

macro_rules! controllers {
    ($($name:ident $label:literal $workers:literal $module:path;)*) => {
        /// A controller: a queue, a route and a reconcile.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Controller { $($name),* }

        impl Controller {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            pub(crate) fn label(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }

            fn workers(self) -> usize {
                match self { $(Self::$name => $workers),* }
            }

            /// Adds the keys of this controller that a change touches.
            fn route(self, view: &View, touch: &Touch, wake: &mut BTreeSet<Key>) {
                match self { $(Self::$name => { use $module as this; this::route(view, touch, wake) })* }
            }

            fn reconcile(self, view: &View, key: &Key, now: Now) -> Plan {
                match self { $(Self::$name => { use $module as this; this::reconcile(view, key, now) })* }
            }
        }
    };
}

// Node CIDRs have one worker: two nodes at a time could be given the same slice.
controllers! {
    NodeIpam "node-ipam" 1 node::ipam;
    NodeLifecycle "node-lifecycle" 8 node::lifecycle;
    Eviction "taint-eviction" 8 node::eviction;
    Scheduler "scheduler" 64 schedule::controller;
    ReplicaSet "replicaset" 8 workload::replicaset;
    Deployment "deployment" 8 deployment;
    StatefulSet "statefulset" 8 statefulset;
    DaemonSet "daemonset" 8 daemonset;
    Job "job" 8 job;
    EndpointSlice "endpointslice" 16 endpointslice;
    ServiceAccount "serviceaccount" 8 serviceaccount;
    Namespace "namespace" 4 namespace;
    PodGc "pod-gc" 1 gc::pods;
    Gc "garbage-collector" 16 gc;
}

/// Something the shell has observed.
#[derive(Debug)]
pub(crate) enum Change {
    Init(Kind),
    Seen(Object),
    Gone(Object),
    InitDone(Kind),
    Graph(GraphEvent),
    Resources(Arc<Vec<ResourceInfo>>),
}

/// Writes to carry out for one key.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) controller: Controller,
    pub(crate) key: Key,
    pub(crate) writes: Vec<Write>,
    again: Option<Duration>,
}

/// What one write has brought.
#[derive(Debug)]
pub(crate) enum Answer {
    Created(Object),
    Changed(Object),
    /// The object does not exist any more.
    Deleted {
        kind: Option<Kind>,
        namespace: String,
        name: String,
        uid: String,
    },
    Owner {
        uid: String,
        present: bool,
    },
    Emptied {
        uid: String,
        remaining: Remaining,
    },
    Nothing,
}

/// How a job ended. Answers of the writes that succeeded are there also when a later one failed.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) controller: Controller,
    pub(crate) key: Key,
    pub(crate) answers: Vec<Answer>,
    pub(crate) error: Option<Failure>,
    pub(crate) writes: Vec<Write>,
    pub(crate) again: Option<Duration>,
}

/// Why a job failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    /// Expected in normal operation (a conflict with another writer): retried, and not worth a warning.
    pub(crate) benign: bool,
    /// The server has surely not carried out the write.
    pub(crate) refused: bool,
}

/// The view, the queues and nothing else.
pub(crate) struct Brain {
    pub(crate) view: View,
    queues: Vec<Queue>,
    /// The controller whose queue is looked at first, so that none starves the others.
    turn: usize,
    /// Every cache holds what its initial list showed; nothing is decided before.
    started: bool,
    swept: Duration,
}

/// How often creations that no watch has shown are looked at; they may be one or two periods old when they are dropped.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

impl Brain {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            view: View::new(config),
            queues: Controller::ALL
                .iter()
                .map(|it| Queue::new(it.workers()))
                .collect(),
            turn: 0,
            started: false,
            swept: Duration::ZERO,
        }
    }

    /// Takes in one observation.
    pub(crate) fn observe(&mut self, change: Change, now: Now) {
        match change {
            Change::Init(kind) => self.view.init(kind),
            Change::Seen(object) => {
                let touch = self.view.seen(object);
                self.touched(touch, now);
            }
            Change::Gone(object) => {
                let touch = self.view.gone(&object);
                self.touched(touch, now);
            }
            Change::InitDone(kind) => {
                for touch in self.view.init_done(kind) {
                    self.touched(Some(touch), now);
                }
                if !self.started && self.view.synced() {
                    self.started = true;
                    tracing::debug!("controllers have their first view");
                }
            }
            Change::Graph(event) => {
                let emptier = self.view.graph.namespace_losing(&event);
                for key in self.view.graph.observe(event) {
                    self.add(Controller::Gc, key);
                }
                if let Some(namespace) = emptier {
                    self.namespace_progress(&namespace);
                }
            }
            Change::Resources(resources) => {
                self.view.resources = resources;
                for key in self.view.graph.dependents_to_check() {
                    self.add(Controller::Gc, key);
                }
            }
        }
    }

    /// The next job. Plans without writes are settled here and do not come out.
    pub(crate) fn next_job(&mut self, now: Now) -> Option<Job> {
        if !self.started {
            return None;
        }
        if now.mono.saturating_sub(self.swept) >= SWEEP_PERIOD {
            self.swept = now.mono;
            for touch in self.view.sweep() {
                self.touched(Some(touch), now);
            }
        }
        let count = Controller::ALL.len();
        let mut idle = 0;
        while idle < count {
            let index = self.turn % count;
            self.turn = (index + 1) % count;
            let controller = Controller::ALL[index];
            let Some(key) = self.queues[index].take(now.mono) else {
                idle += 1;
                continue;
            };
            idle = 0;
            let plan = controller.reconcile(&self.view, &key, now);
            if plan.park {
                self.view.unschedulable.insert(key.clone());
            }
            if !plan.writes.is_empty() {
                for write in &plan.writes {
                    self.sent(write);
                }
                return Some(Job {
                    controller,
                    key,
                    writes: plan.writes,
                    again: plan.again,
                });
            }
            self.queues[index].done(&key, Ended::Well, now.mono);
            self.settled(controller, &key, plan.again, now);
        }
        None
    }

    /// Takes in how a job ended.
    pub(crate) fn done(&mut self, done: Done, now: Now) {
        for answer in done.answers {
            self.answered(answer, now);
        }
        if let Some(failure) = &done.error {
            for write in &done.writes {
                self.failed(write, failure, &done.key);
            }
        }
        let index = done.controller as usize;
        let ended = match &done.error {
            None => Ended::Well,
            Some(failure) if failure.benign => Ended::Conflict,
            Some(_) => Ended::Badly,
        };
        let delay = self.queues[index].done(&done.key, ended, now.mono);
        let place = (done.controller.label(), done.key.clone());
        if done.error.is_none() {
            self.view.failures.remove(&place);
        }
        if let Some(failure) = done.error {
            self.view.failures.insert(place, failure.message.clone());
            let (controller, key) = (done.controller.label(), &done.key);
            if failure.benign {
                tracing::debug!(controller, %key, ?delay, "{}", failure.message);
            } else {
                tracing::warn!(controller, %key, ?delay, "{}", failure.message);
            }
        }
        self.settled(done.controller, &done.key, done.again, now);
    }

    /// When `next_job` has something again although nothing is observed.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        if !self.started {
            return None;
        }
        self.queues.iter().filter_map(Queue::next_due).min()
    }

    fn add(&mut self, controller: Controller, key: Key) {
        self.queues[controller as usize].add(key);
    }

    fn settled(&mut self, controller: Controller, key: &Key, again: Option<Duration>, now: Now) {
        if let Some(delay) = again {
            self.queues[controller as usize].add_at(key.clone(), now.mono + delay);
        }
    }

    fn touched(&mut self, touch: Option<Touch>, now: Now) {
        let Some(touch) = touch else { return };
        for key in self.view.derive(&touch, now) {
            self.add(Controller::Gc, key);
        }
        for controller in Controller::ALL {
            let mut wake = BTreeSet::new();
            controller.route(&self.view, &touch, &mut wake);
            for key in wake {
                self.add(*controller, key);
            }
        }
        if touch.is_removal()
            && let Some(namespace) = touch.meta().and_then(|meta| meta.namespace.clone())
        {
            self.namespace_progress(&namespace);
        }
    }

    /// Something went away: a namespace that is being emptied may be done.
    fn namespace_progress(&mut self, namespace: &str) {
        let key = Key::new("", namespace);
        if self
            .view
            .namespaces
            .get(&key)
            .is_some_and(|it| meta::is_deleting(&it.metadata))
        {
            self.add(Controller::Namespace, key);
        }
    }

    /// What is true from the moment a write is sent.
    fn sent(&mut self, write: &Write) {
        match write {
            Write::Bind {
                namespace,
                pod,
                uid,
                node,
            } => {
                self.view.assume(&Key::new(namespace, pod), uid, node);
            }
            Write::AssignPodCidrs { uid, cidrs, .. } => {
                self.view.reserved.insert(uid.clone(), cidrs.clone());
            }
            _ => {}
        }
    }

    /// Takes back what was assumed if the server has surely not done it. Else it holds: the write may have arrived
    /// although its answer did not, and what it took must not be given away.
    fn failed(&mut self, write: &Write, failure: &Failure, key: &Key) {
        match write {
            Write::Bind { .. } if failure.refused && !failure.benign => {
                self.view.forget(key);
                for parked in std::mem::take(&mut self.view.unschedulable) {
                    self.add(Controller::Scheduler, parked);
                }
            }
            // After a conflict the watch will show the pod bound or gone; asking again does no harm.
            Write::Bind { .. } => {
                if let Some(assumed) = self.view.assumed.get_mut(key) {
                    assumed.again = true;
                }
            }
            Write::AssignPodCidrs { uid, .. } if failure.refused => {
                self.view.reserved.remove(uid);
            }
            _ => {}
        }
    }

    fn answered(&mut self, answer: Answer, now: Now) {
        let touch = match answer {
            Answer::Created(object) => self.view.written(object, true),
            Answer::Changed(object) => self.view.written(object, false),
            Answer::Deleted {
                kind: Some(kind),
                namespace,
                name,
                uid,
            } => self.view.deleted(kind, &namespace, &name, &uid),
            Answer::Deleted {
                kind: None, uid, ..
            } => {
                for key in self.view.graph.observe(GraphEvent::Gone { uid }) {
                    self.add(Controller::Gc, key);
                }
                None
            }
            Answer::Owner { uid, present } => {
                for key in self.view.graph.probed(&uid, present) {
                    self.add(Controller::Gc, key);
                }
                None
            }
            Answer::Emptied { uid, remaining } => {
                self.view.emptied.insert(uid, remaining);
                None
            }
            Answer::Nothing => None,
        };
        self.touched(touch, now);
    }
}

impl Job {
    /// The job's end, to be completed by whoever carries it out.
    pub(crate) fn ended(self, answers: Vec<Answer>, error: Option<Failure>) -> Done {
        Done {
            controller: self.controller,
            key: self.key,
            answers,
            error,
            writes: self.writes,
            again: self.again,
        }
    }
}
