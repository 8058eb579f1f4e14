//! The tracer of the nftables backend: the planned chains in the kernel's order, expression by
//! expression, over the planned elements as bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::{DEPTH_MAX, Fate, Outcome, Packet, TraceError, World};
use crate::backend::nftables::desired::Desired;
use crate::backend::nftables::fixed::{self, CT_STATUS_DNAT, ChainPlan};
use crate::backend::nftables::item::{address, protocol_number};
use crate::backend::nftables::sets::SetName;
use crate::backend::nftables::wire::{
    Base, Chain, CmpOp, CtKey, DynsetOp, Element, Expr, FibResult, Hook, MetaKey, NatKind, Reg,
    Rule, Value, Verdict, concat, fib,
};
use crate::model::Protocol;

/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_STATE_NEW: u32 = 8;
/// `RTN_UNICAST`.
const RTN_UNICAST: u32 = 1;
/// All registers.
const REGISTER_BYTES: usize = 4 * Reg::COUNT as usize;
/// An interface's name.
const NAME_BYTES: usize = 16;

/// A plan that packets can be sent through.
pub struct Tracer {
    chains: BTreeMap<String, (Chain, Vec<Rule>)>,
    sets: HashMap<String, Elements>,
}

/// Elements of a set.
#[derive(Debug, Default, Clone)]
struct Elements {
    exact: HashMap<Vec<u8>, Option<Value>>,
    ranges: Vec<Element>,
}

impl Elements {
    fn get(&self, key: &[u8]) -> Option<Option<&Value>> {
        if let Some(value) = self.exact.get(key) {
            return Some(value.as_ref());
        }
        let found = self.ranges.iter().find(|range| {
            let last = range.key_end.as_deref().unwrap_or(&range.key);
            range.key.as_slice() <= key && key <= last
        });
        found.map(|range| range.value.as_ref())
    }
}

/// What a packet has become.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    port: u16,
    interface: String,
    mark: u32,
    priority: u32,
    translated: bool,
    masqueraded: bool,
    refused: Option<Fate>,
}

/// Where it goes on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Flow {
    /// At the next rule.
    Next,
    /// Past the base chain.
    Past,
    /// Behind the rule that jumped here.
    Return,
    /// In another chain, and perhaps back.
    To(String, bool),
}

impl Tracer {
    /// Of everything planned for one family.
    pub fn new(desired: &Desired) -> Self {
        let settings = desired.settings();
        let picks = desired.picks().map(|pick| fixed::pick(settings, pick));
        let chains = desired.chains().into_iter().chain(picks);
        let chains = chains.map(|ChainPlan { chain, rules }| (chain.name.clone(), (chain, rules)));
        let mut sets: HashMap<String, Elements> = HashMap::new();
        for name in SetName::ALL {
            sets.insert(name.name().to_owned(), Elements::default());
        }
        for (key, value) in desired.contents() {
            let element = key.element(settings.family, &value);
            let set = sets.entry(key.set().name().to_owned()).or_default();
            if element.key_end.is_some() {
                set.ranges.push(element);
            } else {
                set.exact.insert(element.key, element.value);
            }
        }
        Self {
            chains: chains.collect(),
            sets,
        }
    }

    /// The fates of a packet.
    ///
    /// # Errors
    /// The plan is broken: a jump into nowhere, or a loop.
    pub fn trace(&self, packet: &Packet, world: &World) -> Result<Outcome, TraceError> {
        let own = world.is_local(packet.source);
        let first = State {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            port: packet.port,
            interface: packet
                .interface
                .clone()
                .filter(|_| !own)
                .unwrap_or_default(),
            mark: 0,
            priority: 0,
            translated: false,
            masqueraded: false,
            refused: None,
        };
        let way = Way {
            tracer: self,
            world,
            affinity: self.affinity(packet.source, world),
        };
        let entry = if own { Hook::Output } else { Hook::Prerouting };
        let mut fates = BTreeSet::new();
        for state in way.hook(BTreeSet::from([first]), entry)? {
            let inward = world.is_local(state.destination);
            let mut states = BTreeSet::from([state]);
            if inward {
                states = way.hook(states, Hook::Input)?;
            } else if !own {
                states = way.hook(states, Hook::Forward)?;
            }
            if own || !inward {
                states = way.hook(states, Hook::Postrouting)?;
            }
            fates.extend(states.iter().map(fate));
        }
        Ok(Outcome(fates))
    }

