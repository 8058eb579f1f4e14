//! What to write so that the maps hold what is wanted, in an order in which no reader ever sees
//! half of a service. Pure.
//!
//! 1. what services will refer to: slots, members, source ranges, tables
//! 2. services: one value with counts and verdicts
//! 3. addresses
//! 4. addresses that go, then services, then what nobody refers to any more

use std::collections::{BTreeMap, BTreeSet};

use ebpf_common::abi::{
    Addr, Endpoint, Frontend, FrontendKey, MemberKey, Plain, SET_SERVING, Service, SlotKey,
    bytes_of, from_bytes,
};

use super::desired::Desired;
use super::migrate::Numbers;
use super::plan::{PortPlan, range_key};
use super::table::{self, KnownTable};
use crate::model::PortName;

/// A map that services are written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapName {
    /// Addresses.
    Frontends,
    /// Services.
    Services,
    /// Endpoints by index.
    Slots,
    /// Endpoints by address.
    Members,
    /// Source ranges.
    Ranges,
    /// Tables of consistent hashing.
    Tables,
}

impl MapName {
    /// All, in order.
    pub const ALL: [Self; 6] = [
        Self::Frontends,
        Self::Services,
        Self::Slots,
        Self::Members,
        Self::Ranges,
        Self::Tables,
    ];

    /// As the object has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frontends => "FRONTENDS",
            Self::Services => "SERVICES",
            Self::Slots => "SLOTS",
            Self::Members => "MEMBERS",
            Self::Ranges => "RANGES",
            Self::Tables => "TABLES",
        }
    }
}

/// Entries to write or to take away, end to end, in one map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// How many.
    pub count: usize,
    /// Keys.
    pub keys: Vec<u8>,
    /// Values; none to take away.
    pub values: Vec<u8>,
}

impl Entries {
    fn put<K: Plain, V: Plain>(&mut self, key: &K, value: &V) {
        self.count += 1;
        self.keys.extend_from_slice(bytes_of(key));
        self.values.extend_from_slice(bytes_of(value));
    }

    fn delete<K: Plain>(&mut self, key: &K) {
        self.count += 1;
        self.keys.extend_from_slice(bytes_of(key));
    }
}

/// What to do: first all of `put`, in the order of the fields' documentation, then all of `delete`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Slots, members, ranges, tables, services, addresses.
    put: BTreeMap<MapName, Entries>,
    /// Addresses, services, then the rest.
    delete: BTreeMap<MapName, Entries>,
}

/// The order of writing.
const PUT_ORDER: [MapName; 6] = [
    MapName::Slots,
    MapName::Members,
    MapName::Ranges,
    MapName::Tables,
    MapName::Services,
    MapName::Frontends,
];

impl Change {
    /// The steps, in order: whether to take away, the map, and the entries.
    pub fn steps(&self) -> impl Iterator<Item = (bool, MapName, &Entries)> {
        let puts = PUT_ORDER.into_iter();
        let puts = puts.filter_map(|map| Some((false, map, self.put.get(&map)?)));
        let deletes = PUT_ORDER.into_iter().rev();
        puts.chain(deletes.filter_map(|map| Some((true, map, self.delete.get(&map)?))))
    }

    /// Entries to write.
    pub fn puts(&self) -> usize {
        self.put.values().map(|entries| entries.count).sum()
    }

    /// Entries to take away.
    pub fn deletes(&self) -> usize {
        self.delete.values().map(|entries| entries.count).sum()
    }

    /// Endpoints that flows of a service may stay with no longer, by the service's number.
    pub fn gone(&self) -> BTreeSet<(u32, Endpoint)> {
        let members = self.delete.get(&MapName::Members);
        let keys = members.map_or(&[][..], |entries| &entries.keys);
        let keys = keys.chunks(size_of::<MemberKey>()).filter_map(from_bytes);
        let gone = keys.filter(|key: &MemberKey| key.set == SET_SERVING);
        gone.map(|key| (key.service, key.endpoint)).collect()
    }

    pub(super) fn put<K: Plain, V: Plain>(&mut self, map: MapName, key: &K, value: &V) {
        self.put.entry(map).or_default().put(key, value);
    }

