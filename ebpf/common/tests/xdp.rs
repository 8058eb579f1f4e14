//! Properties of what is done before the stack: unfinished checksums are told, and those that are
//! complete stay right.

#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use ebpf_common::abi::{Endpoint, TCP, UDP, v4};
use ebpf_common::packet::{Kind, Packet, parse};
use ebpf_common::sum::{add_addr, checksum, fold};
use ebpf_common::xdp::{Head, may_be_partial, read, sums};
use proptest::prelude::*;

/// A whole frame with a complete checksum, or without one where `bare` says so.
fn frame(src: &Endpoint, dst: &Endpoint, tcp: bool, is_v4: bool, data: &[u8]) -> Vec<u8> {
    let mut l4 = [src.port, dst.port].concat();
    if tcp {
        l4.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0]);
    } else {
        let length = u16::try_from(8 + data.len()).unwrap();
        l4.extend(length.to_be_bytes());
        l4.extend([0, 0]);
    }
    l4.extend(data);
    let protocol = if tcp { TCP } else { UDP };
    let length = u16::try_from(l4.len()).unwrap();
    let mut ip = Vec::new();
    if is_v4 {
        ip.extend([0x45, 0]);
        ip.extend((20 + length).to_be_bytes());
        ip.extend([1, 2, 0, 0, 64, protocol, 0, 0]);
        ip.extend(&src.addr[12..]);
        ip.extend(&dst.addr[12..]);
        let sum = checksum(&ip, 0);
        ip[10..12].copy_from_slice(&sum);
    } else {
        ip.extend([0x60, 0, 0, 0]);
        ip.extend(length.to_be_bytes());
        ip.extend([protocol, 64]);
        ip.extend(src.addr);
        ip.extend(dst.addr);
    }
    let kind = if is_v4 { [8, 0] } else { [0x86, 0xdd] };
    let mut all = [&[0; 12][..], &kind, &ip, &l4].concat();
    let at = 14 + ip.len() + if tcp { 16 } else { 6 };
    let sum = complete(&all, is_v4, protocol);
    all[at..at + 2].copy_from_slice(&sum);
    all
}

/// The pseudo header's sum, of as many bytes as said.
fn pseudo(packet: &Packet, length: usize) -> u32 {
    let sum = add_addr(0, &packet.src.addr, packet.v4);
    add_addr(sum, &packet.dst.addr, packet.v4)
        + u32::from(packet.protocol)
        + u32::try_from(length).unwrap()
}

/// The checksum that belongs in the field, which is zero.
fn complete(frame: &[u8], is_v4: bool, protocol: u8) -> [u8; 2] {
    let (_, packet) = parsed(frame);
    assert_eq!((packet.v4, packet.protocol), (is_v4, protocol));
    let l4 = &frame[packet.l4..];
    match checksum(l4, pseudo(&packet, l4.len())) {
        [0, 0] if protocol == UDP => [0xff, 0xff],
        sum => sum,
    }
}

fn parsed(frame: &[u8]) -> (Kind, Packet) {
    let (mut outer, mut inner) = (Packet::default(), Packet::default());
    (parse(frame, &mut outer, &mut inner), outer)
}

fn head(frame: &[u8]) -> Option<(Packet, Head)> {
    let (kind, packet) = parsed(frame);
    let mut head = Head::default();
    let plain = kind == Kind::Transport && read(frame, &packet, frame.len(), &mut head);
    plain.then_some((packet, head))
}

/// Writes another destination with its checksums, as the program does.
fn rewrite(frame: &mut [u8], packet: &Packet, head: &Head, to: &Endpoint) -> u16 {
    let sums = sums(packet, head, &packet.dst, to);
    let (at, l4) = (packet.destination_at(), packet.l4);
    if packet.v4 {
        frame[at..at + 4].copy_from_slice(&to.addr[12..]);
        frame[packet.l3 + 10..packet.l3 + 12].copy_from_slice(&sums.ip);
    } else {
        frame[at..at + 16].copy_from_slice(&to.addr);
    }
    frame[l4 + 2..l4 + 4].copy_from_slice(&to.port);
    let at = packet.checksum_at();
    frame[at..at + 2].copy_from_slice(&sums.l4);
    sums.packet
}

fn one(sum: u16) -> u16 {
    if sum == 0xffff { 0 } else { sum }
}

/// Sum of all bytes after the Ethernet header, as a device tells it.
fn sum_of(frame: &[u8]) -> u16 {
    !u16::from_be_bytes(checksum(&frame[14..], 0))
}

fn endpoint(is_v4: bool) -> impl Strategy<Value = Endpoint> {
    let any = (any::<[u8; 16]>(), any::<[u8; 2]>());
    any.prop_map(move |(addr, port)| {
        let four = [addr[0], addr[1], addr[2], addr[3]];
        Endpoint::new(if is_v4 { v4(four) } else { addr }, port)
    })
}

