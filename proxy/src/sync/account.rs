//! What follows from changed decisions beside rules: flows to look after, health checks to serve,
//! numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use api::cidr::Family;
use jiff::Timestamp;

use super::Engine;
use crate::health::checks::{Check, Update};
use crate::metrics::{Metrics, NoLocal};
use crate::model::{Decision, PortName, ServiceName, Verdict};
use crate::store::{Changes, PortChange};

/// Arrivals that are kept apart; later ones count as the last of these.
const ARRIVALS_MAX: usize = 1024;

/// Triggers that are kept; more are not measured.
const TRIGGERS_MAX: usize = 10_000;

/// When what is not in the kernel yet came.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// Changes that are older are not this process's to measure.
    started: Timestamp,
    /// Time of arrival, and how many events.
    events: Vec<(Instant, u64)>,
    triggers: BTreeMap<Family, Vec<Timestamp>>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            started: Timestamp::now(),
            events: Vec::new(),
            triggers: BTreeMap::new(),
        }
    }
}

impl Arrivals {
    /// Events came at `received`.
    pub(super) fn add(&mut self, received: Instant, events: u64) {
        if events == 0 {
            return;
        }
        let full = self.events.len() >= ARRIVALS_MAX;
        match self.events.last_mut() {
            Some((_, n)) if full => *n += events,
            _ => self.events.push((received, events)),
        }
    }

    /// Changes that the cluster says were caused at these times.
    pub(super) fn triggered(&mut self, triggers: BTreeMap<Family, Vec<Timestamp>>) {
        for (family, times) in triggers {
            let known = self.triggers.entry(family).or_default();
            let room = TRIGGERS_MAX.saturating_sub(known.len());
            let own = times.into_iter().filter(|time| *time > self.started);
            known.extend(own.take(room));
        }
    }

    /// All of it is in the kernel at `now`.
    pub(super) fn committed(&mut self, now: Instant, metrics: &Metrics) {
        for (received, n) in self.events.drain(..) {
            let took = now.saturating_duration_since(received);
            metrics.latency(took, n);
            tracing::debug!(n, ?took, "events are in the kernel");
        }
        let time = Timestamp::now();
        for (family, times) in std::mem::take(&mut self.triggers) {
            for trigger in times {
                let took = time.duration_since(trigger);
                metrics.programmed(family, took.try_into().unwrap_or_default());
            }
        }
    }
}

impl Engine {
    /// Takes account of changed ports, before they are written.
    pub(super) fn account(&mut self, changes: &Changes) {
        for family in Family::BOTH {
            let flows = self.changed_flows.entry(family).or_default();
            let no_local = self.no_local.entry(family).or_default();
            let mut checked = BTreeSet::new();
            for change in changes.of(family) {
                flows.add(change.old.as_ref(), change.new.as_ref());
                count_no_local(no_local, change);
                if has_check(change) {
                    checked.insert(&change.name.service);
                }
            }
            for service in checked {
                self.check(family, service);
            }
        }
    }

    /// Tells what the health check of a service is now.
    fn check(&mut self, family: Family, service: &ServiceName) {
        let ports = self.store.snapshot().of(family);
        let of_service = ports
            .range(PortName::first(service)..)
            .take_while(|(name, _)| name.service == *service);
        let port = of_service
            .filter_map(|(_, decision)| decision.health_check_node_port)
            .next();
        let check = port.map(|port| Check {
            port,
            local: self.store.local_ready(service, family),
        });
        let update = Update::Service(family, service.clone(), check);
        // At the end nobody serves checks any more.
        let _ended = self.checks.send(update);
    }
}

fn has_check(change: &PortChange) -> bool {
    let has = |decision: &Option<std::sync::Arc<Decision>>| {
        decision
            .as_ref()
            .is_some_and(|decision| decision.health_check_node_port.is_some())
    };
    has(&change.old) || has(&change.new)
}

fn count_no_local(count: &mut NoLocal, change: &PortChange) {
    if let Some(old) = &change.old {
        let of = no_local(old);
        count.internal = count.internal.saturating_sub(of.internal);
        count.external = count.external.saturating_sub(of.external);
    }
    if let Some(new) = &change.new {
        let of = no_local(new);
        count.internal += of.internal;
        count.external += of.external;
    }
}

/// A verdict is to drop only where a Local policy has endpoints, but none here.
fn no_local(decision: &Decision) -> NoLocal {
    let external =
        decision.externally_accessible() && decision.external.outside.verdict == Verdict::Drop;
    NoLocal {
        internal: u64::from(decision.internal.pod.verdict == Verdict::Drop),
        external: u64::from(external),
    }
}
