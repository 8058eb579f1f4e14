//! Before the network stack (XDP): which packets may be rewritten there, and their checksums.
//!
//! A packet of this machine may come without its checksum: the field of TCP or UDP then holds the sum
//! of the pseudo header, and hardware or the stack is to add the rest (`CHECKSUM_PARTIAL`). A program
//! that runs before the stack is not told, so what looks like that is left to the programs after it,
//! to which the kernel's helpers tell the difference.

use crate::abi::{Config, Endpoint, TCP, UDP, plain};
use crate::packet::{Bytes, Fragment, Packet};
use crate::sum::{add_addr, add16, difference, fold, update};

plain!(12,
    /// What the program before the stack (XDP) leaves in front of a packet that it has translated, for
    /// the program at ingress of the same interface.
    Mark {
        /// [`Mark::of`] this node.
        who: u32,
        /// The interface.
        ifindex: u32,
        /// By how much the sum of the packet has grown, as the kernel adds sums.
        sum: u32,
    }
);

impl Mark {
    /// Tells our marks from those of others, and of other nodes on this machine.
    #[inline(always)]
    pub fn of(config: &Config) -> u32 {
        let [a, b, c, d, ..] = config.node_netns.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d]) ^ 0x5ea3_a9d1
    }
}

/// Indices of the map of what XDP does, one number for each CPU.
pub mod event {
    /// Packets translated.
    pub const TRANSLATED: u32 = 0;
    /// Packets dropped; `event::DROP_*` has the reasons.
    pub const DROPPED: u32 = 1;
    /// Packets of TCP and UDP left to the stack since their checksum may be unfinished.
    pub const CHECKSUM: u32 = 2;
    /// Packets of services left to the stack since the driver takes no mark.
    pub const NO_MARK: u32 = 3;
    /// How many there are.
    pub const COUNT: u32 = 4;
    /// Their names in metrics, in order.
    pub const NAMES: [&str; COUNT as usize] =
        ["translated", "dropped", "left_checksum", "left_no_metadata"];
}

/// What is read of a packet beside what [`Packet`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Bytes of TCP or UDP, header and payload, by the IP header.
    pub length: u16,
    /// Checksum of the IPv4 header.
    pub ip_sum: [u8; 2],
    /// Checksum of TCP or UDP.
    pub sum: [u8; 2],
}

/// Checksums after a rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// Of the IPv4 header.
    pub ip: [u8; 2],
    /// Of TCP or UDP.
    pub l4: [u8; 2],
    /// By how much the sum of the whole packet has grown: what a device that sums up whole packets
    /// (`CHECKSUM_COMPLETE`) has told of this one is behind by that.
    pub packet: u16,
}

/// Reads the rest of a packet of TCP or UDP that is whole, has no options or extension headers, and
/// is all within the `frame_length` bytes; `false` for any other.
#[inline(always)]
pub fn read<B: Bytes + ?Sized>(
    bytes: &B,
    packet: &Packet,
    frame_length: usize,
    head: &mut Head,
) -> bool {
    let header = if packet.v4 { 20 } else { 40 };
    if packet.fragment != Fragment::Whole || packet.l4 != packet.l3 + header {
        return false;
    }
    let (at, before, least) = (
        packet.l3 + if packet.v4 { 2 } else { 4 },
        if packet.v4 { 20 } else { 0 },
        if packet.protocol == TCP { 20 } else { 8 },
    );
    let Some(length) = bytes.load::<2>(at) else {
        return false;
    };
    let length = u16::from_be_bytes(length);
    // Zero stands for more than fits (RFC 2675, and what the kernel does with large packets).
    if length < before + least || packet.l4 + usize::from(length - before) > frame_length {
        return false;
    }
    head.length = length - before;
    let Some(sum) = bytes.load::<2>(packet.checksum_at()) else {
        return false;
    };
    head.sum = sum;
    if packet.v4 {
        let Some(sum) = bytes.load::<2>(packet.l3 + 10) else {
            return false;
        };
        head.ip_sum = sum;
    }
    true
}

/// Whether two sums are the same; zero is written in two ways.
#[inline(always)]
fn same_sum(a: u16, b: u16) -> bool {
    let one = |sum: u16| if sum == 0xffff { 0 } else { sum };
    one(a) == one(b)
}

/// Whether the checksum may still lack what the stack or a device adds. Some leave the length to the
/// device, too. One complete checksum in some 32 768 looks the same.
#[inline(always)]
pub fn may_be_partial(packet: &Packet, head: &Head) -> bool {
    let addresses = add_addr(0, &packet.src.addr, packet.v4);
    let addresses = add_addr(addresses, &packet.dst.addr, packet.v4);
    let pseudo = addresses.wrapping_add(u32::from(packet.protocol));
    let field = u16::from_be_bytes(head.sum);
    same_sum(field, fold(pseudo))
        || same_sum(field, fold(pseudo.wrapping_add(u32::from(head.length))))
}

/// A difference of sums in which no change is zero.
#[inline(always)]
fn grown(old: [u8; 2], new: [u8; 2]) -> u16 {
    difference(add16(0, old), add16(0, new))
}

/// The checksums of a packet after its source or destination, `old`, has become `new`. Those in
/// `head` are complete ([`may_be_partial`]).
#[inline(always)]
pub fn sums(packet: &Packet, head: &Head, old: &Endpoint, new: &Endpoint) -> Sums {
    let addr = difference(
        add_addr(0, &old.addr, packet.v4),
        add_addr(0, &new.addr, packet.v4),
    );
    let port = grown(old.port, new.port);
    let both = fold(u32::from(addr) + u32::from(port));
    let mut sums = Sums {
        ip: head.ip_sum,
        l4: head.sum,
        packet: 0,
    };
    let mut packet_sum = u32::from(both);
    if packet.v4 {
        sums.ip = update(head.ip_sum, addr);
        packet_sum += u32::from(grown(head.ip_sum, sums.ip));
    }
    // A UDP checksum of zero means none, and stays.
    if packet.protocol != UDP || head.sum != [0, 0] {
        sums.l4 = update(head.sum, both);
        if packet.protocol == UDP && sums.l4 == [0, 0] {
            sums.l4 = [0xff, 0xff];
        }
        packet_sum += u32::from(grown(head.sum, sums.l4));
    }
    sums.packet = fold(packet_sum);
    sums
}
