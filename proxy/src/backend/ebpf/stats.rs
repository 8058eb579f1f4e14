//! What the programs count, read from their maps: events, services and endpoints, and how full the
//! maps are.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ebpf_common::abi::{Counter, CounterKey, Plain, event, from_bytes};
use ebpf_common::xdp::event as xdp_event;
use linux::bpf::Map;

use super::object::{ALL, Maps};
use super::plan;
use crate::model::PortName;

/// Maps whose entries are not counted: always full, or of passing things.
const UNCOUNTED: [&str; 4] = ["CONFIG", "FRAGMENTS", "EVENTS", "XDP_EVENTS"];

/// The values of all CPUs in one read.
fn per_cpu<T: Plain>(bytes: &[u8]) -> impl Iterator<Item = T> {
    let one = size_of::<T>();
    let chunks = bytes.chunks_exact(one.next_multiple_of(8));
    chunks.filter_map(move |chunk| from_bytes(&chunk[..one]))
}

/// An event's count over all CPUs.
fn total(map: &Map, index: u32) -> linux::Result<u64> {
    let value = map.lookup(&index.to_ne_bytes())?.unwrap_or_default();
    let words = value.chunks_exact(8);
    let numbers = words.filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)));
    Ok(numbers.sum())
}

/// Text for Prometheus. `names` says which service a number stands for, `ended` how many sockets of
/// endpoints that were gone have been ended.
///
/// # Errors
/// The kernel's refusal.
pub fn render(maps: &Maps, names: &BTreeMap<u32, PortName>, ended: u64) -> linux::Result<String> {
    let mut text = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _written = text.write_fmt(args);
        text.push('\n');
    };
    line(format_args!("# TYPE seaway_ebpf_events_total counter"));
    for (index, name) in (0..event::COUNT).zip(event::NAMES) {
        let count = total(maps.get("EVENTS"), index)?;
        line(format_args!(
            "seaway_ebpf_events_total{{event=\"{name}\"}} {count}"
        ));
    }
    line(format_args!("# TYPE seaway_ebpf_xdp_packets_total counter"));
    for (index, name) in (0..xdp_event::COUNT).zip(xdp_event::NAMES) {
        let count = total(maps.get("XDP_EVENTS"), index)?;
        line(format_args!(
            "seaway_ebpf_xdp_packets_total{{action=\"{name}\"}} {count}"
        ));
    }
    line(format_args!(
        "# TYPE seaway_ebpf_sockets_ended_total counter"
    ));
    line(format_args!("seaway_ebpf_sockets_ended_total {ended}"));
    line(format_args!("# TYPE seaway_ebpf_map_entries gauge"));
    for name in ALL.iter().filter(|name| !UNCOUNTED.contains(name)) {
        let map = maps.get(name);
        let (count, max) = (map.count()?, map.info().max_entries);
        line(format_args!(
            "seaway_ebpf_map_entries{{map=\"{name}\"}} {count}"
        ));
        line(format_args!(
            "seaway_ebpf_map_max_entries{{map=\"{name}\"}} {max}"
        ));
    }
    let mut counters = maps.get("COUNTERS").entries()?;
    counters.sort_unstable();
    for (key, value) in counters {
        let Some(key) = from_bytes::<CounterKey>(&key) else {
            continue;
        };
        let Some(name) = names.get(&key.service) else {
            continue;
        };
        let mut sum = Counter::default();
        for one in per_cpu::<Counter>(&value) {
            sum.connections += one.connections;
            sum.packets += one.packets;
            sum.bytes += one.bytes;
        }
        let endpoint = plan::socket(&key.endpoint);
        let protocol = name.protocol;
        for (what, count) in [
            ("connections", sum.connections),
            ("packets", sum.packets),
            ("bytes", sum.bytes),
        ] {
            line(format_args!(
                "seaway_ebpf_{what}_total{{service=\"{name}\",protocol=\"{protocol}\",endpoint=\"{endpoint}\"}} {count}"
            ));
        }
    }
    Ok(text)
}
