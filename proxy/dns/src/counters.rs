//! What is counted: questions by kind and result, how long they took, and what was refused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

/// Kinds of questions that are counted apart.
const KINDS: [(RecordType, &str); 11] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::SRV, "SRV"),
    (RecordType::PTR, "PTR"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::TXT, "TXT"),
    (RecordType::SOA, "SOA"),
    (RecordType::NS, "NS"),
    (RecordType::MX, "MX"),
    (RecordType::HTTPS, "HTTPS"),
    (RecordType::ANY, "ANY"),
];

/// Results that are counted apart.
const CODES: [(ResponseCode, &str); 7] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::BADVERS, "BADVERS"),
];

/// What everything else is called.
const OTHER: &str = "other";

/// Upper ends of the histogram, in seconds.
const BUCKETS: [f64; 10] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1, 1.0, 5.0,
];

/// Counts, which only grow.
#[derive(Debug, Default)]
pub struct Counters {
    queries: [[AtomicU64; CODES.len() + 1]; KINDS.len() + 1],
    latency: [AtomicU64; BUCKETS.len() + 1],
    latency_micros: AtomicU64,
    pub(crate) forwarded: AtomicU64,
    pub(crate) upstream_failures: AtomicU64,
    pub(crate) over_limit: AtomicU64,
    pub(crate) truncated: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) tcp_connections: AtomicU64,
}

/// How long questions took, cumulative as Prometheus has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Upper end in seconds, and how many took no longer.
    pub buckets: Vec<(f64, u64)>,
    /// All times together, in seconds.
    pub sum_seconds: f64,
    /// All questions.
    pub count: u64,
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    pub(crate) fn answered(&self, kind: RecordType, code: ResponseCode, took: Duration) {
        let kind = KINDS.iter().position(|(k, _)| *k == kind);
        let code = CODES.iter().position(|(c, _)| *c == code);
        let row = self.queries.get(kind.unwrap_or(KINDS.len()));
        if let Some(counter) = row.and_then(|row| row.get(code.unwrap_or(CODES.len()))) {
            add(counter);
        }
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|end| seconds <= *end);
        if let Some(counter) = self.latency.get(bucket.unwrap_or(BUCKETS.len())) {
            add(counter);
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.latency_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Answered questions: kind, result, how many. Only what has happened.
    pub fn queries(&self) -> Vec<(&'static str, &'static str, u64)> {
        let name_of = |names: &[&'static str], at: usize| names.get(at).copied().unwrap_or(OTHER);
        let kinds = KINDS.map(|(_, name)| name);
        let codes = CODES.map(|(_, name)| name);
        let mut all = Vec::new();
        for (k, row) in self.queries.iter().enumerate() {
            for (c, counter) in row.iter().enumerate() {
                let count = get(counter);
                if count > 0 {
                    all.push((name_of(&kinds, k), name_of(&codes, c), count));
                }
            }
        }
        all
    }

    /// How long questions took, from the last byte of the question to the answer.
    pub fn latency(&self) -> Histogram {
        let mut count = 0;
        let mut buckets = Vec::new();
        for (end, counter) in BUCKETS.iter().zip(&self.latency) {
            count += get(counter);
            buckets.push((*end, count));
        }
        count += self.latency.last().map(get).unwrap_or_default();
        Histogram {
            buckets,
            sum_seconds: Duration::from_micros(get(&self.latency_micros)).as_secs_f64(),
            count,
        }
    }

    /// Everything else, by name.
    pub fn others(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("forwarded", get(&self.forwarded)),
            ("upstream_failures", get(&self.upstream_failures)),
            ("over_limit", get(&self.over_limit)),
            ("truncated", get(&self.truncated)),
            ("dropped", get(&self.dropped)),
            ("tcp_connections", get(&self.tcp_connections)),
        ]
    }
}
