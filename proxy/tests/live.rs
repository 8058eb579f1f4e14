//! The real binary on a node of namespaces: packets, restarts, other people's rules. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

mod api_server;
mod lab;
mod operation;
mod sockets;

/// What one mode has of its own.
mod live {
    mod ebpf;
    mod ebpf_layout;
    mod ebpf_lifecycle;
    mod ebpf_offloads;
    mod ebpf_outside;
    mod xdp;
}

use std::collections::BTreeMap;
use std::io::ErrorKind;

use lab::talk::still_alive;
use lab::{Lab, service};
use linux::Host;
use linux::exec::Exec;
use linux::iptables::{Backend as Kind, Family, Iptables};
use nix::sys::signal::Signal;
use proxy::backend::Mode;

const ALL_V4: &[(&str, &str)] = &[
    ("10.180.0.1", "node"),
    ("10.180.0.2", "node"),
    ("10.180.1.1", "other"),
];
const ALL: &[(&str, &str)] = &[
    ("10.180.0.1", "node"),
    ("10.180.0.2", "node"),
    ("10.180.1.1", "other"),
    ("fd00:180::1", "node"),
    ("fd00:180::2", "node"),
    ("fd00:180:1::1", "other"),
];

fn spread(answers: &[(String, std::net::IpAddr)]) -> BTreeMap<&str, usize> {
    let mut spread = BTreeMap::new();
    for (who, _) in answers {
        *spread.entry(who.as_str()).or_insert(0) += 1;
    }
    spread
}

