//! The node agent: pods of one node, from the API server to the runtime and the pod network, and their
//! status back.
//!
//! ```text
//! pod (wanted) + runtime facts (observed) + what is remembered (soft) -> plan -> worker applies -> status -> API
//! ```
//! `plan` and `status` are pure and are computed anew after each event; a `worker` per pod applies what the
//! plan says and nothing else.

pub mod backoff;
pub mod checkpoint;
pub mod cni;
pub mod config;
pub mod context;
pub mod crilog;
pub mod dns;
pub mod downward;
pub mod env;
pub mod events;
pub mod kube_api;
pub mod manager;
pub mod node;
pub mod notice;
pub mod observed;
pub mod plan;
pub mod pod;
pub mod probe;
pub mod qos;
pub mod quantity;
pub mod rt;
pub mod run;
pub mod server;
pub mod services;
pub mod soft;
pub mod spec;
pub mod status;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod volumes;
pub mod worker;
