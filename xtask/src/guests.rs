//! Stage `vm` of `cargo xtask test`: tests that need IPVS, as they were built here, in guests whose
//! kernels have it. Both lanes run at the same time: one has nf_tables, the other is fast.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use linux::exec::Exec;

use crate::run::{cargo, own_program, root_dir, target_dir};
use crate::test::{Tally, failures};
use crate::vm::{Lane, Missing, prepare};

/// Seconds after which a guest is ended. It takes minutes on an idle machine.
const GUEST_SECONDS: u64 = 1200;

/// Building the tests.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3600);

/// The test that runs in two guests at once.
const TWO_NODES: &str = "two_nodes";

/// The test that starts a whole cluster.
const CLUSTER: &str = "ipvs_cluster";

/// An API server that goes away and forgets, and a proxy that is killed, under load.
const TROUBLES: &str = "ipvs_in_troubles_of_the_api_server";
const KILLS: &str = "ipvs_killed_at_random_moments";

/// Of the overlay daemon: its network, what comes back, and its restart under traffic.
const OVERLAY: &[&str] = &[
    "pods_of_three_nodes",
    "what_is_removed_comes_back",
    "a_restart_drops_nothing",
];

/// A test program, and the arguments that choose what runs of it.
type Part = (&'static str, &'static [&'static str]);

/// The part of the packet tests that does not ask the kernel anything new a second time.
const MILLION: &str = "malformed_packets";

/// What runs in each lane. Nothing of it may be skipped there. The slow lane leaves out what depends
/// neither on nf_tables nor on the kernel's version.
const LANES: &[(Lane, &[Part])] = &[
    (
        Lane::Uml,
        &[
            ("ipvs", &[]),
            ("ipvs_filter", &["ipset"]),
            ("ipvs_live", &[]),
            ("ipvs_services", &[]),
            ("nfacct", &[]),
            // Of other suites, what needs no nf_tables, as far as it takes little time.
            ("kernel", &["--skip", "iptables_of", "--skip", "wireguard"]),
            ("cni-plugin/live", &["verbs::", "traffic::"]),
            ("cni-plugin/overlay", OVERLAY),
            (
                "proxy/live",
                &[
                    "iptables::cluster_ip",
                    "iptables::node_ports",
                    "come_back_in_the_old",
                ],
            ),
            ("tables", &["--exact", "ipvs", TROUBLES, KILLS]),
            ("ebpf_packets", &["--skip", MILLION]),
            (
                "proxy/live",
                &[
                    "ebpf::consistent_hashing",
                    "ebpf::sockets_see",
                    "xdp::clients_are_served_in",
                ],
            ),
        ],
    ),
    (
        Lane::Tcg,
        &[
            ("ipvs", &["--skip", "many_destinations"]),
            ("ipvs_filter", &["nf_tables"]),
            (
                "ipvs_live",
                &["change_places", "drains", "restarts", "leaves"],
            ),
            ("ipvs_services", &["--skip", "every_scheduler"]),
            ("nfacct", &[]),
            ("tables", &["--exact", "ipvs"]),
            ("ebpf_packets", &["--skip", MILLION]),
            ("proxy/live", &["ebpf::connected_udp"]),
        ],
    ),
];

/// Runs both lanes.
pub(crate) fn run() -> Result<Tally> {
    let mut total = Tally::default();
    let programs = build()?;
    let mut ready = Vec::new();
    // One after the other: both may install packages.
    for (lane, parts) in LANES {
        match prepare(*lane) {
            Ok(_) => ready.push((*lane, *parts)),
            Err(error) if error.is::<Missing>() => {
                let why = format!("tests in a guest ({}): {error:#}", lane.name());
                total.skipped.push(why);
            }
            Err(error) => return Err(error),
        }
    }
    let mut chains = Vec::new();
    for (lane, parts) in &ready {
        chains.push(vec![vec![of_lane(*lane, parts, &programs)?]]);
    }
    if let Some(fast) = ready.iter().position(|(lane, _)| *lane == Lane::Uml) {
        chains[fast].push(vec![cluster(&programs)?]);
    }
    // Two guests of the slow lane take the place of the fast one, which is done first.
    if ready.iter().any(|(lane, _)| *lane == Lane::Tcg) {
        chains[0].push(pair(&programs)?.into());
    }
    let chain = |guests: Vec<Vec<Guest>>| {
        let mut all = Tally::default();
        for guests in guests {
            all.add(together(guests, Guest::run)?);
        }
        Ok(all)
    };
    total.add(together(chains, chain)?);
    Ok(total)
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
}

/// Test programs' files by name, and by the folder of their package and name: `proxy/live`.
type Programs = BTreeMap<String, PathBuf>;

/// Builds the test programs, and the programs that they start. Packages are chosen as in the stages
/// before, so that nothing is built twice.
fn build() -> Result<Programs> {
    let parts = LANES.iter().flat_map(|(_, parts)| *parts);
    let names: BTreeSet<&str> = parts.map(|(name, _)| short(name)).collect();
    let mut args = vec!["test", "--workspace", "--exclude", "seaway-tests"];
    for name in names {
        args.extend(["--test", name]);
    }
    let mut programs = build_tests(&args)?;
    let package = ["test", "-p", "seaway-tests"];
    let names = ["--test", TWO_NODES, "--test", CLUSTER];
    programs.extend(build_tests(&[&package[..], &names].concat())?);
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

fn of_lane(lane: Lane, parts: &[Part], programs: &Programs) -> Result<Guest> {
    let mut script = String::from("code=0\n");
    for (name, choice) in parts {
        let line = format!(
            "{} --show-output --test-threads 1 {} || code=1\n",
            file(programs, name)?,
            choice.join(" ")
        );
        script.push_str(&line);
    }
    script.push_str("exit $code");
    Ok(Guest {
        name: lane.name().to_owned(),
        lane,
        flags: Vec::new(),
        script,
    })
}

/// A whole cluster in the lane that is fast enough for it.
fn cluster(programs: &Programs) -> Result<Guest> {
    let program = file(programs, CLUSTER)?;
    Ok(Guest {
        name: "cluster".to_owned(),
        lane: Lane::Uml,
        flags: vec!["--memory=3072".to_owned()],
        script: format!("exec {program} --show-output"),
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
    }))
}

/// A test's own name.
fn short(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn file<'a>(programs: &'a Programs, name: &str) -> Result<std::path::Display<'a>> {
    let program = programs.get(name);
    Ok(program
        .with_context(|| format!("no test {name}"))?
        .display())
}

impl Guest {
    /// Runs it to its end.
    fn run(self) -> Result<Tally> {
        let name = &self.name;
        let log = target_dir().join(format!("xtask-vm-{name}.log"));
        let outer = "log=\"$1\"; shift; exec \"$0\" vm \"$@\" > \"$log\" 2>&1";
        let seconds = GUEST_SECONDS.to_string();
        let output = Exec::new("sh")
            .args(["-c", outer])
            .arg(own_program()?)
            .arg(&log)
            .args(["--lane", self.lane.name(), "--timeout", &seconds])
            .args(&self.flags)
            .args(["--", "sh", "-c", &self.script])
            .dir(root_dir())
            .timeout(Duration::from_secs(GUEST_SECONDS + 120))
            .output()?;
        let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
        let mut tally = Tally::read(&text);
        for counted in &mut tally.counted {
            *counted = format!("in a guest ({name}): {counted}");
        }
        // What a guest is there for, it must have.
        for skipped in std::mem::take(&mut tally.skipped) {
            println!("in a guest ({name}) nothing may be skipped: {skipped}");
            tally.failed += 1;
        }
        if !output.status.success() || tally.failed > 0 {
            println!("{}", failures(&text));
            if tally.failed == 0 {
                bail!(
                    "the guest ({name}) did not run to the end; see {}",
                    log.display()
                );
            }
        }
        Ok(tally)
    }
}
