//! The tracer of the eBPF backend: the entries that a plan writes, and over them the very code that
//! runs in the kernel.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use ebpf_common::abi::{
    Addr, Affinity, AffinityKey, CONFIG_LOCALHOST, Config, Endpoint, Frontend, FrontendKey,
    MemberKey, NODE_PORTS, PLACES, Places, Plain, RANGE_BITS, RangeKey, Service, SlotKey, TableKey,
    from_bytes,
};
use ebpf_common::resolve::{Outcome as Verdict, Query, Services, Source, find, resolve, within};

use super::{Fate, Outcome, Packet, World};
use crate::backend::ebpf::desired::Desired;
use crate::backend::ebpf::diff::{Entries, Known, MapName, full};
use crate::backend::ebpf::plan::{addr, endpoint, protocol, socket};
use crate::backend::{DetectLocal, NodePortScope};

/// Maps in memory.
#[derive(Debug, Default)]
pub struct Tracer {
    config: Config,
    detect: Option<DetectLocal>,
    frontends: BTreeMap<FrontendKey, Frontend>,
    services: BTreeMap<u32, Service>,
    slots: BTreeMap<SlotKey, Endpoint>,
    members: BTreeSet<MemberKey>,
    ranges: BTreeSet<RangeKey>,
    tables: BTreeMap<TableKey, Places>,
    addrs: BTreeMap<Addr, u32>,
    remembered: Vec<Endpoint>,
    random: Cell<u32>,
}

/// Who sends. Pods of the node and the node itself are translated at their sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A pod of this node.
    Pod,
    /// The node itself.
    Node,
    /// Anybody else.
    Outside,
}

fn split<K: Plain, V: Plain>(entries: &Entries) -> impl Iterator<Item = (K, V)> {
    let keys = entries.keys.chunks(size_of::<K>());
    let values = entries.values.chunks(size_of::<V>());
    keys.zip(values)
        .filter_map(|(key, value)| Some((from_bytes(key)?, from_bytes(value)?)))
}

impl Tracer {
    /// Of everything planned for one family, written into empty maps.
    pub fn new(desired: &Desired, world: &World) -> Self {
        let settings = desired.settings();
        let mut tracer = Self {
            detect: settings.detect_local.clone(),
            ..Self::default()
        };
        if settings.serves_localhost() {
            tracer.config.flags |= CONFIG_LOCALHOST;
        }
        for ip in &world.local {
            let serves = match &settings.node_ports {
                NodePortScope::All => true,
                NodePortScope::Only(ips) => ips.contains(ip),
            };
            let serves = serves && !settings.dns_ips.contains(ip);
            let flags = if serves { NODE_PORTS } else { 0 };
            tracer.addrs.insert(addr(*ip), flags);
        }
        let to = |s: &std::net::SocketAddr| endpoint(s.ip(), s.port());
        tracer.remembered = world.remembered.iter().map(to).collect();
        for (delete, map, entries) in full(desired, &mut Known::default()).steps() {
            if !delete {
                tracer.write(map, entries);
            }
        }
        tracer
    }

    fn write(&mut self, map: MapName, entries: &Entries) {
        match map {
            MapName::Frontends => self
                .frontends
                .extend(split::<FrontendKey, Frontend>(entries)),
            MapName::Services => self.services.extend(split::<u32, Service>(entries)),
            MapName::Slots => self.slots.extend(split::<SlotKey, Endpoint>(entries)),
            MapName::Members => self
                .members
                .extend(split::<MemberKey, u32>(entries).map(|(key, _)| key)),
            MapName::Tables => self.tables.extend(split::<TableKey, Places>(entries)),
            MapName::Ranges => self
                .ranges
                .extend(split::<RangeKey, u32>(entries).map(|(key, _)| key)),
        }
    }

