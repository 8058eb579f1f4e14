//! The network of pods on one node: the CNI plugin (`request` -> `observe` -> `plan` -> `apply` ->
//! `result`) and the overlay daemon that joins the nodes.

pub mod apply;
pub mod conf;
pub mod ipam;
pub mod lease_store;
pub mod observe;
pub mod overlay;
pub mod plan;
pub mod request;
pub mod result;
pub mod step;
pub mod verbs;
