//! `bench proxy`: each mode that is there, fed by an API server, at several numbers of services:
//! start, one changed endpoint, memory, new connections through a Service beside direct ones, and
//! the bare kernel operation.

pub(super) mod lab;
mod repair;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use linux::NetNs;
use linux::iptables::{Backend, Family, Iptables};
use linux::nftables::{Batch, DataType, Element, Family as NftFamily, Nftables, Set, TableRef};

use self::lab::{ENDPOINTS, Lab, SERVERS};
use super::{Figure, ms};

/// Numbers of services.
const SIZES: [usize; 3] = [100, 1000, 10_000];
/// Changes measured, where one takes a moment, and where the kernel replaces whole tables.
const CHANGES: usize = 300;
const CHANGES_SLOW: usize = 30;
/// Names of ways, with commas: only these are measured.
const ONLY: &str = "SEAWAY_BENCH_ONLY";
/// Connections of one throughput sample, and samples.
const CONNECTIONS: usize = 200;
const THROUGHPUT_RUNS: usize = 11;
/// Bare operations measured.
const FLOORS: usize = 30;

/// A way to program services.
struct Way {
    /// As figures are named.
    name: &'static str,
    /// `--mode`.
    mode: &'static str,
    /// The node's rules are in the old tables.
    legacy: bool,
    /// What kube-proxy 1.36 took, measured once on a like machine: services, start, change, memory.
    peer: &'static [(usize, &'static str, &'static str, &'static str)],
}

const WAYS: [Way; 5] = [
    Way {
        name: "nftables",
        mode: "nftables",
        legacy: false,
        peer: &[
            (1000, "2.0 s", "222 ms", "111 + 35 MB"),
            (10_000, "26 s", "4600 ms", "500 + 301 MB"),
        ],
    },
    Way {
        name: "iptables",
        mode: "iptables",
        legacy: false,
        peer: &[
            (1000, "10.4 s", "122 ms", "108 + 52 MB"),
            (10_000, "> 170 s at 5000", "not reached", "not reached"),
        ],
    },
    Way {
        name: "iptables_legacy",
        mode: "iptables",
        legacy: true,
        peer: &[(10_000, "12 s", "1600 ms", "444 + 325 MB")],
    },
    Way {
        name: "ipvs",
        mode: "ipvs",
        legacy: false,
        peer: &[],
    },
    Way {
        name: "ebpf",
        mode: "ebpf",
        legacy: false,
        peer: &[],
    },
];

impl Way {
    /// A node for it.
    fn lab(&self, services: usize) -> Result<Lab> {
        let mut lab = Lab::new(services)?;
        if self.legacy {
            lab.use_old_tables()?;
        }
        if self.mode == "ebpf" {
            // At the root its programs would translate for the whole machine, and outlive the lab.
            lab.use_group(true)?;
        }
        Ok(lab)
    }

    fn peer(&self, size: usize, what: usize) -> String {
        let found = self.peer.iter().find(|(n, ..)| *n == size);
        found.map_or_else(String::new, |(_, start, change, memory)| {
            format!("; kube-proxy {}", [start, change, memory][what])
        })
    }

    fn figure(&self, what: &str, unit: &'static str, samples: &[f64], note: String) -> Figure {
        Figure::of(&format!("proxy.{}.{what}", self.name), unit, samples, note)
    }
}

/// All figures.
///
/// # Errors
/// A mode that is there does not start or does not program.
pub fn run() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let only = std::env::var(ONLY).unwrap_or_default();
    let is_wanted = |way: &Way| only.is_empty() || only.split(',').any(|name| name == way.name);
    for way in WAYS.into_iter().filter(is_wanted) {
        let Some(empty) = empty(&way)? else { continue };
        let note = "1 endpoint".to_owned();
        let figure = way.figure("rss_mb", "MB", &[megabytes(empty)], note);
        figures.push(figure.size(1));
        for size in SIZES {
            figures.extend(run_size(&way, size, empty)?);
        }
    }
    Ok(figures)
}

