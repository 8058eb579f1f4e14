//! What rules test and do, and how the kernel reads it.

use std::net::IpAddr;
use std::time::Duration;

/// A register of 32 bits; what is longer fills those behind it, too. There are 16. They do not
/// outlive a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(u8);

impl Reg {
    /// How many there are.
    pub const COUNT: u8 = 16;

    /// Number `n`, below [`Reg::COUNT`].
    pub const fn at(n: u8) -> Self {
        assert!(n < Self::COUNT, "there are 16 registers");
        Self(n)
    }

    /// Its number.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Its number for the kernel, from `NFT_REG32_00` on.
    pub(super) fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// Where a packet goes on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Past this base chain.
    Accept,
    /// Nowhere.
    Drop,
    /// At the next rule.
    Continue,
    /// Behind the rule that jumped here.
    Return,
    /// In another chain, then behind this rule.
    Jump(String),
    /// In another chain, then where this chain would have gone on.
    Goto(String),
}

impl Verdict {
    /// `NF_...` and `NFT_...` of the kernel's headers.
    pub(super) fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Continue => -1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }
}

/// What offsets in a packet count from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Base {
    /// Ethernet header.
    Link,
    /// IP header.
    Network,
    /// TCP, UDP, SCTP or ICMP header.
    Transport,
}

/// What belongs to a packet but is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MetaKey {
    /// Mark, in host order.
    Mark,
    /// Priority, in host order.
    Priority,
    /// Name of the interface it came from, 16 bytes.
    InputInterface,
    /// Name of the interface it leaves by, 16 bytes.
    OutputInterface,
    /// `NFPROTO_...`, a byte.
    NfProtocol,
    /// Transport protocol, a byte.
    L4Protocol,
    /// Packet type (unicast to us, broadcast...), a byte.
    PacketType,
    /// Ethernet's protocol, 2 bytes.
    EtherType,
}

impl MetaKey {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::EtherType => 1,
            Self::Priority => 2,
            Self::Mark => 3,
            Self::InputInterface => 6,
            Self::OutputInterface => 7,
            Self::NfProtocol => 15,
            Self::L4Protocol => 16,
            Self::PacketType => 19,
        }
    }
}

/// What connection tracking knows of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CtKey {
    /// State, bits: 1 invalid, 2 established, 4 related, 8 new, 64 untracked.
    State,
    /// Direction, a byte: 0 original, 1 reply.
    Direction,
    /// `IPS_...` bits: 16 source and 32 destination translated.
    Status,
    /// The connection's mark.
    Mark,
    /// Source port as the first packet had it.
    OriginalSourcePort,
    /// Destination port as the first packet had it.
    OriginalPort,
    /// IPv4 source as the first packet had it.
    OriginalSource4,
    /// IPv6 source as the first packet had it.
    OriginalSource6,
    /// IPv4 destination as the first packet had it.
    OriginalDestination4,
    /// IPv6 destination as the first packet had it.
    OriginalDestination6,
}

impl CtKey {
    /// `NFT_CT_...`, and whether a direction is to be named.
    pub(super) fn number(self) -> (u32, bool) {
        match self {
            Self::State => (0, false),
            Self::Direction => (1, false),
            Self::Status => (2, false),
            Self::Mark => (3, false),
            Self::OriginalSourcePort => (11, true),
            Self::OriginalPort => (12, true),
            Self::OriginalSource4 => (19, true),
            Self::OriginalDestination4 => (20, true),
            Self::OriginalSource6 => (21, true),
            Self::OriginalDestination6 => (22, true),
        }
    }
}

/// How a register is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Different.
    Ne,
    /// Less, as bytes.
    Lt,
    /// Less or equal, as bytes.
    Le,
    /// Greater, as bytes.
    Gt,
    /// Greater or equal, as bytes.
    Ge,
}

/// What is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatKind {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// How a port is chosen (`NF_NAT_RANGE_...`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NatFlags {
    /// A random port.
    pub random: bool,
    /// A random port that nobody can guess.
    pub fully_random: bool,
    /// The same for each pair of addresses.
    pub persistent: bool,
}

impl NatFlags {
    pub(super) fn bits(self) -> u32 {
        u32::from(self.random) << 2
            | u32::from(self.persistent) << 3
            | u32::from(self.fully_random) << 4
    }
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reject {
    /// By a TCP reset.
    TcpReset,
    /// By an ICMP or ICMPv6 message with this code, as the table's family has it.
    Icmp(u8),
    /// "Port unreachable" of whichever family the packet is; in tables of both.
    PortUnreachable,
}

/// What is done to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DynsetOp {
    /// An element is added unless it is there.
    Add,
    /// An element is added, or its time starts anew. Its value stays.
    Update,
    /// An element is taken away.
    Delete,
}

