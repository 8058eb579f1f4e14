//! A runner for tests that share one expensive thing: named steps in order, one line each, and the
//! closing line that cargo's own runner prints.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// A named step on a shared `T`.
pub type Step<T> = (&'static str, fn(&T) -> Result<()>);

/// Runs the steps whose name has `filter` in it; one that fails does not stop the others.
pub fn run<T>(title: &str, on: &T, steps: &[Step<T>], filter: Option<&str>) -> ExitCode {
    let start = Instant::now();
    let (mut passed, mut failed) = (0, Vec::new());
    let wanted = |name: &str| filter.is_none_or(|f| name.contains(f));
    println!(
        "\nrunning {} tests",
        steps.iter().filter(|(name, _)| wanted(name)).count()
    );
    for (name, step) in steps.iter().filter(|(name, _)| wanted(name)) {
        let begin = Instant::now();
        match step(on) {
            Ok(()) => {
                passed += 1;
                println!(
                    "test {title}::{name} ... ok ({:.1} s)",
                    begin.elapsed().as_secs_f32()
                );
            }
            Err(error) => {
                println!("test {title}::{name} ... FAILED");
                failed.push((name, error));
            }
        }
    }
    if !failed.is_empty() {
        println!("\nfailures:\n");
        for (name, error) in &failed {
            println!("---- {title}::{name} ----\n{error:#}\n");
        }
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
        failed.len(),
        start.elapsed().as_secs_f32()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
