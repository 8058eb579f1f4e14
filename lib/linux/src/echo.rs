//! ICMP echo ("ping") of a chosen size that nobody on the way may cut up: how large packets to
//! another host may be.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    recv, send, socket,
};

use crate::error::{Error, Result};

/// Types of messages, request and reply: RFC 792 and RFC 4443.
const V4: (u8, u8) = (8, 0);
const V6: (u8, u8) = (128, 129);

/// Bytes of a message before its payload.
const HEADER: usize = 8;

/// Bytes of a reply that are looked at: an IPv4 header with all options, and the message's own.
const LOOK: usize = 60 + HEADER;

/// A path MTU is not heeded but probed: whole or not at all, whatever was learned before
/// (`IP_PMTUDISC_PROBE`, which has the same number for IPv6).
const PROBE: libc::c_int = libc::IP_PMTUDISC_PROBE;

/// What came of sending a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It left.
    Yes,
    /// It is larger than what this host can send.
    TooLarge,
    /// There is no way to the other host just now.
    NoWay,
}

/// What came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The reply to the request of this number.
    Reply(u16),
    /// Somebody on the way says that a request was too large.
    TooLarge,
}

/// A socket for echo requests to one host. Does not block.
#[derive(Debug)]
pub struct Echo {
    socket: OwnedFd,
    ipv6: bool,
    id: u16,
}

impl Echo {
    /// Opens a socket from one of this host's addresses to another host's, in the calling thread's
    /// network namespace. `id` tells its replies from those of other sockets.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, or when `from` is not this host's address.
    pub fn open(from: IpAddr, to: IpAddr, id: u16) -> Result<Self> {
        let fail = |e: Errno| Error::new(format!("open a socket to ask {to} for an echo"), e);
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Raw, flags, protocol).map_err(fail)?;
        let discover = match to {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
        };
        set_number(&socket, discover, PROBE).map_err(fail)?;
        bind(socket.as_raw_fd(), &address(from)).map_err(fail)?;
        connect(socket.as_raw_fd(), &address(to)).map_err(fail)?;
        Ok(Self {
            socket,
            ipv6: to.is_ipv6(),
            id,
        })
    }

    /// Sends the request of number `seq` in a packet of `size` bytes, IP header included (which is
    /// the smallest that can be).
    ///
    /// # Errors
    /// The kernel's refusal, other than those of [`Sent`].
    pub fn send(&self, seq: u16, size: u32) -> Result<Sent> {
        let message = self.request(seq, size);
        match send(self.socket.as_raw_fd(), &message, MsgFlags::empty()) {
            Ok(_) => Ok(Sent::Yes),
            Err(Errno::EMSGSIZE) => Ok(Sent::TooLarge),
            Err(
                Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::ECONNREFUSED
                | Errno::EACCES
                | Errno::EPERM
                | Errno::ENOBUFS
                | Errno::EAGAIN,
            ) => Ok(Sent::NoWay),
            Err(e) => Err(Error::new(
                format!("send an echo request of {size} bytes"),
                e,
            )),
        }
    }

    fn request(&self, seq: u16, size: u32) -> Vec<u8> {
        let (kind, ip) = if self.ipv6 { (V6.0, 40) } else { (V4.0, 20) };
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        let mut message = vec![0; length.saturating_sub(ip).max(HEADER)];
        let [id_high, id_low] = self.id.to_be_bytes();
        let [seq_high, seq_low] = seq.to_be_bytes();
        let head = [kind, 0, 0, 0, id_high, id_low, seq_high, seq_low];
        message[..HEADER].copy_from_slice(&head);
        if !self.ipv6 {
            // The kernel fills in ICMPv6's, which covers addresses.
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        message
    }

    /// Takes what came in for this socket; none: nothing more just now.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn receive(&self) -> Result<Option<Heard>> {
        let mut buffer = [0; LOOK];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(seq) = self.reply(buffer.get(..length).unwrap_or_default()) {
                        return Ok(Some(Heard::Reply(seq)));
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EMSGSIZE) => return Ok(Some(Heard::TooLarge)),
                // What is told of earlier requests: there may be replies behind it.
                Err(
                    Errno::EHOSTUNREACH
                    | Errno::ENETUNREACH
                    | Errno::EHOSTDOWN
                    | Errno::ECONNREFUSED
                    | Errno::EACCES
                    | Errno::EINTR,
                ) => {}
                Err(e) => return Err(Error::new("receive an echo reply", e)),
            }
        }
    }

    /// The number of a reply to this socket. IPv4 packets come with their header.
    fn reply(&self, packet: &[u8]) -> Option<u16> {
        let (kind, head) = match (self.ipv6, packet.first()) {
            (true, _) => (V6.1, 0),
            (false, Some(first)) => (V4.1, usize::from(first & 0xf) * 4),
            (false, None) => return None,
        };
        let message: [u8; HEADER] = packet.get(head..)?.first_chunk().copied()?;
        let [is, 0, _, _, id_high, id_low, seq_high, seq_low] = message else {
            return None;
        };
        let ours = is == kind && u16::from_be_bytes([id_high, id_low]) == self.id;
        ours.then(|| u16::from_be_bytes([seq_high, seq_low]))
    }

    /// What this host has learned so far of how large packets to the other may be, in bytes.
    pub fn path_mtu(&self) -> Option<u32> {
        let mtu = match self.ipv6 {
            true => number(&self.socket, (libc::IPPROTO_IPV6, libc::IPV6_MTU)),
            false => number(&self.socket, (libc::IPPROTO_IP, libc::IP_MTU)),
        };
        u32::try_from(mtu?).ok()
    }
}

