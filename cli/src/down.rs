//! `seaway down`: takes away everything that `up` and the cluster's daemons made.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use linux::cgroup::Hierarchies;
use linux::patience::scaled;
use linux::{mount, process};
use nix::sys::signal::Signal;

use crate::layout::{BPF_DIR, Layout, STATE_DIR};
use crate::supervise::read_pids;
use crate::{gone, network, say, up};

/// The supervisor ends its daemons within its own limits; after this it is killed.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(8);

/// Removes cluster `name`.
pub(crate) fn run(name: &str) -> Result<()> {
    if !Path::new(STATE_DIR).join(name).exists() {
        say(&format!("there is no cluster {name}; nothing to do"));
        return Ok(());
    }
    let layout = up::saved(name)?;
    let start = Instant::now();
    stop_daemons(&layout)?;
    // The daemons are gone, so nothing comes back while pods are taken away.
    let groups = Hierarchies::detect()?;
    for node in layout.nodes() {
        runtime::destroy_all(&node.dir.join("runtime"))
            .with_context(|| format!("remove the containers of {}", node.name))?;
    }
    groups.kill_all(&layout.cgroup())?;
    groups.remove(&layout.cgroup())?;
    remove_empty_parent(&groups);
    network::remove(&layout)?;
    remove_pins(&layout)?;
    mount::unmount_below(&layout.dir())?;
    fs::remove_dir_all(layout.dir()).with_context(|| layout.dir().display().to_string())?;
    // Only when this was the last cluster.
    let _last = fs::remove_dir(STATE_DIR).is_ok();
    say(&format!(
        "cluster {name} is gone ({:.1} s)",
        start.elapsed().as_secs_f32()
    ));
    Ok(())
}

fn stop_daemons(layout: &Layout) -> Result<()> {
    let pids = read_pids(layout)?;
    let pid = |name: &str| pids.get(name).and_then(|pid| i32::try_from(*pid).ok());
    if let Some(supervisor) = pid("supervise").filter(|pid| is_ours(*pid)) {
        process::signal(supervisor, Signal::SIGTERM)?;
        let deadline = Instant::now() + scaled(SUPERVISOR_TIMEOUT);
        while process::is_alive(supervisor) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        process::signal(supervisor, Signal::SIGKILL)?;
    }
    Ok(())
}

/// The pid may belong to somebody else since the machine was started anew.
fn is_ours(pid: i32) -> bool {
    let args = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut args = args.split('\0');
    args.next()
        .is_some_and(|program| program.ends_with("seaway"))
        && args.next() == Some("supervise")
}

/// With the last pin the kernel lets go of eBPF programs and maps.
fn remove_pins(layout: &Layout) -> Result<()> {
    if !gone::dir(&layout.bpf_dir())? {
        return Ok(());
    }
    // Other clusters may have theirs beside it.
    let _last = fs::remove_dir(BPF_DIR).is_ok();
    Ok(())
}

/// `/seaway` itself, when no other cluster is below it.
fn remove_empty_parent(groups: &Hierarchies) {
    for dir in groups.dirs("/seaway") {
        let _empty = fs::remove_dir(dir).is_ok();
    }
}

/// The clusters on this machine.
pub(crate) fn clusters() -> Vec<String> {
    let entries = fs::read_dir(STATE_DIR).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter(|e| e.path().join("cluster.json").is_file())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
