//! Maps in memory, one service, and a packet's way through both hooks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use ebpf_common::abi::{
    Addr, Affinity, AffinityKey, Config, Endpoint, FLAG_MEMBERS, FLOW_MASQUERADED, FLOW_REPLY,
    Flow, FlowKey, Frontend, FrontendKey, KIND_EXTERNAL, MemberKey, NODE_PORTS, PATH_CLUSTER,
    PATH_MASQUERADE, PATH_REJECT, PLACES, Port, RangeKey, STATE_ANSWERED, STATE_FIN_CLIENT,
    STATE_FIN_SERVER, Service, SlotKey, TCP, TableKey, UDP, v4,
};
use ebpf_common::maglev::{Turn, fill};
use ebpf_common::nat::{Action, Flows, PORT_FIRST, PORTS, Work, egress, ingress};
use ebpf_common::resolve::Services;

/// A client outside.
pub(crate) fn client(port: u16) -> Endpoint {
    Endpoint::new(v4([203, 0, 113, 2]), port.to_be_bytes())
}

/// The service's address.
pub(crate) fn frontend() -> Endpoint {
    Endpoint::new(v4([192, 168, 99, 11]), [0, 80])
}

/// An endpoint.
pub(crate) fn pod(n: u8) -> Endpoint {
    Endpoint::new(v4([10, 0, 0, n]), [0x1f, 0x90])
}

/// The node.
pub(crate) fn node_v4() -> Addr {
    v4([192, 168, 0, 2])
}

/// What became of a packet and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trip {
    /// Where it went.
    pub(crate) endpoint: Endpoint,
    /// Whom the endpoint saw.
    pub(crate) seen_by_pod: Endpoint,
    /// Who answered the client.
    pub(crate) seen_by_client: Endpoint,
}

/// The maps.
pub(crate) struct World {
    config: Config,
    frontends: RefCell<BTreeMap<FrontendKey, Frontend>>,
    service: Service,
    endpoints: RefCell<Vec<Endpoint>>,
    flows: RefCell<BTreeMap<FlowKey, &'static Flow>>,
    seed: Cell<u32>,
    now_ns: Cell<u64>,
    /// Consistent hashing: indices of endpoints.
    table: Option<Vec<u16>>,
    /// No flow more has room.
    pub(crate) full: bool,
}

impl World {
    /// With `n` endpoints.
    pub(crate) fn new(seed: u32, n: u8, masquerade: bool) -> Self {
        let path = match (n, masquerade) {
            (0, _) => PATH_REJECT,
            (_, true) => PATH_CLUSTER | PATH_MASQUERADE,
            (_, false) => PATH_CLUSTER,
        };
        let mut config = Config::default();
        config.masquerade[0] = node_v4();
        let world = Self {
            config,
            frontends: RefCell::default(),
            service: Service {
                flags: FLAG_MEMBERS,
                external: [path; 3],
                ..Service::default()
            },
            endpoints: RefCell::new((0..n).map(pod).collect()),
            flows: RefCell::default(),
            seed: Cell::new(seed),
            now_ns: Cell::new(1),
            table: None,
            full: false,
        };
        world.also_at([192, 168, 99, 11], 80);
        world
    }

    /// The service at another address, too.
    pub(crate) fn also_at(&self, ip: [u8; 4], port: u16) -> Endpoint {
        let at = Endpoint::new(v4(ip), port.to_be_bytes());
        for protocol in [TCP, UDP] {
            let key = FrontendKey {
                addr: at.addr,
                port: at.port,
                protocol,
                pad: 0,
            };
            let value = Frontend {
                service: 2,
                kind: KIND_EXTERNAL,
                pad: [0; 3],
            };
            self.frontends.borrow_mut().insert(key, value);
        }
        at
    }

    /// Spreads clients by consistent hashing from now on.
    pub(crate) fn hash(&mut self, size: u32, affinity_seconds: u32) {
        let endpoints = self.endpoints.borrow().clone();
        self.table = Some(table(&endpoints, size));
        self.service.table_size = size;
        self.service.tables = [1, 0];
        self.service.affinity_seconds = affinity_seconds;
    }

    /// Other endpoints.
    pub(crate) fn replace_endpoints(&self, endpoints: &[Endpoint]) {
        *self.endpoints.borrow_mut() = endpoints.to_vec();
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, ns: u64) {
        self.now_ns.set(self.now_ns.get() + ns);
    }

    /// How many flows there are.
    pub(crate) fn count(&self) -> usize {
        self.flows.borrow().len()
    }

    /// Whether there is this one.
    pub(crate) fn has(&self, key: &FlowKey) -> bool {
        self.flows.borrow().contains_key(key)
    }

