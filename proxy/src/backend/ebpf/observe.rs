//! What the maps of an earlier process hold.

use std::collections::BTreeMap;

use ebpf_common::abi::{
    Endpoint, Frontend, FrontendKey, MemberKey, Places, Plain, RANGE_BITS, RangeKey, Service,
    SlotKey, TableKey, from_bytes, is_v4,
};
use linux::bpf::Map;

use super::diff::{Known, MapName};
use super::object::Maps;
use super::table::KnownTable;

/// Reads all entries of one family.
///
/// # Errors
/// The kernel's refusal.
pub fn observe(maps: &Maps, v4: bool) -> linux::Result<Known> {
    let mut known = Known::default();
    let ours = |id: u32| (id & 1 == 0) == v4;
    for (key, value) in entries::<FrontendKey, Frontend>(maps.of(MapName::Frontends))? {
        if is_v4(&key.addr) == v4 {
            known.frontends.insert(key, value);
        }
    }
    for (id, value) in entries::<u32, Service>(maps.of(MapName::Services))? {
        if ours(id) {
            known.services.entry(id).or_default().value = Some(value);
        }
    }
    for (key, endpoint) in entries::<SlotKey, Endpoint>(maps.of(MapName::Slots))? {
        let slots = known.services.entry(key.service);
        if ours(key.service)
            && let Some(slots) = slots.or_default().slots.get_mut(key.set as usize)
        {
            slots.insert(key.index, endpoint);
        }
    }
    for (key, _) in entries::<MemberKey, u32>(maps.of(MapName::Members))? {
        if ours(key.service) {
            let service = known.services.entry(key.service).or_default();
            service.members.insert((key.set, key.endpoint));
        }
    }
    for (key, _) in entries::<RangeKey, u32>(maps.of(MapName::Ranges))? {
        if ours(key.service) {
            let service = known.services.entry(key.service).or_default();
            let bits = key.bits.saturating_sub(RANGE_BITS);
            service.ranges.insert((bits, key.addr));
        }
    }
    let mut tables: BTreeMap<_, BTreeMap<u32, Places>> = BTreeMap::new();
    for (key, places) in entries::<TableKey, Places>(maps.of(MapName::Tables))? {
        if ours(key.service) {
            let of = (key.service, (key.set, key.generation));
            tables.entry(of).or_default().insert(key.part, places);
        }
    }
    for ((service, of), parts) in tables {
        let table = KnownTable::of(parts.iter().map(|(number, part)| (*number, part)));
        let service = known.services.entry(service).or_default();
        service.tables.insert(of, table);
    }
    known.services.retain(|id, _| ours(*id));
    Ok(known)
}

/// All entries of a map.
///
/// # Errors
/// The kernel's refusal.
pub fn entries<K: Plain, V: Plain>(map: &Map) -> linux::Result<Vec<(K, V)>> {
    let all = map.entries()?.into_iter();
    let all = all.filter_map(|(key, value)| Some((from_bytes(&key)?, from_bytes(&value)?)));
    Ok(all.collect())
}
