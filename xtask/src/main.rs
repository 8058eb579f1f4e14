//! `cargo xtask`: everything a developer types in this repository.

#![expect(
    clippy::print_stdout,
    reason = "a command-line tool speaks on standard output"
)]

mod bench;
mod dist;
mod ebpf;
mod guests;
mod run;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, run and test Seaway.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what this project needs on a Debian machine (idempotent, as root)
    Setup {
        /// Only what running a cluster needs, not what the tests need
        #[arg(long)]
        run_only: bool,
    },
    /// Build, then start a cluster of three nodes on this machine and prove that it serves
    Up {
        /// Build optimised binaries (slower to build, smaller and faster to run)
        #[arg(long)]
        release: bool,
        /// Arguments for `seaway up`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Remove the cluster and every trace of it
    Down {
        /// Arguments for `seaway down`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run everything that can be tested on this machine, with what it needs installed first
    Test {
        /// Run only these stages (see the stage names it prints)
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// The gate of the project: the same as `test`
    Ci,
    /// Run the tests that use real network namespaces (as root)
    Net {
        /// Only tests whose name has this text
        filter: Option<String>,
    },
    /// Check what the compiler does not: orphan files, module docs, file sizes, dependency direction
    Tidy,
    /// Measure; a table for people, or one JSON object a line
    Bench {
        /// What to measure: cni, overlay, proxy, ebpf (ebpf-start, ebpf-xdp: parts of it), cluster; ipvs (in a guest); all but ipvs when left out
        name: Option<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Run a command under a kernel that has IPVS, with this machine's files around it
    Vm(vm::VmArgs),
    /// Run every suite that drives the kernel, whole, in guests, and print one table
    Suites {
        /// In this lane only
        #[arg(long, value_enum)]
        lane: Option<vm::Lane>,
        /// Only these, such as `policy/live`
        names: Vec<String>,
    },
    #[command(flatten)]
    Inside(vm::Inside),
    /// Rebuild the eBPF object, bit for bit
    Ebpf {
        /// Fail when it differs from the committed one
        #[arg(long)]
        check: bool,
    },
    /// Build and pack what is given away: target/package/seaway-VERSION-linux-ARCH.tar.gz
    Dist,
}

fn main() -> ExitCode {
    match dispatch(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            println!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Vm(args) => return vm::run(&args),
        Command::Inside(vm::Inside::First { dir, .. }) => vm::first_process(&dir),
        Command::Inside(vm::Inside::Second { dir }) => {
            let code = vm::second_process(&dir)?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        Command::Suites { lane, names } => guests::suites(lane, &names),
        Command::Setup { run_only } => setup::run(run_only),
        Command::Up { release, args } => run::up(release, &args),
        Command::Down { args } => run::down(&args),
        Command::Test { only } => test::run(&only),
        Command::Ci => test::run(&[]),
        Command::Net { filter } => test::net(filter.as_deref()),
        Command::Tidy => tidy::run(),
        Command::Bench { name, json } => return bench::run(name.as_deref(), json),
        Command::Ebpf { check } => ebpf::run(check),
        Command::Dist => dist::run(),
    }?;
    Ok(ExitCode::SUCCESS)
}
