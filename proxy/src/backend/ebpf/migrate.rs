//! What an earlier process with another layout has left: which layouts are understood, which of their
//! maps are used on as they are, and under which numbers services stay known. Pure.

use std::collections::BTreeMap;

use ebpf_common::abi::{
    Affinity, AffinityKey, Counter, CounterKey, Flow, FlowKey, FragmentKey, Frontend, FrontendKey,
    Ports, SocketKey, SocketPeer, VERSION, event,
};
use linux::bpf::MapInfo;

use super::sizes::Sizes;

/// First letters of directories with maps.
pub const MAPS: &str = "maps-";

/// Maps of what running connections need. Where only sizes are others, their entries are copied.
pub const TAKEN_OVER: [&str; 3] = ["FLOWS", "SOCKETS", "AFFINITIES"];

/// The first version in which addresses and what programs remember look as they do today. What has
/// changed since is written anew from what is wanted: version 2 has tables of consistent hashing, and
/// more in a service's value.
const FIRST: u32 = 1;

/// `BPF_MAP_TYPE_PERCPU_ARRAY`, `LRU_HASH` and `LRU_PERCPU_HASH`.
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LRU_PERCPU_HASH: u32 = 10;

/// The version of the layout in a directory of this name (`maps-vVERSION-SIZES`).
pub fn version(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(MAPS)?.strip_prefix('v')?;
    rest.split('-').next()?.parse().ok()
}

/// Whether what is in a layout can be used.
pub fn is_understood(version: Option<u32>) -> bool {
    version.is_some_and(|version| (FIRST..=VERSION).contains(&version))
}

/// Maps that the programs write, as this version makes them: name, type, bytes of keys and of values.
fn remembering() -> [(&'static str, u32, usize, usize); 6] {
    [
        ("FLOWS", LRU_HASH, size_of::<FlowKey>(), size_of::<Flow>()),
        (
            "SOCKETS",
            LRU_HASH,
            size_of::<SocketKey>(),
            size_of::<SocketPeer>(),
        ),
        (
            "AFFINITIES",
            LRU_HASH,
            size_of::<AffinityKey>(),
            size_of::<Affinity>(),
        ),
        (
            "FRAGMENTS",
            LRU_HASH,
            size_of::<FragmentKey>(),
            size_of::<Ports>(),
        ),
        (
            "COUNTERS",
            LRU_PERCPU_HASH,
            size_of::<CounterKey>(),
            size_of::<Counter>(),
        ),
        ("EVENTS", PERCPU_ARRAY, size_of::<u32>(), size_of::<u64>()),
    ]
}

/// Those of them of another layout that are used on: the ones that are as this version would make
/// them. The programs of both then have the same map, and no connection is between two of them.
pub fn shared(theirs: &BTreeMap<&'static str, MapInfo>, sizes: &Sizes) -> Vec<&'static str> {
    let is_same = |(name, kind, key, value): &(&'static str, u32, usize, usize)| {
        let size = sizes.0.iter().find(|(known, _)| known == name);
        let size = size.map_or(event::COUNT, |(_, size)| *size);
        theirs.get(name).is_some_and(|info| {
            (info.kind, info.max_entries, info.flags) == (*kind, size, 0)
                && (info.key_size as usize, info.value_size as usize) == (*key, *value)
        })
    };
    let all = remembering().into_iter();
    all.filter(is_same).map(|(name, ..)| name).collect()
}

/// Names of the maps that may be used on.
pub fn names() -> impl Iterator<Item = &'static str> {
    remembering().into_iter().map(|(name, ..)| name)
}

/// Numbers under which services are known in another layout, by their addresses. What programs remember
/// names services by number, so each service keeps its own.
pub type Numbers = BTreeMap<FrontendKey, u32>;

/// Those in a map of addresses.
pub fn numbers(frontends: impl IntoIterator<Item = (FrontendKey, Frontend)>) -> Numbers {
    let each = frontends.into_iter();
    each.map(|(key, frontend)| (key, frontend.service))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_up_to_ours_are_understood() {
        for (name, expect, understood) in [
            ("maps-v1-0a0b0c0d", Some(1), true),
            ("maps-v2-0a0b0c0d", Some(2), true),
            ("maps-v0-0a0b0c0d", Some(0), false),
            ("maps-v99-0a0b0c0d", Some(99), false),
            ("maps-vx-1", None, false),
            ("links", None, false),
        ] {
            assert_eq!(version(name), expect, "{name}");
            assert_eq!(is_understood(version(name)), understood, "{name}");
        }
        assert!(is_understood(Some(VERSION)));
    }

    #[test]
    fn maps_that_are_as_ours_are_used_on() {
        let sizes = Sizes(vec![("FLOWS", 100), ("SOCKETS", 50)]);
        let info = |kind, key_size, value_size, max_entries| MapInfo {
            kind,
            key_size,
            value_size,
            max_entries,
            ..MapInfo::default()
        };
        let flows = info(LRU_HASH, 48, 104, 100);
        let sockets = info(LRU_HASH, 32, 28, 50);
        let both = |flows| BTreeMap::from([("FLOWS", flows), ("SOCKETS", sockets)]);
        assert_eq!(shared(&both(flows), &sizes), ["FLOWS", "SOCKETS"]);
        for other in [
            info(1, 48, 104, 100),
            info(LRU_HASH, 52, 104, 100),
            info(LRU_HASH, 48, 96, 100),
            info(LRU_HASH, 48, 104, 99),
            MapInfo { flags: 1, ..flows },
        ] {
            assert_eq!(shared(&both(other), &sizes), ["SOCKETS"], "{other:?}");
        }
    }
}