/// Each of these once in every mode.
macro_rules! in_every_mode {
    ($($test:ident)*) => {
        mod iptables {
            $(#[test] fn $test() { super::$test(super::Mode::Iptables); })*
        }
        mod nftables {
            $(#[test] fn $test() { super::$test(super::Mode::Nftables); })*
        }
    };
}

in_every_mode! {
    cluster_ip_in_both_families
    who_comes_by_the_bridge_is_a_pod
    without_br_netfilter_what_is_routed_is_served
    node_ports_and_policies
    refused_without_endpoints_at_the_first_packet
    an_endpoint_change_reaches_new_connections_only
    killed_and_started_again_without_a_failed_connection
    cluster_dns_on_loopback
    a_udp_client_that_keeps_its_port_follows_the_endpoints
    clients_stay_with_their_endpoints
}

fn cluster_ip_in_both_families(mode: Mode) {
    let Some(mut lab) = Lab::in_mode("cluster_ip_in_both_families", mode) else {
        return;
    };
    let spec = "{clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: [{port: 80}]}";
    lab.write("web.yaml", &service("web", spec, ALL));
    lab.start();
    let families = [
        (
            "172.30.0.41:80",
            "10.180.0.1",
            "10.180.0.254",
            "192.168.0.9",
        ),
        (
            "[fd00:172::41]:80",
            "fd00:180::1",
            "fd00:180::fe",
            "2001:db8::9",
        ),
    ];
    for (vip, p1, node, client) in families {
        let answers = lab.p1.ask_many(vip, 300);
        // The expectation is 100 each; 60 is five standard deviations away.
        assert!(spread(&answers).values().all(|n| *n > 60) && spread(&answers).len() == 3);
        for (who, peer) in &answers {
            let expect = if who == "p1" { node } else { p1 };
            assert_eq!(
                peer.to_string(),
                expect,
                "{who}: pods see the pod, itself sees the node"
            );
        }
        let from_node = lab.node.ask_many(vip, 60);
        assert_eq!(spread(&from_node).len(), 3);
        let from_outside = lab.cli.ask_many(vip, 60);
        assert_eq!(spread(&from_outside).len(), 3);
        assert!(
            from_outside
                .iter()
                .all(|(_, peer)| peer.to_string() != client)
        );
    }
}

fn who_comes_by_the_bridge_is_a_pod(mode: Mode) {
    let Some(lab) = Lab::in_mode("who_comes_by_the_bridge_is_a_pod", mode) else {
        return;
    };
    let flags = "--detect-local-mode BridgeInterface --pod-bridge-interface cni0";
    let mut lab = lab.with(&flags.split(' ').collect::<Vec<_>>());
    let spec = "{clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: [{port: 80}]}";
    let p2 = [("10.180.0.2", "node"), ("fd00:180::2", "node")];
    lab.write("web.yaml", &service("web", spec, &p2));
    lab.start();
    for (vip, p1, node) in [
        ("172.30.0.41:80", "10.180.0.1", "10.180.0.254"),
        ("[fd00:172::41]:80", "fd00:180::1", "fd00:180::fe"),
    ] {
        // A pod of the node keeps its address, a client and a pod of another node are masqueraded.
        for (from, seen) in [(&lab.p1, p1), (&lab.cli, node), (&lab.p3, node)] {
            let (who, peer) = from.answer(vip);
            assert_eq!((who.as_str(), peer.to_string().as_str()), ("p2", seen));
        }
    }
}

/// Bridged packets meet no rules: a pod that reaches itself, and everybody who comes by a route, are
/// served all the same. Where the kernel has no br_netfilter, it is told what is not.
fn without_br_netfilter_what_is_routed_is_served(mode: Mode) {
    let Some(mut lab) = Lab::in_mode("without_br_netfilter_what_is_routed_is_served", mode) else {
        return;
    };
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: [{port: 80, nodePort: 30041}]}";
    let p1 = [("10.180.0.1", "node"), ("fd00:180::1", "node")];
    lab.write("web.yaml", &service("web", spec, &p1));
    lab.start();
    for family in ["iptables", "ip6tables"] {
        let key = format!("net/bridge/bridge-nf-call-{family}");
        if lab.node.kernel.set_sysctl(&key, "0").is_err() {
            let told = lab.log_text();
            let mut lines = told.lines().filter(|line| line.contains(&key));
            let without = "a pod may not reach services whose endpoint is on the same bridge";
            assert!(lines.any(|line| line.contains(without)), "{told}");
        }
    }
    for (vip, node_port) in [
        ("172.30.0.41:80", "192.168.0.2:30041"),
        ("[fd00:172::41]:80", "[2001:db8::2]:30041"),
    ] {
        for from in [&lab.p1, &lab.node, &lab.p3, &lab.cli] {
            assert_eq!(from.answer(vip).0, "p1");
        }
        assert_eq!(lab.cli.answer(node_port).0, "p1");
    }
}

fn node_ports_and_policies(mode: Mode) {
    let Some(mut lab) = Lab::in_mode("node_ports_and_policies", mode) else {
        return;
    };
    let cluster = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
    lab.write("cluster.yaml", &service("cluster", cluster, ALL_V4));
    let local = "{type: LoadBalancer, externalTrafficPolicy: Local, clusterIP: 172.30.0.42, externalIPs: [198.51.100.7], ports: [{port: 80, nodePort: 30042}]}\nstatus: {loadBalancer: {ingress: [{ip: 198.51.100.8}]}}";
    lab.write(
        "local.yaml",
        &service("local", local, &[ALL_V4[1], ALL_V4[2]]),
    );
    let remote = local
        .replace(".42", ".43")
        .replace("30042", "30043")
        .replace("198.51.100.", "198.51.101.");
    lab.write("remote.yaml", &service("remote", &remote, &[ALL_V4[2]]));
    let inner = "{internalTrafficPolicy: Local, clusterIP: 172.30.0.44, ports: [{port: 80}]}";
    lab.write(
        "inner.yaml",
        &service("inner", inner, &[ALL_V4[1], ALL_V4[2]]),
    );
    lab.start();

    let answers = lab.cli.ask_many("192.168.0.2:30041", 60);
    assert_eq!(spread(&answers).len(), 3);
    assert!(
        answers
            .iter()
            .all(|(_, peer)| peer.to_string() != "192.168.0.9")
    );
    if mode == Mode::Iptables {
        assert_eq!(spread(&lab.node.ask_many("127.0.0.1:30041", 60)).len(), 3);
    } else {
        // As in kube-proxy's mode.
        let refused = Err(ErrorKind::ConnectionRefused);
        assert_eq!(lab.node.ask("127.0.0.1:30041"), refused);
    }

    for to in ["192.168.0.2:30042", "198.51.100.7:80", "198.51.100.8:80"] {
        let answers = lab.cli.ask_many(to, 20);
        let kept = ("p2".to_owned(), "192.168.0.9".parse().unwrap());
        assert!(
            answers.iter().all(|answer| *answer == kept),
            "{to}: {answers:?}"
        );
        assert_eq!(spread(&lab.p1.ask_many(to, 40)).len(), 2, "{to} from a pod");
        assert_eq!(
            spread(&lab.node.ask_many(to, 40)).len(),
            2,
            "{to} from the node"
        );
    }
    for to in ["192.168.0.2:30043", "198.51.101.7:80", "198.51.101.8:80"] {
        assert_eq!(lab.cli.ask(to), Err(ErrorKind::TimedOut), "{to}: dropped");
        assert_eq!(lab.p1.answer(to).0, "p3", "{to} from a pod");
    }
    assert_eq!(
        spread(&lab.p1.ask_many("172.30.0.44:80", 20))
            .keys()
            .collect::<Vec<_>>(),
        [&"p2"]
    );
}

/// TCP segments that were sent again in the calling thread's namespace.
fn sent_again() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut rows = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let column = rows
        .next()
        .unwrap()
        .split(' ')
        .position(|w| w == "RetransSegs");
    let value = rows.next().unwrap().split(' ').nth(column.unwrap());
    value.unwrap().parse().unwrap()
}

