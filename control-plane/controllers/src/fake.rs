//! A cluster in memory for tests: an API server's store, the brain in front of it, and a kubelet that starts pods.
//!
//! Events reach the brain late and interleaved between kinds when a test asks for it, as real watches do.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::config::Config;
use crate::engine::brain::{Brain, Change, Done, Failure, Job};
use crate::kinds::{Kind, Object};
use crate::note::Note;
use crate::view::{Key, Now};
use crate::write::{Propagation, Target};

/// A whole second, as times on the wire are.
pub(crate) fn at(seconds: u64) -> Now {
    let base: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    Now {
        wall: base + jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap()),
        mono: Duration::from_secs(seconds),
    }
}

/// Nodes of which nothing is heard stay ready, for tests that let much time pass.
pub(crate) fn patient() -> Config {
    Config {
        node_monitor_grace: Duration::from_secs(1_000_000),
        ..Config::default()
    }
}

/// The wire form of a time of [`at`].
pub(crate) fn stamp(seconds: u64) -> String {
    crate::note::format_time(at(seconds).wall)
}

pub(crate) struct Sim {
    pub(crate) brain: Brain,
    objects: BTreeMap<(Kind, Key), Value>,
    version: u64,
    pending: BTreeMap<Kind, VecDeque<Change>>,
    pub(crate) notes: Vec<Note>,
    pub(crate) seconds: u64,
    /// Creations of this kind fail.
    pub(crate) refuse: Option<Kind>,
    /// Which kind's events are delivered next, when a test wants an order of its own.
    pub(crate) order: VecDeque<usize>,
    pub(crate) writes: usize,
    /// What becomes of the next writes: 1 fails without effect, 2 has its effect and is answered with a failure.
    pub(crate) flaky: VecDeque<u8>,
    /// Answers to jobs come later than what they caused.
    pub(crate) slow: bool,
    answers: VecDeque<Done>,
}

impl Sim {
    pub(crate) fn new(config: Config) -> Self {
        let mut sim = Self {
            brain: Brain::new(config),
            objects: BTreeMap::new(),
            version: 100,
            pending: BTreeMap::new(),
            notes: Vec::new(),
            seconds: 0,
            refuse: None,
            order: VecDeque::new(),
            writes: 0,
            flaky: VecDeque::new(),
            slow: false,
            answers: VecDeque::new(),
        };
        for kind in Kind::ALL {
            sim.brain.observe(Change::Init(*kind), at(0));
            sim.brain.observe(Change::InitDone(*kind), at(0));
        }
        sim
    }

    pub(crate) fn now(&self) -> Now {
        at(self.seconds)
    }

    /// A person or a kubelet creates or replaces an object.
    pub(crate) fn put(&mut self, kind: Kind, mut object: Value) {
        let key = key_of(&object);
        let old = self.objects.get(&(kind, key.clone())).cloned();
        let spec_changed = old.as_ref().is_none_or(|old| old["spec"] != object["spec"]);
        let meta = &mut object["metadata"];
        if let Some(old) = &old {
            for field in ["uid", "creationTimestamp", "generation"] {
                meta[field] = old["metadata"][field].clone();
            }
        } else {
            self.version += 1;
            meta["uid"] = json!(format!("uid-{}", self.version));
            if meta["creationTimestamp"].is_null() {
                meta["creationTimestamp"] = json!(stamp(self.seconds));
            }
            meta["generation"] = json!(0);
        }
        if spec_changed {
            meta["generation"] = json!(meta["generation"].as_i64().unwrap_or(0) + 1);
        }
        self.store(kind, key, object);
    }

