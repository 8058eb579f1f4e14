//! `cargo xtask bench`: builds optimised binaries and hands over to the benchmark program.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use linux::exec::Exec;

use crate::{dist, run, setup, vm};

/// All benchmarks together.
const BENCH_TIMEOUT: Duration = Duration::from_secs(3600);

/// The benchmark that needs a kernel with IPVS.
const IPVS: &str = "ipvs";

/// Seconds that one may take in a guest.
const GUEST_SECONDS: u64 = 900;

/// Runs benchmark `name`, or all that this machine's kernel can.
pub(crate) fn run(name: Option<&str>, json: bool) -> Result<ExitCode> {
    setup::run(true)?;
    if name == Some(IPVS) {
        return in_guest(json);
    }
    if name.is_none_or(|name| name == "cni") {
        setup::reference_plugins()?;
    }
    if name.is_none_or(|name| name == "overlay") {
        setup::ensure(&[("iperf3", "iperf3")])?;
    }
    let bin = match name {
        // Optimised builds take long, and most need one program.
        Some("cni") => run::build_some(&[], &[])?,
        Some("overlay") => run::build_some(&["cni-plugin"], &["overlay"])?,
        Some("proxy" | "ebpf" | "ebpf-start" | "ebpf-xdp") => {
            run::build_some(&["proxy"], &["proxy"])?
        }
        _ => run::build(true)?,
    };
    let mut bench = Exec::new(bin.join(PROGRAM));
    if json {
        bench = bench.arg("--json");
    }
    if name.is_none_or(|name| name == "cni") {
        bench = bench.env(PLUGIN, dist::plugin()?);
    }
    bench
        .args(name)
        .timeout(BENCH_TIMEOUT)
        .inherit_output()
        .run()
        .context("benchmark")?;
    Ok(ExitCode::SUCCESS)
}

/// Names to the benchmark program the plugin as it is given away.
const PLUGIN: &str = "SEAWAY_CNI";

/// The benchmark program.
const PROGRAM: &str = "seaway-bench";

/// In the guest that runs at this machine's speed.
fn in_guest(json: bool) -> Result<ExitCode> {
    let program = run::build_some(&[], &[])?.join(PROGRAM);
    let mut command = vec![program.display().to_string(), IPVS.to_owned()];
    if json {
        command.push("--json".to_owned());
    }
    vm::run(&vm::VmArgs::new(vm::Lane::Uml, GUEST_SECONDS, command))
}
