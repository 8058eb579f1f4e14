//! What the rules look up: sets by name, and their entries.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use linux::ipvs::Protocol as Transport;
pub use linux::ipvs::ServerId;

use crate::model::Protocol;

/// Where packets for a service arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Address.
    pub ip: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

impl Key {
    /// The virtual server of this address.
    pub fn server(self) -> ServerId {
        ServerId::Address {
            protocol: transport(self.protocol),
            ip: self.ip,
            port: self.port,
        }
    }

    /// The address of a virtual server that has one.
    pub fn of(id: ServerId) -> Option<Self> {
        match id {
            ServerId::Address { protocol, ip, port } => Some(Self {
                ip,
                protocol: match protocol {
                    Transport::Tcp => Protocol::Tcp,
                    Transport::Udp => Protocol::Udp,
                    Transport::Sctp => Protocol::Sctp,
                },
                port,
            }),
            ServerId::Mark { .. } => None,
        }
    }
}

/// As the kernel's load balancer calls a protocol.
pub fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    }
}

/// A set, or the one map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// Addresses of services on the dummy device.
    Addresses,
    /// Where services are: address, protocol, port.
    Frontends,
    /// To the mark of the virtual server that pods and the node use there, in place of outsiders'.
    Inside,
    /// Masqueraded whoever comes.
    MasqueradeAll,
    /// Masqueraded unless a pod comes.
    MasqueradeStrangers,
    /// Refused: there is no endpoint.
    Refuse,
    /// Dropped whoever comes.
    DropAll,
    /// Dropped unless a pod or the node comes.
    DropOutside,
    /// Only for some sources.
    Restricted,
    /// Those sources: address, protocol, port, source.
    Allowed,
    /// Endpoints on this node, which may reach themselves: source and destination.
    Hairpin,
    /// Where this process answers health checks of services.
    HealthChecks,
}

impl SetId {
    /// All, in order.
    pub const ALL: [Self; 12] = [
        Self::Addresses,
        Self::Frontends,
        Self::Inside,
        Self::MasqueradeAll,
        Self::MasqueradeStrangers,
        Self::Refuse,
        Self::DropAll,
        Self::DropOutside,
        Self::Restricted,
        Self::Allowed,
        Self::Hairpin,
        Self::HealthChecks,
    ];

    /// Whether what is in it is kept out.
    pub fn denies(self) -> bool {
        match self {
            Self::Refuse | Self::DropAll | Self::DropOutside | Self::Restricted => true,
            Self::Addresses
            | Self::Frontends
            | Self::Inside
            | Self::MasqueradeAll
            | Self::MasqueradeStrangers
            | Self::Allowed
            | Self::Hairpin
            | Self::HealthChecks => false,
        }
    }

    /// What it is called in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Addresses => "addresses",
            Self::Frontends => "frontends",
            Self::Inside => "inside",
            Self::MasqueradeAll => "masq-all",
            Self::MasqueradeStrangers => "masq-strangers",
            Self::Refuse => "refuse",
            Self::DropAll => "drop-all",
            Self::DropOutside => "drop-outside",
            Self::Restricted => "restricted",
            Self::Allowed => "allowed",
            Self::Hairpin => "hairpin",
            Self::HealthChecks => "health-checks",
        }
    }

    /// By name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// An address; of [`SetId::Hairpin`]: as source and as destination.
    Ip(IpAddr),
    /// Address, protocol and port.
    Key(Key),
    /// The same, and who may come.
    From(Key, IpNetwork),
    /// The same, and the mark it maps to.
    Mark(Key, u32),
}

/// An element of a set.
pub type Entry = (SetId, Element);
