//! Properties over random services, on maps in memory that are checked after every step: what is
//! written leads nowhere that is not there, and in the end is what a new start would want.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::cidr::Family;
use ebpf_common::abi::{
    Endpoint, Frontend, FrontendKey, MemberKey, PLACES, Places, Plain, RangeKey, Service, SlotKey,
    TableKey, bytes_of, from_bytes,
};
use proptest::prelude::*;

use super::desired::Desired;
use super::diff::{Change, Known, MapName, full, touched};
use super::plan::range_key;
use super::table::KnownTable;
use crate::backend::nftables::tests::{decisions, settings, shorts};
use crate::model::{Decision, Decisions, Protocol};

/// One map: values by keys, as bytes.
type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// The maps of a fake kernel.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Maps(BTreeMap<MapName, Entries>);

impl Maps {
    fn put<K: Plain, V: Plain>(&mut self, map: MapName, key: &K, value: &V) {
        let map = self.0.entry(map).or_default();
        map.insert(bytes_of(key).to_vec(), bytes_of(value).to_vec());
    }

    fn get<K: Plain, V: Plain>(&self, map: MapName, key: &K) -> Option<V> {
        from_bytes(self.0.get(&map)?.get(bytes_of(key))?)
    }

    fn all<K: Plain, V: Plain>(&self, map: MapName) -> Vec<(K, V)> {
        let entries = self.0.get(&map).into_iter().flatten();
        entries
            .map(|(key, value)| (from_bytes(key).unwrap(), from_bytes(value).unwrap()))
            .collect()
    }

    fn apply(&mut self, change: &Change) {
        for (delete, name, entries) in change.steps() {
            let map = self.0.entry(name).or_default();
            let keys = entries.keys.chunks(entries.keys.len() / entries.count);
            if delete {
                for key in keys {
                    assert!(map.remove(key).is_some(), "{} is deleted", name.name());
                }
            } else {
                let values = entries.values.chunks(entries.values.len() / entries.count);
                map.extend(keys.zip(values).map(|(k, v)| (k.to_vec(), v.to_vec())));
            }
            if map.is_empty() {
                self.0.remove(&name);
            }
            self.check();
        }
    }

    /// Nothing leads to what is not there.
    fn check(&self) {
        for (front, to) in self.all::<FrontendKey, Frontend>(MapName::Frontends) {
            let found = self.get::<u32, Service>(MapName::Services, &to.service);
            assert!(found.is_some(), "{front:?} leads to no service");
        }
        for (service, value) in self.all::<u32, Service>(MapName::Services) {
            for (set, count) in (0..).zip(value.counts) {
                for index in 0..count {
                    let key = SlotKey {
                        service,
                        set,
                        index,
                    };
                    let found = self.get::<SlotKey, Endpoint>(MapName::Slots, &key);
                    assert!(found.is_some(), "{key:?} is empty");
                }
                self.check_table(service, set, &value);
            }
        }
    }

    /// A table that a service refers to is whole, and all its places lead to endpoints.
    fn check_table(&self, service: u32, set: u32, value: &Service) {
        let generation = value.tables[set as usize];
        if generation == 0 {
            return;
        }
        let mut slots: BTreeSet<u16> = BTreeSet::new();
        for part in 0..value.table_size.div_ceil(PLACES) {
            let key = TableKey {
                service,
                set,
                generation,
                part,
            };
            let found = self.get::<TableKey, Places>(MapName::Tables, &key).unwrap();
            let left = value.table_size - part * PLACES;
            slots.extend(&found.0[..left.min(PLACES) as usize]);
        }
        for slot in slots {
            let key = SlotKey {
                service,
                set,
                index: slot.into(),
            };
            let found = self.get::<SlotKey, Endpoint>(MapName::Slots, &key);
            assert!(found.is_some(), "{key:?} is empty");
        }
    }

    /// The tables, as a new process sees them.
    fn tables(&self) -> BTreeMap<(u32, (u32, u32)), KnownTable> {
        let mut tables: BTreeMap<_, BTreeMap<u32, Places>> = BTreeMap::new();
        for (key, places) in self.all::<TableKey, Places>(MapName::Tables) {
            let of = (key.service, (key.set, key.generation));
            tables.entry(of).or_default().insert(key.part, places);
        }
        let table =
            |parts: &BTreeMap<u32, Places>| KnownTable::of(parts.iter().map(|(n, p)| (*n, p)));
        tables
            .iter()
            .map(|(of, parts)| (*of, table(parts)))
            .collect()
    }

