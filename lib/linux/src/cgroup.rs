//! Control groups on version 1, version 2 and hybrid systems: one path, made in every hierarchy.
//!
//! On a hybrid system the controllers sit in version 1 hierarchies and the unified hierarchy has
//! none, but programs attached to a version 2 directory (eBPF) need each process there too.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::error::{Error, Result};
use crate::{mount, process};

/// How long processes of a killed group may take to vanish.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at a group that is emptying; the kernel offers no event for version 1.
const KILL_PAUSE: Duration = Duration::from_millis(2);

/// The controllers by which containers are limited.
pub const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The mounted hierarchies of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hierarchies {
    /// Mount points of version 1 hierarchies.
    pub v1: Vec<PathBuf>,
    /// Mount point of the unified hierarchy.
    pub v2: Option<PathBuf>,
}

impl Hierarchies {
    /// Finds what is mounted.
    pub fn detect() -> Result<Self> {
        let found = Self::from_mounts(&mount::mounts()?);
        if found.v1.is_empty() && found.v2.is_none() {
            return Err(Error::other(
                "find control groups",
                "no cgroup file system is mounted",
            ));
        }
        Ok(found)
    }

    fn from_mounts(mounts: &[mount::Mount]) -> Self {
        // Only the system's own mounts count: containers bind these into their own trees.
        let system = |m: &&mount::Mount| m.target.starts_with("/sys/fs/cgroup");
        let mut found = Self::default();
        for mount in mounts.iter().filter(system) {
            match mount.fstype.as_str() {
                "cgroup" if !found.v1.contains(&mount.target) => {
                    found.v1.push(mount.target.clone());
                }
                "cgroup2" => found.v2 = Some(mount.target.clone()),
                _ => {}
            }
        }
        found
    }

    /// The directory of group `path` (e.g. `/seaway/dev/node-1`) in each hierarchy.
    pub fn dirs(&self, path: &str) -> Vec<PathBuf> {
        let path = path.trim_start_matches('/');
        self.v1
            .iter()
            .chain(&self.v2)
            .map(|root| root.join(path))
            .collect()
    }

    /// Whether a mounted hierarchy has this controller (cgroups(7)): version 1 names them in the
    /// name of the mount point, version 2 lists them.
    pub fn has_controller(&self, name: &str) -> bool {
        let v1 = self.v1.iter().filter_map(|root| root.file_name()?.to_str());
        let v2 = self
            .v2
            .iter()
            .map(|root| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default());
        v1.map(ToOwned::to_owned)
            .chain(v2)
            .any(|list| list.split([',', ' ', '\n']).any(|it| it == name))
    }

    /// Makes the group and its parents in every hierarchy. In version 2 each parent hands the
    /// controllers that it has on to its children, or these would have no limits.
    pub fn create(&self, path: &str) -> Result<()> {
        for root in self.v1.iter().chain(&self.v2) {
            let mut dir = root.clone();
            for part in path.split('/').filter(|p| !p.is_empty()) {
                hand_on(&dir);
                dir.push(part);
                match fs::create_dir(&dir) {
                    Ok(()) => inherit_cpuset(&dir)?,
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(e) => {
                        return Err(Error::new(format!("make cgroup {}", dir.display()), e));
                    }
                }
            }
        }
        Ok(())
    }

    /// The `cgroup.procs` files of group `path`, for [`process::Daemon::cgroup_procs`].
    pub fn procs_files(&self, path: &str) -> Vec<PathBuf> {
        self.dirs(path)
            .into_iter()
            .map(|dir| dir.join("cgroup.procs"))
            .collect()
    }

    /// Moves process `pid` into group `path` of every hierarchy.
    pub fn join(&self, path: &str, pid: i32) -> Result<()> {
        self.procs_files(path)
            .iter()
            .try_for_each(|file| add(file, pid))
    }

    /// Moves process `pid` into group `path` of the unified hierarchy alone, made when missing;
    /// for runtimes that fill the version 1 hierarchies themselves.
    pub fn join_unified(&self, path: &str, pid: i32) -> Result<()> {
        let Some(root) = &self.v2 else { return Ok(()) };
        let dir = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(&dir)
            .map_err(|e| Error::new(format!("make cgroup {}", dir.display()), e))?;
        add(&dir.join("cgroup.procs"), pid)
    }

    /// Every process in group `path` or below it, in any hierarchy.
    pub fn pids(&self, path: &str) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs(path) {
            collect_pids(&dir, &mut pids);
        }
        pids
    }

    /// Kills every process in group `path` or below it and waits until they are gone.
    ///
    /// # Errors
    /// `ETIMEDOUT` when some outlive ten seconds.
    pub fn kill_all(&self, path: &str) -> Result<()> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        loop {
            let pids: Vec<_> = self
                .pids(path)
                .into_iter()
                .filter(|pid| process::is_alive(*pid))
                .collect();
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let late = io::Error::from_raw_os_error(libc::ETIMEDOUT);
                return Err(Error::new(
                    format!("kill processes {pids:?} of cgroup {path}"),
                    late,
                ));
            }
            for pid in pids {
                process::signal(pid, Signal::SIGKILL)?;
            }
            std::thread::sleep(KILL_PAUSE);
        }
    }

    /// Removes group `path` and everything below it, in every hierarchy. Not there is fine.
    pub fn remove(&self, path: &str) -> Result<()> {
        self.dirs(path).iter().try_for_each(|dir| remove_tree(dir))
    }
}

