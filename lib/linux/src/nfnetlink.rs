//! Netlink of the netfilter subsystems (`linux/netfilter/nfnetlink.h`): a small synchronous socket,
//! and attributes as bytes. Numbers in attributes are in network order.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{Error, Result};

/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// `struct nfgenmsg`, behind it.
const GENERIC_BYTES: usize = 4;

/// `struct nlattr`.
const ATTRIBUTE_BYTES: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
/// Without the flags for nesting and byte order.
const NLA_TYPE_MASK: u16 = 0x3fff;

const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// An answer without the body of what it answers.
const NLM_F_CAPPED: u16 = 0x100;
/// An answer with attributes.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// The kernel's explanation as text.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// How long the kernel may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The kernel fills at most 32 KiB of a dump at once when the reader's buffer has room for it.
const RECEIVE_BYTES: usize = 64 << 10;

/// One message of a netfilter subsystem.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    /// Subsystem in the upper byte, message in the lower.
    pub(crate) kind: u16,
    /// Port of the socket whose request this tells of or answers.
    pub(crate) port: u32,
    /// `AF_INET` or `AF_INET6`, where the message is about one family.
    pub(crate) family: u8,
    /// All attributes.
    pub(crate) attributes: &'a [u8],
}

/// The attributes in `bytes`: type without flags, and value.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(ATTRIBUTE_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

/// The value of the first attribute of type `kind`.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| value)
}

