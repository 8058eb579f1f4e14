//! Expressions and values as the kernel reads them.

use super::expr::{
    Base, CmpOp, DynsetOp, Expr, FibResult, LimitUnit, NatFlags, NatKind, Reg, Reject, Verdict,
};
use super::{put_text, put_u32, put_u64, text, u32_of};
use crate::nfnetlink::{attribute, put, put_nested};

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// `NFT_REG_VERDICT`.
const REG_VERDICT: u32 = 0;

/// Writes a value as the kernel's data.
pub(super) fn put_value(out: &mut Vec<u8>, value: &[u8]) {
    put(out, DATA_VALUE, value);
}

/// Writes a verdict as the kernel's data.
pub(super) fn put_verdict(out: &mut Vec<u8>, verdict: &Verdict) {
    put_nested(out, DATA_VERDICT, |out| {
        put(out, VERDICT_CODE, &verdict.code().to_be_bytes());
        if let Verdict::Jump(chain) | Verdict::Goto(chain) = verdict {
            put_text(out, VERDICT_CHAIN, chain);
        }
    });
}

/// Reads a value.
pub(super) fn value(data: &[u8]) -> Option<&[u8]> {
    attribute(data, DATA_VALUE)
}

/// Reads a verdict.
pub(super) fn verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = attribute(data, DATA_VERDICT)?;
    let code = u32_of(attribute(verdict, VERDICT_CODE)?)?.cast_signed();
    let chain = || attribute(verdict, VERDICT_CHAIN).map(text);
    [
        Verdict::Accept,
        Verdict::Drop,
        Verdict::Continue,
        Verdict::Return,
        Verdict::Jump(chain().unwrap_or_default()),
        Verdict::Goto(chain().unwrap_or_default()),
    ]
    .into_iter()
    .find(|verdict| verdict.code() == code)
}

/// Writes the name of an expression, and its attributes.
pub(super) fn write(expr: &Expr, out: &mut Vec<u8>) {
    put_text(out, EXPR_NAME, expr.name());
    put_nested(out, EXPR_DATA, |out| write_data(expr, out));
}

fn put_reg(out: &mut Vec<u8>, kind: u16, reg: Reg) {
    put_u32(out, kind, reg.number());
}

fn put_regs(out: &mut Vec<u8>, regs: &[(u16, Option<Reg>)]) {
    for (kind, reg) in regs {
        if let Some(reg) = reg {
            put_reg(out, *kind, *reg);
        }
    }
}

/// Which bytes of a packet.
fn put_place(out: &mut Vec<u8>, base: Base, offset: u32, length: u32) {
    let base = match base {
        Base::Link => 0,
        Base::Network => 1,
        Base::Transport => 2,
    };
    put_u32(out, 2, base);
    put_u32(out, 3, offset);
    put_u32(out, 4, length);
}

