//! One packet through a plan, as the kernel would have it: the rules themselves are run.

use std::net::IpAddr;

use crate::decide::Packet;
use crate::nft::{Base, CmpOp, CtKey, Expr, FibResult, MetaKey, Reg, Value, Verdict};
use crate::objects::{Desired, Elements};

/// What a plan makes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It passes.
    Pass,
    /// It is dropped.
    Drop,
    /// Its sender gets a reset.
    Reset,
}

/// What belongs to a packet beside its addresses and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// Bits of the connection's state: 2 established, 4 related, 8 new.
    pub state: u32,
    /// TCP flags.
    pub flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// The source is an address of this node.
    pub from_node: bool,
}

impl Circumstances {
    /// The first packet of a connection.
    pub const FIRST: Self = Self {
        state: 8,
        flags: 2,
        icmp_type: 128,
        from_node: false,
    };
}

/// How deep chains may call each other in the kernel (`NFT_JUMP_STACK_SIZE`).
const DEPTH_MAX: usize = 16;

enum Step {
    Next,
    Done(Outcome),
}

/// Runs a packet through the base chain `entry`.
///
/// # Errors
/// Names what the kernel would refuse, or this tracer does not know.
pub fn trace(
    desired: &Desired,
    entry: &str,
    packet: &Packet,
    around: Circumstances,
) -> Result<Outcome, String> {
    let run = Run {
        desired,
        elements: desired.elements(),
        packet,
        around,
    };
    match run.chain(entry, 0)? {
        Step::Done(outcome) => Ok(outcome),
        Step::Next => Ok(Outcome::Pass),
    }
}

struct Run<'a> {
    desired: &'a Desired,
    elements: Elements,
    packet: &'a Packet,
    around: Circumstances,
}

/// Registers, 4 bytes each.
type Registers = [u8; 64];

