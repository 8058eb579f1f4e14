//! The prebuilt test programs that guests run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use linux::exec::Exec;

use crate::run::{cargo, root_dir};

/// Building the tests.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3600);

/// Test programs' files by name, and by the folder of their package and name: `proxy/live`.
pub(super) type Programs = BTreeMap<String, PathBuf>;

/// Builds the test programs, and the programs that they start. Packages are chosen as in the stages
/// before, so that nothing is built twice. `own` are those of the package of whole clusters.
pub(super) fn build<'a>(names: impl Iterator<Item = &'a str>, own: &[&str]) -> Result<Programs> {
    let names: BTreeSet<&str> = names.map(short).collect();
    let mut args = vec!["test", "--workspace", "--exclude", "seaway-tests"];
    for name in names {
        args.extend(["--test", name]);
    }
    let mut programs = build_tests(&args)?;
    if !own.is_empty() {
        let mut args = vec!["test", "-p", "seaway-tests"];
        for name in own {
            args.extend(["--test", name]);
        }
        programs.extend(build_tests(&args)?);
    }
    cargo(&["build", "--workspace", "--bins", "--quiet"]).run()?;
    Ok(programs)
}

/// Builds one test program of the workspace, and the programs that it starts.
pub(crate) fn build_one(name: &str) -> Result<PathBuf> {
    let (own, test) = (root_dir().join("tests/tests"), short(name));
    let is_own = own.join(format!("{name}.rs")).exists() || own.join(name).exists();
    let packages: &[&str] = if is_own {
        &["-p", "seaway-tests"]
    } else {
        &["--workspace", "--exclude", "seaway-tests"]
    };
    let mut programs = build_tests(&[&["test"], packages, &["--test", test]].concat())?;
    cargo(&["build", "--workspace", "--bins", "--quiet"]).run()?;
    programs
        .remove(name)
        .with_context(|| format!("no test {name}"))
}

fn build_tests(args: &[&str]) -> Result<Programs> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let exec = Exec::new(cargo).args(args).dir(root_dir());
    let output = exec
        .args(["--no-run", "--message-format=json"])
        .timeout(BUILD_TIMEOUT)
        .run()
        .context("build the tests")?;
    let mut programs = BTreeMap::new();
    for line in output.text().lines() {
        let value = |key: &str| {
            let (_, rest) = line.split_once(&format!("\"{key}\":\""))?;
            rest.split('"').next().map(PathBuf::from)
        };
        let (Some(path), Some(manifest)) = (value("executable"), value("manifest_path")) else {
            continue;
        };
        let stem = path.file_name().unwrap_or_default().to_string_lossy();
        let folder = manifest.parent().and_then(|folder| folder.file_name());
        if let (Some((name, _hash)), Some(folder)) = (stem.rsplit_once('-'), folder) {
            let long = format!("{}/{name}", folder.to_string_lossy());
            programs.extend([(name.to_owned(), path.clone()), (long, path.clone())]);
        }
    }
    Ok(programs)
}

/// A test's own name.
fn short(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The file of a test program.
pub(super) fn file<'a>(programs: &'a Programs, name: &str) -> Result<std::path::Display<'a>> {
    let program = programs.get(name);
    Ok(program
        .with_context(|| format!("no test {name}"))?
        .display())
}

/// What words that choose tests name, and is not there: a part that runs nothing would pass.
pub(super) fn check(programs: &Programs, name: &str, choice: &[&str]) -> Result<()> {
    let program = file(programs, name)?.to_string();
    let exec = Exec::new(program).args(["--list", "--format", "terse"]);
    let listed = exec
        .run()
        .with_context(|| format!("list tests of {name}"))?;
    let text = listed.text();
    let tests: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .collect();
    match unmatched(choice, &tests).first() {
        _ if tests.is_empty() => bail!("{name} has no tests"),
        Some(word) => bail!("no test of {name} is called {word}"),
        None => Ok(()),
    }
}

/// Words for the test runner that fit no test.
fn unmatched<'a>(choice: &[&'a str], tests: &[&str]) -> Vec<&'a str> {
    let exact = choice.contains(&"--exact");
    let fits = |word: &str| {
        let same = |test: &&str| {
            if exact {
                *test == word
            } else {
                test.contains(word)
            }
        };
        word == "--exact" || word == "--skip" || tests.iter().any(same)
    };
    choice.iter().copied().filter(|word| !fits(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_fit_no_test_are_told() {
        let tests = ["ipvs", "ipvs_killed", "live::drains"];
        let none: [&str; 0] = [];
        assert_eq!(
            unmatched(&["ipvs", "drains", "--skip", "killed"], &tests),
            none
        );
        assert_eq!(unmatched(&["drain", "renamed"], &tests), ["renamed"]);
        assert_eq!(
            unmatched(&["--exact", "ipvs", "drains"], &tests),
            ["drains"]
        );
        assert_eq!(unmatched(&["--skip", "gone"], &tests), ["gone"]);
    }
}