    pub(super) fn delete<K: Plain>(&mut self, map: MapName, key: &K) {
        self.delete.entry(map).or_default().delete(key);
    }
}

/// A service as the maps have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownService {
    /// Its value; `None`: to be written.
    pub value: Option<Service>,
    /// Slots of both sets.
    pub slots: [BTreeMap<u32, Endpoint>; 2],
    /// Members: set and endpoint.
    pub members: BTreeSet<(u32, Endpoint)>,
    /// Source ranges.
    pub ranges: BTreeSet<(u32, Addr)>,
    /// Tables of consistent hashing, by set and generation.
    pub tables: BTreeMap<(u32, u32), KnownTable>,
}

/// What the maps have of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Addresses.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Services by number.
    pub services: BTreeMap<u32, KnownService>,
    /// Numbers of ports.
    pub ids: BTreeMap<PortName, u32>,
    /// Where the search for a free number goes on.
    next: u32,
    /// Numbers that services have elsewhere, and are to have here.
    elsewhere: Numbers,
    /// All of these: nobody else is given one.
    reserved: BTreeSet<u32>,
}

impl Known {
    /// Services that have these numbers in maps of another layout are to have them here.
    pub fn keep_numbers(&mut self, numbers: &Numbers) {
        self.elsewhere.clone_from(numbers);
        self.reserved = numbers.values().copied().collect();
    }

    /// A number for a port. Numbers of IPv4 are even, those of IPv6 odd, so that both families
    /// share the maps.
    fn id(&mut self, name: &PortName, odd: u32) -> u32 {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        // 0 is no service. Numbers are used again as late as can be.
        loop {
            self.next = self.next.wrapping_add(2).max(2);
            let id = self.next & !1 | odd;
            if !self.services.contains_key(&id) && !self.reserved.contains(&id) {
                self.ids.insert(name.clone(), id);
                self.services.insert(id, KnownService::default());
                return id;
            }
        }
    }
}

/// Everything that differs. Ports are given the numbers under which their addresses are known.
pub fn full(desired: &Desired, known: &mut Known) -> Change {
    known.ids.clear();
    let mut taken = BTreeSet::new();
    for (name, plan) in desired.ports() {
        let own = plan.frontends.keys();
        let own = own.filter(|key| desired.owner(key).is_some_and(|(owner, _)| owner == name));
        let here = own.clone().filter_map(|key| known.frontends.get(key));
        let here = here
            .map(|frontend| frontend.service)
            .find(|id| known.services.contains_key(id) && !taken.contains(id));
        let mut elsewhere = own.filter_map(|key| known.elsewhere.get(key).copied());
        let id = here.or_else(|| elsewhere.find(|id| !known.services.contains_key(id)));
        if let Some(id) = id {
            taken.insert(id);
            known.services.entry(id).or_default();
            known.ids.insert(name.clone(), id);
        }
    }
    let mut change = Change::default();
    let names: BTreeSet<PortName> = desired.names().cloned().collect();
    ports(desired, known, &names, &mut change);
    let mut keys: BTreeSet<FrontendKey> = known.frontends.keys().copied().collect();
    keys.extend(desired.frontends().copied());
    frontends(desired, known, &keys, &mut change);
    let used: BTreeSet<u32> = known.ids.values().copied().collect();
    let unused: Vec<u32> = known.services.keys().copied().collect();
    for id in unused.into_iter().filter(|id| !used.contains(id)) {
        forget(known, id, &mut change);
    }
    change
}

/// What differs in some ports and addresses. `known` becomes what the maps hold afterwards.
pub fn touched(
    desired: &Desired,
    known: &mut Known,
    names: &BTreeSet<PortName>,
    keys: &BTreeSet<FrontendKey>,
) -> Change {
    let mut change = Change::default();
    ports(desired, known, names, &mut change);
    frontends(desired, known, keys, &mut change);
    for name in names {
        if !desired.has(name)
            && let Some(id) = known.ids.remove(name)
        {
            forget(known, id, &mut change);
        }
    }
    change
}

fn ports(desired: &Desired, known: &mut Known, names: &BTreeSet<PortName>, change: &mut Change) {
    let odd = u32::from(desired.settings().family == api::cidr::Family::V6);
    for name in names {
        if let Some(plan) = desired.port(name) {
            let id = known.id(name, odd);
            if let Some(service) = known.services.get_mut(&id) {
                port(id, &plan, service, change);
            }
        }
    }
}

