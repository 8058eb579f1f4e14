//! Notifications of nf_tables (`linux/netfilter/nf_tables.h`): someone deleted rules or chains in
//! tables that iptables-nft uses.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use crate::error::Result;
use crate::nfnetlink::{Message, NfSocket, attribute, notifications};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// Subsystem `NFNL_SUBSYS_NFTABLES` in the upper byte.
const DELETE_TABLE: u16 = 0xa02;
const DELETE_CHAIN: u16 = 0xa05;
const DELETE_RULE: u16 = 0xa08;

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE`: all the same.
const TABLE: u16 = 1;

/// A socket that becomes readable when rules change. The kernel sends what a transaction did
/// before it answers whoever made it: one who drains the socket after a transaction of his own has
/// seen the last of it.
#[derive(Debug)]
pub struct RulesMonitor {
    socket: NfSocket,
}

impl AsRawFd for RulesMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

impl RulesMonitor {
    /// Listens in the calling thread's network namespace. The descriptor does not block.
    ///
    /// # Errors
    /// The kernel has no nf_tables.
    pub fn open() -> Result<Self> {
        Ok(Self {
            socket: NfSocket::listen(GROUP)?,
        })
    }

    /// Reads all notifications; true when something was deleted from one of `tables`, or when the
    /// kernel had to drop notifications.
    pub fn drain(&self, tables: &[&str]) -> bool {
        let mut deleted = false;
        let mut buffer = Vec::new();
        loop {
            match self.socket.receive(&mut buffer) {
                Ok(true) => notifications(&buffer, |message| {
                    deleted |= deletes(message, tables);
                }),
                Ok(false) => return deleted,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => deleted = true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return deleted,
            }
        }
    }
}

fn deletes(message: Message<'_>, tables: &[&str]) -> bool {
    if !matches!(message.kind, DELETE_TABLE | DELETE_CHAIN | DELETE_RULE) {
        return false;
    }
    let family = i32::from(message.family);
    if family != libc::AF_INET && family != libc::AF_INET6 {
        return false;
    }
    let table = attribute(message.attributes, TABLE).unwrap_or_default();
    let table = table.strip_suffix(&[0]).unwrap_or(table);
    tables.iter().any(|name| name.as_bytes() == table)
}
