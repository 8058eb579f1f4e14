//! The pipes and terminals of programs.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Error, Result};

/// Size of the pipes to attached clients; one that falls behind by more is cut off.
const ATTACH_PIPE_BYTES: usize = 1 << 20;

/// One pipe, both ends closed on exec.
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
}

impl Pipe {
    pub(super) fn new() -> Result<Self> {
        let made = pipe_with(PipeFlags::CLOEXEC);
        let (read, write) = made.map_err(|e| Error::io("make a pipe", e))?;
        Ok(Self { read, write })
    }

    /// To an attached client: large, and never waited for.
    pub(super) fn to_client() -> Result<Self> {
        let pipe = Self::new()?;
        // A smaller pipe works as well, only with less patience.
        let _size = rustix::pipe::fcntl_setpipe_size(&pipe.write, ATTACH_PIPE_BYTES);
        set_nonblocking(&pipe.write)?;
        Ok(pipe)
    }
}

/// Makes reads and writes return at once.
pub(super) fn set_nonblocking(fd: &impl AsFd) -> Result<()> {
    let fail = |e: nix::Error| Error::io("make a descriptor non-blocking", e);
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(fail)?;
    let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).map(drop).map_err(fail)
}

/// `/dev/null`, for reading and writing.
pub(super) fn null() -> Result<OwnedFd> {
    let path = Path::new("/dev/null");
    let file = File::options().read(true).write(true).open(path);
    Ok(file.map_err(Error::path("open", path))?.into())
}

/// Receives the terminal that a container process makes (in its own devpts).
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens in `dir`, which must be short relative to the working directory: a socket's path has
    /// 108 bytes.
    pub(super) fn listen(dir: &Path) -> Result<Self> {
        let name = dir.join("tty.sock");
        // Left over when the shim was killed at a bad moment.
        drop(std::fs::remove_file(&name));
        let listener = UnixListener::bind(&name).map_err(Error::path("listen at", &name))?;
        listener
            .set_nonblocking(true)
            .map_err(Error::path("listen at", &name))?;
        let path = name.canonicalize().map_err(Error::path("find", &name))?;
        Ok(Self { listener, path })
    }

    /// The socket's full path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal's master side, which has been sent by the time the process is made.
    pub(super) fn receive(self) -> Result<OwnedFd> {
        let fail = |e: std::io::Error| Error::io("receive the terminal", e);
        let (stream, _) = self.listener.accept().map_err(fail)?;
        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|e| fail(e.into()))?;
        let mut rights = control.drain().filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        rights
            .next()
            .ok_or_else(|| fail(std::io::ErrorKind::UnexpectedEof.into()))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

/// What a read from a program gave.
pub(super) enum Got {
    Bytes(usize),
    Nothing,
    End,
}

/// Reads what is there.
pub(super) fn read(mut file: &File, into: &mut [u8]) -> Got {
    loop {
        match file.read(into) {
            Ok(0) => return Got::End,
            Ok(len) => return Got::Bytes(len),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Got::Nothing,
            // EIO is how a terminal says that nobody has it open any more.
            Err(_) => return Got::End,
        }
    }
}

/// Writes to a client that must not be waited for; false when it is gone or has fallen behind.
pub(super) fn write(mut file: &File, bytes: &[u8]) -> bool {
    file.write_all(bytes).is_ok()
}
