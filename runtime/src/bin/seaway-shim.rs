//! The shim of one pod.
fn main() {}
