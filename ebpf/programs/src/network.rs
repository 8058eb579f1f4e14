//! Programs at ingress and egress of the node's interfaces.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC,
};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_csum_update};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TcContext;
use ebpf_common::abi::{
    Addr, FragmentKey, IFACE_PODS, Iface, Port, Ports, UDP, event, same,
};
use ebpf_common::nat::{self, Action, Work};
use ebpf_common::packet::{Bytes, Fragment, Kind, Packet, parse, v4_bytes};
use ebpf_common::resolve::Services;
use ebpf_common::xdp::Mark;

use crate::maps::{FRAGMENTS, IFACES, Maps, count, happened};

/// Keeps `CHECKSUM_COMPLETE` right for IPv6 (`BPF_F_IPV6`, Linux 6.16).
const F_IPV6: u64 = 1 << 7;

#[classifier]
pub fn ingress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    if let Some(sum) = translated(skb) {
        // What the device has told of the packet was before it was translated.
        if sum != 0 {
            // SAFETY: the context; it refuses packets of which nothing was told.
            unsafe { bpf_csum_update(skb, sum) };
        }
        return TC_ACT_UNSPEC;
    }
    handle(skb, 0)
}

#[classifier]
pub fn egress(ctx: TcContext) -> i32 {
    handle(ctx.skb.skb, 1)
}

/// Whether XDP has translated the packet, and by how much that has changed its sum.
#[inline(always)]
fn translated(skb: *mut __sk_buff) -> Option<u32> {
    // SAFETY: fields of the context.
    let (mark, data, ifindex) = unsafe {
        (
            read_volatile(addr_of!((*skb).data_meta)) as usize,
            read_volatile(addr_of!((*skb).data)) as usize,
            read_volatile(addr_of!((*skb).ingress_ifindex)),
        )
    };
    if mark + size_of::<Mark>() > data {
        return None;
    }
    // SAFETY: as long as was just found; every pattern of bits is a value. Some kernels ask for
    // alignment.
    let mark = unsafe { (mark as *const Mark).read_unaligned() };
    if mark.ifindex != ifindex || mark.who != Mark::of(Maps.config()?) {
        return None;
    }
    Some(mark.sum)
}

/// What a packet needs that the stack has no room for.
#[derive(Default)]
pub struct Scratch {
    pub outer: Packet,
    pub inner: Packet,
    pub work: Work,
    kind: u32,
}

/// One for each direction, and the last before the stack. The network stack handles one packet at a
/// time on a CPU.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(3, 0);

/// The packet's bytes, wherever they are.
struct Skb(TcContext);

impl Bytes for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.load::<[u8; N]>(at).ok()
    }
}

#[inline(always)]
fn handle(skb: *mut __sk_buff, out: u32) -> i32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(out) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: this CPU's and this direction's own element.
    let scratch = unsafe { &mut *scratch };
    read(skb, scratch);
    match scratch.kind() {
        TRANSPORT if ask(scratch) => {}
        ERROR => ask_error(scratch),
        UNREADABLE => {
            happened(event::UNREADABLE);
            return TC_ACT_UNSPEC;
        }
        _ => return TC_ACT_UNSPEC,
    }
    match decide(skb, scratch, out != 0) {
        Action::Pass => TC_ACT_UNSPEC,
        Action::Drop { reason } => {
            happened(reason);
            TC_ACT_SHOT
        }
        Action::Rewrite { .. } if scratch.kind() == ERROR => {
            if !rewrite_error(skb, scratch, out != 0) {
                return TC_ACT_SHOT;
            }
            happened(event::ICMP);
            TC_ACT_UNSPEC
        }
        Action::Rewrite { new } => {
            if !rewrite(skb, scratch, out != 0) {
                return TC_ACT_SHOT;
            }
            rewritten(skb, scratch, out != 0, new);
            TC_ACT_UNSPEC
        }
    }
}

const TRANSPORT: u32 = 1;
const ERROR: u32 = 2;
const UNREADABLE: u32 = 3;

impl Scratch {
    /// What the packet is. Read anew each time, so that the compiler makes one way of what follows,
    /// and not one for each kind: the verifier would check all of them.
    #[inline(always)]
    fn kind(&self) -> u32 {
        // SAFETY: a reference.
        unsafe { read_volatile(&self.kind) }
    }
}

