//! The IPVS mode of the real binary on a node of namespaces. Needs root and a kernel with IPVS
//! (`cargo xtask test --only vm` runs it in one).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

mod ipvs_lab;
#[expect(dead_code, reason = "other suites use more of it")]
mod lab;
mod sockets;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};

use ipvs_lab::ipvs_lab;
use lab::talk::still_alive;
use lab::{Lab, service};
use linux::Host;
use linux::exec::Exec;
use linux::iptables::Family;
use linux::ipvs::{Ipvs, Server, ServerId};
use nix::sys::signal::Signal;

const ALL: &[(&str, &str)] = &[
    ("10.180.0.1", "node"),
    ("10.180.0.2", "node"),
    ("10.180.1.1", "other"),
    ("fd00:180::1", "node"),
    ("fd00:180::2", "node"),
    ("fd00:180:1::1", "other"),
];
const TWO: &[(&str, &str)] = &[("10.180.0.2", "node"), ("10.180.1.1", "other")];

/// Virtual servers on the node, and their destinations' weights.
fn table(lab: &Lab) -> BTreeMap<String, Vec<(SocketAddr, u32)>> {
    lab.node.run(|| {
        let mut ipvs = Ipvs::open().unwrap();
        let servers: Vec<Server> = ipvs.servers().unwrap();
        let mut of = |id: ServerId| {
            let mut all: Vec<(SocketAddr, u32)> = ipvs
                .destinations(id)
                .unwrap()
                .iter()
                .map(|to| (to.address, to.weight))
                .collect();
            all.sort();
            all
        };
        servers
            .iter()
            .map(|s| (s.id.to_string(), of(s.id)))
            .collect()
    })
}

fn names(answers: &[(String, IpAddr)]) -> Vec<&str> {
    answers.iter().map(|(who, _)| who.as_str()).collect()
}

#[test]
fn ipvs_round_robin_takes_turns() {
    let Some(mut lab) = ipvs_lab("ipvs_round_robin_takes_turns") else {
        return;
    };
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
    lab.write("web.yaml", &service("web", spec, TWO));
    lab.start();
    for (place, to) in [
        (&lab.p1, "172.30.0.41:80"),
        (&lab.node, "172.30.0.41:80"),
        (&lab.cli, "192.168.0.2:30041"),
    ] {
        let answers = place.ask_many(to, 10);
        let names = names(&answers);
        for pair in names.windows(2) {
            assert_ne!(pair[0], pair[1], "{to}: {names:?}");
        }
    }
}

#[test]
fn ipvs_keeps_clients_with_affinity() {
    let Some(mut lab) = ipvs_lab("ipvs_keeps_clients_with_affinity") else {
        return;
    };
    let spec = "{clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], sessionAffinity: ClientIP, ports: [{port: 80}]}";
    lab.write("web.yaml", &service("web", spec, ALL));
    lab.start();
    for to in ["172.30.0.41:80", "[fd00:172::41]:80"] {
        let answers = lab.cli.ask_many(to, 20);
        let first = answers[0].0.clone();
        assert!(answers.iter().all(|(who, _)| *who == first), "{answers:?}");
    }
    // The endpoint goes: its client moves at once.
    let kept = lab.cli.answer("172.30.0.41:80").0;
    let of = |who: &str| match who {
        "p1" => "10.180.0.1",
        "p2" => "10.180.0.2",
        _ => "10.180.1.1",
    };
    let left: Vec<(&str, &str)> = ALL
        .iter()
        .filter(|(ip, _)| *ip != of(&kept))
        .copied()
        .collect();
    lab.write("web.yaml", &service("web", spec, &left));
    lab.wait("the client to move", |lab| {
        lab.cli
            .ask("172.30.0.41:80")
            .is_ok_and(|(who, _)| who != kept)
    });
}

#[test]
fn ipvs_drains_gracefully() {
    let Some(mut lab) = ipvs_lab("ipvs_drains_gracefully") else {
        return;
    };
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
    let web = |endpoints: &[(&str, &str)]| service("web", spec, endpoints);
    lab.write("web.yaml", &web(&TWO[..1]));
    lab.start();
    let mut old = [
        lab.cli.connect("192.168.0.2:30041"),
        lab.p1.connect("172.30.0.41:80"),
    ];
    let port = "tcp 192.168.0.2:30041";
    let to = |ip: &str| SocketAddr::new(ip.parse().unwrap(), lab::talk::PORT);
    lab.write("web.yaml", &web(&TWO[1..]));
    lab.wait("weight 0", |lab| {
        table(lab).get(port) == Some(&vec![(to("10.180.0.2"), 0), (to("10.180.1.1"), 1)])
    });
    old.iter_mut().for_each(still_alive);
    assert!(
        lab.cli
            .ask_many("192.168.0.2:30041", 10)
            .iter()
            .all(|(who, _)| who == "p3")
    );
    // Back again.
    lab.write("web.yaml", &web(TWO));
    lab.wait("weight 1 again", |lab| {
        table(lab).get(port) == Some(&vec![(to("10.180.0.2"), 1), (to("10.180.1.1"), 1)])
    });
    old.iter_mut().for_each(still_alive);
    // The whole service goes; its connections do not.
    lab.remove("web.yaml");
    lab.wait("everything to drain", |lab| {
        table(lab)
            .values()
            .flatten()
            .all(|(_, weight)| *weight == 0)
    });
    old.iter_mut().for_each(still_alive);
    drop(old);
    lab.wait("everything to go", |lab| table(lab).is_empty());
}

