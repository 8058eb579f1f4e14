//! A small synchronous rtnetlink socket: one request at a time, acknowledged; dumps that are tried
//! again when the kernel says they were interrupted.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{Error, Result};
use crate::netns::NetNs;

mod many;

/// How long an answer may take. The kernel answers within microseconds unless someone holds the
/// RTNL lock, as the deletion of many links does for some tens of milliseconds each.
const ANSWER_SECONDS_MAX: i64 = 30;

/// The kernel fills at most 32 KiB of a dump at once when the reader's buffer has room for it.
const RECEIVE_BYTES: usize = 64 << 10;

/// How often a dump that was interrupted by a change is started again before it is an error.
const DUMP_TRIES: usize = 10;

/// `struct nlmsghdr` of the request stands in front of the attributes of an error.
const NLMSG_HEADER_BYTES: usize = 16;

/// `NLMSGERR_ATTR_MSG` of `linux/netlink.h`: the kernel's explanation as text.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A socket to rtnetlink of one network namespace. The namespace is that of the thread that opened
/// the socket; afterwards any thread may use it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink")
            .field("fd", &self.socket.as_raw_fd())
            .finish_non_exhaustive()
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What one netlink datagram said about one request.
enum Answer {
    Message(RouteNetlinkMessage),
    Done,
    Acknowledged,
    Refused(Error),
    /// An object that the decoder does not understand.
    Unreadable(Error),
    NotOurs,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Self> {
        let fail = |e: io::Error| Error::new("open a netlink socket", e);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(fail)?;
        socket.bind_auto().map_err(fail)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(fail)?;
        let limit = TimeVal::seconds(ANSWER_SECONDS_MAX);
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).map_err(|e| fail(e.into()))?;
        // Each of these makes answers shorter or clearer; a kernel before 4.20 lacks some and
        // works without.
        drop(socket.set_cap_ack(true));
        drop(socket.set_ext_ack(true));
        drop(socket.set_netlink_get_strict_chk(true));
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::new(),
        })
    }

    /// Opens a socket in `netns`; it stays there whoever uses it.
    ///
    /// # Errors
    /// The namespace cannot be entered or the socket is refused.
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        netns.run(Self::open)?
    }

    /// Sends one change and waits for the kernel's acknowledgement. `op` names the operation and
    /// its object for the error.
    ///
    /// # Errors
    /// The kernel's refusal with its extended text, or no answer in time.
    pub fn change(
        &mut self,
        op: fmt::Arguments<'_>,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<()> {
        self.send(op, message, flags | NLM_F_ACK)?;
        loop {
            for answer in self.receive(op)? {
                match answer {
                    Answer::Done | Answer::Acknowledged => return Ok(()),
                    Answer::Refused(error) | Answer::Unreadable(error) => return Err(error),
                    Answer::Message(_) | Answer::NotOurs => {}
                }
            }
        }
    }

    /// Asks for one object. The kernel answers with it or with a refusal.
    ///
    /// # Errors
    /// As [`Netlink::change`].
    pub fn get(
        &mut self,
        op: fmt::Arguments<'_>,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage> {
        self.send(op, message, 0)?;
        loop {
            for answer in self.receive(op)? {
                match answer {
                    Answer::Message(message) => return Ok(message),
                    Answer::Refused(error) | Answer::Unreadable(error) => return Err(error),
                    Answer::Done | Answer::Acknowledged | Answer::NotOurs => {}
                }
            }
        }
    }

    /// Lists objects. A dump that the kernel marks as interrupted is started again.
    ///
    /// # Errors
    /// The kernel's refusal, or a table that never holds still.
    pub fn dump(
        &mut self,
        op: fmt::Arguments<'_>,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_TRIES {
            if let Some(messages) = self.dump_once(op, message.clone())? {
                return Ok(messages);
            }
        }
        let why = format!("interrupted by changes {DUMP_TRIES} times");
        Err(Error::new(op.to_string(), io::Error::from_raw_os_error(libc::EINTR)).with_detail(why))
    }

    /// One dump, `None` when it was interrupted.
    fn dump_once(
        &mut self,
        op: fmt::Arguments<'_>,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>> {
        self.send(op, message, NLM_F_DUMP)?;
        let mut messages = Vec::new();
        let mut whole = true;
        loop {
            let answers = self.receive(op)?;
            whole &= !self.buffer_interrupted();
            for answer in answers {
                match answer {
                    Answer::Message(message) => messages.push(message),
                    Answer::Done => return Ok(whole.then_some(messages)),
                    Answer::Refused(error) => return Err(error),
                    // One odd object (a kind of link that is newer than the decoder) must not
                    // hide all others.
                    Answer::Unreadable(error) => tracing::debug!(%error, "left out"),
                    Answer::Acknowledged | Answer::NotOurs => {}
                }
            }
        }
    }

    fn send(
        &mut self,
        op: fmt::Arguments<'_>,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        self.buffer.clear();
        self.buffer.resize(packet.buffer_len(), 0);
        packet.serialize(&mut self.buffer);
        self.socket
            .send(&self.buffer, 0)
            .map_err(|e| Error::new(op.to_string(), e).with_detail("sending"))?;
        Ok(())
    }

    /// Receives one datagram and takes it apart.
    fn receive(&mut self, op: fmt::Arguments<'_>) -> Result<Vec<Answer>> {
        self.fill(op)?;
        let mut answers = Vec::new();
        for bytes in Datagram(&self.buffer) {
            answers.push(self.answer(op, bytes));
        }
        Ok(answers)
    }

    /// Receives one datagram into the buffer.
    fn fill(&mut self, op: fmt::Arguments<'_>) -> Result<()> {
        self.buffer.clear();
        self.buffer.reserve(RECEIVE_BYTES);
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let late = io::Error::from_raw_os_error(libc::ETIMEDOUT);
                    return Err(Error::new(op.to_string(), late));
                }
                Err(e) => return Err(Error::new(op.to_string(), e).with_detail("receiving")),
            }
        }
    }

    /// Whether any message in the buffer carries the mark of an interrupted dump.
    fn buffer_interrupted(&self) -> bool {
        Datagram(&self.buffer).any(|m| NetlinkBuffer::new(m).flags() & NLM_F_DUMP_INTR != 0)
    }

    fn answer(&self, op: fmt::Arguments<'_>, bytes: &[u8]) -> Answer {
        let header = NetlinkBuffer::new(bytes);
        if header.sequence_number() != self.sequence {
            return Answer::NotOurs;
        }
        let flags = header.flags();
        let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
            Ok(message) => message,
            Err(e) => {
                let why = io::Error::new(io::ErrorKind::InvalidData, e.to_string());
                let error = Error::new(op.to_string(), why).with_detail("reading the answer");
                return Answer::Unreadable(error);
            }
        };
        match message.payload {
            NetlinkPayload::InnerMessage(message) => Answer::Message(message),
            NetlinkPayload::Done(done) if done.code < 0 => {
                Answer::Refused(refusal(op, done.code, None))
            }
            NetlinkPayload::Done(_) => Answer::Done,
            NetlinkPayload::Error(error) => match error.code {
                None => Answer::Acknowledged,
                Some(code) => {
                    let said = (flags & NLM_F_ACK_TLVS != 0).then(|| extended_text(&error.header));
                    Answer::Refused(refusal(op, code.get(), said.flatten()))
                }
            },
            _ => Answer::NotOurs,
        }
    }
}

