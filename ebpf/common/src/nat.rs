//! The network layer: translation of packets of clients outside, with its own tracking of flows.
//!
//! ```text
//! ingress of any interface   client -> frontend        => client -> endpoint
//! egress towards the endpoint client -> endpoint       => node -> endpoint        (masqueraded)
//! ingress of any interface   endpoint -> node          => endpoint -> client
//! egress towards the client  endpoint -> client        => frontend -> client
//! ```
//! Ingress rewrites destinations, egress sources, so that the node's own routing and filters see
//! clients and endpoints alone. The packet within an error of ICMP is one of the other direction:
//! it is looked up reversed, and its other side is rewritten.

use crate::abi::{
    Addr, Endpoint, FLOW_FORWARD, FLOW_MASQUERADE, FLOW_MASQUERADED, FLOW_REFUSED, FLOW_REPLY,
    Flow, FlowKey, MemberKey, Port, SET_SERVING, STATE_ANSWERED, STATE_FIN_CLIENT,
    STATE_FIN_SERVER, STATE_RESET, TCP, UDP, event, halves, is_v4, same,
};
use crate::maglev;
use crate::packet::{ACK, FIN, RST, SYN};
use crate::resolve::{
    Choice, Chosen, Found, Query, Services, Source, choose, find, pick, scale, within,
};

/// Ports for masquerading: below those that the kernel gives to the node's own sockets (from 32768
/// on) and below node ports (from 30000 on).
pub const PORT_FIRST: u32 = 10_000;

/// How many there are, for each endpoint.
pub const PORTS: u32 = 20_000;

/// Ports tried before a packet is dropped.
const PORT_TRIES: u32 = 24;

/// Endpoints tried when the client's port talks to the chosen one already through another address.
const COLLISION_TRIES: u32 = 4;

/// A UDP flow without packets is over (nanoseconds; conntrack's `udp_timeout_stream`).
pub const UDP_TIMEOUT_NS: u64 = 120_000_000_000;

/// A TCP connection of which both ends have said that it ends (conntrack's time wait).
pub const CLOSED_TIMEOUT_NS: u64 = 120_000_000_000;

/// A TCP connection that was never answered is over (nanoseconds; conntrack's `tcp_timeout_syn_sent`).
pub const UNANSWERED_TIMEOUT_NS: u64 = 120_000_000_000;

/// A TCP connection without packets is over (nanoseconds; a day, twelve keep-alives).
pub const TCP_TIMEOUT_NS: u64 = 86_400_000_000_000;

/// The map of flows.
pub trait Flows {
    /// A flow.
    fn flow(&self, key: &FlowKey) -> Option<&Flow>;
    /// Adds a flow; `false` when there is one already or no room.
    fn add_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Adds or replaces a flow; `false` when there is no room.
    fn set_flow(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Says that a packet was seen, and adds to the state.
    fn touch(&self, key: &FlowKey, now_ns: u64, state: u32);
    /// Sets the masquerading address of a flow.
    fn set_node(&self, key: &FlowKey, node: &Endpoint);
}

/// One packet's question and answer, and room to work: in the kernel it lies in a map, since the
/// stack is too small. What stands in a map the verifier knows nothing of, so ways through the code
/// that differ in nothing else are one to it: on the stack or in a register each would be another.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// Question: who talks to whom. The role is ours.
    pub key: FlowKey,
    /// Question: flags of TCP.
    pub tcp_flags: u8,
    /// Question: it may begin a connection. False for later fragments, and for packets within
    /// errors, which are looked up reversed.
    pub begins: bool,
    /// Question: at ingress, whether the interface is one of pods.
    pub from_pods: bool,
    /// Question: at egress, the interface's address for masquerading; zero: none.
    pub own: Addr,
    /// Answer: what the destination (at ingress) or source (at egress) becomes.
    pub to: Endpoint,
    /// Answer, for counting.
    pub service: u32,
    /// Answer, for counting.
    pub endpoint: Endpoint,
    query: Query,
    found: Found,
    chosen: Chosen,
    other: FlowKey,
    flow: Flow,
    spare: Spare,
}

/// A port whose connection has ended, for when none is free.
#[derive(Debug, Clone, Copy, Default)]
struct Spare {
    port: Port,
    /// How long ago its last packet was; 0: no port. [`OVER`]: the connection is over altogether.
    age_ns: u64,
}

