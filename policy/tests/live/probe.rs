//! Servers that answer in every pod, and clients that ask many at once.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use linux::NetNs;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, send, socket, sockopt,
};

/// The ports that are probed.
pub(crate) const PORTS: [u16; 2] = [80, 81];

/// A port on which TCP connections stay, and say again what they hear.
pub(crate) const ECHO: u16 = 82;

/// Everything here takes milliseconds; this is for a machine that is busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// How long an answer that should not come is waited for, when all others are there.
const GRACE: Duration = Duration::from_millis(60);

/// A datagram without answer is sent again: it may have been lost on a busy machine.
const AGAIN: Duration = Duration::from_millis(300);

/// The servers of a pod, until dropped.
pub(crate) struct Servers {
    stop: Arc<AtomicBool>,
}

impl Servers {
    /// Starts them in the pod's namespace.
    pub(crate) fn start(netns: &NetNs) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tcp = |port: u16| TcpListener::bind(format!("[::]:{port}")).unwrap();
        let udp = |port: u16| UdpSocket::bind(format!("[::]:{port}")).unwrap();
        let sockets = move || (PORTS.map(tcp), PORTS.map(udp), tcp(ECHO));
        let (listeners, datagrams, echo) = netns.run(sockets).unwrap();
        for listener in listeners.iter().chain([&echo]) {
            listener.set_nonblocking(true).unwrap();
        }
        for socket in &datagrams {
            socket.set_nonblocking(true).unwrap();
        }
        let stopped = stop.clone();
        std::thread::spawn(move || {
            let mut streams: Vec<TcpStream> = Vec::new();
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                let mut fds: Vec<PollFd<'_>> = Vec::new();
                let readable = PollFlags::POLLIN;
                fds.extend(listeners.iter().map(|s| PollFd::new(s.as_fd(), readable)));
                fds.extend(datagrams.iter().map(|s| PollFd::new(s.as_fd(), readable)));
                fds.push(PollFd::new(echo.as_fd(), readable));
                fds.extend(streams.iter().map(|s| PollFd::new(s.as_fd(), readable)));
                poll(&mut fds, PollTimeout::from(100_u8)).unwrap_or(0);
                for listener in &listeners {
                    while listener.accept().is_ok() {}
                }
                for socket in &datagrams {
                    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                        drop(socket.send_to(&buffer[..length], from));
                    }
                }
                streams.retain_mut(|stream| match stream.read(&mut buffer) {
                    Ok(0) => false,
                    Ok(length) => stream.write_all(&buffer[..length]).is_ok(),
                    Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
                });
                while let Ok((stream, _)) = echo.accept() {
                    stream.set_nonblocking(true).unwrap();
                    streams.push(stream);
                }
            }
        });
        Self { stop }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) ip: IpAddr,
    pub(crate) udp: bool,
    pub(crate) port: u16,
}

struct Asked {
    fd: OwnedFd,
    udp: bool,
    sent: Instant,
    answer: Option<bool>,
}

fn ask(target: &Target) -> Asked {
    let family = match target.ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let kind = if target.udp {
        SockType::Datagram
    } else {
        SockType::Stream
    };
    let fd = socket(
        family,
        kind,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let to = SockaddrStorage::from(SocketAddr::new(target.ip, target.port));
    let answer = match connect(fd.as_raw_fd(), &to) {
        Ok(()) => (!target.udp).then_some(true),
        Err(Errno::EINPROGRESS) => None,
        Err(_) => Some(false),
    };
    let asked = Asked {
        fd,
        udp: target.udp,
        sent: Instant::now(),
        answer,
    };
    asked.send();
    asked
}

impl Asked {
    fn send(&self) {
        if self.udp {
            let flags = nix::sys::socket::MsgFlags::empty();
            send(self.fd.as_raw_fd(), b"hello", flags).unwrap_or(0);
        }
    }

    fn look(&mut self) {
        if self.udp {
            let mut buffer = [0; 16];
            let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT;
            if nix::sys::socket::recv(self.fd.as_raw_fd(), &mut buffer, flags).is_ok() {
                self.answer = Some(true);
            }
        } else {
            let error = getsockopt(&self.fd, sockopt::SocketError).unwrap();
            self.answer = Some(error == 0);
        }
    }
}

/// Asks all at once, in the calling thread's namespace; waits for every answer that is expected, and
/// a little for the others. Whether each came.
pub(crate) fn probe(targets: &[(Target, bool)]) -> Vec<bool> {
    let mut all: Vec<Asked> = targets.iter().map(|(target, _)| ask(target)).collect();
    let end = Instant::now() + DEADLINE;
    let mut grace = None;
    loop {
        let now = Instant::now();
        let waits = all
            .iter()
            .zip(targets)
            .any(|(a, (_, expected))| *expected && a.answer.is_none());
        if waits {
            grace = None;
        } else if now >= *grace.get_or_insert(now + GRACE) {
            break;
        }
        if now >= end || all.iter().all(|a| a.answer.is_some()) {
            break;
        }
        let mut open: Vec<&mut Asked> = all.iter_mut().filter(|a| a.answer.is_none()).collect();
        for asked in &mut open {
            if asked.udp && now - asked.sent > AGAIN {
                asked.send();
                asked.sent = now;
            }
        }
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        for asked in &open {
            let flags = if asked.udp {
                PollFlags::POLLIN
            } else {
                PollFlags::POLLOUT
            };
            fds.push(PollFd::new(asked.fd.as_fd(), flags));
        }
        poll(&mut fds, PollTimeout::from(20_u8)).unwrap_or(0);
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        drop(fds);
        for (asked, ready) in open.into_iter().zip(ready) {
            if ready {
                asked.look();
            }
        }
    }
    all.into_iter()
        .map(|asked| asked.answer == Some(true))
        .collect()
}

/// A connection that stays.
pub(crate) struct Talk {
    stream: TcpStream,
    said: u32,
}

impl Talk {
    /// Connects from the calling thread's namespace.
    pub(crate) fn open(ip: IpAddr) -> Self {
        let stream = TcpStream::connect_timeout(&SocketAddr::new(ip, ECHO), DEADLINE).unwrap();
        Self { stream, said: 0 }
    }

    /// Whether an answer comes; waits for it when it is `expected`.
    pub(crate) fn goes_on(&mut self, expected: bool) -> bool {
        self.said += 1;
        let word = self.said.to_be_bytes();
        let patience = if expected { DEADLINE } else { GRACE * 5 };
        self.stream.set_read_timeout(Some(patience)).unwrap();
        let mut answer = [0; 4];
        self.stream.write_all(&word).is_ok()
            && self.stream.read_exact(&mut answer).is_ok()
            && answer == word
    }
}
