//! The maps, and how the shared code reads and writes them. Sizes are defaults: the proxy sets them.

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, lpm_trie::Key};
use ebpf_common::abi::{
    Addr, Affinity, AffinityKey, Config, Counter, CounterKey, Endpoint, Flow, FlowKey, FragmentKey,
    Frontend, FrontendKey, Iface, MemberKey, NodeAddr, PLACES, Places, Ports, RangeKey, Service,
    SlotKey, SocketKey, SocketPeer, TableKey, event,
};
use ebpf_common::nat::Flows;
use ebpf_common::resolve::Services;
use ebpf_common::socket::Sockets;
use ebpf_common::xdp::event as xdp_event;

/// Elements of these maps are replaced as a whole: readers see the old value or the new one.
const ATOMIC: u32 = BPF_F_NO_PREALLOC;

#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(65_536, ATOMIC);
#[map]
pub static SERVICES: HashMap<u32, Service> = HashMap::pinned(65_536, ATOMIC);
#[map]
pub static SLOTS: HashMap<SlotKey, Endpoint> = HashMap::pinned(262_144, ATOMIC);
#[map]
pub static TABLES: HashMap<TableKey, Places> = HashMap::pinned(65_536, ATOMIC);
#[map]
pub static MEMBERS: HashMap<MemberKey, u32> = HashMap::pinned(262_144, ATOMIC);
#[map]
pub static RANGES: LpmTrie<[u8; 20], u32> = LpmTrie::pinned(16_384, ATOMIC);
#[map]
pub static NODE_ADDRS: HashMap<Addr, NodeAddr> = HashMap::pinned(1024, ATOMIC);
#[map]
pub static IFACES: HashMap<u32, Iface> = HashMap::pinned(4096, ATOMIC);
#[map]
pub static AFFINITIES: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(65_536, 0);
#[map]
pub static SOCKETS: LruHashMap<SocketKey, SocketPeer> = LruHashMap::pinned(131_072, 0);
#[map]
pub static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(262_144, 0);
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Ports> = LruHashMap::pinned(4096, 0);
#[map]
pub static COUNTERS: LruPerCpuHashMap<CounterKey, Counter> = LruPerCpuHashMap::pinned(32_768, 0);
#[map]
pub static EVENTS: PerCpuArray<u64> = PerCpuArray::pinned(event::COUNT, 0);
#[map]
pub static XDP_EVENTS: PerCpuArray<u64> = PerCpuArray::pinned(xdp_event::COUNT, 0);

/// The maps as the shared code sees them.
pub struct Maps;

impl Services for Maps {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        // SAFETY: elements are replaced, not changed (`ATOMIC`).
        unsafe { FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn service(&self, id: u32) -> Option<Service> {
        // SAFETY: as above.
        unsafe { SERVICES.get(&id) }.copied()
    }

    #[inline(always)]
    fn slot(&self, key: &SlotKey) -> Option<Endpoint> {
        // SAFETY: as above.
        unsafe { SLOTS.get(key) }.copied()
    }

    #[inline(always)]
    fn place(&self, key: &TableKey, place: u32) -> Option<u16> {
        // SAFETY: as above.
        let part = unsafe { TABLES.get(key) }?;
        Some(part.0[(place % PLACES) as usize])
    }

    #[inline(always)]
    fn is_member(&self, key: &MemberKey) -> bool {
        MEMBERS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn node_addr(&self, addr: &Addr) -> Option<u32> {
        // SAFETY: as above.
        unsafe { NODE_ADDRS.get(addr) }.map(|value| value.flags)
    }

    #[inline(always)]
    fn in_ranges(&self, key: &RangeKey) -> bool {
        let mut data = [0; 20];
        data[..4].copy_from_slice(&key.service.to_ne_bytes());
        data[4..].copy_from_slice(&key.addr);
        RANGES.get(Key::new(key.bits, data)).is_some()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: a torn value is at worst an endpoint that the map of members does not have.
        unsafe { AFFINITIES.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &AffinityKey, value: &Affinity) {
        let _ = AFFINITIES.insert(key, value, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }
}

impl Sockets for Maps {
    #[inline(always)]
    fn socket(&self, key: &SocketKey) -> Option<SocketPeer> {
        // SAFETY: a value is written once for its key, or again with the same meaning.
        unsafe { SOCKETS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_socket(&self, key: &SocketKey, value: &SocketPeer) -> bool {
        SOCKETS.insert(key, value, u64::from(BPF_ANY)).is_ok()
    }
}

impl Flows for Maps {
    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        // SAFETY: numbers in it change in place; every pattern of bits is a value.
        unsafe { FLOWS.get(key) }
    }

    #[inline(always)]
    fn add_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok() && is_looked_up(key)
    }

    #[inline(always)]
    fn set_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        FLOWS.insert(key, flow, u64::from(BPF_ANY)).is_ok() && is_looked_up(key)
    }

    #[inline(always)]
    fn touch(&self, key: &FlowKey, now_ns: u64, state: u32) {
        if let Some(flow) = FLOWS.get_ptr_mut(key) {
            // SAFETY: the kernel keeps the element while the program runs.
            unsafe {
                (*flow).seen_ns = now_ns;
                if (*flow).state | state != (*flow).state {
                    (*flow).state |= state;
                }
            }
        }
    }

    #[inline(always)]
    fn set_node(&self, key: &FlowKey, node: &Endpoint) {
        if let Some(flow) = FLOWS.get_ptr_mut(key) {
            // SAFETY: as above.
            unsafe { (*flow).node = *node };
        }
    }
}

/// Looks a new flow up. The kernel counts an entry as used from its first look-up on: one that has
/// only been written gives way before old ones that were used once, so that a full map would forget
/// connections that are just being made.
#[inline(always)]
fn is_looked_up(key: &FlowKey) -> bool {
    FLOWS.get_ptr(key).is_some()
}

/// Counts an event.
#[inline(always)]
pub fn happened(event: u32) {
    if let Some(count) = EVENTS.get_ptr_mut(event) {
        // SAFETY: this CPU's own element.
        unsafe { *count += 1 };
    }
}

/// Counts what is done before the stack.
#[inline(always)]
pub fn xdp_happened(event: u32) {
    if let Some(count) = XDP_EVENTS.get_ptr_mut(event) {
        // SAFETY: this CPU's own element.
        unsafe { *count += 1 };
    }
}

/// Counts for an endpoint of a service.
#[inline(never)]
pub fn count(service: u32, endpoint: &Endpoint, connections: u64, packets: u64, bytes: u64) {
    let key = CounterKey {
        service,
        endpoint: *endpoint,
    };
    match COUNTERS.get_ptr_mut(&key) {
        // SAFETY: this CPU's own element.
        Some(counter) => unsafe {
            (*counter).connections += connections;
            (*counter).packets += packets;
            (*counter).bytes += bytes;
        },
        None => {
            let counter = Counter {
                connections,
                packets,
                bytes,
            };
            let _ = COUNTERS.insert(&key, &counter, u64::from(BPF_ANY));
        }
    }
}
