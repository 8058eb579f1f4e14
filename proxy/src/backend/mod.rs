//! Backends: each renders the same decisions into objects of the kernel and applies them.
//!
//! A backend plans (pure: decisions -> wanted objects), diffs (pure: wanted, known -> change) and
//! applies (the only part that touches the kernel).

pub mod iptables;
