//! The programs at interfaces, run by the kernel on packets of ours (`BPF_PROG_TEST_RUN`): what they
//! rewrite, that every checksum is right afterwards, and that nothing malformed harms. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

/// The program before the stack.
mod packets {
    mod xdp;
}

use std::path::PathBuf;

use aya::programs::{Program, TestRun, TestRunOptions};
use ebpf_common::abi::{
    Addr, Config, Endpoint, FLAG_MEMBERS, Frontend, FrontendKey, KIND_EXTERNAL, MemberKey,
    PATH_CLUSTER, PATH_MASQUERADE, PATH_REJECT, SET_SERVING, Service, SlotKey, TCP, UDP, bytes_of,
    is_v4, v4,
};
use ebpf_common::packet::{Kind, Packet, parse};
use ebpf_common::sum::{add_addr, checksum};
use linux::NetNs;
use proxy::backend::ebpf::Place;
use proxy::backend::ebpf::object::{self, Maps, Object};

/// The program leaves the packet to others (`TC_ACT_UNSPEC`).
const GOES_ON: u32 = u32::MAX;
/// `TC_ACT_SHOT`.
const DROPPED: u32 = 2;

/// Packets that are cut, changed and made up.
const MALFORMED: u32 = 1_000_000;

/// Numbers of the services: with endpoint, and without.
const SERVED: u32 = 2;
const EMPTY: u32 = 4;

/// Loaded programs, with one endpoint in each family.
struct Bench {
    object: Object,
    maps: Maps,
    place: Place,
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(object::remove_pins(&self.place));
    }
}

fn six(last: u16) -> Addr {
    let mut addr = [0; 16];
    addr[..2].copy_from_slice(&[0xfd, 0]);
    addr[14..].copy_from_slice(&last.to_be_bytes());
    addr
}

/// Client, frontend, frontend without endpoints, endpoint, node.
fn cast(v4_family: bool) -> [Endpoint; 5] {
    let port = |n: u16| n.to_be_bytes();
    if v4_family {
        [
            Endpoint::new(v4([203, 0, 113, 2]), port(40_000)),
            Endpoint::new(v4([192, 168, 99, 11]), port(80)),
            Endpoint::new(v4([192, 168, 99, 12]), port(80)),
            Endpoint::new(v4([10, 0, 0, 7]), port(8080)),
            Endpoint::new(v4([192, 168, 0, 2]), port(0)),
        ]
    } else {
        [
            Endpoint::new(six(0x2), port(40_000)),
            Endpoint::new(six(0x11), port(80)),
            Endpoint::new(six(0x12), port(80)),
            Endpoint::new(six(0x107), port(8080)),
            Endpoint::new(six(0x202), port(0)),
        ]
    }
}

impl Bench {
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED {name}: needs root");
            return None;
        }
        let place = Place {
            cgroup: None,
            pin_dir: PathBuf::from(format!("/sys/fs/bpf/seaway-{name}-{}", std::process::id())),
            node: "node".to_owned(),
            flows_max: Some(65_536),
            attach: None,
            xdp: None,
        };
        let (object, maps) = object::open(&place).unwrap();
        let bench = Self {
            object,
            maps,
            place,
        };
        bench.fill();
        Some(bench)
    }

    fn fill(&self) {
        let put =
            |map: &str, key: &[u8], value: &[u8]| self.maps.get(map).update(key, value).unwrap();
        let mut config = Config::default();
        for (i, is_v4) in [(0, true), (1, false)] {
            let [_, frontend, empty, endpoint, node] = cast(is_v4);
            config.masquerade[i] = node.addr;
            for (at, service) in [(frontend, SERVED), (empty, EMPTY)] {
                // Families share a number here, which only the proxy keeps apart.
                let service = service + u32::from(!is_v4);
                for protocol in [TCP, UDP] {
                    let key = FrontendKey {
                        addr: at.addr,
                        port: at.port,
                        protocol,
                        pad: 0,
                    };
                    let value = Frontend {
                        service,
                        kind: KIND_EXTERNAL,
                        pad: [0; 3],
                    };
                    put("FRONTENDS", bytes_of(&key), bytes_of(&value));
                }
                let served = at == frontend;
                let path = if served {
                    PATH_CLUSTER | PATH_MASQUERADE
                } else {
                    PATH_REJECT
                };
                let value = Service {
                    counts: [u32::from(served), 0],
                    flags: FLAG_MEMBERS,
                    external: [path; 3],
                    ..Service::default()
                };
                put("SERVICES", bytes_of(&service), bytes_of(&value));
                if served {
                    let slot = SlotKey {
                        service,
                        set: 0,
                        index: 0,
                    };
                    put("SLOTS", bytes_of(&slot), bytes_of(&endpoint));
                    let member = MemberKey {
                        service,
                        set: SET_SERVING,
                        endpoint,
                    };
                    put("MEMBERS", bytes_of(&member), &[1, 0, 0, 0]);
                }
            }
        }
        put("CONFIG", &[0; 4], bytes_of(&config));
    }

    /// Runs a program; returns its verdict and the packet after it.
    fn run(&mut self, program: &str, packet: &[u8]) -> (u32, Vec<u8>) {
        let program = self.object.ebpf().program(program).unwrap();
        let mut out = vec![0; packet.len() + 64];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        let result = match program {
            Program::SchedClassifier(program) => program.test_run(options),
            Program::Xdp(program) => program.test_run(options),
            _ => panic!("neither a classifier nor of XDP"),
        };
        let result = result.unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// Runs a program that must let the packet go on, and checks it.
    fn pass(&mut self, program: &str, packet: &[u8]) -> Vec<u8> {
        let (verdict, out) = self.run(program, packet);
        assert_eq!(verdict, GOES_ON);
        assert_sums(&out);
        out
    }
}