/// Attributes by their numbers in `linux/netfilter/nf_tables.h`, in its order.
fn write_data(expr: &Expr, out: &mut Vec<u8>) {
    match expr {
        Expr::Payload {
            base,
            offset,
            length,
            to,
        } => {
            put_reg(out, 1, *to);
            put_place(out, *base, *offset, *length);
        }
        Expr::SetPayload {
            base,
            offset,
            length,
            from,
        } => {
            put_place(out, *base, *offset, *length);
            put_reg(out, 5, *from);
        }
        Expr::Meta { key, to } => {
            put_reg(out, 1, *to);
            put_u32(out, 2, key.number());
        }
        Expr::SetMeta { key, from } => {
            put_u32(out, 2, key.number());
            put_reg(out, 3, *from);
        }
        Expr::Ct { key, to } => {
            let (number, directed) = key.number();
            put_reg(out, 1, *to);
            put_u32(out, 2, number);
            if directed {
                put(out, 3, &[0]);
            }
        }
        Expr::SetCt { key, from } => {
            put_u32(out, 2, key.number().0);
            put_reg(out, 4, *from);
        }
        Expr::Cmp { reg, op, value } => {
            put_reg(out, 1, *reg);
            let op = match op {
                CmpOp::Eq => 0,
                CmpOp::Ne => 1,
                CmpOp::Lt => 2,
                CmpOp::Le => 3,
                CmpOp::Gt => 4,
                CmpOp::Ge => 5,
            };
            put_u32(out, 2, op);
            put_nested(out, 3, |out| put_value(out, value));
        }
        Expr::Bitwise {
            from,
            to,
            mask,
            xor,
        } => {
            put_reg(out, 1, *from);
            put_reg(out, 2, *to);
            put_u32(out, 3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            put_nested(out, 4, |out| put_value(out, mask));
            put_nested(out, 5, |out| put_value(out, xor));
            put_u32(out, 6, 0);
        }
        Expr::Lookup { .. } | Expr::Map { .. } | Expr::VerdictMap { .. } | Expr::Dynset { .. } => {
            write_set_use(expr, out);
        }
        Expr::Immediate { to, value } => {
            put_reg(out, 1, *to);
            put_nested(out, 2, |out| put_value(out, value));
        }
        Expr::Verdict(verdict) => {
            put_u32(out, 1, REG_VERDICT);
            put_nested(out, 2, |out| put_verdict(out, verdict));
        }
        Expr::Nat { .. } | Expr::Masquerade(_) | Expr::Redirect { .. } | Expr::Reject(_) => {
            write_nat(expr, out);
        }
        Expr::Numgen { .. } | Expr::Hash { .. } | Expr::Fib { .. } | Expr::Limit { .. } => {
            write_number(expr, out);
        }
        Expr::Log { prefix } => put_text(out, 2, prefix),
        Expr::Counter | Expr::Notrack => {}
    }
}

fn write_set_use(expr: &Expr, out: &mut Vec<u8>) {
    match expr {
        Expr::Lookup { set, key, not } => {
            put_text(out, 1, set);
            put_reg(out, 2, *key);
            put_u32(out, 5, u32::from(*not));
        }
        Expr::Map { map, key, to } => {
            put_text(out, 1, map);
            put_reg(out, 2, *key);
            put_reg(out, 3, *to);
        }
        Expr::VerdictMap { map, key } => {
            put_text(out, 1, map);
            put_reg(out, 2, *key);
            put_u32(out, 3, REG_VERDICT);
        }
        Expr::Dynset {
            op,
            set,
            key,
            data,
            timeout,
        } => {
            put_text(out, 1, set);
            let op = match op {
                DynsetOp::Add => 0,
                DynsetOp::Update => 1,
                DynsetOp::Delete => 2,
            };
            put_u32(out, 3, op);
            put_reg(out, 4, *key);
            put_regs(out, &[(5, *data)]);
            if let Some(timeout) = timeout {
                let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                put_u64(out, 6, ms);
            }
        }
        _ => {}
    }
}

fn put_flags(out: &mut Vec<u8>, kind: u16, flags: NatFlags) {
    if flags.bits() != 0 {
        put_u32(out, kind, flags.bits());
    }
}

fn write_nat(expr: &Expr, out: &mut Vec<u8>) {
    match expr {
        Expr::Nat {
            kind,
            family,
            address,
            address_last,
            port,
            port_last,
            flags,
        } => {
            put_u32(out, 1, u32::from(*kind == NatKind::Destination));
            put_u32(out, 2, u32::from(family.number()));
            put_regs(
                out,
                &[
                    (3, *address),
                    (4, *address_last),
                    (5, *port),
                    (6, *port_last),
                ],
            );
            put_flags(out, 7, *flags);
        }
        Expr::Masquerade(flags) => put_flags(out, 1, *flags),
        Expr::Redirect { port, flags } => {
            put_regs(out, &[(1, *port)]);
            put_flags(out, 3, *flags);
        }
        Expr::Reject(reject) => {
            let (kind, code) = match reject {
                Reject::Icmp(code) => (0, *code),
                Reject::TcpReset => (1, 0),
                Reject::PortUnreachable => (2, 1),
            };
            put_u32(out, 1, kind);
            put(out, 2, &[code]);
        }
        _ => {}
    }
}

fn write_number(expr: &Expr, out: &mut Vec<u8>) {
    match expr {
        Expr::Numgen {
            random,
            modulus,
            offset,
            to,
        } => {
            put_reg(out, 1, *to);
            put_u32(out, 2, *modulus);
            put_u32(out, 3, u32::from(*random));
            put_u32(out, 4, *offset);
        }
        Expr::Hash {
            from,
            length,
            modulus,
            seed,
            offset,
            to,
        } => {
            put_reg(out, 1, *from);
            put_reg(out, 2, *to);
            put_u32(out, 3, *length);
            put_u32(out, 4, *modulus);
            put_u32(out, 5, *seed);
            put_u32(out, 6, *offset);
            put_u32(out, 7, 0);
        }
        Expr::Fib { flags, result, to } => {
            put_reg(out, 1, *to);
            let result = match result {
                FibResult::Interface => 1,
                FibResult::AddressType => 3,
            };
            put_u32(out, 2, result);
            put_u32(out, 3, *flags);
        }
        Expr::Limit {
            rate,
            unit,
            burst,
            over,
        } => {
            put_u64(out, 1, *rate);
            let seconds = match unit {
                LimitUnit::Second => 1,
                LimitUnit::Minute => 60,
            };
            put_u64(out, 2, seconds);
            put_u32(out, 3, *burst);
            put_u32(out, 4, 0);
            put_u32(out, 5, u32::from(*over));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nftables::Family;

    #[track_caller]
    fn check(expr: &Expr, name: &str, expect: &str) {
        let mut out = Vec::new();
        write(expr, &mut out);
        assert_eq!(attribute(&out, EXPR_NAME).map(text).as_deref(), Some(name));
        let data = attribute(&out, EXPR_DATA).unwrap_or_default();
        let bytes: Vec<String> = data.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(bytes.join(""), expect.replace(' ', ""));
    }

    /// Length and type of attributes in the order of this machine, values in that of the network.
    #[cfg(target_endian = "little")]
    #[test]
    fn expressions_are_the_bytes_that_the_kernel_reads() {
        let (r0, r4) = (Reg::at(0), Reg::at(4));
        let load = "0800 0100 00000008 0800 0200 00000001 0800 0300 00000010 0800 0400 00000004";
        check(&Expr::destination(false, r0), "payload", load);
        let change = Expr::SetPayload {
            base: Base::Link,
            offset: 0,
            length: 6,
            from: r4,
        };
        let place = "0800 0200 00000000 0800 0300 00000000 0800 0400 00000006 0800 0500 0000000c";
        check(&change, "payload", place);
        let compare = "0800 0100 00000008 0800 0200 00000000 0c00 0380 0600 0100 0050 0000";
        check(&Expr::equals(r0, [0, 0x50]), "cmp", compare);
        let lookup = Expr::Lookup {
            set: "s".to_owned(),
            key: r0,
            not: true,
        };
        let bytes = "0600 0100 7300 0000 0800 0200 00000008 0800 0500 00000001";
        check(&lookup, "lookup", bytes);
        let nat = Expr::Nat {
            kind: NatKind::Destination,
            family: Family::Ipv6,
            address: Some(r0),
            address_last: None,
            port: Some(r4),
            port_last: None,
            flags: NatFlags::default(),
        };
        let bytes = "0800 0100 00000001 0800 0200 0000000a 0800 0300 00000008 0800 0500 0000000c";
        check(&nat, "nat", bytes);
        let verdict = Expr::Verdict(Verdict::Goto("c".to_owned()));
        let bytes = "0800 0100 00000000 1800 0280 1400 0280 0800 0100 fffffffc 0600 0200 6300 0000";
        check(&verdict, "immediate", bytes);
        let masquerade = Expr::Masquerade(NatFlags {
            fully_random: true,
            ..NatFlags::default()
        });
        check(&masquerade, "masq", "0800 0100 00000010");
        check(&Expr::Counter, "counter", "");
    }

    #[test]
    fn verdicts_come_back() {
        for verdict in [
            Verdict::Accept,
            Verdict::Drop,
            Verdict::Continue,
            Verdict::Return,
            Verdict::Jump("a".to_owned()),
            Verdict::Goto("b".to_owned()),
        ] {
            let mut out = Vec::new();
            put_verdict(&mut out, &verdict);
            assert_eq!(super::verdict(&out), Some(verdict));
        }
        assert_eq!(verdict(&[]), None);
    }
}
