//! The overlay daemon's inside: pods of different nodes reach each other through VXLAN devices.
//!
//! `node` objects -> [`plan`] (pure: what this node should have) -> [`observe`] (what it has) ->
//! [`diff`] (pure: the changes) -> [`apply`]. Whenever a node changes or the kernel tells that one
//! of our objects did, the whole comparison is made again; what agrees costs nothing.
//!
//! Ours are: the devices `seaway.VNI` and `seaway-v6.VNI` with all that is on them, routes through
//! them with our protocol number, the chains `SEAWAY-POSTRTG` and `SEAWAY-FWD`, and the file
//! `10-seaway.conflist`. Annotations and layout are flannel's, so that nodes of both understand each
//! other.

pub mod apply;
pub mod conflist;
pub mod daemon;
pub mod diff;
pub mod events;
pub mod firewall;
pub mod model;
pub mod node;
pub mod nodes;
pub mod observe;
pub mod plan;
pub mod underlay;

#[cfg(test)]
mod tests;
