//! `bench ebpf`: mode ebpf beside no proxy at all (a pod's connections and requests through a
//! Service and directly, in turn) and beside mode nftables (node ports from outside, in turn); what
//! a change, a start and memory cost at several numbers of services.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::proxy::lab::{ENDPOINTS, Lab, SERVERS};
use super::proxy::{COMMITTED, megabytes, times, to_f64};
use super::{Figure, ms, percentile};

/// Numbers of services.
const SIZES: [usize; 3] = [1, 100, 10_000];
/// Changes measured.
const CHANGES: usize = 200;
/// Samples of connections and requests, and how many of these are in one.
const RUNS: usize = 31;
const CONNECTIONS: usize = 200;
const REQUESTS: usize = 500;

/// All figures.
///
/// # Errors
/// The mode does not start or does not program.
pub fn run() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for size in SIZES {
        figures.extend(run_size(size)?);
    }
    figures.extend(node_ports()?);
    Ok(figures)
}

fn figure(what: &str, unit: &'static str, samples: &[f64], note: &str) -> Figure {
    Figure::of(&format!("ebpf.{what}"), unit, samples, note)
}

fn run_size(size: usize) -> Result<Vec<Figure>> {
    // One is the service that is looked at.
    let mut lab = Lab::new(size - 1)?;
    lab.add_echo();
    lab.use_group(true)?;
    let start = Instant::now();
    lab.start("ebpf")?;
    let ended = "the proxy ended";
    let cold = lab.wait(SERVERS[0], start)?.context(ended)?;
    let before = times(&lab.log(), COMMITTED).count();
    for i in 0..CHANGES {
        let server = SERVERS[(i + 1) % 2];
        lab.change(server);
        lab.wait(server, Instant::now())?.context(ended)?;
    }
    let log = lab.log();
    let full = times(&log, "all that was listed is programmed").next();
    let full = full.context("nothing was listed")?;
    let mut figures = vec![
        figure(
            "cold_start_s",
            "s",
            &[cold.as_secs_f64()],
            "start of the process until a connection works",
        ),
        figure(
            "program_s",
            "s",
            &[full.as_secs_f64()],
            "objects listed until all are in the maps",
        ),
    ];
    let writes: Vec<f64> = times(&log, COMMITTED).skip(before).map(ms).collect();
    figures.push(figure(
        "change_ms",
        "ms",
        &writes,
        "one endpoint changed: event received until it is in the maps",
    ));
    let resident = [megabytes(lab.resident()?)];
    let note = format!("resident, {ENDPOINTS} endpoints each");
    figures.push(figure("rss_mb", "MB", &resident, &note));
    figures.extend(beside_direct(&lab)?);
    Ok(figures
        .into_iter()
        .map(|figure| figure.size(size))
        .collect())
}

/// Connections each second.
fn rate(seconds: &[f64]) -> f64 {
    to_f64(seconds.len()) / seconds.iter().sum::<f64>().max(f64::MIN_POSITIVE)
}

/// A pod's connections and requests, through a Service and directly in turn.
fn beside_direct(lab: &Lab) -> Result<Vec<Figure>> {
    let server = SERVERS[CHANGES % 2];
    let (mut rates, mut direct_rates, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut times, mut direct_times, mut time_ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut lost = 0;
    for run in 0..RUNS {
        // Neither is always the one that comes first.
        let mut through = (Vec::new(), 0);
        let mut direct = through.clone();
        for turn in [run % 2, (run + 1) % 2] {
            match turn {
                0 => through = lab.connections(None, CONNECTIONS)?,
                _ => direct = lab.connections(Some(server), CONNECTIONS)?,
            }
        }
        lost += through.1 + direct.1;
        rates.push(rate(&through.0));
        direct_rates.push(rate(&direct.0));
        ratios.push(rate(&through.0) / rate(&direct.0));
        let us = |seconds: Vec<f64>| percentile(&seconds, 50) * 1e6;
        let (mut through, mut direct) = (0.0, 0.0);
        for turn in [run % 2, (run + 1) % 2] {
            match turn {
                0 => through = us(lab.requests(false, REQUESTS)?),
                _ => direct = us(lab.requests(true, REQUESTS)?),
            }
        }
        times.push(through);
        direct_times.push(direct);
        time_ratios.push(through / direct);
    }
    let made = format!("a pod's new connections; {lost} of all were not made");
    Ok(vec![
        figure("connections_per_s", "1/s", &rates, &made).floor(&direct_rates),
        figure(
            "connections_over_direct",
            "ratio",
            &ratios,
            "pairs of samples",
        ),
        figure(
            "request_us",
            "us",
            &times,
            "64 bytes and back on a connection",
        )
        .floor(&direct_times),
        figure(
            "request_over_direct",
            "ratio",
            &time_ratios,
            "pairs of samples",
        ),
    ])
}

/// Connections of a client outside to a node port, beside mode nftables in turn.
fn node_ports() -> Result<Vec<Figure>> {
    let mut labs = Vec::new();
    for mode in ["ebpf", "nftables"] {
        let mut lab = Lab::new(0)?;
        if mode == "ebpf" {
            lab.use_group(false)?;
        }
        lab.start(mode)?;
        let ready = lab.wait(SERVERS[0], Instant::now())?;
        ready.with_context(|| format!("{mode}: {}", lab.log()))?;
        labs.push(lab);
    }
    let mut rates = [Vec::new(), Vec::new()];
    let (mut ratios, mut lost, mut lossy) = (Vec::new(), 0, [Vec::new(), Vec::new()]);
    for run in 0..RUNS {
        for which in [run % 2, (run + 1) % 2] {
            let (seconds, missing) = labs[which].node_port_connections(CONNECTIONS)?;
            rates[which].push(rate(&seconds));
            lost += missing;
            if missing > 0 {
                lossy[which].push(run);
            }
        }
        ratios.push(rates[0][run] / rates[1][run]);
    }
    if lost > 0 {
        // What a later look at the lab cannot tell any more.
        let log = labs[0].log();
        bail!(
            "{lost} connections were not made, in runs {lossy:?} of modes ebpf and nftables\n{log}"
        );
    }
    let [ebpf, nftables] = rates;
    let made = "new connections from outside; floor: mode nftables";
    Ok(vec![
        figure("node_port_per_s", "1/s", &ebpf, made)
            .floor(&nftables)
            .size(1),
        figure(
            "node_port_over_nftables",
            "ratio",
            &ratios,
            "pairs of samples",
        )
        .size(1),
    ])
}
