//! HTTP: errors, bodies, paths, discovery, and the listener.

pub mod body;
pub mod discovery;
pub mod error;
pub mod inprocess;
pub mod listen;
pub mod negotiate;
pub mod path;
