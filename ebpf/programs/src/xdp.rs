//! Before the stack, at interfaces to the outside: what is to be dropped, and the destinations of
//! whole packets with complete checksums. Everything else goes on untouched to the program at ingress,
//! and so does what was translated, with a mark in front.

use core::ffi::c_void;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::{
    bpf_xdp_adjust_meta, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use ebpf_common::abi::{IFACE_PODS, event};
use ebpf_common::nat::Action;
use ebpf_common::packet::{Bytes, Kind, parse, v4_bytes};
use ebpf_common::resolve::Services;
use ebpf_common::xdp::{Head, Mark, event as xdp_event, may_be_partial, read, sums};

use crate::maps::{IFACES, Maps, count, happened, xdp_happened};
use crate::network::{SCRATCH, Scratch, ingress_of};

#[xdp]
pub fn before_stack(ctx: XdpContext) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(2) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: this CPU's own element, and nobody else's index.
    let scratch = unsafe { &mut *scratch };
    let mut head = Head::default();
    if !is_plain(ctx.ctx, scratch, &mut head) {
        return xdp_action::XDP_PASS;
    }
    if may_be_partial(&scratch.outer, &head) {
        xdp_happened(xdp_event::CHECKSUM);
        return xdp_action::XDP_PASS;
    }
    translate(ctx.ctx, scratch, &head)
}

/// The frame's bytes.
struct Frame(*mut xdp_md);

impl Bytes for Frame {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: as many bytes as said.
        let code = unsafe {
            bpf_xdp_load_bytes(self.0, at as u32, bytes.as_mut_ptr().cast(), N as u32)
        };
        (code == 0).then_some(bytes)
    }
}

/// Reads a packet; false where it is to go on untouched.
#[inline(never)]
fn is_plain(ctx: *mut xdp_md, scratch: &mut Scratch, head: &mut Head) -> bool {
    let frame = Frame(ctx);
    if parse(&frame, &mut scratch.outer, &mut scratch.inner) != Kind::Transport {
        return false;
    }
    // SAFETY: the context.
    let length = unsafe { bpf_xdp_get_buff_len(ctx) };
    read(&frame, &scratch.outer, length as usize, head)
}

#[inline(always)]
fn translate(ctx: *mut xdp_md, scratch: &mut Scratch, head: &Head) -> u32 {
    // SAFETY: a field of the context.
    let ifindex = unsafe { read_volatile(addr_of!((*ctx).ingress_ifindex)) };
    // SAFETY: elements are replaced, not changed.
    let iface = unsafe { IFACES.get(&ifindex) };
    let (packet, work) = (&scratch.outer, &mut scratch.work);
    work.ask(&packet.src, &packet.dst, packet.protocol);
    work.tcp_flags = packet.tcp_flags;
    work.begins = true;
    work.from_pods = iface.is_some_and(|iface| iface.flags & IFACE_PODS != 0);
    let new = match ingress_of(work) {
        Action::Pass => return xdp_action::XDP_PASS,
        Action::Drop { reason } => {
            happened(reason);
            xdp_happened(xdp_event::DROPPED);
            return xdp_action::XDP_DROP;
        }
        Action::Rewrite { new } => new,
    };
    if new {
        happened(event::NETWORK);
    }
    let sums = sums(packet, head, &packet.dst, &work.to);
    if !mark(ctx, ifindex, sums.packet) {
        // The program at ingress finds the flow that was just made, and counts the packet.
        if new {
            count(work.service, &work.endpoint, 1, 0, 0);
        }
        xdp_happened(xdp_event::NO_MARK);
        return xdp_action::XDP_PASS;
    }
    if !rewrite(ctx, scratch, sums.ip, sums.l4) {
        return xdp_action::XDP_DROP;
    }
    // SAFETY: the context.
    let bytes = unsafe { bpf_xdp_get_buff_len(ctx) };
    let work = &scratch.work;
    count(work.service, &work.endpoint, u64::from(new), 1, bytes);
    xdp_happened(xdp_event::TRANSLATED);
    xdp_action::XDP_PASS
}

/// Says in front of the packet that it is translated; false where the driver has no room for that.
#[inline(always)]
fn mark(ctx: *mut xdp_md, ifindex: u32, sum: u16) -> bool {
    let Some(config) = Maps.config() else {
        return false;
    };
    let length = size_of::<Mark>();
    // SAFETY: the context.
    if unsafe { bpf_xdp_adjust_meta(ctx, -(length as i32)) } != 0 {
        return false;
    }
    // SAFETY: fields of the context.
    let (at, data) = unsafe {
        (
            read_volatile(addr_of!((*ctx).data_meta)) as usize,
            read_volatile(addr_of!((*ctx).data)) as usize,
        )
    };
    if at + length > data {
        return false;
    }
    let mark = Mark {
        who: Mark::of(config),
        ifindex,
        sum: u32::from(u16::from_ne_bytes(sum.to_be_bytes())),
    };
    // SAFETY: as long as was just found. Some kernels ask for alignment.
    unsafe { (at as *mut Mark).write_unaligned(mark) };
    true
}

#[inline(always)]
fn store(ctx: *mut xdp_md, at: usize, bytes: &[u8]) -> bool {
    let from = bytes.as_ptr().cast_mut().cast::<c_void>();
    // SAFETY: as many bytes as said.
    unsafe { bpf_xdp_store_bytes(ctx, at as u32, from, bytes.len() as u32) == 0 }
}

/// Rewrites the destination, with the checksums that it leads to.
#[inline(never)]
fn rewrite(ctx: *mut xdp_md, scratch: &Scratch, ip_sum: [u8; 2], l4_sum: [u8; 2]) -> bool {
    let (packet, to) = (&scratch.outer, scratch.work.to);
    let at = packet.destination_at();
    let stored = if packet.v4 {
        store(ctx, packet.l3 + 10, &ip_sum) && store(ctx, at, &v4_bytes(&to.addr))
    } else {
        store(ctx, at, &to.addr)
    };
    stored && store(ctx, packet.l4 + 2, &to.port) && store(ctx, packet.checksum_at(), &l4_sum)
}