#[test]
fn ipvs_restarts_without_a_failed_connection() {
    let Some(mut lab) = ipvs_lab("ipvs_restarts_without_a_failed_connection") else {
        return;
    };
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
    lab.write("web.yaml", &service("web", spec, &ALL[..3]));
    let old_spec = "{clusterIP: 172.30.0.40, ports: [{port: 80}]}";
    lab.write("old.yaml", &service("old", old_spec, TWO));
    lab.start();
    let mut old = lab.p1.connect("172.30.0.41:80");
    let good = lab::asking::meanwhile(&mut lab, "192.168.0.2:30041", |lab| {
        for _ in 0..2 {
            lab.stop(Signal::SIGKILL);
            lab.start();
        }
        lab.stop(Signal::SIGKILL);
        lab.remove("old.yaml");
        let new = "{clusterIP: 172.30.0.45, ports: [{port: 80}]}";
        lab.write("new.yaml", &service("new", new, TWO));
        lab.start();
    });
    assert!(good > 5);
    still_alive(&mut old);
    lab.wait("the old service to go", |lab| {
        !table(lab).contains_key("tcp 172.30.0.40:80")
    });
    lab.p1.answer("172.30.0.45:80");
    lab.stop(Signal::SIGTERM);
    lab.p1.answer("172.30.0.45:80");
    still_alive(&mut old);
}

#[test]
fn ipvs_udp_follows_the_endpoints() {
    if let Some(lab) = ipvs_lab("ipvs_udp_follows_the_endpoints") {
        lab::udp::clients_that_keep_their_ports_follow_the_endpoints(lab);
    }
}

#[test]
fn ipvs_leaves_the_node_and_others_alone() {
    let Some(mut lab) = ipvs_lab("ipvs_leaves_the_node_and_others_alone") else {
        return;
    };
    // Somebody else's virtual server, and what listens on the node.
    let foreign = || {
        let run = |args: &[&str]| Exec::new("ipvsadm").args(args).run().unwrap();
        run(&["-A", "-t", "192.168.0.2:9000", "-s", "wlc"]);
        run(&[
            "-a",
            "-t",
            "192.168.0.2:9000",
            "-r",
            "10.180.0.2:8080",
            "-m",
            "-w",
            "7",
        ]);
    };
    lab.node.run(foreign);
    let before = (table(&lab), lab.rules(Family::V4), links(&mut lab));
    let _ssh = lab.node.run(|| TcpListener::bind("0.0.0.0:2222").unwrap());
    // An external IP that is the node's own address.
    let spec =
        "{clusterIP: 172.30.0.41, externalIPs: [192.168.0.2, 198.51.100.7], ports: [{port: 80}]}";
    lab.write("web.yaml", &service("web", spec, TWO));
    lab.start();
    for to in ["192.168.0.2:80", "198.51.100.7:80", "172.30.0.41:80"] {
        lab.cli.answer(to);
    }
    lab.cli
        .run(|| std::net::TcpStream::connect("192.168.0.2:2222").unwrap());
    for to in ["172.30.0.41:2222", "198.51.100.7:2222"] {
        assert_eq!(lab.cli.ask(to), Err(ErrorKind::ConnectionRefused), "{to}");
        assert_eq!(lab.p1.ask(to), Err(ErrorKind::ConnectionRefused), "{to}");
        assert_eq!(lab.node.ask(to), Err(ErrorKind::ConnectionRefused), "{to}");
    }
    let own = table(&lab);
    assert_eq!(
        own.get("tcp 192.168.0.2:9000"),
        before.0.get("tcp 192.168.0.2:9000")
    );
    lab.stop(Signal::SIGTERM);
    lab.cleanup();
    assert_eq!(
        (table(&lab), lab.rules(Family::V4), links(&mut lab)),
        before
    );
}

#[test]
fn ipvs_and_iptables_change_places_without_a_gap() {
    let Some(mut lab) = ipvs_lab("ipvs_and_iptables_change_places_without_a_gap") else {
        return;
    };
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
    lab.write("web.yaml", &service("web", spec, TWO));
    lab.start();
    let mut old = lab.p1.connect("172.30.0.41:80");
    for mode in ["iptables", "ipvs"] {
        lab.stop(Signal::SIGTERM);
        lab = lab.with(&["--mode", mode]);
        lab.start();
        let chains = |lab: &Lab| lab.rules(Family::V4).contains("KUBE-SERVICES");
        let (servers, rules) = (mode == "ipvs", mode == "iptables");
        lab.wait("the other mode's objects to go", |lab| {
            table(lab).is_empty() != servers && chains(lab) == rules
        });
        lab.p1.answer("172.30.0.41:80");
        lab.cli.answer("192.168.0.2:30041");
    }
    // It came by the first mode, whose objects went in between.
    drop(old.shutdown(std::net::Shutdown::Both));
    old = lab.p1.connect("172.30.0.41:80");
    still_alive(&mut old);
}

fn links(lab: &mut Lab) -> Vec<String> {
    let links = lab.node.kernel.links().unwrap();
    links.into_iter().map(|link| link.name).collect()
}