prop_compose! {
    fn case()(is_v4 in any::<bool>())(
        is_v4 in Just(is_v4),
        src in endpoint(is_v4),
        dst in endpoint(is_v4),
        to in endpoint(is_v4),
        tcp in any::<bool>(),
        data in proptest::collection::vec(any::<u8>(), 0..70),
    ) -> (bool, [Endpoint; 3], bool, Vec<u8>) {
        (is_v4, [src, dst, to], tcp, data)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What is rewritten is what would have been sent to the new destination at once.
    #[test]
    fn a_complete_checksum_is_the_one_computed_anew((is_v4, [src, dst, to], tcp, data) in case()) {
        let mut sent = frame(&src, &dst, tcp, is_v4, &data);
        let (packet, head) = head(&sent).unwrap();
        let before = sum_of(&sent);
        let grown = rewrite(&mut sent, &packet, &head, &to);
        prop_assert_eq!(&sent, &frame(&src, &to, tcp, is_v4, &data));
        // What a device has told of the packet is right with what has been added.
        let after = fold(u32::from(before) + u32::from(grown));
        prop_assert_eq!(one(after), one(sum_of(&sent)));
    }

    /// A packet without its checksum is told, whoever has written the sum of the pseudo header, and
    /// in whichever way zero is written.
    #[test]
    fn no_unfinished_checksum_is_taken_for_a_complete_one(
        (is_v4, [src, dst, _], tcp, data) in case(),
        with_length in any::<bool>(),
    ) {
        let mut sent = frame(&src, &dst, tcp, is_v4, &data);
        let (packet, _) = head(&sent).unwrap();
        let length = if with_length { sent.len() - packet.l4 } else { 0 };
        let at = packet.checksum_at();
        let sum = fold(pseudo(&packet, length));
        let ways = if one(sum) == 0 { vec![0, 0xffff] } else { vec![sum] };
        for sum in ways {
            sent[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            let (packet, head) = head(&sent).unwrap();
            prop_assert!(may_be_partial(&packet, &head));
        }
    }

    /// A packet that was broken on its way is not mended.
    #[test]
    fn a_wrong_checksum_stays_wrong((is_v4, [src, dst, to], tcp, data) in case(), wrong in 1_u16..0xffff) {
        let mut sent = frame(&src, &dst, tcp, is_v4, &data);
        let (packet, _) = head(&sent).unwrap();
        let at = packet.checksum_at();
        let sum = u16::from_be_bytes([sent[at], sent[at + 1]]);
        let broken = fold(u32::from(sum) + u32::from(wrong));
        // None at all, which a datagram may have.
        prop_assume!(tcp || broken != 0);
        sent[at..at + 2].copy_from_slice(&broken.to_be_bytes());
        let (packet, head) = head(&sent).unwrap();
        rewrite(&mut sent, &packet, &head, &to);
        let l4 = &sent[packet.l4..];
        let (_, packet) = parsed(&sent);
        let sum = checksum(l4, pseudo(&packet, l4.len()));
        prop_assert_ne!(one(u16::from_be_bytes(sum)), 0);
    }

    /// None is none, before and after.
    #[test]
    fn a_datagram_without_checksum_gets_none((is_v4, [src, dst, to], _, data) in case()) {
        let mut sent = frame(&src, &dst, false, is_v4, &data);
        let (packet, _) = head(&sent).unwrap();
        let at = packet.checksum_at();
        sent[at..at + 2].copy_from_slice(&[0, 0]);
        let (packet, head) = head(&sent).unwrap();
        let before = sum_of(&sent);
        let grown = rewrite(&mut sent, &packet, &head, &to);
        prop_assert_eq!(&sent[at..at + 2], &[0, 0]);
        prop_assert_eq!(one(fold(u32::from(before) + u32::from(grown))), one(sum_of(&sent)));
    }

    /// Whatever comes, it is read or refused, and what is read lies within the frame.
    #[test]
    fn what_is_read_is_there((is_v4, [src, dst, _], tcp, data) in case(), cut in 0_usize..160, more in any::<u8>(), at in 14_usize..60) {
        let mut sent = frame(&src, &dst, tcp, is_v4, &data);
        if at < sent.len() {
            sent[at] = more;
        }
        sent.truncate(cut.max(14));
        if let Some((packet, head)) = head(&sent) {
            prop_assert!(packet.l4 + usize::from(head.length) <= sent.len());
            prop_assert!(packet.checksum_at() + 2 <= sent.len());
        }
    }
}

/// Most complete checksums are told from unfinished ones, or nothing would be gained.
#[test]
fn hardly_a_complete_checksum_is_left_to_the_stack() {
    let dst = Endpoint::new(v4([192, 168, 0, 2]), [0, 80]);
    let left = (1..=60_000_u16).filter(|port| {
        let src = Endpoint::new(v4([203, 0, 113, 2]), port.to_be_bytes());
        let (packet, head) = head(&frame(&src, &dst, true, true, b"x")).unwrap();
        may_be_partial(&packet, &head)
    });
    assert!(left.count() <= 4);
}
