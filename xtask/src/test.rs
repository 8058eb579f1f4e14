//! `cargo xtask test`: every stage, one line each, and the totals at the end.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use linux::exec::{Exec, which};

use crate::run::{cargo, root_dir, target_dir};
use crate::{guests, setup, tidy};

/// What the test runner's lines add up to.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: Vec<String>,
    /// What tests say that they went through, such as the rows of tables.
    pub(crate) counted: Vec<String>,
}

impl Tally {
    /// Reads `test result:` lines and the tests' own `SKIPPED name: reason` and `COUNTED what` lines.
    /// A skipped test ends without a failure, so the runner counted it as passed.
    pub(crate) fn read(output: &str) -> Self {
        let mut tally = Self::default();
        for line in output.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("test result:") {
                let count = |word: &str| -> u64 {
                    let before = rest.split(word).next().unwrap_or_default();
                    before
                        .split_whitespace()
                        .last()
                        .and_then(|n| n.parse().ok())
                        .unwrap_or(0)
                };
                tally.passed += count(" passed");
                tally.failed += count(" failed");
            } else if let Some(rest) = line.strip_prefix("SKIPPED ") {
                tally.skipped.push(rest.to_owned());
            } else if let Some(rest) = line.strip_prefix("COUNTED ") {
                tally.counted.push(rest.to_owned());
            }
        }
        tally.passed = tally.passed.saturating_sub(tally.skipped.len() as u64);
        tally
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.counted.extend(other.counted);
    }
}

type Stage = (&'static str, fn() -> Result<Tally>);

/// In this order; the name is what `--only` takes.
const STAGES: &[Stage] = &[
    ("setup", || setup::run(false).map(|()| Tally::default())),
    ("format", || silent(&["fmt", "--all", "--check"])),
    ("tidy", || tidy::run().map(|()| Tally::default())),
    ("clippy", || {
        silent(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])
    }),
    ("docs", docs),
    ("unit", || {
        tests(&["test", "--workspace", "--exclude", "seaway-tests"])
    }),
    ("etcd", etcd),
    ("build", || {
        silent(&["build", "--workspace", "--bins", "--quiet"])
    }),
    ("vm", guests::run),
    ("cluster", || tests(&["test", "-p", "seaway-tests"])),
];

/// Runs the stages named in `only`, or all.
pub(crate) fn run(only: &[String]) -> Result<()> {
    if let Some(wrong) = only
        .iter()
        .find(|o| STAGES.iter().all(|(name, _)| name != o))
    {
        let names: Vec<_> = STAGES.iter().map(|(name, _)| *name).collect();
        bail!("no stage {wrong}; the stages are {}", names.join(", "));
    }
    let mut total = Tally::default();
    for (name, stage) in STAGES {
        if !only.is_empty() && !only.iter().any(|o| o == name) {
            continue;
        }
        let start = Instant::now();
        match stage() {
            Ok(tally) => {
                let verdict = if tally.failed == 0 { "ok" } else { "FAILED" };
                let counts = match tally.passed + tally.failed {
                    0 => String::new(),
                    n => format!(", {n} tests, {} skipped", tally.skipped.len()),
                };
                println!(
                    "== {name}: {verdict} ({:.0} s{counts})",
                    start.elapsed().as_secs_f32()
                );
                total.add(tally);
            }
            Err(error) => {
                println!(
                    "== {name}: FAILED ({:.0} s): {error:#}",
                    start.elapsed().as_secs_f32()
                );
                total.failed += 1;
            }
        }
    }
    for counted in &total.counted {
        println!("counted: {counted}");
    }
    for skipped in &total.skipped {
        println!("skipped: {skipped}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed,
        total.failed,
        total.skipped.len()
    );
    if total.failed > 0 {
        bail!("some tests failed");
    }
    Ok(())
}

/// `cargo xtask net`: the namespace tests are ordinary tests that need root.
pub(crate) fn net(filter: Option<&str>) -> Result<()> {
    let mut args = vec![
        "test",
        "--workspace",
        "--exclude",
        "seaway-tests",
        "--",
        "--show-output",
    ];
    args.extend(filter);
    cargo(&args).run().context("namespace tests")?;
    Ok(())
}

fn silent(args: &[&str]) -> Result<Tally> {
    cargo(args).run().context(args.join(" "))?;
    Ok(Tally::default())
}

fn docs() -> Result<Tally> {
    cargo(&[
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--quiet",
    ])
    .env("RUSTDOCFLAGS", "-D warnings")
    .run()
    .context("documentation")?;
    Ok(Tally::default())
}

/// Leases from etcd are a cargo feature of their own, since its client's build needs protoc.
fn etcd() -> Result<Tally> {
    if let Some(missing) = ["protoc", "etcd"].iter().find(|p| which(p).is_none()) {
        let skipped = vec![format!("etcd: {missing} is not installed")];
        return Ok(Tally {
            skipped,
            ..Tally::default()
        });
    }
    let package = ["-p", "cni-plugin", "--features", "etcd"];
    let clippy = [&["clippy", "--quiet", "--all-targets"], &package[..]].concat();
    silent(&[&clippy[..], &["--", "-D", "warnings"]].concat())?;
    let test = [&["test", "--test", "overlay"], &package[..], &["etcd"]].concat();
    tests(&test)
}

/// Runs tests with their output kept, prints what failed, and counts.
fn tests(args: &[&str]) -> Result<Tally> {
    let log = target_dir().join("xtask-test.log");
    let script = format!(
        "{} {} --no-fail-fast --quiet -- --show-output > {} 2>&1",
        std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()),
        args.join(" "),
        log.display()
    );
    // The log goes through a file: it is too long to hold, and it is there to read while tests run.
    let output = Exec::new("sh")
        .args(["-c", &script])
        .dir(root_dir())
        .timeout(std::time::Duration::from_secs(3600))
        .output()?;
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let tally = Tally::read(&text);
    if !output.status.success() || tally.failed > 0 {
        println!("{}", failures(&text));
        if tally.failed == 0 {
            bail!("the tests did not run to the end; see {}", log.display());
        }
    }
    Ok(tally)
}

/// The part of a test log that tells what went wrong.
pub(crate) fn failures(log: &str) -> String {
    const LINES_MAX: usize = 400;
    let interesting = |line: &&str| {
        let line = line.trim_start();
        !(line.starts_with("SKIPPED") || line.starts_with("running ") || line.ends_with("... ok"))
    };
    let from = log
        .find("\nfailures:")
        .or_else(|| log.find("error"))
        .unwrap_or(0);
    log[from..]
        .lines()
        .filter(interesting)
        .take(LINES_MAX)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_lines_add_up() {
        let log = "SKIPPED ipvs table: this kernel has no ip_vs\n\
                   COUNTED rows: 12\n\
                   test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured\n\
                   test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n";
        let expect = Tally {
            passed: 5,
            failed: 2,
            skipped: vec!["ipvs table: this kernel has no ip_vs".into()],
            counted: vec!["rows: 12".into()],
        };
        assert_eq!(Tally::read(log), expect);
    }
}