/// [`Spare::age_ns`] of a port that may serve another connection at once.
const OVER: u64 = u64::MAX;

impl Work {
    /// Asks about a packet from `src` to `dst`.
    #[inline(always)]
    pub fn ask(&mut self, src: &Endpoint, dst: &Endpoint, protocol: u8) {
        self.key.src = *src;
        self.key.dst = *dst;
        self.key.protocol = u32::from(protocol);
    }

    #[inline(always)]
    fn answer(&mut self, to: &Endpoint, flow: &Flow) -> Action {
        self.to = *to;
        self.service = flow.service;
        self.endpoint = flow.endpoint;
        Action::Rewrite { new: false }
    }

    #[inline(always)]
    fn is_udp(&self) -> bool {
        self.key.protocol == u32::from(UDP)
    }

    /// Makes `other` the key that a flow's state is kept under.
    #[inline(always)]
    fn look_at_reply(&mut self, endpoint: &Endpoint, client: &Endpoint) {
        self.other.src = *endpoint;
        self.other.dst = *client;
        self.other.protocol = self.key.protocol;
        self.other.role = FLOW_REPLY;
    }
}

/// What is done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It stays as it is.
    Pass,
    /// Dropped.
    Drop {
        /// Reason, of [`event`].
        reason: u32,
    },
    /// As [`Work::to`] says.
    Rewrite {
        /// The first packet of a connection.
        new: bool,
    },
}

/// The state that a packet's flags say.
#[inline(always)]
fn state_of(tcp_flags: u8, from_client: bool) -> u32 {
    let fin = if from_client {
        STATE_FIN_CLIENT
    } else {
        STATE_FIN_SERVER
    };
    let mut state = if from_client { 0 } else { STATE_ANSWERED };
    if tcp_flags & FIN != 0 {
        state |= fin;
    }
    if tcp_flags & RST != 0 {
        state |= STATE_RESET;
    }
    state
}

/// Whether both ends, or one of them by force, have ended a connection.
#[inline(always)]
pub fn is_closed(state: u32) -> bool {
    let finished = STATE_FIN_CLIENT | STATE_FIN_SERVER;
    state & STATE_RESET != 0 || state & finished == finished
}

/// Whether a connection is over, so that its ports may serve another. `flow` is of [`FLOW_REPLY`].
#[inline(always)]
pub fn is_over(flow: &Flow, is_udp: bool, now_ns: u64) -> bool {
    let age = now_ns.saturating_sub(flow.seen_ns);
    age > if is_udp {
        UDP_TIMEOUT_NS
    } else if is_closed(flow.state) {
        CLOSED_TIMEOUT_NS
    } else if flow.state & STATE_ANSWERED == 0 {
        UNANSWERED_TIMEOUT_NS
    } else {
        TCP_TIMEOUT_NS
    }
}

/// Whether the first packet of a connection finds an old flow that is not its own.
#[inline(always)]
fn is_stale<M: Services + Flows>(maps: &M, work: &mut Work, flow: &Flow) -> bool {
    if work.is_udp() {
        let member = MemberKey {
            service: flow.service,
            set: SET_SERVING,
            endpoint: flow.endpoint,
        };
        return flow.flags & FLOW_REFUSED != 0 || !maps.is_member(&member);
    }
    if work.tcp_flags & (SYN | ACK) != SYN {
        return false;
    }
    if flow.flags & FLOW_REFUSED != 0 {
        return true;
    }
    // The client's SYN says that its time wait is over, so ours is, too.
    work.look_at_reply(&flow.endpoint, &flow.client);
    match maps.flow(&work.other) {
        Some(reply) => is_closed(reply.state),
        None => true,
    }
}

/// A packet that comes in: rewrites its destination.
#[inline(always)]
pub fn ingress<M: Services + Flows>(maps: &M, work: &mut Work) -> Action {
    work.key.role = FLOW_MASQUERADED;
    if let Some(flow) = maps.flow(&work.key) {
        return work.answer(&flow.client, flow);
    }
    work.key.role = FLOW_FORWARD;
    if let Some(flow) = maps.flow(&work.key)
        && !(work.begins && is_stale(maps, work, flow))
    {
        if work.begins {
            work.look_at_reply(&flow.endpoint, &flow.client);
            maps.touch(&work.other, maps.now_ns(), state_of(work.tcp_flags, true));
        }
        return work.answer(&flow.endpoint, flow);
    }
    if !work.begins {
        return Action::Pass;
    }
    begin(maps, work)
}

