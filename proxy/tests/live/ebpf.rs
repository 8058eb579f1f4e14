//! Mode ebpf on the real kernel: sockets of pods and of the node, and what the tests of this mode share.
//! Needs root.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::lab::talk::still_alive;
use crate::lab::{self, Lab, service};
use ebpf_common::abi::{TCP, UDP};
use linux::sock_diag::SockDiag;

pub(super) const ALL: &[(&str, &str)] = &[
    ("10.180.0.1", "node"),
    ("10.180.0.2", "node"),
    ("10.180.1.1", "other"),
    ("fd00:180::1", "node"),
    ("fd00:180::2", "node"),
    ("fd00:180:1::1", "other"),
];

pub(super) const SPEC: &str = "{type: NodePort, clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: [{port: 80, nodePort: 30041}, {name: udp, port: 80, protocol: UDP, nodePort: 30041}]}";

/// A service without endpoints.
const EMPTY: &str =
    "{clusterIP: 172.30.0.42, ports: [{port: 80}, {name: udp, port: 80, protocol: UDP}]}";

pub(super) fn lab(name: &str) -> Option<Lab> {
    Lab::new(name).map(Lab::with_sockets)
}

/// Who answers, asked so many times, each of which must be answered.
pub(super) fn names(place: &lab::place::Place, to: &str, times: usize) -> BTreeSet<String> {
    let answers = place.ask_many(to, times);
    assert_eq!(answers.len(), times, "{to}");
    answers.into_iter().map(|(who, _)| who).collect()
}

#[test]
fn sockets_see_the_service_and_reach_an_endpoint() {
    let Some(mut lab) = lab("sockets_see_the_service_and_reach_an_endpoint") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.write("no.yaml", &service("empty", EMPTY, &[]));
    lab.start();
    for to in [
        "172.30.0.41:80",
        "[fd00:172::41]:80",
        "192.168.0.2:30041",
        "[2001:db8::2]:30041",
    ] {
        for place in [&lab.p1, &lab.node, &lab.cli] {
            let all: Vec<String> = names(place, to, 60).into_iter().collect();
            assert_eq!(all, ["p1", "p2", "p3"], "{to}");
        }
        // Nobody's address is changed, nor is the service's seen through.
        let (_, seen) = lab.p1.answer(to);
        assert!(
            ["10.180.0.1", "fd00:180::1"].contains(&seen.to_string().as_str()),
            "{seen}"
        );
        let stream = lab.p1.connect(to);
        assert_eq!(
            stream.peer_addr().unwrap(),
            to.parse::<SocketAddr>().unwrap()
        );
    }
    lab.node.answer("127.0.0.1:30041");
    assert_eq!(
        lab.p1.ask("127.0.0.1:30041"),
        Err(ErrorKind::ConnectionRefused)
    );
    assert_eq!(
        lab.p1.ask("172.30.0.42:80"),
        Err(ErrorKind::ConnectionRefused)
    );
    // An IPv6 socket that uses IPv4.
    lab.p1.answer("[::ffff:172.30.0.41]:80");
    datagrams(&lab);
    let taken = |to: &'static str| {
        lab.node
            .run(|| TcpListener::bind(to).map(drop).map_err(|e| e.kind()))
    };
    assert_eq!(taken("0.0.0.0:30041"), Err(ErrorKind::AddrInUse));
    assert_eq!(taken("[::]:30041"), Err(ErrorKind::AddrInUse));
    assert_eq!(taken("192.168.0.2:30041"), Err(ErrorKind::AddrInUse));
    assert_eq!(taken("0.0.0.0:30040"), Ok(()));
    let in_pod = lab.p1.run(|| {
        TcpListener::bind("0.0.0.0:30041")
            .map(drop)
            .map_err(|e| e.kind())
    });
    assert_eq!(in_pod, Ok(()), "a pod's ports are its own");
}

fn datagrams(lab: &Lab) {
    for (any, to) in [
        ("0.0.0.0:0", "172.30.0.41:80"),
        ("[::]:0", "[fd00:172::41]:80"),
        ("[::]:0", "[::ffff:172.30.0.41]:80"),
    ] {
        let to: SocketAddr = to.parse().unwrap();
        let (loose, fixed) = lab.p1.run(|| {
            let socket = |_| {
                let socket = UdpSocket::bind(any).unwrap();
                socket
                    .set_read_timeout(Some(lab::talk::patience()))
                    .unwrap();
                socket
            };
            let (loose, fixed) = (socket(()), socket(()));
            fixed.connect(to).unwrap();
            (loose, fixed)
        });
        let mut buffer = [0; 64];
        let mut who = BTreeSet::new();
        for _ in 0..8 {
            loose.send_to(b"?", to).unwrap();
            let (n, from) = loose.recv_from(&mut buffer).unwrap();
            assert_eq!(from, to, "the sender is the service");
            who.insert(buffer[..n].to_vec());
        }
        assert_eq!(who.len(), 1, "a socket stays with its endpoint");
        fixed.send(b"?").unwrap();
        let (_, from) = fixed.recv_from(&mut buffer).unwrap();
        assert_eq!(from, to);
        assert_eq!(fixed.peer_addr().unwrap(), to);
    }
    let refused = lab.p1.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"?", "172.30.0.42:80").map_err(|e| e.kind())
    });
    assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
}

