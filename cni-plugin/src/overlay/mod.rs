//! The overlay daemon's inside: pods of different nodes reach each other.
//!
//! [`netconf`] and flags say how ([`backend`]). `node` objects -> [`peers`] (who may have what) ->
//! [`plan`] (what this node should have) -> [`observe`] (what it has) -> [`diff`] (the changes) ->
//! [`apply`]; [`sync`] drives them, for everything or for one node or notification alone. All but
//! `observe` and `apply` are pure. [`paths`] measures what the ways to other nodes carry, by which
//! [`path`] makes routes fit.
//!
//! Ours are: the devices `seaway.VNI`, `seaway-v6.VNI`, `seaway-wg` and `seaway-wg-v6` with all that is
//! on them, routes with our protocol number, the firewall's rules under our names, and the file
//! `10-seaway.conflist`. Annotations and layout are flannel's, so that nodes of both understand each
//! other.

pub mod apply;
pub mod backend;
mod backoff;
pub mod checksum;
pub mod condition;
pub mod daemon;
pub mod diff;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod events;
pub mod files;
pub mod firewall;
pub mod flags;
pub mod health;
pub mod keys;
pub mod lease;
pub mod model;
pub mod netconf;
pub mod node;
pub mod nodes;
pub mod observe;
pub mod path;
pub mod paths;
pub mod peers;
pub mod plan;
pub mod pods;
pub mod sync;
pub mod underlay;
pub mod wall;

#[cfg(test)]
mod tests;
