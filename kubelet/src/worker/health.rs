//! Which containers are started and ready: health records come and go with the running containers, and so do
//! the tasks that probe them.

use tokio_util::task::AbortOnDropHandle;

use super::task::send;
use super::{Outcome, Worker};
use crate::events::Severity;
use crate::pod::{self, Role};
use crate::probe::Kind as ProbeKind;
use crate::probe::run::{self, Target};
use crate::soft::{Health, Unhealthy};

impl Worker {
    /// Makes records for containers that run and drops those of containers that do not. At the first
    /// look (`first`) after the kubelet's start, containers go on being what the API shows of them.
    pub(super) fn tend_health(&mut self, first: bool) {
        let running: Vec<_> = self
            .observed
            .containers
            .iter()
            .filter(|c| c.is_running())
            .map(|c| (c.id.clone(), c.name.clone()))
            .collect();
        let lives = |id: &String| running.iter().any(|(r, _)| r == id);
        self.soft.health.retain(|id, _| lives(id));
        self.soft.kills.retain(|id, _| lives(id));
        self.probes.retain(|(id, _), _| lives(id));
        for (id, name) in &running {
            if self.soft.health.contains_key(id) {
                continue;
            }
            let Some((container, _)) = pod::container(&self.pod, name) else {
                continue;
            };
            let was = self.shown_of(id).filter(|_| first);
            let health = Health {
                post_start_running: !first
                    && container
                        .lifecycle
                        .as_ref()
                        .is_some_and(|l| l.post_start.is_some()),
                started: container.startup_probe.is_none() || was.is_some_and(|w| w.0),
                ready: container.readiness_probe.is_none() || was.is_some_and(|w| w.1),
                unhealthy: None,
            };
            self.soft.health.insert(id.clone(), health);
        }
    }

    /// `started` and `ready` of a container as the API shows it.
    fn shown_of(&self, id: &str) -> Option<(bool, bool)> {
        let wanted = crate::status::container_id(id);
        let status = self.pod.status.as_ref()?;
        let mut all = status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten();
        let found = all.find(|s| s.container_id.as_deref() == Some(&wanted))?;
        Some((found.started == Some(true), found.ready))
    }

    /// Starts the probes that are due and stops those that are not.
    pub(super) fn tend_probes(&mut self) {
        let ending = self.soft.gone || pod::is_deleting(&self.pod) || self.soft.failed.is_some();
        if ending {
            // A pod on its way out is not restarted, but its readiness still counts.
            self.probes
                .retain(|(_, kind), _| *kind == ProbeKind::Readiness);
        }
        let mut wanted = Vec::new();
        for run in self.observed.containers.iter().filter(|c| c.is_running()) {
            let Some((container, role)) = pod::container(&self.pod, &run.name) else {
                continue;
            };
            let Some(health) = self.soft.health.get(&run.id) else {
                continue;
            };
            if role == Role::Init || health.post_start_running {
                continue;
            }
            let kinds: &[ProbeKind] = match (health.started, ending) {
                (false, false) => &[ProbeKind::Startup],
                (false, true) => &[],
                (true, false) => &[ProbeKind::Liveness, ProbeKind::Readiness],
                (true, true) => &[ProbeKind::Readiness],
            };
            for kind in kinds {
                if let Some(probe) = kind.of(container) {
                    wanted.push((run.id.clone(), *kind, container.clone(), probe.clone()));
                }
            }
        }
        for (id, kind, container, probe) in wanted {
            let key = (id.clone(), kind);
            if self.probes.contains_key(&key) {
                continue;
            }
            let target = Target {
                pod: self.pod.clone(),
                container,
                id: id.clone(),
                ip: self.ips.first().or(self.ctx.node.ips.first()).copied(),
                rt: self.ctx.rt.clone(),
                events: self.ctx.events.clone(),
            };
            let queue = self.queue.clone();
            let task = tokio::spawn(run::run(target, kind, probe, move |good| {
                let queue = queue.clone();
                let outcome = Outcome::Probe {
                    id: id.clone(),
                    kind,
                    good,
                };
                async move {
                    let facts = None;
                    send(&queue, super::Done { outcome, facts }).await;
                }
            }));
            self.probes.insert(key, AbortOnDropHandle::new(task));
        }
    }

    pub(super) fn probed(&mut self, id: &str, kind: ProbeKind, good: bool) {
        let Some(run) = self.observed.by_id(id) else {
            return;
        };
        let name = run.name.clone();
        let Some(health) = self.soft.health.get_mut(id) else {
            return;
        };
        match (kind, good) {
            (ProbeKind::Readiness, good) => health.ready = good,
            (ProbeKind::Startup, true) => {
                health.started = true;
                self.probes.remove(&(id.to_owned(), ProbeKind::Startup));
            }
            (ProbeKind::Liveness, true) => health.unhealthy = None,
            (ProbeKind::Startup | ProbeKind::Liveness, false) => {
                let word = kind.title().to_lowercase();
                let probe = pod::container(&self.pod, &name).and_then(|(c, _)| kind.of(c));
                let grace_seconds = probe.and_then(|p| p.termination_grace_period_seconds);
                health.unhealthy = Some(Unhealthy {
                    message: format!("Container {name} failed {word} probe, will be restarted"),
                    grace_seconds,
                });
            }
        }
    }

    pub(super) fn post_start_ended(&mut self, id: &str, result: Result<(), String>) {
        let name = self.observed.by_id(id).map(|r| r.name.clone());
        if let (Err(message), Some(name)) = (&result, &name) {
            let text = format!("PostStartHook failed: {message}");
            self.event(Some(name), Severity::Warning, "FailedPostStartHook", text);
        }
        if let Some(health) = self.soft.health.get_mut(id) {
            health.post_start_running = false;
            if result.is_err() {
                health.unhealthy = Some(Unhealthy {
                    message: "FailedPostStartHook".to_owned(),
                    grace_seconds: None,
                });
            }
        }
    }
}
