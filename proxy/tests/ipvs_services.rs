//! What an IPVS node owes its services, each by real connections: every scheduler, node ports on all
//! addresses, clients' own addresses, weights, others' networks. Needs root and a kernel with IPVS
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

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipvs_lab::ipvs_lab;
use lab::{Lab, service};
use linux::ipvs::{Command, Destination, Ipvs, Options, Protocol, Scheduler, Server, ServerId};
use nix::sys::signal::Signal;

/// Endpoints here and elsewhere, in both families.
const BOTH: &[(&str, &str)] = &[
    ("10.180.0.2", "node"),
    ("10.180.1.1", "other"),
    ("fd00:180::2", "node"),
    ("fd00:180:1::1", "other"),
];

fn tcp(to: &str) -> ServerId {
    let to: SocketAddr = to.parse().unwrap();
    ServerId::Address {
        protocol: Protocol::Tcp,
        ip: to.ip(),
        port: to.port(),
    }
}

fn server(lab: &Lab, id: ServerId) -> Option<Server> {
    let servers = lab.node.run(|| Ipvs::open().unwrap().servers().unwrap());
    servers.into_iter().find(|server| server.id == id)
}

/// Destinations and their weights.
fn weights(lab: &Lab, id: ServerId) -> Vec<(String, u32)> {
    let found = lab
        .node
        .run(|| Ipvs::open().unwrap().destinations(id).unwrap());
    let of = |to: &Destination| (to.address.to_string(), to.weight);
    let mut all: Vec<_> = found.iter().map(of).collect();
    all.sort();
    all
}

fn apply(lab: &Lab, commands: &[Command]) {
    let refused = lab.node.run(|| Ipvs::open().unwrap().apply(commands));
    assert!(refused.unwrap().is_empty());
}

/// Who answers, as a set.
fn who(answers: &[(String, IpAddr)]) -> BTreeSet<&str> {
    answers.iter().map(|(who, _)| who.as_str()).collect()
}

#[test]
fn ipvs_serves_with_every_scheduler() {
    let Some(mut lab) = ipvs_lab("ipvs_serves_with_every_scheduler") else {
        return;
    };
    let spec = "{clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: [{port: 80}]}";
    lab.write("web.yaml", &service("web", spec, BOTH));
    let places = ["172.30.0.41:80", "[fd00:172::41]:80"];
    for scheduler in Scheduler::ALL {
        lab = lab.with(&["--ipvs-scheduler", scheduler.name()]);
        // The one before is changed in place, as an operator's restart does.
        lab.start();
        for to in places {
            let found = server(&lab, tcp(to)).unwrap();
            assert_eq!(found.scheduler, Some(scheduler), "{to}");
            assert_eq!(found.options.hash_port, scheduler == Scheduler::Mh);
            assert_eq!(lab.cli.ask_many(to, 4).len(), 4, "{}", scheduler.name());
            lab.p1.ask(to).unwrap();
        }
        lab.stop(Signal::SIGTERM);
    }
}

#[test]
fn ipvs_node_ports_are_on_every_address() {
    let Some(mut lab) = ipvs_lab("ipvs_node_ports_are_on_every_address") else {
        return;
    };
    let ports = "[{name: web, port: 80, nodePort: 30041}, {name: udp, port: 80, protocol: UDP, nodePort: 30041}]";
    let spec = format!(
        "{{type: NodePort, clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: {ports}}}"
    );
    // The pods' ports have the services' names.
    let text = service("web", &spec, BOTH).replace("{port: 8080}", "{name: web, port: 8080}");
    lab.write("web.yaml", &text);
    lab.start();
    let v4 = ["192.168.0.2", "10.180.0.254", "10.180.1.254"];
    let v6 = ["[2001:db8::2]", "[fd00:180::fe]", "[fd00:180:1::fe]"];
    for ip in v4.iter().chain(&v6) {
        let to = format!("{ip}:30041");
        for (name, place) in [("cli", &lab.cli), ("p1", &lab.p1), ("node", &lab.node)] {
            let answers = place.ask_many(&to, 4);
            assert_eq!(who(&answers), BTreeSet::from(["p2", "p3"]), "{name} {to}");
        }
    }
    for ip in v4 {
        let to: SocketAddr = format!("{ip}:30041").parse().unwrap();
        let socket = lab.cli.run(lab::talk::udp_socket);
        lab.wait("an answer by UDP", |lab| {
            lab.cli.run(|| lab::talk::ask_udp(&socket, to)).is_some()
        });
    }
}

