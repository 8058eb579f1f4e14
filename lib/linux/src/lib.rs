//! The one door to the Linux kernel. Everything in here is synchronous and returns errors that name
//! the operation and its object.

pub mod addr;
pub mod bpf;
pub mod btf;
pub mod cgroup;
pub mod conntrack;
pub mod echo;
pub mod error;
pub mod ethtool;
pub mod exec;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod far_end;
pub mod fdb;
mod genl;
pub mod host;
pub mod ipset;
pub mod iptables;
pub mod ipvs;
pub mod kernel;
pub mod link;
pub mod link_monitor;
pub mod mac;
pub mod memory;
pub mod mount;
pub mod neigh;
pub mod netlink;
pub mod netns;
pub mod nfacct;
mod nfnetlink;
pub mod nftables;
pub mod notify;
pub mod patience;
pub mod process;
pub mod route;
pub mod shape;
pub mod sock_diag;
pub mod sysctl;
pub mod tc_bpf;
pub mod wireguard;

pub use error::{Error, Result};
pub use host::{Host, Replacement};
pub use kernel::Kernel;
pub use mac::Mac;
pub use netns::{NetNs, NsRef};