    /// The maps that hold what is known, but tables.
    fn of(known: &Known) -> Self {
        let mut maps = Self::default();
        for (key, value) in &known.frontends {
            maps.put(MapName::Frontends, key, value);
        }
        for (service, of) in &known.services {
            let service = *service;
            let value = of.value.unwrap();
            maps.put(MapName::Services, &service, &value);
            for (set, slots) in (0..).zip(&of.slots) {
                for (index, endpoint) in slots {
                    let index = *index;
                    let key = SlotKey {
                        service,
                        set,
                        index,
                    };
                    maps.put(MapName::Slots, &key, endpoint);
                }
            }
            for (set, endpoint) in &of.members {
                let (set, endpoint) = (*set, *endpoint);
                let key = MemberKey {
                    service,
                    set,
                    endpoint,
                };
                maps.put(MapName::Members, &key, &1_u32);
            }
            for range in &of.ranges {
                let key: RangeKey = range_key(service, range);
                maps.put(MapName::Ranges, &key, &1_u32);
            }
        }
        maps
    }
}

/// Some of the services in UDP, whose endpoints are members too.
fn varied(decisions: Decisions) -> Decisions {
    let each = decisions.into_values().map(|decision| {
        let mut decision = Decision::clone(&decision);
        if decision.port % 2 == 0 {
            decision.name.protocol = Protocol::Udp;
            let serving = decision.targets.iter();
            decision.serving = serving.map(|t| (t.ip, t.port).into()).collect();
        }
        decision.table_size = (decision.port % 3 == 0).then_some(251);
        (decision.name.clone(), Arc::new(decision))
    });
    each.collect()
}

fn change(desired: &mut Desired, before: &Decisions, after: &Decisions) {
    for name in before.keys().filter(|name| !after.contains_key(name)) {
        desired.set(name, None);
    }
    for (name, decision) in after {
        if before.get(name) != Some(decision) {
            desired.set(name, Some(decision));
        }
    }
}

/// What is known is what the maps hold and what is wanted: the plans' endpoints, at the addresses of
/// whoever has them.
fn check(desired: &Desired, known: &Known, maps: &Maps) {
    let mut rest = maps.clone();
    rest.0.remove(&MapName::Tables);
    assert_eq!(Maps::of(known), rest);
    let services = known.services.iter();
    let tables = services.flat_map(|(id, service)| {
        service
            .tables
            .iter()
            .map(|(of, table)| ((*id, *of), *table))
    });
    assert_eq!(tables.collect::<BTreeMap<_, _>>(), maps.tables());
    let again = full(desired, &mut known.clone());
    assert_eq!((again.puts(), again.deletes()), (0, 0));
    for (name, plan) in desired.ports() {
        let service = &known.services[&known.ids[name]];
        for (wanted, slots) in plan.sets.iter().zip(&service.slots) {
            let found: BTreeSet<Endpoint> = slots.values().copied().collect();
            assert_eq!((wanted, wanted.len()), (&found, slots.len()));
        }
    }
    let all = desired.frontends().map(|key| {
        let (name, kind) = desired.owner(key).unwrap();
        (*key, (known.ids[name], kind))
    });
    let found = known.frontends.iter();
    let found: BTreeMap<_, _> = found
        .map(|(key, to)| (*key, (to.service, to.kind)))
        .collect();
    assert_eq!(all.collect::<BTreeMap<_, _>>(), found);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changes_lead_where_a_new_start_leads(steps in prop::collection::vec(shorts(30), 1..5)) {
        let mut desired = Desired::new(settings(Family::V4));
        let (mut known, mut maps) = (Known::default(), Maps::default());
        let mut before = Decisions::new();
        for step in &steps {
            let after = varied(decisions(step));
            change(&mut desired, &before, &after);
            let (names, keys) = desired.take_touched();
            maps.apply(&touched(&desired, &mut known, &names, &keys));
            check(&desired, &known, &maps);
            before = after;
        }
        change(&mut desired, &before, &Decisions::new());
        let (names, keys) = desired.take_touched();
        maps.apply(&touched(&desired, &mut known, &names, &keys));
        prop_assert_eq!(maps, Maps::default());
    }

    #[test]
    fn a_new_process_takes_over(old in shorts(30), new in shorts(30)) {
        let of = |shorts: &[_]| Desired::with(settings(Family::V4), &varied(decisions(shorts)));
        let (old, new) = (of(&old), of(&new));
        let (mut known, mut maps) = (Known::default(), Maps::default());
        maps.apply(&full(&old, &mut known));
        check(&old, &known, &maps);
        // Names are not in the maps.
        known.ids.clear();
        maps.apply(&full(&new, &mut known));
        check(&new, &known, &maps);
        known.ids.clear();
        maps.apply(&full(&old, &mut known));
        check(&old, &known, &maps);
        // The same numbers for whoever is known by an address.
        known.ids.clear();
        let has_address = |desired: &Desired| {
            let owners: BTreeSet<_> = desired.frontends().filter_map(|k| desired.owner(k)).map(|(name, _)| name).collect();
            desired.names().all(|name| owners.contains(name))
        };
        if has_address(&old) {
            let again = full(&old, &mut known);
            prop_assert_eq!((again.puts(), again.deletes()), (0, 0));
        }
    }
}