/// Writes an attribute.
pub(crate) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).unwrap_or(u16::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Writes an attribute that holds others.
pub(crate) fn put_nested(out: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put(out, kind | NLA_F_NESTED, &[]);
    write(out);
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

/// Writes a message: `struct nlmsghdr`, `struct nfgenmsg`, and what `write` adds.
pub(crate) fn put_message(
    out: &mut Vec<u8>,
    sequence: u32,
    kind: u16,
    flags: u16,
    generic: [u8; GENERIC_BYTES],
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend(generic);
    write(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

/// What one netlink message is.
enum Part<'a> {
    Message(Message<'a>),
    /// The end of a dump, or an acknowledgement.
    End(Answer),
}

/// The kernel's answer to one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Of the message.
    pub(crate) sequence: u32,
    /// 0, or an error number.
    pub(crate) code: i32,
    /// The kernel's own words, where it has any.
    pub(crate) text: Option<String>,
}

impl Answer {
    /// From what stands behind the header of an error, an acknowledgement or the end of a dump:
    /// the code, then (not at the end of a dump) the header of the request and attributes.
    fn read(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Self {
        let code = body.get(..4).and_then(|code| code.try_into().ok());
        let skip = match kind {
            NLMSG_ERROR if flags & NLM_F_CAPPED != 0 => 4 + HEADER_BYTES,
            NLMSG_ERROR => {
                let length = body.get(4..8).and_then(|length| length.try_into().ok());
                let length = length.map_or(0, u32::from_ne_bytes);
                4 + usize::try_from(length)
                    .unwrap_or_default()
                    .next_multiple_of(4)
            }
            _ => 4,
        };
        let told = (flags & NLM_F_ACK_TLVS != 0).then(|| body.get(skip..).unwrap_or_default());
        let text = told.and_then(|told| attribute(told, NLMSGERR_ATTR_MSG));
        let text = text.map(|text| String::from_utf8_lossy(trim_nul(text)).into_owned());
        Self {
            sequence,
            code: code.map_or(0, i32::from_ne_bytes).saturating_neg(),
            text,
        }
    }

    /// As an error of operation `op`.
    pub(crate) fn error(&self, op: &str) -> Error {
        let error = Error::new(op, io::Error::from_raw_os_error(self.code));
        error.with_detail(self.text.as_deref().unwrap_or_default())
    }
}

/// Without the NUL at the end of a string.
pub(crate) fn trim_nul(text: &[u8]) -> &[u8] {
    text.strip_suffix(&[0]).unwrap_or(text)
}

/// The messages in a datagram, with their flags and sequence numbers.
fn parts(datagram: &[u8]) -> impl Iterator<Item = (u16, u32, Part<'_>)> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?)).ok()?;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let flags = u16::from_ne_bytes(rest.get(6..8)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(rest.get(8..12)?.try_into().ok()?);
        let port = u32::from_ne_bytes(rest.get(12..16)?.try_into().ok()?);
        let body = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let part = match kind {
            NLMSG_ERROR | NLMSG_DONE => Part::End(Answer::read(kind, flags, sequence, body)),
            kind => Part::Message(Message {
                kind,
                port,
                family: *body.first()?,
                attributes: body.get(GENERIC_BYTES..)?,
            }),
        };
        Some((flags, sequence, part))
    })
}

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct NfSocket {
    socket: Socket,
    port: u32,
    sequence: u32,
    /// The most bytes that fit into one datagram.
    send_bytes: usize,
}

/// The kernel's usual `net.core.wmem_default`, less what it may take for itself.
const SEND_BYTES: usize = 128 << 10;

impl AsFd for NfSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl NfSocket {
    /// A socket for requests.
    pub(crate) fn open() -> Result<Self> {
        Self::open_for(NETLINK_NETFILTER, "open a netfilter socket")
    }

    /// A socket of another protocol whose messages have four bytes before the rest, too.
    pub(crate) fn open_for(protocol: isize, op: &str) -> Result<Self> {
        let fail = |e: io::Error| Error::new(op, e);
        let mut socket = Socket::new(protocol).map_err(fail)?;
        let port = socket.bind_auto().map_err(fail)?.port_number();
        socket.connect(&SocketAddr::new(0, 0)).map_err(fail)?;
        let seconds = i64::try_from(ANSWER_TIMEOUT.as_secs()).unwrap_or(i64::MAX);
        let limit = TimeVal::seconds(seconds);
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).map_err(|e| fail(e.into()))?;
        drop(socket.set_cap_ack(true));
        drop(socket.set_ext_ack(true));
        Ok(Self {
            socket,
            port,
            sequence: 0,
            send_bytes: SEND_BYTES,
        })
    }

    /// A socket that hears a group and does not block.
    pub(crate) fn listen(group: u32) -> Result<Self> {
        let fail = |e: io::Error| Error::new("listen for netfilter notifications", e);
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(fail)?;
        let port = socket.bind_auto().map_err(fail)?.port_number();
        socket.add_membership(group).map_err(fail)?;
        socket.set_non_blocking(true).map_err(fail)?;
        Ok(Self {
            socket,
            port,
            sequence: 0,
            send_bytes: SEND_BYTES,
        })
    }

    /// The port by which the kernel knows this socket.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Holds as many bytes of notifications as `bytes` before the kernel throws some away; as many
    /// as it allows without the right to more.
    pub(crate) fn set_receive_bytes(&self, bytes: usize) {
        if setsockopt(&self.socket, sockopt::RcvBufForce, &bytes).is_err() {
            let plain = setsockopt(&self.socket, sockopt::RcvBuf, &bytes);
            plain.unwrap_or_default();
        }
    }

    /// Leaves out datagrams whose first message tells of a request of one of `ports`.
    pub(crate) fn ignore(&self, ports: &[u32]) -> Result<()> {
        let program = filter(ports);
        let length = u16::try_from(program.len()).unwrap_or(u16::MAX);
        let program = libc::sock_fprog {
            len: length,
            filter: program.as_ptr().cast_mut(),
        };
        let size = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or_default();
        #[expect(unsafe_code, reason = "no library sets packet filters")]
        // SAFETY: the kernel copies `size` bytes of `program` and the `len` instructions that it
        // points to, which live until the end of this function; it changes neither.
        let done = unsafe {
            libc::setsockopt(
                self.socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size,
            )
        };
        if done == 0 {
            return Ok(());
        }
        let op = "leave out notifications of our own changes";
        Err(Error::new(op, io::Error::last_os_error()))
    }

    /// The next `count` sequence numbers; returns the first.
    pub(crate) fn sequences(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Sends messages that the kernel works on before the call returns, and hands `each` all
    /// answers.
    pub(crate) fn transact(
        &mut self,
        op: &str,
        datagram: &[u8],
        mut each: impl FnMut(Answer),
    ) -> Result<()> {
        if datagram.len() > self.send_bytes {
            let bytes = datagram.len().next_power_of_two();
            setsockopt(&self.socket, sockopt::SndBufForce, &bytes)
                .map_err(|e| Error::new(format!("{op}: room for {bytes} bytes"), e))?;
            self.send_bytes = bytes;
        }
        let sent = self.socket.send(datagram, 0);
        sent.map_err(|e| Error::new(op, e))?;
        let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::new(op, e)),
            }
            for (_, _, part) in parts(&buffer) {
                if let Part::End(answer) = part {
                    each(answer);
                }
            }
        }
    }

    /// One datagram of notifications; `None` when there is none.
    pub(crate) fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        buffer.clear();
        buffer.reserve(RECEIVE_BYTES);
        match self.socket.recv(buffer, 0) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn send(
        &mut self,
        op: &str,
        kind: u16,
        flags: u16,
        generic: [u8; GENERIC_BYTES],
        body: &[u8],
    ) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER_BYTES + GENERIC_BYTES + body.len();
        let mut datagram = Vec::with_capacity(length);
        put_message(&mut datagram, self.sequence, kind, flags, generic, |out| {
            out.extend(body);
        });
        let sent = self.socket.send(&datagram, 0);
        sent.map(drop).map_err(|e| Error::new(op, e))
    }

    /// Sends a change and waits until the kernel has made it.
    pub(crate) fn change(&mut self, op: &str, kind: u16, family: u8, body: &[u8]) -> Result<()> {
        self.change_of(op, kind, [family, 0, 0, 0], body)
    }

    /// As [`NfSocket::change`], with all four bytes before the body.
    pub(crate) fn change_of(
        &mut self,
        op: &str,
        kind: u16,
        generic: [u8; GENERIC_BYTES],
        body: &[u8],
    ) -> Result<()> {
        self.send(op, kind, NLM_F_ACK, generic, body)?;
        self.answers(op, |_| {}).map(drop)
    }

    /// Asks for one object and hands it to `each`.
    pub(crate) fn get(
        &mut self,
        op: &str,
        kind: u16,
        family: u8,
        body: &[u8],
        each: impl FnMut(Message<'_>),
    ) -> Result<()> {
        self.send(op, kind, NLM_F_ACK, [family, 0, 0, 0], body)?;
        self.answers(op, each).map(drop)
    }

    /// Sends an object that must not be there yet, and waits until the kernel has made it.
    pub(crate) fn create(&mut self, op: &str, kind: u16, family: u8, body: &[u8]) -> Result<()> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.send(op, kind, flags, [family, 0, 0, 0], body)?;
        self.answers(op, |_| {}).map(drop)
    }

    /// Lists; calls `each` for every object. True when the list was interrupted by changes, so that
    /// objects may be missing.
    pub(crate) fn dump(
        &mut self,
        op: &str,
        kind: u16,
        family: u8,
        body: &[u8],
        each: impl FnMut(Message<'_>),
    ) -> Result<bool> {
        self.dump_of(op, kind, [family, 0, 0, 0], body, each)
    }

    /// As [`NfSocket::dump`], with all four bytes before the body.
    pub(crate) fn dump_of(
        &mut self,
        op: &str,
        kind: u16,
        generic: [u8; GENERIC_BYTES],
        body: &[u8],
        each: impl FnMut(Message<'_>),
    ) -> Result<bool> {
        self.send(op, kind, NLM_F_DUMP, generic, body)?;
        self.answers(op, each)
    }

    fn answers(&mut self, op: &str, mut each: impl FnMut(Message<'_>)) -> Result<bool> {
        let mut interrupted = false;
        let mut buffer = Vec::new();
        loop {
            if !self.receive(&mut buffer).map_err(|e| Error::new(op, e))? {
                return Err(Error::new(op, io::Error::from(io::ErrorKind::TimedOut)));
            }
            for (flags, sequence, part) in parts(&buffer) {
                if sequence != self.sequence {
                    continue;
                }
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match part {
                    Part::Message(message) => each(message),
                    Part::End(answer) if answer.code == 0 => return Ok(interrupted),
                    Part::End(answer) => return Err(answer.error(op)),
                }
            }
        }
    }
}

/// A program for packet filters (`linux/filter.h`): nothing is left of a datagram whose
/// `nlmsg_pid` is one of `ports`, everything of all others.
fn filter(ports: &[u32]) -> Vec<libc::sock_filter> {
    const NLMSG_PID: u32 = 12;
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    // Its last instruction drops, the one before keeps.
    let mut program = vec![step(
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        0,
        0,
        NLMSG_PID,
    )];
    let ports = &ports[..ports.len().min(usize::from(u8::MAX))];
    for (i, port) in ports.iter().enumerate() {
        let to_drop = u8::try_from(ports.len() - i).unwrap_or_default();
        // Loads are of the network's byte order, the header is in this machine's.
        let compare = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        program.push(step(compare, to_drop, 0, port.to_be()));
    }
    let end = libc::BPF_RET | libc::BPF_K;
    program.push(step(end, 0, 0, u32::MAX));
    program.push(step(end, 0, 0, 0));
    program
}

/// Calls `each` for every message of a datagram of notifications.
pub(crate) fn notifications(datagram: &[u8], mut each: impl FnMut(Message<'_>)) {
    for (_, _, part) in parts(datagram) {
        if let Part::Message(message) = part {
            each(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_written() {
        let mut bytes = Vec::new();
        put(&mut bytes, 3, b"abc");
        put_nested(&mut bytes, 4, |inner| put(inner, 1, &[7]));
        put(&mut bytes, 5, &[]);
        let read: Vec<(u16, &[u8])> = attributes(&bytes).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0], (3, b"abc".as_slice()));
        assert_eq!(attribute(read[1].1, 1), Some([7].as_slice()));
        assert_eq!(read[2], (5, [].as_slice()));
    }

    #[test]
    fn broken_bytes_end_the_list() {
        for length in 0..64_usize {
            let bytes: Vec<u8> = (0..length)
                .map(|i| u8::try_from(i * 37 % 251).unwrap())
                .collect();
            assert!(attributes(&bytes).count() <= length);
            notifications(&bytes, |_| {});
        }
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }
}
