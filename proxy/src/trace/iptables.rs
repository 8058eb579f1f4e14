//! The tracer of the iptables backend: built-in chains in the kernel's order, our rules in them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::{DEPTH_MAX, Fate, Outcome, Packet, TraceError, World};
use crate::backend::iptables::desired::Desired;
use crate::backend::iptables::names;
use crate::backend::iptables::rule::{ChainName, ChainRef, Match, Rule, Table, Target};
use crate::model::Protocol;

/// A plan that packets can be sent through.
pub struct Tracer {
    chains: BTreeMap<ChainRef, Vec<Rule>>,
    /// Lists of remembered sources by the endpoint they stand for.
    endpoints: BTreeMap<ChainName, SocketAddr>,
}

/// What a packet has become.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    source: IpAddr,
    /// As it was sent.
    first_destination: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    port: u16,
    interface: Option<String>,
    mark: u32,
    translated: bool,
    masqueraded: bool,
    verdict: Option<Verdict>,
}

/// A decision that ends the way through a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Accept,
    Drop,
    Reject,
}

/// Whether a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applies {
    Yes,
    No,
    /// Depends on chance: both ways are followed.
    Perhaps,
}

impl Tracer {
    /// Of everything planned for one family.
    pub fn new(desired: &Desired) -> Self {
        let mut chains = desired.chains();
        for hook in desired.hooks() {
            // Each is put in front of those before it.
            chains
                .entry(hook.chain.clone())
                .or_default()
                .insert(0, hook.rule.clone());
        }
        let mut endpoints = BTreeMap::new();
        for (chain, rules) in &chains {
            for rule in rules {
                if let Target::Dnat { ip, port } = rule.target {
                    endpoints.insert(chain.name.clone(), SocketAddr::new(ip, port));
                }
            }
        }
        Self { chains, endpoints }
    }

    /// The fates of a packet.
    ///
    /// # Errors
    /// The plan is broken: a jump into nowhere, or a loop.
    pub fn trace(&self, packet: &Packet, world: &World) -> Result<Outcome, TraceError> {
        let own = world.is_local(packet.source);
        let first = State {
            source: packet.source,
            first_destination: packet.destination,
            destination: packet.destination,
            protocol: packet.protocol,
            port: packet.port,
            interface: packet.interface.clone().filter(|_| !own),
            mark: 0,
            translated: false,
            masqueraded: false,
            verdict: None,
        };
        let way = Way {
            tracer: self,
            world,
        };
        let entry = if own { "OUTPUT" } else { "PREROUTING" };
        let mut fates = BTreeSet::new();
        for state in way.table([first], Table::Nat, entry)? {
            let inward = world.is_local(state.destination);
            let filters: &[&str] = match (own, inward) {
                (true, true) => &["OUTPUT", "INPUT"],
                (true, false) => &["OUTPUT"],
                (false, true) => &["INPUT"],
                (false, false) => &["FORWARD"],
            };
            let mut states = BTreeSet::from([state]);
            for chain in filters {
                states = way.table(states, Table::Filter, chain)?;
            }
            if own || !inward {
                states = way.table(states, Table::Nat, "POSTROUTING")?;
            }
            fates.extend(states.iter().map(fate));
        }
        Ok(Outcome(fates))
    }
}

fn fate(state: &State) -> Fate {
    match state.verdict {
        Some(Verdict::Drop) => Fate::Drop,
        Some(Verdict::Reject) => Fate::Reject,
        Some(Verdict::Accept) | None if state.translated => Fate::Endpoint {
            address: SocketAddr::new(state.destination, state.port),
            masqueraded: state.masqueraded,
        },
        Some(Verdict::Accept) | None => Fate::NoMatch,
    }
}

/// One packet's way.
struct Way<'a> {
    tracer: &'a Tracer,
    world: &'a World,
}