#[inline(never)]
fn read(skb: *mut __sk_buff, scratch: &mut Scratch) {
    let bytes = Skb(TcContext::new(skb));
    scratch.kind = match parse(&bytes, &mut scratch.outer, &mut scratch.inner) {
        Kind::Transport => TRANSPORT,
        Kind::Error => ERROR,
        Kind::Unreadable => UNREADABLE,
        Kind::Other => 0,
    };
}

#[inline(always)]
fn iface(skb: *mut __sk_buff, out: bool) -> Option<&'static Iface> {
    // SAFETY: fields of the context; elements are replaced, not changed.
    unsafe {
        let index = if out {
            read_volatile(addr_of!((*skb).ifindex))
        } else {
            read_volatile(addr_of!((*skb).ingress_ifindex))
        };
        IFACES.get(&index)
    }
}

/// Asks the shared code; the question stands in `scratch.work`.
#[inline(always)]
fn decide(skb: *mut __sk_buff, scratch: &mut Scratch, out: bool) -> Action {
    let iface = iface(skb, out);
    let work = &mut scratch.work;
    if out {
        work.own = match iface {
            Some(iface) if scratch.outer.v4 => iface.v4,
            Some(iface) => iface.v6,
            None => [0; 16],
        };
        egress_of(work)
    } else {
        work.from_pods = iface.is_some_and(|iface| iface.flags & IFACE_PODS != 0);
        ingress_of(work)
    }
}

#[inline(never)]
pub fn ingress_of(work: &mut Work) -> Action {
    nat::ingress(&Maps, work)
}

#[inline(never)]
fn egress_of(work: &mut Work) -> Action {
    nat::egress(&Maps, work)
}

/// Asks about the packet; false for a fragment of which nobody knows the ports.
#[inline(always)]
fn ask(scratch: &mut Scratch) -> bool {
    let packet = &mut scratch.outer;
    if packet.fragment != Fragment::Whole && !fragment(packet) {
        return false;
    }
    let work = &mut scratch.work;
    work.ask(&packet.src, &packet.dst, packet.protocol);
    work.tcp_flags = packet.tcp_flags;
    work.begins = packet.fragment != Fragment::Later;
    true
}

/// Asks about the packet that an error of ICMP is about, which is one of the other direction.
#[inline(always)]
fn ask_error(scratch: &mut Scratch) {
    let inner = &scratch.inner;
    scratch.work.ask(&inner.dst, &inner.src, inner.protocol);
    scratch.work.begins = false;
}

/// Counts a packet that was rewritten.
#[inline(always)]
fn rewritten(skb: *mut __sk_buff, scratch: &Scratch, out: bool, new: bool) {
    if new {
        happened(event::NETWORK);
    }
    if scratch.outer.fragment == Fragment::Later {
        happened(event::FRAGMENTS);
    }
    // Both directions pass one ingress and one egress each: they are counted once.
    if !out {
        // SAFETY: a field of the context.
        let bytes = unsafe { read_volatile(addr_of!((*skb).len)) };
        let work = &scratch.work;
        count(work.service, &work.endpoint, u64::from(new), 1, u64::from(bytes));
    }
}

/// Remembers the ports of a first fragment, finds those of a later one; false when nobody knows.
#[inline(never)]
fn fragment(packet: &mut Packet) -> bool {
    let key = FragmentKey {
        src: packet.src.addr,
        dst: packet.dst.addr,
        id: packet.id,
        protocol: u32::from(packet.protocol),
    };
    if packet.fragment == Fragment::First {
        let ports = Ports {
            src: packet.src.port,
            dst: packet.dst.port,
        };
        return FRAGMENTS.insert(&key, &ports, 0).is_ok();
    }
    // SAFETY: a value is written once for its key.
    match unsafe { FRAGMENTS.get(&key) } {
        Some(ports) => {
            packet.src.port = ports.src;
            packet.dst.port = ports.dst;
            true
        }
        None => false,
    }
}

/// The difference of two addresses as the checksum helpers take it.
#[inline(always)]
fn difference(old: &Addr, new: &Addr, is_v4: bool) -> u64 {
    let (mut old, mut new) = (*old, *new);
    if is_v4 {
        // The same first twelve bytes make no difference; only their sum would.
        let (a, b) = (v4_bytes(&old), v4_bytes(&new));
        old = [0; 16];
        new = [0; 16];
        old[..4].copy_from_slice(&a);
        new[..4].copy_from_slice(&b);
    }
    // SAFETY: both buffers are 16 bytes.
    let sum = unsafe {
        bpf_csum_diff(
            old.as_mut_ptr().cast(),
            16,
            new.as_mut_ptr().cast(),
            16,
            0,
        )
    };
    sum as u64 & 0xffff_ffff
}

