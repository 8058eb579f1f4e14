//! The iptables backend: typed rules in chains named as kube-proxy names them.
//!
//! [`plan`] turns one decision into the chains and dispatch entries of its port, [`desired`] holds
//! them together with the [`dispatch`] trees, [`diff`] compares with what is in the kernel,
//! [`render`] writes the text of `iptables-restore`, [`apply`] runs it.

pub mod apply;
pub mod counters;
pub mod desired;
pub mod diff;
pub mod dispatch;
pub mod fixed;
pub mod names;
pub mod observe;
pub mod plan;
pub mod render;
pub mod rule;

#[cfg(test)]
mod tests;
