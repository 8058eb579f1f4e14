//! Mode ebpf for clients outside the node: tables that are full, consistent hashing, pods in the node's
//! network, what others masquerade. Needs root.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::ebpf::{ALL, SPEC, lab, names};
use crate::lab::talk::still_alive;
use crate::lab::{self, Lab, service};
use ebpf_common::abi::UDP;
use ebpf_common::maglev;
use ebpf_common::resolve::scale;
use linux::Host as _;
use nix::sys::signal::Signal;
use proxy::backend::ebpf::plan;

#[test]
fn a_udp_client_that_keeps_its_port_follows_the_endpoints() {
    if let Some(lab) = lab("ebpf: a_udp_client_that_keeps_its_port_follows_the_endpoints") {
        lab::udp::clients_that_keep_their_ports_follow_the_endpoints(lab);
    }
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
    assert_eq!(names(&lab.cli, "192.168.0.2:30041", 600).len(), 3);
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
    // Families and ports change one after the other: these are the ones that are asked below.
    lab.wait("the endpoint to go", |lab| {
        ["192.168.0.2:30041", "[2001:db8::2]:30041"]
            .iter()
            .all(|to| heard(lab, to, 60).len() == 2)
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
    assert_eq!(names(&lab.cli, "192.168.0.2:30041", 60).len(), 3);
}

/// Who answers datagrams of as many new sockets of the client.
fn heard(lab: &Lab, to: &str, times: usize) -> BTreeSet<String> {
    let to: SocketAddr = to.parse().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let ask = |_| {
        let socket = lab.cli.run(|| UdpSocket::bind(any).unwrap());
        let limit = lab::talk::patience();
        socket.set_read_timeout(Some(limit)).unwrap();
        lab::talk::ask_udp(&socket, to)
    };
    (0..times).filter_map(ask).collect()
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
            let all: Vec<String> = names(place, to, 60).into_iter().collect();
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
            names(&lab.cli, to, 60).into_iter().eq(["host".to_owned()])
        });
        let (_, seen) = lab.cli.answer(to);
        assert_eq!(seen.to_string(), client);
    }
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
    if !lab::has_nf_tables() {
        println!(
            "SKIPPED answers_of_local_pods_are_not_masqueraded_by_others: {}",
            lab::NO_NF_TABLES
        );
        return;
    }
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