/// The messages of one datagram, each as its own slice.
struct Datagram<'a>(&'a [u8]);

impl<'a> Iterator for Datagram<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(NetlinkBuffer::new_checked(self.0).ok()?.length()).ok()?;
        let message = self.0.get(..length)?;
        let aligned = length.next_multiple_of(4).min(self.0.len());
        self.0 = &self.0[aligned..];
        Some(message)
    }
}

fn refusal(op: fmt::Arguments<'_>, code: i32, said: Option<String>) -> Error {
    let error = Error::new(op.to_string(), io::Error::from_raw_os_error(code.abs()));
    match said {
        Some(text) => error.with_detail(text),
        None => error,
    }
}

/// The text of the kernel's extended acknowledgement: attributes after the request's header, which
/// is all that is echoed of the request since we ask for capped answers.
fn extended_text(echoed: &[u8]) -> Option<String> {
    let attributes = echoed.get(NLMSG_HEADER_BYTES..)?;
    let attribute = NlasIterator::new(attributes)
        .filter_map(std::result::Result::ok)
        .find(|a: &NlaBuffer<&[u8]>| a.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(attribute.value());
    Some(text.trim_end_matches('\0').trim_end_matches('.').to_owned())
}

/// Lets more be queued on a socket before the kernel drops, whatever `net.core.rmem_max` says.
///
/// # Errors
/// Without CAP_NET_ADMIN.
pub fn set_receive_room(socket: &impl AsFd, bytes: usize) -> Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &bytes)
        .map_err(|e| Error::new(format!("set the receive buffer to {bytes} bytes"), e))
}

/// Groups of notifications a [`Monitor`] can wait for (`RTNLGRP_*` of `linux/rtnetlink.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Links made, changed, deleted.
    Link,
    /// Neighbours and forwarding entries.
    Neigh,
    /// IPv4 addresses.
    Ipv4Addr,
    /// IPv4 routes.
    Ipv4Route,
    /// IPv6 addresses.
    Ipv6Addr,
    /// IPv6 routes.
    Ipv6Route,
}

impl Group {
    fn number(self) -> u32 {
        match self {
            Self::Link => 1,
            Self::Neigh => 3,
            Self::Ipv4Addr => 5,
            Self::Ipv4Route => 7,
            Self::Ipv6Addr => 9,
            Self::Ipv6Route => 11,
        }
    }
}

/// A socket that becomes readable when something of the chosen groups changes. It says that
/// something changed, not what: the reader lists again.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Monitor {
    /// Listens in the calling thread's network namespace. The descriptor does not block.
    ///
    /// # Errors
    /// The kernel refuses the socket or a group.
    pub fn open(groups: &[Group]) -> Result<Self> {
        let fail = |e: io::Error| Error::new("listen for netlink notifications", e);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(fail)?;
        socket.bind_auto().map_err(fail)?;
        for group in groups {
            socket.add_membership(group.number()).map_err(fail)?;
        }
        socket.set_non_blocking(true).map_err(fail)?;
        Ok(Self { socket })
    }

    /// Listens in `netns`.
    ///
    /// # Errors
    /// As [`Monitor::open`]; also a namespace that cannot be entered.
    pub fn open_in(netns: &NetNs, groups: &[Group]) -> Result<Self> {
        netns.run(|| Self::open(groups))?
    }

    /// Throws away what has come in; true when there was something (also when the kernel had to
    /// drop notifications, which means that there was a lot).
    pub fn drain(&self) -> bool {
        let mut seen = false;
        let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => seen = true,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => seen = true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return seen,
            }
        }
    }

    /// Waits until something changes and drains it; false when `timeout` passed first.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut fds = [nix::poll::PollFd::new(
            self.socket.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        let limit =
            nix::poll::PollTimeout::try_from(timeout).unwrap_or(nix::poll::PollTimeout::MAX);
        match nix::poll::poll(&mut fds, limit) {
            Ok(n) if n > 0 => self.drain(),
            _ => false,
        }
    }
}
