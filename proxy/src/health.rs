//! Whether the proxy keeps up and the node should get traffic, as kube-proxy tells it on `/healthz`
//! and `/livez` (`pkg/proxy/healthcheck/proxy_health.go`).

pub mod checks;
pub mod pages;
pub mod server;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use api::cidr::Family;
use jiff::Timestamp;
use serde_json::{Value, json};

#[derive(Debug, Default, Clone, Copy)]
struct PerFamily {
    /// The oldest change that is not in the kernel yet.
    queued: Option<Instant>,
    /// The last sync.
    synced: Option<SystemTime>,
}

#[derive(Debug, Default)]
struct State {
    families: BTreeMap<Family, PerFamily>,
    node_goes: bool,
}

/// Which question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Should traffic come here? Not when the node is being taken away.
    Healthz,
    /// Does the proxy keep up?
    Livez,
}

impl Question {
    /// As the page is called.
    pub fn page(self) -> &'static str {
        match self {
            Self::Healthz => "healthz",
            Self::Livez => "livez",
        }
    }
}

/// Whether the proxy keeps up.
#[derive(Debug)]
pub struct Health {
    /// A change that waits so long means trouble: twice the sync period.
    patience: Duration,
    state: Mutex<State>,
}

impl Health {
    /// Healthy until a change waits for `patience`.
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            state: Mutex::default(),
        }
    }

    /// A change came in at `now`. One that waits already keeps its time.
    pub fn queued(&self, family: Family, now: Instant) {
        if let Ok(mut state) = self.state.lock() {
            let of = state.families.entry(family).or_default();
            of.queued.get_or_insert(now);
        }
    }

    /// All changes are in the kernel.
    pub fn synced(&self, family: Family, at: SystemTime) {
        if let Ok(mut state) = self.state.lock() {
            let of = state.families.entry(family).or_default();
            of.queued = None;
            of.synced = Some(at);
        }
    }

    /// The node is being taken away: balancers should look elsewhere.
    pub fn node_goes(&self, goes: bool) {
        if let Ok(mut state) = self.state.lock() {
            state.node_goes = goes;
        }
    }

    /// The answer at `now`, which a clock on the wall calls `time`.
    pub fn is_healthy(&self, question: Question, now: Instant) -> bool {
        let Ok(state) = self.state.lock() else {
            return false;
        };
        self.healthy(&state, question, now)
    }

    fn healthy(&self, state: &State, question: Question, now: Instant) -> bool {
        let keeps_up = state.families.values().all(|of| self.keeps_up(of, now));
        let eligible = question == Question::Livez || !state.node_goes;
        keeps_up && eligible
    }

    fn keeps_up(&self, of: &PerFamily, now: Instant) -> bool {
        of.queued
            .is_none_or(|at| now.saturating_duration_since(at) < self.patience)
    }

    /// The answer, and the page's text.
    pub fn answer(&self, question: Question, now: Instant, time: SystemTime) -> (bool, String) {
        let Ok(state) = self.state.lock() else {
            return (false, String::new());
        };
        let healthy = self.healthy(&state, question, now);
        // As kube-proxy: who keeps up is up to date, even when nothing has changed for long.
        let updated = |ok: bool, synced: Option<SystemTime>| {
            let at = if ok { Some(time) } else { synced };
            at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), written)
        };
        let families: serde_json::Map<String, Value> = state
            .families
            .iter()
            .map(|(family, of)| {
                let ok = self.keeps_up(of, now);
                let value = json!({
                    "healthy": ok,
                    "synced": of.synced.is_some(),
                    "lastUpdated": updated(ok, of.synced),
                });
                (family.to_string(), value)
            })
            .collect();
        let all_ok = state.families.values().all(|of| self.keeps_up(of, now));
        let oldest = state.families.values().map(|of| of.synced).min().flatten();
        let mut body = json!({
            "lastUpdated": updated(all_ok, oldest),
            "currentTime": written(time),
        });
        if question == Question::Healthz {
            body["nodeEligible"] = json!(!state.node_goes);
        }
        body["healthy"] = json!(healthy);
        body["status"] = Value::Object(families);
        (healthy, body.to_string())
    }
}

fn written(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| String::new(), |time| time.to_string())
}

#[cfg(test)]
mod tests;
