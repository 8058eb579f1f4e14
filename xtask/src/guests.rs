//! Stage `vm` of `cargo xtask test`: tests that need IPVS, as they were built here, in guests whose
//! kernels have it. Both lanes run at the same time: one has nf_tables, the other is fast.

mod programs;
mod suites;

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use linux::exec::Exec;

use crate::run::{own_program, root_dir, target_dir};
use crate::test::{Tally, failures};
use crate::vm::{Lane, Missing, prepare};
pub(crate) use programs::build_one;
use programs::{Programs, build, check, file};
pub(crate) use suites::run as suites;

/// Seconds after which a guest is ended. It takes minutes on an idle machine.
const GUEST_SECONDS: u64 = 2400;

/// The test that runs in two guests at once.
const TWO_NODES: &str = "two_nodes";

/// The test that starts a whole cluster.
const CLUSTER: &str = "ipvs_cluster";

/// An API server that goes away and forgets, and a proxy that is killed, under load.
const TROUBLES: &str = "ipvs_in_troubles_of_the_api_server";
const KILLS: &str = "ipvs_killed_at_random_moments";

/// A test program, and the arguments that choose what runs of it.
type Part = (&'static str, &'static [&'static str]);

/// What runs in a lane.
struct Plan {
    lane: Lane,
    /// On a kernel without br_netfilter.
    bare: &'static [Part],
    /// On one with it.
    parts: &'static [Part],
    /// What its kernel lacks, as tests say that skip for it. Nothing else may be skipped there.
    lacks: &'static [&'static str],
}

/// What runs in each lane: suites as a whole where they take little time there, and of the rest
/// what depends on the lane's kernel.
const LANES: &[Plan] = &[
    Plan {
        lane: Lane::Uml,
        bare: &[("proxy/live", &["iptables::without_br_netfilter"])],
        parts: &[
            ("ipvs", &[]),
            ("ipvs_filter", &["ipset"]),
            ("ipvs_live", &[]),
            ("ipvs_services", &[]),
            ("nfacct", &[]),
            ("kernel", &[]),
            ("runtime/containers", &[]),
            ("cni-plugin/live", &[]),
            ("cni-plugin/overlay", &[]),
            (
                "proxy/live",
                &[
                    "iptables::cluster_ip",
                    "iptables::node_ports",
                    "come_back_in_the_old",
                    "cleanup_in_the_old",
                    "ebpf_outside::consistent_hashing",
                    "ebpf::sockets_see",
                    "xdp::clients_are_served_in",
                ],
            ),
            ("tables", &["--exact", "ipvs", TROUBLES, KILLS]),
            ("ebpf_packets", &[]),
        ],
        lacks: &[
            "this kernel has no tables of nf_tables for IP",
            "this kernel has no WireGuard",
        ],
    },
    Plan {
        lane: Lane::Tcg,
        bare: &[
            ("policy/live", &["without_br_netfilter_bridges"]),
            ("proxy/live", &["nftables::without_br_netfilter"]),
        ],
        parts: &[
            ("ipvs", &[]),
            ("ipvs_filter", &[]),
            ("ipvs_live", &[]),
            ("ipvs_services", &[]),
            ("nfacct", &[]),
            ("kernel", &[]),
            ("nftables", &[]),
            ("policy/live", &[]),
            ("runtime/containers", &[]),
            ("cni-plugin/live", &["that_this_kernel_may_lack"]),
            ("cni-plugin/overlay", &[]),
            ("tables", &["--exact", "ipvs"]),
            ("ebpf_packets", &[]),
            ("proxy/live", &["ebpf::connected_udp"]),
        ],
        lacks: &[],
    },
];

/// Runs both lanes.
pub(crate) fn run() -> Result<Tally> {
    let mut total = Tally::default();
    let parts = LANES.iter().flat_map(Plan::parts);
    let programs = build(parts.map(|(name, _)| *name), &[TWO_NODES, CLUSTER])?;
    let mut ready = Vec::new();
    // One after the other: both may install packages.
    for plan in LANES {
        let lane = plan.lane;
        for (name, choice) in plan.parts() {
            check(&programs, name, choice)?;
        }
        match prepare(lane) {
            Ok(_) => ready.push(plan),
            Err(error) if error.is::<Missing>() => {
                let why = format!("tests in a guest ({}): {error:#}", lane.name());
                total.skipped.push(why);
            }
            Err(error) => return Err(error),
        }
    }
    let mut chains = Vec::new();
    for plan in &ready {
        chains.push(vec![vec![plan.guest(&programs)?]]);
    }
    if let Some(fast) = ready.iter().position(|plan| plan.lane == Lane::Uml) {
        chains[fast].push(vec![cluster(&programs)?]);
    }
    if let Some(slow) = ready.iter().position(|plan| plan.lane == Lane::Tcg) {
        chains[slow].push(pair(&programs)?.into());
    }
    let chain = |guests: Vec<Vec<Guest>>| {
        let mut all = Tally::default();
        for guests in guests {
            all.add(run_group(&guests)?);
        }
        Ok(all)
    };
    total.add(together(chains, chain)?);
    Ok(total)
}

/// Runs guests that belong together; where few tests failed, a second time, in which none may.
fn run_group(guests: &[Guest]) -> Result<Tally> {
    let run = || together(guests.iter().collect(), Guest::run);
    let mut tally = run()?;
    if tally.may_be_chance() {
        println!("again in a guest: {}", tally.names.join(" "));
        let second = run()?;
        if second.failed == 0 && second.passed >= tally.passed {
            tally.passed_again();
        }
    }
    Ok(tally)
}

/// Runs all at the same time.
fn together<T: Send>(all: Vec<T>, run: impl Fn(T) -> Result<Tally> + Sync) -> Result<Tally> {
    let results: Vec<Result<Tally>> = thread::scope(|scope| {
        let run = &run;
        let start = |one| scope.spawn(move || run(one));
        let jobs: Vec<_> = all.into_iter().map(start).collect();
        let ended = jobs.into_iter().map(|job| job.join());
        ended
            .map(|result| result.unwrap_or_else(|_| bail!("a guest's thread panicked")))
            .collect()
    });
    let mut total = Tally::default();
    for result in results {
        total.add(result?);
    }
    Ok(total)
}

/// One guest and what it runs.
struct Guest {
    /// In messages and in the name of its log.
    name: String,
    lane: Lane,
    /// Flags of `cargo xtask vm`.
    flags: Vec<String>,
    /// For its shell.
    script: String,
    /// Reasons for which tests may be skipped: what its kernel lacks.
    lacks: &'static [&'static str],
}

