//! Mode ebpf on the real kernel: sockets of pods and of the node, clients outside, restarts under
//! traffic. Needs root.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::lab::talk::still_alive;
use crate::lab::{self, Lab, service};
use ebpf_common::abi::{TCP, UDP};
use ebpf_common::maglev;
use ebpf_common::resolve::scale;
use linux::Host as _;
use linux::bpf::{link_info, open_pinned};
use linux::link::LinkChange;
use nix::sys::signal::Signal;
use proxy::backend::ebpf::plan;

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

/// Programs replaced, and endpoints changed, while connections are made.
const RESTARTS: usize = 20;
const CHANGES: usize = 200;

pub(super) fn lab(name: &str) -> Option<Lab> {
    Lab::new(name).map(Lab::with_sockets)
}

fn names(place: &lab::place::Place, to: &str) -> std::collections::BTreeSet<String> {
    place
        .ask_many(to, 60)
        .into_iter()
        .map(|(who, _)| who)
        .collect()
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
            let all: Vec<String> = names(place, to).into_iter().collect();
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
        let mut who = std::collections::BTreeSet::new();
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

/// Connects again and again; counts answers and failures.
pub(super) fn ask_on(
    place: &lab::place::Place,
    to: &str,
    stop: &AtomicBool,
    counts: &[AtomicUsize; 2],
) {
    let to: SocketAddr = to.parse().unwrap();
    place.run(|| {
        while !stop.load(Ordering::Relaxed) {
            let failed = usize::from(!lab::talk::ask_once(to));
            counts[failed].fetch_add(1, Ordering::Relaxed);
        }
    });
}

/// Ends threads that work on also when the test panics.
pub(super) struct Stop<'a>(pub(super) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn programs_and_endpoints_change_under_traffic() {
    let Some(lab) = lab("programs_and_endpoints_change_under_traffic") else {
        return;
    };
    // The two that stay open and idle are not to be the ones that are given up.
    let mut lab = lab.with(&["--ebpf-flows-max=1000000"]);
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let mut old = [
        lab.p1.connect("172.30.0.41:80"),
        lab.cli.connect("192.168.0.2:30041"),
    ];
    let stop = AtomicBool::new(false);
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let (p1, cli) = (lab.p1.twin(), lab.cli.twin());
    std::thread::scope(|scope| {
        let ends = Stop(&stop);
        scope.spawn(|| ask_on(&p1, "172.30.0.41:80", &stop, &counts));
        scope.spawn(|| ask_on(&p1, "[fd00:172::41]:80", &stop, &counts));
        scope.spawn(|| ask_on(&cli, "192.168.0.2:30041", &stop, &counts));
        scope.spawn(|| ask_on(&cli, "[2001:db8::2]:30041", &stop, &counts));
        for restart in 0..RESTARTS {
            // Every endpoint that was ever there goes on serving.
            for change in 0..CHANGES / RESTARTS {
                let n = 1 + (restart + change) % 3;
                let mut some = ALL[..n].to_vec();
                some.extend(&ALL[3..3 + n]);
                lab.write("web.yaml", &service("web", SPEC, &some));
                std::thread::yield_now();
            }
            lab.stop(Signal::SIGKILL);
            lab.start();
        }
        drop(ends);
    });
    let [good, bad] = counts.map(AtomicUsize::into_inner);
    println!(
        "COUNTED connections during {RESTARTS} replacements of the programs and {CHANGES} changes of endpoints: {good} answered, {bad} failed"
    );
    assert_eq!(bad, 0);
    assert!(good > 1000, "{good}");
    for stream in &mut old {
        still_alive(stream);
    }
    // What an earlier process wrote is found and not written again.
    assert!(lab.log_text().contains("adopted=true"));
}

#[test]
fn a_udp_client_that_keeps_its_port_follows_the_endpoints() {
    if let Some(lab) = lab("ebpf: a_udp_client_that_keeps_its_port_follows_the_endpoints") {
        lab::udp::clients_that_keep_their_ports_follow_the_endpoints(lab);
    }
}