/// What a test packet is made of.
#[derive(Clone, Copy)]
struct Shape {
    protocol: u8,
    /// Options of IPv4, extension headers of IPv6.
    more: bool,
    /// A UDP packet without a checksum (IPv4 only).
    bare: bool,
}

fn ip_header(from: &Endpoint, to: &Endpoint, shape: Shape, length: usize) -> Vec<u8> {
    let mut h = Vec::new();
    if is_v4(&from.addr) {
        let words = if shape.more { 7 } else { 5 };
        h.extend([0x40 | words, 0]);
        h.extend(
            u16::try_from(usize::from(words) * 4 + length)
                .unwrap()
                .to_be_bytes(),
        );
        h.extend([0x12, 0x34, 0, 0, 64, shape.protocol, 0, 0]);
        h.extend(&from.addr[12..]);
        h.extend(&to.addr[12..]);
        // No operation, seven times, and the end.
        h.extend(std::iter::repeat_n(1, usize::from(words) * 4 - 20));
        let sum = checksum(&h, 0);
        h[10..12].copy_from_slice(&sum);
        return h;
    }
    let extra: &[u8] = if shape.more {
        // Hop by hop with padding, then destination options.
        &[60, 0, 1, 4, 0, 0, 0, 0, shape.protocol, 0, 1, 4, 0, 0, 0, 0]
    } else {
        &[]
    };
    h.extend([0x60, 0, 0, 0]);
    h.extend(u16::try_from(length + extra.len()).unwrap().to_be_bytes());
    h.extend([if shape.more { 0 } else { shape.protocol }, 64]);
    h.extend(from.addr);
    h.extend(to.addr);
    h.extend(extra);
    h
}

fn pseudo(from: &Addr, to: &Addr, protocol: u8, length: usize) -> u32 {
    let v4 = is_v4(from);
    let sum = add_addr(add_addr(0, from, v4), to, v4);
    sum + u32::from(protocol) + u32::try_from(length).unwrap()
}

fn frame(from: &Endpoint, to: &Endpoint, shape: Shape) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(from.port);
    l4.extend(to.port);
    if shape.protocol == TCP {
        l4.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0]);
    } else {
        l4.extend([0, 19, 0, 0]);
    }
    l4.extend(b"hello world");
    if !shape.bare {
        let start = pseudo(&from.addr, &to.addr, shape.protocol, l4.len());
        let sum = checksum(&l4, start);
        let at = if shape.protocol == TCP { 16 } else { 6 };
        l4[at..at + 2].copy_from_slice(&sum);
    }
    ethernet(
        is_v4(&from.addr),
        &[ip_header(from, to, shape, l4.len()), l4].concat(),
    )
}

fn ethernet(v4: bool, packet: &[u8]) -> Vec<u8> {
    let kind = if v4 { [8, 0] } else { [0x86, 0xdd] };
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &kind, packet].concat()
}

fn read(bytes: &[u8]) -> (Kind, Packet, Packet) {
    let (mut outer, mut inner) = (Packet::default(), Packet::default());
    let kind = parse(bytes, &mut outer, &mut inner);
    (kind, outer, inner)
}

/// Every checksum is what it would be if computed anew.
fn assert_sums(bytes: &[u8]) {
    let (kind, packet, _) = read(bytes);
    if packet.v4 {
        let header = &bytes[packet.l3..packet.l3 + usize::from(bytes[packet.l3] & 15) * 4];
        assert_eq!(checksum(header, 0), [0, 0], "IPv4 header");
    }
    let l4 = &bytes[packet.l4..];
    let bare = kind == Kind::Transport && packet.protocol == UDP && l4[6..8] == [0, 0];
    if bare {
        return;
    }
    let start = if kind == Kind::Error && packet.v4 {
        0
    } else {
        pseudo(
            &packet.src.addr,
            &packet.dst.addr,
            packet.protocol,
            l4.len(),
        )
    };
    assert_eq!(checksum(l4, start), [0, 0], "{kind:?} {}", packet.protocol);
}

