//! The pod's shim: one single-threaded process that holds the pod's namespaces, starts its
//! containers through libcontainer (which wants a process of one thread), carries their output to log
//! files and sees them end.
//!
//! It serves the requests of [`crate::protocol`] one at a time from one `epoll` loop. It writes
//! `state.json` of each container at every change and then announces the change in the state
//! directory's `events`. It restarts nothing and decides nothing.

mod container;
mod create;
mod diagnostics;
mod exec;
mod namespaces;
mod output;
mod pause;
mod payload;
mod reap;
mod rootfs;
mod server;
pub(crate) mod start;
mod streams;

use std::io::Write;
use std::path::Path;

pub use pause::{pause, pause_init};

use crate::error::Result;

/// `seaway-shim serve DIR`: serves the sandbox in `dir` until it is shut down. Whoever started it
/// reads the outcome from the pipe `ready` in `dir`.
///
/// # Errors
/// The sandbox cannot be made; serving fails, which ends the pod.
pub fn serve(dir: &Path) -> Result<()> {
    let mut ready = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.join(start::READY))
        .ok();
    let mut tell = |word: &str| {
        if let Some(mut pipe) = ready.take() {
            // Nobody who reads: the runtime died, and will find the shim by its files.
            drop(pipe.write_all(word.as_bytes()));
        }
    };
    match server::Server::new(dir) {
        Ok(mut server) => {
            tell(start::READY_WORD);
            server.run()
        }
        Err(e) => {
            tell(&e.to_string());
            Err(e)
        }
    }
}

/// Writes a line to the shim's log: standard error, which is `shim.log` in the sandbox's directory.
fn note(text: &str) {
    drop(writeln!(
        std::io::stderr(),
        "{:.3} {text}",
        jiff::Timestamp::now()
    ));
}