fn refused_without_endpoints_at_the_first_packet(mode: Mode) {
    let Some(mut lab) = Lab::in_mode("refused_without_endpoints_at_the_first_packet", mode) else {
        return;
    };
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], externalIPs: [198.51.100.7, \"2001:db8:51::7\"], ports: [{port: 80, nodePort: 30041}]}";
    lab.write("none.yaml", &service("none", spec, &[]));
    lab.start();
    let addresses = [
        "172.30.0.41:80",
        "198.51.100.7:80",
        "192.168.0.2:30041",
        "[fd00:172::41]:80",
        "[2001:db8:51::7]:80",
        "[2001:db8::2]:30041",
    ];
    let places = [("pod", &lab.p1), ("client", &lab.cli), ("node", &lab.node)];
    for (name, place) in places {
        for to in addresses {
            // On a busy machine any connection of the place may send again what is not lost: one of some
            // attempts is good, as none would be if the first packet were not answered.
            let at_once = |_| {
                let before = place.run(sent_again);
                let answer = place.ask(to);
                assert_eq!(answer, Err(ErrorKind::ConnectionRefused), "{name} -> {to}");
                place.run(sent_again) == before
            };
            assert!((0..5).any(at_once), "{name} -> {to} asked twice");
        }
    }
}

fn an_endpoint_change_reaches_new_connections_only(mode: Mode) {
    let Some(mut lab) = Lab::in_mode("an_endpoint_change_reaches_new_connections_only", mode)
    else {
        return;
    };
    let spec = "{clusterIP: 172.30.0.41, ports: [{port: 80}]}";
    lab.write("web.yaml", &service("web", spec, &[("10.180.0.2", "node")]));
    lab.start();
    let mut old = lab.p1.connect("172.30.0.41:80");
    lab.write(
        "web.yaml",
        &service("web", spec, &[("10.180.1.1", "other")]),
    );
    lab.wait("the new endpoint", |lab| {
        lab.p1.answer("172.30.0.41:80").0 == "p3"
    });
    still_alive(&mut old);
    lab.write("web.yaml", &service("web", spec, &[]));
    lab.wait("refusal", |lab| {
        lab.p1.ask("172.30.0.41:80") == Err(ErrorKind::ConnectionRefused)
    });
    lab.write("web.yaml", &service("web", spec, &[("10.180.0.2", "node")]));
    lab.wait("service again", |lab| lab.p1.ask("172.30.0.41:80").is_ok());
    lab.remove("web.yaml");
    lab.wait("rules to go", |lab| !lab.knows("default/web"));
    still_alive(&mut old);
}

fn killed_and_started_again_without_a_failed_connection(mode: Mode) {
    let Some(mut lab) = Lab::in_mode("killed_and_started_again", mode) else {
        return;
    };
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
    lab.write("web.yaml", &service("web", spec, ALL_V4));
    lab.write(
        "old.yaml",
        &service(
            "old",
            "{clusterIP: 172.30.0.40, ports: [{port: 80}]}",
            ALL_V4,
        ),
    );
    lab.start();
    let mut old = lab.p1.connect("172.30.0.41:80");
    let good = lab::asking::meanwhile(&mut lab, "192.168.0.2:30041", |lab| {
        for _ in 0..3 {
            lab.stop(Signal::SIGKILL);
            lab.start();
        }
        lab.stop(Signal::SIGKILL);
        // While nobody looks, a service goes and another comes.
        lab.remove("old.yaml");
        lab.write(
            "new.yaml",
            &service(
                "new",
                "{clusterIP: 172.30.0.45, ports: [{port: 80}]}",
                ALL_V4,
            ),
        );
        lab.start();
    });
    assert!(good > 20);
    still_alive(&mut old);
    assert!(!lab.knows("default/old") && lab.knows("default/new"));
    lab.p1.answer("172.30.0.45:80");
    lab.stop(Signal::SIGTERM);
    lab.p1.answer("172.30.0.45:80");
    still_alive(&mut old);
}

