//! The loop: events mark services dirty, and at its own pace it decides, plans and applies them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::cidr::Family;
use linux::rules_monitor::RulesMonitor;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Receiver;

use crate::backend::{Backend, Report, Settings};
use crate::conntrack::{Changed, FlowTable};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::store::{Input, PortChange, Store};

/// How long the loop waits for more events after the first: a rollout or a slice controller writes
/// several objects within a millisecond or two.
const COALESCE: Duration = Duration::from_millis(2);

/// Events taken in before a sync, however fast they come.
const BATCH_MAX: usize = 10_000;

/// Waits after a failed sync; doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// The longest wait after a failed sync.
const RETRY_LAST: Duration = Duration::from_secs(10);

/// The longest rest between two syncs. A sync is followed by a rest as long as it took, so that
/// the programs that share the kernel's rules with us get their turn.
const REST_MAX: Duration = Duration::from_secs(1);

/// After a verification the next one waits this many times as long as it took, however often
/// others delete rules of theirs: it lists all rules.
const VERIFY_REST: u32 = 10;

/// What the loop is told.
#[derive(Debug)]
pub enum Message {
    /// Events that belong together.
    Inputs(Vec<Input>),
    /// Somebody may have changed our rules.
    Verify,
    /// Other settings of the rules, for any number of families.
    Settings(Vec<Settings>),
    /// The end. The rules stay.
    Stop,
}

/// Settings of the loop.
#[derive(Debug, Clone)]
pub struct Pace {
    /// The rules are verified this often.
    pub sync_period: Duration,
    /// The shortest time from the end of a sync to the next.
    pub min_sync_period: Duration,
}

/// The loop's state.
pub struct Engine {
    store: Store,
    planes: Vec<(Family, Box<dyn Backend>)>,
    pace: Pace,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    flows: Box<dyn FlowTable + Send>,
    /// Flows to look after once the rules are in.
    changed_flows: BTreeMap<Family, Changed>,
    monitor: Option<RulesMonitor>,
    on_synced: Option<Box<dyn FnOnce() + Send>>,
    /// Nothing is programmed before settings come that only the node's object can tell.
    waits_for_settings: bool,
    /// Events came since the last good sync.
    pending: bool,
    failures: u32,
}

impl Engine {
    /// An engine over `planes`, one for each family. `on_synced` is called after the first sync.
    pub fn new(
        store: Store,
        planes: Vec<(Family, Box<dyn Backend>)>,
        pace: Pace,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        flows: Box<dyn FlowTable + Send>,
        on_synced: Box<dyn FnOnce() + Send>,
    ) -> Self {
        Self {
            store,
            planes,
            pace,
            health,
            metrics,
            flows,
            changed_flows: BTreeMap::new(),
            monitor: None,
            on_synced: Some(on_synced),
            waits_for_settings: false,
            pending: false,
            failures: 0,
        }
    }

    /// Programs nothing before the first [`Message::Settings`].
    #[must_use]
    pub fn wait_for_settings(mut self) -> Self {
        self.waits_for_settings = true;
        self
    }

    /// Verifies as soon as others delete rules.
    #[must_use]
    pub fn with_monitor(mut self, monitor: RulesMonitor) -> Self {
        self.monitor = Some(monitor);
        self
    }

    fn due(&self) -> bool {
        self.pending && self.store.ready() && !self.waits_for_settings
    }

    /// Runs until told to stop or until nobody can tell any more.
    pub async fn run(mut self, mut messages: Receiver<Message>) {
        // Without it (a kernel without nf_tables) the periodic verification is all there is.
        let monitor = self.monitor.take().and_then(register);
        let mut verify_at = Instant::now() + self.pace.sync_period;
        let mut verify_rest_until = Instant::now();
        let mut not_before = Instant::now();
        // The same tables in both families.
        let tables = self.planes.first().map_or(&[][..], |(_, p)| p.tables());
        loop {
            let mut deadline = if self.due() {
                verify_at.min(not_before.max(Instant::now() + COALESCE))
            } else {
                verify_at
            };
            // Collects until a sync is due.
            let mut taken = 0;
            while taken < BATCH_MAX {
                let message = tokio::select! {
                    message = tokio::time::timeout_at(deadline.into(), messages.recv()) => message,
                    () = deleted_by_others(monitor.as_ref(), tables) => Ok(Some(Message::Verify)),
                };
                match message {
                    Ok(None | Some(Message::Stop)) => return,
                    Ok(Some(Message::Verify)) => {
                        verify_at = verify_at.min(verify_rest_until.max(Instant::now() + COALESCE));
                        break;
                    }
                    Ok(Some(Message::Settings(settings))) => {
                        self.reconfigure(settings);
                        break;
                    }
                    Ok(Some(Message::Inputs(inputs))) => {
                        taken += inputs.len();
                        self.feed(inputs);
                        if self.due() {
                            deadline = deadline.min(not_before.max(Instant::now() + COALESCE));
                        }
                    }
                    Err(_elapsed) => break,
                }
            }
            let start = Instant::now();
            if start >= verify_at {
                self.verify();
                verify_at = Instant::now() + self.pace.sync_period;
                verify_rest_until = Instant::now() + start.elapsed() * VERIFY_REST;
            }
            if self.due() && Instant::now() >= not_before {
                // Notifications of our own writes are thrown away, not those from before.
                if monitor.as_ref().is_some_and(|m| m.get_ref().drain(tables)) {
                    verify_at = verify_at.min(verify_rest_until);
                }
                not_before = Instant::now() + self.sync();
                if let Some(monitor) = &monitor {
                    monitor.get_ref().drain(tables);
                }
            }
        }
    }

