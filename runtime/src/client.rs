//! The runtime's side of a conversation with a pod's shim.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::protocol::{self, Reply, Request, SessionEvent, SessionRequest};
use crate::state;

/// Name of the socket in a sandbox's directory.
pub(crate) const SOCKET: &str = "shim.sock";

/// Longest wait for an answer, besides a grace period. Creating a container takes tens of
/// milliseconds on an idle machine.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// One connection to a shim.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// The shim's life: when it is killed, processes that it was just making may hold the other end of
    /// the socket for a while.
    life: OwnedFd,
    /// What the connection is about, for messages.
    title: String,
    /// Exit code once it is known; held while waiting, so that one thread reads.
    exit: Mutex<Option<i32>>,
}

impl Connection {
    /// Connects to the shim of the sandbox in `dir`.
    fn open(dir: &Path, title: &str) -> Result<Self> {
        let fail = |e: Errno| Error::io(format!("{title}: reach the shim in {}", dir.display()), e);
        let dead = || Error::shim(title, "the pod's shim is dead");
        let shim = state::living_shim(dir)?.ok_or_else(dead)?;
        let pid = Pid::from_raw(shim.pid).ok_or_else(dead)?;
        let life = pidfd_open(pid, PidfdFlags::empty()).map_err(|_gone| dead())?;
        if state::birth(shim.pid) != Some(shim.birth) {
            return Err(dead());
        }
        // A socket's path has 108 bytes; a state directory's may be longer.
        let at = File::open(dir).map_err(Error::path("open", dir))?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", at.as_raw_fd());
        let address = SocketAddrUnix::new(path).map_err(fail)?;
        let flags = SocketFlags::CLOEXEC;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(fail)?;
        connect(&socket, &address).map_err(fail)?;
        Ok(Self {
            socket,
            life,
            title: title.to_owned(),
            exit: Mutex::new(None),
        })
    }

    /// Waits for a message; absent time-out: for ever.
    fn receive<T: DeserializeOwned>(&self, timeout: Option<Duration>) -> Result<(T, Vec<OwnedFd>)> {
        let fail = |e: std::io::Error| Error::io(format!("{}: wait for the shim", self.title), e);
        let dead = || Error::shim(&self.title, "the pod's shim died");
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let left = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            let mut fds = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.life.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, left) {
                Err(nix::Error::EINTR) => continue,
                Ok(0) => return Err(fail(std::io::ErrorKind::TimedOut.into())),
                other => other.map_err(|e| fail(e.into()))?,
            };
            // What the shim said before it died still counts.
            if fds.first().and_then(PollFd::any).unwrap_or(false) {
                return match protocol::receive(&self.socket) {
                    Ok(Some(message)) => Ok(message),
                    Ok(None) | Err(Errno::CONNRESET) => Err(dead()),
                    Err(e) => Err(fail(e.into())),
                };
            }
            return Err(dead());
        }
    }

    /// Sends the connection's first message and waits for its answer.
    fn ask(&self, request: &Request, timeout: Duration) -> Result<(Reply, Vec<OwnedFd>)> {
        protocol::send(&self.socket, request, &[]).map_err(|e| match e {
            Errno::PIPE | Errno::CONNRESET => Error::shim(&self.title, "the pod's shim died"),
            e => Error::io(&self.title, e),
        })?;
        self.receive(Some(timeout))
    }

    /// Sends a message of a session.
    pub(crate) fn tell(&self, request: &SessionRequest) -> Result<()> {
        protocol::send(&self.socket, request, &[])
            .map_err(|e| Error::io(format!("{}: talk to the shim", self.title), e))
    }

    /// Waits for the end of the session's program.
    pub(crate) fn wait_exit(&self) -> Result<i32> {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = *exit {
            return Ok(code);
        }
        let (SessionEvent::Exited { code }, _) = self.receive(None)?;
        *exit = Some(code);
        Ok(code)
    }
}

/// Asks the shim of the sandbox in `dir` and waits for its answer; `title` names the operation and
/// its object, `id` the container.
pub(crate) fn ask(
    dir: &Path,
    title: &str,
    id: &str,
    request: &Request,
    timeout: Duration,
) -> Result<(Connection, Reply, Vec<OwnedFd>)> {
    let connection = Connection::open(dir, title)?;
    let (reply, fds) = connection.ask(request, timeout)?;
    match reply {
        Reply::Done | Reply::Session { .. } => Ok((connection, reply, fds)),
        Reply::NotFound => Err(Error::container(id)),
        Reply::State { state } => Err(Error::State {
            op: title.to_owned(),
            state,
        }),
        Reply::Failed { message } => Err(Error::shim(title, message)),
    }
}