    /// The fates of a packet.
    pub fn trace(&self, packet: &Packet, sender: Sender) -> Outcome {
        let mut fates = BTreeSet::new();
        let Some(number) = protocol(packet.protocol) else {
            fates.insert(Fate::NoMatch);
            return Outcome(fates);
        };
        let at_socket = sender != Sender::Outside;
        let source = match sender {
            Sender::Node => Source::Node,
            Sender::Outside if !self.is_pod(packet) => Source::Outside,
            Sender::Pod | Sender::Outside => Source::Pod,
        };
        let query = Query {
            addr: addr(packet.destination),
            port: packet.port.to_be_bytes(),
            protocol: number,
            source,
            client: 0,
        };
        let client = addr(packet.source);
        let most = find(self, &query).map_or(1, |found| {
            found.service.counts.into_iter().max().unwrap_or(1).max(1)
        });
        for i in 0..most {
            // A number that `scale` makes the i-th of as many, in either set.
            for of in find(self, &query).map_or([1, 1], |found| found.service.counts) {
                let of = u64::from(of.max(1));
                let random = (u64::from(i) << 32).div_ceil(of);
                self.random.set(u32::try_from(random).unwrap_or(u32::MAX));
                fates.insert(fate(&resolve(self, &query, Some(&client)), at_socket));
            }
        }
        if let Some(found) = find(self, &query)
            && !at_socket
        {
            // Where there is a table, it is the client that decides: whoever might come.
            if found.service.tables != [0; 2] {
                fates.clear();
            }
            for place in 0..found.service.table_size {
                let number = (u64::from(place) << 32).div_ceil(u64::from(found.service.table_size));
                let query = Query {
                    client: u32::try_from(number).unwrap_or(u32::MAX) | 1,
                    ..query
                };
                fates.insert(fate(&resolve(self, &query, Some(&client)), at_socket));
            }
        }
        Outcome(fates)
    }

    fn is_pod(&self, packet: &Packet) -> bool {
        let name = packet.interface.as_deref().unwrap_or_default();
        match &self.detect {
            Some(DetectLocal::Net(net)) => net.contains(packet.source),
            Some(DetectLocal::Interface(pods)) => name == pods,
            Some(DetectLocal::InterfacePrefix(prefix)) => name.starts_with(prefix),
            None => false,
        }
    }
}

fn fate(verdict: &Verdict, at_socket: bool) -> Fate {
    match verdict {
        Verdict::NoMatch => Fate::NoMatch,
        Verdict::Reject => Fate::Reject,
        Verdict::Drop { .. } => Fate::Drop,
        Verdict::Forward(chosen) => Fate::Endpoint {
            address: socket(&chosen.endpoint),
            masqueraded: chosen.masquerade && !at_socket,
        },
    }
}

impl Services for Tracer {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn service(&self, id: u32) -> Option<Service> {
        self.services.get(&id).copied()
    }

    fn slot(&self, key: &SlotKey) -> Option<Endpoint> {
        self.slots.get(key).copied()
    }

    fn place(&self, key: &TableKey, place: u32) -> Option<u16> {
        let part = self.tables.get(key)?;
        Some(part.0[(place % PLACES) as usize])
    }

    fn is_member(&self, key: &MemberKey) -> bool {
        self.members.contains(key)
    }

    fn node_addr(&self, addr: &Addr) -> Option<u32> {
        self.addrs.get(addr).copied()
    }

    fn in_ranges(&self, key: &RangeKey) -> bool {
        self.ranges.iter().any(|range| {
            range.service == key.service && within(&key.addr, &range.addr, range.bits - RANGE_BITS)
        })
    }

    fn affinity(&self, _key: &AffinityKey) -> Option<Affinity> {
        let endpoint = *self.remembered.first()?;
        Some(Affinity {
            endpoint,
            ..Affinity::default()
        })
    }

    fn remember(&self, _key: &AffinityKey, _value: &Affinity) {}

    fn random(&self) -> u32 {
        self.random.get()
    }

    fn now_ns(&self) -> u64 {
        0
    }
}