#[inline(always)]
fn store_addr(ctx: &TcContext, at: usize, addr: &Addr, is_v4: bool) -> bool {
    if is_v4 {
        ctx.store(at, &v4_bytes(addr), 0).is_ok()
    } else {
        ctx.store(at, addr, 0).is_ok()
    }
}

#[inline(always)]
fn sum(port: Port) -> u64 {
    u64::from(u16::from_ne_bytes(port))
}

/// Fixes a checksum that covers the pseudo header.
#[inline(always)]
fn fix_pseudo(ctx: &TcContext, at: usize, difference: u64, is_v4: bool, udp: u64) -> bool {
    let flags = u64::from(BPF_F_PSEUDO_HDR) | udp;
    if !is_v4 && ctx.l4_csum_replace(at, 0, difference, flags | F_IPV6).is_ok() {
        return true;
    }
    ctx.l4_csum_replace(at, 0, difference, flags).is_ok()
}

/// Rewrites source or destination, with all checksums. False: the packet is not to go on.
#[inline(never)]
fn rewrite(skb: *mut __sk_buff, scratch: &mut Scratch, source: bool) -> bool {
    let ctx = &TcContext::new(skb);
    let (packet, to) = (&scratch.outer, &scratch.work.to);
    let (old, at, port_at) = if source {
        (&packet.src, packet.source_at(), packet.l4)
    } else {
        (&packet.dst, packet.destination_at(), packet.l4 + 2)
    };
    let difference = difference(&old.addr, &to.addr, packet.v4);
    if packet.fragment != Fragment::Later {
        // A UDP checksum of zero means none, and stays.
        let udp = if packet.protocol == UDP {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        let checksum = packet.checksum_at();
        if !fix_pseudo(ctx, checksum, difference, packet.v4, udp)
            || ctx
                .l4_csum_replace(checksum, sum(old.port), sum(to.port), 2 | udp)
                .is_err()
            || ctx.store(port_at, &to.port, 0).is_err()
        {
            return false;
        }
    }
    if packet.v4 && ctx.l3_csum_replace(packet.l3 + 10, 0, difference, 0).is_err() {
        return false;
    }
    store_addr(ctx, at, &to.addr, packet.v4)
}

/// Rewrites an error of ICMP about a packet of a translated flow. At ingress it goes to whom the inner packet came from; at egress it may come from whom
/// the inner packet went to.
#[inline(never)]
fn rewrite_error(skb: *mut __sk_buff, scratch: &mut Scratch, out: bool) -> bool {
    let ctx = &TcContext::new(skb);
    let (outer, inner, to) = (&scratch.outer, &scratch.inner, &scratch.work.to);
    let (old, at, port_at, outer_old, outer_at) = if out {
        (
            &inner.dst,
            inner.destination_at(),
            inner.l4 + 2,
            &outer.src,
            outer.source_at(),
        )
    } else {
        (
            &inner.src,
            inner.source_at(),
            inner.l4,
            &outer.dst,
            outer.destination_at(),
        )
    };
    let v4 = outer.v4;
    let difference = difference(&old.addr, &to.addr, v4);
    let checksum = outer.l4 + 2;
    // In IPv4 the inner header's own checksum takes up the change of its address, so the outer sum
    // over both stays.
    let fixed = if v4 {
        ctx.l3_csum_replace(inner.l3 + 10, 0, difference, 0).is_ok()
    } else {
        ctx.l4_csum_replace(checksum, 0, difference, 0).is_ok()
    };
    if !fixed
        || ctx
            .l4_csum_replace(checksum, sum(old.port), sum(to.port), 2)
            .is_err()
        || !store_addr(ctx, at, &to.addr, v4)
        || ctx.store(port_at, &to.port, 0).is_err()
    {
        return false;
    }
    if !same(&outer_old.addr, &old.addr) {
        return true;
    }
    let fixed = if v4 {
        ctx.l3_csum_replace(outer.l3 + 10, 0, difference, 0).is_ok()
    } else {
        fix_pseudo(ctx, checksum, difference, false, 0)
    };
    fixed && store_addr(ctx, outer_at, &to.addr, v4)
}
