//! From an address and a port to what is done: the one place where traffic of either layer meets
//! the services.

use crate::abi::{
    Addr, Affinity, AffinityKey, CONFIG_LOCALHOST, Config, Endpoint, FLAG_OWN_ADDRESS, FLAG_RANGES,
    Frontend, FrontendKey, KIND_BALANCER, KIND_CLUSTER, MemberKey, NODE_PORTS, PATH_DROP,
    PATH_MASQUERADE, PATH_REJECT, Port, RANGE_BITS, RangeKey, SET_CLUSTER, SET_LOCAL, Service,
    SlotKey, V4_PREFIX, event, halves, is_v4, same,
};

/// Where a connection comes from; an index of [`Service::internal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A pod of this node.
    Pod = 0,
    /// The node itself.
    Node = 1,
    /// Anywhere else.
    Outside = 2,
}

/// The maps that say what services there are.
pub trait Services {
    /// The settings.
    fn config(&self) -> Option<&Config>;
    /// A frontend.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// A service.
    fn service(&self, id: u32) -> Option<Service>;
    /// An endpoint.
    fn slot(&self, key: &SlotKey) -> Option<Endpoint>;
    /// Whether an endpoint is in a set.
    fn is_member(&self, key: &MemberKey) -> bool;
    /// `NODE_PORTS` or zero for an address of the node's own.
    fn node_addr(&self, addr: &Addr) -> Option<u32>;
    /// Whether a source range of a service holds an address.
    fn in_ranges(&self, key: &RangeKey) -> bool;
    /// A client's endpoint.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Remembers a client's endpoint.
    fn remember(&self, key: &AffinityKey, value: &Affinity);
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Nanoseconds of the monotonic clock.
    fn now_ns(&self) -> u64;
}

/// The beginning of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// Destination address.
    pub addr: Addr,
    /// Destination port.
    pub port: Port,
    /// Protocol of the IP header.
    pub protocol: u8,
    /// Where it comes from.
    pub source: Source,
}

/// What a connection leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not for a service.
    NoMatch,
    /// Refused.
    Reject {
        /// Service.
        service: u32,
    },
    /// Dropped.
    Drop {
        /// Reason, of [`event`].
        reason: u32,
    },
    /// To an endpoint.
    Forward(Chosen),
}

/// An endpoint for a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Service.
    pub service: u32,
    /// The set that it is of.
    pub set: u32,
    /// The source is to become the node's address.
    pub masquerade: bool,
}

/// A frontend with its service, before an endpoint is chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    /// The frontend.
    pub frontend: Frontend,
    /// Its service.
    pub service: Service,
}

impl Found {
    /// Whether choosing needs to know the client's address.
    #[inline(always)]
    pub fn needs_client(&self) -> bool {
        self.service.affinity_seconds > 0
            || (self.frontend.kind == KIND_BALANCER && self.service.flags & FLAG_RANGES != 0)
    }
}

/// Whether node ports are served at an address.
#[inline(always)]
fn serves_node_ports<M: Services>(maps: &M, query: &Query) -> bool {
    if is_v4(&query.addr) && query.addr[12] == 127 {
        return query.source == Source::Node
            && maps
                .config()
                .is_some_and(|config| config.flags & CONFIG_LOCALHOST != 0);
    }
    maps.node_addr(&query.addr)
        .is_some_and(|flags| flags & NODE_PORTS != 0)
}

/// The wildcard address of a family.
#[inline(always)]
pub fn wildcard(is_v4: bool) -> Addr {
    let mut addr = [0; 16];
    if is_v4 {
        addr[10] = V4_PREFIX[10];
        addr[11] = V4_PREFIX[11];
    }
    addr
}

/// The frontend at an address.
#[inline(always)]
pub fn find<M: Services>(maps: &M, query: &Query) -> Option<Found> {
    let mut key = FrontendKey {
        addr: query.addr,
        port: query.port,
        protocol: query.protocol,
        pad: 0,
    };
    let frontend = match maps.frontend(&key) {
        Some(frontend) => frontend,
        None => {
            key.addr = wildcard(is_v4(&query.addr));
            let frontend = maps.frontend(&key)?;
            if !serves_node_ports(maps, query) {
                return None;
            }
            frontend
        }
    };
    let service = maps.service(frontend.service)?;
    Some(Found { frontend, service })
}