/// Resident bytes with one service; `None`, said, when the mode is not there.
fn empty(way: &Way) -> Result<Option<u64>> {
    let mut lab = way.lab(0)?;
    lab.start(way.mode)?;
    if lab.wait(SERVERS[0], Instant::now())?.is_none() {
        let why = lab.ended().unwrap_or_default();
        crate::say(&format!(
            "{:<30} left out: {why}",
            format!("proxy.{}", way.name)
        ));
        return Ok(None);
    }
    // What the start alone needed is given back, and what changes need is there.
    for i in 0..CHANGES_SLOW {
        let server = SERVERS[(i + 1) % 2];
        lab.change(server);
        lab.wait(server, Instant::now())?
            .context("the proxy ended")?;
    }
    Ok(Some(lab.resident()?))
}

fn run_size(way: &Way, size: usize, empty: u64) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut lab = way.lab(size)?;
    let floor = floor(way)?;
    let start = Instant::now();
    lab.start(way.mode)?;
    let cold = lab.wait(SERVERS[0], start)?.context("the proxy ended")?;
    let note = format!(
        "start of the process until a connection works{}",
        way.peer(size, 0)
    );
    figures.push(
        way.figure("cold_start_s", "s", &[cold.as_secs_f64()], note)
            .size(size),
    );
    let changes = if way.mode == "iptables" {
        CHANGES_SLOW
    } else {
        CHANGES
    };
    let before = times(&lab.log(), COMMITTED).count();
    let mut seen = Vec::new();
    for i in 0..changes {
        let server = SERVERS[(i + 1) % 2];
        let start = Instant::now();
        lab.change(server);
        let took = lab.wait(server, start)?.context("the proxy ended")?;
        seen.push(ms(took));
        if way.mode == "iptables" {
            // After such a sync the proxy rests as long as it took; a change then is another figure.
            std::thread::sleep(took * 2);
        }
    }
    let log = lab.log();
    let programmed: Vec<f64> = times(&log, "all that was listed is programmed")
        .map(|t| t.as_secs_f64())
        .collect();
    let note = "all objects listed until programmed".to_owned();
    figures.push(way.figure("program_s", "s", &programmed, note).size(size));
    let commits: Vec<f64> = times(&log, COMMITTED).skip(before).map(ms).collect();
    let note = "one endpoint changed: event received until committed".to_owned();
    figures.push(
        way.figure("commit_ms", "ms", &commits, note)
            .floor(&floor)
            .size(size),
    );
    let note = format!(
        "one endpoint changed until a connection reaches it{}",
        way.peer(size, 1)
    );
    figures.push(
        way.figure("change_ms", "ms", &seen, note)
            .floor(&floor)
            .size(size),
    );

    if way.mode == "nftables" {
        let note =
            "an element or a chain's rules deleted by somebody else until they are there again";
        let repairs = repair::run(&lab)?;
        figures.push(
            way.figure("repair_ms", "ms", &repairs, note.to_owned())
                .size(size),
        );
    }
    let resident = lab.resident()?;
    let note = format!("{ENDPOINTS} endpoints each{}", way.peer(size, 2));
    figures.push(
        way.figure("rss_mb", "MB", &[megabytes(resident)], note)
            .size(size),
    );
    let each = megabytes(resident.saturating_sub(empty)) * 1e6 / to_f64(size * ENDPOINTS);
    let note = "resident memory beyond that with one service".to_owned();
    figures.push(way.figure("endpoint_bytes", "B", &[each], note).size(size));
    figures.extend(connections(way, size, &lab)?);
    Ok(figures)
}

