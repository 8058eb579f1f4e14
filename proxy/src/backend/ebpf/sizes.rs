//! Sizes of the maps, from the machine's memory. Pure but for reading how much there is.

/// Bytes that a tracked flow takes: a client's connection has two or three entries of some 200.
const FLOW_BYTES: u64 = 256;

/// The part of memory that tracked flows may take: one in this many.
const FLOWS_SHARE: u64 = 256;

/// Fewest and most entries of flows.
const FLOWS: (u32, u32) = (16_384, 4_194_304);

/// The part of memory that the lists of endpoints' places take before there is any: 16 bytes each, in
/// two maps, and the kernel writes to all of them when it makes the maps.
const SLOTS_SHARE: u64 = 512;
const SLOT_BYTES: u64 = 32;

/// Fewest and most endpoints.
const SLOTS: (u32, u32) = (262_144, 2_097_152);

/// Sizes, by name of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes(pub Vec<(&'static str, u32)>);

impl Sizes {
    /// For a machine with this many bytes of memory; `flows_max` overrules.
    pub fn of(memory: u64, flows_max: Option<u32>) -> Self {
        let by_memory = memory / FLOWS_SHARE / FLOW_BYTES;
        let by_memory = u32::try_from(by_memory).unwrap_or(u32::MAX);
        let flows = flows_max.map_or(by_memory.clamp(FLOWS.0, FLOWS.1), |n| n.max(16));
        let slots = u32::try_from(memory / SLOTS_SHARE / SLOT_BYTES).unwrap_or(u32::MAX);
        // The kernel makes a power of two of it, the next larger one.
        let slots = 1 << slots.clamp(SLOTS.0, SLOTS.1).ilog2();
        let third = (flows / 2).clamp(8192, 1_048_576);
        Self(vec![
            // Elements of these take memory when they are there, and 8 to 16 bytes for each at once.
            ("FRONTENDS", 524_288),
            ("SERVICES", 262_144),
            ("SLOTS", slots),
            ("MEMBERS", slots),
            ("RANGES", 262_144),
            // 1024 of the usual size.
            ("TABLES", 65_536),
            ("NODE_ADDRS", 4096),
            ("IFACES", 8192),
            // These are set aside at once.
            ("AFFINITIES", third),
            ("SOCKETS", third),
            ("FLOWS", flows),
            ("FRAGMENTS", 4096),
            ("COUNTERS", 16_384),
        ])
    }

    /// A short name for them, for the path under which maps are pinned.
    pub fn tag(&self) -> String {
        // FNV-1a, 32 bits: short and the same for ever.
        let bytes = self.0.iter().flat_map(|(_, size)| size.to_le_bytes());
        let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        format!("v{}-{hash:08x}", ebpf_common::abi::VERSION)
    }
}

/// Bytes of memory of this machine.
pub fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    total.unwrap_or(1_048_576) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(of: &str, sizes: &Sizes) -> u32 {
        sizes.0.iter().find(|(name, _)| *name == of).unwrap().1
    }

    fn flows(sizes: &Sizes) -> u32 {
        size("FLOWS", sizes)
    }

    #[test]
    fn endpoints_have_places_by_memory() {
        for (gib, expect) in [
            (0, 262_144),
            (4, 262_144),
            (8, 524_288),
            (23, 1_048_576),
            (999, 2_097_152),
        ] {
            let sizes = Sizes::of(gib << 30, None);
            assert_eq!(size("SLOTS", &sizes), expect, "{gib}");
            assert_eq!(size("MEMBERS", &sizes), expect, "{gib}");
        }
    }

    #[test]
    fn more_memory_more_flows_within_bounds() {
        assert_eq!(flows(&Sizes::of(0, None)), 16_384);
        assert_eq!(flows(&Sizes::of(16 << 30, None)), 262_144);
        assert_eq!(flows(&Sizes::of(1 << 50, None)), 4_194_304);
        assert_eq!(flows(&Sizes::of(16 << 30, Some(100))), 100);
    }

    #[test]
    fn other_sizes_have_another_tag() {
        let (a, b) = (Sizes::of(0, None), Sizes::of(0, Some(100)));
        assert_ne!(a.tag(), b.tag());
        assert!(a.tag().starts_with("v2-"), "{}", a.tag());
    }
}
