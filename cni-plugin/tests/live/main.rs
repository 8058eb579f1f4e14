//! The real binary on the real kernel, in network namespaces of the tests' own. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

mod compare;
mod containerd;
mod dhcp;
mod interop;
mod kill;
mod lab;
mod options;
mod ports;
mod state;
mod traffic;
mod units;
mod verbs;
