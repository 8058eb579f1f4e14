//! Tables of consistent hashing: what they hold, and how one gives way to the next. A service's value
//! says which table holds, so a table is written beside the one in use, the value changes, and then
//! the old one goes: no reader ever sees half of one. Pure.

use std::collections::BTreeMap;

use ebpf_common::abi::{
    Endpoint, PATH_CLUSTER, PATH_LOCAL, PATH_MASQUERADE, PLACES, Places, Service, TableKey,
    bytes_of,
};
use ebpf_common::maglev::{ENDPOINTS_MAX, Turn, fill};

use super::diff::{Change, KnownService, MapName};

/// Every endpoint's share of places is the same: Kubernetes' endpoints have no weights.
const WEIGHT: u32 = 1;

/// A table that is in the maps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KnownTable {
    /// Parts, up to the last one.
    pub parts: u32,
    /// Of all that is in it.
    digest: u64,
}

impl KnownTable {
    /// Of its parts by number.
    pub fn of<'a>(parts: impl IntoIterator<Item = (u32, &'a Places)>) -> Self {
        let mut table = Self::default();
        // FNV-1a, 64 bits.
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |bytes: &[u8]| {
            for byte in bytes {
                digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for (number, part) in parts {
            add(&number.to_ne_bytes());
            add(bytes_of(part));
            table.parts = number + 1;
        }
        table.digest = digest;
        table
    }
}

/// Brings the tables of a service up to date with its slots; returns which tables hold for it. Those
/// that do no longer go when the service's value has changed.
pub fn tables(
    id: u32,
    service: &Service,
    known: &mut KnownService,
    change: &mut Change,
) -> [u32; 2] {
    if service.table_size == 0 && known.tables.is_empty() {
        return [0; 2];
    }
    let in_use = known.value.map_or([0; 2], |value| value.tables);
    let mut tables = [0; 2];
    for (set, generation) in (0..).zip(&mut tables) {
        let slots = &known.slots[set as usize];
        if service.table_size == 0 || !is_used(service, set) || !has_table(slots) {
            continue;
        }
        let parts = parts(slots, service.table_size);
        let wanted = KnownTable::of((0..).zip(&parts));
        let held = in_use[set as usize];
        if known.tables.get(&(set, held)) == Some(&wanted) {
            *generation = held;
            continue;
        }
        *generation = next(held, |n| known.tables.contains_key(&(set, n)));
        for (part, places) in (0..).zip(&parts) {
            change.put(MapName::Tables, &key(id, set, *generation, part), places);
        }
        known.tables.insert((set, *generation), wanted);
    }
    let holds = |(set, generation): &(u32, u32)| tables.get(*set as usize) == Some(generation);
    known.tables.retain(|of, table| {
        let keep = holds(of);
        if !keep {
            delete(id, *of, table, change);
        }
        keep
    });
    tables
}

/// Takes away all tables of a service that goes.
pub fn forget(id: u32, known: &KnownService, change: &mut Change) {
    for (of, table) in &known.tables {
        delete(id, *of, table, change);
    }
}

fn delete(id: u32, (set, generation): (u32, u32), table: &KnownTable, change: &mut Change) {
    for part in 0..table.parts {
        change.delete(MapName::Tables, &key(id, set, generation, part));
    }
}

fn key(service: u32, set: u32, generation: u32, part: u32) -> TableKey {
    TableKey {
        service,
        set,
        generation,
        part,
    }
}

/// The number after `held` that no table has; 0 is none.
fn next(held: u32, is_taken: impl Fn(u32) -> bool) -> u32 {
    let mut number = held;
    loop {
        number = number.wrapping_add(1).max(1);
        if !is_taken(number) {
            return number;
        }
    }
}

/// Whether packets, rather than sockets, are sent to this set.
fn is_used(service: &Service, set: u32) -> bool {
    let path = [PATH_CLUSTER, PATH_LOCAL][usize::from(set == 1)];
    // What pods on other nodes send comes as packets, too; the node itself has sockets only.
    let ways = [service.internal, service.external];
    let mut paths = ways.iter().flat_map(|way| [way[0], way[2]]);
    paths.any(|way| way & !PATH_MASQUERADE == path)
}

fn has_table(slots: &BTreeMap<u32, Endpoint>) -> bool {
    !slots.is_empty() && slots.len() <= ENDPOINTS_MAX
}

/// The table of these slots. Its order is that of the endpoints, which all nodes agree on, whichever
/// slots they have here.
fn parts(slots: &BTreeMap<u32, Endpoint>, size: u32) -> Vec<Places> {
    let mut order: Vec<(&Endpoint, u16)> = slots
        .iter()
        .filter_map(|(slot, endpoint)| Some((endpoint, u16::try_from(*slot).ok()?)))
        .collect();
    order.sort_unstable();
    let turn = |(endpoint, slot): &(&Endpoint, u16)| Turn::new(endpoint, *slot, WEIGHT, size);
    let mut turns: Vec<Turn> = order.iter().map(turn).collect();
    let mut table = vec![0; size as usize];
    fill(&mut turns, &mut table);
    let part = |places: &[u16]| {
        let mut part = Places::default();
        part.0[..places.len()].copy_from_slice(places);
        part
    };
    table.chunks(PLACES as usize).map(part).collect()
}

#[cfg(test)]
mod tests {
    use ebpf_common::abi::{from_bytes, v4};

    use super::*;

    fn service() -> Service {
        Service {
            table_size: 509,
            external: [PATH_CLUSTER; 3],
            ..Service::default()
        }
    }

    fn known(ips: &[u8]) -> KnownService {
        let endpoint = |ip: &u8| Endpoint::new(v4([10, 0, 0, *ip]), [0, 80]);
        let slots = (0..).zip(ips.iter().map(endpoint)).collect();
        KnownService {
            slots: [slots, BTreeMap::new()],
            ..KnownService::default()
        }
    }

    /// What a change does: written, deleted, by generation.
    fn of(change: &Change) -> [Vec<u32>; 2] {
        let mut found = [Vec::new(), Vec::new()];
        for (delete, map, entries) in change.steps() {
            assert_eq!(map, MapName::Tables);
            for key in entries.keys.chunks(size_of::<TableKey>()) {
                let key: TableKey = from_bytes(key).unwrap();
                found[usize::from(delete)].push(key.generation);
            }
        }
        found
    }

    fn step(service: &Service, known: &mut KnownService) -> (u32, [Vec<u32>; 2]) {
        let mut change = Change::default();
        let tables = tables(2, service, known, &mut change);
        known.value = Some(Service { tables, ..*service });
        assert_eq!(tables[1], 0, "nobody is sent to the local set");
        (tables[0], of(&change))
    }

    #[test]
    fn a_table_gives_way_to_the_next_one() {
        let mut known = known(&[1, 2, 3]);
        assert_eq!(step(&service(), &mut known), (1, [vec![1; 2], vec![]]));
        // Nothing has changed: nothing is written.
        assert_eq!(step(&service(), &mut known), (1, [vec![], vec![]]));
        known.slots[0].remove(&2);
        assert_eq!(step(&service(), &mut known), (2, [vec![2; 2], vec![1; 2]]));
        // Other places.
        let larger = Service {
            table_size: 1021,
            ..service()
        };
        assert_eq!(step(&larger, &mut known), (3, [vec![3; 4], vec![2; 2]]));
        // What a process that was killed has left half written goes, too.
        known.tables.insert((0, 4), KnownTable::default());
        known.tables.insert(
            (1, 9),
            KnownTable {
                parts: 1,
                ..KnownTable::default()
            },
        );
        assert_eq!(step(&larger, &mut known), (3, [vec![], vec![9]]));
        // No endpoint, no table; no annotation any more, no table.
        known.slots[0].clear();
        assert_eq!(step(&larger, &mut known), (0, [vec![], vec![3; 4]]));
        assert!(known.tables.is_empty());
    }

    #[test]
    fn a_node_that_has_other_slots_has_the_same_table() {
        let endpoints = |known: &KnownService| -> Vec<Endpoint> {
            let slots = &known.slots[0];
            let places = parts(slots, 251);
            let places = places.iter().flat_map(|part| part.0);
            places
                .take(251)
                .map(|slot| slots[&u32::from(slot)])
                .collect()
        };
        assert_eq!(endpoints(&known(&[1, 2, 3])), endpoints(&known(&[3, 1, 2])));
    }

    #[test]
    fn numbers_begin_anew_behind_the_last() {
        assert_eq!(next(u32::MAX, |n| n < 3), 3);
    }
}
