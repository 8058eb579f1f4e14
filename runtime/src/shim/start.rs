//! Starting a pod's shim and waiting until it is ready (the runtime's side).

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
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
    drop(std::fs::remove_file(&fifo));
    mkfifo(&fifo, Mode::from_bits_truncate(0o600)).map_err(fail)?;
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut ready = File::from(open(&fifo, flags, Mode::empty()).map_err(fail)?);
    if let Some(cgroup) = cgroup {
        groups.create(cgroup)?;
    }
    let daemon = Daemon {
        program: program.to_owned(),
        args: vec!["serve".into(), dir.into()],
        netns: spec.netns.clone(),
        cgroup_procs: cgroup.map(|c| groups.procs_files(c)).unwrap_or_default(),
        log: Some(dir.join("shim.log")),
        ..Daemon::default()
    };
    let child = daemon.spawn()?;
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let said = wait(&mut ready, pid).map_err(|e| Error::io(&title, e));
    drop(std::fs::remove_file(&fifo));
    match said?.trim() {
        READY_WORD => Ok(()),
        "" => {
            let log = std::fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
            Err(Error::shim(
                title,
                format!("it ended at once: {}", log.trim()),
            ))
        }
        error => Err(Error::shim(title, error)),
    }
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
