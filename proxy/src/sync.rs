//! The loop: events mark services dirty, and at its own [`pace`](crate::pace) it decides, plans and
//! applies them.

mod account;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use api::cidr::Family;
use linux::nftables::Monitor;
use tokio::sync::mpsc::{Receiver, UnboundedSender};

use crate::backend::{Backend, Report};
use crate::conntrack::{self, Alarm, Changed, FlowTable, Owners};
use crate::events::Events;
use crate::health::Health;
use crate::health::checks::Update;
use crate::local::Local;
use crate::metrics::{Metrics, NoLocal};
use crate::model::{ObjectRef, Policy};
use crate::node::Addresses;
use crate::pace::{Due, Pace, Pacer};
use crate::rules_watch::RulesWatch;
use crate::store::{Changes, Input, PortChange, Store};
use account::Arrivals;

/// Events taken in before a sync, however fast they come.
const BATCH_MAX: usize = 10_000;

/// Problems of objects that are told one by one, of those that come together.
const PROBLEMS_TOLD_MAX: usize = 20;

/// What the loop is told.
#[derive(Debug)]
pub enum Message {
    /// Events that belong together.
    Inputs {
        /// The events.
        inputs: Vec<Input>,
        /// When they came in.
        received: Instant,
    },
    /// Somebody may have changed our rules.
    Verify,
    /// The node has these addresses.
    Addresses(Addresses),
    /// The end. The rules stay.
    Stop,
}

/// What the loop works with.
pub struct Parts {
    /// The modes' planes, one for each family.
    pub planes: Vec<(Family, Box<dyn Backend>)>,
    /// What settings follow from.
    pub local: Local,
    /// Whether we keep up.
    pub health: Arc<Health>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Tracked connections.
    pub flows: Box<dyn FlowTable + Send>,
    /// Where warnings about objects go.
    pub events: Events,
    /// Where it is told which health checks to serve.
    pub checks: UnboundedSender<Update>,
    /// Called after the first sync.
    pub on_synced: Box<dyn FnOnce() + Send>,
}

/// The loop's state.
pub struct Engine {
    store: Store,
    planes: Vec<(Family, Box<dyn Backend>)>,
    local: Local,
    pacer: Pacer,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    flows: Box<dyn FlowTable + Send>,
    events: Events,
    checks: UnboundedSender<Update>,
    on_synced: Option<Box<dyn FnOnce() + Send>>,
    monitor: Option<Monitor>,
    /// Flows to look after once the rules are in.
    changed_flows: BTreeMap<Family, Changed>,
    no_local: BTreeMap<Family, NoLocal>,
    arrivals: Arrivals,
    /// When everything was listed for the first time, until it is in the kernel.
    listed: Option<Instant>,
    alarm: Alarm,
}

impl Engine {
    /// Over an empty store.
    pub fn new(store: Store, parts: Parts) -> Self {
        let config = parts.local.config();
        let pace = Pace {
            sync_period: config.sync_period,
            min_sync_period: config.min_sync_period,
        };
        Self {
            store,
            planes: parts.planes,
            local: parts.local,
            pacer: Pacer::new(pace, Instant::now()),
            health: parts.health,
            metrics: parts.metrics,
            flows: parts.flows,
            events: parts.events,
            checks: parts.checks,
            on_synced: Some(parts.on_synced),
            monitor: None,
            changed_flows: BTreeMap::new(),
            no_local: BTreeMap::new(),
            arrivals: Arrivals::default(),
            listed: None,
            alarm: Alarm::default(),
        }
    }

    /// Verifies as soon as others delete rules.
    #[must_use]
    pub fn with_monitor(mut self, monitor: Monitor) -> Self {
        self.monitor = Some(monitor);
        self
    }

    fn ready(&self) -> bool {
        self.store.ready() && self.local.is_complete()
    }

    /// When a backend wants a sync although nothing changed.
    fn wanted_at(&self) -> Option<Instant> {
        self.planes.iter().filter_map(|(_, p)| p.due()).min()
    }

