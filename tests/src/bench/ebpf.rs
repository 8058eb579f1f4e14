//! `bench ebpf`: mode ebpf beside no proxy at all (a pod's connections and requests through a
//! Service and directly, in turn) and beside mode nftables (node ports from outside, in turn); what
//! a change, a start and memory cost at several numbers of services.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::proxy::lab::{ENDPOINTS, Lab, SERVERS};
use super::proxy::{COMMITTED, megabytes, times, to_f64};
use super::{Figure, ms, percentile};

/// Numbers of services.
const SIZES: [usize; 3] = [1, 100, 10_000];
/// First starts measured.
const STARTS: usize = 7;
/// What the proxy says of a start it says within this time.
const SAID_TIMEOUT: Duration = Duration::from_secs(30);
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
    figures.extend(before_stack()?);
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
    let mut figures = starts(&mut lab)?;
    let ended = "the proxy ended";
    let before = times(&lab.log(), COMMITTED).count();
    for i in 0..CHANGES {
        let server = SERVERS[(i + 1) % 2];
        lab.change(server);
        lab.wait(server, Instant::now())?.context(ended)?;
    }
    let log = lab.log();
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

/// First starts at the largest number of services alone.
///
/// # Errors
/// The mode does not start.
pub fn first_starts() -> Result<Vec<Figure>> {
    let size = SIZES[SIZES.len() - 1];
    let mut lab = Lab::new(size - 1)?;
    lab.use_group(true)?;
    let figures = starts(&mut lab)?;
    Ok(figures
        .into_iter()
        .map(|figure| figure.size(size))
        .collect())
}

/// First starts, one after the other; the last proxy is left.
fn starts(lab: &mut Lab) -> Result<Vec<Figure>> {
    let (mut cold, mut full, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let start = Instant::now();
        lab.start("ebpf")?;
        let served = lab.wait(SERVERS[0], start)?;
        cold.push(served.context("the proxy ended")?.as_secs_f64());
        cpu.push(lab.cpu_time()?.as_secs_f64());
        full.push(listed(lab)?.as_secs_f64());
        if cold.len() == STARTS {
            break;
        }
        lab.stop()?;
    }
    let each = |samples: &[f64]| {
        let all: Vec<String> = samples.iter().map(|s| format!("{s:.2}")).collect();
        all.join(" ")
    };
    let note = format!(
        "start of the process until a connection works: {}",
        each(&cold)
    );
    let cold = figure("cold_start_s", "s", &cold, &note);
    let note = "processors' time until then";
    let cpu = figure("cold_start_cpu_s", "s", &cpu, note);
    let note = "objects listed until all are in the maps";
    let full = figure("program_s", "s", &full, note);
    Ok(vec![cold, cpu, full])
}

/// How long it took from all objects listed to all in the maps, which is said a moment after they serve.
fn listed(lab: &Lab) -> Result<Duration> {
    let give_up = Instant::now() + SAID_TIMEOUT;
    loop {
        let log = lab.log();
        if let Some(time) = times(&log, "all that was listed is programmed").next() {
            return Ok(time);
        }
        if Instant::now() > give_up {
            bail!("nothing was listed\n{log}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
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

/// Connections of a client outside to a node port, with a program before the stack and without, in turn.
///
/// # Errors
/// The mode does not start, or the program is not used.
pub fn before_stack() -> Result<Vec<Figure>> {
    const WAYS: [&str; 3] = ["off", "generic", "native"];
    let mut labs = Vec::new();
    for way in WAYS {
        let mut lab = Lab::new(0)?;
        lab.use_group(false)?;
        lab.be_outside()?;
        lab.start_with("ebpf", &["--ebpf-xdp", way])?;
        let ready = lab.wait(SERVERS[0], Instant::now())?;
        ready.with_context(|| format!("{way}: {}", lab.log()))?;
        labs.push(lab);
    }
    let (mut rates, mut lost) = (WAYS.map(|_| Vec::new()), 0);
    for run in 0..RUNS {
        for turn in 0..WAYS.len() {
            let which = (run + turn) % WAYS.len();
            let (seconds, missing) = labs[which].node_port_connections(CONNECTIONS)?;
            rates[which].push(rate(&seconds));
            lost += missing;
        }
    }
    let mut figures = Vec::new();
    for (which, way) in WAYS.into_iter().enumerate().skip(1) {
        let taken = labs[which].metric("seaway_ebpf_xdp_packets_total{action=\"translated\"}")?;
        if taken == 0 {
            bail!("{way}: nothing was translated before the stack");
        }
        let pairs = rates[which].iter().zip(&rates[0]);
        let ratios: Vec<f64> = pairs.map(|(with, without)| with / without).collect();
        let note = format!(
            "connections from outside, with XDP over without; {taken} packets translated; {lost} of all not made"
        );
        figures.push(figure(&format!("xdp_{way}_over_off"), "ratio", &ratios, &note).size(1));
    }
    Ok(figures)
}
