//! Mode ebpf: checksums are right whatever the links along the way do for packets, or leave to others:
//! checksums, segmentation, joining, on the client's, the node's and the pods' side. Needs root.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use linux::ethtool::{self, Offload};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, setsockopt,
    socket, sockopt,
};

use super::ebpf::lab;
use crate::lab::Lab;
use crate::lab::place::Place;

/// Where what comes is sent back.
const ECHO: u16 = 9000;

/// Name, node port, and endpoint in both families: on this node, on another one (masqueraded), and on
/// another one behind a tunnel.
const SERVICES: [(&str, u16, [&str; 2]); 3] = [
    ("local", 30061, ["10.180.0.1", "fd00:180::1"]),
    ("remote", 30062, ["10.180.1.1", "fd00:180:1::1"]),
    ("tunnel", 30063, ["10.181.0.1", "fd00:181::1"]),
];

/// Bytes of a bulk transfer: some of the largest packets that a link takes in one piece.
const BULK: usize = 200_000;

/// Datagrams that one call sends, and bytes of each.
const SEGMENTS: usize = 8;
const SEGMENT: usize = 1000;

const PATIENCE: Duration = Duration::from_secs(20);

fn echo(place: &Place) {
    let (tcp, udp) = place.run(|| {
        let any = SocketAddr::new("::".parse().unwrap(), ECHO);
        (
            TcpListener::bind(any).unwrap(),
            UdpSocket::bind(any).unwrap(),
        )
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            std::thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                drop(std::io::copy(&mut stream, &mut back));
                drop(back.shutdown(Shutdown::Write));
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, peer)) = udp.recv_from(&mut buffer) {
            let _sent = udp.send_to(&buffer[..n], peer);
        }
    });
}

fn manifest() -> String {
    let mut text = String::new();
    for (name, port, endpoints) in SERVICES {
        text += &format!(
            "---\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: NodePort, ipFamilyPolicy: PreferDualStack, clusterIP: 172.30.1.{last}, clusterIPs: [172.30.1.{last}, \"fd00:172::1:{last}\"], ports: [{{port: 80, nodePort: {port}}}, {{name: udp, port: 80, protocol: UDP, nodePort: {port}}}]}}\n",
            last = port - 30_000,
        );
        for (kind, ip) in ["IPv4", "IPv6"].iter().zip(endpoints) {
            let node = if name == "local" { "node" } else { "other" };
            text += &format!(
                "---\nkind: EndpointSlice\nmetadata: {{name: {name}-{}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {kind}\nports: [{{port: {ECHO}}}, {{name: udp, port: {ECHO}, protocol: UDP}}]\nendpoints: [{{addresses: [\"{ip}\"], nodeName: {node}}}]\n",
                kind.to_lowercase(),
            );
        }
    }
    text
}

/// A tunnel between the node and the other one.
fn tunnel(lab: &Lab) {
    let ends = [
        (&lab.node, "rem0", "10.180.1.254", "10.180.1.1", "254"),
        (&lab.p3, "eth0", "10.180.1.1", "10.180.1.254", "1"),
    ];
    for (place, dev, own, other, last) in ends {
        let last_v6 = if last == "254" { "fe" } else { last };
        for words in [
            format!(
                "link add vx0 type vxlan id 7 dev {dev} local {own} remote {other} dstport 4789"
            ),
            format!("address add 10.181.0.{last}/24 dev vx0"),
            format!("address add fd00:181::{last_v6}/64 dev vx0 nodad"),
            "link set vx0 up".to_owned(),
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            place.run(|| {
                let output = linux::exec::Exec::new("ip").args(&words).output().unwrap();
                assert!(output.status.success(), "ip {words:?}");
            });
        }
    }
}

/// Links of a side: the client's end, the node's, and the pods'.
fn links(lab: &Lab, side: usize) -> Vec<(&Place, &'static str)> {
    match side {
        0 => vec![(&lab.cli, "eth0")],
        1 => ["eth0", "cni0", "v1", "rem0", "vx0"]
            .map(|link| (&lab.node, link))
            .into(),
        _ => vec![(&lab.p1, "eth0"), (&lab.p3, "eth0"), (&lab.p3, "vx0")],
    }
}

/// Sets one for the sides whose bit is set, and the opposite for the others.
fn set(lab: &Lab, offload: Offload, sides: usize, on: bool) {
    for side in 0..3 {
        let on = on == (sides & 1 << side != 0);
        for (place, link) in links(lab, side) {
            place.run(|| {
                // A bridge or a tunnel has not all of them; what it has is set.
                if ethtool::has(link, offload).is_ok_and(|is| is != on) {
                    drop(ethtool::set(link, offload, on));
                }
            });
        }
    }
    for side in [0, 2] {
        let (place, link) = links(lab, side)[0];
        let is = place.run(|| ethtool::has(link, offload).unwrap());
        let asked = on == (sides & 1 << side != 0);
        assert_eq!(is, asked, "{offload:?} of {link}");
    }
}

/// Packets that came in with a wrong checksum, of all protocols, in a place.
fn wrong(place: &Place) -> u64 {
    place.run(|| {
        let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
        let mut sum = 0;
        for name in ["snmp", "netstat"] {
            let text = read(name);
            let lines: Vec<&str> = text.lines().collect();
            for pair in lines.chunks(2) {
                let columns = pair[0].split(' ').zip(pair[1].split(' '));
                let counts = columns.filter(|(name, _)| name.ends_with("InCsumErrors"));
                sum += counts.map(|(_, n)| n.parse::<u64>().unwrap()).sum::<u64>();
            }
        }
        for line in read("snmp6").lines() {
            let mut words = line.split_whitespace();
            if words
                .next()
                .is_some_and(|name| name.ends_with("InCsumErrors"))
            {
                sum += words.next().unwrap().parse::<u64>().unwrap();
            }
        }
        sum
    })
}

