//! Starting a pod's shim and waiting until it is ready (the runtime's side).

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use linux::cgroup::Hierarchies;
use linux::process::Daemon;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, Result};
use crate::types::SandboxSpec;

/// Longest wait for a shim. It takes some milliseconds on an idle machine.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// Name of the pipe in the sandbox's directory through which the shim says that it is ready.
pub(super) const READY: &str = "ready";
/// What it says; anything else is its error.
pub(super) const READY_WORD: &str = "ready";

/// Starts the shim of the sandbox in `dir` and waits until it serves.
pub(crate) fn shim(
    program: &Path,
    groups: &Hierarchies,
    cgroup: Option<&str>,
    dir: &Path,
    spec: &SandboxSpec,
) -> Result<()> {
    let title = format!("start shim of sandbox {}", spec.id);
    let fail = |e: nix::Error| Error::io(&title, e);
    let fifo = dir.join(READY);
    // One of a shim that died in between may be there still.
    drop(fs::remove_file(&fifo));
    mkfifo(&fifo, Mode::from_bits_truncate(0o600)).map_err(fail)?;
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut ready = File::from(open(&fifo, flags, Mode::empty()).map_err(fail)?);
    let procs = cgroups(groups, cgroup, spec)?;
    let daemon = Daemon {
        program: program.to_owned(),
        args: vec!["serve".into(), dir.into()],
        netns: spec.netns.clone(),
        log: Some(dir.join("shim.log")),
        ..Daemon::default()
    };
    let child = daemon.spawn()?;
    let pid = i32::try_from(child.id()).unwrap_or_default();
    // The kernel takes a grace period of RCU for this, about as long as the shim for its beginning, and
    // before it is told to make a container it has no children that could stay behind.
    join(&procs, pid)?;
    let said = wait(&mut ready, pid).map_err(|e| Error::io(&title, e));
    drop(fs::remove_file(&fifo));
    match said?.trim() {
        READY_WORD => Ok(()),
        "" => {
            let log = fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
            Err(Error::shim(
                title,
                format!("it ended at once: {}", log.trim()),
            ))
        }
        error => Err(Error::shim(title, error)),
    }
}

/// Makes the control groups of a shim and returns the files through which it enters them: `shared`
/// in every hierarchy but one, and in that one its own (see [`own_cgroup`]).
fn cgroups(groups: &Hierarchies, shared: Option<&str>, spec: &SandboxSpec) -> Result<Vec<PathBuf>> {
    let mut procs = Vec::new();
    if let Some(shared) = shared {
        groups.create(shared)?;
        procs = groups.procs_files(shared);
    }
    if let Some(root) = groups.v2.as_ref().or(groups.v1.first()) {
        procs.retain(|file| !file.starts_with(root));
        let dir = root.join(own_cgroup(&spec.cgroup_parent).trim_start_matches('/'));
        fs::create_dir_all(&dir).map_err(Error::path("make cgroup", &dir))?;
        procs.push(dir.join("cgroup.procs"));
    }
    Ok(procs)
}

fn join(procs: &[PathBuf], pid: i32) -> Result<()> {
    for file in procs {
        match fs::write(file, pid.to_string()) {
            // It has ended already; why is heard through its pipe.
            Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(()),
            other => other.map_err(Error::path("enter", file))?,
        }
    }
    Ok(())
}

/// A shim's own control group. It is there in one hierarchy only, and nothing is limited by it: it
/// tells which processes the shim has forked that are no containers yet. When the shim is killed they
/// go on, and would enter the container's group after that has been cleared.
pub(crate) fn own_cgroup(cgroup_parent: &str) -> String {
    // No id of a container begins with a dot.
    format!("{}/.shim", cgroup_parent.trim_end_matches('/'))
}

/// Reads what the shim says until it closes the pipe or dies.
fn wait(ready: &mut File, pid: i32) -> std::io::Result<String> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let pid = Pid::from_raw(pid).ok_or(nix::Error::ESRCH)?;
    let life = pidfd_open(pid, PidfdFlags::empty())?;
    let mut said = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [
            PollFd::new(ready.as_fd(), PollFlags::POLLIN),
            PollFd::new(life.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, left) {
            Err(nix::Error::EINTR) => continue,
            Ok(0) => return Err(std::io::ErrorKind::TimedOut.into()),
            other => drop(other?),
        }
        let revents = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let (talk, dead) = (revents(&fds[0]), revents(&fds[1]));
        if talk.intersects(PollFlags::POLLIN | PollFlags::POLLHUP) {
            let mut part = [0; 4096];
            match ready.read(&mut part)? {
                0 => return Ok(String::from_utf8_lossy(&said).into_owned()),
                len => said.extend(part.get(..len).unwrap_or_default()),
            }
        } else if !dead.is_empty() {
            return Ok(String::from_utf8_lossy(&said).into_owned());
        }
    }
}
