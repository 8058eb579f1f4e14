//! From an address and a port to what is done: the one place where traffic of either layer meets
//! the services.

use crate::abi::{
    Addr, Affinity, AffinityKey, CONFIG_LOCALHOST, Config, Endpoint, FLAG_OWN_ADDRESS, FLAG_RANGES,
    Frontend, FrontendKey, KIND_BALANCER, KIND_CLUSTER, MemberKey, NODE_PORTS, PATH_DROP,
    PATH_MASQUERADE, PATH_REJECT, PLACES, Port, RANGE_BITS, RangeKey, SET_CLUSTER, SET_LOCAL,
    Service, SlotKey, TableKey, V4_PREFIX, event, halves, is_v4, same,
};

/// Where a connection comes from; an index of [`Service::internal`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Source {
    /// A pod of this node.
    Pod = 0,
    /// The node itself.
    Node = 1,
    /// Anywhere else.
    #[default]
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
    /// What stands at a place of a table: the index of a slot. The key is of the place's part.
    fn place(&self, key: &TableKey, place: u32) -> Option<u16>;
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
#[derive(Debug, Clone, Copy, Default)]
pub struct Query {
    /// Destination address.
    pub addr: Addr,
    /// Destination port.
    pub port: Port,
    /// Protocol of the IP header.
    pub protocol: u8,
    /// Where it comes from.
    pub source: Source,
    /// The client's number for services with a table ([`crate::maglev::client`]); 0: any endpoint.
    pub client: u32,
}

/// What a connection leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not for a service.
    NoMatch,
    /// Refused.
    Reject,
    /// Dropped.
    Drop {
        /// Reason, of [`event`].
        reason: u32,
    },
    /// To an endpoint.
    Forward(Chosen),
}

/// What is done with a connection to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Refused.
    Reject,
    /// Dropped.
    Drop {
        /// Reason, of [`event`].
        reason: u32,
    },
    /// To the endpoint chosen.
    Forward,
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

/// What is done with a connection to what was found; `chosen` is where it goes, if anywhere. `client`
/// is its source address where that is known; without one, source ranges let nobody in but the node.
///
/// Answers are written where the caller has room: the kernel's stack has little.
#[inline(always)]
pub fn choose<M: Services>(
    maps: &M,
    found: &Found,
    query: &Query,
    client: Option<&Addr>,
    chosen: &mut Chosen,
) -> Choice {
    let service = &found.service;
    chosen.service = found.frontend.service;
    if found.frontend.kind == KIND_BALANCER
        && service.flags & FLAG_RANGES != 0
        && !may_come(maps, found, query, client)
    {
        return Choice::Drop {
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
        PATH_REJECT => return Choice::Reject,
        PATH_DROP => {
            return Choice::Drop {
                reason: event::DROP_POLICY,
            };
        }
        _ => {}
    }
    chosen.set = if path & !PATH_MASQUERADE == crate::abi::PATH_LOCAL {
        SET_LOCAL
    } else {
        SET_CLUSTER
    };
    let sticks = service.affinity_seconds > 0;
    let is_known = match client {
        Some(client) if sticks => remembered(maps, found, client, chosen),
        _ => false,
    };
    if !is_known && !pick(maps, found, query.client, chosen) {
        return Choice::Drop {
            reason: event::DROP_SLOT,
        };
    }
    if let Some(client) = client
        && sticks
    {
        remember(maps, client, chosen);
    }
    let hairpin = client.is_some_and(|client| same(client, &chosen.endpoint.addr));
    chosen.masquerade = path & PATH_MASQUERADE != 0 || hairpin;
    Choice::Forward
}

/// Both steps.
#[inline(always)]
pub fn resolve<M: Services>(maps: &M, query: &Query, client: Option<&Addr>) -> Outcome {
    let Some(found) = find(maps, query) else {
        return Outcome::NoMatch;
    };
    let mut chosen = Chosen::default();
    match choose(maps, &found, query, client, &mut chosen) {
        Choice::Reject => Outcome::Reject,
        Choice::Drop { reason } => Outcome::Drop { reason },
        Choice::Forward => Outcome::Forward(chosen),
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

/// Chooses the endpoint that a client has been sent to before, as long as that is to hold.
#[inline(never)]
fn remembered<M: Services>(maps: &M, found: &Found, client: &Addr, chosen: &mut Chosen) -> bool {
    let key = AffinityKey {
        client: *client,
        service: chosen.service,
    };
    let Some(known) = maps.affinity(&key) else {
        return false;
    };
    let age = maps.now_ns().wrapping_sub(known.seen_ns);
    let limit = u64::from(found.service.affinity_seconds) * 1_000_000_000;
    // A clock that another CPU read a moment later makes a huge age of a small negative one.
    if age > limit && age < u64::MAX / 2 {
        return false;
    }
    let member = MemberKey {
        service: chosen.service,
        set: chosen.set,
        endpoint: known.endpoint,
    };
    if !maps.is_member(&member) {
        return false;
    }
    chosen.endpoint = known.endpoint;
    true
}

#[inline(never)]
fn remember<M: Services>(maps: &M, client: &Addr, chosen: &Chosen) {
    let key = AffinityKey {
        client: *client,
        service: chosen.service,
    };
    let value = Affinity {
        seen_ns: maps.now_ns(),
        endpoint: chosen.endpoint,
        pad: 0,
    };
    maps.remember(&key, &value);
}

/// Chooses an endpoint of a set: the one at the client's place where the service has a table, any one
/// otherwise. A set that shrinks at this moment may have lost its last slot already, and a table may
/// have given way to the next one, so a miss is tried again with what the service says by now.
#[inline(never)]
pub fn pick<M: Services>(maps: &M, found: &Found, client: u32, chosen: &mut Chosen) -> bool {
    let mut key = SlotKey {
        service: chosen.service,
        set: chosen.set,
        index: 0,
    };
    let mut view = View::of(&found.service, key.set);
    let mut tries = 0;
    while tries < 2 {
        if let Some(index) = view.index(maps, &key, client) {
            key.index = index;
            if let Some(endpoint) = maps.slot(&key) {
                chosen.endpoint = endpoint;
                return true;
            }
        }
        let Some(service) = maps.service(key.service) else {
            return false;
        };
        view = View::of(&service, key.set);
        tries += 1;
    }
    false
}

/// What a service says of one set.
struct View {
    /// Endpoints.
    count: u32,
    /// Which table; 0: none.
    table: u32,
    table_size: u32,
}

impl View {
    #[inline(always)]
    fn of(service: &Service, set: u32) -> Self {
        let (count, table) = if set == SET_LOCAL {
            (service.counts[1], service.tables[1])
        } else {
            (service.counts[0], service.tables[0])
        };
        Self {
            count,
            table,
            table_size: service.table_size,
        }
    }

    /// The index of a slot; `None` where the table has given way to another.
    #[inline(always)]
    fn index<M: Services>(&self, maps: &M, of: &SlotKey, client: u32) -> Option<u32> {
        if self.table == 0 || client == 0 {
            return Some(scale(maps.random(), self.count));
        }
        let place = scale(client, self.table_size);
        let key = TableKey {
            service: of.service,
            set: of.set,
            generation: self.table,
            part: place / PLACES,
        };
        maps.place(&key, place).map(u32::from)
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
