//! Generic netlink (`linux/genetlink.h`): families found by name, requests sent many at a time.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{Error, Result};
use crate::nfnetlink::{attribute, put};

/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// `struct genlmsghdr`, behind it.
pub(crate) const GENERIC_BYTES: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// The family that knows the others (`GENL_ID_CTRL`), its request and two attributes.
const CONTROL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// How long the kernel may take to answer: the first request of a family may load a module.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The kernel fills at most 32 KiB of a dump at once when the reader's buffer has room for it.
const RECEIVE_BYTES: usize = 64 << 10;

/// Requests in one datagram. Each of them may be refused, and all refusals must fit into the
/// socket's buffer.
const BATCH_MAX: usize = 100;

/// One request, generic header and attributes.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Command of the family.
    pub(crate) command: u8,
    /// Attributes.
    pub(crate) attributes: Vec<u8>,
}

/// A socket to one family, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct GenlSocket {
    socket: Socket,
    family: u16,
    version: u8,
    sequence: u32,
}

/// One message of a datagram: type, flags, sequence number and what follows.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?)).ok()?;
        let message = Message {
            kind: u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(rest.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(rest.get(8..12)?.try_into().ok()?),
            body: rest.get(HEADER_BYTES..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The error number of an `NLMSG_ERROR` or `NLMSG_DONE`; 0: none.
fn error_number(body: &[u8]) -> i32 {
    let code = body.get(..4).and_then(|code| code.try_into().ok());
    code.map_or(0, i32::from_ne_bytes).saturating_neg()
}

impl GenlSocket {
    /// A socket to family `name`. The kernel loads the module that has it, if it can.
    ///
    /// # Errors
    /// There is no such family (`is_not_found`).
    pub(crate) fn open(name: &str, version: u8) -> Result<Self> {
        let op = format!("find the generic netlink family {name}");
        let fail = |e: io::Error| Error::new("open a generic netlink socket", e);
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(fail)?;
        socket.bind_auto().map_err(fail)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(fail)?;
        let seconds = i64::try_from(ANSWER_TIMEOUT.as_secs()).unwrap_or(i64::MAX);
        let limit = TimeVal::seconds(seconds);
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).map_err(|e| fail(e.into()))?;
        drop(socket.set_cap_ack(true));
        let mut control = Self {
            socket,
            family: CONTROL,
            version: 1,
            sequence: 0,
        };
        let mut attributes = Vec::new();
        let text = [name.as_bytes(), &[0]].concat();
        put(&mut attributes, CTRL_ATTR_FAMILY_NAME, &text);
        let request = Request {
            command: CTRL_CMD_GETFAMILY,
            attributes,
        };
        let mut family = None;
        control.ask(&op, &request, |attributes| {
            let id = attribute(attributes, CTRL_ATTR_FAMILY_ID);
            family = id.and_then(|id| Some(u16::from_ne_bytes(id.try_into().ok()?)));
        })?;
        let family = family.ok_or_else(|| Error::other(op, "the kernel's answer has no number"))?;
        Ok(Self {
            family,
            version,
            ..control
        })
    }

    fn write(&mut self, datagram: &mut Vec<u8>, request: &Request, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER_BYTES + GENERIC_BYTES + request.attributes.len();
        datagram.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        datagram.extend(self.family.to_ne_bytes());
        datagram.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        datagram.extend(self.sequence.to_ne_bytes());
        datagram.extend([0; 4]);
        datagram.extend([request.command, self.version, 0, 0]);
        datagram.extend(&request.attributes);
        datagram.resize(datagram.len().next_multiple_of(4), 0);
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        loop {
            buffer.clear();
            buffer.reserve(RECEIVE_BYTES);
            match self.socket.recv(buffer, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Asks for something; calls `each` with the attributes of every object in the answer.
    pub(crate) fn ask(
        &mut self,
        op: &str,
        request: &Request,
        each: impl FnMut(&[u8]),
    ) -> Result<()> {
        self.question(op, request, NLM_F_ACK, each).map(drop)
    }

    /// Lists; true when the list was interrupted by changes, so that objects may be missing.
    pub(crate) fn dump(
        &mut self,
        op: &str,
        request: &Request,
        each: impl FnMut(&[u8]),
    ) -> Result<bool> {
        self.question(op, request, NLM_F_DUMP, each)
    }

    fn question(
        &mut self,
        op: &str,
        request: &Request,
        flags: u16,
        mut each: impl FnMut(&[u8]),
    ) -> Result<bool> {
        let mut buffer = Vec::new();
        self.write(&mut buffer, request, flags);
        let fail = |e: io::Error| Error::new(op, e);
        self.socket.send(&buffer, 0).map_err(fail)?;
        let mut interrupted = false;
        loop {
            self.receive(&mut buffer).map_err(fail)?;
            for message in messages(&buffer) {
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match (message.kind, error_number(message.body)) {
                    (NLMSG_ERROR | NLMSG_DONE, 0) => return Ok(interrupted),
                    (NLMSG_ERROR | NLMSG_DONE, code) => {
                        return Err(fail(io::Error::from_raw_os_error(code)));
                    }
                    _ => each(message.body.get(GENERIC_BYTES..).unwrap_or_default()),
                }
            }
        }
    }

    /// Makes changes in order, many to a datagram; a change that is refused does not stop those
    /// after it. Gives back which were refused, and why.
    pub(crate) fn change(
        &mut self,
        op: &str,
        requests: &[Request],
    ) -> Result<Vec<(usize, io::Error)>> {
        let mut refused = Vec::new();
        for (number, batch) in requests.chunks(BATCH_MAX).enumerate() {
            self.batch(op, batch, number * BATCH_MAX, &mut refused)?;
        }
        Ok(refused)
    }

    fn batch(
        &mut self,
        op: &str,
        batch: &[Request],
        offset: usize,
        refused: &mut Vec<(usize, io::Error)>,
    ) -> Result<()> {
        let fail = |e: io::Error| Error::new(op, e);
        let first = self.sequence.wrapping_add(1);
        let mut buffer = Vec::new();
        for (i, request) in batch.iter().enumerate() {
            // Refusals come in any case; that the last was answered says that all were.
            let flags = if i + 1 == batch.len() { NLM_F_ACK } else { 0 };
            self.write(&mut buffer, request, flags);
        }
        let last = self.sequence;
        self.socket.send(&buffer, 0).map_err(fail)?;
        loop {
            self.receive(&mut buffer).map_err(fail)?;
            for message in messages(&buffer) {
                let i = message.sequence.wrapping_sub(first) as usize;
                if message.kind != NLMSG_ERROR || i >= batch.len() {
                    continue;
                }
                let code = error_number(message.body);
                if code != 0 {
                    refused.push((offset + i, io::Error::from_raw_os_error(code)));
                }
                if message.sequence == last {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_found_by_name() {
        // The family that lists families is in every kernel.
        let mut socket = GenlSocket::open("nlctrl", 1).unwrap();
        assert_eq!(socket.family, CONTROL);
        assert!(
            GenlSocket::open("no-such-family", 1)
                .unwrap_err()
                .is_not_found()
        );
        let list = Request {
            command: CTRL_CMD_GETFAMILY,
            attributes: Vec::new(),
        };
        let mut found = 0;
        socket.dump("list families", &list, |_| found += 1).unwrap();
        assert!(found >= 1);
    }

    #[test]
    fn refusals_are_told_by_number() {
        let mut socket = GenlSocket::open("nlctrl", 1).unwrap();
        let request = |name: &str| {
            let mut attributes = Vec::new();
            put(
                &mut attributes,
                CTRL_ATTR_FAMILY_NAME,
                format!("{name}\0").as_bytes(),
            );
            Request {
                command: CTRL_CMD_GETFAMILY,
                attributes,
            }
        };
        let mut requests = vec![request("nlctrl"); BATCH_MAX + 2];
        requests[3] = request("nowhere");
        requests[BATCH_MAX + 1] = request("nowhere");
        let refused = socket.change("test", &requests).unwrap();
        let numbers: Vec<usize> = refused.iter().map(|(i, _)| *i).collect();
        assert_eq!(numbers, [3, BATCH_MAX + 1]);
    }

    #[test]
    fn broken_bytes_end_the_list() {
        for length in 0..80_usize {
            let bytes: Vec<u8> = (0..length)
                .map(|i| u8::try_from(i * 41 % 251).unwrap())
                .collect();
            assert!(messages(&bytes).count() <= length);
        }
    }
}
