//! Follows a connection's first packet through the planned objects of a backend to its outcome,
//! without a kernel. Whatever a backend plans, its tracer must understand: rules are types, and
//! the match over them is exhaustive.

pub mod ebpf;
pub mod iptables;
pub mod ipvs;
pub mod nftables;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::model::Protocol;

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source address. One of the node's own means that the node itself sends.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
    /// The interface it comes from; none when the node itself sends.
    pub interface: Option<String>,
}

/// What the tracer must know of the node besides the plan.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// The node's own addresses, loopback left out (it always is one).
    pub local: Vec<IpAddr>,
    /// Endpoints to which the source has been sent before, for services with affinity.
    pub remembered: BTreeSet<SocketAddr>,
}

impl World {
    /// Whether the node itself has this address.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.local.contains(&ip)
    }
}

/// Where a packet ends up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// At an endpoint.
    Endpoint {
        /// The endpoint.
        address: SocketAddr,
        /// With the node's address as its source.
        masqueraded: bool,
    },
    /// Refused.
    Reject,
    /// Dropped.
    Drop,
    /// Not for a service: the kernel does with it what it would do without us.
    NoMatch,
}

impl fmt::Display for Fate {
    /// As the rows of the case files have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint {
                address,
                masqueraded,
            } => {
                write!(f, "{}:{}", address.ip(), address.port())?;
                if *masqueraded {
                    f.write_str("/m")?;
                }
                Ok(())
            }
            Self::Reject => f.write_str("REJECT"),
            Self::Drop => f.write_str("DROP"),
            Self::NoMatch => f.write_str("NONE"),
        }
    }
}

/// All that can happen to a packet: several fates where the choice is random.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome(pub BTreeSet<Fate>);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fate) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{fate}")?;
        }
        Ok(())
    }
}

/// Why a packet could not be traced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A rule jumps to a chain that is not planned.
    #[error("a rule jumps to chain {0}, which is not there")]
    NoChain(String),
    /// An expression that the tracer does not know.
    #[error("unknown: {0}")]
    Unknown(String),
    /// Chains lead into each other.
    #[error("more than {DEPTH_MAX} chains deep at {0}: a loop")]
    Loop(String),
}

/// The kernel's limit of nested jumps (`NFT_JUMP_STACK_SIZE`).
pub const DEPTH_MAX: usize = 16;
