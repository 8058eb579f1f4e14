//! What the runtime and a pod's shim say to each other.
//!
//! A `SOCK_SEQPACKET` socket named `shim.sock` in the sandbox's directory: each message is one
//! packet of JSON, with file descriptors as `SCM_RIGHTS` where the message says so. A connection
//! begins with one [`Request`], answered by one [`Reply`]; after [`Reply::Session`] the client may
//! send [`SessionRequest`]s and is told the end by [`SessionEvent`]. Everything large (specs,
//! processes to run) lies in files of the state directory and is only named here.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest message. Requests hold ids and numbers, replies at most an error's text.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Most file descriptors with one message: the three standard streams and the terminal.
const FDS_MAX: usize = 4;

/// First message of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Is anybody there?
    Ping,
    /// Make the container whose files lie in the directory named by its id.
    Create {
        /// Container id.
        id: String,
    },
    /// Start its program.
    Start {
        /// Container id.
        id: String,
    },
    /// Send `signal`, then SIGKILL when it has not ended in time; answered when it has ended.
    Stop {
        /// Container id.
        id: String,
        /// Signal number.
        signal: i32,
        /// Milliseconds until SIGKILL.
        grace_ms: u64,
    },
    /// Send a signal to its first process.
    Signal {
        /// Container id.
        id: String,
        /// Signal number.
        signal: i32,
    },
    /// Kill it when it runs, take away its mounts, cgroup and files.
    Remove {
        /// Container id.
        id: String,
    },
    /// Run a program in it; answered with a session and the file descriptors of its streams.
    Exec {
        /// Container id.
        id: String,
        /// File of the OCI process, relative to the container's directory. The shim removes it.
        process: String,
        /// Connect standard input.
        stdin: bool,
        /// Give it a terminal.
        tty: bool,
    },
    /// Connect to its own streams; answered with a session and file descriptors.
    Attach {
        /// Container id.
        id: String,
        /// Connect standard input.
        stdin: bool,
    },
    /// Open the log file anew (it was moved away).
    ReopenLog {
        /// Container id.
        id: String,
    },
    /// Kill and remove every container, then exit.
    Shutdown,
}

/// Answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// A session begins; the file descriptors come in the order of the fields.
    Session {
        /// Standard input is among the file descriptors.
        stdin: bool,
        /// Standard output is.
        stdout: bool,
        /// Standard error is.
        stderr: bool,
        /// The terminal is, for setting its size.
        terminal: bool,
    },
    /// The container is not there.
    NotFound,
    /// The container is in another state.
    State {
        /// Which.
        state: String,
    },
    /// It failed.
    Failed {
        /// Why.
        message: String,
    },
}

/// Client to shim, in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum SessionRequest {
    /// Kill the program of an exec session.
    Kill,
}

/// Shim to client, in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum SessionEvent {
    /// The program ended.
    Exited {
        /// Exit code; 128 + n when signal n ended it.
        code: i32,
    },
}

/// Result of a call on a socket.
pub type Result<T> = rustix::io::Result<T>;

/// Sends one message with file descriptors.
///
/// # Errors
/// The other side is gone (`EPIPE`), or a non-blocking socket is full (`EAGAIN`).
pub fn send(socket: &impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<()> {
    // Plain structs and enums of numbers and strings always serialise.
    let bytes = serde_json::to_vec(message).map_err(|_always| Errno::INVAL)?;
    loop {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL);
        }
        match sendmsg(
            socket,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Receives one message and its file descriptors; `None` when the other side has closed.
///
/// # Errors
/// Nothing there yet on a non-blocking socket or in time (`EAGAIN`); a message that is too long or
/// not of type `T` (`EBADMSG`).
pub fn receive<T: DeserializeOwned>(socket: &impl AsFd) -> Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::BADMSG);
    }
    let text = bytes.get(..message.bytes).unwrap_or_default();
    let parsed = serde_json::from_slice(text).map_err(|_malformed| Errno::BADMSG)?;
    Ok(Some((parsed, fds)))
}
