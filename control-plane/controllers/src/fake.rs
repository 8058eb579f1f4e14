//! A cluster in memory for tests: an API server's store, the brain in front of it, and a kubelet that starts pods.
//!
//! Events reach the brain late and interleaved between kinds when a test asks for it, as real watches do.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::config::Config;
use crate::engine::brain::{Answer, Brain, Change, Failure, Job};
use crate::kinds::{Kind, Object};
use crate::note::Note;
use crate::view::{Key, Now};
use crate::write::{PatchKind, Propagation, Target, Write};

/// A whole second, as times on the wire are.
pub(crate) fn at(seconds: u64) -> Now {
    let base: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    Now {
        wall: base + jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap()),
        mono: Duration::from_secs(seconds),
    }
}

/// The wire form of a time of [`at`].
pub(crate) fn stamp(seconds: u64) -> String {
    crate::note::format_time(at(seconds).wall)
}

type Refused = (u16, String);

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

    /// Runs one job, if there is one.
    pub(crate) fn work(&mut self) -> bool {
        let Some(job) = self.brain.next_job(self.now()) else {
            return false;
        };
        self.carry_out(job);
        true
    }

    fn carry_out(&mut self, job: Job) {
        let mut answers = Vec::new();
        let mut failure = None;
        for write in job.writes.clone() {
            self.writes += 1;
            assert!(
                self.writes < 20_000,
                "the controllers do not come to rest: {} {}",
                job.key,
                job.controller.label()
            );
            match self.write(&write) {
                Ok(answer) => answers.push(answer),
                Err((code, message)) => {
                    failure = Some(Failure {
                        benign: code == 409,
                        refused: true,
                        message,
                    });
                    break;
                }
            }
        }
        let now = self.now();
        self.brain.done(job.ended(answers, failure), now);
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

    fn write(&mut self, write: &Write) -> Result<Answer, Refused> {
        match write {
            Write::Create {
                kind,
                namespace,
                object,
                announce,
            } => {
                let result = self.create(*kind, namespace, object);
                if let Some(announce) = announce {
                    let note = if result.is_ok() {
                        &announce.done
                    } else {
                        &announce.failed
                    };
                    self.notes.extend(note.clone());
                }
                result
            }
            Write::Patch {
                target, how, body, ..
            } => self.patch(target, *how, body),
            Write::Delete {
                target,
                uid,
                grace_seconds,
                propagation,
                announce,
            } => {
                if let Some(note) = announce.as_ref().and_then(|it| it.done.clone()) {
                    self.notes.push(note);
                }
                let _ = grace_seconds;
                self.delete_target(target, Some(uid), *propagation)
            }
            Write::Bind {
                namespace,
                pod,
                node,
                ..
            } => {
                let key = (Kind::Pod, Key::new(namespace, pod));
                let mut object = self
                    .objects
                    .get(&key)
                    .cloned()
                    .ok_or((404, "pod".to_owned()))?;
                if !object["spec"]["nodeName"].is_null() {
                    return Err((409, format!("pod {pod} is already assigned")));
                }
                object["spec"]["nodeName"] = json!(node);
                self.store(Kind::Pod, key.1, object);
                Ok(Answer::Nothing)
            }
            Write::AssignPodCidrs { node, body, .. } => {
                self.patch(&Target::new(Kind::Node, "", node), PatchKind::Merge, body)
            }
            Write::Event(note) => {
                self.notes.push(note.clone());
                Ok(Answer::Nothing)
            }
            Write::ProbeOwner { target, uid } => {
                let present = target.kind.is_some_and(|kind| {
                    self.get(kind, &target.namespace, &target.name)
                        .is_some_and(|object| object["metadata"]["uid"] == **uid)
                });
                Ok(Answer::Owner {
                    uid: uid.clone(),
                    present,
                })
            }
            Write::EmptyNamespace { uid, .. } => Ok(Answer::Emptied {
                uid: uid.clone(),
                remaining: crate::view::Remaining::default(),
            }),
            Write::FinalizeNamespace { name } => {
                let key = Key::new("", name);
                let mut object = self.objects[&(Kind::Namespace, key.clone())].clone();
                object["spec"]["finalizers"] = json!([]);
                self.store(Kind::Namespace, key, object);
                Ok(Answer::Nothing)
            }
        }
    }

    fn create(&mut self, kind: Kind, namespace: &str, object: &Value) -> Result<Answer, Refused> {
        if self.refuse == Some(kind) {
            return Err((403, "exceeded quota".to_owned()));
        }
        let mut object = object.clone();
        if object["metadata"]["name"].is_null() {
            let prefix = object["metadata"]["generateName"]
                .as_str()
                .unwrap()
                .to_owned();
            object["metadata"]["name"] = json!(format!("{prefix}{}", self.version));
        }
        object["metadata"]["namespace"] = json!(namespace);
        let key = key_of(&object);
        if self.objects.contains_key(&(kind, key.clone())) {
            return Err((409, format!("{key} already exists")));
        }
        self.put(kind, object);
        let stored = self.objects[&(kind, key)].clone();
        Ok(Answer::Created(decode(kind, &stored)))
    }

    fn patch(&mut self, target: &Target, how: PatchKind, body: &Value) -> Result<Answer, Refused> {
        let kind = target.kind.unwrap();
        let key = Key::new(&target.namespace, &target.name);
        let Some(old) = self.objects.get(&(kind, key.clone())).cloned() else {
            return Ok(Answer::Nothing);
        };
        for field in ["resourceVersion", "uid"] {
            let wanted = &body["metadata"][field];
            if !wanted.is_null() && *wanted != old["metadata"][field] {
                return Err((409, format!("{key}: the object has been modified")));
            }
        }
        let mut object = old.clone();
        merge(&mut object, body, how);
        for field in ["resourceVersion", "uid"] {
            object["metadata"][field] = old["metadata"][field].clone();
        }
        if object["spec"] != old["spec"] {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            object["metadata"]["generation"] = json!(generation);
        }
        if object == old {
            return Ok(Answer::Changed(decode(kind, &old)));
        }
        self.store(kind, key.clone(), object);
        Ok(self
            .objects
            .get(&(kind, key))
            .map_or(Answer::Nothing, |object| {
                Answer::Changed(decode(kind, object))
            }))
    }

    fn delete_target(
        &mut self,
        target: &Target,
        uid: Option<&str>,
        propagation: Option<Propagation>,
    ) -> Result<Answer, Refused> {
        let kind = target.kind.unwrap();
        let key = Key::new(&target.namespace, &target.name);
        let gone = |uid: &str| Answer::Deleted {
            kind: Some(kind),
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: uid.to_owned(),
        };
        let Some(mut object) = self.objects.get(&(kind, key.clone())).cloned() else {
            return Ok(gone(uid.unwrap_or_default()));
        };
        let known = object["metadata"]["uid"].as_str().unwrap().to_owned();
        if uid.is_some_and(|uid| uid != known) {
            return Err((409, format!("{key}: uid is {known}")));
        }
        let finalizer = match propagation {
            Some(Propagation::Foreground) => Some("foregroundDeletion"),
            Some(Propagation::Orphan) => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let mut list = object["metadata"]["finalizers"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            if !list.contains(&json!(finalizer)) {
                list.push(json!(finalizer));
            }
            object["metadata"]["finalizers"] = Value::Array(list);
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(stamp(self.seconds));
        }
        self.store(kind, key.clone(), object);
        Ok(match self.objects.get(&(kind, key)) {
            Some(object) => Answer::Changed(decode(kind, object)),
            None => gone(&known),
        })
    }
}

/// JSON merge patch; strategic: lists of conditions are merged by type.
fn merge(into: &mut Value, patch: &Value, how: PatchKind) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (field, change) in patch {
        if change.is_null() {
            into.as_object_mut().unwrap().remove(field);
        } else if field == "conditions" && how == PatchKind::Strategic {
            let mut list = into[field].as_array().cloned().unwrap_or_default();
            for condition in change.as_array().unwrap() {
                list.retain(|known| known["type"] != condition["type"]);
                list.push(condition.clone());
            }
            into[field] = Value::Array(list);
        } else {
            merge(&mut into[field], change, how);
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
pub(crate) use objects::*;