#[test]
fn rules_of_others_stay_and_ours_come_back() {
    // Long enough that what comes back comes back by notification.
    others_and_ours("rules_of_others_stay_and_ours_come_back", Kind::Nft, "1h");
}

#[test]
fn rules_of_others_stay_and_ours_come_back_in_the_old_tables() {
    let test = "rules_of_others_stay_and_ours_come_back_in_the_old_tables";
    others_and_ours(test, Kind::Legacy, "1s");
}

#[track_caller]
fn others_and_ours(test: &str, kind: Kind, period: &str) {
    if kind == Kind::Nft && !lab::has_nf_tables() {
        println!("SKIPPED {test}: {}", lab::NO_NF_TABLES);
        return;
    }
    let Some(lab) = Lab::in_mode(test, Mode::Iptables) else {
        return;
    };
    let mut lab = lab.with(&["--iptables-sync-period", period]);
    lab.node.run(|| {
        for family in [Family::V4, Family::V6] {
            let theirs = "*filter\n:THEIRS - [0:0]\n-A THEIRS -j RETURN\nCOMMIT\n";
            Iptables::of(family, kind).unwrap().restore(theirs).unwrap();
            assert_eq!(Iptables::detect(family).unwrap().backend(), kind);
        }
    });
    let foreign = "*filter\n:MINE - [0:0]\n-A MINE -s 10.9.9.9/32 -j DROP\n-A FORWARD -m comment --comment \"KUBE-SERVICES\" -j MINE\nCOMMIT\n*nat\n:KUBE-KUBELET-CANARY - [0:0]\n-A POSTROUTING -s 10.9.9.9/32 -j MASQUERADE\nCOMMIT\n";
    lab.restore(foreign);
    let before = [Family::V4, Family::V6].map(|family| lab.rules(family));
    let spec = "{clusterIP: 172.30.0.41, ports: [{port: 80}]}";
    lab.write("web.yaml", &service("web", spec, ALL_V4));
    lab.start();
    for line in before[0].lines() {
        assert!(lab.rules(Family::V4).contains(line), "{line}");
    }
    let ours = lab.rules(Family::V4);
    // Someone flushes our way in.
    lab.restore("*nat\n-F PREROUTING\n-F OUTPUT\nCOMMIT\n");
    lab.wait("repair of the hooks", |lab| lab.rules(Family::V4) == ours);
    lab.restore("*nat\n-F KUBE-SERVICES\nCOMMIT\n");
    lab.wait("repair of a chain", |lab| lab.rules(Family::V4) == ours);
    lab.p1.answer("172.30.0.41:80");
    lab.stop(Signal::SIGTERM);
    lab.cleanup();
    assert_eq!(
        [Family::V4, Family::V6].map(|family| lab.rules(family)),
        before
    );
}

#[test]
fn bad_flags_end_with_one_line() {
    let program = env!("CARGO_BIN_EXE_proxy");
    let cases: [(&[&str], &str); 4] = [
        (
            &["--mode", "userspace"],
            "proxy: --mode: \"userspace\" is unknown; use auto, nftables, iptables, ipvs or ebpf\n",
        ),
        (
            &[
                "--manifests",
                "/nonexistent",
                "--healthz-bind-address",
                "",
                "--metrics-bind-address",
                "",
            ],
            "proxy: --manifests /nonexistent: No such file",
        ),
        (
            &[
                "--kubeconfig",
                "/nonexistent",
                "--healthz-bind-address",
                "",
                "--metrics-bind-address",
                "",
            ],
            "proxy: ",
        ),
        (
            &["--cluster-cidr", "x"],
            "proxy: --cluster-cidr: \"x\" is not a network (ADDRESS/LENGTH)\n",
        ),
    ];
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED bad_flags_end_with_one_line: needs root");
        return;
    }
    // Flags are checked before anything is done, but what comes after must not touch the host.
    let netns = linux::NetNs::anonymous().unwrap();
    for (flags, expect) in cases {
        let output = netns
            .run(|| {
                Exec::new(program)
                    .args(flags)
                    .args(["--log-level", "error"])
                    .output()
            })
            .unwrap()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.starts_with(expect),
            "{flags:?}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{flags:?}: {said}");
    }
}