/// Flags of [`Expr::Fib`].
pub mod fib {
    /// Look up the source.
    pub const SOURCE: u32 = 1;
    /// Look up the destination.
    pub const DESTINATION: u32 = 1 << 1;
    /// Among addresses of the interface the packet came from.
    pub const INPUT_INTERFACE: u32 = 1 << 3;
    /// `RTN_LOCAL`: the type of an address of this machine, a number in host order.
    pub const LOCAL: u32 = 2;
}

/// What a look-up in the routing tables gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FibResult {
    /// Index of the interface.
    Interface,
    /// Type of the address, `RTN_...` in host order.
    AddressType,
}

/// What a rate is per.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LimitUnit {
    /// Second.
    Second,
    /// Minute.
    Minute,
}

/// One step of a rule. A test that fails, and a value that is not there, ends the rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expr {
    /// Bytes of the packet.
    Payload {
        /// What the offset counts from.
        base: Base,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        length: u32,
        /// Where to.
        to: Reg,
    },
    /// Changes bytes of the packet; no checksum follows.
    SetPayload {
        /// What the offset counts from.
        base: Base,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        length: u32,
        /// From where.
        from: Reg,
    },
    /// What belongs to the packet.
    Meta {
        /// Which.
        key: MetaKey,
        /// Where to.
        to: Reg,
    },
    /// Changes what belongs to the packet.
    SetMeta {
        /// Which.
        key: MetaKey,
        /// From where.
        from: Reg,
    },
    /// What connection tracking knows.
    Ct {
        /// Which.
        key: CtKey,
        /// Where to.
        to: Reg,
    },
    /// Changes what connection tracking knows.
    SetCt {
        /// Which.
        key: CtKey,
        /// From where.
        from: Reg,
    },
    /// Compares.
    Cmp {
        /// Register.
        reg: Reg,
        /// How.
        op: CmpOp,
        /// With what.
        value: Vec<u8>,
    },
    /// `to = (from & mask) ^ xor`.
    Bitwise {
        /// From where.
        from: Reg,
        /// Where to.
        to: Reg,
        /// As long as `xor`.
        mask: Vec<u8>,
        /// As long as `mask`.
        xor: Vec<u8>,
    },
    /// Whether a key is in a set.
    Lookup {
        /// Set.
        set: String,
        /// Key.
        key: Reg,
        /// Whether it is not.
        not: bool,
    },
    /// What a key leads to in a map.
    Map {
        /// Map.
        map: String,
        /// Key.
        key: Reg,
        /// Where to.
        to: Reg,
    },
    /// Goes on where a key leads to in a verdict map.
    VerdictMap {
        /// Map.
        map: String,
        /// Key.
        key: Reg,
    },
    /// A constant.
    Immediate {
        /// Where to.
        to: Reg,
        /// Bytes.
        value: Vec<u8>,
    },
    /// Where to go on.
    Verdict(Verdict),
    /// Translates an address, a port, or both.
    Nat {
        /// What.
        kind: NatKind,
        /// Family of the address.
        family: super::Family,
        /// Address.
        address: Option<Reg>,
        /// Last address of a range.
        address_last: Option<Reg>,
        /// Port.
        port: Option<Reg>,
        /// Last port of a range.
        port_last: Option<Reg>,
        /// How a port is chosen.
        flags: NatFlags,
    },
    /// The source becomes the address of the interface by which the packet leaves.
    Masquerade(NatFlags),
    /// The destination becomes this machine.
    Redirect {
        /// Port.
        port: Option<Reg>,
        /// How a port is chosen.
        flags: NatFlags,
    },
    /// Refuses.
    Reject(Reject),
    /// A number below `modulus`, plus `offset`, in host order.
    Numgen {
        /// Random, or one after the other.
        random: bool,
        /// Above 0.
        modulus: u32,
        /// Added.
        offset: u32,
        /// Where to.
        to: Reg,
    },
    /// Jenkins' hash of a register, below `modulus`, plus `offset`, in host order.
    Hash {
        /// Register.
        from: Reg,
        /// Bytes to hash.
        length: u32,
        /// Above 0.
        modulus: u32,
        /// Seed.
        seed: u32,
        /// Added.
        offset: u32,
        /// Where to.
        to: Reg,
    },
    /// Changes a dynamic set.
    Dynset {
        /// How.
        op: DynsetOp,
        /// Set or map.
        set: String,
        /// Key.
        key: Reg,
        /// Value, in a map.
        data: Option<Reg>,
        /// How long the element stays.
        timeout: Option<Duration>,
    },
    /// Looks addresses up in the routing tables.
    Fib {
        /// Bits of [`fib`].
        flags: u32,
        /// What is wanted.
        result: FibResult,
        /// Where to.
        to: Reg,
    },
    /// Whether the packets are within a rate.
    Limit {
        /// Packets per unit.
        rate: u64,
        /// Unit.
        unit: LimitUnit,
        /// Packets at once.
        burst: u32,
        /// Whether they are above it.
        over: bool,
    },
    /// Counts packets and bytes.
    Counter,
    /// Logs to the kernel's log.
    Log {
        /// In front of the line.
        prefix: String,
    },
    /// Keeps the packet out of connection tracking.
    Notrack,
}

