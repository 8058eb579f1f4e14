//! One container of the pod, as its shim knows it, and what is done to it while it lives.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::server::Server;
use crate::destroy;
use crate::error::{Error, Result};
use crate::log::LogFile;
use crate::state::ContainerFile;
use crate::types::ContainerState;

/// Longest wait for the kernel to execute a program.
const EXEC_TIMEOUT: Duration = Duration::from_secs(20);

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) dir: PathBuf,
    pub(super) file: ContainerFile,
    pub(super) state: ContainerState,
    /// First process on the host, from its making to its end.
    pub(super) pid: Option<i32>,
    /// Output being read: standard output (or the terminal) and error, with their keys in the poll.
    pub(super) stdout: Option<(File, u64)>,
    pub(super) stderr: Option<(File, u64)>,
    /// Input that clients may write to; the terminal is its own.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) log: Option<LogFile>,
    /// Logging has failed, and that has been noted.
    pub(super) log_failed: bool,
    /// Until it is started: says why its program could not be executed.
    pub(super) exec_error: Option<OwnedFd>,
    /// Why it could not be started.
    pub(super) start_error: Option<String>,
    /// When it is killed unless it has ended.
    pub(super) kill_at: Option<Instant>,
    pub(super) attached: Vec<Attached>,
}

/// A client that sees the output.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) client: u64,
    pub(super) stdout: Option<File>,
    pub(super) stderr: Option<File>,
}

impl Container {
    /// For errors: what it is doing.
    pub(super) fn state_name(&self) -> String {
        match self.state {
            ContainerState::Created => "not started",
            ContainerState::Running { .. } => "running",
            ContainerState::Exited(_) => "ended",
        }
        .to_owned()
    }
}

impl Server {
    /// The container with this id.
    pub(super) fn get(&mut self, id: &str) -> Result<&mut Container> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| Error::container(id))
    }

    /// Starts the program of a container that waits for it.
    pub(super) fn start(&mut self, id: &str) -> Result<()> {
        let op = format!("start container {id}");
        let container = self.get(id)?;
        let (Some(pid), Some(exec_error), ContainerState::Created) =
            (container.pid, container.exec_error.take(), &container.state)
        else {
            return Err(Error::State {
                op,
                state: container.state_name(),
            });
        };
        let started = super::create::load(container)
            .and_then(|mut oci| oci.start().map_err(|e| Error::shim(&op, e.to_string())))
            .and_then(|()| read_error(exec_error, &op));
        let why = match started {
            Ok(why) if why.is_empty() => {
                container.state = ContainerState::Running {
                    pid,
                    started_at: Timestamp::now(),
                };
                self.publish(id);
                return Ok(());
            }
            Ok(why) => why,
            Err(e) => e.to_string(),
        };
        container.start_error = Some(why.clone());
        self.kill_now(id);
        Err(Error::shim(op, why))
    }

    /// Sends a signal to a container's first process.
    pub(super) fn signal(&mut self, id: &str, signal: i32) -> Result<()> {
        let container = self.get(id)?;
        let Some(pid) = container.pid else {
            let op = format!("signal container {id}");
            return Err(Error::State {
                op,
                state: container.state_name(),
            });
        };
        let signal = Signal::try_from(signal)
            .map_err(|_unknown| Error::invalid("signal", format!("there is no signal {signal}")))?;
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(e) => Err(Error::io(format!("send {signal} to container {id}"), e)),
        }
    }

    /// Begins to stop a container; true when it has ended already.
    pub(super) fn stop(&mut self, id: &str, signal: i32, grace_ms: u64) -> Result<bool> {
        let container = self.get(id)?;
        if container.pid.is_none() {
            return Ok(true);
        }
        // A program that has not been started would not see any other signal.
        let created = container.state == ContainerState::Created;
        if created || grace_ms == 0 || signal == Signal::SIGKILL as i32 {
            self.kill_now(id);
            return Ok(true);
        }
        let now = Instant::now();
        // Beyond what the clock can tell is for ever.
        let deadline = now.checked_add(Duration::from_millis(grace_ms));
        // A second stop may shorten the first one's grace period, not prolong it.
        container.kill_at = match (container.kill_at, deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.signal(id, signal)?;
        Ok(false)
    }

    /// Kills the containers whose grace period is over.
    pub(super) fn kill_late(&mut self) {
        let now = Instant::now();
        let late = self
            .containers
            .iter()
            .filter(|(_, c)| c.kill_at.is_some_and(|at| at <= now));
        let late: Vec<_> = late.map(|(id, _)| id.clone()).collect();
        for id in late {
            self.kill_now(&id);
        }
    }

    /// Kills it if needed, and takes away all that is left of it.
    pub(super) fn remove(&mut self, id: &str) -> Result<()> {
        self.kill_now(id);
        let container = self.get(id)?;
        let dir = container.dir.clone();
        super::rootfs::unmount(&dir)?;
        destroy::container(&self.groups, &dir)?;
        self.containers.remove(id);
        Ok(())
    }

    pub(super) fn reopen_log(&mut self, id: &str) -> Result<()> {
        let container = self.get(id)?;
        match container.log.as_mut() {
            Some(log) => log
                .reopen()
                .map_err(|e| Error::io(format!("reopen log of {id}"), e)),
            None => Ok(()),
        }
    }
}

/// Reads why a program could not be executed; empty when it was.
fn read_error(pipe: OwnedFd, op: &str) -> Result<String> {
    let fail = |e: std::io::Error| Error::io(op, e);
    let wait = PollTimeout::try_from(EXEC_TIMEOUT).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, wait).map_err(|e| fail(e.into()))? == 0 {
        return Err(fail(std::io::ErrorKind::TimedOut.into()));
    }
    let mut text = String::new();
    File::from(pipe).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}