fn ends(bytes: &[u8]) -> (Endpoint, Endpoint) {
    let (kind, packet, _) = read(bytes);
    assert_eq!(kind, Kind::Transport);
    (packet.src, packet.dst)
}

fn shapes() -> Vec<Shape> {
    let mut all = Vec::new();
    for protocol in [TCP, UDP] {
        for more in [false, true] {
            all.push(Shape {
                protocol,
                more,
                bare: false,
            });
        }
    }
    all
}

#[test]
fn there_and_back_with_all_checksums() {
    let Some(mut bench) = Bench::new("there_and_back") else {
        return;
    };
    for v4 in [true, false] {
        let [mut client, frontend, _, endpoint, node] = cast(v4);
        let bare = Shape {
            protocol: UDP,
            more: false,
            bare: true,
        };
        let bare = v4.then_some(bare);
        for (i, shape) in (0..).zip(shapes().into_iter().chain(bare)) {
            client.port = (41_000_u16 + i).to_be_bytes();
            let sent = frame(&client, &frontend, shape);
            let inside = bench.pass("ingress", &sent);
            assert_eq!(ends(&inside), (client, endpoint));
            let out = bench.pass("egress", &inside);
            let (seen, to) = ends(&out);
            assert_eq!((seen.addr, to), (node.addr, endpoint));
            assert!((10_000..30_000).contains(&u16::from_be_bytes(seen.port)));
            let answer = frame(&endpoint, &seen, shape);
            let inside = bench.pass("ingress", &answer);
            assert_eq!(ends(&inside), (endpoint, client));
            let out = bench.pass("egress", &inside);
            // Byte for byte what the client would have got from the frontend itself.
            assert_eq!(out, frame(&frontend, &client, shape));
        }
    }
}

#[test]
fn what_is_for_nobody_stays_byte_for_byte() {
    let Some(mut bench) = Bench::new("for_nobody") else {
        return;
    };
    for v4 in [true, false] {
        let [client, frontend, _, endpoint, _] = cast(v4);
        let other = Endpoint::new(frontend.addr, [0, 81]);
        for shape in shapes() {
            for packet in [
                frame(&client, &other, shape),
                frame(&client, &endpoint, shape),
            ] {
                for program in ["ingress", "egress"] {
                    assert_eq!(bench.run(program, &packet), (GOES_ON, packet.clone()));
                }
            }
        }
    }
}

#[test]
fn who_is_refused_gets_to_the_nodes_closed_port() {
    let Some(mut bench) = Bench::new("refused") else {
        return;
    };
    for v4 in [true, false] {
        let [client, _, empty, _, node] = cast(v4);
        for shape in shapes() {
            let out = bench.pass("ingress", &frame(&client, &empty, shape));
            assert_eq!(ends(&out), (client, node));
            let back = bench.pass("egress", &frame(&node, &client, shape));
            assert_eq!(ends(&back), (empty, client));
        }
    }
}

/// An error about `about`, from `from`.
fn icmp_error(from: &Endpoint, about: &[u8]) -> Vec<u8> {
    let (_, packet, _) = read(about);
    let protocol = if packet.v4 { 1 } else { 58 };
    let shape = Shape {
        protocol,
        more: false,
        bare: false,
    };
    let mut l4 = if packet.v4 {
        vec![3, 4, 0, 0, 0, 0, 5, 0]
    } else {
        vec![2, 0, 0, 0, 0, 0, 5, 0]
    };
    l4.extend(&about[14..]);
    let to = Endpoint::new(packet.src.addr, [0; 2]);
    let start = if packet.v4 {
        0
    } else {
        pseudo(&from.addr, &to.addr, protocol, l4.len())
    };
    let sum = checksum(&l4, start);
    l4[2..4].copy_from_slice(&sum);
    ethernet(
        packet.v4,
        &[ip_header(from, &to, shape, l4.len()), l4].concat(),
    )
}

