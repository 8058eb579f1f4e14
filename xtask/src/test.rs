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
    /// Those that failed, by name.
    pub(crate) names: Vec<String>,
    /// Those that failed, and did not when they were asked again.
    pub(crate) unsteady: Vec<String>,
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
        if tally.failed > 0 {
            tally.names = failed_names(output);
        }
        tally
    }

    /// Whether so few failed, each with a name, that chance may have had a part in it.
    pub(crate) fn may_be_chance(&self) -> bool {
        const FEW: u64 = 3;
        let names = &self.names;
        self.failed > 0 && self.failed <= FEW && names.len() as u64 == self.failed
    }

    /// What failed did not when it was asked again: told, and no failure.
    pub(crate) fn passed_again(&mut self) {
        self.passed += std::mem::take(&mut self.failed);
        self.unsteady.append(&mut self.names);
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.names.extend(other.names);
        self.unsteady.extend(other.unsteady);
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
        tests(
            &["test", "--workspace", "--exclude", "seaway-tests"],
            Again::Alone,
        )
    }),
    ("etcd", etcd),
    ("build", || {
        silent(&["build", "--workspace", "--bins", "--quiet"])
    }),
    ("vm", guests::run),
    ("cluster", || {
        tests(&["test", "-p", "seaway-tests"], Again::Together)
    }),
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
                total.names.push(format!("stage {name}: {error:#}"));
            }
        }
    }
    for counted in &total.counted {
        println!("counted: {counted}");
    }
    for skipped in &total.skipped {
        println!("skipped: {skipped}");
    }
    for name in &total.unsteady {
        println!("unsteady: {name} failed, and passed when it was asked again: a defect to find");
    }
    for name in &total.names {
        println!("failed: {name}");
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
    tests(&test, Again::Alone)
}

/// How tests that failed are asked again.
#[derive(Clone, Copy)]
enum Again {
    /// They alone, one after the other.
    Alone,
    /// With all others of the stage: they are steps on one thing.
    Together,
}

/// Runs tests, prints what failed, and counts. Where few failed they are asked again, and must pass
/// every time then to be called unsteady: on a machine with other work one of a thousand tests with
/// a race in it would hide what all others say. Its failure is printed all the same.
fn tests(args: &[&str], again: Again) -> Result<Tally> {
    const TIMES: usize = 2;
    let mut tally = run_once(args, &[], "xtask-test.log")?;
    if !tally.may_be_chance() || !tally.names.iter().all(|name| is_plain(name)) {
        return Ok(tally);
    }
    let names: Vec<&str> = tally.names.iter().map(String::as_str).collect();
    let only = match again {
        Again::Alone => [&["--exact", "--test-threads", "1"], &names[..]].concat(),
        Again::Together => Vec::new(),
    };
    for _ in 0..TIMES {
        println!("again: {}", names.join(" "));
        let second = run_once(args, &only, "xtask-test-again.log")?;
        if second.failed > 0 || second.passed < tally.failed {
            return Ok(tally);
        }
    }
    tally.passed_again();
    Ok(tally)
}

/// A name that a shell takes as it stands.
fn is_plain(name: &str) -> bool {
    name.chars()
        .all(|c| c.is_ascii_alphanumeric() || "_:-".contains(c))
}

/// Runs tests once with their output kept in `log`, prints what failed, and counts.
fn run_once(args: &[&str], only: &[&str], log: &str) -> Result<Tally> {
    let log = target_dir().join(log);
    let script = format!(
        "{} {} --no-fail-fast --quiet -- --show-output {} > {} 2>&1",
        std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()),
        args.join(" "),
        only.join(" "),
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

/// The parts of a test log that tell what went wrong: of each suite that failed, from its first
/// failure to its result. Of a log in which none did, what follows the first error.
pub(crate) fn failures(log: &str) -> String {
    const LINES_MAX: usize = 400;
    let lines: Vec<&str> = log.lines().collect();
    let mut told: Vec<&str> = Vec::new();
    let mut from = None;
    for (at, line) in lines.iter().enumerate() {
        let line = line.trim();
        if line == "failures:" && from.is_none() {
            from = Some(at);
        } else if line.starts_with("test result:")
            && let Some(from) = from.take()
        {
            told.extend(lines[from..=at].iter().take(LINES_MAX));
        }
    }
    // A suite that ended in the middle has no result.
    let error = || lines.iter().position(|line| line.contains("error"));
    let rest = from.or_else(|| error().filter(|_| told.is_empty()));
    told.extend(lines[rest.unwrap_or(lines.len())..].iter().take(LINES_MAX));
    told.join("\n")
}

/// Names of the tests that failed: each has its output under a line `---- name stdout ----`.
fn failed_names(log: &str) -> Vec<String> {
    let name = |line: &str| {
        let line = line.trim().strip_prefix("---- ")?.strip_suffix(" ----")?;
        Some(line.trim_end_matches(" stdout").to_owned())
    };
    failures(log).lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_lines_add_up() {
        let log = "SKIPPED ipvs table: this kernel has no ip_vs\n\
                   COUNTED rows: 12\n\
                   test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured\n\
                   failures:\n\n\
                   ---- a::b stdout ----\noh\n\n---- c ----\nno\n\n\
                   failures:\n    a::b\n\
                   test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n";
        let expect = Tally {
            passed: 5,
            failed: 2,
            names: vec!["a::b".into(), "c".into()],
            unsteady: vec![],
            skipped: vec!["ipvs table: this kernel has no ip_vs".into()],
            counted: vec!["rows: 12".into()],
        };
        assert_eq!(Tally::read(log), expect);
    }

    #[test]
    fn what_may_be_chance() {
        let failed = |count: u64, names: usize| Tally {
            passed: 10,
            failed: count,
            names: vec!["x::y".to_owned(); names],
            ..Tally::default()
        };
        assert!(failed(1, 1).may_be_chance() && failed(3, 3).may_be_chance());
        // Nothing, a program that died without naming its test, and too much.
        for tally in [failed(0, 0), failed(1, 0), failed(4, 4)] {
            assert!(!tally.may_be_chance());
        }
        let mut tally = failed(2, 2);
        tally.passed_again();
        assert_eq!((tally.passed, tally.failed), (12, 0));
        assert!(tally.names.is_empty() && tally.unsteady.len() == 2);
        assert!(is_plain("a::b_1") && !is_plain("a; b") && !is_plain("a b"));
    }

    #[test]
    fn every_suite_that_failed_is_told_and_no_other() {
        let log = "test result: ok. 1 passed\n\
                   successes:\n---- s stdout ----\nmuch\n\
                   failures:\n\n---- a stdout ----\noh\n\nfailures:\n    a\n\
                   test result: FAILED. 1 passed; 1 failed;\n\
                   successes:\n    x\ntest result: ok. 1 passed\n\
                   failures:\n\n---- b ----\nno\ntest result: FAILED. 0 passed; 1 failed;\n";
        let told = failures(log);
        for word in ["oh", "no"] {
            assert!(told.contains(word), "{told}");
        }
        for word in ["much", "    x"] {
            assert!(!told.contains(word), "{told}");
        }
        let unbuilt = "Compiling x\nerror[E0308]: mismatched\nhere\n";
        assert_eq!(failures(unbuilt), "error[E0308]: mismatched\nhere");
        // A program that died in the middle of its tests.
        let killed = "failures:\n\n---- a stdout ----\noh\n";
        assert!(failures(killed).contains("oh"));
    }
}