/// New connections through the service and directly, in turn.
fn connections(way: &Way, size: usize, lab: &Lab) -> Result<Vec<Figure>> {
    let (mut ratios, mut rates, mut lost) = (Vec::new(), Vec::new(), [0, 0]);
    let server = SERVERS[CHANGES % 2];
    for _ in 0..THROUGHPUT_RUNS {
        let (through, lost_through) = lab.connections(None, CONNECTIONS)?;
        let (direct, lost_direct) = lab.connections(Some(server), CONNECTIONS)?;
        let rate = |seconds: &[f64]| to_f64(seconds.len()) / seconds.iter().sum::<f64>();
        ratios.push(rate(&through) / rate(&direct));
        rates.push(rate(&through));
        lost = [lost[0] + lost_through, lost[1] + lost_direct];
    }
    let note = format!(
        "new connections, one client; not made: {} and {}",
        lost[0], lost[1]
    );
    Ok(vec![
        way.figure("vip_over_direct", "ratio", &ratios, note)
            .size(size),
        way.figure(
            "connections_per_s",
            "1/s",
            &rates,
            "through the service".to_owned(),
        )
        .size(size),
    ])
}

/// What the log says when events are in the kernel.
pub(super) const COMMITTED: &str = "events are in the kernel";

/// The times that the log has in lines with `what`: `... took=12.3ms ...`.
pub(super) fn times<'a>(log: &'a str, what: &'a str) -> impl Iterator<Item = Duration> + 'a {
    let lines = log.lines().filter(move |line| line.contains(what));
    lines.filter_map(|line| {
        let (_, took) = line.rsplit_once("took=")?;
        let digits = took.find(|c: char| c.is_alphabetic() || c == 'µ')?;
        let value: f64 = took[..digits].parse().ok()?;
        let scale = match took[digits..].split(' ').next()? {
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        Some(Duration::from_secs_f64(value * scale))
    })
}

/// Milliseconds of the bare kernel operation: one element added and taken away again in nf_tables,
/// one rule restored into an empty table in iptables.
fn floor(way: &Way) -> Result<Vec<f64>> {
    let netns = NetNs::anonymous()?;
    let mode = way.mode;
    let legacy = way.legacy;
    netns.run(move || -> Result<Vec<f64>> {
        let mut samples = Vec::new();
        match mode {
            "iptables" => {
                let kind = if legacy { Backend::Legacy } else { Backend::Nft };
                let iptables = Iptables::of(Family::V4, kind)?;
                let one = "*nat\n:FLOOR - [0:0]\n-A FLOOR -p tcp -j DNAT --to-destination 10.0.0.1:80\nCOMMIT\n";
                for _ in 0..FLOORS {
                    let start = Instant::now();
                    iptables.restore(one)?;
                    samples.push(ms(start.elapsed()));
                }
            }
            "nftables" => {
                let mut tables = Nftables::open()?;
                let table = TableRef::new(NftFamily::Ipv4, "floor");
                let set = Set::map("m", [DataType::Ipv4], [DataType::Ipv4]);
                let mut batch = Batch::new();
                batch.add_table(&table, None);
                batch.add_set(&table, &set);
                tables.commit(&batch)?;
                let element = Element::data([10, 0, 0, 1], [10, 0, 0, 2]);
                for i in 0..FLOORS {
                    let mut batch = Batch::new();
                    if i % 2 == 0 {
                        batch.add_elements(&table, &set, [&element]);
                    } else {
                        batch.delete_elements(&table, &set, [&element]);
                    }
                    let start = Instant::now();
                    tables.commit(&batch)?;
                    samples.push(ms(start.elapsed()));
                }
            }
            _ => {}
        }
        Ok(samples)
    })?
}

pub(super) fn megabytes(bytes: u64) -> f64 {
    u32::try_from(bytes / 1000)
        .map(f64::from)
        .unwrap_or_default()
        / 1e3
}

pub(super) fn to_f64(n: usize) -> f64 {
    u32::try_from(n).map(f64::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_log() {
        let log = "T INFO proxy::sync: all that was listed is programmed took=1.5s\n\
                   T DEBUG proxy::sync: IPv6: sync ports=1 took=9ms\n\
                   T DEBUG proxy::sync: events are in the kernel n=1 took=250µs\n";
        let one = |what| times(log, what).collect::<Vec<_>>();
        let all = "all that was listed is programmed";
        assert_eq!(one(all), [Duration::from_millis(1500)]);
        assert_eq!(one(COMMITTED), [Duration::from_micros(250)]);
    }
}