    fn feed(&mut self, inputs: Vec<Input>) {
        for input in inputs {
            self.store.apply(input);
        }
        for problem in self.store.take_news() {
            tracing::warn!("{problem}; left out");
            self.metrics.problems.add(1);
        }
        if !self.pending {
            self.pending = true;
            for (family, _) in &self.planes {
                self.health.queued(*family);
            }
        }
    }

    fn verify(&mut self) {
        for (family, plane) in &mut self.planes {
            if !plane.is_trusted() {
                continue;
            }
            match plane.is_intact() {
                Ok(true) => continue,
                Ok(false) => {
                    tracing::warn!("{family} rules of ours are gone; they are restored");
                    self.metrics.repairs.add(1);
                }
                Err(error) => tracing::warn!("verify {family} rules: {error}"),
            }
            plane.distrust();
            self.pending = true;
        }
    }

    /// One sync; returns how long to rest.
    fn sync(&mut self) -> Duration {
        let start = Instant::now();
        let changes = self.store.take_changes();
        for (family, _) in &self.planes {
            let flows = self.changed_flows.entry(*family).or_default();
            for change in changes.of(*family) {
                flows.add(change.old.as_ref(), change.new.as_ref());
            }
        }
        // The programs of both families do not wait for each other.
        let results: Vec<_> = std::thread::scope(|scope| {
            let jobs: Vec<_> = self
                .planes
                .iter_mut()
                .map(|(family, plane)| {
                    scope.spawn(|| sync_plane(plane.as_mut(), changes.of(*family)))
                })
                .collect();
            jobs.into_iter().map(|job| job.join()).collect()
        });
        let mut failed = false;
        for ((family, plane), result) in self.planes.iter_mut().zip(results) {
            match result {
                Ok((Ok(report), took)) => {
                    self.metrics.synced(*family, report.full, took);
                    self.health.synced(*family);
                    log(*family, changes.of(*family).len(), report, took);
                    let flows = self.changed_flows.remove(family).unwrap_or_default();
                    clean(self.flows.as_mut(), *family, &flows, &self.metrics);
                    continue;
                }
                Ok((Err(error), _)) => tracing::error!("{family} rules: {error}"),
                Err(_panic) => tracing::error!("{family} rules: the sync panicked"),
            }
            failed = true;
            self.metrics.failures.add(1);
            plane.distrust();
        }
        self.metrics
            .ports
            .set(self.store.snapshot().v4.len() + self.store.snapshot().v6.len());
        self.pending = failed;
        if failed {
            let wait = RETRY_FIRST * 2_u32.saturating_pow(self.failures.min(16));
            self.failures += 1;
            return wait.min(RETRY_LAST);
        }
        self.failures = 0;
        if let Some(on_synced) = self.on_synced.take() {
            on_synced();
        }
        start.elapsed().min(REST_MAX).max(self.pace.min_sync_period)
    }

    /// Takes other settings: everything is planned anew and compared.
    fn reconfigure(&mut self, all: Vec<Settings>) {
        self.waits_for_settings = false;
        self.pending = true;
        for settings in all {
            let family = settings.family;
            let plane = self.planes.iter_mut().find(|(of, _)| *of == family);
            let Some((_, plane)) = plane else { continue };
            if *plane.settings() != settings {
                let detect_local = settings.detect_local.is_some();
                self.store.set_detect_local(family, detect_local);
                plane.reconfigure(settings, self.store.snapshot().of(family));
            }
        }
    }
}

/// Sets the changed ports and makes the kernel's rules what is wanted.
fn sync_plane(
    plane: &mut dyn Backend,
    changed: &[PortChange],
) -> (linux::Result<Report>, Duration) {
    let begin = Instant::now();
    plane.set(changed);
    (plane.sync(), begin.elapsed())
}

/// Deletes flows that lead to where nobody serves any more.
fn clean(table: &mut dyn FlowTable, family: Family, changed: &Changed, metrics: &Metrics) {
    if changed.is_empty() {
        return;
    }
    match table.clean(family, changed) {
        Ok(0) => {}
        Ok(deleted) => {
            metrics.conntrack_deleted.add(deleted);
            tracing::debug!(deleted, "{family}: stale UDP flows");
        }
        Err(error) => {
            tracing::warn!("{family} UDP flows may lead to endpoints that are gone: {error}")
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe; what must hold does: the monitor owns its descriptor and lives as long as the registration"
)]
fn register(monitor: RulesMonitor) -> Option<AsyncFd<RulesMonitor>> {
    AsyncFd::new(monitor).ok()
}

/// Comes back when somebody has deleted rules.
async fn deleted_by_others(monitor: Option<&AsyncFd<RulesMonitor>>, tables: &[&str]) {
    let Some(monitor) = monitor else {
        return std::future::pending().await;
    };
    loop {
        match monitor.readable().await {
            Ok(mut guard) => {
                let deleted = monitor.get_ref().drain(tables);
                guard.clear_ready();
                if deleted {
                    return;
                }
            }
            Err(_) => return std::future::pending().await,
        }
    }
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