impl Way<'_> {
    /// Through a built-in chain, whose policy is to accept.
    fn table(
        &self,
        states: impl IntoIterator<Item = State>,
        table: Table,
        chain: &str,
    ) -> Result<BTreeSet<State>, TraceError> {
        let mut out = BTreeSet::new();
        for state in states {
            if matches!(state.verdict, Some(Verdict::Drop | Verdict::Reject)) {
                out.insert(state);
                continue;
            }
            let state = State {
                verdict: None,
                ..state
            };
            let chain = ChainRef::new(table, chain);
            if self.tracer.chains.contains_key(&chain) {
                let (decided, returned) = self.chain(state, &chain, 0)?;
                out.extend(decided);
                out.extend(returned);
            } else {
                out.insert(state);
            }
        }
        Ok(out)
    }

    /// Through a chain: the states that were decided there, and those that came back.
    fn chain(
        &self,
        state: State,
        chain: &ChainRef,
        depth: usize,
    ) -> Result<(BTreeSet<State>, BTreeSet<State>), TraceError> {
        if depth > DEPTH_MAX {
            return Err(TraceError::Loop(chain.name.to_string()));
        }
        let rules = self.tracer.chains.get(chain);
        let rules = rules.ok_or_else(|| TraceError::NoChain(chain.name.to_string()))?;
        let mut decided = BTreeSet::new();
        let mut returned = BTreeSet::new();
        let mut here = BTreeSet::from([state]);
        for rule in rules {
            let mut next = BTreeSet::new();
            for state in here {
                let applies = self.applies(rule, &state);
                if applies != Applies::Yes {
                    next.insert(state.clone());
                }
                if applies == Applies::No {
                    continue;
                }
                match act(&rule.target, state) {
                    Act::Decided(state) => {
                        decided.insert(state);
                    }
                    Act::Returned(state) => {
                        returned.insert(state);
                    }
                    Act::On(state) => {
                        next.insert(state);
                    }
                    Act::Jump(state, name) => {
                        let to = ChainRef {
                            table: chain.table,
                            name,
                        };
                        let (mut ended, mut back) = self.chain(state, &to, depth + 1)?;
                        decided.append(&mut ended);
                        next.append(&mut back);
                    }
                }
            }
            here = next;
        }
        returned.append(&mut here);
        Ok((decided, returned))
    }

    fn applies(&self, rule: &Rule, state: &State) -> Applies {
        let mut applies = Applies::Yes;
        for each in &rule.matches {
            match self.holds(each, state) {
                Applies::Yes => {}
                Applies::No => return Applies::No,
                Applies::Perhaps => applies = Applies::Perhaps,
            }
        }
        applies
    }

    fn holds(&self, each: &Match, state: &State) -> Applies {
        let holds = match each {
            Match::Source { net, not } => net.contains(state.source) != *not,
            Match::Destination { net, not } => net.contains(state.destination) != *not,
            Match::Protocol(protocol) => state.protocol == *protocol,
            Match::Ports(protocol, low, high) => {
                state.protocol == *protocol && (*low..=*high).contains(&state.port)
            }
            Match::SourceIsLocal => self.world.is_local(state.source),
            Match::DestinationIsLocal => self.world.is_local(state.destination),
            Match::Marked { bit, not } => (state.mark & bit != 0) != *not,
            // The packet traced is the first of its connection.
            Match::StateNew | Match::Remember { .. } | Match::Counted(_) => true,
            Match::StateInvalid | Match::StateEstablished => false,
            Match::StateForeign => !state.translated,
            Match::FirstDestination(net) => net.contains(state.first_destination),
            Match::OneOf(n) => {
                return if *n > 1 {
                    Applies::Perhaps
                } else {
                    Applies::Yes
                };
            }
            Match::Seen { list, .. } => {
                let endpoint = self.tracer.endpoints.get(list);
                endpoint.is_some_and(|endpoint| self.world.remembered.contains(endpoint))
            }
            Match::Arrived {
                interface,
                prefix,
                not,
            } => {
                let arrived = state.interface.as_deref().is_some_and(|name| {
                    if *prefix {
                        name.starts_with(interface)
                    } else {
                        name == interface
                    }
                });
                arrived != *not
            }
        };
        if holds { Applies::Yes } else { Applies::No }
    }
}

/// What a rule's target does.
enum Act {
    /// The table is over.
    Decided(State),
    /// The chain is over.
    Returned(State),
    /// On to the next rule.
    On(State),
    /// Into another chain.
    Jump(State, ChainName),
}

fn act(target: &Target, mut state: State) -> Act {
    let end = |verdict, mut state: State| {
        state.verdict = Some(verdict);
        Act::Decided(state)
    };
    match target {
        Target::Jump(name) => Act::Jump(state, name.clone()),
        Target::Return => Act::Returned(state),
        Target::Continue => Act::On(state),
        Target::Accept => end(Verdict::Accept, state),
        Target::Drop => end(Verdict::Drop, state),
        Target::Reject { .. } => end(Verdict::Reject, state),
        Target::SetMark(bit) => {
            state.mark |= bit;
            Act::On(state)
        }
        Target::FlipMark(bit) => {
            state.mark ^= bit;
            Act::On(state)
        }
        Target::Masquerade { .. } => {
            state.masqueraded = true;
            end(Verdict::Accept, state)
        }
        Target::Dnat { ip, port } => {
            state.destination = *ip;
            state.port = *port;
            state.translated = true;
            end(Verdict::Accept, state)
        }
    }
}

/// Whether a plan has a node port rule for martians on loopback.
pub fn has_localnet_rule(desired: &Desired) -> bool {
    let chain = ChainRef::new(Table::Filter, names::FIREWALL);
    desired
        .chains()
        .get(&chain)
        .is_some_and(|rules| !rules.is_empty())
}
