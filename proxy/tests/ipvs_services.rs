//! What an IPVS node owes its services, each by real connections: every scheduler, node ports on all
//! addresses, clients' own addresses, weights, others' networks, kernel settings. Needs root and a kernel with IPVS
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
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::cidr::Family;
use ipvs_lab::ipvs_lab;
use lab::{Lab, service};
use linux::Host;
use linux::ipvs::{
    Command, Destination, Ipvs, Options, Protocol, Scheduler, Server, ServerId, Timeouts,
};
use linux::route::Route;
use nix::sys::signal::Signal;
use proxy::backend::ipvs::filter::nft::Nft;

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
            lab.p1.answer(to);
        }
        lab.stop(Signal::SIGTERM);
    }
}

#[test]
fn ipvs_flags_of_schedulers_reach_the_kernel() {
    let Some(mut lab) = ipvs_lab("ipvs_flags_of_schedulers_reach_the_kernel") else {
        return;
    };
    let spec = "{clusterIP: 172.30.0.41, ports: [{port: 80}]}";
    lab.write("web.yaml", &service("web", spec, BOTH));
    let id = tcp("172.30.0.41:80");
    for (scheduler, flags, fallback, hash_port) in [
        ("sh", "sh-fallback,sh-port", true, true),
        ("mh", "mh-fallback", true, false),
        ("mh", "mh-port", false, true),
    ] {
        lab = lab.with(&["--ipvs-scheduler", scheduler]);
        lab = lab.with(&["--ipvs-scheduler-flags", flags]);
        lab.start();
        let found = server(&lab, id).unwrap();
        let expect = Options {
            fallback,
            hash_port,
            ..Options::default()
        };
        assert_eq!(found.scheduler, Scheduler::parse(scheduler));
        assert_eq!(found.options, expect, "{flags}");
        assert_eq!(lab.cli.ask_many("172.30.0.41:80", 4).len(), 4);
        lab.stop(Signal::SIGTERM);
    }
}

/// What the node's kernel is told, by its own files; and that the node is silent on the wire about
/// addresses of its dummy device where it should be.
#[test]
fn ipvs_settings_of_the_kernel() {
    let Some(mut lab) = ipvs_lab("ipvs_settings_of_the_kernel") else {
        return;
    };
    let arp = [
        "net/ipv4/conf/all/arp_ignore",
        "net/ipv4/conf/all/arp_announce",
    ];
    let read = |lab: &mut Lab, key: &str| lab.node.kernel.sysctl(key).unwrap();
    let reuse = "net/ipv4/vs/conn_reuse_mode";
    let reuse_before = read(&mut lab, reuse);
    let timeouts = |lab: &Lab| lab.node.run(|| Ipvs::open().unwrap().timeouts().unwrap());
    let before = timeouts(&lab);
    // Two, so that the second is asked for on the wire when the first is known.
    for (name, ip) in [("one", "172.30.0.41"), ("two", "172.30.0.42")] {
        let spec = format!("{{clusterIP: {ip}, ports: [{{port: 80}}]}}");
        lab.write(&format!("{name}.yaml"), &service(name, &spec, BOTH));
        let on_wire = Route::to(format!("{ip}/32").parse().unwrap()).dev("eth0");
        lab.cli.kernel.add_route(&on_wire).unwrap();
    }
    lab.start();
    for key in [
        "conntrack",
        "expire_nodest_conn",
        "expire_quiescent_template",
    ] {
        assert_eq!(read(&mut lab, &format!("net/ipv4/vs/{key}")), "1", "{key}");
    }
    // Only kernels from 4.1 to 5.8 need it, and no guest is so old.
    assert_eq!(read(&mut lab, reuse), reuse_before);
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        assert_eq!(read(&mut lab, key), "1");
    }
    assert_eq!(arp.map(|key| read(&mut lab, key)), ["0", "0"]);
    assert_eq!(timeouts(&lab), before);
    lab.cli.answer("172.30.0.41:80");
    lab.stop(Signal::SIGTERM);
    lab = lab.with(&["--ipvs-strict-arp=true"]);
    lab = lab.with(&["--ipvs-tcp-timeout", "777s"]);
    lab = lab.with(&["--ipvs-udp-timeout", "33s"]);
    lab.start();
    assert_eq!(arp.map(|key| read(&mut lab, key)), ["1", "2"]);
    let expect = Timeouts {
        tcp: Duration::from_secs(777),
        udp: Duration::from_secs(33),
        ..before
    };
    assert_eq!(timeouts(&lab), expect);
    lab.cli.ask("172.30.0.42:80").unwrap_err();
    // Through the router it is there.
    let on_wire = Route::to("172.30.0.42/32".parse().unwrap()).dev("eth0");
    lab.cli.kernel.del_route(&on_wire).unwrap();
    lab.cli.answer("172.30.0.42:80");
}

/// Mode `auto` on a kernel that has IPVS.
#[test]
fn auto_never_chooses_ipvs() {
    let Some(lab) = ipvs_lab("auto_never_chooses_ipvs") else {
        return;
    };
    let mut lab = lab.with(&["--mode", "auto"]);
    let spec = "{clusterIP: 172.30.0.41, ports: [{port: 80}]}";
    lab.write("web.yaml", &service("web", spec, BOTH));
    lab.start();
    lab.p1.answer("172.30.0.41:80");
    let log = lab.log_text();
    let (nftables, iptables) = (log.contains("mode nftables"), log.contains("mode iptables"));
    assert!(nftables || iptables, "{log}");
    assert!(!log.contains("mode ipvs"), "{log}");
    assert_eq!(server(&lab, tcp("172.30.0.41:80")), None);
    let links = lab.node.kernel.links().unwrap();
    assert!(links.iter().all(|link| link.name != "kube-ipvs0"));
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

/// A host's firewall that closes the port: iptables lets us overrule it, another table of nf_tables
/// does not.
#[test]
fn ipvs_lets_health_checks_in() {
    let Some(mut lab) = ipvs_lab("ipvs_lets_health_checks_in") else {
        return;
    };
    let spec = "{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 31000, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
    lab.write("web.yaml", &service("web", spec, BOTH));
    let closed =
        [31000, 31001].map(|port| format!("-A INPUT -i eth0 -p tcp --dport {port} -j DROP\n"));
    lab.restore(&format!("*filter\n{}COMMIT\n", closed.concat()));
    let _other = lab
        .node
        .run(|| std::net::TcpListener::bind("0.0.0.0:31001").unwrap());
    lab.start();
    let at = "192.168.0.2:31000";
    let code = |got: Result<(u16, String), ErrorKind>| got.map(|(code, _)| code);
    lab.wait("an answer on the node", |lab| {
        code(lab.node.get(at, "/")) == Ok(200)
    });
    if lab.node.run(|| Nft::open(Family::V4)).is_ok() {
        assert!(code(lab.cli.get(at, "/")).is_err());
    } else {
        lab.wait("an answer outside", |lab| {
            code(lab.cli.get(at, "/")) == Ok(200)
        });
    }
    assert!(lab.cli.get("192.168.0.2:31001", "/").is_err());
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
        let (name, source) = lab.p1.answer(to);
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