fn cluster_dns_on_loopback(mode: Mode) {
    let Some(lab) = Lab::in_mode("cluster_dns_on_loopback", mode) else {
        return;
    };
    let mut lab = lab.with(&["--cluster-dns", "172.30.0.10,fd00:172::10"]);
    let dns = "{clusterIP: 172.30.0.10, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]}";
    lab.write("dns.yaml", &service("dns", dns, &[]));
    lab.write(
        "web.yaml",
        &service(
            "web",
            "{clusterIP: 172.30.0.41, ports: [{port: 80}]}",
            ALL_V4,
        ),
    );
    lab.write(
        "headless.yaml",
        &service("headless", "{clusterIP: None, ports: [{port: 80}]}", ALL_V4),
    );
    lab.start();
    for server in ["172.30.0.10:53", "[fd00:172::10]:53"] {
        let count = |name: &str| {
            lab.p1
                .run(|| lab::talk::count_answers(server.parse().unwrap(), name))
        };
        assert_eq!(count("web.default.svc.cluster.local"), Some(1));
        assert_eq!(count("headless.default.svc.cluster.local"), Some(3));
        assert_eq!(count("no.default.svc.cluster.local"), None);
    }
    lab.write(
        "web.yaml",
        &service(
            "web",
            "{clusterIP: None, ports: [{port: 80}]}",
            &ALL_V4[..2],
        ),
    );
    lab.wait("the name to change", |lab| {
        let server = "172.30.0.10:53".parse().unwrap();
        lab.p1
            .run(|| lab::talk::count_answers(server, "web.default.svc.cluster.local"))
            == Some(2)
    });
}

fn a_udp_client_that_keeps_its_port_follows_the_endpoints(mode: Mode) {
    let test = "a_udp_client_that_keeps_its_port_follows_the_endpoints";
    if let Some(lab) = Lab::in_mode(test, mode) {
        lab::udp::clients_that_keep_their_ports_follow_the_endpoints(lab);
    }
}

fn clients_stay_with_their_endpoints(mode: Mode) {
    let Some(mut lab) = Lab::in_mode("clients_stay_with_their_endpoints", mode) else {
        return;
    };
    let spec = "{type: NodePort, sessionAffinity: ClientIP, clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: [{port: 80, nodePort: 30041}]}";
    lab.write("web.yaml", &service("web", spec, ALL));
    lab.start();
    for to in ["172.30.0.41:80", "[fd00:172::41]:80"] {
        // Each family has the changes of the round before when its own transaction is through.
        lab.wait("the client to stay", |lab| {
            spread(&lab.p1.ask_many(to, 30)).len() == 1
        });
        // Also after a restart.
        let (who, _) = lab.p1.answer(to);
        lab.stop(Signal::SIGKILL);
        lab.start();
        assert_eq!(spread(&lab.p1.ask_many(to, 10)).len(), 1);
        assert_eq!(lab.p1.answer(to).0, who);
        // Whose endpoint goes gets another one, and stays there.
        let others = (0..)
            .zip(ALL)
            .filter(|(i, _)| format!("p{}", i % 3 + 1) != who);
        let left: Vec<_> = others.map(|(_, endpoint)| *endpoint).collect();
        lab.write("web.yaml", &service("web", spec, &left));
        lab.wait("another endpoint", |lab| lab.p1.answer(to).0 != who);
        assert_eq!(spread(&lab.p1.ask_many(to, 30)).len(), 1, "{to}");
        lab.write("web.yaml", &service("web", spec, ALL));
    }
    // The last change may be on its way still.
    lab.wait("the client to stay", |lab| {
        spread(&lab.cli.ask_many("192.168.0.2:30041", 30)).len() == 1
    });
}

