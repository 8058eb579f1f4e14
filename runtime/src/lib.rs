//! The container runtime: images, root file systems, containers, exec, logs.
//!
//! [`Runtime`] is the handle that a kubelet (or a test) holds. It keeps everything in a state
//! directory and talks to one `seaway-shim` process for each pod, which holds the pod's namespaces,
//! starts its containers through libcontainer, writes their logs and sees them end. Containers do
//! not notice when the handle's process dies: the next [`Runtime::open`] of the same directory finds
//! them again.
//!
//! All calls block. They may be made from any thread, several at a time.
//!
//! Left out, on purpose: seccomp filters, user namespaces, AppArmor and SELinux labels, checkpoint
//! and restore, resource limits by systemd units.

mod client;
mod destroy;
mod error;
pub mod image;
mod limits;
pub mod log;
pub mod plan;
pub mod protocol;
mod runtime;
mod session;
pub mod shim;
mod state;
mod types;
mod watch;

pub use destroy::destroy_all;
pub use error::{Error, Result};
pub use image::{Image, ImageConfig, ImageStore};
pub use runtime::{Runtime, RuntimeConfig};
pub use session::ExecSession;
pub use types::{
    ContainerSpec, ContainerState, ContainerStatus, ExecSpec, Exit, Limits, Mount, Propagation,
    SandboxSpec, SandboxStatus, Security, User,
};
pub use watch::{Event, Watch};
