//! What the kubelet wants of a container runtime, as a trait: implemented by the real one (`real`) and by
//! the fake of the tests. All calls block and are made on threads for blocking work.

use std::os::fd::OwnedFd;

pub use runtime::{ContainerSpec, ExecSpec, SandboxSpec};

use crate::observed::Observed;
use crate::pod::PodId;

#[cfg(test)]
pub mod fake;
pub mod real;

/// What went wrong, as the runtime says it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RtError {
    /// Operation, object and cause.
    pub message: String,
    /// The object is not there.
    pub not_found: bool,
}

impl RtError {
    /// An error with this text.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            not_found: false,
        }
    }
}

/// Result of a runtime call.
pub type RtResult<T> = Result<T, RtError>;

/// An image's configuration, as far as the kubelet needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Its digest.
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
    /// ENTRYPOINT
    pub entrypoint: Vec<String>,
    /// CMD
    pub cmd: Vec<String>,
    /// USER (`uid`, `uid:gid` or names)
    pub user: String,
    /// Size of its layers, in bytes.
    pub size_bytes: u64,
}

/// One pod the runtime knows.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimePod {
    /// Which.
    pub pod: PodId,
    /// Its sandbox and containers (the sandbox's addresses are not known here).
    pub observed: Observed,
}

/// A change the runtime reports by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RtEvent {
    /// A container or sandbox of the pod with this uid began or ended.
    Changed(String),
    /// Events were lost: look at everything.
    All,
}

/// A program running in a container: its streams and its end.
pub struct ExecSession {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output (of a terminal: all output).
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
    /// Control of the program.
    pub control: Box<dyn ExecControl>,
}

/// Control of a program started by exec.
pub trait ExecControl: Send + Sync {
    /// Waits for its end; the exit code. Blocks.
    fn wait(&self) -> RtResult<i32>;
    /// Sets the size of its terminal.
    fn resize(&self, width: u16, height: u16) -> RtResult<()>;
    /// Ends it.
    fn kill(&self);
}

/// Signals to a container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The image's stop signal, or SIGTERM.
    Term,
    /// SIGKILL
    Kill,
}

/// The runtime as the kubelet sees it.
pub trait PodRuntime: Send + Sync {
    /// Everything there is.
    fn pods(&self) -> RtResult<Vec<RuntimePod>>;
    /// What there is of one pod.
    fn pod(&self, uid: &str) -> RtResult<Observed>;
    /// An image by name, when it is loaded.
    fn image(&self, name: &str) -> RtResult<Option<Image>>;
    /// All images.
    fn images(&self) -> RtResult<Vec<Image>>;
    /// Makes a sandbox; its id is the spec's.
    fn create_sandbox(&self, spec: SandboxSpec) -> RtResult<()>;
    /// Takes a sandbox down; not there is fine.
    fn remove_sandbox(&self, id: &str) -> RtResult<()>;
    /// Makes a container in a sandbox; its id is the spec's.
    fn create_container(&self, sandbox: &str, spec: ContainerSpec) -> RtResult<()>;
    /// Starts its program. After an error it has ended with reason `StartError`.
    fn start_container(&self, id: &str) -> RtResult<()>;
    /// Sends a signal; an ended container is fine.
    fn signal(&self, id: &str, signal: Signal) -> RtResult<()>;
    /// Forgets a container with its root file system; not there is fine.
    fn remove_container(&self, id: &str) -> RtResult<()>;
    /// Runs a program in a container.
    fn exec(&self, id: &str, spec: &ExecSpec) -> RtResult<ExecSession>;
    /// Connects to the streams of a container's own program.
    fn attach(&self, id: &str, stdin: bool) -> RtResult<ExecSession>;
    /// Reports changes until the receiver is dropped.
    fn watch(&self) -> RtResult<tokio::sync::mpsc::Receiver<RtEvent>>;
}

/// The id of run `attempt` of container `name`: unique on the node, the same whenever it is asked.
pub fn container_id(pod_uid: &str, name: &str, attempt: u32) -> String {
    const NAME_KEPT: usize = 12;
    let uid: String = pod_uid.chars().filter(|c| *c != '-').take(32).collect();
    if name.len() <= NAME_KEPT + 9 {
        return format!("{uid}-{name}-{attempt}");
    }
    // FNV-1a tells long names with the same beginning apart.
    let hash = name.bytes().fold(0x811c_9dc5u32, |h, b| {
        (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
    });
    format!("{uid}-{}-{hash:08x}-{attempt}", &name[..NAME_KEPT])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_tell_names_apart() {
        let uid = "0b9b4f8e-8f4e-4f39-9d0e-3d3b1d6f6a77";
        let (a, b) = ("x".repeat(62) + "a", "x".repeat(62) + "b");
        assert_ne!(container_id(uid, &a, 0), container_id(uid, &b, 0));
        assert!(container_id(uid, &a, 123_456).len() <= 64);
        assert!(container_id(uid, "web", 1).ends_with("-web-1"));
    }
}