#[test]
fn ipvs_local_policy_keeps_the_clients_address() {
    let Some(mut lab) = ipvs_lab("ipvs_local_policy_keeps_the_clients_address") else {
        return;
    };
    let spec = "{type: NodePort, externalTrafficPolicy: Local, clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: [{port: 80, nodePort: 30041}]}";
    lab.write("web.yaml", &service("web", spec, BOTH));
    lab.start();
    for (to, client) in [
        ("192.168.0.2:30041", "192.168.0.9"),
        ("[2001:db8::2]:30041", "2001:db8::9"),
    ] {
        let client: IpAddr = client.parse().unwrap();
        for answer in lab.cli.ask_many(to, 6) {
            assert_eq!(answer, ("p2".to_owned(), client));
        }
        // Pods may use all endpoints.
        assert_eq!(
            who(&lab.p1.ask_many(to, 6)),
            BTreeSet::from(["p2", "p3"]),
            "{to}"
        );
    }
}

#[test]
fn ipvs_hairpin_reaches_the_pod_itself() {
    let Some(mut lab) = ipvs_lab("ipvs_hairpin_reaches_the_pod_itself") else {
        return;
    };
    let spec = "{clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: [{port: 80}]}";
    let own = [("10.180.0.1", "node"), ("fd00:180::1", "node")];
    lab.write("web.yaml", &service("web", spec, &own));
    lab.start();
    for (to, pod) in [
        ("172.30.0.41:80", "10.180.0.1"),
        ("[fd00:172::41]:80", "fd00:180::1"),
    ] {
        let (name, source) = lab.p1.ask(to).unwrap();
        assert_eq!(name, "p1");
        assert_ne!(source, pod.parse::<IpAddr>().unwrap(), "not masqueraded");
    }
}

#[test]
fn ipvs_start_restores_weights_and_leaves_excluded_networks() {
    let test = "ipvs_start_restores_weights_and_leaves_excluded_networks";
    let Some(mut lab) = ipvs_lab(test) else {
        return;
    };
    lab = lab.with(&["--ipvs-exclude-cidrs", "172.30.9.0/24"]);
    let spec = "{clusterIP: 172.30.0.41, ports: [{port: 80}]}";
    lab.write("web.yaml", &service("web", spec, BOTH));
    lab.start();
    lab.stop(Signal::SIGKILL);
    let id = tcp("172.30.0.41:80");
    let to = |text: &str| -> SocketAddr { text.parse().unwrap() };
    let excluded = Server {
        id: tcp("172.30.9.1:80"),
        scheduler: Some(Scheduler::Wlc),
        options: Options::default(),
        persistence: None,
    };
    apply(
        &lab,
        &[
            Command::SetDestination(id, to("10.180.0.2:8080"), 0),
            Command::SetDestination(id, to("10.180.1.1:8080"), 7),
            Command::AddDestination(id, to("10.180.0.1:8080"), 1),
            Command::AddServer(excluded.clone()),
            Command::AddDestination(excluded.id, to("10.180.0.1:8080"), 3),
        ],
    );
    lab.start();
    // What nobody wants drains first.
    let expect = [("10.180.0.2:8080", 1), ("10.180.1.1:8080", 1)];
    let expect = expect.map(|(to, weight)| (to.to_owned(), weight));
    lab.wait("weights as they should be", |lab| {
        weights(lab, id) == expect
    });
    assert_eq!(server(&lab, excluded.id), Some(excluded.clone()));
    assert_eq!(
        weights(&lab, excluded.id),
        [("10.180.0.1:8080".to_owned(), 3)]
    );
    lab.stop(Signal::SIGTERM);
    lab.cleanup();
    assert_eq!(server(&lab, id), None);
    assert_eq!(server(&lab, excluded.id), Some(excluded));
}
