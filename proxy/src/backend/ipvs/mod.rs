//! The IPVS backend: virtual servers of the kernel, their addresses on a dummy device, and a few
//! rules over sets for what virtual servers cannot tell apart.
//!
//! [`plan`] turns one decision into virtual servers and set entries, [`desired`] holds those of all
//! ports together, [`diff`] compares with what is in the kernel, [`apply`] writes it in an order that
//! leaves no gap. [`rules`] are the same whatever services exist; [`filter`] keeps them and the sets in
//! the kernel, by nf_tables or by ipset and iptables. `docs/packet-paths/ipvs.md` is the whole picture.

pub mod apply;
pub mod desired;
pub mod diff;
pub mod filter;
pub mod kernel;
mod open;
pub mod plan;
pub mod rules;
pub mod sets;
pub mod sysctls;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use open::{is_there, open};

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use linux::ipvs::{Options as ServerOptions, Scheduler, Timeouts};

/// The dummy device that holds the services' addresses, named as kube-proxy names it.
pub const DEVICE: &str = "kube-ipvs0";

/// What only this mode asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// How an endpoint is chosen.
    pub scheduler: Scheduler,
    /// The scheduler's flags; `None`: as kube-proxy sets them.
    pub flags: Option<ServerOptions>,
    /// The node answers ARP for addresses only on the device that has them.
    pub strict_arp: bool,
    /// Virtual servers with addresses in here are never touched.
    pub exclude: Vec<IpNetwork>,
    /// Time-outs of connections; zero: as they are.
    pub timeouts: Timeouts,
}

impl Options {
    /// The options of every virtual server.
    pub fn of_servers(&self) -> ServerOptions {
        self.flags.unwrap_or(ServerOptions {
            // Clients behind one address are spread by their ports.
            hash_port: self.scheduler == Scheduler::Mh,
            ..ServerOptions::default()
        })
    }

    /// Whether a virtual server at `ip` is somebody else's.
    pub fn excludes(&self, ip: IpAddr) -> bool {
        api::cidr::any_contains(&self.exclude, ip)
    }
}
