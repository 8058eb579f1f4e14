//! `cargo xtask suites`: every suite that drives the kernel, whole, in guests, as one table.

use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::programs::{Programs, build, file};
use super::{Guest, Part};
use crate::test::Tally;
use crate::vm::{Lane, prepare};

/// Seconds after which a guest is ended.
const SECONDS: u64 = 3600;

/// The suites. Each has a guest of its own.
const SUITES: &[&str] = &[
    "kernel",
    "nftables",
    "ipvs",
    "policy/live",
    "runtime/containers",
    "cni-plugin/live",
    "cni-plugin/overlay",
    "ipvs_filter",
    "ipvs_live",
    "ipvs_services",
    "nfacct",
    "ebpf_packets",
    "proxy/live",
    "tables",
];

/// What came of a suite in a lane.
struct Row {
    suite: &'static str,
    lane: Lane,
    seconds: u64,
    tally: Tally,
    /// Tests that failed, and the one that had not ended.
    bad: Vec<String>,
}

/// Runs the suites whose names are given, or all, in one lane or both, and prints the table.
///
/// # Errors
/// A guest cannot be had here, or something failed.
pub(crate) fn run(lane: Option<Lane>, names: &[String]) -> Result<()> {
    if let Some(wrong) = names.iter().find(|name| !SUITES.contains(&name.as_str())) {
        bail!("no suite {wrong}; the suites are {}", SUITES.join(", "));
    }
    let chosen = |suite: &&str| names.is_empty() || names.iter().any(|name| name == suite);
    let suites: Vec<&'static str> = SUITES.iter().copied().filter(chosen).collect();
    let lanes = lane.map_or(Lane::ALL.to_vec(), |lane| vec![lane]);
    let programs = build(suites.iter().copied(), &[])?;
    for lane in &lanes {
        prepare(*lane).with_context(|| format!("lane {}", lane.name()))?;
    }
    let (programs, suites) = (&programs, &suites);
    let of_lane = |lane: Lane| -> Result<Vec<Row>> {
        let rows = suites.iter().map(|suite| row(lane, suite, programs));
        rows.collect()
    };
    let rows = thread::scope(|scope| {
        let start = |lane: &Lane| {
            let lane = *lane;
            scope.spawn(move || of_lane(lane))
        };
        let jobs: Vec<_> = lanes.iter().map(start).collect();
        let mut rows = Vec::new();
        for job in jobs {
            rows.extend(
                job.join()
                    .unwrap_or_else(|_| bail!("a lane's thread panicked"))?,
            );
        }
        anyhow::Ok(rows)
    })?;
    println!("\n{}", table(&rows));
    match rows.iter().filter(|row| !row.bad.is_empty()).count() {
        0 => Ok(()),
        n => bail!("{n} of {} failed", rows.len()),
    }
}

fn row(lane: Lane, suite: &'static str, programs: &Programs) -> Result<Row> {
    let part: Part = (suite, &[]);
    let guest = Guest {
        name: format!("{}-{}", lane.name(), suite.replace('/', "-")),
        lane,
        flags: Vec::new(),
        script: format!(
            "exec {} --show-output --test-threads 1",
            file(programs, part.0)?
        ),
        lacks: &[],
    };
    let start = Instant::now();
    let (success, text) = guest.boot(SECONDS)?;
    let mut bad = bad(&text);
    if !success && bad.is_empty() {
        bad.push(format!("the guest itself: see {}", guest.log().display()));
    }
    let row = Row {
        suite,
        lane,
        seconds: start.elapsed().as_secs(),
        tally: Tally::read(&text),
        bad,
    };
    print!("{}", table(std::slice::from_ref(&row)));
    Ok(row)
}

/// Tests of a log that failed, or the one that had begun and not ended. What programs print may
/// stand between a test's name and its verdict: the list at the end is what counts.
fn bad(log: &str) -> Vec<String> {
    if !log.contains("\ntest result:") {
        let begun = |line: &str| {
            let (name, _) = line.strip_prefix("test ")?.split_once(" ... ")?;
            Some(format!("{name} (did not end)"))
        };
        return log
            .lines()
            .filter_map(begun)
            .next_back()
            .into_iter()
            .collect();
    }
    let Some((_, list)) = log.rsplit_once("\nfailures:\n") else {
        return Vec::new();
    };
    let names = list.lines().map_while(|line| line.strip_prefix("    "));
    names.map(str::to_owned).collect()
}

fn table(rows: &[Row]) -> String {
    let mut lines = Vec::new();
    for row in rows {
        let (tally, lane) = (&row.tally, row.lane.name());
        lines.push(format!(
            "{:<20} {lane:<4} {:>4} passed {:>3} skipped {:>3} failed {:>5} s\n",
            row.suite,
            tally.passed,
            tally.skipped.len(),
            row.bad.len(),
            row.seconds
        ));
        let skipped = tally.skipped.iter();
        lines.extend(skipped.map(|why| format!("    skipped {why}\n")));
        lines.extend(row.bad.iter().map(|name| format!("    FAILED  {name}\n")));
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_is_told_by_name() {
        let log = "running 4 tests\ntest a ... ok\ntest c ... words\nFAILED\n\nfailures:\n\n---- c ----\n\n\
                   failures:\n    c\n    m::d\n\ntest result: FAILED. 1 passed";
        assert_eq!(bad(log), ["c", "m::d"]);
        let log = "running 4 tests\ntest a ... ok\ntest d ... ";
        assert_eq!(bad(log), ["d (did not end)"]);
        assert!(bad("test a ... ok\n\ntest result: ok. 1 passed").is_empty());
        let row = Row {
            suite: "kernel",
            lane: Lane::Uml,
            seconds: 7,
            tally: Tally::read("SKIPPED x: y\ntest result: FAILED. 2 passed; 1 failed;"),
            bad: bad(log),
        };
        let told = table(&[row]);
        assert!(
            told.contains("1 passed   1 skipped   1 failed     7 s"),
            "{told}"
        );
        assert!(
            told.contains("skipped x: y") && told.contains("FAILED  d"),
            "{told}"
        );
    }
}
