//! What is counted, and its text for Prometheus: kube-proxy's names and buckets where it has one
//! (`pkg/proxy/metrics/metrics.go`), each in the modes in which kube-proxy has it; ours are called
//! `seaway_proxy_*`.

mod render;
mod text;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use api::cidr::Family;

use crate::backend::{Mode, MoreMetrics, TableRules};
use crate::conntrack::Pressure;
use crate::model::PortName;

pub use text::{Histogram, Text};

/// Bounds of the sync histograms in seconds: 1 ms doubled 14 times.
const SYNC: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192, 16.384,
];

/// Bounds of the network programming histogram: 0.25, 0.5, each second to 59, each fifth to 115,
/// each thirtieth to 300.
const NETWORK: [f64; 80] = network_bounds();

/// Bounds of our own latency from event to commit: from 10 microseconds.
const LATENCY: [f64; 20] = [
    0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];

/// Service ports whose deleted flows are counted one by one; those of more are counted together.
const FLOW_PORTS_MAX: usize = 1000;

const fn network_bounds() -> [f64; 80] {
    let mut bounds = [0.0; 80];
    bounds[0] = 0.25;
    bounds[1] = 0.5;
    let mut i = 2;
    let mut at: u16 = 1;
    while i < bounds.len() {
        bounds[i] = at as f64;
        i += 1;
        at += if at < 60 {
            1
        } else if at < 120 {
            5
        } else {
            30
        };
    }
    bounds
}

/// A number that is counted up or set.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Counts up.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets.
    pub fn set(&self, n: usize) {
        self.0
            .store(u64::try_from(n).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Reads.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one family's events changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    /// Services.
    pub services: u64,
    /// Endpoint slices.
    pub endpoints: u64,
}

/// Service ports that have endpoints, but none on this node where a policy asks for one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoLocal {
    /// `internalTrafficPolicy`.
    pub internal: u64,
    /// `externalTrafficPolicy`.
    pub external: u64,
}

/// One family's numbers.
#[derive(Debug, Clone)]
struct PerFamily {
    all: Histogram,
    full: Histogram,
    partial: Histogram,
    network: Histogram,
    conntrack: Histogram,
    conntrack_deleted: u64,
    queued: Option<SystemTime>,
    synced: Option<SystemTime>,
    pending: Changed,
    total: Changed,
    no_local: NoLocal,
    failures: u64,
    partial_failures: u64,
    tables: Vec<TableRules>,
}

impl Default for PerFamily {
    fn default() -> Self {
        Self {
            all: Histogram::new(&SYNC),
            full: Histogram::new(&SYNC),
            partial: Histogram::new(&SYNC),
            network: Histogram::new(&NETWORK),
            conntrack: Histogram::new(&SYNC),
            conntrack_deleted: 0,
            queued: None,
            synced: None,
            pending: Changed::default(),
            total: Changed::default(),
            no_local: NoLocal::default(),
            failures: 0,
            partial_failures: 0,
            tables: Vec::new(),
        }
    }
}

/// What does not belong to one family.
#[derive(Debug)]
struct Common {
    latency: Histogram,
    flows: BTreeMap<String, u64>,
    pressure: Option<Pressure>,
    /// Answers of `/healthz` and `/livez`, by page and code.
    answers: BTreeMap<(&'static str, u16), u64>,
}

/// All numbers.
#[derive(Debug)]
pub struct Metrics {
    mode: Mode,
    started: SystemTime,
    /// Parts of objects that could not be used.
    pub problems: Number,
    /// Times that rules of ours were found missing.
    pub repairs: Number,
    /// Service ports, over both families.
    pub ports: Number,
    /// Events of the API that were sent.
    pub events: Number,
    /// Events of the API that were left out since there were too many.
    pub events_dropped: Number,
    families: Mutex<BTreeMap<Family, PerFamily>>,
    common: Mutex<Common>,
    more: Mutex<More>,
}

/// What modes add.
#[derive(Default)]
struct More(Vec<MoreMetrics>);

impl std::fmt::Debug for More {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} more", self.0.len())
    }
}

