//! The tracer of the IPVS backend: our rules at each hook, and the kernel's load balancer between
//! them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use super::{Fate, Outcome, Packet, World};
use crate::backend::DetectLocal;
use crate::backend::ipvs::desired::Desired;
use crate::backend::ipvs::plan::Virtual;
use crate::backend::ipvs::rules::{Action, Hook, Match, rules};
use crate::backend::ipvs::sets::{Element, Key, ServerId, SetId, Shape};
use crate::model::Protocol;

/// A plan that packets can be sent through.
pub struct Tracer<'a> {
    desired: &'a Desired,
    from: Vec<(SetId, Key, IpNetwork)>,
    inside: Vec<(Key, u32)>,
}

/// What a packet has become.
#[derive(Debug, Clone)]
struct State {
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    port: u16,
    interface: Option<String>,
    mark: u32,
    masqueraded: bool,
}

impl<'a> Tracer<'a> {
    /// Of everything planned for one family.
    pub fn new(desired: &'a Desired) -> Self {
        let mut from = Vec::new();
        let mut inside = Vec::new();
        for (set, element) in desired.entries() {
            match element {
                Element::From(key, net) => from.push((*set, *key, *net)),
                Element::Mark(key, mark) => inside.push((*key, *mark)),
                Element::Ip(_) | Element::Key(_) | Element::Port(_) => {}
            }
        }
        Self {
            desired,
            from,
            inside,
        }
    }

    /// The fates of a packet.
    pub fn trace(&self, packet: &Packet, world: &World) -> Outcome {
        let is_local = |ip| world.is_local(ip) || self.desired.has_bind(ip);
        let own = is_local(packet.source);
        let mut state = State {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            port: packet.port,
            interface: packet.interface.clone().filter(|_| !own),
            mark: 0,
            masqueraded: false,
        };
        let one = |fate| Outcome(BTreeSet::from([fate]));
        let inward = is_local(packet.destination);
        let entry: &[Hook] = match (own, inward) {
            (true, _) => &[Hook::Output, Hook::Refuse],
            (false, true) => &[Hook::Prerouting, Hook::Refuse],
            // Passed on: the load balancer looks at what is for the node only.
            (false, false) => {
                return one(self
                    .hook(&mut state, Hook::Prerouting, world)
                    .unwrap_or(Fate::NoMatch));
            }
        };
        for hook in entry {
            if let Some(fate) = self.hook(&mut state, *hook, world) {
                return one(fate);
            }
        }
        let Some(server) = self.server(&state) else {
            return one(Fate::NoMatch);
        };
        let chosen = destinations(server, world);
        if chosen.is_empty() {
            return one(Fate::Reject);
        }
        let fates = chosen.into_iter().map(|to| {
            let mut state = state.clone();
            state.destination = to.ip();
            state.port = to.port();
            let leaving = [Hook::Leaving, Hook::Masquerade];
            let fate = leaving
                .into_iter()
                .find_map(|hook| self.hook(&mut state, hook, world));
            fate.unwrap_or(Fate::Endpoint {
                address: to,
                masqueraded: state.masqueraded,
            })
        });
        Outcome(fates.collect())
    }

    /// As the kernel looks: the mark first, then the address.
    fn server(&self, state: &State) -> Option<&Virtual> {
        let ipv6 = state.destination.is_ipv6();
        let mark = ServerId::Mark {
            ipv6,
            mark: state.mark,
        };
        let by_mark = self.desired.server(mark).filter(|_| state.mark != 0);
        by_mark.or_else(|| self.desired.server(key(state).server()))
    }

    /// Through one hook: how the packet ends there, if it does.
    fn hook(&self, state: &mut State, hook: Hook, world: &World) -> Option<Fate> {
        for rule in rules(hook, &self.desired.context().settings) {
            if !rule
                .matches
                .iter()
                .all(|each| self.holds(each, state, world))
            {
                continue;
            }
            match rule.action {
                Action::Return | Action::Accept => return None,
                Action::Drop => return Some(Fate::Drop),
                Action::Reject => return Some(Fate::Reject),
                Action::SetBits(bits) => state.mark |= bits,
                Action::KeepBits(bits) => state.mark &= bits,
                Action::MapMark => {
                    let of = |(key_of, _): &&(Key, u32)| *key_of == key(state);
                    if let Some((_, mark)) = self.inside.iter().find(of) {
                        state.mark = *mark;
                    }
                }
                Action::Masquerade { clear } => {
                    state.mark &= !clear;
                    state.masqueraded = true;
                    return None;
                }
            }
        }
        None
    }

    fn holds(&self, each: &Match, state: &State, world: &World) -> bool {
        match each {
            Match::Pod { detect, not } => is_pod(detect, state) != *not,
            // The packet traced is the first of its connection, and has ports.
            Match::New | Match::HasPorts => true,
            Match::Protocol(protocol) => state.protocol == *protocol,
            Match::In { set, not } => self.is_in(*set, state) != *not,
            Match::SourceIsService => {
                let entry = (SetId::Addresses, Element::Ip(state.source));
                self.desired.has_entry(&entry)
            }
            Match::SourceIsLocal => {
                world.is_local(state.source) || self.desired.has_bind(state.source)
            }
            Match::Marked { value, mask } => state.mark & mask == *value,
        }
    }

    fn is_in(&self, set: SetId, state: &State) -> bool {
        let has = |element| self.desired.has_entry(&(set, element));
        let key = key(state);
        match set.shape() {
            Shape::Ip => has(Element::Ip(state.destination)),
            Shape::Port => has(Element::Port(state.port)),
            Shape::Key => has(Element::Key(key)),
            Shape::KeyMark => self.inside.iter().any(|(of, _)| *of == key),
            Shape::KeySource | Shape::KeyNet => {
                let mut all = self.from.iter();
                all.any(|(of_set, of, net)| {
                    (*of_set, *of) == (set, key) && net.contains(state.source)
                })
            }
        }
    }
}

fn key(state: &State) -> Key {
    Key {
        ip: state.destination,
        protocol: state.protocol,
        port: state.port,
    }
}

fn is_pod(detect: &DetectLocal, state: &State) -> bool {
    let interface = state.interface.as_deref();
    match detect {
        DetectLocal::Net(net) => net.contains(state.source),
        DetectLocal::Interface(name) => interface == Some(name),
        DetectLocal::InterfacePrefix(prefix) => {
            interface.is_some_and(|name| name.starts_with(prefix.as_str()))
        }
    }
}

/// Where a virtual server may send a client: for ever to the same, if it keeps clients.
fn destinations(server: &Virtual, world: &World) -> Vec<SocketAddr> {
    let all = &server.destinations;
    if server.server.persistence.is_some()
        && let Some(kept) = all.iter().find(|to| world.remembered.contains(to))
    {
        return vec![*kept];
    }
    all.to_vec()
}
