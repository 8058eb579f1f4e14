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
    if name.is_none_or(|name| name == "cni") {
        setup::reference_plugins()?;
    }
    let bin = match name {
        // Optimised builds take long, and most need one program.
        Some("cni") => run::build_some(&["cni-plugin"], &["seaway-cni"])?,
        Some("overlay") => run::build_some(&["cni-plugin"], &["overlay"])?,
        Some("proxy") => run::build_some(&["proxy"], &["proxy"])?,
        _ => run::build(true)?,
    };
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