#[test]
fn errors_reach_the_client_about_what_it_has_sent() {
    let Some(mut bench) = Bench::new("errors") else {
        return;
    };
    for v4 in [true, false] {
        let [client, frontend, _, endpoint, node] = cast(v4);
        for shape in shapes() {
            let inside = bench.pass("ingress", &frame(&client, &frontend, shape));
            let sent = bench.pass("egress", &inside);
            // From a router on the way, and from the endpoint itself.
            let router = Endpoint::new(if v4 { v4_addr() } else { six(0x99) }, [0; 2]);
            for from in [router, Endpoint::new(endpoint.addr, [0; 2])] {
                let inside = bench.pass("ingress", &icmp_error(&from, &sent));
                let out = bench.pass("egress", &inside);
                let (kind, outer, inner) = read(&out);
                assert_eq!(kind, Kind::Error);
                assert_eq!(outer.dst.addr, client.addr);
                let expect = if from == router {
                    router.addr
                } else {
                    frontend.addr
                };
                assert_eq!(outer.src.addr, expect);
                assert_eq!((inner.src, inner.dst), (client, frontend));
                if v4 {
                    let header = &out[inner.l3..inner.l4];
                    assert_eq!(checksum(header, 0), [0, 0], "the inner header");
                }
            }
            // The client complains about an answer: the endpoint hears of what it has sent.
            let answer = bench.pass("ingress", &frame(&endpoint, &ends(&sent).0, shape));
            let answer = bench.pass("egress", &answer);
            let complaint = icmp_error(&Endpoint::new(client.addr, [0; 2]), &answer);
            let inside = bench.pass("ingress", &complaint);
            let out = bench.pass("egress", &inside);
            let (kind, outer, inner) = read(&out);
            assert_eq!(
                (kind, outer.src.addr, outer.dst.addr),
                (Kind::Error, node.addr, endpoint.addr)
            );
            assert_eq!((inner.src, inner.dst), (endpoint, ends(&sent).0));
        }
    }
}

fn v4_addr() -> Addr {
    v4([198, 51, 100, 1])
}

#[test]
fn later_fragments_follow_the_first() {
    let Some(mut bench) = Bench::new("fragments") else {
        return;
    };
    let [client, frontend, _, endpoint, node] = cast(true);
    let shape = Shape {
        protocol: UDP,
        more: false,
        bare: true,
    };
    let piece = |flags: [u8; 2]| {
        let mut packet = frame(&client, &frontend, shape);
        packet[20..22].copy_from_slice(&flags);
        packet[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum(&packet[14..34], 0);
        packet[24..26].copy_from_slice(&sum);
        packet
    };
    let (first, later) = (piece([0x20, 0]), piece([0, 3]));
    // Before the first nobody knows whose it is.
    assert_eq!(bench.run("ingress", &later), (GOES_ON, later.clone()));
    let first = bench.run("ingress", &first).1;
    bench.run("egress", &first);
    let (_, inside) = bench.run("ingress", &later);
    let (_, packet, _) = read(&inside);
    assert_eq!(
        (packet.src.addr, packet.dst.addr),
        (client.addr, endpoint.addr)
    );
    assert_eq!(inside[34..], later[34..], "its payload is no header");
    let (_, out) = bench.run("egress", &inside);
    let (_, packet, _) = read(&out);
    assert_eq!(
        (packet.src.addr, packet.dst.addr),
        (node.addr, endpoint.addr)
    );
    assert_eq!(checksum(&out[14..34], 0), [0, 0]);
}

/// Numbers that look random, the same in every run (xorshift).
fn random() -> impl FnMut() -> usize {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 16).unwrap()
    }
}

#[test]
fn malformed_packets_by_the_million() {
    let Some(mut bench) = Bench::new("malformed") else {
        return;
    };
    let mut random = random();
    let mut good = Vec::new();
    for v4 in [true, false] {
        let [client, frontend, empty, endpoint, _] = cast(v4);
        for shape in shapes() {
            good.push(frame(&client, &frontend, shape));
            good.push(frame(&client, &empty, shape));
            good.push(frame(&endpoint, &client, shape));
            good.push(icmp_error(&endpoint, &frame(&client, &frontend, shape)));
        }
    }
    let netns = NetNs::anonymous().unwrap();
    let dropped = netns
        .run(|| {
            let mut dropped = 0_u32;
            for i in 0..MALFORMED {
                let mut packet = good[random() % good.len()].clone();
                for _ in 0..1 + random() % 4 {
                    let at = 14 + random() % (packet.len() - 14);
                    packet[at] = random().to_le_bytes()[0];
                }
                if random().is_multiple_of(3) {
                    packet.truncate(14 + random() % (packet.len() - 13));
                }
                // The kernel takes no frames for a test that end within an IP header.
                let least = if packet[12] == 8 { 34 } else { 54 };
                packet.resize(packet.len().max(least), 0);
                let program = if i % 2 == 0 { "ingress" } else { "egress" };
                let length = packet.len();
                let (verdict, out) = bench.run(program, &packet);
                assert!(verdict == GOES_ON || verdict == DROPPED, "{verdict}");
                assert_eq!(out.len(), length, "no packet grows or shrinks");
                dropped += u32::from(verdict == DROPPED);
            }
            dropped
        })
        .unwrap();
    println!(
        "COUNTED malformed packets through the programs: {MALFORMED}, {dropped} of them dropped"
    );
}