/// The first packet of a connection.
#[inline(never)]
fn begin<M: Services + Flows>(maps: &M, work: &mut Work) -> Action {
    work.query = Query {
        addr: work.key.dst.addr,
        port: work.key.dst.port,
        protocol: if work.is_udp() { UDP } else { TCP },
        source: Source::Outside,
        client: 0,
    };
    let Some(found) = find(maps, &work.query) else {
        return Action::Pass;
    };
    work.found = found;
    if work.found.service.table_size > 0 {
        // Where a client is to stay with its endpoint, every node sends it to the same one.
        let with_port = work.found.service.affinity_seconds == 0;
        work.query.client = maglev::client(&work.key.src, work.key.protocol, with_port);
    }
    if work.from_pods || is_pod(maps, &work.key.src.addr) {
        work.query.source = Source::Pod;
    }
    let mut new = true;
    let client = Some(&work.key.src.addr);
    match choose(maps, &work.found, &work.query, client, &mut work.chosen) {
        Choice::Drop { reason } => return Action::Drop { reason },
        Choice::Forward => {
            work.flow.endpoint = work.chosen.endpoint;
            work.flow.service = work.chosen.service;
            work.flow.set = work.chosen.set;
            work.flow.flags = if work.chosen.masquerade {
                FLOW_MASQUERADE
            } else {
                0
            };
        }
        Choice::Reject => {
            nobody(maps, work);
            new = false;
        }
    }
    let mut tries = 0;
    while tries < COLLISION_TRIES {
        match remember(maps, work) {
            Remembered::Yes => {
                work.to = work.flow.endpoint;
                work.service = work.flow.service;
                work.endpoint = work.flow.endpoint;
                return Action::Rewrite { new };
            }
            Remembered::NoRoom => {
                return Action::Drop {
                    reason: event::DROP_FLOWS,
                };
            }
            Remembered::Collision => {}
        }
        if pick(maps, &work.found, 0, &mut work.chosen) {
            work.flow.endpoint = work.chosen.endpoint;
        }
        tries += 1;
    }
    Action::Drop {
        reason: event::DROP_COLLISION,
    }
}

/// Where the node itself refuses: port 0 of an address of its own, on which nobody can listen, so
/// that its network stack answers with a reset or an unreachable.
#[inline(always)]
fn nobody<M: Services>(maps: &M, work: &mut Work) {
    let dst = &work.key.dst.addr;
    let addr = match maps.config() {
        Some(config) if maps.node_addr(dst).is_none() => {
            if is_v4(dst) {
                config.masquerade[0]
            } else {
                config.masquerade[1]
            }
        }
        _ => *dst,
    };
    work.flow.endpoint = Endpoint::new(addr, [0, 0]);
    work.flow.service = work.chosen.service;
    work.flow.set = 0;
    work.flow.flags = FLOW_REFUSED;
}

#[derive(Clone, Copy)]
enum Remembered {
    Yes,
    NoRoom,
    Collision,
}

/// Adds the flow that `work.flow` has the endpoint of.
#[inline(never)]
fn remember<M: Services + Flows>(maps: &M, work: &mut Work) -> Remembered {
    let now_ns = maps.now_ns();
    work.flow.seen_ns = now_ns;
    work.flow.client = work.key.src;
    work.flow.frontend = work.key.dst;
    work.flow.node = Endpoint::default();
    work.flow.state = 0;
    let endpoint = work.flow.endpoint;
    let client = work.key.src;
    work.look_at_reply(&endpoint, &client);
    if let Some(old) = maps.flow(&work.other) {
        let own =
            same(&old.frontend.addr, &work.key.dst.addr) && old.frontend.port == work.key.dst.port;
        if !own && !is_closed(old.state) && !is_over(old, work.is_udp(), now_ns) {
            return Remembered::Collision;
        }
    }
    if maps.set_flow(&work.other, &work.flow) && maps.set_flow(&work.key, &work.flow) {
        Remembered::Yes
    } else {
        Remembered::NoRoom
    }
}

#[inline(always)]
fn is_pod<M: Services>(maps: &M, addr: &Addr) -> bool {
    let Some(config) = maps.config() else {
        return false;
    };
    let (net, bits) = if is_v4(addr) {
        (&config.pods[0], config.pods_bits[0])
    } else {
        (&config.pods[1], config.pods_bits[1])
    };
    bits > 0 && within(addr, net, bits)
}

