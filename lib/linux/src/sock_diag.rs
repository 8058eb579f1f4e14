//! Connected UDP sockets of a network namespace: finding those to one address, and ending one by
//! exact match. Source: `linux/sock_diag.h`, `linux/inet_diag.h`, `net/ipv4/udp_diag.c`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::error::Result;
use crate::nfnetlink::{Message, NfSocket};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY` (Linux 4.5, `CONFIG_INET_DIAG_DESTROY`).
const DESTROY: u16 = 21;

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// The state of a UDP socket that is connected: `TCP_ESTABLISHED`, as a bit.
const CONNECTED: u32 = 1 << 1;

/// `struct inet_diag_sockid`: both ports, both addresses, the interface and the cookie.
const ID_BYTES: usize = 48;

/// A connected UDP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// The number that the kernel gives to no other socket.
    pub cookie: u64,
    /// Its peer; IPv4 also where the socket is of IPv6.
    pub peer: SocketAddr,
    family: u8,
    id: [u8; ID_BYTES],
}

/// The sockets of the network namespace of the thread that opened this.
#[derive(Debug)]
pub struct SockDiag {
    socket: NfSocket,
}

impl SockDiag {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Self> {
        let socket = NfSocket::open_for(NETLINK_SOCK_DIAG, "open a socket about sockets")?;
        Ok(Self { socket })
    }

    /// UDP sockets that are connected to `peer`.
    ///
    /// # Errors
    /// The kernel does not tell (no `CONFIG_INET_UDP_DIAG`: `ENOENT`).
    pub fn connected_to(&mut self, peer: SocketAddr) -> Result<Vec<Connected>> {
        // Sockets of IPv6 may talk to IPv4 addresses.
        let families: &[i32] = if peer.is_ipv4() {
            &[libc::AF_INET, libc::AF_INET6]
        } else {
            &[libc::AF_INET6]
        };
        let mut found = Vec::new();
        for family in families {
            let family = u8::try_from(*family).unwrap_or_default();
            let mut body = CONNECTED.to_ne_bytes().to_vec();
            let mut id = [0; ID_BYTES];
            // The kernel looks at the ports of a dump's request alone.
            id[2..4].copy_from_slice(&peer.port().to_be_bytes());
            body.extend(id);
            let op = format!("list UDP sockets connected to {peer}");
            let generic = [family, UDP, 0, 0];
            let each = |message: Message<'_>| {
                found.extend(parse(&message).filter(|socket| socket.peer == peer));
            };
            self.socket.dump_of(&op, BY_FAMILY, generic, &body, each)?;
        }
        Ok(found)
    }

    /// Ends a socket: its user gets `ECONNABORTED`, and it is connected no more. False when it is
    /// gone or talks to somebody else by now.
    ///
    /// # Errors
    /// The kernel's refusal (`EOPNOTSUPP` without `CONFIG_INET_DIAG_DESTROY`).
    pub fn destroy(&mut self, socket: &Connected) -> Result<bool> {
        let mut body = CONNECTED.to_ne_bytes().to_vec();
        body.extend(socket.id);
        let op = format!("end a UDP socket connected to {}", socket.peer);
        let generic = [socket.family, UDP, 0, 0];
        match self.socket.change_of(&op, DESTROY, generic, &body) {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Reads a `struct inet_diag_msg`: family, state, timer, retransmissions, then the id.
fn parse(message: &Message<'_>) -> Option<Connected> {
    if message.kind != BY_FAMILY {
        return None;
    }
    let id: [u8; ID_BYTES] = message.attributes.get(..ID_BYTES)?.try_into().ok()?;
    let address: [u8; 16] = id[20..36].try_into().ok()?;
    let ip = if i32::from(message.family) == libc::AF_INET {
        IpAddr::from([address[0], address[1], address[2], address[3]])
    } else {
        Ipv6Addr::from(address).to_canonical()
    };
    let word = |at: usize| Some(u32::from_ne_bytes(id.get(at..at + 4)?.try_into().ok()?));
    Some(Connected {
        cookie: u64::from(word(40)?) | u64::from(word(44)?) << 32,
        peer: SocketAddr::new(ip, u16::from_be_bytes([id[2], id[3]])),
        family: message.family,
        id,
    })
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::UdpSocket;

    use super::*;
    use crate::link::LinkChange;
    use crate::{Host, Kernel, NetNs};

    /// Sockets of this process on loopback: the one that is meant goes, its siblings stay.
    #[test]
    fn the_socket_that_is_meant_is_ended_and_no_other() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED the_socket_that_is_meant_is_ended: needs root");
            return;
        }
        let netns = NetNs::anonymous().unwrap();
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        netns
            .run(|| {
                Kernel::open().unwrap().set_link("lo", &up).unwrap();
                ends_one_of_two();
            })
            .unwrap();
    }

    fn ends_one_of_two() {
        let mut diag = SockDiag::open().unwrap();
        for (own, other) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::1]:0", "[::1]:0"),
            ("[::]:0", "127.0.0.1:0"),
        ] {
            let server = UdpSocket::bind(other).unwrap();
            let mut peer = server.local_addr().unwrap();
            let mut address = peer;
            if own == "[::]:0" {
                address.set_ip("::ffff:127.0.0.1".parse().unwrap());
            }
            peer.set_ip(peer.ip().to_canonical());
            let connect = || {
                let socket = UdpSocket::bind(own).unwrap();
                socket.connect(address).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            };
            let sockets = [connect(), connect()];
            let cookies = sockets.each_ref().map(crate::bpf::socket_cookie);
            let found = diag.connected_to(peer).unwrap();
            assert_eq!(found.len(), 2, "{own}");
            let first = found
                .iter()
                .find(|s| Some(s.cookie) == cookies[0].as_ref().ok().copied());
            let first = first.unwrap();
            assert!(diag.destroy(first).unwrap());
            assert!(!diag.destroy(first).unwrap(), "it is gone");
            let heard = |socket: &UdpSocket| socket.recv(&mut [0; 8]).unwrap_err().kind();
            assert_eq!(heard(&sockets[0]), ErrorKind::ConnectionAborted, "{own}");
            assert_eq!(heard(&sockets[1]), ErrorKind::WouldBlock, "{own}");
            assert!(sockets[0].peer_addr().is_err());
            sockets[1].send(b"?").unwrap();
            // The port of the peer counts, and its address.
            let elsewhere = SocketAddr::new(peer.ip(), peer.port() ^ 1);
            assert!(diag.connected_to(elsewhere).unwrap().is_empty());
        }
    }
}