/// What is done with a connection to what was found. `client` is its source address where that is
/// known; without one, source ranges let nobody in but the node.
#[inline(always)]
pub fn choose<M: Services>(
    maps: &M,
    found: &Found,
    query: &Query,
    client: Option<&Addr>,
) -> Outcome {
    let id = found.frontend.service;
    let service = &found.service;
    if found.frontend.kind == KIND_BALANCER
        && service.flags & FLAG_RANGES != 0
        && !may_come(maps, found, query, client)
    {
        return Outcome::Drop {
            reason: event::DROP_RANGES,
        };
    }
    let paths = if found.frontend.kind == KIND_CLUSTER {
        service.internal
    } else {
        service.external
    };
    let path = match query.source {
        Source::Pod => paths[0],
        Source::Node => paths[1],
        Source::Outside => paths[2],
    };
    match path & !PATH_MASQUERADE {
        PATH_REJECT => return Outcome::Reject { service: id },
        PATH_DROP => {
            return Outcome::Drop {
                reason: event::DROP_POLICY,
            };
        }
        _ => {}
    }
    let set = if path & !PATH_MASQUERADE == crate::abi::PATH_LOCAL {
        SET_LOCAL
    } else {
        SET_CLUSTER
    };
    let sticks = service.affinity_seconds > 0;
    let known = match client {
        Some(client) if sticks => remembered(maps, found, set, client),
        _ => None,
    };
    let endpoint = match known {
        Some(endpoint) => endpoint,
        None => match pick(maps, id, service, set) {
            Some(endpoint) => endpoint,
            None => {
                return Outcome::Drop {
                    reason: event::DROP_SLOT,
                };
            }
        },
    };
    if let Some(client) = client
        && sticks
    {
        remember(maps, id, client, &endpoint);
    }
    let hairpin = client.is_some_and(|client| same(client, &endpoint.addr));
    Outcome::Forward(Chosen {
        endpoint,
        service: id,
        set,
        masquerade: path & PATH_MASQUERADE != 0 || hairpin,
    })
}

/// Both steps.
#[inline(always)]
pub fn resolve<M: Services>(maps: &M, query: &Query, client: Option<&Addr>) -> Outcome {
    match find(maps, query) {
        Some(found) => choose(maps, &found, query, client),
        None => Outcome::NoMatch,
    }
}

#[inline(never)]
fn may_come<M: Services>(maps: &M, found: &Found, query: &Query, client: Option<&Addr>) -> bool {
    let own = found.service.flags & FLAG_OWN_ADDRESS != 0;
    let Some(client) = client else {
        return own && query.source == Source::Node;
    };
    let key = RangeKey {
        bits: RANGE_BITS + 128,
        service: found.frontend.service,
        addr: *client,
    };
    maps.in_ranges(&key) || (own && (query.source == Source::Node || same(client, &query.addr)))
}

/// The endpoint that a client has been sent to before, as long as that is to hold.
#[inline(never)]
fn remembered<M: Services>(maps: &M, found: &Found, set: u32, client: &Addr) -> Option<Endpoint> {
    let (id, service) = (found.frontend.service, &found.service);
    let key = AffinityKey {
        client: *client,
        service: id,
    };
    let known = maps.affinity(&key)?;
    let age = maps.now_ns().wrapping_sub(known.seen_ns);
    let limit = u64::from(service.affinity_seconds) * 1_000_000_000;
    // A clock that another CPU read a moment later makes a huge age of a small negative one.
    if age > limit && age < u64::MAX / 2 {
        return None;
    }
    let member = MemberKey {
        service: id,
        set,
        endpoint: known.endpoint,
    };
    maps.is_member(&member).then_some(known.endpoint)
}

#[inline(never)]
fn remember<M: Services>(maps: &M, service: u32, client: &Addr, endpoint: &Endpoint) {
    let key = AffinityKey {
        client: *client,
        service,
    };
    let value = Affinity {
        seen_ns: maps.now_ns(),
        endpoint: *endpoint,
        pad: 0,
    };
    maps.remember(&key, &value);
}

/// A random endpoint of a set. A set that shrinks at this moment may have lost its last slot
/// already, so a miss is tried again with what the service says by now.
#[inline(never)]
pub fn pick<M: Services>(maps: &M, id: u32, service: &Service, set: u32) -> Option<Endpoint> {
    let mut count = count(service, set);
    let mut tries = 0;
    while tries < 2 {
        let key = SlotKey {
            service: id,
            set,
            index: scale(maps.random(), count),
        };
        if let Some(endpoint) = maps.slot(&key) {
            return Some(endpoint);
        }
        count = match maps.service(id) {
            Some(service) if set == SET_LOCAL => service.counts[1],
            Some(service) => service.counts[0],
            None => return None,
        };
        tries += 1;
    }
    None
}

#[inline(always)]
fn count(service: &Service, set: u32) -> u32 {
    if set == SET_LOCAL {
        service.counts[1]
    } else {
        service.counts[0]
    }
}

/// A random number below `count`, without a division (and without its bias towards low numbers).
#[inline(always)]
pub fn scale(random: u32, count: u32) -> u32 {
    ((u64::from(random) * u64::from(count)) >> 32) as u32
}

/// Whether the first `bits` bits of two addresses are the same.
#[inline(always)]
pub fn within(addr: &Addr, net: &Addr, bits: u32) -> bool {
    let ((a, b), (c, d)) = (halves(addr), halves(net));
    let mask = |bits: u32| {
        if bits == 0 {
            0
        } else {
            u64::MAX << (64 - bits)
        }
    };
    let (high, low) = if bits >= 64 {
        (64, if bits >= 128 { 64 } else { bits - 64 })
    } else {
        (bits, 0)
    };
    (a ^ c) & mask(high) == 0 && (b ^ d) & mask(low) == 0
}