fn add(procs: &Path, pid: i32) -> Result<()> {
    fs::write(procs, pid.to_string())
        .map_err(|e| Error::new(format!("add process {pid} to {}", procs.display()), e))
}

/// Lets the children of a version 2 group have its controllers (Linux
/// Documentation/admin-guide/cgroup-v2.rst, "Enabling and Disabling"). A group with processes of
/// its own or with threaded children cannot, which is no fault: it has no groups with limits below.
fn hand_on(dir: &Path) {
    let Ok(there) = fs::read_to_string(dir.join("cgroup.controllers")) else {
        return;
    };
    let file = dir.join("cgroup.subtree_control");
    let already = fs::read_to_string(&file).unwrap_or_default();
    let has = |list: &str, name| list.split_whitespace().any(|it| it == name);
    for name in CONTROLLERS {
        if has(&there, name)
            && !has(&already, name)
            && let Err(error) = fs::write(&file, format!("+{name}"))
        {
            tracing::debug!(%error, "{name} is not handed on by {}", dir.display());
        }
    }
}

/// A new version 1 cpuset is empty and takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(dir: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = dir.join(name);
        let Ok(mine) = fs::read_to_string(&file) else {
            continue;
        };
        let parent = dir.parent().map(|p| p.join(name));
        let Some(theirs) = parent.and_then(|p| fs::read_to_string(p).ok()) else {
            continue;
        };
        if mine.trim().is_empty() && !theirs.trim().is_empty() {
            fs::write(&file, theirs.trim())
                .map_err(|e| Error::new(format!("write {}", file.display()), e))?;
        }
    }
    Ok(())
}

fn collect_pids(dir: &Path, pids: &mut BTreeSet<i32>) {
    if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
    }
    for below in subdirs(dir) {
        collect_pids(&below, pids);
    }
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let is_dir = |e: &fs::DirEntry| e.file_type().is_ok_and(|t| t.is_dir());
    entries.filter(is_dir).map(|e| e.path()).collect()
}

fn remove_tree(dir: &Path) -> Result<()> {
    for below in subdirs(dir) {
        remove_tree(&below)?;
    }
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A process that has just died still holds its group for a moment.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(KILL_PAUSE);
            }
            Err(e) => return Err(Error::new(format!("remove cgroup {}", dir.display()), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(target: &str, fstype: &str) -> mount::Mount {
        mount::Mount {
            target: target.into(),
            fstype: fstype.into(),
            source: "cgroup".into(),
            options: "rw".into(),
        }
    }

    #[test]
    fn hybrid_and_unified_systems_are_told_apart() {
        let hybrid = Hierarchies::from_mounts(&[
            mount("/sys/fs/cgroup/memory", "cgroup"),
            mount("/sys/fs/cgroup/unified", "cgroup2"),
            mount("/elsewhere/sys/fs/cgroup/memory", "cgroup"),
        ]);
        assert_eq!(hybrid.v1, [PathBuf::from("/sys/fs/cgroup/memory")]);
        assert_eq!(
            hybrid.dirs("/a/b"),
            [
                Path::new("/sys/fs/cgroup/memory/a/b"),
                Path::new("/sys/fs/cgroup/unified/a/b")
            ]
        );
        let unified = Hierarchies::from_mounts(&[mount("/sys/fs/cgroup", "cgroup2")]);
        assert_eq!(unified.dirs("x"), [Path::new("/sys/fs/cgroup/x")]);
    }

    #[test]
    fn controllers_are_found_in_either_version() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpuset memory\n").unwrap();
        let both = Hierarchies {
            v1: vec!["/sys/fs/cgroup/cpu,cpuacct".into()],
            v2: Some(dir.path().to_owned()),
        };
        for name in ["cpu", "cpuacct", "cpuset", "memory"] {
            assert!(both.has_controller(name), "{name}");
        }
        assert!(!both.has_controller("pids"));
        let unified = Hierarchies { v1: vec![], ..both };
        assert!(!unified.has_controller("cpu"));
    }

    #[test]
    fn a_group_is_born_filled_killed_and_removed() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED cgroup life: needs root");
            return;
        }
        let groups = Hierarchies::detect().unwrap();
        let path = format!("/seaway-test-{}/a/b", std::process::id());
        groups.create(&path).unwrap();
        let daemon = process::Daemon {
            program: "/bin/sleep".into(),
            args: vec!["600".into()],
            cgroup_procs: groups.procs_files(&path),
            ..process::Daemon::default()
        };
        let mut child = daemon.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let top = format!("/seaway-test-{}", std::process::id());
        assert_eq!(groups.pids(&top), BTreeSet::from([pid]));
        groups.kill_all(&top).unwrap();
        child.wait().unwrap();
        groups.remove(&top).unwrap();
        assert!(groups.dirs(&top).iter().all(|d| !d.exists()));
    }
}
