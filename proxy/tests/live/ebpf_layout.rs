//! Mode ebpf finds maps of another layout: an older one is taken over, one that it does not know is
//! told of. Needs root.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::Ordering;

use ebpf_common::abi::{Frontend, FrontendKey, TCP, VERSION, bytes_of, from_bytes, v4};
use linux::bpf::{Map, MapInfo, open_pinned};
use nix::sys::signal::Signal;

use super::ebpf::{ALL, lab, under_traffic};
use crate::lab::talk::{ask_udp, still_alive};
use crate::lab::{Lab, service};

/// Services of which the second keeps its clients with their endpoint.
const SPREAD: &str = "{type: NodePort, clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: [{port: 80, nodePort: 30041}, {name: udp, port: 80, protocol: UDP, nodePort: 30041}]}";
const STICKY: &str = "{type: NodePort, sessionAffinity: ClientIP, clusterIP: 172.30.0.43, clusterIPs: [172.30.0.43, \"fd00:172::43\"], ports: [{port: 80, nodePort: 30043}]}";

/// Maps of version 1, as the last object of that version defines them.
const V1: &str = include_str!("ebpf_layout_v1.txt");

/// A map of an older object.
struct Older {
    name: &'static str,
    kind: u32,
    key_size: u32,
    value_size: u32,
    flags: u32,
}

/// Those of version 1 that were pinned.
fn version_1() -> Vec<Older> {
    let lines = V1.lines().filter(|line| !line.starts_with('#'));
    let maps = lines.filter_map(|line| {
        let (name, rest) = line.split_once(' ').unwrap();
        let numbers: Vec<u32> = rest.split(' ').map(|n| n.parse().unwrap()).collect();
        let [kind, key_size, value_size, flags, pinned] = numbers[..] else {
            panic!("{line}");
        };
        (pinned == 1).then_some(Older {
            name,
            kind,
            key_size,
            value_size,
            flags,
        })
    });
    maps.collect()
}

fn layouts(node: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(node).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("maps-")).collect()
}

/// Puts pins of version 1 in the place of ours. The maps whose shape has not changed are the ones that
/// the programs go on with.
fn make_older(node: &Path) {
    let [ours] = &layouts(node)[..] else {
        panic!("{:?}", layouts(node));
    };
    let (ours, older) = (node.join(ours), node.join("maps-v1-0a0b0c0d"));
    std::fs::create_dir(&older).unwrap();
    for of in version_1() {
        let name = of.name;
        let from = Map::new(open_pinned(&ours.join(name)).unwrap(), name).unwrap();
        let info = MapInfo {
            kind: of.kind,
            key_size: of.key_size,
            value_size: of.value_size,
            flags: of.flags,
            ..*from.info()
        };
        if info == *from.info() {
            from.pin(&older.join(name)).unwrap();
            continue;
        }
        assert_eq!(name, "SERVICES", "{:?}", from.info());
        let to = Map::create(&info, name).unwrap();
        for (key, value) in from.entries().unwrap() {
            to.update(&key, &value[..of.value_size as usize]).unwrap();
        }
        to.pin(&older.join(name)).unwrap();
    }
    std::fs::remove_dir_all(&ours).unwrap();
}

/// The number of the service at an address of IPv4.
fn number(node: &Path, ip: [u8; 4]) -> u32 {
    let [layout] = &layouts(node)[..] else {
        panic!("{:?}", layouts(node));
    };
    let path = node.join(layout).join("FRONTENDS");
    let map = Map::new(open_pinned(&path).unwrap(), "FRONTENDS").unwrap();
    let key = FrontendKey {
        addr: v4(ip),
        port: 80_u16.to_be_bytes(),
        protocol: TCP,
        pad: 0,
    };
    let value = map.lookup(bytes_of(&key)).unwrap().unwrap();
    from_bytes::<Frontend>(&value).unwrap().service
}

/// Clients of the service that keeps them, each with its endpoint.
fn kept(lab: &Lab) -> Vec<String> {
    let mut all = Vec::new();
    for place in [&lab.p1, &lab.p2, &lab.node, &lab.cli] {
        for to in ["192.168.0.2:30043", "[2001:db8::2]:30043"] {
            let answers: BTreeMap<String, _> = place.ask_many(to, 5).into_iter().collect();
            assert_eq!(answers.len(), 1, "{to}: {answers:?}");
            all.extend(answers.into_keys());
        }
    }
    all
}

