//! Reading packets: Ethernet, IPv4 with options, IPv6 with extension headers, TCP, UDP, fragments,
//! and the packets within errors of ICMP. Nothing is believed: what does not fit is unreadable.

use crate::abi::{Addr, Endpoint, ICMP, ICMPV6, Port, TCP, UDP, v4};

/// Bytes of a packet.
pub trait Bytes {
    /// `N` bytes from `at`; `None` past the end.
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let end = at.checked_add(N)?;
        self.get(at..end)?.try_into().ok()
    }
}

/// Bytes of an Ethernet header (no VLAN tag: those that the device keeps apart are not seen).
pub const ETHERNET: usize = 14;

/// Extension headers that are read past; packets with more are unreadable.
const EXTENSIONS_MAX: usize = 4;

/// Flag of TCP: the sender has finished.
pub const FIN: u8 = 1;
/// Flag of TCP: a connection begins.
pub const SYN: u8 = 2;
/// Flag of TCP: it ends at once.
pub const RST: u8 = 4;
/// Flag of TCP: an answer.
pub const ACK: u8 = 16;

/// Whether a packet is a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fragment {
    /// It is whole.
    #[default]
    Whole,
    /// The first one: with ports.
    First,
    /// A later one: without ports.
    Later,
}

/// An IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packet {
    /// IPv4.
    pub v4: bool,
    /// Protocol after all extension headers.
    pub protocol: u8,
    /// TCP's flags.
    pub tcp_flags: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// Identification of a fragment.
    pub id: u32,
    /// Where the IP header begins.
    pub l3: usize,
    /// Where TCP, UDP or ICMP begins.
    pub l4: usize,
    /// Source; port 0 where there is none.
    pub src: Endpoint,
    /// Destination.
    pub dst: Endpoint,
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing that services are about.
    Other,
    /// Cut off or malformed.
    Unreadable,
    /// TCP or UDP, or a later fragment of such.
    Transport,
    /// An error of ICMP about such a packet.
    Error,
}

/// Reads an Ethernet frame: the packet, and the one within an error of ICMP.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B, outer: &mut Packet, inner: &mut Packet) -> Kind {
    let Some(kind) = bytes.load::<2>(12) else {
        return Kind::Unreadable;
    };
    let is_v4 = match u16::from_be_bytes(kind) {
        0x0800 => true,
        0x86dd => false,
        _ => return Kind::Other,
    };
    if !header(bytes, ETHERNET, is_v4, outer) {
        return Kind::Unreadable;
    }
    if outer.protocol == TCP || outer.protocol == UDP {
        return if ports(bytes, outer, true) {
            Kind::Transport
        } else {
            Kind::Unreadable
        };
    }
    let icmp = if is_v4 { ICMP } else { ICMPV6 };
    if outer.protocol != icmp || outer.fragment != Fragment::Whole {
        return Kind::Other;
    }
    let Some([kind]) = bytes.load::<1>(outer.l4) else {
        return Kind::Unreadable;
    };
    // Destination unreachable, time exceeded, parameter problem (RFC 792); all errors of RFC 4443.
    let is_error = if is_v4 {
        matches!(kind, 3 | 11 | 12)
    } else {
        matches!(kind, 1..=4)
    };
    if !is_error {
        return Kind::Other;
    }
    if !header(bytes, outer.l4 + 8, is_v4, inner) {
        return Kind::Unreadable;
    }
    let ours = inner.protocol == TCP || inner.protocol == UDP;
    if !ours || inner.fragment == Fragment::Later || !ports(bytes, inner, false) {
        return Kind::Other;
    }
    Kind::Error
}

#[inline(always)]
fn header<B: Bytes + ?Sized>(bytes: &B, at: usize, is_v4: bool, packet: &mut Packet) -> bool {
    packet.v4 = is_v4;
    packet.tcp_flags = 0;
    packet.l3 = at;
    packet.src.port = [0; 2];
    packet.dst.port = [0; 2];
    let read = if is_v4 {
        header_v4(bytes, at, packet)
    } else {
        header_v6(bytes, at, packet)
    };
    read.is_some()
}