fn port(id: u32, plan: &PortPlan, known: &mut KnownService, change: &mut Change) {
    for (set, wanted) in (0..).zip(&plan.sets) {
        slots(id, set, wanted, &mut known.slots[set as usize], change);
    }
    let mut members = BTreeSet::new();
    if plan.service.flags & ebpf_common::abi::FLAG_MEMBERS != 0 {
        for (set, endpoints) in (0..).zip(&plan.sets) {
            members.extend(endpoints.iter().map(|endpoint| (set, *endpoint)));
        }
        members.extend(plan.serving.iter().map(|endpoint| (SET_SERVING, *endpoint)));
    }
    let key = |(set, endpoint): &(u32, Endpoint)| MemberKey {
        service: id,
        set: *set,
        endpoint: *endpoint,
    };
    for member in members.difference(&known.members) {
        change.put(MapName::Members, &key(member), &1_u32);
    }
    for member in known.members.difference(&members) {
        change.delete(MapName::Members, &key(member));
    }
    known.members = members;
    for range in plan.ranges.difference(&known.ranges) {
        change.put(MapName::Ranges, &range_key(id, range), &1_u32);
    }
    for range in known.ranges.difference(&plan.ranges) {
        change.delete(MapName::Ranges, &range_key(id, range));
    }
    known.ranges.clone_from(&plan.ranges);
    let value = Service {
        tables: table::tables(id, &plan.service, known, change),
        ..plan.service
    };
    if known.value != Some(value) {
        change.put(MapName::Services, &id, &value);
        known.value = Some(value);
    }
}

/// Endpoints that stay keep their slots as far as those are below the new count; the others fill
/// what is free. One endpoint more or less is one slot written, and one deleted at most.
fn slots(
    id: u32,
    set: u32,
    wanted: &BTreeSet<Endpoint>,
    known: &mut BTreeMap<u32, Endpoint>,
    change: &mut Change,
) {
    let key = |index| SlotKey {
        service: id,
        set,
        index,
    };
    let count = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
    let mut kept = BTreeSet::new();
    for endpoint in known.range(..count).map(|(_, endpoint)| *endpoint) {
        kept.insert(endpoint);
    }
    let mut missing = wanted.difference(&kept);
    let mut seen = BTreeSet::new();
    for index in 0..count {
        let stays = known
            .get(&index)
            .is_some_and(|endpoint| wanted.contains(endpoint) && seen.insert(*endpoint));
        if !stays && let Some(endpoint) = missing.next() {
            change.put(MapName::Slots, &key(index), endpoint);
            known.insert(index, *endpoint);
        }
    }
    for index in known.split_off(&count).into_keys() {
        change.delete(MapName::Slots, &key(index));
    }
}

fn frontends(
    desired: &Desired,
    known: &mut Known,
    keys: &BTreeSet<FrontendKey>,
    change: &mut Change,
) {
    for key in keys {
        let wanted = desired.owner(key).and_then(|(name, kind)| {
            Some(Frontend {
                service: *known.ids.get(name)?,
                kind,
                pad: [0; 3],
            })
        });
        match wanted {
            Some(wanted) if known.frontends.get(key) != Some(&wanted) => {
                change.put(MapName::Frontends, key, &wanted);
                known.frontends.insert(*key, wanted);
            }
            Some(_) => {}
            None => {
                if known.frontends.remove(key).is_some() {
                    change.delete(MapName::Frontends, key);
                }
            }
        }
    }
}

fn forget(known: &mut Known, id: u32, change: &mut Change) {
    let Some(mut service) = known.services.remove(&id) else {
        return;
    };
    if service.value.is_some() {
        change.delete(MapName::Services, &id);
    }
    table::forget(id, &service, change);
    for (set, slots) in (0..).zip(&mut service.slots) {
        self::slots(id, set, &BTreeSet::new(), slots, change);
    }
    for (set, endpoint) in service.members {
        let key = MemberKey {
            service: id,
            set,
            endpoint,
        };
        change.delete(MapName::Members, &key);
    }
    for range in &service.ranges {
        change.delete(MapName::Ranges, &range_key(id, range));
    }
}
