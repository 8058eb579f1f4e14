//! The runtime's side of a conversation with a pod's shim.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::{Error, Result};
use crate::protocol::{self, Reply, Request, SessionEvent, SessionRequest};

/// Name of the socket in a sandbox's directory.
pub(crate) const SOCKET: &str = "shim.sock";

/// Longest wait for an answer, besides a grace period. Creating a container takes tens of
/// milliseconds on an idle machine.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// One connection to a shim.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// What the connection is about, for messages.
    title: String,
    /// Exit code once it is known; held while waiting, so that one thread reads.
    exit: Mutex<Option<i32>>,
}

impl Connection {
    /// Connects to the shim of the sandbox in `dir`.
    fn open(dir: &Path, title: &str) -> Result<Self> {
        let fail = |e: Errno| Error::io(format!("{title}: reach the shim in {}", dir.display()), e);
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
            title: title.to_owned(),
            exit: Mutex::new(None),
        })
    }

    /// Sends the connection's first message and waits for its answer.
    fn ask(&self, request: &Request, timeout: Duration) -> Result<(Reply, Vec<OwnedFd>)> {
        let fail = |e: Errno| match e {
            Errno::AGAIN => {
                Error::shim(&self.title, format!("no answer in {} s", timeout.as_secs()))
            }
            Errno::PIPE | Errno::CONNRESET => Error::shim(&self.title, "the pod's shim died"),
            e => Error::io(&self.title, e),
        };
        set_socket_timeout(&self.socket, Timeout::Recv, Some(timeout)).map_err(fail)?;
        protocol::send(&self.socket, request, &[]).map_err(fail)?;
        let answer = protocol::receive(&self.socket).map_err(fail)?;
        set_socket_timeout(&self.socket, Timeout::Recv, None).map_err(fail)?;
        answer.ok_or_else(|| Error::shim(&self.title, "the pod's shim died"))
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
        match protocol::receive::<SessionEvent>(&self.socket) {
            Ok(Some((SessionEvent::Exited { code }, _))) => {
                *exit = Some(code);
                Ok(code)
            }
            Ok(None) => Err(Error::shim(&self.title, "the pod's shim died")),
            Err(e) => Err(Error::io(format!("{}: wait for the shim", self.title), e)),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
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
