//! One connection, seen from its client.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use linux::conntrack::Conntrack;
pub(crate) use linux::patience::scaled;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::SocketError;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, getsockopt,
    socket,
};
use proxy::model::Protocol;

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Datagrams sent in that time: a busy machine may lose one.
const DATAGRAMS: u32 = 5;

/// How long silence is listened to after packets sent later have been answered.
const SILENCE: Duration = Duration::from_millis(20);

/// A question for cluster DNS (`x.`, type A); our own servers answer anything.
const QUESTION: &[u8] = &[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1];

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// What came of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This address answered, and saw this client.
    Reached(SocketAddr, IpAddr),
    /// Somebody answered, but not with an address: cluster DNS.
    Other,
    /// It was refused.
    Refused,
    /// Nothing came.
    Silent,
    /// Something else, in words.
    Failed(String),
}

/// A connection to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe {
    pub(crate) source: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
    /// Silence is expected: an answer from here, asked after the packet was sent, ends the wait.
    pub(crate) fence: Option<SocketAddr>,
    /// Not before a question is asked does the server say anything.
    pub(crate) asks: bool,
}

impl Probe {
    /// Makes it, from the calling thread.
    pub(crate) fn run(self) -> Answer {
        let answer = match self.protocol {
            Protocol::Tcp | Protocol::Sctp => self.stream(),
            Protocol::Udp => self.udp(),
        };
        answer.unwrap_or_else(|e| match e.kind() {
            ErrorKind::ConnectionRefused => Answer::Refused,
            // The node's own packets that are dropped on their way out (UDP).
            ErrorKind::PermissionDenied => Answer::Silent,
            // What silence ends with; mode ebpf knows it from the start.
            ErrorKind::TimedOut => Answer::Silent,
            _ => Answer::Failed(e.to_string()),
        })
    }

    fn stream(self) -> std::io::Result<Answer> {
        let fd = stream_socket(self.to, self.protocol)?;
        bind(
            std::os::fd::AsRawFd::as_raw_fd(&fd),
            &SockaddrStorage::from(self.source),
        )?;
        match connect(
            std::os::fd::AsRawFd::as_raw_fd(&fd),
            &SockaddrStorage::from(self.to),
        ) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(e) => return Err(e.into()),
        }
        if !self.wait(&fd, PollFlags::POLLOUT)? {
            return Ok(Answer::Silent);
        }
        match getsockopt(&fd, SocketError)? {
            0 => {}
            error => return Err(std::io::Error::from_raw_os_error(error)),
        }
        let mut stream = TcpStream::from(fd);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(scaled(PATIENCE)))?;
        let mut heard = [0; 128];
        if self.asks {
            let length = u16::try_from(QUESTION.len()).map_err(std::io::Error::other)?;
            stream.write_all(&length.to_be_bytes())?;
            stream.write_all(QUESTION)?;
        }
        let mut n = 0;
        while !heard[..n].contains(&b'\n') && n < heard.len() {
            match stream.read(&mut heard[n..])? {
                0 => break,
                more => n += more,
            }
            if self.asks {
                break;
            }
        }
        Ok(parse(&heard[..n]))
    }

    fn udp(self) -> std::io::Result<Answer> {
        let socket = UdpSocket::bind(self.source)?;
        socket.connect(self.to)?;
        let fd = OwnedFd::from(socket);
        let mut left = if self.fence.is_some() { 1 } else { DATAGRAMS };
        let socket = loop {
            let socket = UdpSocket::from(fd.try_clone()?);
            socket.send(QUESTION)?;
            left -= 1;
            if self.wait(&fd, PollFlags::POLLIN)? {
                break socket;
            }
            if left == 0 {
                return Ok(Answer::Silent);
            }
        };
        let mut heard = [0; 512];
        let n = socket.recv(&mut heard)?;
        Ok(parse(&heard[..n]))
    }

    /// Waits for something to happen; false when nothing does.
    fn wait(self, fd: &OwnedFd, what: PollFlags) -> std::io::Result<bool> {
        let patience = match self.fence {
            None if what == PollFlags::POLLIN => PATIENCE / DATAGRAMS,
            None => PATIENCE,
            Some(fence) => {
                // What was sent later has been answered, twice.
                for _ in 0..2 {
                    drop(TcpStream::connect_timeout(&fence, scaled(PATIENCE))?);
                }
                SILENCE
            }
        };
        let mut fds = [PollFd::new(fd.as_fd(), what)];
        let timeout = PollTimeout::try_from(scaled(patience)).map_err(std::io::Error::other)?;
        loop {
            match poll(&mut fds, timeout) {
                Ok(n) => return Ok(n > 0),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// A socket for a stream to or at `address`; one of SCTP behaves as one of TCP (RFC 6458, one-to-one
/// style).
pub(crate) fn stream_socket(address: SocketAddr, protocol: Protocol) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let of = (protocol == Protocol::Sctp).then_some(SockProtocol::Sctp);
    socket(family, SockType::Stream, flags, of)
}

/// Whether this kernel has sockets of SCTP. Those of the guests have.
pub(crate) fn has_sctp() -> bool {
    let here = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0);
    let made = stream_socket(here, Protocol::Sctp);
    let in_guest = std::env::var_os("SEAWAY_VM").is_some();
    assert!(made.is_ok() || !in_guest, "no SCTP in a guest: {made:?}");
    made.is_ok()
}

fn parse(heard: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(heard);
    let reached = text.trim().split_once(' ').and_then(|(who, peer)| {
        let (who, peer) = (who.parse().ok()?, peer.parse().ok()?);
        Some(Answer::Reached(who, peer))
    });
    match reached {
        Some(reached) => reached,
        None if heard.is_empty() => Answer::Failed("closed without a word".to_owned()),
        None => Answer::Other,
    }
}

/// Whether the connection table of the calling thread's namespace has a connection from `source`:
/// a packet that was dropped leaves none.
pub(crate) fn is_tracked(source: SocketAddr, protocol: Protocol) -> bool {
    let number = match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => linux::conntrack::UDP,
        Protocol::Sctp => return false,
    };
    let flows = Conntrack::open().and_then(|mut table| table.list(source.is_ipv6(), number));
    flows
        .unwrap()
        .iter()
        .any(|flow| flow.original.source == source)
}
