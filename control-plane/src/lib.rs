//! The control plane: store, API server and, beside them in one process, scheduler and controllers.
//!
//! Requests flow one way: `http -> authn/authz -> admit -> store -> watch -> controllers, scheduler`,
//! whose writes come back through the same door. Objects stay JSON all the way, so fields this
//! program does not know survive.

pub mod admit;
pub mod app;
pub mod auth;
pub mod bootstrap;
pub mod http;
pub mod metrics;
pub mod pki;
pub mod rest;
pub mod server;
pub mod store;
pub mod streams;
pub mod upkeep;
