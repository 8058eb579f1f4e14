//! The kernel side of the eBPF mode: thin shells over `ebpf-common`.
//!
//! `sockets` translates at `connect` and its like, `network` the packets of clients outside, `xdp`
//! some of those before the stack sees them. Built by
//! `cargo xtask ebpf`; the object that it makes is committed.

#![no_std]
#![no_main]

mod maps;
mod network;
mod sockets;
mod xdp;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are for programs under a licence that the kernel knows as compatible.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