/// Bytes of an address, as packets have them.
pub(crate) fn address_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

impl Expr {
    /// The source address of an IPv4 or IPv6 header.
    pub fn source(v6: bool, to: Reg) -> Self {
        let (offset, length) = if v6 { (8, 16) } else { (12, 4) };
        Self::network(offset, length, to)
    }

    /// The destination address of an IPv4 or IPv6 header.
    pub fn destination(v6: bool, to: Reg) -> Self {
        let (offset, length) = if v6 { (24, 16) } else { (16, 4) };
        Self::network(offset, length, to)
    }

    /// Bytes of the IP header.
    pub fn network(offset: u32, length: u32, to: Reg) -> Self {
        Self::Payload {
            base: Base::Network,
            offset,
            length,
            to,
        }
    }

    /// The source port.
    pub fn source_port(to: Reg) -> Self {
        Self::transport(0, 2, to)
    }

    /// The destination port.
    pub fn destination_port(to: Reg) -> Self {
        Self::transport(2, 2, to)
    }

    fn transport(offset: u32, length: u32, to: Reg) -> Self {
        Self::Payload {
            base: Base::Transport,
            offset,
            length,
            to,
        }
    }

    /// Whether a register holds `value`.
    pub fn equals(reg: Reg, value: impl Into<Vec<u8>>) -> Self {
        Self::Cmp {
            reg,
            op: CmpOp::Eq,
            value: value.into(),
        }
    }

    /// Whether a register holds something else than `value`.
    pub fn differs(reg: Reg, value: impl Into<Vec<u8>>) -> Self {
        Self::Cmp {
            reg,
            op: CmpOp::Ne,
            value: value.into(),
        }
    }

    /// `reg &= mask`.
    pub fn and(reg: Reg, mask: impl Into<Vec<u8>>) -> Self {
        let mask = mask.into();
        Self::Bitwise {
            from: reg,
            to: reg,
            xor: vec![0; mask.len()],
            mask,
        }
    }

    /// `reg |= bits`.
    pub fn or(reg: Reg, bits: impl Into<Vec<u8>>) -> Self {
        let bits = bits.into();
        Self::Bitwise {
            from: reg,
            to: reg,
            mask: bits.iter().map(|byte| !byte).collect(),
            xor: bits,
        }
    }

    /// An address, to compare with or to translate to.
    pub fn address(to: Reg, ip: IpAddr) -> Self {
        Self::Immediate {
            to,
            value: address_bytes(ip),
        }
    }

    /// The kernel's name of it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } | Self::SetPayload { .. } => "payload",
            Self::Meta { .. } | Self::SetMeta { .. } => "meta",
            Self::Ct { .. } | Self::SetCt { .. } => "ct",
            Self::Cmp { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Lookup { .. } | Self::Map { .. } | Self::VerdictMap { .. } => "lookup",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Nat { .. } => "nat",
            Self::Masquerade(_) => "masq",
            Self::Redirect { .. } => "redir",
            Self::Reject(_) => "reject",
            Self::Numgen { .. } => "numgen",
            Self::Hash { .. } => "hash",
            Self::Dynset { .. } => "dynset",
            Self::Fib { .. } => "fib",
            Self::Limit { .. } => "limit",
            Self::Counter => "counter",
            Self::Log { .. } => "log",
            Self::Notrack => "notrack",
        }
    }
}