#[test]
fn edits_of_our_table_are_repaired_at_once() {
    let Some(lab) = Lab::in_mode("edits_of_our_table_are_repaired_at_once", Mode::Nftables) else {
        return;
    };
    // Long enough that what comes back comes back by notification.
    let mut lab = lab.with(&["--iptables-sync-period", "1h"]);
    lab.run_program("nft", &["add", "table", "ip", "mine"]);
    lab.run_program("nft", &["add", "chain", "ip", "mine", "c"]);
    let rules = |lab: &Lab| lab.run_program("nft", &["list", "ruleset"]);
    let before = rules(&lab);
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], ports: [{port: 80, nodePort: 30041}]}";
    lab.write("web.yaml", &service("web", spec, ALL));
    lab.start();
    let families = [api::cidr::Family::V4, api::cidr::Family::V6];
    let ours = families.map(|family| lab.table(family));
    assert!(ours.iter().all(|table| table.contains("default/web")));
    let edits = [
        "delete element ip seaway-proxy services { 172.30.0.41 . tcp . 80 }",
        "flush map ip seaway-proxy endpoints",
        "flush chain ip6 seaway-proxy prerouting",
        "add element ip6 seaway-proxy cluster-ips { fd00::9 }",
        "add rule ip seaway-proxy output drop",
        "insert rule ip seaway-proxy one-of-3 accept",
        "add chain ip seaway-proxy more",
        "delete table ip6 seaway-proxy",
        "delete table ip seaway-proxy",
    ];
    for edit in edits {
        let words: Vec<&str> = edit.split(' ').collect();
        lab.run_program("nft", &words);
        lab.wait(edit, |lab| families.map(|family| lab.table(family)) == ours);
        lab.p1.answer("172.30.0.41:80");
        lab.p1.answer("[fd00:172::41]:80");
    }
    assert!(lab.log_text().contains("were changed by nft (pid "));
    assert!(!lab.log_text().contains("ERROR"));
    // The last repair is told when the next thing is done.
    let spec = "{clusterIP: 172.30.0.43, clusterIPs: [172.30.0.43, \"fd00:172::43\"], ports: [{port: 80}]}";
    lab.write("next.yaml", &service("next", spec, ALL));
    lab.wait("the next service", |lab| {
        let all = ["172.30.0.43:80", "[fd00:172::43]:80"];
        all.iter().all(|to| lab.p1.ask(to).is_ok())
    });
    // What others do elsewhere is nobody's business.
    let count = |lab: &Lab| lab.log_text().matches("full sync").count();
    let syncs = count(&lab);
    lab.run_program("nft", &["add", "rule", "ip", "mine", "c", "accept"]);
    lab.run_program("nft", &["delete", "rule", "ip", "mine", "c", "handle", "2"]);
    lab.write(
        "more.yaml",
        &service("more", "{clusterIP: 172.30.0.42, ports: [{port: 80}]}", ALL),
    );
    lab.wait("another service", |lab| {
        lab.p1.ask("172.30.0.42:80").is_ok()
    });
    assert_eq!(count(&lab), syncs);
    lab.stop(Signal::SIGTERM);
    lab.cleanup();
    assert_eq!(rules(&lab), before);
}

#[test]
fn from_mode_to_mode_without_a_failed_connection() {
    let test = "from_mode_to_mode_without_a_failed_connection";
    if !lab::has_nf_tables() {
        println!("SKIPPED {test}: {}", lab::NO_NF_TABLES);
        return;
    }
    let Some(mut lab) = Lab::in_mode(test, Mode::Iptables) else {
        return;
    };
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
    lab.write("web.yaml", &service("web", spec, ALL_V4));
    lab.start();
    let mut old = lab.p1.connect("172.30.0.41:80");
    let good = lab::asking::meanwhile(&mut lab, "192.168.0.2:30041", |lab| {
        for mode in [Mode::Nftables, Mode::Iptables, Mode::Nftables] {
            lab.stop(Signal::SIGTERM);
            lab.set_mode(mode);
            lab.start();
            let other = match mode {
                Mode::Nftables => |lab: &Lab| lab.rules(Family::V4).contains("KUBE-"),
                _ => |lab: &Lab| !lab.table(api::cidr::Family::V4).is_empty(),
            };
            lab.wait("what the other mode left to go", |lab| !other(lab));
            still_alive(&mut old);
        }
    });
    assert!(good > 20);
}