    /// What the map that rules write would have after the client was sent where it was.
    fn affinity(&self, client: IpAddr, world: &World) -> Elements {
        let mut elements = Elements::default();
        let sticky = SetName::StickyEndpoints.name();
        let slots = self.sets.get(SetName::StickySlots.name());
        let Some(endpoints) = self.sets.get(sticky) else {
            return elements;
        };
        for remembered in &world.remembered {
            let wanted = concat(&[&address(remembered.ip()), &remembered.port().to_be_bytes()]);
            for (set_slot, number) in slots.iter().flat_map(|slots| &slots.exact) {
                let Some(Value::Data(number)) = number else {
                    continue;
                };
                let leads = endpoints.get(number) == Some(Some(&Value::Data(wanted.clone())));
                if let (true, Some(set)) = (leads, set_slot.get(..4)) {
                    let key = concat(&[set, &address(client)]);
                    elements
                        .exact
                        .insert(key, Some(Value::Data(number.clone())));
                }
            }
        }
        elements
    }
}

fn fate(state: &State) -> Fate {
    match state.refused {
        Some(fate) => fate,
        None if state.translated => Fate::Endpoint {
            address: SocketAddr::new(state.destination, state.port),
            masqueraded: state.masqueraded,
        },
        None => Fate::NoMatch,
    }
}

/// One packet's way.
struct Way<'a> {
    tracer: &'a Tracer,
    world: &'a World,
    affinity: Elements,
}

type Registers = [u8; REGISTER_BYTES];