    fn store(&mut self, kind: Kind, key: Key, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let waits = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|it| !it.is_empty());
        let waits = waits
            || object["spec"]["finalizers"]
                .as_array()
                .is_some_and(|it| !it.is_empty());
        let grace = object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            > 0;
        if !object["metadata"]["deletionTimestamp"].is_null() && !waits && !grace {
            self.objects.remove(&(kind, key));
            self.tell(kind, Change::Gone(decode(kind, &object)));
        } else {
            self.objects.insert((kind, key), object.clone());
            self.tell(kind, Change::Seen(decode(kind, &object)));
        }
    }

    fn tell(&mut self, kind: Kind, change: Change) {
        self.pending.entry(kind).or_default().push_back(change);
    }

    /// Removes an object at once, as a kubelet does with a pod that has ended.
    pub(crate) fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        let key = Key::new(namespace, name);
        if let Some(mut object) = self.objects.remove(&(kind, key)) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.tell(kind, Change::Gone(decode(kind, &object)));
        }
    }

    pub(crate) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(kind, Key::new(namespace, name)))
    }

    pub(crate) fn list(&self, kind: Kind) -> Vec<&Value> {
        self.objects
            .iter()
            .filter(|((it, _), _)| *it == kind)
            .map(|(_, object)| object)
            .collect()
    }

    pub(crate) fn edit(
        &mut self,
        kind: Kind,
        namespace: &str,
        name: &str,
        edit: impl FnOnce(&mut Value),
    ) {
        let mut object = self.get(kind, namespace, name).unwrap().clone();
        edit(&mut object);
        self.put(kind, object);
    }

    pub(crate) fn delete(
        &mut self,
        kind: Kind,
        namespace: &str,
        name: &str,
        propagation: Propagation,
    ) {
        let target = Target::new(kind, namespace, name);
        self.delete_target(&target, None, Some(propagation))
            .unwrap();
    }

    /// Delivers one pending event, if there is one.
    pub(crate) fn deliver(&mut self) -> bool {
        let kinds: Vec<Kind> = self
            .pending
            .iter()
            .filter(|(_, it)| !it.is_empty())
            .map(|(kind, _)| *kind)
            .collect();
        if kinds.is_empty() {
            return false;
        }
        let pick = self.order.pop_front().unwrap_or(0) % kinds.len();
        let change = self
            .pending
            .get_mut(&kinds[pick])
            .and_then(VecDeque::pop_front)
            .unwrap();
        self.brain.observe(change, self.now());
        true
    }

    /// Runs one job or brings the answer to one, if there is any.
    pub(crate) fn work(&mut self) -> bool {
        let wish = self.slow && self.order.pop_front().is_some_and(|pick| pick % 2 == 0);
        let answer_first = wish && !self.answers.is_empty();
        if !answer_first && let Some(job) = self.brain.next_job(self.now()) {
            let done = self.carry_out(job);
            self.answers.push_back(done);
            if self.slow {
                return true;
            }
        }
        let Some(done) = self.answers.pop_front() else {
            return false;
        };
        let now = self.now();
        self.brain.done(done, now);
        true
    }

    fn carry_out(&mut self, job: Job) -> Done {
        let mut answers = Vec::new();
        for write in job.writes.clone() {
            self.writes += 1;
            assert!(
                self.writes < 20_000,
                "the controllers do not come to rest: {} {}",
                job.key,
                job.controller.label()
            );
            let fate = self.flaky.pop_front().unwrap_or(0);
            let result = match fate {
                1 => Err((500, "no effect".to_owned())),
                2 => self.write(&write).and(Err((0, "no answer".to_owned()))),
                _ => self.write(&write),
            };
            match result {
                Ok(answer) => answers.push(answer),
                Err((code, message)) => {
                    let refused = (400..500).contains(&code);
                    let failure = Failure {
                        benign: code == 409,
                        refused,
                        message,
                    };
                    return job.ended(answers, Some(failure));
                }
            }
        }
        job.ended(answers, None)
    }

    /// Works until nothing is left to do at this moment.
    pub(crate) fn settle(&mut self) {
        while self.deliver() || self.work() {}
    }

    /// Lets time pass second by second, and works.
    pub(crate) fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.seconds += 1;
            self.settle();
        }
    }
}

fn key_of(object: &Value) -> Key {
    let meta = &object["metadata"];
    Key::new(
        meta["namespace"].as_str().unwrap_or_default(),
        meta["name"].as_str().unwrap(),
    )
}

fn decode(kind: Kind, object: &Value) -> Object {
    kind.decode(&object.to_string()).unwrap()
}

mod objects;
mod server;
pub(crate) use objects::*;