/// A connected socket of an endpoint that is gone gets an error, and the service again when it
/// connects anew; others are left alone.
#[test]
fn connected_udp_sockets_of_a_removed_endpoint_are_ended() {
    let Some(mut lab) = lab("connected_udp_sockets_of_a_removed_endpoint_are_ended") else {
        return;
    };
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

#[test]
fn more_clients_than_the_table_of_flows_holds_are_served() {
    let Some(lab) = lab("more_clients_than_the_table_of_flows_holds_are_served") else {
        return;
    };
    // Two or three entries for each connection.
    let mut lab = lab.with(&["--ebpf-flows-max=1024"]);
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let answers = lab.cli.ask_many("192.168.0.2:30041", 600);
    assert_eq!(answers.len(), 600);
    let names: std::collections::BTreeSet<_> =
        answers.iter().map(|(who, _)| who.as_str()).collect();
    assert_eq!(names.len(), 3);
}

#[test]
fn after_cleanup_nothing_is_translated_and_nothing_is_left() {
    let Some(mut lab) = lab("after_cleanup_nothing_is_translated_and_nothing_is_left") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    lab.p1.answer("172.30.0.41:80");
    let pins = lab.pins().unwrap();
    assert!(pins.exists());
    lab.stop(Signal::SIGTERM);
    lab.p1.answer("172.30.0.41:80");
    lab.cleanup();
    assert!(!pins.exists());
    let to: SocketAddr = "172.30.0.41:80".parse().unwrap();
    // Links let go of programs when the last reference is gone.
    lab.wait("the programs to go", |lab| {
        lab.p1
            .run(|| TcpStream::connect_timeout(&to, std::time::Duration::from_millis(200)).is_err())
    });
    lab.wait("node ports to go", |lab| {
        lab.cli.ask("192.168.0.2:30041") == Err(ErrorKind::ConnectionRefused)
    });
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

/// As on kernels before TCX: filters stay when the proxy is killed, are replaced under traffic, give
/// way to links and come back, and go with `--cleanup`.
#[test]
fn filters_of_clsact_serve_clients_outside_as_links_do() {
    let Some(lab) = lab("filters_of_clsact_serve_clients_outside_as_links_do") else {
        return;
    };
    // The connections that stay open and idle are not to be the ones that are given up.
    let lab = lab.with(&["--ebpf-flows-max=1000000"]);
    let mut lab = lab.with(&["--ebpf-attach", "clsact"]);
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let filters = |lab: &Lab, way| lab.run_program("tc", &["filter", "show", "dev", "eth0", way]);
    for way in ["ingress", "egress"] {
        let text = filters(&lab, way);
        assert!(
            text.contains(&format!("seaway_{way} direct-action")),
            "{text}"
        );
    }
    let mut old = [
        lab.cli.connect("192.168.0.2:30041"),
        lab.cli.connect("[2001:db8::2]:30041"),
    ];
    let stop = AtomicBool::new(false);
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let cli = lab.cli.twin();
    std::thread::scope(|scope| {
        let ends = Stop(&stop);
        scope.spawn(|| ask_on(&cli, "192.168.0.2:30041", &stop, &counts));
        scope.spawn(|| ask_on(&cli, "[2001:db8::2]:30041", &stop, &counts));
        for _ in 0..3 {
            lab.stop(Signal::SIGKILL);
            lab.start();
        }
        drop(ends);
    });
    let [good, bad] = counts.map(AtomicUsize::into_inner);
    assert_eq!(bad, 0, "of {good}");
    assert!(good > 100, "{good}");
    // Adding and removing the discipline the kernel stops a device for a moment: nobody connects then.
    for attach in ["tcx", "clsact"] {
        lab.stop(Signal::SIGKILL);
        lab.more_flags(&["--ebpf-attach", attach]);
        lab.start();
        let text = filters(&lab, "egress");
        let expect = usize::from(attach == "clsact");
        assert_eq!(text.matches("seaway_egress").count(), expect, "{text}");
        for stream in &mut old {
            still_alive(stream);
        }
        lab.cli.answer("[2001:db8::2]:30041");
    }
    // Somebody takes the discipline away with all that is in it.
    lab.run_program("tc", &["qdisc", "del", "dev", "eth0", "clsact"]);
    lab.run_program("ip", &["address", "add", "198.51.100.77/32", "dev", "eth0"]);
    lab.wait("the filters of both ways to be back", |lab| {
        ["ingress", "egress"]
            .iter()
            .all(|way| filters(lab, way).contains(&format!("seaway_{way}")))
    });
    lab.cli.answer("192.168.0.2:30041");
    // What others have there stays.
    let other = "ingress prio 77 protocol ip u32 match u32 0 0 flowid 1:1";
    let words: Vec<&str> = ["filter", "add", "dev", "eth0"]
        .into_iter()
        .chain(other.split(' '))
        .collect();
    lab.run_program("tc", &words);
    lab.stop(Signal::SIGTERM);
    lab.cleanup();
    assert!(!filters(&lab, "ingress").contains("seaway"));
    assert!(filters(&lab, "ingress").contains("pref 77"));
    let of_bridge = lab.run_program("tc", &["qdisc", "show", "dev", "cni0"]);
    assert!(!of_bridge.contains("clsact"), "{of_bridge}");
}

/// Each client's endpoint follows from the endpoints alone: the table as it is computed here says
/// where the kernel sends whom, through changes, restarts and with other places.
#[test]
fn consistent_hashing_sends_each_client_where_every_node_would() {
    let Some(mut lab) = lab("consistent_hashing_sends_each_client_where_every_node_would") else {
        return;
    };
    let maglev = |places: &str, endpoints: &[(&str, &str)]| {
        let annotations =
            format!("{{seaway/balancing: maglev, seaway/maglev-table-size: \"{places}\"}}");
        service("web", SPEC, endpoints).replacen(
            "{name: web}",
            &format!("{{name: web, annotations: {annotations}}}"),
            1,
        )
    };
    // A client that is known stays where it was: each time they are others.
    let check = |lab: &Lab, first: u16, asked: u32, endpoints: &[(&str, &str)]| {
        for (to, v6) in [("192.168.0.2:30041", false), ("[2001:db8::2]:30041", true)] {
            let own = endpoints.iter().filter(|(ip, _)| ip.contains(':') == v6);
            let ips: Vec<&str> = own.map(|(ip, _)| *ip).collect();
            let who = Expected::new(&ips, asked);
            let client = if v6 { "2001:db8::9" } else { "192.168.0.9" };
            for port in first..first + 30 {
                let at = SocketAddr::new(client.parse().unwrap(), port);
                let socket = lab.cli.run(|| UdpSocket::bind(at).unwrap());
                socket
                    .set_read_timeout(Some(lab::talk::patience()))
                    .unwrap();
                let heard = lab::talk::ask_udp(&socket, to.parse().unwrap());
                assert_eq!(heard.as_deref(), Some(who.of(at)), "{at} to {to}");
            }
        }
    };
    lab.write("web.yaml", &maglev("251", ALL));
    lab.start();
    check(&lab, 20_100, 251, ALL);
    // One goes, and comes again to another slot than before.
    let fewer = [ALL[1], ALL[2], ALL[4], ALL[5]];
    lab.write("web.yaml", &maglev("251", &fewer));
    lab.wait("the endpoint to go", |lab| {
        names(&lab.cli, "192.168.0.2:30041").len() == 2
    });
    check(&lab, 20_200, 251, &fewer);
    lab.stop(Signal::SIGKILL);
    lab.write("web.yaml", &maglev("4093", ALL));
    lab.start();
    check(&lab, 20_300, 4093, ALL);
    // Nothing is written that was there.
    lab.stop(Signal::SIGKILL);
    lab.start();
    let last = lab.log_text();
    let last = last
        .lines()
        .rfind(|line| line.contains("IPv4: full sync"))
        .unwrap();
    assert!(
        last.contains("objects=0") && last.contains("deleted=0"),
        "{last}"
    );
    check(&lab, 20_400, 4093, ALL);
    // Without the annotation it is chance again, from all ports alike.
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.stop(Signal::SIGKILL);
    lab.start();
    assert_eq!(names(&lab.cli, "192.168.0.2:30041").len(), 3);
}

/// The table of pods, by name.
struct Expected {
    table: Vec<u16>,
    names: Vec<&'static str>,
}

impl Expected {
    fn new(ips: &[&str], asked: u32) -> Self {
        let endpoint = |ip: &&str| plan::endpoint(ip.parse().unwrap(), lab::talk::PORT);
        let mut all: Vec<_> = ips
            .iter()
            .map(|ip| {
                (
                    endpoint(ip),
                    ["p1", "p2", "p3"][ALL.iter().position(|(known, _)| known == ip).unwrap() % 3],
                )
            })
            .collect();
        all.sort_unstable();
        let size = maglev::size_for(asked, all.len());
        let mut table = vec![0; size as usize];
        let turns = (0..)
            .zip(&all)
            .map(|(slot, (endpoint, _))| maglev::Turn::new(endpoint, slot, 1, size));
        maglev::fill(&mut turns.collect::<Vec<_>>(), &mut table);
        Self {
            table,
            names: all.into_iter().map(|(_, name)| name).collect(),
        }
    }

    fn of(&self, client: SocketAddr) -> &'static str {
        let client = plan::endpoint(client.ip(), client.port());
        let number = maglev::client(&client, u32::from(UDP), true);
        let place = scale(number, u32::try_from(self.table.len()).unwrap());
        self.names[usize::from(self.table[place as usize])]
    }
}

/// Interfaces that stay keep their programs while others come, go and get other names; one that moves
/// to a pod loses them.
#[test]
fn interfaces_that_come_and_go_disturb_no_other() {
    let Some(mut lab) = lab("interfaces_that_come_and_go_disturb_no_other") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let links = lab.pins().unwrap().join("node/links");
    // The kernel gives every link another number: the same ones are there still, or they are not.
    let numbers = |index: u32| {
        let numbers = ["egress", "ingress"].map(|way| {
            let link = open_pinned(&links.join(format!("tcx-{index}-{way}")));
            link.and_then(|link| link_info(link.as_fd()))
                .map(|info| info.id)
        });
        numbers.into_iter().flatten().collect::<Vec<u32>>()
    };
    let index = |lab: &mut Lab, name| lab.node.kernel.link(name).unwrap().unwrap().index;
    let stay = ["eth0", "rem0", "cni0"].map(|name| index(&mut lab, name));
    let before = stay.map(numbers);
    assert!(before.iter().all(|ids| ids.len() == 2), "{before:?}");
    let stop = AtomicBool::new(false);
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let cli = lab.cli.twin();
    std::thread::scope(|scope| {
        let ends = Stop(&stop);
        scope.spawn(|| ask_on(&cli, "192.168.0.2:30041", &stop, &counts));
        scope.spawn(|| ask_on(&cli, "[2001:db8::2]:30041", &stop, &counts));
        for round in 0..40 {
            // Both ends on the node, as some plugins make them: one is moved to the pod later.
            let words = format!("link add x{round} type veth peer name y{round}");
            lab.run_program("ip", &words.split(' ').collect::<Vec<_>>());
            if round % 2 == 0 {
                let words = format!("link set x{round} name z{round}");
                lab.run_program("ip", &words.split(' ').collect::<Vec<_>>());
                lab.run_program("ip", &["link", "del", &format!("z{round}")]);
            }
        }
        let moved = index(&mut lab, "y1");
        lab.wait("programs at a new interface", |_| numbers(moved).len() == 2);
        let to_pod = LinkChange {
            netns: Some(lab.p1.kernel.netns()),
            ..LinkChange::default()
        };
        lab.node.kernel.set_link("y1", &to_pod).unwrap();
        lab.wait("its programs to go", |_| numbers(moved).is_empty());
        lab.wait("clients", |_| counts[0].load(Ordering::Relaxed) > 10);
        drop(ends);
    });
    let [good, bad] = counts.map(AtomicUsize::into_inner);
    assert_eq!(bad, 0, "of {good}");
    assert_eq!(stay.map(numbers), before);
}

#[test]
fn a_second_process_for_the_same_node_is_refused() {
    let Some(mut lab) = lab("a_second_process_for_the_same_node_is_refused") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let (code, log) = lab.second(&[]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("is in use by another process"), "{log}");
    lab.p1.answer("172.30.0.41:80");
    lab.stop(Signal::SIGKILL);
    lab.start();
}

/// The pins of a live process are its own: `--cleanup` says whose they are, and another mode takes them
/// away when that process has ended, and serves on.
#[test]
fn a_live_process_keeps_its_pins() {
    let Some(mut lab) = lab("a_live_process_keeps_its_pins") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let pins = lab.pins().unwrap();
    let is_served = |lab: &Lab| {
        ["172.30.0.41:80", "[fd00:172::41]:80", "192.168.0.2:30041"]
            .iter()
            .all(|to| lab.p1.ask(to).is_ok() && lab.node.ask(to).is_ok())
    };
    let holder = format!("is in use by another process ({})", lab.pid());
    let (code, log) = lab.second(&["--cleanup"]);
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains(&holder) && log.contains("end it first"),
        "{log}"
    );
    assert!(pins.join("node/links/connect4").exists());
    assert!(is_served(&lab));
    lab.start_other(&["--mode=nftables"]);
    lab.wait("word of the live process", |lab| {
        lab.other_log().contains("taken away when that has ended")
    });
    assert!(lab.other_log().contains(&holder), "{}", lab.other_log());
    assert!(pins.join("node/links/connect4").exists());
    assert!(is_served(&lab));
    lab.stop(Signal::SIGKILL);
    lab.wait("the pins to go", |_| !pins.exists());
    // The kernel lets go of programs a moment after their last pin.
    lab.wait("another mode to serve", is_served);
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

/// Pods in the node's network: as endpoints, their address is the node's, here and elsewhere; as
/// clients, they are served as the node's own processes are.
#[test]
fn pods_in_the_nodes_network_are_endpoints_and_clients() {
    let Some(mut lab) = lab("pods_in_the_nodes_network_are_endpoints_and_clients") else {
        return;
    };
    lab.node.serve("host");
    let endpoints = [
        ("192.168.0.2", "node"),
        ("10.180.1.1", "other"),
        ("2001:db8::2", "node"),
        ("fd00:180:1::1", "other"),
    ];
    lab.write("web.yaml", &service("web", SPEC, &endpoints));
    lab.start();
    for to in [
        "172.30.0.41:80",
        "[fd00:172::41]:80",
        "192.168.0.2:30041",
        "[2001:db8::2]:30041",
    ] {
        for place in [&lab.p1, &lab.node, &lab.cli] {
            let all: Vec<String> = names(place, to).into_iter().collect();
            assert_eq!(all, ["host", "p3"], "{to}");
        }
    }
    // Only the one on this node, which sees the client's own address.
    let local = SPEC.replacen("NodePort,", "NodePort, externalTrafficPolicy: Local,", 1);
    lab.write("web.yaml", &service("web", &local, &endpoints));
    for (to, client) in [
        ("192.168.0.2:30041", "192.168.0.9"),
        ("[2001:db8::2]:30041", "2001:db8::9"),
    ] {
        lab.wait("the endpoint here alone", |lab| {
            names(&lab.cli, to).into_iter().eq(["host".to_owned()])
        });
        let (_, seen) = lab.cli.answer(to);
        assert_eq!(seen.to_string(), client);
    }
}

#[test]
fn other_sizes_take_running_connections_over() {
    let Some(mut lab) = lab("other_sizes_take_running_connections_over") else {
        return;
    };
    lab.write("web.yaml", &service("web", SPEC, ALL));
    lab.start();
    let mut old = [
        lab.p1.connect("172.30.0.41:80"),
        lab.cli.connect("192.168.0.2:30041"),
    ];
    lab.stop(Signal::SIGKILL);
    let mut lab = lab.with(&["--ebpf-flows-max=20000"]);
    lab.start();
    for stream in &mut old {
        still_alive(stream);
    }
    assert_eq!(
        old[0].peer_addr().unwrap(),
        "172.30.0.41:80".parse().unwrap()
    );
    lab.p1.answer("172.30.0.41:80");
    lab.cli.answer("192.168.0.2:30041");
    let layouts = std::fs::read_dir(lab.pins().unwrap().join("node")).unwrap();
    let layouts = layouts.filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("maps-")
    });
    assert_eq!(layouts.count(), 1);
}

