//! `cargo xtask vm`: a command under a kernel that has IPVS, with this machine's files around it.
//!
//! [`kernel`] finds or fetches the kernel, [`host`] boots it and waits, [`guest`] is what runs inside
//! as the first process: this very program. Standard output and error, the exit code and the command
//! itself go through files of one folder that both sides see.

mod guest;
mod host;
mod kernel;
mod orders;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::guests;
pub(crate) use guest::{first_process, second_process};
use host::boot;
pub(crate) use kernel::{Missing, prepare};

/// Which kernel, and how it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lane {
    /// Debian's backports cloud kernel in QEMU without KVM: all of ip_vs, nf_tables, ipset, BTF; 20
    /// times slower than this machine
    Tcg,
    /// Debian's user-mode-linux 6.1, a plain process: native speed, one processor; ip_vs, ipset and
    /// iptables, no nf_tables and no BTF
    Uml,
}

impl Lane {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Tcg, Self::Uml];

    /// As flags write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Uml => "uml",
        }
    }

    /// How many times longer than on this machine a test may wait (`SEAWAY_TIME_SCALE`).
    fn time_scale(self) -> u32 {
        match self {
            Self::Tcg => 20,
            Self::Uml => 4,
        }
    }
}

/// Memory of a guest, in MiB.
const MEMORY: u32 = 2048;
/// Processors of a guest. With two, QEMU's emulation now and then breaks a kernel that patches its own
/// code: it panics, mostly while it boots.
const CPUS: u32 = 1;

/// Arguments of `cargo xtask vm`.
#[derive(Debug, Clone, Args)]
pub(crate) struct VmArgs {
    /// Which kernel, and how it runs
    #[arg(long, value_enum, default_value = "tcg")]
    pub(crate) lane: Lane,
    /// Seconds after which the guest is ended
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) timeout: u64,
    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = MEMORY)]
    pub(crate) memory: u32,
    /// Processors of the guest (the lane `uml` has one)
    #[arg(long, default_value_t = CPUS)]
    pub(crate) cpus: u32,
    /// A network card for the guest, on a segment shared with every other guest of this machine
    /// that names the same number (lane `tcg`)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1024..))]
    pub(crate) segment: Option<u16>,
    /// Leave br_netfilter out: bridged packets meet no rules of IP
    #[arg(long)]
    pub(crate) bare_bridges: bool,
    /// A folder whose files the guest may change for good (all other changes vanish with it)
    #[arg(long, value_name = "DIR")]
    pub(crate) share: Option<PathBuf>,
    /// A test program of the workspace, built first; what stands for the command are then its
    /// arguments, such as the names of tests
    #[arg(long, value_name = "NAME")]
    pub(crate) test: Option<String>,
    /// The command
    #[arg(last = true, required_unless_present = "test")]
    pub(crate) command: Vec<String>,
}

impl VmArgs {
    /// As from the command line, with nothing but these given.
    pub(crate) fn new(lane: Lane, timeout: u64, command: Vec<String>) -> Self {
        Self {
            lane,
            timeout,
            memory: MEMORY,
            cpus: CPUS,
            segment: None,
            bare_bridges: false,
            share: None,
            test: None,
            command,
        }
    }
}

/// What the guest runs of this program.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Inside {
    /// The first process of the guest
    #[command(name = "vm-first", hide = true)]
    First {
        /// The folder with the command
        dir: PathBuf,
        /// What user-mode-linux adds to its own command line
        more: Vec<String>,
    },
    /// The process that runs the command
    #[command(name = "vm-second", hide = true)]
    Second {
        /// The folder with the command
        dir: PathBuf,
    },
}

/// Runs the command; its exit code becomes ours.
pub(crate) fn run(args: &VmArgs) -> Result<ExitCode> {
    if args.lane == Lane::Uml && args.segment.is_some() {
        bail!("--segment: the lane uml has no network cards");
    }
    let kernel = prepare(args.lane)?;
    let mut args = args.clone();
    if let Some(test) = &args.test {
        let program = guests::build_one(test)?.display().to_string();
        let show = ["--show-output", "--test-threads", "1"].map(str::to_owned);
        let own = std::mem::take(&mut args.command);
        args.command = [vec![program], show.into(), own].concat();
    }
    let code = boot(&kernel, &args)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
