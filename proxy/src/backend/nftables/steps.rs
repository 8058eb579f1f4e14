//! Steps that many rules have in common.

use linux::nftables::{Expr, MetaKey, Reg, Verdict};

use super::sets::SetName;

/// What is carried, as far as `mask`.
pub(super) fn carried(to: Reg, mask: u32) -> Vec<Expr> {
    let mut read = vec![Expr::Meta {
        key: MetaKey::Priority,
        to,
    }];
    if mask != u32::MAX {
        read.push(Expr::and(to, mask.to_ne_bytes()));
    }
    read
}

/// Whether what is carried is `value`, as far as `mask`.
pub(super) fn carried_is(mask: u32, value: u32) -> Vec<Expr> {
    let mut test = carried(Reg::at(0), mask);
    test.push(Expr::equals(Reg::at(0), value.to_ne_bytes()));
    test
}

/// Carries what is in a register.
pub(super) fn set_carried(from: Reg) -> Expr {
    Expr::SetMeta {
        key: MetaKey::Priority,
        from,
    }
}

/// What a key leads to.
pub(super) fn map(map: SetName, key: Reg, to: Reg) -> Expr {
    Expr::Map {
        map: map.name().to_owned(),
        key,
        to,
    }
}

/// Whether a key is in a set, or is not.
pub(super) fn lookup(set: SetName, key: Reg, not: bool) -> Expr {
    Expr::Lookup {
        set: set.name().to_owned(),
        key,
        not,
    }
}

/// Goes on in another chain, for good.
pub(super) fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.to_owned()))
}

/// Changes the packet's mark.
pub(super) fn change_mark(change: impl FnOnce(Reg) -> Expr) -> [Expr; 3] {
    let reg = Reg::at(0);
    let read = Expr::Meta {
        key: MetaKey::Mark,
        to: reg,
    };
    let write = Expr::SetMeta {
        key: MetaKey::Mark,
        from: reg,
    };
    [read, change(reg), write]
}