    /// Runs until told to stop or until nobody can tell any more.
    pub async fn run(mut self, mut messages: Receiver<Message>) {
        // Without it (a kernel without nf_tables) the periodic verification is all there is.
        let watch = RulesWatch::new(self.monitor.take(), &self.planes);
        self.reconfigure();
        self.measure_pressure();
        loop {
            let wake = self.pacer.wake(self.ready());
            let wake = self.wanted_at().map_or(wake, |at| wake.min(at));
            let message = tokio::select! {
                message = tokio::time::timeout_at(wake.into(), messages.recv()) => message,
                () = watch.changed(&mut self.planes) => Ok(Some(Message::Verify)),
            };
            let mut taken = 0;
            let mut next = match message {
                Ok(None) => return,
                Ok(Some(message)) => Some(message),
                Err(_elapsed) => None,
            };
            // What is there already goes into the same sync.
            while let Some(message) = next {
                match self.take(message) {
                    Some(n) => taken += n,
                    None => return,
                }
                next = (taken < BATCH_MAX)
                    .then(|| messages.try_recv().ok())
                    .flatten();
            }
            let now = Instant::now();
            if self.wanted_at().is_some_and(|at| at <= now) {
                self.pacer.changed(now);
            }
            match self.pacer.due(now, self.ready()) {
                Due::Nothing => {}
                Due::Verify => {
                    self.verify();
                    self.pacer.verified(now, Instant::now());
                    self.measure_pressure();
                }
                Due::Full => {
                    self.pacer.full(now);
                    self.planes.iter_mut().for_each(|(_, p)| p.distrust());
                    self.pacer.changed(now);
                }
                Due::Sync => {
                    if watch.drain(&mut self.planes) {
                        self.pacer.suspect(now);
                    }
                    self.sync();
                    // What others did meanwhile: backends know their own changes.
                    if watch.drain(&mut self.planes) {
                        self.pacer.suspect(now);
                    }
                    self.planes.iter_mut().for_each(|(_, p)| p.seen_all());
                }
            }
        }
    }

    /// Takes a message in; returns how many events were in it, or `None` at the end.
    fn take(&mut self, message: Message) -> Option<usize> {
        match message {
            Message::Stop => return None,
            Message::Verify => self.pacer.suspect(Instant::now()),
            Message::Addresses(addresses) => {
                if self.local.set_addresses(addresses) {
                    self.reconfigure();
                    self.see_addresses();
                }
            }
            Message::Inputs { inputs, received } => {
                let n = inputs.len();
                self.feed(inputs, received);
                return Some(n);
            }
        }
        Some(1)
    }

    fn feed(&mut self, inputs: Vec<Input>, received: Instant) {
        let mut about_node = false;
        let mut changes = 0;
        let ready = self.store.ready();
        for input in inputs {
            about_node |= matches!(input, Input::Node(_) | Input::ServiceCidr(_));
            let is_change = input.is_change();
            self.store.apply(input);
            let counts = self.store.take_counts();
            changes += u64::from(is_change && !counts.is_empty());
            for (family, changed) in counts {
                self.metrics.changed(family, changed);
            }
        }
        self.tell_problems();
        let cidrs = || self.store.service_cidrs();
        if about_node && self.local.set_facts(self.store.facts(), cidrs()) {
            self.health.node_goes(self.store.facts().goes);
            self.reconfigure();
        }
        if !ready && self.store.ready() {
            self.listed = Some(Instant::now());
        }
        // The first sync comes when the lists are complete, even if they are empty.
        if self.store.is_dirty() || ready != self.store.ready() {
            if self.store.is_dirty() && ready {
                self.arrivals.add(received, changes);
            }
            self.pending();
        }
    }

    fn tell_problems(&mut self) {
        let news = self.store.take_news();
        self.metrics.problems.add(news.len() as u64);
        for problem in news.iter().take(PROBLEMS_TOLD_MAX) {
            let message = format!("{}: {}; left out", problem.field, problem.message);
            self.events
                .warning(&problem.object, "UnusableField", message);
        }
        if let Some(more) = news.len().checked_sub(PROBLEMS_TOLD_MAX).filter(|n| *n > 0) {
            tracing::warn!("{more} more parts of objects cannot be used; left out");
        }
    }

