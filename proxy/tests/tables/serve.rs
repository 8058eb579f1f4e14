//! Servers that say which address was reached and who came.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind as bind_to, listen,
    setsockopt, shutdown, socket,
};
use proxy::model::Protocol;

use super::probe::{has_sctp, stream_socket};
use super::site::Site;

/// One place to listen.
pub(crate) type Listen = (SocketAddr, Protocol);

enum Socket {
    /// Of TCP or SCTP.
    Stream(TcpListener),
    Udp(UdpSocket),
}

/// Servers in one namespace, until dropped.
pub(crate) struct Servers {
    stop: Arc<AtomicBool>,
    wake: UdpSocket,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    /// Starts them. Addresses that someone else listens on are left to them.
    pub(crate) fn start(site: &Site, places: impl IntoIterator<Item = Listen>) -> Self {
        let places: Vec<Listen> = places.into_iter().collect();
        let (sockets, wake, woken) = site.run(move || {
            let sockets: Vec<_> = places.into_iter().filter_map(bind).collect();
            let woken = UdpSocket::bind("127.0.0.1:0").unwrap();
            let wake = UdpSocket::bind("127.0.0.1:0").unwrap();
            wake.connect(woken.local_addr().unwrap()).unwrap();
            (sockets, wake, woken)
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                serve(&sockets, &woken);
            }
            // Another test that starts a program at this moment has a copy of every socket in the
            // child, until that becomes the program: closing ours alone would leave them listening.
            for (_, socket) in &sockets {
                if let Socket::Stream(listener) = socket {
                    let _ended = shutdown(listener.as_raw_fd(), Shutdown::Both);
                }
            }
        });
        Self {
            stop,
            wake,
            thread: Some(thread),
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.wake.send(b"."));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn bind((address, protocol): Listen) -> Option<(SocketAddr, Socket)> {
    let bound = match protocol {
        Protocol::Tcp => TcpListener::bind(address).map(Socket::Stream),
        Protocol::Udp => bind_udp(address).map(Socket::Udp),
        Protocol::Sctp if !has_sctp() => return None,
        Protocol::Sctp => bind_sctp(address).map(Socket::Stream),
    };
    let socket = match bound {
        Ok(socket) => socket,
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => return None,
        Err(e) => panic!("listen on {address}: {e}"),
    };
    match &socket {
        Socket::Stream(listener) => listener.set_nonblocking(true).unwrap(),
        Socket::Udp(udp) => udp.set_nonblocking(true).unwrap(),
    }
    Some((address, socket))
}

fn bind_sctp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let fd = stream_socket(address, Protocol::Sctp)?;
    bind_to(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd.into())
}

/// A socket that does not mind copies of an earlier one (see `start`).
fn bind_udp(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, ReuseAddr, &true)?;
    bind_to(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd.into())
}

/// Waits for whoever comes first, and answers.
fn serve(sockets: &[(SocketAddr, Socket)], woken: &UdpSocket) {
    let mut fds: Vec<PollFd<'_>> = sockets
        .iter()
        .map(|(_, socket)| match socket {
            Socket::Stream(listener) => listener.as_fd(),
            Socket::Udp(udp) => udp.as_fd(),
        })
        .chain([woken.as_fd()])
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    if poll(&mut fds, PollTimeout::NONE).is_err() {
        return;
    }
    for ((address, socket), fd) in sockets.iter().zip(&fds) {
        if fd.any() == Some(true) {
            answer(*address, socket);
        }
    }
}

fn answer(address: SocketAddr, socket: &Socket) {
    let text = |peer: IpAddr| format!("{address} {}\n", peer.to_canonical());
    match socket {
        Socket::Stream(listener) => {
            while let Ok((mut stream, peer)) = listener.accept() {
                // The client may be gone already.
                drop(stream.write_all(text(peer.ip()).as_bytes()));
            }
        }
        Socket::Udp(udp) => {
            let mut buffer = [0; 512];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                drop(udp.send_to(text(peer.ip()).as_bytes(), peer));
            }
        }
    }
}