/// Far more connections than the table of flows holds: it is the old ones that it forgets.
#[test]
fn a_client_outside_that_never_rests_is_served() {
    const CONNECTIONS: usize = 12_000;
    let Some(lab) = lab("ebpf: a_client_outside_that_never_rests_is_served") else {
        return;
    };
    let mut lab = lab.with(&["--ebpf-flows-max=4096"]);
    lab.write("web.yaml", &service("web", SPEC, &[ALL[2], ALL[5]]));
    lab.start();
    let begun = AtomicUsize::new(0);
    let ask_all = |to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        let cli = lab.cli.twin();
        cli.run(|| -> std::io::Result<()> {
            while begun.fetch_add(1, Ordering::Relaxed) < CONNECTIONS {
                lab::talk::ask_raw(to)?;
            }
            Ok(())
        })
    };
    std::thread::scope(|scope| {
        let v4 = scope.spawn(|| ask_all("192.168.0.2:30041"));
        let v6 = scope.spawn(|| ask_all("[2001:db8::2]:30041"));
        v4.join().unwrap().unwrap();
        v6.join().unwrap().unwrap();
    });
}

/// As the overlay and the network policies of a node have it: what pods send out is masqueraded, and
/// the bridge asks the filters. Answers to clients outside are no connections of their own.
#[test]
fn answers_of_local_pods_are_not_masqueraded_by_others() {
    let Some(mut lab) = lab("ebpf: answers_of_local_pods_are_not_masqueraded_by_others") else {
        return;
    };
    for family in ["iptables", "ip6tables"] {
        let key = format!("net/bridge/bridge-nf-call-{family}");
        if lab.node.kernel.set_sysctl(&key, "1").is_err() {
            println!(
                "SKIPPED answers_of_local_pods_are_not_masqueraded_by_others: no br_netfilter"
            );
            return;
        }
    }
    let rule = "table inet others { chain out { type nat hook postrouting priority srcnat; \
        ip saddr 10.180.0.0/16 masquerade fully-random; ip6 saddr fd00:180::/32 masquerade fully-random; }; }";
    lab.run_program("nft", &[rule]);
    lab.write(
        "web.yaml",
        &service("web", SPEC, &[ALL[0], ALL[1], ALL[3], ALL[4]]),
    );
    lab.start();
    for to in ["192.168.0.2:30041", "[2001:db8::2]:30041"] {
        for _ in 0..10 {
            let mut stream = lab.cli.connect(to);
            still_alive(&mut stream);
        }
    }
}
