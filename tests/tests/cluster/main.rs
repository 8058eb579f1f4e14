//! The whole cluster with the real kubectl: `seaway up`, what a person does with it, `seaway down`.

#![expect(
    clippy::print_stdout,
    reason = "a test runner speaks on standard output"
)]

mod faults;
mod objects;
mod pods;
mod policies;
mod services;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use linux::cgroup::Hierarchies;
use seaway_tests::bin_dir;
use seaway_tests::cluster::Cluster;
use seaway_tests::runner::{self, Step};
use seaway_tests::snapshot::Snapshot;
use seaway_tests::wait_until;

const STEPS: &[Step<Cluster>] = &[
    ("up proves the sample", pods::up_proves_the_sample),
    ("get pods -o wide", pods::get_wide),
    ("describe", pods::describe),
    ("logs", pods::logs),
    ("exec", pods::exec),
    (
        "an init container, volumes and environment",
        pods::volumes_and_environment,
    ),
    ("a pod that cannot start says why", pods::broken_pods),
    ("get svc and endpointslices", services::get_services),
    ("a dual-stack service", services::dual_stack),
    ("a host port", services::host_port),
    ("names from a pod", services::names),
    ("network policies", policies::network_policies),
    ("apply, apply again, delete -f", objects::apply_and_delete),
    ("get -w", objects::watch),
    ("create sends protobuf", objects::create),
    (
        "label, annotate, patch, selectors",
        objects::patch_and_select,
    ),
    ("bad manifests", objects::bad_manifests),
    ("the chart of the network", objects::network_chart),
    ("a namespace goes with everything in it", objects::namespace),
    ("scale and rollout", faults::scale_and_rollout),
    ("delete pod", faults::delete_pod),
    ("killed container", faults::killed_container),
    ("killed kubelet", faults::killed_kubelet),
    ("killed proxy", faults::killed_proxy),
    ("killed overlay", faults::killed_overlay),
    ("killed control plane", faults::killed_control_plane),
    ("anonymous gets nothing but health", objects::anonymous),
];

fn main() -> ExitCode {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED cluster: needs root");
        println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured");
        return ExitCode::SUCCESS;
    }
    match run(filter.as_deref()) {
        Ok(code) => code,
        Err(error) => {
            println!("\nfailures:\n\n---- cluster ----\n{error:#}\n");
            println!("test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured");
            ExitCode::FAILURE
        }
    }
}

fn run(filter: Option<&str>) -> Result<ExitCode> {
    let programs = bin_dir()?;
    let before = Snapshot::take(&programs)?;
    let cluster = Cluster::start("ctest", 251, 16443)?;
    println!("{}", cluster.said);
    let code = runner::run("cluster", &cluster, STEPS, filter);
    if code != ExitCode::SUCCESS {
        println!("{}", cluster.logs());
    }
    let gone: &[Step<Cluster>] = &[("down leaves no trace", |cluster| {
        cluster.seaway("down").map(|_| ())
    })];
    let down = runner::run("cluster", &cluster, gone, None);
    // The kernel takes a namespace's links away some time after the namespace.
    let same = wait_until("the machine to be as before", pods::POD_TIMEOUT, || {
        Snapshot::take(&programs)?.expect_same(&before)
    });
    let nothing_left: &[Step<Result<()>>] = &[("nothing is left", |same| match same {
        Ok(()) => Ok(()),
        Err(error) => anyhow::bail!("{error:#}"),
    })];
    let left = runner::run("cluster", &same, nothing_left, None);
    let other = other_mode(filter);
    let all = [code, down, left, other];
    Ok(if all.iter().all(|c| *c == ExitCode::SUCCESS) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Another cluster, whose proxies are in mode ebpf.
fn other_mode(filter: Option<&str>) -> ExitCode {
    let is_v2 = Hierarchies::detect().is_ok_and(|groups| groups.v2.is_some());
    if !is_v2 {
        println!("SKIPPED a cluster in mode ebpf: no cgroup v2 is mounted");
        return ExitCode::SUCCESS;
    }
    let steps: &[Step<()>] = &[("up in mode ebpf proves the sample", |()| {
        let more = ["--proxy-mode", "ebpf"];
        let cluster = Cluster::start_with("ctestbpf", 249, 16444, &more)?;
        println!("{}", cluster.said);
        pods::up_proves_the_sample(&cluster)?;
        ensure!(
            cluster.said.contains("none of them translated by a rule"),
            "nothing is said of translation"
        );
        Ok(())
    })];
    runner::run("cluster", &(), steps, filter)
}
