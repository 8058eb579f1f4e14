//! Translation at sockets: once for each connection, and for each datagram of a socket that is not
//! connected.

use crate::abi::{
    Addr, Endpoint, FLAG_MEMBERS, FrontendKey, MemberKey, NODE_PORTS, ROLE_FLOW, ROLE_PEER,
    SET_SERVING, SocketKey, SocketPeer, UDP, event, halves,
};
use crate::resolve::{Choice, Chosen, Found, Query, Services, Source, choose, find, wildcard};

/// The map of translated sockets.
pub trait Sockets {
    /// What a key leads to.
    fn socket(&self, key: &SocketKey) -> Option<SocketPeer>;
    /// Remembers it; whether there was room.
    fn set_socket(&self, key: &SocketKey, value: &SocketPeer) -> bool;
}

/// What becomes of a call that names a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it is.
    Pass,
    /// To [`Answer::chosen`] instead.
    Translate,
    /// ECONNREFUSED.
    Refuse,
    /// ETIMEDOUT for TCP, EPERM for datagrams.
    Drop,
}

/// More about a verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answer {
    /// The endpoint.
    pub chosen: Chosen,
    /// What a verdict other than [`Verdict::Pass`] counts as, of [`event`].
    pub event: u32,
}

/// A call on a socket that names a destination.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The socket's cookie.
    pub cookie: u64,
    /// What it names. No client's number: a socket stays with its endpoint whatever was chosen.
    pub query: Query,
}

/// `connect`, or `sendmsg` of a socket that is not connected (`sticky`: it stays with its endpoint
/// as long as that serves, as a tracked flow does). `client` finds the socket's own address, where
/// that matters; whether it did.
///
/// The steps are functions of their own, one after the other, since the kernel's stack has room for
/// one at a time.
#[inline(always)]
pub fn outgoing<M: Services + Sockets>(
    maps: &M,
    call: &Call,
    sticky: bool,
    client: impl FnOnce(&mut Addr) -> bool,
    answer: &mut Answer,
) -> Verdict {
    let mut found = Found::default();
    if !look(maps, call, &mut found) {
        return Verdict::Pass;
    }
    if sticky && stays(maps, call, &found, &mut answer.chosen) {
        answer.event = event::SOCKET;
        return Verdict::Translate;
    }
    let mut address = [0; 16];
    // An address of nobody stands for an unknown one.
    if found.needs_client() && !client(&mut address) {
        address = [0; 16];
    }
    let verdict = decide(maps, call, &found, &address, answer);
    if verdict == Verdict::Translate {
        record(maps, call, &answer.chosen);
    }
    verdict
}

#[inline(never)]
fn look<M: Services>(maps: &M, call: &Call, found: &mut Found) -> bool {
    match find(maps, &call.query) {
        Some(it) => {
            *found = it;
            true
        }
        None => false,
    }
}

/// The endpoint that a socket's datagrams go to already.
#[inline(never)]
fn stays<M: Services + Sockets>(maps: &M, call: &Call, found: &Found, chosen: &mut Chosen) -> bool {
    if found.service.flags & FLAG_MEMBERS == 0 {
        return false;
    }
    let flow = SocketKey {
        cookie: call.cookie,
        other: Endpoint::new(call.query.addr, call.query.port),
        role: ROLE_FLOW,
    };
    let Some(known) = maps.socket(&flow) else {
        return false;
    };
    if known.service != found.frontend.service || !serves(maps, &known) {
        return false;
    }
    chosen.endpoint = known.peer;
    chosen.service = known.service;
    chosen.set = known.set;
    true
}

#[inline(never)]
fn decide<M: Services>(
    maps: &M,
    call: &Call,
    found: &Found,
    address: &Addr,
    answer: &mut Answer,
) -> Verdict {
    let client = if halves(address) == (0, 0) {
        None
    } else {
        Some(address)
    };
    match choose(maps, found, &call.query, client, &mut answer.chosen) {
        Choice::Reject => {
            answer.event = event::REJECTED;
            Verdict::Refuse
        }
        Choice::Drop { reason } => {
            answer.event = reason;
            Verdict::Drop
        }
        Choice::Forward => {
            answer.event = event::SOCKET;
            Verdict::Translate
        }
    }
}

/// Remembers what `recvmsg` and `getpeername` are to say, and where further datagrams go. Without
/// room for it the connection works, but the socket sees its peer's own address.
#[inline(never)]
fn record<M: Sockets>(maps: &M, call: &Call, chosen: &Chosen) {
    let frontend = Endpoint::new(call.query.addr, call.query.port);
    let mut key = SocketKey {
        cookie: call.cookie,
        other: chosen.endpoint,
        role: ROLE_PEER,
    };
    let mut value = SocketPeer {
        peer: frontend,
        service: chosen.service,
        set: chosen.set,
    };
    maps.set_socket(&key, &value);
    if call.query.protocol == UDP {
        key.other = frontend;
        key.role = ROLE_FLOW;
        value.peer = chosen.endpoint;
        maps.set_socket(&key, &value);
    }
}

/// Whether an endpoint still takes datagrams of a flow.
#[inline(always)]
fn serves<M: Services>(maps: &M, known: &SocketPeer) -> bool {
    let key = MemberKey {
        service: known.service,
        set: SET_SERVING,
        endpoint: known.peer,
    };
    maps.is_member(&key)
}

/// `recvmsg` and `getpeername`: the address that the socket believes to talk to, where that is not
/// `from`.
#[inline(always)]
pub fn incoming<M: Sockets>(maps: &M, cookie: u64, from: &Endpoint) -> Option<Endpoint> {
    let key = SocketKey {
        cookie,
        other: *from,
        role: ROLE_PEER,
    };
    Some(maps.socket(&key)?.peer)
}

/// `bind` on the node: whether the port is a node port there. Such a socket would hear nothing.
#[inline(always)]
pub fn may_bind<M: Services>(maps: &M, call: &Call, is_wildcard: bool, is_v4: bool) -> bool {
    if call.query.source != Source::Node || call.query.port == [0, 0] {
        return true;
    }
    let key = FrontendKey {
        addr: wildcard(is_v4),
        port: call.query.port,
        protocol: call.query.protocol,
        pad: 0,
    };
    if maps.frontend(&key).is_none() {
        return true;
    }
    if is_wildcard {
        return false;
    }
    match maps.node_addr(&call.query.addr) {
        Some(flags) => flags & NODE_PORTS == 0,
        None => true,
    }
}