impl Run<'_> {
    fn chain(&self, name: &str, depth: usize) -> Result<Step, String> {
        if depth > DEPTH_MAX {
            return Err(format!("chains call each other {depth} deep"));
        }
        let plan = self
            .desired
            .chains
            .get(name)
            .ok_or(format!("no chain {name}"))?;
        for rule in &plan.rules {
            let Some(verdict) = self.rule(&rule.expressions)? else {
                continue;
            };
            match verdict {
                End::Reset => return Ok(Step::Done(Outcome::Reset)),
                End::Verdict(Verdict::Accept) => return Ok(Step::Done(Outcome::Pass)),
                End::Verdict(Verdict::Drop) => return Ok(Step::Done(Outcome::Drop)),
                End::Verdict(Verdict::Continue) => {}
                End::Verdict(Verdict::Return) => return Ok(Step::Next),
                End::Verdict(Verdict::Jump(to)) => match self.chain(&to, depth + 1)? {
                    Step::Next => {}
                    done @ Step::Done(_) => return Ok(done),
                },
                End::Verdict(Verdict::Goto(to)) => return self.chain(&to, depth),
            }
        }
        Ok(Step::Next)
    }

    /// The verdict of a rule; none when a test fails or there is none in it.
    fn rule(&self, expressions: &[Expr]) -> Result<Option<End>, String> {
        let mut registers = [0_u8; 64];
        for expression in expressions {
            match expression {
                Expr::Verdict(verdict) => return Ok(Some(End::Verdict(verdict.clone()))),
                Expr::Reject(_) => return Ok(Some(End::Reset)),
                Expr::Counter => {}
                Expr::VerdictMap { map, key } => {
                    return Ok(match self.find(map, *key, &registers)? {
                        Some(Some(Value::Verdict(verdict))) => Some(End::Verdict(verdict)),
                        _ => None,
                    });
                }
                test => {
                    if !self.test(test, &mut registers)? {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }

    fn test(&self, expression: &Expr, registers: &mut Registers) -> Result<bool, String> {
        match expression {
            Expr::Payload {
                base,
                offset,
                length,
                to,
            } => match self.payload(*base, *offset, *length)? {
                Some(bytes) => store(registers, *to, &bytes),
                None => return Ok(false),
            },
            Expr::Meta { key, to } => store(registers, *to, &self.meta(*key)?),
            Expr::Ct {
                key: CtKey::State,
                to,
            } => store(registers, *to, &self.around.state.to_ne_bytes()),
            Expr::Fib {
                result: FibResult::AddressType,
                to,
                ..
            } => {
                let kind: u32 = if self.around.from_node { 2 } else { 1 };
                store(registers, *to, &kind.to_ne_bytes());
            }
            Expr::Cmp { reg, op, value } => {
                let have = &registers[at(*reg)..at(*reg) + value.len()];
                return Ok(match op {
                    CmpOp::Eq => have == value,
                    CmpOp::Ne => have != value,
                    CmpOp::Lt => have < value.as_slice(),
                    CmpOp::Le => have <= value.as_slice(),
                    CmpOp::Gt => have > value.as_slice(),
                    CmpOp::Ge => have >= value.as_slice(),
                });
            }
            Expr::Bitwise {
                from,
                to,
                mask,
                xor,
            } => {
                let have = registers[at(*from)..at(*from) + mask.len()].to_vec();
                let bytes = have
                    .iter()
                    .zip(mask.iter().zip(xor))
                    .map(|(b, (m, x))| b & m ^ x);
                let bytes: Vec<u8> = bytes.collect();
                store(registers, *to, &bytes);
            }
            Expr::Lookup { set, key, not } => {
                return Ok(self.find(set, *key, registers)?.is_some() != *not);
            }
            Expr::Map { map, key, to } => match self.find(map, *key, registers)? {
                Some(Some(Value::Data(value))) => store(registers, *to, &value),
                _ => return Ok(false),
            },
            other => return Err(format!("the tracer does not know {}", other.name())),
        }
        Ok(true)
    }

    fn meta(&self, key: MetaKey) -> Result<Vec<u8>, String> {
        match key {
            MetaKey::L4Protocol => Ok(vec![self.packet.protocol]),
            MetaKey::EtherType => Ok(match self.packet.source {
                IpAddr::V4(_) => vec![0x08, 0x00],
                IpAddr::V6(_) => vec![0x86, 0xdd],
            }),
            other => Err(format!("the tracer does not know {other:?}")),
        }
    }

    fn payload(&self, base: Base, offset: u32, length: u32) -> Result<Option<Vec<u8>>, String> {
        let has_ports = [6, 17, 132].contains(&self.packet.protocol);
        Ok(Some(match (base, offset, length, self.packet.source) {
            (Base::Network, 12, 4, IpAddr::V4(_)) | (Base::Network, 8, 16, IpAddr::V6(_)) => {
                bytes(self.packet.source)
            }
            (Base::Network, 16, 4, IpAddr::V4(_)) | (Base::Network, 24, 16, IpAddr::V6(_)) => {
                bytes(self.packet.destination)
            }
            (Base::Transport, 2, 2, _) if has_ports => self.packet.port.to_be_bytes().to_vec(),
            (Base::Transport, 13, 1, _) if self.packet.protocol == 6 => vec![self.around.flags],
            (Base::Transport, 0, 1, _) if !has_ports => vec![self.around.icmp_type],
            (Base::Transport, ..) => return Ok(None),
            other => return Err(format!("the tracer does not know {other:?}")),
        }))
    }

    /// The value of the element that a register's key is in; the inner none: it has no value.
    fn find(
        &self,
        set: &str,
        key: Reg,
        registers: &Registers,
    ) -> Result<Option<Option<Value>>, String> {
        let def = self.desired.sets.get(set).ok_or(format!("no set {set}"))?;
        let from = at(key);
        let found = self
            .elements
            .iter()
            .filter(|(name, _)| **name == *set)
            .find(|(_, e)| {
                let have = &registers[from..from + e.key.len()];
                match &e.key_end {
                    Some(end) if def.interval => e.key.as_slice() <= have && have <= end.as_slice(),
                    _ => e.key == have,
                }
            });
        Ok(found.map(|(_, element)| element.value.clone()))
    }
}

enum End {
    Verdict(Verdict),
    Reset,
}

fn at(reg: Reg) -> usize {
    reg.index() * 4
}

fn store(registers: &mut Registers, to: Reg, bytes: &[u8]) {
    let end = (at(to) + bytes.len().next_multiple_of(4)).min(registers.len());
    registers[at(to)..end].fill(0);
    registers[at(to)..at(to) + bytes.len()].copy_from_slice(bytes);
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
