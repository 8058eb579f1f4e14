//! Programs at `connect`, `sendmsg`, `recvmsg`, `getpeername` and `bind` of a control group.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_probe_read_kernel_buf, bpf_set_retval,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::abi::{Addr, CONFIG_OFFSETS, Endpoint, Offsets, Port, TCP, UDP, event, is_v4, same, v4};
use ebpf_common::resolve::{Query, Services, Source, wildcard};
use ebpf_common::socket::{Answer, Call, Verdict, incoming, may_bind, outgoing};

use crate::maps::{Maps, count, happened};

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails with the value set before.
const DENY: i32 = 0;

const EPERM: i32 = 1;
const EADDRINUSE: i32 = 98;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;

/// Flag of an interface: it is the loopback.
const IFF_LOOPBACK: u32 = 8;

/// Whether this kernel lets programs at sockets read its memory. The proxy says so before it loads
/// them; where it does not, the verifier leaves out all that would.
#[unsafe(no_mangle)]
static READS_KERNEL: u32 = 1;

/// Interfaces of a pod that are looked at for its address.
const DEVICES_MAX: u32 = 8;

/// IPv6 addresses of an interface that are looked at.
const ADDRESSES_MAX: u32 = 4;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    out(&ctx, true, false)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    out(&ctx, false, false)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    out(&ctx, true, true)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    out(&ctx, false, true)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    back(&ctx, true)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    back(&ctx, false)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    back(&ctx, true)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    back(&ctx, false)
}

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    bind(&ctx, true)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    bind(&ctx, false)
}

#[inline(always)]
fn address(ctx: *const bpf_sock_addr, is_v4: bool) -> Addr {
    // SAFETY: fields of the context, read one word at a time as the verifier wants it.
    unsafe {
        if is_v4 {
            return v4(read_volatile(addr_of!((*ctx).user_ip4)).to_ne_bytes());
        }
        let [a, b, c, d] = [
            read_volatile(addr_of!((*ctx).user_ip6[0])).to_ne_bytes(),
            read_volatile(addr_of!((*ctx).user_ip6[1])).to_ne_bytes(),
            read_volatile(addr_of!((*ctx).user_ip6[2])).to_ne_bytes(),
            read_volatile(addr_of!((*ctx).user_ip6[3])).to_ne_bytes(),
        ];
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }
}

#[inline(always)]
fn port(ctx: *const bpf_sock_addr) -> Port {
    // SAFETY: a field of the context.
    let port = unsafe { read_volatile(addr_of!((*ctx).user_port)) };
    (port as u16).to_ne_bytes()
}

#[inline(always)]
fn set(ctx: *mut bpf_sock_addr, is_v4: bool, to: &Endpoint) {
    let a = &to.addr;
    let word = |i: usize| u32::from_ne_bytes([a[i], a[i + 1], a[i + 2], a[i + 3]]);
    // SAFETY: fields of the context that these programs may write.
    unsafe {
        if is_v4 {
            write_volatile(addr_of_mut!((*ctx).user_ip4), word(12));
        } else {
            write_volatile(addr_of_mut!((*ctx).user_ip6[0]), word(0));
            write_volatile(addr_of_mut!((*ctx).user_ip6[1]), word(4));
            write_volatile(addr_of_mut!((*ctx).user_ip6[2]), word(8));
            write_volatile(addr_of_mut!((*ctx).user_ip6[3]), word(12));
        }
        write_volatile(
            addr_of_mut!((*ctx).user_port),
            u32::from(u16::from_ne_bytes(to.port)),
        );
    }
}

#[inline(always)]
fn call(ctx: &SockAddrContext, is_v4: bool) -> Call {
    let raw = ctx.sock_addr;
    // SAFETY: helpers on the context, and a field of it.
    let (cookie, netns, protocol) = unsafe {
        (
            bpf_get_socket_cookie(ctx.as_ptr()),
            bpf_get_netns_cookie(ctx.as_ptr()),
            read_volatile(addr_of!((*raw).protocol)),
        )
    };
    let source = match Maps.config() {
        Some(config) if config.node_netns == netns => Source::Node,
        _ => Source::Pod,
    };
    Call {
        cookie,
        query: Query {
            addr: address(raw, is_v4),
            port: port(raw),
            protocol: protocol as u8,
            source,
            client: 0,
        },
    }
}

#[inline(always)]
fn out(ctx: &SockAddrContext, is_v4: bool, sticky: bool) -> i32 {
    let call = call(ctx, is_v4);
    if call.query.protocol != TCP && call.query.protocol != UDP {
        return ALLOW;
    }
    let mut answer = Answer::default();
    let client = |address: &mut Addr| own_address(ctx.sock_addr, &call.query.addr, address);
    let verdict = outgoing(&Maps, &call, sticky, client, &mut answer);
    if verdict == Verdict::Pass {
        return ALLOW;
    }
    happened(answer.event);
    if verdict == Verdict::Translate {
        count(answer.chosen.service, &answer.chosen.endpoint, 1, 0, 0);
        set(ctx.sock_addr, is_v4, &answer.chosen.endpoint);
        return ALLOW;
    }
    let errno = if verdict == Verdict::Refuse {
        ECONNREFUSED
    } else if call.query.protocol == TCP {
        // What a client would see after minutes of silence, at once.
        ETIMEDOUT
    } else {
        EPERM
    };
    // SAFETY: a helper that takes a number.
    unsafe { bpf_set_retval(-errno) };
    DENY
}

