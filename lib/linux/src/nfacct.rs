//! Counters with names, which rules count packets into (`linux/netfilter/nfnetlink_acct.h`, match
//! `nfacct` of iptables). Each network namespace has its own; they outlive the rules, and several rules,
//! of both families, may count into one.

use crate::error::Result;
use crate::nfnetlink::{NfSocket, attribute, put, trim_nul};

/// Subsystem `NFNL_SUBSYS_ACCT` in the upper byte.
const NEW: u16 = 0x700;
const GET: u16 = 0x701;
const DELETE: u16 = 0x703;

const NFACCT_NAME: u16 = 1;
const NFACCT_PKTS: u16 = 2;
const NFACCT_BYTES: u16 = 3;

/// The longest name: `NFACCT_NAME_MAX`, less the final zero.
pub const NAME_MAX: usize = 31;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The counters of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Counters {
    socket: NfSocket,
}

impl Counters {
    /// Opens the socket; whether the kernel has such counters is told by its answers (`EINVAL`).
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Self> {
        Ok(Self {
            socket: NfSocket::open()?,
        })
    }

    /// Makes a counter; false when it was there, with what it has counted.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn ensure(&mut self, name: &str) -> Result<bool> {
        let op = format!("add counter {name}");
        match self.socket.create(&op, NEW, 0, &named(name)) {
            Ok(()) => Ok(true),
            Err(e) if e.is_exists() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// A counter; `None` when it is not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn get(&mut self, name: &str) -> Result<Option<Counter>> {
        let mut found = None;
        let op = format!("get counter {name}");
        let got = self.socket.get(&op, GET, 0, &named(name), |message| {
            found = read(message.attributes, name);
        });
        match got {
            Ok(()) => Ok(found),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Deletes a counter, if it is there; false while rules count into it, and it stays.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn ensure_no(&mut self, name: &str) -> Result<bool> {
        let op = format!("delete counter {name}");
        match self.socket.change(&op, DELETE, 0, &named(name)) {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(true),
            Err(e) if e.errno() == Some(libc::EBUSY) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// The body of each request.
fn named(name: &str) -> Vec<u8> {
    let mut body = Vec::new();
    put(&mut body, NFACCT_NAME, &[name.as_bytes(), &[0]].concat());
    body
}

/// What a message says of the counter of this name.
fn read(attributes: &[u8], name: &str) -> Option<Counter> {
    if trim_nul(attribute(attributes, NFACCT_NAME)?) != name.as_bytes() {
        return None;
    }
    let number = |kind| {
        let bytes = attribute(attributes, kind)?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    };
    Some(Counter {
        packets: number(NFACCT_PKTS)?,
        bytes: number(NFACCT_BYTES)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `nfacct add http` sends it, behind `struct nfgenmsg`.
    #[test]
    fn a_request_has_the_name() {
        assert_eq!(named("http"), b"\x09\0\x01\0http\0\0\0\0");
    }

    /// As kernel 6.12 answers: name, packets, bytes, users.
    const ANSWER: &[u8] = b"\x09\0\x01\0http\0\0\0\0\
        \x0c\0\x02\0\0\0\0\0\0\0\x01\x02\
        \x0c\0\x03\0\0\0\0\0\0\x01\0\0\
        \x08\0\x04\0\0\0\0\x01";

    #[test]
    fn an_answer_has_numbers_of_64_bits() {
        let counter = Counter {
            packets: 258,
            bytes: 65536,
        };
        assert_eq!(read(ANSWER, "http"), Some(counter));
        assert_eq!(read(ANSWER, "https"), None);
        for length in 0..36 {
            assert_eq!(read(&ANSWER[..length], "http"), None, "{length} bytes");
        }
    }
}
