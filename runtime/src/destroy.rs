//! Taking things away, also when the shim that made them is gone.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use linux::cgroup::Hierarchies;
use linux::{mount, process};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::shim::start::own_cgroup;
use crate::state::{self, ContainerFile, Root, SandboxFile};
use crate::types::{ContainerState, Exit};

/// How long a killed shim may take to vanish.
const SHIM_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at a shim that is ending.
const SHIM_PAUSE: Duration = Duration::from_millis(1);

/// Exit code of containers whose end nobody saw, as of those that were killed.
const LOST_CODE: i32 = 137;

/// Kills all containers and shims of the state directory `root` and takes away all mounts, cgroups
/// and files in it. Not there is fine. Images are somewhere else and stay.
///
/// # Errors
/// The first failure, after everything else has been tried.
pub fn destroy_all(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let path = root.canonicalize().map_err(Error::path("find", root))?;
    let root = Root(path);
    let groups = Hierarchies::detect()?;
    let mut failed = None;
    for id in state::subdirs(&root.sandboxes()) {
        if let Err(e) = sandbox(&root, &groups, &id) {
            failed.get_or_insert(e);
        }
    }
    match failed {
        Some(e) => Err(e),
        None => {
            mount::unmount_below(&root.0)?;
            fs::remove_dir_all(&root.0).map_err(Error::path("remove", &root.0))
        }
    }
}

/// Takes away what is left of a sandbox, its shim included.
pub(crate) fn sandbox(root: &Root, groups: &Hierarchies, id: &str) -> Result<()> {
    let dir = root.sandbox(id);
    let file: Option<SandboxFile> = state::read(&dir.join("sandbox.json")).ok().flatten();
    if let Some(shim) = state::read::<state::ShimFile>(&dir.join("shim.json"))
        .ok()
        .flatten()
    {
        end_shim(&shim)?;
    }
    if let Some(file) = &file {
        groups.kill_all(&own_cgroup(&file.spec.cgroup_parent))?;
    }
    for container in state::subdirs(&dir.join("containers")) {
        self::container(groups, &state::container_dir(&dir, &container))?;
    }
    if let Some(file) = &file {
        groups.kill_all(&file.spec.cgroup_parent)?;
        groups.remove(&file.spec.cgroup_parent)?;
    }
    mount::unmount_below(&dir)?;
    remove_dir(&dir)?;
    let event = root.events().join(id);
    match fs::remove_file(&event) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::path("remove", &event)(e)),
        _ => Ok(()),
    }
}

/// Takes away what is left of a container: processes, mounts, cgroup, files.
pub(crate) fn container(groups: &Hierarchies, dir: &Path) -> Result<()> {
    if let Some(file) = state::read::<ContainerFile>(&dir.join("container.json"))
        .ok()
        .flatten()
    {
        groups.kill_all(&file.cgroup)?;
        groups.remove(&file.cgroup)?;
    }
    if dir.exists() {
        mount::unmount_below(dir)?;
    }
    remove_dir(dir)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::path("remove", dir)(e)),
    }
}

/// Kills a shim (its containers die with it) and waits until it is gone.
fn end_shim(shim: &state::ShimFile) -> Result<()> {
    let deadline = Instant::now() + SHIM_TIMEOUT;
    let mut killed = false;
    while state::birth(shim.pid) == Some(shim.birth) {
        if !killed {
            process::signal(shim.pid, Signal::SIGKILL)?;
            killed = true;
        }
        if Instant::now() > deadline {
            let late = io::Error::from(io::ErrorKind::TimedOut);
            return Err(Error::io(format!("kill shim {}", shim.pid), late));
        }
        std::thread::sleep(SHIM_PAUSE);
    }
    reap(shim.pid);
    Ok(())
}

/// Collects a shim that was our child; one of an earlier runtime is not, and init collects it.
pub(crate) fn reap(pid: i32) {
    // Not our child (any more): nothing to collect.
    let _status = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

/// Gives every container of a sandbox whose shim died an end: kills what is left of it and records
/// that it was lost. A sandbox with a living shim, and one that is not there, stay as they are.
pub(crate) fn settle(root: &Root, id: &str) -> Result<()> {
    let dir = root.sandbox(id);
    if dead_shim(&dir)?.is_none() {
        return Ok(());
    }
    match state::lock(&dir)? {
        Some(_lock) => settle_locked(&dir),
        None => Ok(()),
    }
}

/// As [`settle`], for who holds the sandbox's lock.
pub(crate) fn settle_locked(dir: &Path) -> Result<()> {
    // Whoever had the lock before may have seen to it.
    let Some(shim) = dead_shim(dir)? else {
        return Ok(());
    };
    let groups = Hierarchies::detect()?;
    let file: Option<SandboxFile> = state::read(&dir.join("sandbox.json"))?;
    if let Some(file) = &file {
        // Before the containers': what it was just making must not enter theirs any more.
        groups.kill_all(&own_cgroup(&file.spec.cgroup_parent))?;
    }
    for name in state::subdirs(&dir.join("containers")) {
        lose(&groups, &state::container_dir(dir, &name))?;
    }
    if shim.pause.is_some()
        && let Some(file) = &file
    {
        groups.kill_all(&file.spec.cgroup_parent)?;
    }
    Ok(())
}

/// The shim of the sandbox in `dir`, when it is dead.
fn dead_shim(dir: &Path) -> Result<Option<state::ShimFile>> {
    let shim: Option<state::ShimFile> = state::read(&dir.join("shim.json"))?;
    Ok(shim.filter(|shim| state::birth(shim.pid) != Some(shim.birth)))
}

/// Records the end of a container that nobody saw. One that was not made to the end goes.
fn lose(groups: &Hierarchies, dir: &Path) -> Result<()> {
    let started_at = match state::container_state(dir)? {
        None => return container(groups, dir),
        Some(ContainerState::Exited(_)) => return Ok(()),
        Some(ContainerState::Running { started_at, .. }) => Some(started_at),
        Some(ContainerState::Created) => None,
    };
    if let Some(file) = state::read::<ContainerFile>(&dir.join("container.json"))? {
        groups.kill_all(&file.cgroup)?;
        groups.remove(&file.cgroup)?;
    }
    mount::unmount_below(dir)?;
    let exit = Exit {
        code: LOST_CODE,
        started_at,
        finished_at: Some(Timestamp::now()),
        reason: "ContainerStatusUnknown".to_owned(),
        message: "the pod's shim died, and the container with it".to_owned(),
        ..Exit::default()
    };
    state::write(&dir.join("state.json"), &ContainerState::Exited(exit))
}
