//! Chains and rules.

use super::encode;
use super::expr::{Expr, Verdict};
use super::{put_text, put_u32, userdata};
use crate::nfnetlink::{put, put_nested};

/// `NFTA_CHAIN_...`.
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;

/// `NFTA_RULE_...`.
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;

/// Where priorities of base chains stand (`linux/netfilter_ipv4.h`).
pub mod priority {
    /// Before connection tracking.
    pub const RAW: i32 = -300;
    /// `nft`'s `mangle`.
    pub const MANGLE: i32 = -150;
    /// Destinations are translated.
    pub const DSTNAT: i32 = -100;
    /// Where most filters are.
    pub const FILTER: i32 = 0;
    /// Sources are translated.
    pub const SRCNAT: i32 = 100;
}

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a connection, and translates.
    Nat,
    /// Has packets routed anew when it changed them.
    Route,
}

/// Where the kernel enters a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To a local process.
    Input,
    /// Through this machine.
    Forward,
    /// From a local process.
    Output,
    /// Before it leaves.
    Postrouting,
}

impl Hook {
    /// `NF_INET_...` of `linux/netfilter.h`; the same numbers for bridges.
    fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Kind, hook and priority; `None` for one that is only jumped to.
    pub base: Option<(ChainKind, Hook, i32)>,
    /// What happens at the end of a base chain: accept, or drop.
    pub drops: bool,
    /// The interface, for [`super::Family::Netdev`].
    pub device: Option<String>,
}

impl Chain {
    /// One that is jumped to.
    pub fn regular(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            base: None,
            drops: false,
            device: None,
        }
    }

    /// One that the kernel enters; it accepts at its end.
    pub fn base(name: impl Into<String>, kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self {
            base: Some((kind, hook, priority)),
            ..Self::regular(name)
        }
    }

    /// Writes the attributes behind the table's name.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_text(out, CHAIN_NAME, &self.name);
        let Some((kind, hook, priority)) = self.base else {
            return;
        };
        put_nested(out, CHAIN_HOOK, |out| {
            put_u32(out, HOOK_NUMBER, hook.number());
            put(out, HOOK_PRIORITY, &priority.to_be_bytes());
            if let Some(device) = &self.device {
                put_text(out, HOOK_DEVICE, device);
            }
        });
        let policy = if self.drops {
            Verdict::Drop
        } else {
            Verdict::Accept
        };
        put(out, CHAIN_POLICY, &policy.code().to_be_bytes());
        let kind = match kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        };
        put_text(out, CHAIN_TYPE, kind);
    }
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// What is tested and done, in order; a test that fails ends the rule.
    pub expressions: Vec<Expr>,
    /// Printed by `nft`, at most 253 bytes.
    pub comment: Option<String>,
}

impl Rule {
    /// Without a comment.
    pub fn new(expressions: impl IntoIterator<Item = Expr>) -> Self {
        Self {
            expressions: expressions.into_iter().collect(),
            comment: None,
        }
    }

    /// With a comment.
    #[must_use]
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = Some(text.into());
        self
    }

    /// The expressions as the kernel reads them: the same bytes for the same rule, always.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_expressions(&mut out);
        out
    }

    fn write_expressions(&self, out: &mut Vec<u8>) {
        for expression in &self.expressions {
            put_nested(out, LIST_ELEMENT, |out| encode::write(expression, out));
        }
    }

    /// Writes the attributes behind the names of table and chain.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_nested(out, RULE_EXPRESSIONS, |out| self.write_expressions(out));
        if let Some(comment) = &self.comment {
            let mut data = Vec::new();
            userdata::put_comment(&mut data, userdata::COMMENT, comment);
            put(out, RULE_USERDATA, &data);
        }
    }
}