    fn pending(&mut self) {
        let now = Instant::now();
        self.pacer.changed(now);
        for (family, _) in &self.planes {
            self.health.queued(*family, now);
            self.metrics.queued(*family);
        }
    }

    /// Rules that name the node's addresses follow them.
    fn see_addresses(&mut self) {
        let mut differ = false;
        for (_, plane) in &mut self.planes {
            differ |= plane.see_addresses();
        }
        if differ {
            self.pending();
        }
    }

    fn verify(&mut self) {
        self.see_addresses();
        let mut lost = false;
        for (family, plane) in &mut self.planes {
            if !plane.is_trusted() {
                continue;
            }
            match plane.is_intact() {
                Ok(true) => continue,
                Ok(false) => {
                    tracing::warn!("{family} rules of ours are gone; they are restored");
                    self.metrics.repairs.add(1);
                    plane.doubt();
                }
                Err(error) => {
                    tracing::warn!("verify {family} rules: {error}");
                    plane.distrust();
                }
            }
            lost = true;
        }
        if lost {
            self.pending();
        }
    }

    fn measure_pressure(&mut self) {
        match self.flows.pressure() {
            Ok(pressure) => {
                self.metrics.pressure(pressure);
                if let Some(mut warning) = self.alarm.look(pressure) {
                    // Once each time that the table fills up.
                    let snapshot = self.store.snapshot();
                    let all = snapshot.v4.values().chain(snapshot.v6.values());
                    match self.flows.count(&Owners::new(all)) {
                        Ok(counts) => {
                            let most = conntrack::words(&counts);
                            warning.extend(most.map(|most| format!("; {most}")));
                        }
                        Err(error) => tracing::debug!("{error}"),
                    }
                    let node = ObjectRef::node(&self.local.config().node_name);
                    self.events.warning(&node, "ConntrackFull", warning);
                }
            }
            Err(error) => tracing::debug!("{error}"),
        }
    }

    /// One sync.
    fn sync(&mut self) {
        let began = Instant::now();
        let changes = self.store.take_changes();
        let triggers = self.store.take_triggers();
        self.arrivals.triggered(triggers);
        self.account(&changes);
        let mut ok = true;
        let mut compared = false;
        for (family, full, result) in sync_planes(&mut self.planes, &changes) {
            compared |= full;
            match result {
                Ok((report, took)) => {
                    self.succeeded(family, changes.of(family).len(), report, took)
                }
                Err(error) => {
                    tracing::error!("{family} rules: {error}");
                    self.metrics.failed(family, full);
                    ok = false;
                }
            }
        }
        let ended = Instant::now();
        if ok {
            self.arrivals.committed(ended, &self.metrics);
            if let Some(listed) = self.listed.take() {
                let took = ended.saturating_duration_since(listed);
                tracing::info!(?took, "all that was listed is programmed");
            }
            self.clean();
            let snapshot = self.store.snapshot();
            self.metrics
                .ports
                .set(snapshot.v4.len() + snapshot.v6.len());
            if let Some(on_synced) = self.on_synced.take() {
                on_synced();
            }
        }
        if compared {
            // Comparing everything takes as much memory again as keeping it.
            drop(changes);
            linux::memory::trim_memory();
        }
        self.pacer.synced(began, Instant::now(), ok);
    }

    fn succeeded(&mut self, family: Family, ports: usize, report: Report, took: Duration) {
        let no_local = self.no_local.get(&family).copied().unwrap_or_default();
        let plane = self.planes.iter().find(|(of, _)| *of == family);
        let tables = plane.map(|(_, plane)| plane.rules()).unwrap_or_default();
        self.metrics
            .synced(family, report.full, took, no_local, tables);
        self.health.synced(family, SystemTime::now());
        log(family, ports, report, took);
    }

