//! Applying the plan until it is empty always ends, in the state that was wanted.

use proptest::prelude::*;

use super::*;
use crate::observed::{Container, Exit, Sandbox, State};

/// A world in which every action works at once, and containers end as `codes` says when they are started.
struct World {
    pod: Pod,
    observed: Observed,
    soft: Soft,
    now: i64,
    codes: Vec<Option<i32>>,
    sandboxes: u32,
    deleted: bool,
}

impl World {
    fn apply(&mut self, action: Action) {
        match action {
            Action::MountVolumes => self.soft.volumes = Step::Done,
            Action::CreateSandbox => {
                self.sandboxes += 1;
                self.soft.sandbox = Step::Done;
                self.observed.sandbox = Some(Sandbox {
                    id: format!("sb{}", self.sandboxes),
                    ready: true,
                    ips: Vec::new(),
                });
            }
            Action::RemoveSandbox => {
                assert!(!self.observed.any_running(), "a sandbox in use is removed");
                self.soft.sandbox = Step::Idle;
                self.observed.sandbox = None;
            }
            Action::StartContainer { name, attempt } => self.start(&name, attempt),
            Action::BeginKill { id, grace, .. } => {
                let kill = Kill {
                    deadline: at(self.now + i64::try_from(grace.as_secs()).unwrap()),
                    hook_running: false,
                    term_sent: false,
                    kill_sent: false,
                };
                self.soft.kills.insert(id, kill);
            }
            Action::Hasten { id, deadline } => {
                self.soft.kills.get_mut(&id).unwrap().deadline = deadline;
            }
            Action::SignalTerm { id } | Action::SignalKill { id } => {
                self.soft.kills.remove(&id);
                self.end(&id, 143);
            }
            Action::RemoveContainer { id } => self.observed.containers.retain(|c| c.id != id),
            Action::FailPod { reason, message } => self.soft.failed = Some((reason, message)),
            Action::Cleanup => self.soft.cleanup = Step::Done,
            Action::DeletePod => {
                self.soft.delete = Step::Done;
                self.deleted = true;
            }
        }
    }

    fn start(&mut self, name: &str, attempt: u32) {
        let (container, role) = pod::container(&self.pod, name).unwrap();
        let sandbox_id = self.observed.sandbox.as_ref().unwrap().id.clone();
        let last = self.observed.latest(name).and_then(|l| l.exit()?.finished);
        if let Some(ended) = last {
            let old = self.soft.backoff.get(name);
            let next = Backoff::next(old, ended, at(self.now));
            self.soft.backoff.insert(name.to_owned(), next);
        }
        let id = format!("{name}-{attempt}");
        self.observed.containers.push(Container {
            id: id.clone(),
            name: name.to_owned(),
            attempt,
            sandbox_id,
            image: container.image.clone().unwrap(),
            image_id: String::new(),
            state: State::Running {
                started: at(self.now),
            },
        });
        let health = Health {
            started: true,
            ready: true,
            ..Health::default()
        };
        self.soft.health.insert(id.clone(), health);
        let code = match self.codes.pop() {
            Some(code) => code,
            // What comes after the given runs ends well, or stays up if it is to.
            None if role == Role::Init => Some(0),
            None => None,
        };
        if let Some(code) = code {
            self.end(&id, code);
        }
    }

    fn end(&mut self, id: &str, code: i32) {
        let run = self.observed.containers.iter_mut().find(|c| c.id == id);
        run.unwrap().state = State::Exited(Exit {
            code,
            started: Some(at(self.now)),
            finished: Some(at(self.now)),
            ..Exit::default()
        });
    }

    /// Applies plans, letting time pass to each wake, until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..500 {
            let view = View {
                pod: &self.pod,
                observed: &self.observed,
                soft: &self.soft,
                now: at(self.now),
            };
            let plan = plan(view);
            match (plan.actions.is_empty(), plan.wake) {
                (true, None) => return,
                (true, Some(wake)) => self.now = wake.as_second() - at(0).as_second(),
                _ => plan.actions.into_iter().for_each(|a| self.apply(a)),
            }
        }
        panic!("no end: {:?} {:?}", self.observed, self.soft);
    }
}

fn code() -> impl Strategy<Value = Option<i32>> {
    prop_oneof![Just(None), Just(Some(0)), Just(Some(1))]
}

proptest! {
    #[test]
    fn plans_reach_a_fixpoint(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        inits in 0usize..3,
        sidecar in any::<bool>(),
        apps in 1usize..3,
        codes in prop::collection::vec(code(), 0..8),
        delete in any::<bool>(),
    ) {
        let mut init: Vec<_> = (0..inits).map(|i| format!("{{name: i{i}, image: x}}")).collect();
        if sidecar {
            init.push("{name: s, image: x, restartPolicy: Always}".to_owned());
        }
        let apps: Vec<_> = (0..apps).map(|i| format!("{{name: a{i}, image: x}}")).collect();
        let text = format!("p: {{restartPolicy: {policy}, initContainers: [{}], containers: [{}]}}", init.join(","), apps.join(","));
        // Init containers that never end would hold the pod for ever, rightly.
        let codes = codes.into_iter().map(|c| if inits > 0 { c.or(Some(0)) } else { c }).collect();
        let mut world = World {
            pod: pod(&text),
            observed: Observed::default(),
            soft: Soft::default(),
            now: 0,
            codes,
            sandboxes: 0,
            deleted: false,
        };
        world.settle();
        if policy == "Always" {
            for c in pod::app_containers(&world.pod) {
                prop_assert!(world.observed.latest(&c.name).unwrap().is_running());
            }
        }
        if delete {
            world.pod.metadata.deletion_timestamp = Some(status::seconds(at(world.now + 30)));
            world.soft.end_by = Some(at(world.now + 30));
            world.settle();
            prop_assert!(world.deleted && !world.observed.any_running() && world.observed.sandbox.is_none());
            world.soft.gone = true;
            world.settle();
            prop_assert!(world.observed.containers.is_empty());
        }
    }
}
