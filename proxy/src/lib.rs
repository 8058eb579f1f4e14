//! The service proxy of a node: from Services and EndpointSlices to rules in the kernel.
//!
//! ```text
//! watch -> store -> model -> decide -> backend::plan -> diff -> apply
//! ```

pub mod backend;
pub mod cluster_dns;
pub mod config;
pub mod conntrack;
pub mod events;
pub mod health;
pub mod kernel_settings;
pub mod local;
pub mod manifests;
pub mod metrics;
pub mod model;
pub mod node;
pub mod pace;
pub mod rules_watch;
pub mod run;
pub mod store;
pub mod sync;
pub mod trace;
pub mod watch;