impl Way<'_> {
    /// Through all base chains of a hook, by priority.
    fn hook(&self, states: BTreeSet<State>, hook: Hook) -> Result<BTreeSet<State>, TraceError> {
        let mut chains: Vec<(i32, &str)> = Vec::new();
        for (name, (chain, _)) in &self.tracer.chains {
            if let Some((_, at, priority)) = chain.base
                && at == hook
            {
                chains.push((priority, name));
            }
        }
        chains.sort_unstable();
        let mut states = states;
        for (_, name) in chains {
            let mut next = BTreeSet::new();
            for state in states {
                if state.refused.is_some() {
                    next.insert(state);
                    continue;
                }
                next.extend(
                    self.chain(state, name, 0)?
                        .into_iter()
                        .map(|(state, _)| state),
                );
            }
            states = next;
        }
        Ok(states)
    }

    /// Through a chain; true with those whose way through the base chain is over.
    fn chain(
        &self,
        state: State,
        name: &str,
        depth: usize,
    ) -> Result<BTreeSet<(State, bool)>, TraceError> {
        if depth > DEPTH_MAX {
            return Err(TraceError::Loop(name.to_owned()));
        }
        let chain = self.tracer.chains.get(name);
        let (_, rules) = chain.ok_or_else(|| TraceError::NoChain(name.to_owned()))?;
        let mut done = BTreeSet::new();
        let mut here = BTreeSet::from([state]);
        for rule in rules {
            let mut next = BTreeSet::new();
            for state in here {
                let mut out = BTreeSet::new();
                let registers = [0; REGISTER_BYTES];
                self.steps(state, registers, &rule.expressions, &mut out)?;
                for (state, flow) in out {
                    match flow {
                        Flow::Next => {
                            next.insert(state);
                        }
                        Flow::Past => {
                            done.insert((state, true));
                        }
                        Flow::Return => {
                            done.insert((state, false));
                        }
                        Flow::To(chain, comes_back) => {
                            for (state, past) in self.chain(state, &chain, depth + 1)? {
                                if comes_back && !past {
                                    next.insert(state);
                                } else {
                                    done.insert((state, past));
                                }
                            }
                        }
                    }
                }
            }
            here = next;
        }
        done.extend(here.into_iter().map(|state| (state, false)));
        Ok(done)
    }

    /// The rest of a rule.
    fn steps(
        &self,
        mut state: State,
        mut registers: Registers,
        expressions: &[Expr],
        out: &mut BTreeSet<(State, Flow)>,
    ) -> Result<(), TraceError> {
        for (i, expression) in expressions.iter().enumerate() {
            if let Expr::Numgen {
                random: true,
                modulus,
                offset,
                to,
            } = expression
            {
                for n in 0..*modulus {
                    let mut registers = registers;
                    store(&mut registers, *to, &(n + offset).to_ne_bytes());
                    self.steps(state.clone(), registers, &expressions[i + 1..], out)?;
                }
                return Ok(());
            }
            match self.step(&mut state, &mut registers, expression)? {
                Step::On => {}
                Step::Break => {
                    out.insert((state, Flow::Next));
                    return Ok(());
                }
                Step::End(flow) => {
                    out.insert((state, flow));
                    return Ok(());
                }
            }
        }
        out.insert((state, Flow::Next));
        Ok(())
    }

    fn set(&self, name: &str) -> Result<&Elements, TraceError> {
        if name == SetName::Affinity.name() {
            return Ok(&self.affinity);
        }
        let set = self.tracer.sets.get(name);
        set.ok_or_else(|| TraceError::NoChain(format!("set {name}")))
    }

    /// Looks a key up; its length is that of the keys that are there.
    fn find(
        &self,
        name: &str,
        registers: &Registers,
        key: Reg,
    ) -> Result<Option<Option<Value>>, TraceError> {
        let set = self.set(name)?;
        let exact = set.exact.keys().next().map(Vec::len);
        let length = exact.or_else(|| set.ranges.first().map(|range| range.key.len()));
        let Some(length) = length else {
            return Ok(None);
        };
        let start = 4 * key.index();
        let key = registers.get(start..start + length).unwrap_or_default();
        Ok(set.get(key).map(|value| value.cloned()))
    }

    fn step(
        &self,
        state: &mut State,
        registers: &mut Registers,
        expression: &Expr,
    ) -> Result<Step, TraceError> {
        match expression {
            Expr::Payload {
                base,
                offset,
                length,
                to,
            } => match payload(state, *base, *offset, *length) {
                Some(bytes) => store(registers, *to, &bytes),
                None => return Ok(Step::Break),
            },
            Expr::Meta { key, to } => store(registers, *to, &meta(state, *key)),
            Expr::SetMeta { key, from } => {
                let value = u32::from_ne_bytes(word(registers, *from));
                match key {
                    MetaKey::Mark => state.mark = value,
                    MetaKey::Priority => state.priority = value,
                    _ => return Err(unknown(expression)),
                }
            }
            Expr::Ct { key, to } => {
                let value = match key {
                    // The packet traced is the first of its connection.
                    CtKey::State => CT_STATE_NEW,
                    CtKey::Status if state.translated => CT_STATUS_DNAT,
                    CtKey::Status => 0,
                    _ => return Err(unknown(expression)),
                };
                store(registers, *to, &value.to_ne_bytes());
            }
            Expr::Cmp { reg, op, value } => {
                let start = 4 * reg.index();
                let found = registers
                    .get(start..start + value.len())
                    .unwrap_or_default();
                if !compares(*op, found, value) {
                    return Ok(Step::Break);
                }
            }
            Expr::Bitwise {
                from,
                to,
                mask,
                xor,
            } => {
                let start = 4 * from.index();
                let found = registers.get(start..start + mask.len()).unwrap_or_default();
                let bits = found.iter().zip(mask).zip(xor);
                let bytes: Vec<u8> = bits.map(|((f, m), x)| (f & m) ^ x).collect();
                store(registers, *to, &bytes);
            }
            Expr::Immediate { to, value } => store(registers, *to, value),
            Expr::Fib { flags, result, to } => {
                if *flags != fib::DESTINATION || *result != FibResult::AddressType {
                    return Err(unknown(expression));
                }
                let local = self.world.is_local(state.destination);
                let kind = if local { fib::LOCAL } else { RTN_UNICAST };
                store(registers, *to, &kind.to_ne_bytes());
            }
            Expr::Lookup { .. } | Expr::Map { .. } | Expr::VerdictMap { .. } => {
                return self.look(state, registers, expression);
            }
            // What rules remember is for later connections; `World` says what they did.
            Expr::Dynset {
                op: DynsetOp::Add | DynsetOp::Update | DynsetOp::Delete,
                ..
            }
            | Expr::Counter => {}
            other => return end(state, registers, other),
        }
        Ok(Step::On)
    }

    fn look(
        &self,
        state: &mut State,
        registers: &mut Registers,
        expression: &Expr,
    ) -> Result<Step, TraceError> {
        Ok(match expression {
            Expr::Lookup { set, key, not } => {
                if self.find(set, registers, *key)?.is_some() == *not {
                    return Ok(Step::Break);
                }
                Step::On
            }
            Expr::Map { map, key, to } => match self.find(map, registers, *key)? {
                Some(Some(Value::Data(data))) => {
                    store(registers, *to, &data);
                    Step::On
                }
                _ => Step::Break,
            },
            Expr::VerdictMap { map, key } => match self.find(map, registers, *key)? {
                Some(Some(Value::Verdict(verdict))) => verdict_step(state, &verdict),
                _ => Step::Break,
            },
            other => return Err(unknown(other)),
        })
    }
}

/// What an expression does to the rest of its rule.
enum Step {
    On,
    Break,
    End(Flow),
}

