//! The one door to the Linux kernel. Everything in here is synchronous and returns errors that name
//! the operation and its object.

pub mod cgroup;
pub mod error;
pub mod exec;
pub mod mount;
pub mod notify;
pub mod process;

pub use error::{Error, Result};