impl Plan {
    fn parts(&self) -> impl Iterator<Item = &'static Part> {
        self.bare.iter().chain(self.parts)
    }

    /// One guest for everything: br_netfilter comes in between.
    fn guest(&self, programs: &Programs) -> Result<Guest> {
        const BARE: &str = "[ -e /proc/sys/net/bridge ] && echo 'FAILED: br_netfilter' && code=1\n";
        let run = |parts: &[Part]| -> Result<String> {
            let mut script = String::new();
            for (name, choice) in parts {
                let line = format!(
                    "{} --show-output --test-threads 1 {} || code=1\n",
                    file(programs, name)?,
                    choice.join(" ")
                );
                script.push_str(&line);
            }
            Ok(script)
        };
        let (bare, more) = (run(self.bare)?, run(self.parts)?);
        let script =
            format!("code=0\n{BARE}{bare}{BARE}modprobe br_netfilter || exit 1\n{more}exit $code");
        Ok(Guest {
            name: self.lane.name().to_owned(),
            lane: self.lane,
            flags: vec!["--bare-bridges".to_owned()],
            script,
            lacks: self.lacks,
        })
    }
}

/// A whole cluster in the lane that is fast enough for it.
fn cluster(programs: &Programs) -> Result<Guest> {
    let program = file(programs, CLUSTER)?;
    Ok(Guest {
        name: "cluster".to_owned(),
        lane: Lane::Uml,
        flags: vec!["--memory=3072".to_owned()],
        script: format!("exec {program} --show-output"),
        lacks: &[],
    })
}

/// Two guests on a segment of their own.
fn pair(programs: &Programs) -> Result<[Guest; 2]> {
    const FIRST: u32 = 10_000;
    const N: u32 = 50_000;
    let segment = FIRST + std::process::id() % N;
    let program = file(programs, TWO_NODES)?;
    Ok([1, 2].map(|number| Guest {
        name: format!("node-{number}"),
        lane: Lane::Tcg,
        flags: vec![format!("--segment={segment}"), "--memory=1024".to_owned()],
        script: format!("SEAWAY_NODE={number} exec {program} --show-output"),
        lacks: &[],
    }))
}

impl Guest {
    /// Runs it to its end: whether that was a good one, and its log.
    fn boot(&self, seconds: u64) -> Result<(bool, String)> {
        let log = self.log();
        let outer = "log=\"$1\"; shift; exec \"$0\" vm \"$@\" > \"$log\" 2>&1";
        let output = Exec::new("sh")
            .args(["-c", outer])
            .arg(own_program()?)
            .arg(&log)
            .args(["--lane", self.lane.name()])
            .args(["--timeout", &seconds.to_string()])
            .args(&self.flags)
            .args(["--", "sh", "-c", &self.script])
            .dir(root_dir())
            .timeout(Duration::from_secs(seconds + 120))
            .output()?;
        let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
        Ok((output.status.success(), text))
    }

    fn log(&self) -> PathBuf {
        target_dir().join(format!("xtask-vm-{}.log", self.name))
    }

    /// Runs it to its end, and counts.
    fn run(&self) -> Result<Tally> {
        let name = &self.name;
        let (success, text) = self.boot(GUEST_SECONDS)?;
        let mut tally = Tally::read(&text);
        for counted in &mut tally.counted {
            *counted = format!("in a guest ({name}): {counted}");
        }
        for skipped in std::mem::take(&mut tally.skipped) {
            let skipped = format!("in a guest ({name}): {skipped}");
            // What a guest is there for, it must have.
            if self.lacks.iter().any(|reason| skipped.contains(reason)) {
                tally.skipped.push(skipped);
            } else {
                println!("this may not be skipped {skipped}");
                tally.failed += 1;
            }
        }
        if text.lines().any(|line| line.trim() == "running 0 tests") {
            println!("in a guest ({name}) a part of the tests is empty");
            tally.failed += 1;
        }
        if !success || tally.failed > 0 {
            println!("{}", failures(&text));
            if tally.failed == 0 {
                bail!(
                    "the guest ({name}) did not run to the end; see {}",
                    self.log().display()
                );
            }
        }
        Ok(tally)
    }
}
