//! What the control plane counts, in the text format of Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Verb, resource and HTTP status.
type Label = (&'static str, &'static str, u16);
/// Requests, and microseconds in all.
type Sum = (u64, u64);

/// Counters and gauges.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Label, Sum>>,
    watches: Arc<AtomicU64>,
    refused: AtomicU64,
}

/// Counts one for as long as it lives.
pub struct Running(Arc<AtomicU64>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// One request is done.
    pub fn request(&self, verb: &'static str, resource: &'static str, code: u16, micros: u64) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = requests.entry((verb, resource, code)).or_default();
        entry.0 += 1;
        entry.1 += micros;
    }

    /// One request was turned away because too many were running.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A watch begins; it ends when the result is dropped.
    pub fn watch_begins(&self) -> Running {
        self.watches.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(&self.watches))
    }

    /// The text a scraper reads. `rev` is the store's newest revision.
    pub fn render(&self, rev: u64) -> String {
        let mut out = String::new();
        let requests = self
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        out.push_str("# TYPE apiserver_request_total counter\n");
        let mut line = |text: std::fmt::Arguments<'_>| {
            out.push_str(&text.to_string());
            out.push('\n');
        };
        for ((verb, resource, code), (count, _)) in &requests {
            line(format_args!(
                "apiserver_request_total{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}} {count}"
            ));
        }
        line(format_args!(
            "# TYPE apiserver_request_duration_seconds summary"
        ));
        for ((verb, resource, code), (count, micros)) in &requests {
            let labels = format!("{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}}");
            let (whole, part) = (micros / 1_000_000, micros % 1_000_000);
            line(format_args!(
                "apiserver_request_duration_seconds_sum{labels} {whole}.{part:06}"
            ));
            line(format_args!(
                "apiserver_request_duration_seconds_count{labels} {count}"
            ));
        }
        let watches = self.watches.load(Ordering::Relaxed);
        line(format_args!("# TYPE apiserver_longrunning_requests gauge"));
        line(format_args!(
            "apiserver_longrunning_requests{{verb=\"watch\"}} {watches}"
        ));
        let refused = self.refused.load(Ordering::Relaxed);
        line(format_args!(
            "# TYPE apiserver_dropped_requests_total counter"
        ));
        line(format_args!("apiserver_dropped_requests_total {refused}"));
        line(format_args!("# TYPE seaway_store_revision gauge"));
        line(format_args!("seaway_store_revision {rev}"));
        out
    }
}
