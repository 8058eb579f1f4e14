//! The network of pods on one node: the CNI plugin (`request` -> `observe` -> `plan` -> `apply` ->
//! `result`) and the overlay daemon that joins the nodes.

pub mod apply;
pub mod audit;
pub mod conf;
pub mod delegate;
pub mod firewall;
pub mod flannel;
pub mod install;
pub mod ipam;
pub mod lease_store;
pub mod loopback;
pub mod observe;
pub mod overlay;
pub mod plan;
pub mod request;
pub mod result;
pub mod role;
pub mod step;
pub mod verbs;