fn all_wrong(lab: &Lab) -> u64 {
    [&lab.cli, &lab.node, &lab.p1, &lab.p3]
        .map(wrong)
        .iter()
        .sum()
}

/// Bytes that are no pattern: two that change places would change nothing in a sum.
fn bytes(n: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..n).map(|_| next()).collect()
}

fn stream(to: SocketAddr) {
    let sent = bytes(BULK, 7);
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert!(heard == sent, "{to}: {} bytes came back", heard.len());
    });
}

fn datagram_socket(to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn heard(socket: &UdpSocket, n: usize, to: SocketAddr) -> BTreeSet<Vec<u8>> {
    let mut buffer = [0; 2048];
    let one = |_| {
        let (n, from) = socket
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(from, to);
        buffer[..n].to_vec()
    };
    (0..n).map(one).collect()
}

/// One by itself, and several that a link cuts apart; where no link near the client fills in checksums
/// some kernels refuse the latter.
fn datagrams(to: SocketAddr) {
    let socket = datagram_socket(to);
    let one = bytes(777, 3);
    socket.send_to(&one, to).unwrap();
    assert_eq!(heard(&socket, 1, to), BTreeSet::from([one]));
    let size = i32::try_from(SEGMENT).unwrap();
    setsockopt(&socket, sockopt::UdpGsoSegment, &size).unwrap();
    let many = bytes(SEGMENT * SEGMENTS, 5);
    match socket.send_to(&many, to) {
        Ok(_) => {
            let expect: BTreeSet<Vec<u8>> = many.chunks(SEGMENT).map(<[u8]>::to_vec).collect();
            assert_eq!(heard(&socket, SEGMENTS, to), expect, "{to}");
        }
        Err(e) => {
            let eio = nix::errno::Errno::EIO as i32;
            assert_eq!(e.raw_os_error(), Some(eio), "{to}: {e}");
            assert!(
                !ethtool::has("eth0", Offload::TxChecksum).unwrap(),
                "{to}: {e}"
            );
        }
    }
}

/// Sends a datagram whose checksum is this, whatever it should be.
fn with_checksum(from: u16, to: SocketAddr, payload: &[u8], checksum: u16) {
    let kind = (AddressFamily::Inet, SockType::Raw);
    let raw = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp).unwrap();
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = Vec::new();
    for word in [from, to.port(), length, checksum] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(payload);
    let IpAddr::V4(ip) = to.ip() else {
        panic!("IPv6 has no datagrams without a checksum")
    };
    let to = SockaddrStorage::from(std::net::SocketAddrV4::new(ip, 0));
    sendto(
        std::os::fd::AsRawFd::as_raw_fd(&raw),
        &packet,
        &to,
        MsgFlags::empty(),
    )
    .unwrap();
}

/// IPv4 allows a checksum of zero: none.
fn without_checksum(to: SocketAddr) {
    let socket = datagram_socket(to);
    let payload = bytes(333, 9);
    let port = socket.local_addr().unwrap().port();
    with_checksum(port, to, &payload, 0);
    assert_eq!(heard(&socket, 1, to), BTreeSet::from([payload]));
}

fn talk(lab: &Lab) {
    lab.cli.run(|| {
        for (_, port, _) in SERVICES {
            for ip in ["192.168.0.2", "2001:db8::2"] {
                let to = SocketAddr::new(ip.parse().unwrap(), port);
                stream(to);
                datagrams(to);
                if to.is_ipv4() {
                    without_checksum(to);
                }
            }
        }
    });
}

#[test]
fn checksums_are_right_with_every_offload() {
    let Some(mut lab) = lab("checksums_are_right_with_every_offload") else {
        return;
    };
    tunnel(&lab);
    echo(&lab.p1);
    echo(&lab.p3);
    for (_, _, ips) in SERVICES {
        for ip in ips {
            let to = SocketAddr::new(ip.parse().unwrap(), ECHO);
            lab.wait("an endpoint", |lab| {
                lab.node
                    .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok())
            });
        }
    }
    lab.write("echo.yaml", &manifest());
    lab.start();
    // The counters do count: to a pod by itself, with nobody between who looks at it.
    set(&lab, Offload::RxChecksum, 0, true);
    let before = wrong(&lab.p1);
    let pod = SocketAddr::new("10.180.0.1".parse().unwrap(), ECHO);
    lab.cli.run(|| with_checksum(4000, pod, b"wrong", 0x1234));
    lab.wait("a wrong checksum to be counted", |lab| {
        wrong(&lab.p1) > before
    });
    let before = all_wrong(&lab);
    let others = [
        Offload::TxChecksum,
        Offload::Tso,
        Offload::Gso,
        Offload::Gro,
    ];
    let mut runs = 0;
    // Everybody looks at what comes in, so that nothing wrong goes unseen; then as links usually are.
    for all_check in [true, false] {
        set(
            &lab,
            Offload::RxChecksum,
            if all_check { 0 } else { 7 },
            true,
        );
        for offload in others {
            for other in others {
                set(&lab, other, 7, true);
            }
            for off in if all_check { 0..8 } else { 7..8 } {
                set(&lab, offload, off, false);
                talk(&lab);
                runs += 1;
            }
        }
        // Nobody does anything for anybody.
        for offload in others {
            set(&lab, offload, 7, false);
        }
        talk(&lab);
        runs += 1;
    }
    assert_eq!(all_wrong(&lab) - before, 0);
    println!("COUNTED {runs} settings of offloads, no wrong checksum");
}
