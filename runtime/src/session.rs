//! A program running in a container, seen by whoever asked for it.

use std::os::fd::OwnedFd;

use rustix::termios::{Winsize, tcsetwinsize};

use crate::client::Connection;
use crate::error::{Error, Result};
use crate::protocol::SessionRequest;

/// The streams and the end of a program started by [`crate::Runtime::exec`], or of a container's own
/// program for [`crate::Runtime::attach`].
///
/// Without a terminal the streams are pipes: drop `stdin` to end the program's input. With one,
/// `stdin` and `stdout` are both the terminal's master side (`stdin` only when it was asked for);
/// reading it gives `EIO` once the program and its children are gone.
#[derive(Debug)]
pub struct ExecSession {
    /// Standard input, for writing.
    pub stdin: Option<OwnedFd>,
    /// Standard output, or the terminal, for reading.
    pub stdout: Option<OwnedFd>,
    /// Standard error, for reading; none with a terminal.
    pub stderr: Option<OwnedFd>,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) control: Connection,
}

impl ExecSession {
    /// Waits for the program's end; its exit code (128 + n when signal n ended it). Blocks. Any
    /// number of threads may wait.
    ///
    /// # Errors
    /// The pod's shim died.
    pub fn wait(&self) -> Result<i32> {
        self.control.wait_exit()
    }

    /// Sets the size of the terminal, in characters. Without a terminal nothing happens.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        let Some(terminal) = &self.terminal else {
            return Ok(());
        };
        let size = Winsize {
            ws_row: height,
            ws_col: width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal, size).map_err(|e| Error::io("set the size of a terminal", e))
    }

    /// Kills the program (not the container of an attach session). Already ended is fine.
    pub fn kill(&self) {
        // A shim that is gone has taken the program along.
        drop(self.control.tell(&SessionRequest::Kill));
    }
}
