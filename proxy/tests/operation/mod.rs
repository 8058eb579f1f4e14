//! The real binary as an operator sees it: pages, health checks, files that change, the node that
//! changes, cleaning up. Needs root.

use std::fs;

use crate::lab::{self, Lab, service};
use linux::addr::Addr;
use linux::exec::Exec;
use linux::{Host, NetNs};
use nix::sys::signal::Signal;
use proxy::backend::Mode;

const WEB: &str = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
const P2: &[(&str, &str)] = &[("10.180.0.2", "node")];

#[test]
fn pages() {
    let Some(lab) = Lab::new("pages") else {
        return;
    };
    let mut lab = lab.with(&["--nodeport-addresses", "primary", "--feature-gates=A=true"]);
    lab.write("web.yaml", &service("web", WEB, P2));
    lab.start();
    let get = |port: u16, path: &str| lab.node.get(&format!("127.0.0.1:{port}"), path).unwrap();
    for (port, path, code, part) in [
        (10256, "/healthz", 200, "\"nodeEligible\":true"),
        (10256, "/livez", 200, "\"healthy\":true"),
        (10256, "/metrics", 404, ""),
        (10256, "/configz", 404, ""),
        (
            10249,
            "/healthz",
            200,
            "\"IPv4\":{\"healthy\":true,\"synced\":true",
        ),
        (10249, "/livez", 200, "\"IPv6\":{\"healthy\":true"),
        (10249, "/proxyMode", 200, "iptables"),
        (
            10249,
            "/configz",
            200,
            "{\"kubeproxy.config.k8s.io\":{\"apiVersion\":\"kubeproxy.config.k8s.io/v1alpha1\"",
        ),
        (
            10249,
            "/configz",
            200,
            "\"nodePortAddresses\":[\"primary\"]",
        ),
        (10249, "/flagz", 200, "\nnodeport-addresses=primary\n"),
        (10249, "/statusz", 200, "Binary version: "),
        (
            10249,
            "/metrics",
            200,
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        ),
        (
            10249,
            "/metrics",
            200,
            "seaway_proxy_conntrack_insert_failed_total ",
        ),
        (
            10249,
            "/metrics/slis",
            200,
            "kubernetes_healthcheck{name=\"proxy\",type=\"livez\"} 1",
        ),
        (10249, "/debug/pprof/", 404, ""),
    ] {
        let (status, text) = get(port, path);
        assert_eq!(status, code, "{port}{path}\n{text}");
        assert!(text.contains(part), "{port}{path} lacks {part}\n{text}");
    }
    // A change is measured from its event on.
    lab.write("web.yaml", &service("web", WEB, &[("10.180.0.1", "node")]));
    lab.wait("a measured change", |lab| {
        let page = lab.node.get("127.0.0.1:10249", "/metrics");
        let text = page.unwrap_or_default().1;
        text.contains("seaway_proxy_programming_latency_seconds_count 1")
    });
}

#[test]
fn health_checks_of_a_service() {
    let Some(mut lab) = Lab::new("health_checks_of_a_service") else {
        return;
    };
    let spec = "{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 31000, clusterIP: 172.30.0.42, ports: [{port: 80, nodePort: 30042}]}";
    // A firewall that lets nothing in: the rules open the port.
    lab.restore("*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n");
    lab.write("web.yaml", &service("web", spec, P2));
    lab.start();
    let get = |lab: &Lab| lab.cli.get("192.168.0.2:31000", "/");
    let code = |lab: &Lab| get(lab).ok().map(|(code, _)| code);
    lab.wait("the health check", |lab| code(lab) == Some(200));
    let (_, text) = get(&lab).unwrap();
    assert!(
        text.contains("\r\nx-load-balancing-endpoint-weight: 1\r\n"),
        "{text}"
    );
    assert!(text.contains("\"localEndpoints\": 1"), "{text}");
    // Endpoints elsewhere do not count, nor do those that only terminate.
    lab.write(
        "web.yaml",
        &service("web", spec, &[("10.180.1.1", "other")]),
    );
    lab.wait("no local endpoint", |lab| code(lab) == Some(503));
    let terminating = service("web", spec, P2).replace(
        "nodeName: node",
        "nodeName: node, conditions: {ready: false, serving: true, terminating: true}",
    );
    lab.write("web.yaml", &terminating);
    lab.wait("a terminating endpoint", |lab| {
        lab.p1.ask("172.30.0.42:80").is_ok() && code(lab) == Some(503)
    });
    lab.write(
        "web.yaml",
        &service("web", &spec.replace("31000", "31001"), P2),
    );
    lab.wait("another port", |lab| {
        let (code, _) = lab.cli.get("192.168.0.2:31001", "/").unwrap_or_default();
        code == 200
    });
    lab.wait("the old port to be closed", |lab| {
        let refused = lab.node.get("192.168.0.2:31000", "/");
        refused.is_err_and(|kind| kind == std::io::ErrorKind::ConnectionRefused)
    });
}

