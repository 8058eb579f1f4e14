//! Counters and their text for Prometheus, with kube-proxy's names where it has one.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::cidr::Family;

/// Upper bounds of the sync histograms in milliseconds: kube-proxy's, 1 ms doubled 14 times.
const SYNC_MS: [u32; 15] = [
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,
];

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

#[derive(Debug, Default, Clone)]
struct Histogram {
    counts: [u64; SYNC_MS.len()],
    total: u64,
    sum: Duration,
}

impl Histogram {
    fn observe(&mut self, value: Duration) {
        self.total += 1;
        self.sum += value;
        for (count, bound) in self.counts.iter_mut().zip(SYNC_MS) {
            if value <= Duration::from_millis(u64::from(bound)) {
                *count += 1;
            }
        }
    }

    fn render(&self, name: &str, family: Family, text: &mut String) {
        let buckets = self.counts.iter().zip(SYNC_MS);
        let mut lines: Vec<(String, u64)> = buckets
            .map(|(count, ms)| (format!("{}", f64::from(ms) / 1000.0), *count))
            .collect();
        lines.push(("+Inf".to_owned(), self.total));
        for (bound, count) in lines {
            line(
                text,
                format_args!("{name}_bucket{{ip_family=\"{family}\",le=\"{bound}\"}} {count}"),
            );
        }
        let sum = self.sum.as_secs_f64();
        line(
            text,
            format_args!("{name}_sum{{ip_family=\"{family}\"}} {sum}"),
        );
        let total = self.total;
        line(
            text,
            format_args!("{name}_count{{ip_family=\"{family}\"}} {total}"),
        );
    }
}

#[derive(Debug, Default, Clone)]
struct PerFamily {
    all: Histogram,
    full: Histogram,
    partial: Histogram,
    last_seconds: f64,
}

/// All counters.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Parts of objects that could not be used.
    pub problems: Number,
    /// Syncs that failed.
    pub failures: Number,
    /// Times that rules of ours were found missing.
    pub repairs: Number,
    /// Service ports, over both families.
    pub ports: Number,
    /// Conntrack entries deleted.
    pub conntrack_deleted: Number,
    syncs: Mutex<[PerFamily; 2]>,
}

impl Metrics {
    /// A sync succeeded.
    pub fn synced(&self, family: Family, full: bool, took: Duration) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let Ok(mut syncs) = self.syncs.lock() else {
            return;
        };
        let of = &mut syncs[usize::from(family == Family::V6)];
        of.all.observe(took);
        if full {
            of.full.observe(took);
        } else {
            of.partial.observe(took);
        }
        of.last_seconds = now.as_secs_f64();
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let syncs = self
            .syncs
            .lock()
            .map(|syncs| syncs.clone())
            .unwrap_or_default();
        let mut text = String::new();
        type Pick = fn(&PerFamily) -> &Histogram;
        let histograms: [(&str, &str, Pick); 3] = [
            ("sync_proxy_rules", "Time of a sync", |of| &of.all),
            (
                "sync_full_proxy_rules",
                "Time of a sync of all rules",
                |of| &of.full,
            ),
            (
                "sync_partial_proxy_rules",
                "Time of a sync of changed rules",
                |of| &of.partial,
            ),
        ];
        for (name, help, pick) in histograms {
            let name = format!("kubeproxy_{name}_duration_seconds");
            head(&mut text, &name, help, "histogram");
            for (family, of) in Family::BOTH.into_iter().zip(&syncs) {
                pick(of).render(&name, family, &mut text);
            }
        }
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        head(&mut text, name, "When rules were last synced", "gauge");
        for (family, of) in Family::BOTH.into_iter().zip(&syncs) {
            let seconds = of.last_seconds;
            line(
                &mut text,
                format_args!("{name}{{ip_family=\"{family}\"}} {seconds}"),
            );
        }
        let numbers = [
            (
                "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
                "Syncs that failed",
                "counter",
                &self.failures,
            ),
            (
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "Conntrack entries deleted",
                "counter",
                &self.conntrack_deleted,
            ),
            (
                "seaway_proxy_repairs_total",
                "Times that rules of ours were found missing",
                "counter",
                &self.repairs,
            ),
            (
                "seaway_proxy_object_problems_total",
                "Parts of objects that could not be used",
                "counter",
                &self.problems,
            ),
            (
                "seaway_proxy_service_ports",
                "Service ports, over both families",
                "gauge",
                &self.ports,
            ),
        ];
        for (name, help, kind, number) in numbers {
            head(&mut text, name, help, kind);
            let number = number.get();
            line(&mut text, format_args!("{name} {number}"));
        }
        text
    }
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    line(text, format_args!("# HELP {name} {help}"));
    line(text, format_args!("# TYPE {name} {kind}"));
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _written = writeln!(text, "{what}");
}
