//! The eBPF mode: services as entries of maps, translated by programs at sockets (pods and the node
//! itself) and at interfaces (clients outside).
//!
//! [`plan`] turns one decision into what its port needs, [`desired`] keeps that for all ports,
//! [`diff`] says which entries to write and in which order, [`apply`] does it. [`object`] loads the
//! programs and pins maps, [`layouts`] takes over those of other versions, [`links`] attaches them, [`xdp`] one more where that is asked for. [`probe`]
//! asks the kernel for what all this needs. Keys, values and verdicts are those of
//! `ebpf_common`, which the programs in the kernel share.

pub mod apply;
pub mod clsact;
pub mod desired;
pub mod diff;
pub mod layouts;
pub mod links;
pub mod migrate;
pub mod node;
pub mod object;
pub mod observe;
pub mod plan;
pub mod probe;
pub mod sizes;
pub mod stats;
pub mod table;
pub mod vanished;
pub mod xdp;

#[cfg(test)]
mod properties;

use std::path::PathBuf;

/// How programs are attached to interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// By links (Linux 6.6).
    Tcx,
    /// As filters of the queueing discipline `clsact`.
    Clsact,
}

/// Where the mode attaches and pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Directory of the control group whose sockets are translated; `None`: the root of cgroup v2.
    pub cgroup: Option<PathBuf>,
    /// Directory on a BPF file system; this node's own part of it is below.
    pub pin_dir: PathBuf,
    /// Name of the node, so that several can share `pin_dir`.
    pub node: String,
    /// Flows of clients outside that are tracked; `None`: by the machine's memory.
    pub flows_max: Option<u32>,
    /// How programs are attached to interfaces; `None`: by links where the kernel has them.
    pub attach: Option<Attach>,
    /// Where a program before the network stack runs; `None`: there is none.
    pub xdp: Option<xdp::Mode>,
}
