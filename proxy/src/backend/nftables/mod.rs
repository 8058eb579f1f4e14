//! The nftables backend: one table of our own, whose rules never change with services.
//!
//! [`plan`] turns one decision into the elements of its port, [`desired`] holds those of all ports
//! and what they share, [`diff`] compares with what is in the kernel, [`apply`] writes the
//! difference as netlink transactions. [`fixed`] are the chains and rules, [`sets`] the sets and
//! maps, [`item`] their elements as types. docs/packet-paths/nftables.md says why the shape is so.

pub mod apply;
pub mod desired;
pub mod diff;
pub mod dump;
pub mod fixed;
pub mod item;
pub mod observe;
pub mod picks;
pub mod plan;
pub mod sets;
mod steps;
pub mod suspects;

#[cfg(test)]
pub(super) mod tests;

use api::cidr::Family;
use linux::nftables::{self, TableRef};

/// What rules and elements are made of: data, whoever reads it.
pub mod wire {
    pub use linux::nftables::{
        Base, Chain, CmpOp, CtKey, DynsetOp, Element, Expr, FibResult, Hook, MetaKey, NatKind, Reg,
        Rule, Value, Verdict, concat, fib,
    };
}

/// The one table of ours, in each family.
pub const TABLE: &str = "seaway-proxy";

/// The table of a family.
pub fn table(family: Family) -> TableRef {
    TableRef::new(kernel_family(family), TABLE)
}

/// A family as the kernel numbers it.
pub fn kernel_family(family: Family) -> nftables::Family {
    match family {
        Family::V4 => nftables::Family::Ipv4,
        Family::V6 => nftables::Family::Ipv6,
    }
}
