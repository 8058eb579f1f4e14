//! The API server, started in this process on the loopback, driven as clients drive it.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod access;
mod collections;
mod common;
mod crash;
mod objects;
mod restart;
mod services;
mod streams;
