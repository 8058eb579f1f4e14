//! How long the steps of a pod's life take, and what its shim weighs: a table for people.
//!
//! `cargo run -p seaway-runtime --example latency [COUNT]`, as root, with busybox-static.

#![expect(clippy::print_stdout, reason = "prints a table")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use linux::cgroup::Hierarchies;
use runtime::image::build::Archive;
use runtime::{ContainerSpec, ExecSpec, Runtime, RuntimeConfig, SandboxSpec};

const IMAGE: &str = "bench.local/busybox:1";

/// Times of the steps, by name.
#[derive(Default)]
struct Steps(BTreeMap<&'static str, Vec<Duration>>);

impl Steps {
    fn time<T>(&mut self, step: &'static str, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        self.0.entry(step).or_default().push(start.elapsed());
        result
    }
}

fn main() -> Result<()> {
    let count = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    let dir = std::env::temp_dir().join(format!("seaway-latency-{}", std::process::id()));
    let cgroup = format!("/seaway-latency-{}", std::process::id());
    let result = measure(&dir, &cgroup, count);
    runtime::destroy_all(&dir.join("runtime"))?;
    let groups = Hierarchies::detect()?;
    groups.kill_all(&cgroup)?;
    groups.remove(&cgroup)?;
    std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    for (step, mut times) in result?.0 {
        times.sort();
        let at = |percent: usize| {
            let index = (times.len() - 1) * percent / 100;
            times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1000.0)
        };
        println!(
            "{step:<24} n={:<3} p50 {:>7.2} ms  p99 {:>7.2} ms",
            times.len(),
            at(50),
            at(99)
        );
    }
    Ok(())
}

fn measure(dir: &Path, cgroup: &str, count: usize) -> Result<Steps> {
    std::fs::create_dir_all(dir)?;
    let shim = std::env::current_exe()?
        .ancestors()
        .nth(2)
        .map(|dir| dir.join("seaway-shim"));
    let runtime = Runtime::open(RuntimeConfig {
        root: dir.join("runtime"),
        images: dir.join("images"),
        shim,
        cgroup_root: cgroup.to_owned(),
    })?;
    let archive = dir.join("image.tar");
    let image = Archive::new(IMAGE).copy("/bin/busybox", "/bin/busybox", 0o755);
    image
        .link("/bin/sleep", "busybox")
        .link("/bin/true", "busybox")
        .write(&archive)?;
    let mut steps = Steps::default();
    steps.time("image load", || runtime.images().load(&archive))?;
    let mut weights = Vec::new();
    for n in 0..count {
        let id = format!("pod-{n}");
        let pod = SandboxSpec {
            id: id.clone(),
            hostname: id.clone(),
            cgroup_parent: format!("{cgroup}/kubepods/{id}"),
            ..SandboxSpec::default()
        };
        let container = ContainerSpec {
            id: format!("c-{n}"),
            image: IMAGE.to_owned(),
            argv: vec!["sleep".to_owned(), "1000".to_owned()],
            log_path: Some(dir.join(format!("{id}.log"))),
            ..ContainerSpec::default()
        };
        let exec = ExecSpec {
            argv: vec!["true".to_owned()],
            ..ExecSpec::default()
        };
        let start = Instant::now();
        steps.time("1 create sandbox", || runtime.create_sandbox(&pod))?;
        steps.time("2 create container", || {
            runtime.create_container(&id, &container)
        })?;
        steps.time("3 start container", || {
            runtime.start_container(&container.id)
        })?;
        steps
            .0
            .entry("4 pod in all")
            .or_default()
            .push(start.elapsed());
        steps.time("5 exec true", || runtime.exec(&container.id, &exec)?.wait())?;
        let pid = runtime.sandbox_status(&id)?.pid.context("the shim died")?;
        weights.push(linux::process::resident_bytes(pid)?);
        steps.time("6 kill container", || runtime.kill_container(&container.id))?;
        steps.time("7 remove container", || {
            runtime.remove_container(&container.id)
        })?;
        steps.time("8 remove sandbox", || runtime.remove_sandbox(&id))?;
    }
    let most = weights.into_iter().max().unwrap_or(0);
    println!("shim: at most {} KiB resident", most / 1024);
    Ok(steps)
}