/// Each client connects to its address again and again while `work` is done, which sees how many were
/// answered so far; gives how many were in all. No connection may fail.
pub(super) fn under_traffic(
    clients: &[(&lab::place::Place, &str)],
    work: impl FnOnce(&AtomicUsize),
) -> usize {
    let stop = AtomicBool::new(false);
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    std::thread::scope(|scope| {
        let _ends = Stop(&stop);
        for (place, to) in clients {
            scope.spawn(|| ask_on(place, to, &stop, &counts));
        }
        work(&counts[0]);
    });
    let [good, bad] = counts.map(AtomicUsize::into_inner);
    assert_eq!(bad, 0, "of {good}");
    good
}

/// Connects again and again; counts answers and failures.
fn ask_on(place: &lab::place::Place, to: &str, stop: &AtomicBool, counts: &[AtomicUsize; 2]) {
    let to: SocketAddr = to.parse().unwrap();
    place.run(|| {
        while !stop.load(Ordering::Relaxed) {
            let failed = usize::from(!lab::talk::ask_once(to));
            counts[failed].fetch_add(1, Ordering::Relaxed);
        }
    });
}

/// Ends threads that work on also when the test panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether the kernel ends sockets of others (`CONFIG_INET_DIAG_DESTROY`).
fn ends_sockets(place: &lab::place::Place) -> bool {
    let ended = place.run(|| {
        let [server, socket] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let peer = server.local_addr().unwrap();
        socket.connect(peer).unwrap();
        let mut diag = SockDiag::open()?;
        let found = diag.connected_to(peer)?;
        found.iter().try_for_each(|one| diag.destroy(one).map(drop))
    });
    match ended {
        Err(error) if error.errno() == Some(nix::libc::EOPNOTSUPP) => false,
        ended => ended.map(|()| true).unwrap(),
    }
}

/// A connected socket of an endpoint that is gone gets an error, and the service again when it
/// connects anew; others are left alone.
#[test]
fn connected_udp_sockets_of_a_removed_endpoint_are_ended() {
    let test = "connected_udp_sockets_of_a_removed_endpoint_are_ended";
    let Some(mut lab) = lab(test) else {
        return;
    };
    if !ends_sockets(&lab.p1) {
        println!("SKIPPED {test}: this kernel ends no sockets of others");
        return;
    }
    lab.write("web.yaml", &service("web", SPEC, &[ALL[1], ALL[4]]));
    lab.start();
    let ask = |socket: &UdpSocket| {
        let mut buffer = [0; 64];
        socket.send(b"?")?;
        let n = socket.recv(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        Ok::<_, std::io::Error>(text.split(' ').next().unwrap_or_default().to_owned())
    };
    let connect = |place: &lab::place::Place, to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        place.run(|| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            let limit = lab::talk::patience();
            socket.set_read_timeout(Some(limit)).unwrap();
            socket.connect(to).unwrap();
            socket
        })
    };
    let ways = [
        (&lab.p1, "172.30.0.41:80"),
        (&lab.p1, "[fd00:172::41]:80"),
        (&lab.p1, "[::ffff:172.30.0.41]:80"),
        (&lab.node, "172.30.0.41:80"),
    ];
    let sockets = ways.map(|(place, to)| connect(place, to));
    // To the same endpoint, but not through the service.
    let direct = connect(&lab.p1, "10.180.0.2:8080");
    for socket in sockets.iter().chain([&direct]) {
        assert_eq!(ask(socket).unwrap(), "p2");
    }
    let mut tcp = lab.p1.connect("172.30.0.41:80");
    lab.write("web.yaml", &service("web", SPEC, &[ALL[2], ALL[5]]));
    for ((place, to), socket) in ways.iter().zip(&sockets) {
        lab.wait("the end of a socket", |_| socket.peer_addr().is_err());
        let heard = socket.recv(&mut [0; 64]).unwrap_err().kind();
        assert_eq!(heard, ErrorKind::ConnectionAborted, "{to}");
        assert!(ask(socket).is_err(), "{to}");
        let to: SocketAddr = to.parse().unwrap();
        place.run(|| socket.connect(to)).unwrap();
        assert_eq!(ask(socket).unwrap(), "p3", "{to}");
    }
    assert_eq!(ask(&direct).unwrap(), "p2");
    still_alive(&mut tcp);
    // With nobody left a new connection is refused.
    lab.write("web.yaml", &service("web", SPEC, &[]));
    let ((place, to), socket) = (ways[0], &sockets[0]);
    lab.wait("the end of a socket", |_| socket.peer_addr().is_err());
    let to: SocketAddr = to.parse().unwrap();
    let refused = place.run(|| socket.connect(to)).unwrap_err().kind();
    assert_eq!(refused, ErrorKind::ConnectionRefused);
}

