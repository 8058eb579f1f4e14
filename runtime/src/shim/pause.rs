//! The first process of a process namespace that a pod's containers share.

use std::io::Write;
use std::path::Path;

use linux::exec::Exec;
use linux::process::Daemon;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::error::{Error, Result};

/// Makes the namespace; the pid of its first process, seen from here.
pub(super) fn create(program: &Path) -> Result<i32> {
    let output = Exec::new(program).arg("pause").run()?;
    let text = output.text();
    text.trim()
        .parse()
        .map_err(|_no_pid| Error::shim("share the process namespace", format!("it said {text:?}")))
}

/// `seaway-shim pause`: enters a new process namespace, starts its first process, writes that one's
/// pid and ends. (Only children of who unshares are in the namespace, and the shim's other children
/// must not be.)
///
/// # Errors
/// The kernel refuses.
pub fn pause(program: &Path, out: &mut impl Write) -> Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a process of one thread whose only purpose this is"
    )]
    nix::sched::unshare(CloneFlags::CLONE_NEWPID)
        .map_err(|e| Error::io("make a process namespace", e))?;
    let daemon = Daemon {
        program: program.to_owned(),
        args: vec!["pause-init".into()],
        ..Daemon::default()
    };
    let child = daemon.spawn()?;
    writeln!(out, "{}", child.id()).map_err(|e| Error::io("tell the pid", e))
}

/// `seaway-shim pause-init`: reaps orphans until SIGTERM or the end of the pod.
///
/// # Errors
/// The kernel refuses.
pub fn pause_init() -> Result<()> {
    let fail = |e: nix::Error| Error::io("wait for signals", e);
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(fail)?;
    loop {
        if signals.wait().map_err(fail)? == Signal::SIGTERM {
            return Ok(());
        }
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(_)
        ) {}
    }
}
