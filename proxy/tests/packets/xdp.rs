//! Before the stack: the same packets as at ingress, with the same outcome, or left as they are.

use aya::programs::{Program, TestRun, TestRunOptions};
use ebpf_common::abi::{
    Config, CounterKey, Endpoint, FLAG_MEMBERS, Frontend, FrontendKey, KIND_EXTERNAL, PATH_DROP,
    Service, TCP, UDP, bytes_of, event, from_bytes,
};
use ebpf_common::packet::Kind;
use ebpf_common::sum::{checksum, fold};
use ebpf_common::xdp::{Mark, event as xdp_event};

use crate::{
    Bench, SERVED, Shape, assert_sums, cast, ethernet, frame, icmp_error, ip_header, pseudo,
    random, read, shapes,
};

/// Actions of XDP.
const DROP: u32 = 1;
const PASS: u32 = 2;

/// Packets that are cut, changed and made up.
const MALFORMED: u32 = 200_000;

/// A service whose traffic is dropped.
const DROPPED: u32 = 6;

impl Bench {
    fn with_xdp(name: &str) -> Option<Self> {
        let mut bench = Self::new(name)?;
        let program = bench.object.ebpf().program_mut("before_stack").unwrap();
        let Program::Xdp(program) = program else {
            panic!("not of XDP");
        };
        program.load().unwrap();
        Some(bench)
    }

    /// What comes of a packet before the stack: its mark, if it was translated, and the packet.
    fn before(&mut self, packet: &[u8]) -> (u32, Option<Mark>, Vec<u8>) {
        let (action, out) = self.run("before_stack", packet);
        let before = out.len() - packet.len();
        let mark = (before > 0).then(|| from_bytes::<Mark>(&out[..before]).unwrap());
        (action, mark, out[before..].to_vec())
    }

    fn is_left(&mut self, packet: &[u8]) -> bool {
        self.before(packet) == (PASS, None, packet.to_vec())
    }

    /// Runs the program on a packet in front of which others have left so many bytes of metadata;
    /// `None`: this kernel has no such packets. The action, and the packet after it.
    fn behind(&mut self, metadata: u32, packet: &[u8]) -> Option<(u32, Vec<u8>)> {
        let program = self.object.ebpf().program("before_stack").unwrap();
        let Program::Xdp(program) = program else {
            panic!("not of XDP");
        };
        let mut sent = vec![0; metadata as usize];
        sent.extend(packet);
        // `struct xdp_md`: where the packet begins and ends; metadata stands before it.
        let end = u32::try_from(sent.len()).unwrap();
        let context: Vec<u8> = [metadata, end, 0, 0, 0, 0]
            .iter()
            .flat_map(|word: &u32| word.to_ne_bytes())
            .collect();
        let mut out = vec![0; sent.len() + 64];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&sent);
        options.ctx_in = Some(&context);
        options.data_out = Some(&mut out);
        let result = program.test_run(options).ok()?;
        out.truncate(result.data_size_out as usize);
        Some((result.return_value, out.split_off(metadata as usize)))
    }

    /// Connections and packets counted for an endpoint.
    fn served(&self, service: u32, endpoint: Endpoint) -> (u64, u64) {
        let key = CounterKey { service, endpoint };
        let value = self.maps.get("COUNTERS").lookup(bytes_of(&key)).unwrap();
        let value = value.unwrap_or_default();
        let words: Vec<u64> = value
            .chunks(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        // Connections, packets, bytes, for each CPU.
        let of = |field: usize| words.iter().skip(field).step_by(3).sum();
        (of(0), of(1))
    }

    fn counted(&self, map: &str, index: u32) -> u64 {
        let value = self.maps.get(map).lookup(&index.to_ne_bytes()).unwrap();
        let value = value.unwrap();
        let words = value.chunks(8);
        words
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .sum()
    }
}

/// Shapes of packets that may be translated before the stack.
fn plain_shapes(v4: bool) -> Vec<Shape> {
    let mut all: Vec<Shape> = shapes();
    all.retain(|shape| !shape.more);
    if v4 {
        all.push(Shape {
            protocol: UDP,
            more: false,
            bare: true,
        });
    }
    all
}

fn one(sum: u16) -> u16 {
    if sum == 0xffff { 0 } else { sum }
}

fn sum_of(frame: &[u8]) -> u16 {
    !u16::from_be_bytes(checksum(&frame[14..], 0))
}

