//! Stage `vm` of `cargo xtask test`: tests that need IPVS, as they were built here, in guests whose
//! kernels have it. Both lanes run at the same time: one has nf_tables, the other is fast.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use linux::exec::Exec;

use crate::run::{root_dir, target_dir};
use crate::test::{Tally, failures};
use crate::vm::{Lane, prepare};

/// How long a guest may take. It is minutes on an idle machine.
const GUEST_SECONDS: u64 = 1200;

/// Building the tests.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3600);

/// Test programs of a lane, with what is to run of each.
const LANES: &[(Lane, &[(&str, &str)])] = &[
    (
        Lane::Uml,
        &[
            ("ipvs", ""),
            ("ipvs_filter", ""),
            ("ipvs_live", ""),
            ("tables", "ipvs"),
        ],
    ),
    (Lane::Tcg, &[("ipvs", ""), ("ipvs_live", "")]),
];

/// Runs both lanes.
pub(crate) fn run() -> Result<Tally> {
    let mut total = Tally::default();
    let programs = build()?;
    let results: Vec<Result<Tally>> = thread::scope(|scope| {
        let jobs: Vec<_> = LANES
            .iter()
            .map(|(lane, tests)| {
                // One after the other: both may install packages.
                let ready = prepare(*lane);
                let programs = &programs;
                scope.spawn(move || match ready {
                    Ok(_) => run_lane(*lane, tests, programs),
                    Err(error) => Ok(Tally {
                        skipped: vec![format!("tests in a guest ({}): {error:#}", lane.name())],
                        ..Tally::default()
                    }),
                })
            })
            .collect();
        let ended = jobs.into_iter().map(|job| job.join());
        ended
            .map(|result| result.unwrap_or_else(|_| bail!("a lane panicked")))
            .collect()
    });
    for result in results {
        total.add(result?);
    }
    Ok(total)
}

/// Builds the test programs; their files by name.
fn build() -> Result<BTreeMap<String, PathBuf>> {
    let mut args = vec!["test", "-p", "seaway-linux", "-p", "proxy", "--no-run"];
    for name in ["ipvs", "ipvs_filter", "ipvs_live", "tables"] {
        args.extend(["--test", name]);
    }
    args.push("--message-format=json");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let exec = Exec::new(cargo).args(&args).dir(root_dir());
    let output = exec
        .timeout(BUILD_TIMEOUT)
        .run()
        .context("build the tests")?;
    let mut programs = BTreeMap::new();
    for line in output.text().lines() {
        let Some((_, rest)) = line.split_once("\"executable\":\"") else {
            continue;
        };
        let path = PathBuf::from(rest.split('"').next().unwrap_or_default());
        let stem = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some((name, _hash)) = stem.rsplit_once('-') {
            programs.insert(name.to_owned(), path.clone());
        }
    }
    Ok(programs)
}

fn run_lane(
    lane: Lane,
    tests: &[(&str, &str)],
    programs: &BTreeMap<String, PathBuf>,
) -> Result<Tally> {
    let mut script = String::from("code=0\n");
    for (name, filter) in tests {
        let program = programs
            .get(*name)
            .with_context(|| format!("no test {name}"))?;
        let line = format!(
            "{} --show-output --test-threads 1 {filter} || code=1\n",
            program.display()
        );
        script.push_str(&line);
    }
    script.push_str("exit $code");
    let name = lane.name();
    let log = target_dir().join(format!("xtask-vm-{name}.log"));
    let me = own_program()?;
    let outer = "exec \"$0\" vm --lane \"$1\" --timeout \"$2\" -- sh -c \"$3\" > \"$4\" 2>&1";
    let output = Exec::new("sh")
        .args(["-c", outer])
        .arg(me)
        .args([name, &GUEST_SECONDS.to_string(), &script])
        .arg(&log)
        .dir(root_dir())
        .timeout(Duration::from_secs(GUEST_SECONDS + 120))
        .output()?;
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let mut tally = Tally::read(&text);
    for skipped in &mut tally.skipped {
        *skipped = format!("in a guest ({name}): {skipped}");
    }
    if !output.status.success() || tally.failed > 0 {
        println!("{}", failures(&text));
        if tally.failed == 0 {
            bail!(
                "the guest ({name}) did not run to the end; see {}",
                log.display()
            );
        }
    }
    Ok(tally)
}

/// This program's file: a stage before may have built it anew, in the place of what runs.
fn own_program() -> Result<String> {
    let path = std::env::current_exe()?.display().to_string();
    Ok(path.trim_end_matches(" (deleted)").to_owned())
}