#[test]
fn another_content_of_the_file_ends_the_program() {
    let Some(lab) = Lab::new("another_content_of_the_file_ends_the_program") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: iptables\n";
    fs::write(&path, text).unwrap();
    let mut lab = lab.with(&["--config", &path.display().to_string()]);
    lab.write("web.yaml", &service("web", WEB, P2));
    lab.start();
    // Beside a file --cluster-cidr has no effect, which is told.
    assert!(
        lab.log_text()
            .contains("since --config is given: --cluster-cidr")
    );
    lab.node.answer("172.30.0.41:80");
    fs::write(&path, format!("{text}iptables: {{masqueradeAll: true}}\n")).unwrap();
    assert_eq!(lab.exit_code(), Some(1));
    assert!(lab.log_text().contains("the file of --config has changed"));
    lab.node.answer("172.30.0.41:80");
    lab.start();
    lab.stop(Signal::SIGTERM);
}

#[test]
fn addresses_of_the_node_are_followed() {
    let Some(lab) = Lab::new("addresses_of_the_node_are_followed") else {
        return;
    };
    let mut lab = lab.with(&["--nodeport-addresses", "192.168.7.0/24"]);
    lab.write("web.yaml", &service("web", WEB, P2));
    lab.start();
    let address = |ip: &str| Addr::new(ip.parse().unwrap());
    lab.cli
        .kernel
        .add_addr("eth0", &address("192.168.7.9/24"))
        .unwrap();
    assert!(lab.cli.ask("192.168.0.2:30041").is_err());
    lab.node
        .kernel
        .add_addr("eth0", &address("192.168.7.2/24"))
        .unwrap();
    lab.wait("the node port at a new address", |lab| {
        lab.cli.ask("192.168.7.2:30041").is_ok()
    });
    assert!(lab.cli.ask("192.168.0.2:30041").is_err());
    lab.node
        .kernel
        .ensure_no_addr("eth0", "192.168.7.2/24".parse().unwrap())
        .unwrap();
    lab.wait("the address to leave the rules", |lab| {
        !lab.rules(linux::iptables::Family::V4)
            .contains("192.168.7.2")
    });
}

#[test]
fn a_page_whose_address_is_taken_ends_the_proxy_only_if_asked_for() {
    let test = "a_page_whose_address_is_taken_ends_the_proxy_only_if_asked_for";
    let Some(lab) = Lab::new(test) else {
        return;
    };
    let mut lab = lab.with(&["--metrics-bind-address", "127.0.0.1:10299"]);
    let take = || std::net::TcpListener::bind("127.0.0.1:10299").unwrap();
    let taken = lab.node.run(take);
    lab.write("web.yaml", &service("web", WEB, P2));
    lab.start();
    lab.p1.answer("172.30.0.41:80");
    assert!(lab.log_text().contains("listen on 127.0.0.1:10299"));
    lab.stop(Signal::SIGTERM);
    lab.more_flags(&["--bind-address-hard-fail"]);
    lab.spawn();
    assert_eq!(lab.exit_code(), Some(1));
    drop(taken);
}