#[test]
fn what_is_translated_is_what_ingress_makes_of_it() {
    let Some(mut bench) = Bench::with_xdp("xdp_as_ingress") else {
        return;
    };
    let mut translated = 0;
    for v4 in [true, false] {
        let [mut client, frontend, empty, endpoint, _] = cast(v4);
        for (i, shape) in (0..).zip(plain_shapes(v4)) {
            client.port = (41_000_u16 + i).to_be_bytes();
            // A new flow, a known one, one that the node refuses, an answer of an endpoint.
            let known = frame(&client, &frontend, shape);
            let first = bench.before(&known);
            let out = bench.pass("egress", &first.2);
            let answer = frame(&endpoint, &crate::ends(&out).0, shape);
            let refused = frame(&client, &empty, shape);
            let mut padded = known.clone();
            padded.extend([0; 7]);
            for sent in [known, refused, answer] {
                let (action, mark, out) = bench.before(&sent);
                assert_eq!(action, PASS);
                assert_sums(&out);
                assert_eq!(out, bench.pass("ingress", &sent), "{}", shape.protocol);
                let mark = mark.expect("it was translated");
                let config = bench.maps.get("CONFIG").lookup(&[0; 4]).unwrap().unwrap();
                let config: Config = from_bytes(&config).unwrap();
                assert_eq!((mark.who, mark.ifindex), (Mark::of(&config), 1));
                let grown = u16::try_from(mark.sum).unwrap().to_ne_bytes();
                let told = u32::from(sum_of(&sent)) + u32::from(u16::from_be_bytes(grown));
                assert_eq!(one(fold(told)), one(sum_of(&out)), "what a device has told");
                translated += 1;
            }
            // Short frames are longer than their packets.
            let (action, mark, out) = bench.before(&padded);
            assert_eq!((action, mark.is_some()), (PASS, true));
            assert_eq!(out, bench.run("ingress", &padded).1);
            translated += 2;
        }
    }
    let counted = bench.counted("XDP_EVENTS", xdp_event::TRANSLATED);
    assert_eq!(counted, translated);
    assert_eq!(bench.counted("XDP_EVENTS", xdp_event::CHECKSUM), 0);
}

/// Where there is no room for a mark, as with drivers that know no metadata, the packet goes on as it is,
/// and ingress translates it: once, and counted once.
#[test]
fn without_room_for_a_mark_ingress_translates() {
    let Some(mut bench) = Bench::with_xdp("xdp_no_mark") else {
        return;
    };
    // The most that may stand there: 32 bytes, or in newer kernels all the room there is.
    let (client, frontend) = (cast(true)[0], cast(true)[1]);
    let probe = frame(&client, &frontend, plain_shapes(true)[0]);
    let mut sizes = (1..64).rev().map(|words| words * 4);
    let most = sizes.find(|n| bench.behind(*n, &probe).is_some());
    let most = most.expect("a packet with metadata");
    let mut left = 1;
    for v4 in [true, false] {
        let [mut client, frontend, _, endpoint, _] = cast(v4);
        let service = SERVED + u32::from(!v4);
        for (i, shape) in (0..).zip(plain_shapes(v4)) {
            client.port = (43_000_u16 + i).to_be_bytes();
            let sent = frame(&client, &frontend, shape);
            let begun = bench.counted("EVENTS", event::NETWORK);
            let before = bench.served(service, endpoint);
            // The first packet makes the flow, the second finds it.
            for n in 1..=2 {
                let (action, out) = bench.behind(most, &sent).unwrap();
                assert_eq!((action, &out), (PASS, &sent), "it is left as it is");
                left += 1;
                assert_eq!(bench.counted("XDP_EVENTS", xdp_event::NO_MARK), left);
                let out = bench.pass("ingress", &sent);
                assert_eq!(crate::ends(&out).1, endpoint);
                let after = bench.served(service, endpoint);
                assert_eq!((after.0 - before.0, after.1 - before.1), (1, n));
                assert_eq!(bench.counted("EVENTS", event::NETWORK), begun + 1);
            }
        }
    }
    assert_eq!(bench.counted("XDP_EVENTS", xdp_event::TRANSLATED), 0);
}

#[test]
fn an_unfinished_checksum_is_left_to_ingress() {
    let Some(mut bench) = Bench::with_xdp("xdp_partial") else {
        return;
    };
    let mut left = 0;
    for v4 in [true, false] {
        let [mut client, frontend, _, _, _] = cast(v4);
        for (i, shape) in (0..).zip(plain_shapes(v4)) {
            for port in 0..50 {
                client.port = (42_000_u16 + i * 50 + port).to_be_bytes();
                let mut sent = frame(&client, &frontend, shape);
                let (_, packet, _) = read(&sent);
                for length in [0, sent.len() - packet.l4] {
                    let start = pseudo(&packet.src.addr, &packet.dst.addr, packet.protocol, length);
                    let at = packet.checksum_at();
                    sent[at..at + 2].copy_from_slice(&fold(start).to_be_bytes());
                    assert!(bench.is_left(&sent));
                    left += 1;
                }
            }
        }
    }
    assert_eq!(bench.counted("XDP_EVENTS", xdp_event::CHECKSUM), left);
    assert_eq!(bench.counted("XDP_EVENTS", xdp_event::TRANSLATED), 0);
    assert_eq!(bench.maps.get("FLOWS").count().unwrap(), 0);
}

