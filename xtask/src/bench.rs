//! `cargo xtask bench`: builds optimised binaries and hands over to the benchmark program.

use std::time::Duration;

use anyhow::{Context, Result};
use linux::exec::Exec;

use crate::{run, setup};

/// All benchmarks together.
const BENCH_TIMEOUT: Duration = Duration::from_secs(3600);

/// Runs benchmark `name`, or all.
pub(crate) fn run(name: Option<&str>, json: bool) -> Result<()> {
    setup::run(true)?;
    let bin = run::build(true)?;
    let mut bench = Exec::new(bin.join("seaway-bench"));
    if json {
        bench = bench.arg("--json");
    }
    bench
        .args(name)
        .timeout(BENCH_TIMEOUT)
        .inherit_output()
        .run()
        .context("benchmark")?;
    Ok(())
}
