//! The last step of a container's process: from libcontainer's init to the program itself.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::sync::Arc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

/// Executes the program, in the container, with the container's environment and user.
#[derive(Clone)]
pub(super) struct Payload {
    /// Takes the reason when the program cannot be executed; closed by success.
    pub(super) error: Arc<File>,
    /// `cgroup.procs` of the unified hierarchy, which libcontainer does not fill on hybrid systems.
    pub(super) procs: Option<Arc<File>>,
}

impl Executor for Payload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let why = self.replace(spec);
        // The shim waits for it; nobody else hears the error returned below.
        drop((&*self.error).write_all(why.as_bytes()));
        Err(ExecutorError::Other(why))
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        // Whether the program can be executed is best told by executing it.
        Ok(())
    }
}

impl Payload {
    /// Becomes the program; returns only why that failed.
    fn replace(&self, spec: &Spec) -> String {
        let args = spec.process().as_ref().and_then(|p| p.args().as_ref());
        let Some((program, args)) = args.and_then(|args| args.split_first()) else {
            return "no program to run".to_owned();
        };
        if let Some(procs) = &self.procs
            // "0" is the writing process itself (cgroups(7)).
            && let Err(e) = (&**procs).write_all(b"0")
        {
            return format!("join the unified cgroup: {e}");
        }
        // The container must not outlive its shim: nobody would log, reap or stop it.
        if let Err(e) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
            return format!("set the signal of the parent's death: {e}");
        }
        // The shim blocks the signals that it reads from a descriptor.
        if let Err(e) = SigSet::empty().thread_set_mask() {
            return format!("unblock signals: {e}");
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "replaces this process; exec also resets SIGPIPE, which Rust programs ignore"
        )]
        let error = std::process::Command::new(program).args(args).exec();
        format!("exec {program}: {}", exec_error(&error, program))
    }
}

/// In the words of other runtimes, which people search for.
fn exec_error(error: &io::Error, program: &str) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) if !program.contains('/') => {
            "executable file not found in $PATH".to_owned()
        }
        Some(errno) => errno.desc().to_lowercase(),
        None => error.to_string(),
    }
}
