//! The controllers and the scheduler of the control plane.
//!
//! They know the cluster only through a [`kube::Client`]: inside the `control-plane` binary that is an in-process
//! service, but the same code works over the network against any API server.
//!
//! ```text
//! watch (one per kind) -> view (caches, indexes) -> route (which keys are touched) -> queue
//!   -> reconcile(&View, key, now) -> Vec<Write>      pure: no clock, no I/O
//!   -> apply (the only place that writes)            -> answers go back into the view
//! ```
//!
//! One task owns the view and the queues (`engine::brain`), so no reconcile ever sees half an event. What a
//! write answered is put into the view before the key may run again: a controller never acts on a cache that is older
//! than its own last write, which is what upstream's "expectations" are for.

mod cache;
pub mod config;
mod daemonset;
mod deployment;
mod endpointslice;
mod engine;
mod gc;
mod job;
mod kinds;
mod meta;
mod namespace;
mod node;
mod note;
mod resources;
mod schedule;
mod serviceaccount;
mod statefulset;
mod view;
mod workload;
mod write;

#[cfg(test)]
mod fake;

pub use config::Config;
pub use engine::{Error, run};
pub use tokio_util::sync::CancellationToken;