#[test]
fn an_older_layout_is_taken_over() {
    let Some(lab) = lab("an_older_layout_is_taken_over") else {
        return;
    };
    // Nothing that stays open is to be given up for what is new.
    let mut lab = lab.with(&["--ebpf-flows-max=1000000"]);
    // The one that comes later is first by name: in new maps their numbers would be others.
    lab.write("sticky.yaml", &service("sticky", STICKY, ALL));
    lab.start();
    lab.write("spread.yaml", &service("spread", SPREAD, ALL));
    for to in ["172.30.0.41:80", "[fd00:172::41]:80"] {
        lab.wait("the other service", |lab| lab.p1.ask(to).is_ok());
    }
    let node = lab.pins().unwrap().join("node");
    let before = [[172, 30, 0, 41], [172, 30, 0, 43]].map(|ip| number(&node, ip));
    let tcp = [
        (&lab.p1, "172.30.0.41:80"),
        (&lab.p1, "[fd00:172::41]:80"),
        (&lab.cli, "192.168.0.2:30041"),
        (&lab.cli, "[2001:db8::2]:30041"),
    ];
    let mut tcp = tcp.map(|(place, to)| (place.connect(to), to.parse::<SocketAddr>().unwrap()));
    let udp: Vec<(UdpSocket, SocketAddr)> = (0..16)
        .map(|n| {
            let (any, to) = [
                ("0.0.0.0:0", "192.168.0.2:30041"),
                ("[::]:0", "[2001:db8::2]:30041"),
            ][n % 2];
            let socket = lab.cli.run(|| UdpSocket::bind(any).unwrap());
            let limit = crate::lab::talk::patience();
            socket.set_read_timeout(Some(limit)).unwrap();
            (socket, to.parse().unwrap())
        })
        .collect();
    let ask_all = |sockets: &[(UdpSocket, SocketAddr)]| -> Vec<String> {
        let each = sockets.iter();
        each.map(|(socket, to)| ask_udp(socket, *to).unwrap())
            .collect()
    };
    let (answers, clients) = (ask_all(&udp), kept(&lab));
    lab.stop(Signal::SIGKILL);
    make_older(&node);
    let (p1, cli) = (lab.p1.twin(), lab.cli.twin());
    let asked = [
        (&p1, "172.30.0.41:80"),
        (&cli, "192.168.0.2:30041"),
        (&cli, "[2001:db8::2]:30041"),
    ];
    under_traffic(&asked, |answered| {
        lab.start();
        lab.wait("clients", |_| answered.load(Ordering::Relaxed) > 10);
    });
    for (stream, to) in &mut tcp {
        still_alive(stream);
        assert_eq!(stream.peer_addr().unwrap(), *to);
    }
    assert_eq!(ask_all(&udp), answers, "flows of UDP stay");
    assert_eq!(kept(&lab), clients, "clients stay with their endpoints");
    let after = [[172, 30, 0, 41], [172, 30, 0, 43]].map(|ip| number(&node, ip));
    assert_eq!(after, before, "what is remembered names services by number");
    assert!(before[0] > before[1], "{before:?}");
    let left = layouts(&node);
    let ours = format!("maps-v{VERSION}-");
    assert!(left.len() == 1 && left[0].starts_with(&ours), "{left:?}");
}

/// One of a version to come, after a return to this one: what is in it is not understood and not
/// guessed at, which is told. Services are served.
#[test]
fn a_layout_that_is_not_known_is_told_of() {
    let Some(mut lab) = lab("a_layout_that_is_not_known_is_told_of") else {
        return;
    };
    lab.write("spread.yaml", &service("spread", SPREAD, ALL));
    let newer = lab.pins().unwrap().join("node/maps-v99-0a0b0c0d");
    std::fs::create_dir_all(&newer).unwrap();
    let info = MapInfo {
        kind: 9,
        key_size: 64,
        value_size: 16,
        max_entries: 64,
        ..MapInfo::default()
    };
    let flows = Map::create(&info, "FLOWS").unwrap();
    for n in 0..3 {
        flows.update(&[n; 64], &[0; 16]).unwrap();
    }
    flows.pin(&newer.join("FLOWS")).unwrap();
    drop(flows);
    lab.start();
    let log = lab.log_text();
    let told = "maps-v99-0a0b0c0d: of a layout that this version does not know";
    assert_eq!(log.matches(told).count(), 1, "{log}");
    assert!(log.contains("FLOWS 3"), "{log}");
    for to in ["172.30.0.41:80", "[fd00:172::41]:80"] {
        lab.p1.answer(to);
    }
    lab.cli.answer("192.168.0.2:30041");
    assert!(!newer.exists());
}
