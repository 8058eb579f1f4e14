//! Rules as types: what a rule can match and do here, and no more. Rendering and tracing match on
//! these exhaustively, so a new match cannot be forgotten in either.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::model::Protocol;

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Refuses and drops. First, so that it is written before address translation ends.
    Filter,
    /// Translates addresses.
    Nat,
    /// Holds only a canary.
    Mangle,
}

impl Table {
    /// All, in the order in which they are written.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Nat, Self::Mangle];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Mangle => "mangle",
        }
    }
}

/// Name of a chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(Arc<str>);

impl ChainName {
    /// From text; the kernel's limit is 28 characters.
    pub fn new(name: &str) -> Self {
        debug_assert!(name.len() <= super::names::CHAIN_NAME_MAX, "{name}");
        Self(name.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A chain in its table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainRef {
    /// Table.
    pub table: Table,
    /// Name.
    pub name: ChainName,
}

impl ChainRef {
    /// From parts.
    pub fn new(table: Table, name: &str) -> Self {
        Self {
            table,
            name: ChainName::new(name),
        }
    }

    /// The same, sharing no memory.
    pub fn copied(&self) -> Self {
        Self::new(self.table, self.name.as_str())
    }

    /// In the nat table.
    pub fn nat(name: ChainName) -> Self {
        Self {
            table: Table::Nat,
            name,
        }
    }
}

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Match {
    /// Source address.
    Source {
        /// In this network.
        net: IpNetwork,
        /// Or rather not.
        not: bool,
    },
    /// Destination address.
    Destination {
        /// In this network.
        net: IpNetwork,
        /// Or rather not.
        not: bool,
    },
    /// Protocol, any port.
    Protocol(Protocol),
    /// Protocol and destination ports, both ends included.
    Ports(Protocol, u16, u16),
    /// The source is an address of this host.
    SourceIsLocal,
    /// The destination is an address of this host.
    DestinationIsLocal,
    /// The bit of the packet's mark is set.
    Marked {
        /// The bit.
        bit: u32,
        /// Or rather not.
        not: bool,
    },
    /// Conntrack: first packet of a connection.
    StateNew,
    /// Conntrack: a packet that fits no connection.
    StateInvalid,
    /// Conntrack: belongs to a connection that has seen replies, or is related to one.
    StateEstablished,
    /// Conntrack: neither established nor related nor with a translated destination.
    StateForeign,
    /// Conntrack: the destination of the connection's first packet, before it was translated.
    FirstDestination(IpNetwork),
    /// Counts the packet into a counter with this name; always true.
    Counted(&'static str),
    /// True for one of this many packets, at random.
    OneOf(u32),
    /// The source was put into the list within the last seconds.
    Seen {
        /// The list.
        list: ChainName,
        /// For how long it stays.
        seconds: u32,
    },
    /// Puts the source into the list; always true.
    Remember {
        /// The list.
        list: ChainName,
    },
    /// Arrived on an interface.
    Arrived {
        /// Its name.
        interface: String,
        /// Or just its first letters.
        prefix: bool,
        /// Or rather not.
        not: bool,
    },
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Goes on in another chain, and comes back if that one does not decide.
    Jump(ChainName),
    /// Back to the chain it came from.
    Return,
    /// Nothing: what its matches did is all.
    Continue,
    /// Passes.
    Accept,
    /// Is dropped.
    Drop,
    /// Is refused.
    Reject {
        /// With a reset, for TCP: a client that is just sending takes ICMP for a passing trouble and
        /// tries again after a second, and the kernel sends only so many ICMP messages a second.
        /// Otherwise with ICMP port unreachable.
        tcp_reset: bool,
    },
    /// Sets the bit in the mark, and goes on.
    SetMark(u32),
    /// Turns the bit of the mark over, and goes on.
    FlipMark(u32),
    /// The source becomes this host's address.
    Masquerade {
        /// With a port chosen at random.
        random_fully: bool,
    },
    /// The destination becomes this.
    Dnat {
        /// Address.
        ip: IpAddr,
        /// Port.
        port: u16,
    },
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// For people.
    pub comment: Option<Arc<str>>,
    /// All must hold.
    pub matches: Vec<Match>,
    /// Then this is done.
    pub target: Target,
}

impl Rule {
    /// A rule without comment.
    pub fn new(matches: impl Into<Vec<Match>>, target: Target) -> Self {
        Self {
            comment: None,
            matches: matches.into(),
            target,
        }
    }

    /// A jump.
    pub fn jump(matches: impl Into<Vec<Match>>, to: &ChainName) -> Self {
        Self::new(matches, Target::Jump(to.clone()))
    }

    /// With a comment.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<Arc<str>>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

/// A rule of ours in a chain of the kernel's, which leads into our chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The built-in chain.
    pub chain: ChainRef,
    /// The rule: a jump.
    pub rule: Rule,
}

impl Hook {
    /// Where it leads.
    pub fn target(&self) -> Option<&ChainName> {
        match &self.rule.target {
            Target::Jump(to) => Some(to),
            Target::Return
            | Target::Continue
            | Target::Accept
            | Target::Drop
            | Target::Reject { .. }
            | Target::SetMark(_)
            | Target::FlipMark(_)
            | Target::Masquerade { .. }
            | Target::Dnat { .. } => None,
        }
    }
}

/// `-s`: this one address.
pub fn from(ip: IpAddr) -> Match {
    Match::Source {
        net: ip.into(),
        not: false,
    }
}

/// `-d`: this one address.
pub fn to(ip: IpAddr) -> Match {
    Match::Destination {
        net: ip.into(),
        not: false,
    }
}

/// This one destination port.
pub fn port(protocol: Protocol, port: u16) -> Match {
    Match::Ports(protocol, port, port)
}