#[test]
fn whatever_is_not_plain_is_left_to_ingress() {
    let Some(mut bench) = Bench::with_xdp("xdp_not_plain") else {
        return;
    };
    for v4 in [true, false] {
        let [client, frontend, _, endpoint, _] = cast(v4);
        for shape in shapes() {
            let sent = frame(&client, &frontend, shape);
            if shape.more {
                assert!(bench.is_left(&sent), "options");
                continue;
            }
            let elsewhere = Endpoint::new(frontend.addr, [0, 81]);
            assert!(bench.is_left(&frame(&client, &elsewhere, shape)));
            assert!(bench.is_left(&frame(&client, &endpoint, shape)));
            assert!(bench.is_left(&icmp_error(&endpoint, &sent)));
            let tagged = [&sent[..12], &[0x81, 0, 0, 7], &sent[12..]].concat();
            assert!(bench.is_left(&tagged), "a VLAN tag");
            assert!(bench.is_left(&sent[..sent.len() - 1]), "cut");
            let mut long = sent.clone();
            let at = if v4 { 16 } else { 18 };
            long[at..at + 2].copy_from_slice(&[0, 0]);
            assert!(bench.is_left(&long), "no length");
            if v4 {
                let mut first = sent.clone();
                first[20] = 0x20;
                assert!(bench.is_left(&first), "a fragment");
            } else {
                // A fragment header with more to come.
                let l4 = &sent[54..];
                let next = Shape {
                    protocol: 44,
                    more: false,
                    bare: false,
                };
                let piece = [&[shape.protocol, 0, 0, 1, 0, 0, 0, 9][..], l4].concat();
                let header = ip_header(&client, &frontend, next, piece.len());
                let first = ethernet(false, &[header, piece].concat());
                assert_eq!(read(&first).0, Kind::Transport);
                assert!(bench.is_left(&first), "a fragment");
            }
        }
    }
    assert_eq!(bench.counted("XDP_EVENTS", xdp_event::TRANSLATED), 0);
    assert_eq!(bench.maps.get("FLOWS").count().unwrap(), 0);
}

#[test]
fn what_a_service_drops_is_dropped_before_the_stack() {
    let Some(mut bench) = Bench::with_xdp("xdp_drops") else {
        return;
    };
    let mut dropped = 0;
    for v4 in [true, false] {
        let [client, mut at, ..] = cast(v4);
        at.port = [0, 99];
        for protocol in [TCP, UDP] {
            let key = FrontendKey {
                addr: at.addr,
                port: at.port,
                protocol,
                pad: 0,
            };
            let value = Frontend {
                service: DROPPED,
                kind: KIND_EXTERNAL,
                pad: [0; 3],
            };
            let service = Service {
                flags: FLAG_MEMBERS,
                external: [PATH_DROP; 3],
                ..Service::default()
            };
            let put = |map: &str, key: &[u8], value: &[u8]| {
                bench.maps.get(map).update(key, value).unwrap();
            };
            put("SERVICES", bytes_of(&DROPPED), bytes_of(&service));
            put("FRONTENDS", bytes_of(&key), bytes_of(&value));
            let shape = Shape {
                protocol,
                more: false,
                bare: false,
            };
            let sent = frame(&client, &at, shape);
            assert_eq!(bench.run("ingress", &sent).0, crate::DROPPED);
            assert_eq!(bench.before(&sent).0, DROP);
            dropped += 1;
        }
    }
    assert_eq!(bench.counted("XDP_EVENTS", xdp_event::DROPPED), dropped);
    assert_eq!(bench.counted("EVENTS", event::DROP_POLICY), 2 * dropped);
}

#[test]
fn malformed_packets_before_the_stack() {
    let Some(mut bench) = Bench::with_xdp("xdp_malformed") else {
        return;
    };
    let mut random = random();
    let mut good = Vec::new();
    for v4 in [true, false] {
        let [client, frontend, empty, endpoint, _] = cast(v4);
        for shape in shapes() {
            good.push(frame(&client, &frontend, shape));
            good.push(frame(&client, &empty, shape));
            good.push(icmp_error(&endpoint, &frame(&client, &frontend, shape)));
        }
    }
    let mut translated = 0_u32;
    for _ in 0..MALFORMED {
        let mut packet = good[random() % good.len()].clone();
        for _ in 0..random() % 4 {
            let at = 14 + random() % (packet.len() - 14);
            packet[at] = random().to_le_bytes()[0];
        }
        if random().is_multiple_of(3) {
            packet.truncate(14 + random() % (packet.len() - 13));
        }
        let (action, mark, out) = bench.before(&packet);
        assert_eq!(action, PASS);
        if mark.is_none() {
            assert_eq!(out, packet);
        }
        translated += u32::from(mark.is_some());
    }
    assert!(translated > 0);
    println!(
        "COUNTED malformed packets before the stack: {MALFORMED}, {translated} of them translated"
    );
}