impl AsFd for Echo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Echo {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn address(ip: IpAddr) -> SockaddrStorage {
    SockaddrStorage::from(match ip {
        IpAddr::V4(ip) => SocketAddr::V4(SocketAddrV4::new(ip, 0)),
        IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, 0, 0, 0)),
    })
}

/// Sets an option (level and name) that is a number.
fn set_number(
    socket: &OwnedFd,
    (level, name): (libc::c_int, libc::c_int),
    value: libc::c_int,
) -> std::result::Result<(), Errno> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    #[expect(unsafe_code, reason = "no library of ours sets these options")]
    // SAFETY: the kernel reads `size` bytes of `value`, which lives until the call returns.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size,
        )
    };
    Errno::result(done).map(drop)
}

/// An option (level and name) that is a number.
fn number(socket: &OwnedFd, (level, name): (libc::c_int, libc::c_int)) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    #[expect(unsafe_code, reason = "no library of ours reads these options")]
    // SAFETY: the kernel writes at most `size` bytes to `value`, and how many to `size`; both live
    // until the call returns.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut size,
        )
    };
    Errno::result(done).ok().map(|_| value)
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::link::LinkChange;
    use crate::{Host, Kernel, NetNs};

    #[test]
    fn checksums() {
        // RFC 1071, section 3: the sum of these is ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&bytes), !0xddf2);
        assert_eq!(checksum(&[0x01]), !0x0100);
        assert_eq!(checksum(&[]), 0xffff);
    }

    #[test]
    fn a_host_answers_itself_and_sends_nothing_larger_than_its_link() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED a_host_answers_itself: needs root");
            return;
        }
        let netns = NetNs::anonymous().unwrap();
        let mut up = LinkChange::up();
        up.mtu = Some(1500);
        let mut host = Kernel::open_in(NetNs::open(netns.path()).unwrap()).unwrap();
        host.set_link("lo", &up).unwrap();
        for ip in ["127.0.0.1", "::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            let ask = || {
                let echo = Echo::open(ip, ip, 77).unwrap();
                let other = Echo::open(ip, ip, 78).unwrap();
                assert_eq!(other.send(1, 100).unwrap(), Sent::Yes);
                assert_eq!(echo.send(5, 1500).unwrap(), Sent::Yes);
                assert_eq!(echo.send(6, 1501).unwrap(), Sent::TooLarge);
                let start = Instant::now();
                let heard = loop {
                    if let Some(heard) = echo.receive().unwrap() {
                        break heard;
                    }
                    assert!(start.elapsed() < Duration::from_secs(30), "{ip}");
                    std::thread::sleep(Duration::from_millis(1));
                };
                assert_eq!(heard, Heard::Reply(5));
                assert_eq!(echo.path_mtu(), Some(1500));
            };
            netns.run(ask).unwrap();
        }
    }
}