#[inline(always)]
fn back(ctx: &SockAddrContext, is_v4: bool) -> i32 {
    let raw = ctx.sock_addr;
    // SAFETY: a helper on the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let from = Endpoint::new(address(raw, is_v4), port(raw));
    if let Some(frontend) = incoming(&Maps, cookie, &from) {
        set(raw, is_v4, &frontend);
    }
    ALLOW
}

#[inline(always)]
fn bind(ctx: &SockAddrContext, is_v4: bool) -> i32 {
    let call = call(ctx, is_v4);
    let is_wildcard = same(&call.query.addr, &wildcard(is_v4));
    if may_bind(&Maps, &call, is_wildcard, is_v4) {
        // A socket on `::` hears IPv4, too.
        if is_v4 || !is_wildcard {
            return ALLOW;
        }
        if may_bind(&Maps, &call, true, true) {
            return ALLOW;
        }
    }
    happened(event::BIND_REFUSED);
    // SAFETY: a helper that takes a number.
    unsafe { bpf_set_retval(-EADDRINUSE) };
    DENY
}

/// Reads the kernel's memory: zeros where there is none. Nobody needs to ask which of the two it was,
/// and each question would be one more way through the code for the verifier.
#[inline(always)]
fn read<const N: usize>(at: u64, bytes: &mut [u8; N]) {
    // SAFETY: the helper checks the address, and fills with zeros what it cannot read.
    let _ = unsafe { bpf_probe_read_kernel_buf(at as *const u8, bytes) };
}

#[inline(always)]
fn pointer(at: u64) -> u64 {
    let mut bytes = [0; 8];
    read(at, &mut bytes);
    u64::from_ne_bytes(bytes)
}

#[inline(always)]
fn word(at: u64) -> u32 {
    let mut bytes = [0; 4];
    read(at, &mut bytes);
    u32::from_ne_bytes(bytes)
}

/// The address that the program has bound its socket to.
#[inline(always)]
fn bound(ctx: *mut bpf_sock_addr, is_v4: bool, address: &mut Addr) -> bool {
    // SAFETY: the context's socket and its fields, which the verifier checks.
    unsafe {
        let sk = read_volatile(addr_of!((*ctx).__bindgen_anon_1.sk));
        if sk.is_null() {
            return false;
        }
        if is_v4 {
            let word = read_volatile(addr_of!((*sk).src_ip4));
            *address = v4(word.to_ne_bytes());
            return word != 0;
        }
        let [a, b, c, d] = [
            read_volatile(addr_of!((*sk).src_ip6[0])).to_ne_bytes(),
            read_volatile(addr_of!((*sk).src_ip6[1])).to_ne_bytes(),
            read_volatile(addr_of!((*sk).src_ip6[2])).to_ne_bytes(),
            read_volatile(addr_of!((*sk).src_ip6[3])).to_ne_bytes(),
        ];
        *address = [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ];
    }
    ebpf_common::abi::halves(address) != (0, 0)
}

/// The first address of the first interface in the socket's network namespace that is not the
/// loopback: a pod's own. `connect` has not chosen a source yet. Of the family of `peer`.
#[inline(never)]
fn own_address(ctx: *mut bpf_sock_addr, peer: &Addr, address: &mut Addr) -> bool {
    let is_v4 = is_v4(peer);
    bound(ctx, is_v4, address) || find_address(ctx, is_v4, address)
}

#[inline(always)]
fn find_address(ctx: *mut bpf_sock_addr, is_v4: bool, address: &mut Addr) -> bool {
    // SAFETY: a constant of this program, read as the loader has left it.
    if unsafe { read_volatile(addr_of!(READS_KERNEL)) } == 0 {
        return false;
    }
    let Some(config) = Maps.config() else {
        return false;
    };
    if config.flags & CONFIG_OFFSETS == 0 {
        return false;
    }
    let o = &config.offsets;
    // The context's own layout, which the verifier does not rewrite for reads by helper.
    let sock = pointer((ctx as u64).wrapping_add(u64::from(o.kern_sk)));
    let head = pointer(sock + u64::from(o.sk_net)) + u64::from(o.net_devices);
    let mut entry = pointer(head);
    let mut i = 0;
    while i < DEVICES_MAX && entry != head && entry != 0 {
        let device = entry - u64::from(o.dev_list);
        if word(device + u64::from(o.dev_flags)) & IFF_LOOPBACK == 0
            && if is_v4 {
                address_v4(device, o, address)
            } else {
                address_v6(device, o, address)
            }
        {
            return true;
        }
        entry = pointer(entry);
        i += 1;
    }
    false
}

#[inline(always)]
fn address_v4(device: u64, o: &Offsets, address: &mut Addr) -> bool {
    let in_device = pointer(device + u64::from(o.dev_ip));
    let first = pointer(in_device + u64::from(o.in_addrs));
    let found = word(first + u64::from(o.ifa_local));
    *address = v4(found.to_ne_bytes());
    found != 0
}

#[inline(always)]
fn address_v6(device: u64, o: &Offsets, address: &mut Addr) -> bool {
    let in6 = pointer(device + u64::from(o.dev_ip6));
    let head = in6 + u64::from(o.in6_addrs);
    let mut entry = pointer(head);
    let mut i = 0;
    while i < ADDRESSES_MAX && entry != head && entry != 0 {
        let at = entry - u64::from(o.ifa6_list) + u64::from(o.ifa6_addr);
        read(at, address);
        // Not a link-local one (fe80::/10).
        if !(address[0] == 0xfe && address[1] & 0xc0 == 0x80) {
            return true;
        }
        entry = pointer(entry);
        i += 1;
    }
    false
}