/// RFC 791, 3.1.
#[inline(always)]
fn header_v4<B: Bytes + ?Sized>(bytes: &B, at: usize, packet: &mut Packet) -> Option<()> {
    let h = bytes.load::<20>(at)?;
    let length = usize::from(h[0] & 15) * 4;
    if h[0] >> 4 != 4 || length < 20 {
        return None;
    }
    let offset = u16::from_be_bytes([h[6] & 0x1f, h[7]]);
    packet.protocol = h[9];
    packet.fragment = fragment(offset, h[6] & 0x20 != 0);
    packet.id = u32::from(u16::from_be_bytes([h[4], h[5]]));
    packet.l4 = at + length;
    packet.src.addr = v4([h[12], h[13], h[14], h[15]]);
    packet.dst.addr = v4([h[16], h[17], h[18], h[19]]);
    Some(())
}

#[inline(always)]
fn fragment(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

/// RFC 8200, 3 and 4.
#[inline(always)]
fn header_v6<B: Bytes + ?Sized>(bytes: &B, at: usize, packet: &mut Packet) -> Option<()> {
    let first = bytes.load::<8>(at)?;
    if first[0] >> 4 != 6 {
        return None;
    }
    packet.protocol = first[6];
    packet.fragment = Fragment::Whole;
    packet.id = 0;
    packet.l4 = at + 40;
    packet.src.addr = bytes.load::<16>(at + 8)?;
    packet.dst.addr = bytes.load::<16>(at + 24)?;
    let mut i = 0;
    while i < EXTENSIONS_MAX {
        match packet.protocol {
            // Hop by hop, routing, destination options.
            0 | 43 | 60 => {
                let [next, length] = bytes.load::<2>(packet.l4)?;
                packet.protocol = next;
                packet.l4 += (usize::from(length) + 1) * 8;
            }
            44 => {
                let h = bytes.load::<8>(packet.l4)?;
                packet.protocol = h[0];
                packet.l4 += 8;
                let word = u16::from_be_bytes([h[2], h[3]]);
                packet.fragment = fragment(word >> 3, word & 1 != 0);
                packet.id = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
                if packet.fragment == Fragment::Later {
                    return Some(());
                }
            }
            _ => return Some(()),
        }
        i += 1;
    }
    None
}

/// Reads ports, and TCP's flags where `flags` says so; false where the packet ends too early.
#[inline(always)]
fn ports<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet, flags: bool) -> bool {
    if packet.fragment == Fragment::Later {
        return true;
    }
    let Some([a, b, c, d]) = bytes.load::<4>(packet.l4) else {
        return false;
    };
    packet.src.port = [a, b];
    packet.dst.port = [c, d];
    if flags && packet.protocol == TCP {
        let Some([flags]) = bytes.load::<1>(packet.l4 + 13) else {
            return false;
        };
        packet.tcp_flags = flags;
    }
    true
}

impl Packet {
    /// Where the checksum of TCP or UDP is.
    #[inline(always)]
    pub fn checksum_at(&self) -> usize {
        self.l4 + if self.protocol == TCP { 16 } else { 6 }
    }

    /// Where the source address is in its header.
    #[inline(always)]
    pub fn source_at(&self) -> usize {
        self.l3 + if self.v4 { 12 } else { 8 }
    }

    /// Where the destination address is in its header.
    #[inline(always)]
    pub fn destination_at(&self) -> usize {
        self.l3 + if self.v4 { 16 } else { 24 }
    }
}

/// The four bytes of an IPv4 address.
#[inline(always)]
pub fn v4_bytes(addr: &Addr) -> [u8; 4] {
    [addr[12], addr[13], addr[14], addr[15]]
}

/// A port as a number.
#[inline(always)]
pub fn number(port: Port) -> u16 {
    u16::from_be_bytes(port)
}
