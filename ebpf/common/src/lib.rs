//! What the kernel side and the user side of the eBPF mode share: keys and values of the maps, and
//! all decisions. The programs in `ebpf/programs` call this code in the kernel, the tracer calls it
//! over a plan, and its tests run on the host.
//!
//! No allocation, no panic, no loop without a small bound: the kernel's verifier must accept it.

#![no_std]

pub mod abi;
pub mod maglev;
pub mod nat;
pub mod packet;
pub mod resolve;
pub mod socket;
pub mod sum;
pub mod xdp;