    /// Somebody else has every port towards an endpoint.
    pub(crate) fn take_all_ports(&self, endpoint: &Endpoint, protocol: u8) {
        for port in PORT_FIRST..PORT_FIRST + PORTS {
            let port: Port = u16::try_from(port).unwrap_or(0).to_be_bytes();
            let other = Endpoint::new(v4([203, 0, 113, 200]), port);
            let flow = Flow {
                seen_ns: self.now_ns.get(),
                client: other,
                endpoint: *endpoint,
                ..Flow::default()
            };
            let key = |src, dst, role| FlowKey {
                src,
                dst,
                protocol: u32::from(protocol),
                role,
            };
            let node = Endpoint::new(node_v4(), port);
            self.set_flow(&key(*endpoint, node, FLOW_MASQUERADED), &flow);
            self.set_flow(&key(*endpoint, other, FLOW_REPLY), &flow);
        }
    }

    /// Both ends of every connection say that it ends.
    pub(crate) fn end_all(&self) {
        self.touch_all(STATE_FIN_CLIENT | STATE_FIN_SERVER);
    }

    /// Every connection is answered.
    pub(crate) fn answer_all(&self) {
        self.touch_all(STATE_ANSWERED);
    }

    fn touch_all(&self, state: u32) {
        let keys: Vec<FlowKey> = self.flows.borrow().keys().copied().collect();
        for key in keys {
            self.touch(&key, self.now_ns.get(), state);
        }
    }

    /// A packet to `to` and its answer with the same flags; or the reason of its drop.
    pub(crate) fn trip(
        &self,
        from: &Endpoint,
        to: &Endpoint,
        protocol: u8,
        flags: u8,
    ) -> Result<Trip, u32> {
        let mut work = Work::default();
        (work.tcp_flags, work.begins) = (flags, true);
        let mut hook = |out: bool, src: &Endpoint, dst: &Endpoint| {
            work.ask(src, dst, protocol);
            work.own = [0; 16];
            let action = if out {
                egress(self, &mut work)
            } else {
                ingress(self, &mut work)
            };
            match action {
                Action::Pass => Ok(None),
                Action::Drop { reason } => Err(reason),
                Action::Rewrite { .. } => Ok(Some(work.to)),
            }
        };
        let endpoint = hook(false, from, to)?.unwrap_or(*to);
        let seen_by_pod = hook(true, from, &endpoint)?.unwrap_or(*from);
        let back_to = hook(false, &endpoint, &seen_by_pod)?.unwrap_or(seen_by_pod);
        assert_eq!(back_to, *from, "the answer goes to the client");
        let seen_by_client = hook(true, &endpoint, from)?.unwrap_or(endpoint);
        Ok(Trip {
            endpoint,
            seen_by_pod,
            seen_by_client,
        })
    }
}

/// The table of endpoints of the same weight.
pub(crate) fn table(endpoints: &[Endpoint], size: u32) -> Vec<u16> {
    let turns = (0..).zip(endpoints);
    let turns = turns.map(|(slot, endpoint)| Turn::new(endpoint, slot, 1, size));
    let mut table = vec![0; size as usize];
    fill(&mut turns.collect::<Vec<_>>(), &mut table);
    table
}

impl Services for World {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.borrow().get(key).copied()
    }

    fn service(&self, _id: u32) -> Option<Service> {
        let mut service = self.service;
        service.counts[0] = u32::try_from(self.endpoints.borrow().len()).unwrap_or(0);
        Some(service)
    }

    fn slot(&self, key: &SlotKey) -> Option<Endpoint> {
        self.endpoints.borrow().get(key.index as usize).copied()
    }

    fn place(&self, key: &TableKey, place: u32) -> Option<u16> {
        let table = self.table.as_ref()?;
        assert_eq!((key.generation, key.part), (1, place / PLACES));
        table.get(place as usize).copied()
    }

    fn is_member(&self, key: &MemberKey) -> bool {
        self.endpoints.borrow().contains(&key.endpoint)
    }

    fn node_addr(&self, addr: &Addr) -> Option<u32> {
        (*addr == node_v4()).then_some(NODE_PORTS)
    }

    fn in_ranges(&self, _key: &RangeKey) -> bool {
        true
    }

    fn affinity(&self, _key: &AffinityKey) -> Option<Affinity> {
        None
    }

    fn remember(&self, _key: &AffinityKey, _value: &Affinity) {}

    fn random(&self) -> u32 {
        let next = self
            .seed
            .get()
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        self.seed.set(next);
        next
    }

    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }
}

impl Flows for World {
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.borrow().get(key).copied()
    }

    fn add_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        !self.has(key) && self.set_flow(key, flow)
    }

    fn set_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        if self.full && !self.has(key) {
            return false;
        }
        // A test's maps live as long as its process.
        self.flows
            .borrow_mut()
            .insert(*key, Box::leak(Box::new(*flow)));
        true
    }

    fn touch(&self, key: &FlowKey, now_ns: u64, state: u32) {
        if let Some(mut flow) = self.flow(key).copied() {
            flow.seen_ns = now_ns;
            flow.state |= state;
            self.set_flow(key, &flow);
        }
    }

    fn set_node(&self, key: &FlowKey, node: &Endpoint) {
        if let Some(mut flow) = self.flow(key).copied() {
            flow.node = *node;
            self.set_flow(key, &flow);
        }
    }
}