/// A packet that goes out: rewrites its source.
#[inline(always)]
pub fn egress<M: Services + Flows>(maps: &M, work: &mut Work) -> Action {
    work.key.role = FLOW_REPLY;
    if let Some(flow) = maps.flow(&work.key) {
        if work.begins {
            maps.touch(&work.key, maps.now_ns(), state_of(work.tcp_flags, false));
        }
        return work.answer(&flow.frontend, flow);
    }
    let (src, dst) = (work.key.src, work.key.dst);
    work.look_at_reply(&dst, &src);
    let Some(flow) = maps.flow(&work.other) else {
        return Action::Pass;
    };
    if flow.flags & FLOW_MASQUERADE == 0 {
        return Action::Pass;
    }
    if !flow.node.is_none() {
        return work.answer(&flow.node, flow);
    }
    if !work.begins {
        return Action::Pass;
    }
    work.flow = *flow;
    masquerade(maps, work)
}

/// Finds an address and a port of the node's that the endpoint does not know, or no longer.
///
/// An endpoint that closed first remembers a port for a minute. Where clients come faster than that
/// leaves ports, the one of those tried that ended first is used again: a connection's beginning is
/// newer than what the endpoint remembers, or else the two of them find out within a second
/// (RFC 9293, 3.10.7.4, and RFC 6191).
#[inline(never)]
fn masquerade<M: Services + Flows>(maps: &M, work: &mut Work) -> Action {
    if halves(&work.own) == (0, 0)
        && let Some(config) = maps.config()
    {
        work.own = if is_v4(&work.key.src.addr) {
            config.masquerade[0]
        } else {
            config.masquerade[1]
        };
    }
    let now_ns = maps.now_ns();
    work.key.src = work.flow.endpoint;
    work.key.dst.addr = work.own;
    work.key.role = FLOW_MASQUERADED;
    work.spare = Spare::default();
    let mut tries = 0;
    while tries < PORT_TRIES && work.spare.age_ns != OVER {
        work.key.dst.port = port(scale(maps.random(), PORTS));
        if is_taken(maps, work, now_ns) {
            return masqueraded(maps, work);
        }
        tries += 1;
    }
    work.key.dst.port = work.spare.port;
    if work.spare.age_ns > 0 && maps.set_flow(&work.key, &work.flow) {
        return masqueraded(maps, work);
    }
    Action::Drop {
        reason: event::DROP_PORTS,
    }
}

/// Takes the port of `work.key` where no connection has ever had it. Of the others it is remembered
/// which to use again.
#[inline(always)]
fn is_taken<M: Services + Flows>(maps: &M, work: &mut Work, now_ns: u64) -> bool {
    let Some(other) = maps.flow(&work.key) else {
        return maps.add_flow(&work.key, &work.flow);
    };
    let began_ns = other.seen_ns;
    work.look_at_reply(&other.endpoint, &other.client);
    let age_ns = match maps.flow(&work.other) {
        Some(reply) if !is_over(reply, work.is_udp(), now_ns) => {
            // The client has begun another connection from the same port of its own since then.
            let is_left = reply.node.port != [0, 0] && reply.node.port != work.key.dst.port;
            let ended_ns = if is_left { began_ns } else { reply.seen_ns };
            if is_left || is_closed(reply.state) {
                now_ns.saturating_sub(ended_ns)
            } else {
                0
            }
        }
        _ => OVER,
    };
    if age_ns > work.spare.age_ns {
        work.spare.port = work.key.dst.port;
        work.spare.age_ns = age_ns;
    }
    false
}

/// The port of `work.key` is the connection's.
#[inline(always)]
fn masqueraded<M: Services + Flows>(maps: &M, work: &mut Work) -> Action {
    let (endpoint, client) = (work.flow.endpoint, work.flow.client);
    work.look_at_reply(&endpoint, &client);
    work.to = work.key.dst;
    maps.set_node(&work.other, &work.to);
    work.service = work.flow.service;
    work.endpoint = work.flow.endpoint;
    Action::Rewrite { new: false }
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "10000 and less than 20000 more"
)]
fn port(offset: u32) -> Port {
    ((PORT_FIRST + offset) as u16).to_be_bytes()
}