    /// Deletes flows that lead to where nobody serves any more. What could not be done is tried
    /// again after the next sync.
    fn clean(&mut self) {
        for (family, changed) in std::mem::take(&mut self.changed_flows) {
            if changed.is_empty() {
                continue;
            }
            let began = Instant::now();
            match self.flows.clean(family, &changed) {
                Ok(deleted) => {
                    self.metrics.conntrack(family, began.elapsed(), &deleted);
                    for (port, n) in &deleted {
                        tracing::info!("{port}: {n} stale UDP flows deleted ({family})");
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        "{family} UDP flows may lead to endpoints that are gone: {error}"
                    );
                    self.changed_flows.insert(family, changed);
                }
            }
        }
    }

    /// Works with the settings that follow from what is known: where they differ, everything is
    /// planned anew and compared.
    fn reconfigure(&mut self) {
        let view = crate::model::NodeView {
            ips: self.local.node_ips(),
            ..self.store.node().clone()
        };
        self.store.set_node(view);
        let masquerade_all = self.local.config().masquerade_all;
        let mut differ = self.store.is_dirty();
        for (family, plane) in &mut self.planes {
            let settings = self.local.settings(*family);
            let policy = Policy {
                detect_local: settings.detect_local.is_some(),
                masquerade_all,
            };
            self.store.set_policy(*family, policy);
            let scope = Update::Scope(*family, settings.node_ports.clone());
            // At the end nobody serves checks any more.
            let _ended = self.checks.send(scope);
            if *plane.settings() != settings {
                plane.reconfigure(settings, self.store.snapshot().of(*family));
                differ = true;
            }
        }
        if differ {
            self.pending();
        }
    }
}

/// What came of one plane's sync: whether all was to be written, and how it ended.
type Outcome = (Family, bool, Result<(Report, Duration), String>);

/// Sets the changed ports and makes the kernel's rules what is wanted, in each family.
fn sync_planes(planes: &mut [(Family, Box<dyn Backend>)], changes: &Changes) -> Vec<Outcome> {
    let now = Instant::now();
    let has_work = |family: Family, plane: &dyn Backend| {
        !plane.is_trusted()
            || !changes.of(family).is_empty()
            || plane.due().is_some_and(|at| at <= now)
    };
    let busy = planes.iter().filter(|(of, p)| has_work(*of, p.as_ref()));
    if busy.count() < 2 {
        let one_by_one = planes.iter_mut().map(|(family, plane)| {
            if !has_work(*family, plane.as_ref()) {
                return (*family, false, Ok((Report::default(), Duration::ZERO)));
            }
            sync_plane(*family, plane.as_mut(), changes.of(*family))
        });
        return one_by_one.collect();
    }
    // Where programs are run, those of both families do not wait for each other.
    std::thread::scope(|scope| {
        let jobs: Vec<_> = planes
            .iter_mut()
            .map(|(family, plane)| {
                let family = *family;
                let changed = changes.of(family);
                (
                    family,
                    scope.spawn(move || sync_plane(family, plane.as_mut(), changed)),
                )
            })
            .collect();
        let join = |(family, job): (Family, std::thread::ScopedJoinHandle<'_, Outcome>)| {
            job.join()
                .unwrap_or_else(|_panic| (family, true, Err("the sync panicked".to_owned())))
        };
        jobs.into_iter().map(join).collect()
    })
}

fn sync_plane(family: Family, plane: &mut dyn Backend, changed: &[PortChange]) -> Outcome {
    let began = Instant::now();
    let full = !plane.is_trusted();
    plane.set(changed);
    let result = plane.sync();
    if result.is_err() {
        plane.distrust();
    }
    let result = result.map(|report| (report, began.elapsed()));
    (family, full, result.map_err(|error| error.to_string()))
}

fn log(family: Family, ports: usize, report: Report, took: Duration) {
    let Report {
        objects,
        rules,
        deleted,
        full,
    } = report;
    if full {
        tracing::info!(ports, objects, rules, deleted, ?took, "{family}: full sync");
    } else if objects + deleted > 0 {
        tracing::debug!(ports, objects, rules, deleted, ?took, "{family}: sync");
    }
}

#[cfg(test)]
mod tests;