#[test]
fn the_node_object_is_followed() {
    let Some(lab) = Lab::new("the_node_object_is_followed") else {
        return;
    };
    let flags = [
        "--detect-local-mode",
        "NodeCIDR",
        "--nodeport-addresses",
        "primary",
    ];
    let mut lab = lab.with(&flags);
    let node = |net: &str, ip: &str| {
        format!(
            "kind: Node\nmetadata: {{name: node}}\nspec: {{podCIDRs: [{net}, 'fd00:180::/64']}}\nstatus: {{addresses: [{{type: InternalIP, address: {ip}}}]}}\n"
        )
    };
    lab.write("web.yaml", &service("web", WEB, P2));
    lab.spawn();
    lab.wait("the log", |lab| {
        lab.log_text().contains("no connection") || !lab.log_text().is_empty()
    });
    // Nothing is programmed before the pods' networks are known.
    let family = linux::iptables::Family::V4;
    assert!(!lab.rules(family).contains("172.30.0.41"));
    lab.write("node.yaml", &node("10.180.0.0/24", "192.168.0.2"));
    lab.wait("the first sync", |lab| {
        lab.rules(family).contains("172.30.0.41")
    });
    let has = |lab: &Lab, part: &str| lab.rules(family).contains(part);
    lab.wait("the pods' network", |lab| {
        has(lab, "! -s 10.180.0.0/24 -d 172.30.0.41/32")
    });
    lab.wait("the node's address", |lab| has(lab, "-d 192.168.0.2/32"));
    lab.cli.answer("192.168.0.2:30041");
    lab.write("node.yaml", &node("10.180.4.0/24", "192.168.7.2"));
    lab.wait("another network of pods", |lab| {
        has(lab, "! -s 10.180.4.0/24 -d 172.30.0.41/32") && !has(lab, "! -s 10.180.0.0/24")
    });
    lab.wait("another address of the node", |lab| {
        has(lab, "-d 192.168.7.2/32") && !has(lab, "-d 192.168.0.2/32")
    });
}

/// What the commands print in a namespace, without what changes by itself.
fn dump(netns: &NetNs) -> Vec<String> {
    let commands: [&[&str]; 6] = [
        &["iptables-nft-save"],
        &["ip6tables-nft-save"],
        &["iptables-legacy-save"],
        &["ip6tables-legacy-save"],
        &["nft", "list", "ruleset"],
        &["conntrack", "-L", "-p", "udp"],
    ];
    let run = |command: &[&str]| {
        let output = Exec::new(command[0]).args(&command[1..]).output().unwrap();
        let text = output.text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        // Counters and the seconds that a connection has left.
        let steady = lines.map(|line| match line.split_once("src=") {
            Some((_, tuples)) => tuples,
            None => {
                let line = line.split(" counter packets").next().unwrap_or_default();
                line.split(" [").next().unwrap_or_default()
            }
        });
        steady.collect::<Vec<_>>().join("\n")
    };
    netns.run(|| commands.map(run)).unwrap().into()
}

#[test]
fn cleanup_in_mode_iptables() {
    let test = "cleanup_in_mode_iptables";
    if lab::has_nf_tables() {
        cleanup(test, Mode::Iptables, &[]);
    } else {
        println!(
            "SKIPPED {test}: {}, and the old tables stay",
            lab::NO_NF_TABLES
        );
    }
}

#[test]
fn cleanup_in_mode_nftables() {
    cleanup("cleanup_in_mode_nftables", Mode::Nftables, &[]);
}

/// Somebody has rules everywhere: in built-in chains of iptables, and in nftables.
#[test]
fn cleanup_among_others_in_mode_iptables() {
    let test = "cleanup_among_others_in_mode_iptables";
    cleanup(test, Mode::Iptables, &["iptables", "ip6tables"]);
}

