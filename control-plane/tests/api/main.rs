//! The API server, started in this process on the loopback, driven as clients drive it.

mod access;
mod collections;
mod common;
mod objects;
mod restart;
mod services;
mod streams;