fn verdict_step(state: &mut State, verdict: &Verdict) -> Step {
    match verdict {
        Verdict::Accept => Step::End(Flow::Past),
        Verdict::Continue => Step::On,
        Verdict::Return => Step::End(Flow::Return),
        Verdict::Jump(chain) => Step::End(Flow::To(chain.clone(), true)),
        Verdict::Goto(chain) => Step::End(Flow::To(chain.clone(), false)),
        Verdict::Drop => {
            state.refused = Some(Fate::Drop);
            Step::End(Flow::Past)
        }
    }
}

/// Expressions that end the way through the base chain.
fn end(state: &mut State, registers: &Registers, expression: &Expr) -> Result<Step, TraceError> {
    match expression {
        Expr::Verdict(verdict) => return Ok(verdict_step(state, verdict)),
        Expr::Reject(_) => state.refused = Some(Fate::Reject),
        Expr::Masquerade(_) => state.masqueraded = true,
        Expr::Nat {
            kind: NatKind::Destination,
            address: Some(address),
            port: Some(port),
            ..
        } => {
            let start = 4 * address.index();
            state.destination = match state.destination {
                IpAddr::V4(_) => IpAddr::from(word(registers, *address)),
                IpAddr::V6(_) => {
                    let mut bytes = [0; 16];
                    bytes.copy_from_slice(&registers[start..start + 16]);
                    IpAddr::from(bytes)
                }
            };
            let [high, low, ..] = word(registers, *port);
            state.port = u16::from_be_bytes([high, low]);
            state.translated = true;
        }
        Expr::Payload { .. }
        | Expr::SetPayload { .. }
        | Expr::Meta { .. }
        | Expr::SetMeta { .. }
        | Expr::Ct { .. }
        | Expr::SetCt { .. }
        | Expr::Cmp { .. }
        | Expr::Bitwise { .. }
        | Expr::Lookup { .. }
        | Expr::Map { .. }
        | Expr::VerdictMap { .. }
        | Expr::Immediate { .. }
        | Expr::Nat { .. }
        | Expr::Redirect { .. }
        | Expr::Numgen { .. }
        | Expr::Hash { .. }
        | Expr::Dynset { .. }
        | Expr::Fib { .. }
        | Expr::Limit { .. }
        | Expr::Counter
        | Expr::Log { .. }
        | Expr::Notrack => return Err(unknown(expression)),
    }
    Ok(Step::End(Flow::Past))
}

fn unknown(expression: &Expr) -> TraceError {
    TraceError::Unknown(format!("{expression:?}"))
}

/// Writes a value, padded to whole registers as the kernel does.
fn store(registers: &mut Registers, to: Reg, bytes: &[u8]) {
    let start = 4 * to.index();
    let end = (start + bytes.len().next_multiple_of(4)).min(REGISTER_BYTES);
    registers[start..end].fill(0);
    let length = bytes.len().min(end - start);
    registers[start..start + length].copy_from_slice(&bytes[..length]);
}

fn word(registers: &Registers, from: Reg) -> [u8; 4] {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&registers[4 * from.index()..4 * from.index() + 4]);
    bytes
}

/// As the kernel orders bytes.
fn compares(op: CmpOp, found: &[u8], value: &[u8]) -> bool {
    match op {
        CmpOp::Eq => found == value,
        CmpOp::Ne => found != value,
        CmpOp::Lt => found < value,
        CmpOp::Le => found <= value,
        CmpOp::Gt => found > value,
        CmpOp::Ge => found >= value,
    }
}

fn meta(state: &State, key: MetaKey) -> Vec<u8> {
    match key {
        MetaKey::Mark => state.mark.to_ne_bytes().to_vec(),
        MetaKey::Priority => state.priority.to_ne_bytes().to_vec(),
        MetaKey::L4Protocol => vec![protocol_number(state.protocol)],
        MetaKey::InputInterface => {
            let mut name = state.interface.as_bytes().to_vec();
            name.resize(NAME_BYTES, 0);
            name
        }
        MetaKey::NfProtocol | MetaKey::PacketType | MetaKey::EtherType => Vec::new(),
        MetaKey::OutputInterface => vec![0; NAME_BYTES],
    }
}

/// Bytes of the packet: addresses where the headers have them, and ports.
fn payload(state: &State, base: Base, offset: u32, length: u32) -> Option<Vec<u8>> {
    let (offset, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
    let header = match base {
        Base::Link => return None,
        Base::Network => {
            let start = if state.source.is_ipv4() { 12 } else { 8 };
            let mut header = vec![0; start];
            header.extend(address(state.source));
            header.extend(address(state.destination));
            header
        }
        Base::Transport => {
            // The source port is nobody's business.
            let mut header = vec![0; 2];
            header.extend(state.port.to_be_bytes());
            header
        }
    };
    header.get(offset..offset + length).map(<[u8]>::to_vec)
}