impl Metrics {
    /// All zero, for one mode.
    pub fn new(mode: Mode) -> Self {
        let both = Family::BOTH.map(|family| (family, PerFamily::default()));
        Self {
            mode,
            started: SystemTime::now(),
            problems: Number::default(),
            repairs: Number::default(),
            ports: Number::default(),
            events: Number::default(),
            events_dropped: Number::default(),
            families: Mutex::new(both.into()),
            common: Mutex::new(Common {
                latency: Histogram::new(&LATENCY),
                flows: BTreeMap::new(),
                pressure: None,
                answers: BTreeMap::new(),
            }),
            more: Mutex::default(),
        }
    }

    /// Adds what a mode counts.
    pub fn add(&self, more: MoreMetrics) {
        if let Ok(mut all) = self.more.lock() {
            all.0.push(more);
        }
    }

    fn of(&self, family: Family, change: impl FnOnce(&mut PerFamily)) {
        if let Ok(mut families) = self.families.lock() {
            change(families.entry(family).or_default());
        }
    }

    fn common(&self, change: impl FnOnce(&mut Common)) {
        if let Ok(mut common) = self.common.lock() {
            change(&mut common);
        }
    }

    /// Something waits for a sync of a family.
    pub fn queued(&self, family: Family) {
        self.of(family, |of| of.queued = Some(SystemTime::now()));
    }

    /// Events of one family came in that change something.
    pub fn changed(&self, family: Family, changed: Changed) {
        self.of(family, |of| {
            for sum in [&mut of.pending, &mut of.total] {
                sum.services += changed.services;
                sum.endpoints += changed.endpoints;
            }
        });
    }

    /// A sync succeeded.
    pub fn synced(
        &self,
        family: Family,
        full: bool,
        took: Duration,
        no_local: NoLocal,
        tables: Vec<TableRules>,
    ) {
        self.of(family, |of| {
            of.all.observe(took, 1);
            let other = if full { &mut of.full } else { &mut of.partial };
            other.observe(took, 1);
            of.synced = Some(SystemTime::now());
            of.pending = Changed::default();
            of.no_local = no_local;
            of.tables = tables;
        });
    }

    /// A sync failed.
    pub fn failed(&self, family: Family, full: bool) {
        self.of(family, |of| {
            of.failures += 1;
            of.partial_failures += u64::from(!full);
        });
    }

    /// An endpoint change that the cluster saw at `trigger` is in the kernel now.
    pub fn programmed(&self, family: Family, since_trigger: Duration) {
        self.of(family, |of| of.network.observe(since_trigger, 1));
    }

    /// `n` events that came together are in the kernel so long after they came.
    pub fn latency(&self, took: Duration, n: u64) {
        self.common(|common| common.latency.observe(took, n));
    }

    /// Stale flows were looked for.
    pub fn conntrack(&self, family: Family, took: Duration, deleted: &BTreeMap<PortName, u64>) {
        let sum: u64 = deleted.values().sum();
        self.of(family, |of| {
            of.conntrack.observe(took, 1);
            of.conntrack_deleted += sum;
        });
        self.common(|common| {
            for (port, n) in deleted {
                let mut name = port.to_string();
                if common.flows.len() >= FLOW_PORTS_MAX && !common.flows.contains_key(&name) {
                    "others".clone_into(&mut name);
                }
                *common.flows.entry(name).or_default() += n;
            }
        });
    }

    /// How full the kernel's connection table is.
    pub fn pressure(&self, pressure: Pressure) {
        self.common(|common| common.pressure = Some(pressure));
    }

    /// A page about health was answered.
    pub fn answered(&self, page: &'static str, code: u16) {
        self.common(|common| *common.answers.entry((page, code)).or_default() += 1);
    }
}

#[cfg(test)]
mod tests;