#[test]
fn cleanup_among_others_in_mode_nftables() {
    let test = "cleanup_among_others_in_mode_nftables";
    cleanup(test, Mode::Nftables, &["iptables", "ip6tables"]);
}

/// The old tables stay once they were made, so they are made before.
#[test]
fn cleanup_in_the_old_tables() {
    let programs = ["iptables-legacy", "ip6tables-legacy"];
    cleanup("cleanup_in_the_old_tables", Mode::Iptables, &programs);
}

/// Somebody else's rules.
const THEIRS: &str = "*nat\n:OTHERS - [0:0]\n-A PREROUTING -p tcp --dport 1 -j OTHERS\n-A OTHERS -j RETURN\nCOMMIT\n*filter\n-A FORWARD -p tcp --dport 2 -j DROP\nCOMMIT\n*mangle\n-A OUTPUT -p tcp --dport 3 -j ACCEPT\nCOMMIT\n";

/// Starts, serves TCP and UDP, cleans up: everything is as before. `others` are the programs by which
/// somebody else has made rules.
#[track_caller]
fn cleanup(test: &str, mode: Mode, others: &[&str]) {
    let Some(mut lab) = Lab::in_mode(test, mode) else {
        return;
    };
    // The table of somebody else, where there may be one.
    let tables = lab::has_nf_tables();
    lab.node.run(|| {
        for program in others {
            let restore = Exec::new(format!("{program}-restore")).arg("--noflush");
            restore.stdin(THEIRS).run().unwrap();
            // Built-in chains are made by the first rule, and shown from then on.
            for chain in ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"] {
                let rule = ["-t", "nat", "-A", chain, "-p", "tcp", "--dport", "4", "-j", "ACCEPT"];
                Exec::new(*program).args(rule).run().unwrap();
            }
        }
        let theirs = "add table inet theirs; add set inet theirs s { type ipv4_addr; elements = { 192.0.2.1 }; }";
        if tables {
            Exec::new("nft").arg(theirs).run().unwrap();
        }
        let flow = ["-I", "-p", "udp", "-s", "203.0.113.1", "-d", "203.0.113.2", "--sport", "5", "--dport", "6", "-t", "3600"];
        Exec::new("conntrack").args(flow).run().unwrap();
    });
    let netns = NetNs::open(lab.node.kernel_path()).unwrap();
    // The lab's own connections end by themselves, by and by.
    let forget = |netns: &NetNs| {
        let tcp = Exec::new("conntrack").args(["-D", "-p", "tcp"]);
        netns.run(|| drop(tcp.output())).unwrap();
    };
    forget(&netns);
    let before = dump(&netns);
    assert_eq!(before[4].contains("theirs"), tables);
    assert!(before[5].contains("203.0.113.1"));
    let spec = "{type: LoadBalancer, clusterIP: 172.30.0.41, clusterIPs: [172.30.0.41, \"fd00:172::41\"], externalIPs: [198.51.100.7], sessionAffinity: ClientIP, ports: [{name: '', port: 80, nodePort: 30041}, {name: udp, port: 80, protocol: UDP, nodePort: 30041}]}\nstatus: {loadBalancer: {ingress: [{ip: 198.51.100.8}]}}";
    lab.write("web.yaml", &service("web", spec, P2));
    lab.start();
    lab.cli.answer("192.168.0.2:30041");
    let socket = lab.cli.run(lab::talk::udp_socket);
    lab.wait("a UDP flow", |lab| {
        lab.cli
            .run(|| lab::talk::ask_udp(&socket, "192.168.0.2:30041".parse().unwrap()))
            .is_some()
    });
    assert_ne!(dump(&netns), before);
    lab.stop(Signal::SIGTERM);
    // SIGTERM leaves the rules.
    lab.cli.answer("192.168.0.2:30041");
    lab.cleanup();
    forget(&netns);
    let after = dump(&netns);
    for (before, after) in before.iter().zip(&after) {
        let of = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(of(before), of(after), "{}", lab.log_text());
    }
}
