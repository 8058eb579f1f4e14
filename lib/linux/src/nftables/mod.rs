//! nf_tables over netlink (`linux/netfilter/nf_tables.h`), without the program `nft`.
//!
//! A [`Batch`] holds changes that the kernel makes all together or not at all. [`Nftables`] commits
//! batches and lists what a table has. What a rule does is a list of [`Expr`]; sets and maps have
//! the key types that `nft list ruleset` needs to print them well. [`Monitor`] tells who else
//! changes tables.
//!
//! ```no_run
//! use linux::nftables::{Batch, Chain, Expr, Family, Nftables, Rule, TableRef, Verdict};
//!
//! let table = TableRef::new(Family::Ipv4, "mine");
//! let mut batch = Batch::new();
//! batch.add_table(&table, Some("rules of mine"));
//! batch.add_chain(&table, &Chain::regular("all"));
//! batch.add_rule(&table, "all", &Rule::new([Expr::Verdict(Verdict::Accept)]));
//! Nftables::open()?.commit(&batch)?;
//! # Ok::<(), linux::Error>(())
//! ```

mod batch;
mod chain;
mod dump;
mod encode;
mod expr;
mod monitor;
mod set;
mod userdata;

use std::fmt;

pub use batch::{Batch, ELEMENTS_BYTES_MAX};
pub use chain::{Chain, ChainKind, Hook, Rule, priority};
pub use dump::{Generation, ListedChain, ListedRule, ListedSet, Nftables};
pub use expr::{
    Base, CmpOp, CtKey, DynsetOp, Expr, FibResult, LimitUnit, MetaKey, NatFlags, NatKind, Reg,
    Reject, Verdict, fib,
};
pub use monitor::{Edit, Elements, Monitor, Notice, Subject};
pub use set::{DataType, Element, Set, Value, concat};

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// Frames that cross a bridge.
    Bridge,
    /// Frames of one interface.
    Netdev,
}

impl Family {
    /// `NFPROTO_...` of `linux/netfilter.h`.
    pub fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ipv4 => 2,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ipv6 => 10,
        }
    }

    /// The family of a number.
    pub fn of(number: u8) -> Option<Self> {
        [
            Self::Inet,
            Self::Ipv4,
            Self::Ipv6,
            Self::Bridge,
            Self::Netdev,
        ]
        .into_iter()
        .find(|family| family.number() == number)
    }
}

impl fmt::Display for Family {
    /// As `nft` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        })
    }
}

/// A table's family and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableRef {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: String,
}

impl TableRef {
    /// From its parts.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self {
            family,
            name: name.into(),
        }
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// Messages: subsystem `NFNL_SUBSYS_NFTABLES` in the upper byte.
mod message {
    pub(super) const NEW_TABLE: u16 = 0xa00;
    pub(super) const GET_TABLE: u16 = 0xa01;
    pub(super) const DELETE_TABLE: u16 = 0xa02;
    pub(super) const NEW_CHAIN: u16 = 0xa03;
    pub(super) const GET_CHAIN: u16 = 0xa04;
    pub(super) const DELETE_CHAIN: u16 = 0xa05;
    pub(super) const NEW_RULE: u16 = 0xa06;
    pub(super) const GET_RULE: u16 = 0xa07;
    pub(super) const DELETE_RULE: u16 = 0xa08;
    pub(super) const NEW_SET: u16 = 0xa09;
    pub(super) const GET_SET: u16 = 0xa0a;
    pub(super) const DELETE_SET: u16 = 0xa0b;
    pub(super) const NEW_ELEMENTS: u16 = 0xa0c;
    pub(super) const GET_ELEMENTS: u16 = 0xa0d;
    pub(super) const DELETE_ELEMENTS: u16 = 0xa0e;
    pub(super) const NEW_GENERATION: u16 = 0xa0f;
    pub(super) const GET_GENERATION: u16 = 0xa10;
}

/// Writes a string with the NUL that the kernel expects.
fn put_text(out: &mut Vec<u8>, kind: u16, text: &str) {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend(text.as_bytes());
    bytes.push(0);
    crate::nfnetlink::put(out, kind, &bytes);
}

fn put_u32(out: &mut Vec<u8>, kind: u16, value: u32) {
    crate::nfnetlink::put(out, kind, &value.to_be_bytes());
}

fn put_u64(out: &mut Vec<u8>, kind: u16, value: u64) {
    crate::nfnetlink::put(out, kind, &value.to_be_bytes());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(crate::nfnetlink::trim_nul(bytes)).into_owned()
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn u64_of(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