/// Counts packets at every hook of the node: none carries the service's address, none meets a rule for
/// translating addresses, and no connection is tracked as translated.
#[test]
fn no_packet_of_a_pods_connection_meets_a_nat_rule() {
    const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
    let Some(mut lab) = lab("no_packet_of_a_pods_connection_meets_a_nat_rule") else {
        return;
    };
    let mut text = String::from("table inet watch { counter endpoint {}; ");
    for hook in HOOKS {
        text += &format!(
            "counter vip_{hook} {{}}; chain {hook} {{ type filter hook {hook} priority -350; "
        );
        for side in ["saddr", "daddr"] {
            text += &format!(
                "ip {side} 172.30.0.0/16 counter name vip_{hook}; ip6 {side} fd00:172::/112 counter name vip_{hook}; "
            );
        }
        text += "ip daddr 10.180.1.1 counter name endpoint; ip6 daddr fd00:180:1::1 counter name endpoint; }; ";
    }
    text += "}";
    lab.run_program("nft", &[&text]);
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.write("no.yaml", &service("empty", EMPTY, &[]));
    lab.start();
    let before = lab.run_program("nft", &["list", "counters", "table", "inet", "watch"]);
    assert!(before.contains("endpoint"), "{before}");
    for to in ["172.30.0.41:80", "[fd00:172::41]:80"] {
        for _ in 0..30 {
            still_alive(&mut lab.p1.connect(to));
        }
    }
    datagrams(&lab);
    let seen = lab.run_program("nft", &["list", "counters", "table", "inet", "watch"]);
    let counters = packets(&seen);
    for hook in HOOKS {
        assert_eq!(counters[&format!("vip_{hook}")], 0, "{seen}");
    }
    assert!(counters["endpoint"] > 100, "{seen}");
    // Nobody but the watcher has a hook, and no table translates addresses.
    let all = lab.run_program("nft", &["list", "ruleset"]);
    assert!(!all.contains("type nat"), "{all}");
    for (ipv6, protocol) in [(false, TCP), (false, UDP), (true, TCP), (true, UDP)] {
        let flows = lab.node.run(|| {
            let mut table = linux::conntrack::Conntrack::open().unwrap();
            table.list(ipv6, protocol).unwrap()
        });
        let translated: Vec<_> = flows.iter().filter(|flow| flow.is_translated()).collect();
        assert!(translated.is_empty(), "{translated:?}");
    }
}

/// Packets by name of a counter, of what `nft list counters` says.
fn packets(text: &str) -> std::collections::BTreeMap<String, u64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let each = words
        .windows(5)
        .filter(|w| w[0] == "counter" && w[3] == "packets");
    each.map(|w| (w[1].to_owned(), w[4].parse().unwrap()))
        .collect()
}

/// What is left out is named, once for each port; the other ports of the same service are served.
#[test]
fn ports_of_sctp_are_named_and_the_others_served() {
    let Some(mut lab) = lab("ports_of_sctp_are_named_and_the_others_served") else {
        return;
    };
    let spec = |last: u8| {
        format!(
            "{{clusterIP: 172.30.0.{last}, ports: [{{port: 80}}, {{name: sctp, port: 81, protocol: SCTP}}]}}"
        )
    };
    lab.write("a.yaml", &service("a", &spec(51), ALL));
    lab.start();
    lab.wait("the port's name", |lab| {
        lab.log_text()
            .contains("SCTP is not served in mode ebpf: default/a:sctp")
    });
    lab.p1.answer("172.30.0.51:80");
    // As many as before, and another one.
    lab.write("a.yaml", &service("b", &spec(52), ALL));
    lab.wait("the other port's name", |lab| {
        lab.log_text()
            .contains("SCTP is not served in mode ebpf: default/b:sctp")
    });
    lab.wait("the other service", |lab| {
        lab.p1.ask("172.30.0.52:80").is_ok()
    });
    assert_eq!(lab.log_text().matches("ebpf: default/a:sctp").count(), 1);
}
