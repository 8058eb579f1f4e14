//! File descriptors of the runtime (pipes and terminals) as asynchronous streams.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::unix::pipe;

fn non_blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// The end to write to.
pub fn writer(fd: OwnedFd) -> io::Result<pipe::Sender> {
    pipe::Sender::from_owned_fd_unchecked(non_blocking(fd)?)
}

/// The end to read from.
#[derive(Debug)]
pub struct Reader {
    pipe: pipe::Receiver,
}

impl Reader {
    /// Takes a descriptor and makes it non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let pipe = pipe::Receiver::from_owned_fd_unchecked(non_blocking(fd)?)?;
        Ok(Self { pipe })
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.pipe).poll_read(cx, buf)) {
            // A terminal whose last program is gone has ended.
            Err(e) if e.raw_os_error() == Some(nix::libc::EIO) => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }
}

/// Reads a stream to its end, and keeps its first `limit` bytes.
pub async fn read_up_to(fd: Option<OwnedFd>, limit: usize) -> Vec<u8> {
    let Some(Ok(mut stream)) = fd.map(Reader::new) else {
        return Vec::new();
    };
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    // What could be read before an error is still worth having.
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        let room = limit.saturating_sub(kept.len()).min(n);
        kept.extend_from_slice(&buffer[..room]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{writer as writer_of, *};
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn bytes_pass_and_the_end_is_seen() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut writer = writer_of(writer).unwrap();
        writer.write_all(b"hello there").await.unwrap();
        drop(writer);
        assert_eq!(read_up_to(Some(reader), 5).await, b"hello");
    }
}
