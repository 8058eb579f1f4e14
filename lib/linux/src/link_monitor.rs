//! Notifications that interfaces or addresses come, go or change.

use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::{Error, Result};

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` of `linux/rtnetlink.h`.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// What comes within this time belongs together: a pod's interface is made in several steps.
const COALESCE: Duration = Duration::from_millis(20);

/// A socket that hears of changes in the network namespace it was opened in.
#[derive(Debug)]
pub struct LinkMonitor {
    socket: Socket,
}

impl LinkMonitor {
    /// Listens in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open() -> Result<Self> {
        let op = "listen for changes of interfaces";
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(|e| Error::new(op, e))?;
        socket
            .bind(&SocketAddr::new(0, GROUPS))
            .map_err(|e| Error::new(op, e))?;
        Ok(Self { socket })
    }

    /// Waits until something has changed, and a moment longer. False: nothing will come any more.
    pub fn wait(&self) -> bool {
        let mut buffer = Vec::with_capacity(8192);
        loop {
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => break,
                // Notifications were lost, which is a change like any other.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => break,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        std::thread::sleep(COALESCE);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return true,
            }
        }
    }
}
