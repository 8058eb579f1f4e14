//! NetworkPolicy on a node: from policies, namespaces and pods to a table in the kernel.
//!
//! ```text
//! watch -> store -> parse -> model -> plan -> diff -> apply      (decide, trace: the same answers, without a kernel)
//! ```
//!
//! [`Enforcer`] is the whole of it for one node, synchronously; [`mod@run`] is its loop.

pub mod apply;
pub mod bridge;
pub mod cut;
pub mod decide;
pub mod diff;
pub mod enforcer;
pub mod model;
pub mod objects;
pub mod observe;
pub mod parse;
pub mod plan;
pub mod ranges;
pub mod run;
pub mod store;
pub mod trace;

#[cfg(test)]
mod testing;

/// The words of nf_tables in which plans are written: data, no socket.
pub(crate) mod nft {
    pub(crate) use linux::Mac;
    pub(crate) use linux::nftables::{
        Base, Chain, ChainKind, CmpOp, CtKey, DataType, Element, Expr, FibResult, Hook, MetaKey,
        Reg, Reject, Rule, Set, Value, Verdict, concat, fib,
    };
}

pub use bridge::Bridged;
pub use enforcer::{Enforcer, Options, Report};
pub use run::{Told, run};
