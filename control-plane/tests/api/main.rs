//! The API server, started in this process on the loopback, driven as clients drive it.

mod collections;
mod common;
mod objects;
