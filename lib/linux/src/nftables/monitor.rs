//! Notifications: who changed which table.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use super::set::Element;
use super::{Family, Generation, message, text};
use crate::error::Result;
use crate::nfnetlink::{Message, NfSocket, attribute, attributes, notifications};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE` and
/// `NFTA_SET_ELEM_LIST_TABLE`: all the same.
const TABLE: u16 = 1;

/// `NFTA_SET_ELEM_LIST_SET` and `NFTA_SET_ELEM_LIST_ELEMENTS`.
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;

/// Room for notifications that nobody has read yet: some ten thousand elements.
const RECEIVE_BYTES: usize = 4 << 20;

/// Elements of a set or map that were made or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elements<'a> {
    /// Name of the set.
    pub set: &'a str,
    list: &'a [u8],
}

impl Elements<'_> {
    /// Each of them as the kernel tells it: of a set of ranges of one field, starts and ends (true).
    pub fn each(&self) -> impl Iterator<Item = (Element, bool)> {
        attributes(self.list).filter_map(|(_, bytes)| Element::read(bytes))
    }
}

/// What a change was of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The table, or something of a kind that is not told apart here.
    Table,
    /// A chain, or rules of one.
    Chain,
    /// A set or map as such.
    Set,
    /// Elements.
    Elements(Elements<'a>),
}

/// One change of something in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edit<'a> {
    /// Family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: &'a str,
    /// Something was deleted; else made or changed.
    pub deletes: bool,
    /// What it was.
    pub subject: Subject<'a>,
    /// [`super::Nftables::port`] of whoever made the change.
    pub port: u32,
}

impl Edit<'_> {
    /// Whether elements of a set were made or deleted, and nothing else.
    pub fn of_elements(&self) -> bool {
        matches!(self.subject, Subject::Elements(_))
    }
}

/// What the monitor saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice<'a> {
    /// A change.
    Edit(Edit<'a>),
    /// The end of a transaction, with whoever made it.
    Done(Generation),
    /// The kernel had to throw notifications away.
    Lost,
}

/// A socket that becomes readable when tables change. The kernel sends what a transaction did
/// before it answers whoever made it: one who drains the socket after a transaction of his own has
/// seen the last of it.
#[derive(Debug)]
pub struct Monitor {
    socket: NfSocket,
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

impl Monitor {
    /// Listens in the calling thread's network namespace. The descriptor does not block.
    ///
    /// # Errors
    /// The kernel has no nf_tables.
    pub fn open() -> Result<Self> {
        let socket = NfSocket::listen(GROUP)?;
        socket.set_receive_bytes(RECEIVE_BYTES);
        Ok(Self { socket })
    }

    /// Hears no more of changes that these sockets ([`super::Nftables::port`]) make.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn ignore(&self, ports: &[u32]) -> Result<()> {
        self.socket.ignore(ports)
    }

    /// Reads all notifications that are there.
    pub fn drain(&self, mut each: impl FnMut(Notice<'_>)) {
        let mut buffer = Vec::new();
        loop {
            match self.socket.receive(&mut buffer) {
                Ok(true) => notifications(&buffer, |message| read(message, &mut each)),
                Ok(false) => return,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => each(Notice::Lost),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

fn read(found: Message<'_>, each: &mut impl FnMut(Notice<'_>)) {
    if found.kind == message::NEW_GENERATION {
        each(Notice::Done(Generation::read(found.attributes)));
        return;
    }
    let Some(family) = Family::of(found.family) else {
        return;
    };
    let table = attribute(found.attributes, TABLE)
        .map(text)
        .unwrap_or_default();
    let set = attribute(found.attributes, ELEMENTS_SET)
        .map(text)
        .unwrap_or_default();
    let subject = match found.kind {
        message::NEW_CHAIN | message::DELETE_CHAIN | message::NEW_RULE | message::DELETE_RULE => {
            Subject::Chain
        }
        message::NEW_SET | message::DELETE_SET => Subject::Set,
        message::NEW_ELEMENTS | message::DELETE_ELEMENTS => Subject::Elements(Elements {
            set: &set,
            list: attribute(found.attributes, ELEMENTS_LIST).unwrap_or_default(),
        }),
        _ => Subject::Table,
    };
    each(Notice::Edit(Edit {
        family,
        table: &table,
        deletes: matches!(
            found.kind,
            message::DELETE_TABLE
                | message::DELETE_CHAIN
                | message::DELETE_RULE
                | message::DELETE_SET
                | message::DELETE_ELEMENTS
        ),
        subject,
        port: found.port,
    }));
}
