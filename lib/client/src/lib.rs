//! A small client of the Kubernetes API for daemons: from a kubeconfig to list-and-watch streams of
//! any type that can be read from JSON, and to the few writes that daemons do.
//!
//! `kube` does the connection, TLS and authentication. Lists and watches are our own, because those
//! of `kube` want the full types: here a type holds only the fields that its user reads, objects are
//! read one by one out of the answer, and one that cannot be read is logged and left out without
//! stopping the others.

mod backoff;
mod config;
mod error;
pub mod events;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod flags;
mod requests;
mod resource;
mod watch;

#[cfg(test)]
mod tests;

pub use config::KubeconfigError;
pub use error::{Error, Result};
pub use requests::{Client, Patch};
pub use resource::{Resource, Selection};

/// A directive for `tracing`'s filter that silences a layer below, which logs every refused
/// connection as an error of its own. Ours are logged where they are dealt with.
pub const LOG_DIRECTIVE: &str = "kube_client::client::builder=off";
