//! What happens over time: connections, restarts, others' changes, many pods.

use std::net::IpAddr;

use api::watch::Event;
use futures::channel::mpsc::unbounded;
use policy::Enforcer;
use policy::enforcer::Input;
use serde_json::{Value, json};

use crate::lab::{self, Lab, nft, pod_input};
use crate::probe::{DEADLINE, Talk, Target, probe};
use crate::worker::Worker;

fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn deny(namespace: &str) -> Value {
    policy(
        namespace,
        "deny",
        json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
    )
}

/// Whether TCP port 80 of an address can be reached from a pod.
fn reaches(lab: &Lab, from: &str, ip: IpAddr, port: u16, expected: bool) -> bool {
    let target = Target {
        ip,
        udp: false,
        port,
    };
    lab.pod(from)
        .worker
        .call(move |()| probe(&[(target, expected)])[0])
}

fn talk(lab: &Lab, from: &str, to: &str, family: usize) -> Talk {
    let ip = lab.pod(to).ips[family];
    lab.pod(from).worker.call(move |()| Talk::open(ip))
}

#[test]
fn a_change_cuts_what_it_forbids_and_nothing_else() {
    if !lab::has_rights("a_change_cuts_what_it_forbids_and_nothing_else") {
        return;
    }
    let mut lab = Lab::new();
    for family in [0, 1] {
        lab.set_policies(vec![]);
        let pairs = [
            // Of one node, and of two; the last with a client that is isolated.
            ("y/b", "x/a", false),
            ("y/a", "x/a", false),
            ("x/c", "x/a", true),
            ("x/b", "x/a", true),
            ("y/b", "z/a", true),
            ("x/a", "y/a", true),
            ("x/a", "y/b", true),
        ];
        let mut talks =
            pairs.map(|(from, to, stays)| (from, to, stays, talk(&lab, from, to, family)));
        for (from, to, _, talk) in &mut talks {
            assert!(talk.goes_on(true), "{from} {to}");
        }
        let own = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
        let reports = lab.set_policies(vec![policy("x", "own", own.clone())]);
        // One of a pair of the first node, one across, which both nodes may know.
        let cut: usize = reports.iter().map(|report| report.cut).sum();
        assert!((2..=3).contains(&cut), "{reports:?}");
        for (from, to, stays, talk) in &mut talks {
            assert_eq!(talk.goes_on(*stays), *stays, "{from} {to} {family}");
        }
        // The server's side does not bring it back either; a new one comes when it may.
        lab.set_policies(vec![]);
        assert!(talk(&lab, "y/b", "x/a", family).goes_on(true));
    }
}

#[test]
fn a_label_that_goes_takes_the_connection_with_it() {
    if !lab::has_rights("a_label_that_goes_takes_the_connection_with_it") {
        return;
    }
    let mut lab = Lab::new();
    let spec = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [
        {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "b"}}}]}]});
    lab.set_policies(vec![policy("x", "from-b", spec)]);
    let mut goes = talk(&lab, "y/b", "x/a", 0);
    let mut stays = talk(&lab, "z/b", "x/a", 0);
    assert!(goes.goes_on(true) && stays.goes_on(true));
    let mut object = lab.pod("y/b").object.clone();
    object["metadata"]["labels"] = json!({"pod": "other"});
    for node in 0..2 {
        let report = lab.tell(node, vec![pod_input(&object)]);
        assert!(report.elements_only, "{report:?}");
        if node == 0 {
            // Out of one set for each family.
            assert_eq!((report.objects, report.cut), (2, 1), "{report:?}");
        }
    }
    assert!(!goes.goes_on(false) && stays.goes_on(true));
}

#[test]
fn services_are_judged_by_who_stands_behind_them() {
    if !lab::has_rights("services_are_judged_by_who_stands_behind_them") {
        return;
    }
    let mut lab = Lab::new();
    for node in &lab.nodes {
        let rules = "add table ip svc; \
            add chain ip svc pre { type nat hook prerouting priority -100; }; \
            add rule ip svc pre ip daddr 10.96.0.1 tcp dport 8000 dnat to 10.244.1.10:80; \
            add rule ip svc pre ip daddr 10.96.0.2 tcp dport 8000 dnat to 10.244.2.13:80; \
            add chain ip svc post { type nat hook postrouting priority 100; }; \
            add rule ip svc post ip saddr 10.244.1.10 ip daddr 10.244.1.10 masquerade";
        nft(&node.netns, &[rules]);
    }
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}],
        "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 80}]}]});
    lab.set_policies(vec![policy("x", "own", spec)]);
    let (own, other) = ("10.96.0.1".parse().unwrap(), "10.96.0.2".parse().unwrap());
    for (from, service, expected) in [
        ("x/c", own, true),
        ("x/b", own, true),
        ("y/b", own, false),
        ("y/a", own, false),
        ("x/c", other, false),
        ("y/b", other, true),
    ] {
        let found = reaches(&lab, from, service, 8000, expected);
        assert_eq!(found, expected, "{from} {service}");
    }
    // To itself through its service; the bridge sends out of the port it came from.
    let exec = linux::exec::Exec::new("ip").args([
        "link",
        "set",
        "veth0",
        "type",
        "bridge_slave",
        "hairpin",
        "on",
    ]);
    assert!(
        lab.nodes[0]
            .netns
            .run(|| exec.output())
            .unwrap()
            .unwrap()
            .status
            .success()
    );
    assert!(reaches(&lab, "x/a", own, 8000, true));
}

#[test]
fn a_restart_changes_nothing_and_opens_nothing() {
    if !lab::has_rights("a_restart_changes_nothing_and_opens_nothing") {
        return;
    }
    let mut lab = Lab::new();
    let own = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}],
        "ports": [{"port": 80, "endPort": 90}, {"port": 1000}, {"port": "web"}]},
        {"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}]});
    lab.set_policies(vec![policy("x", "own", own)]);
    let mut stays = talk(&lab, "x/c", "x/a", 0);
    let (open, closed) = (lab.pod("x/a").ips[0], lab.pod("x/c").ips[1]);
    assert!(stays.goes_on(true));
    // Whatever it had in memory is lost, as after kill -9.
    lab.nodes[0].enforcer = Worker::start(&lab.nodes[0].netns, || Enforcer::open("n1").unwrap());
    let check = |lab: &Lab, stays: &mut Talk| {
        assert!(stays.goes_on(true));
        assert!(reaches(lab, "x/c", open, 80, true));
        assert!(!reaches(lab, "y/b", closed, 80, false));
    };
    check(&lab, &mut stays);
    // A part of what there is to know is not acted upon.
    let mut inputs = lab.everything(0);
    let rest = inputs.split_off(inputs.len() - 3);
    assert_eq!(lab.tell(0, inputs).objects, 0);
    check(&lab, &mut stays);
    let report = lab.tell(0, rest);
    assert_eq!((report.objects, report.cut), (0, 0), "{report:?}");
    check(&lab, &mut stays);
    assert!(Worker::start(&lab.nodes[0].netns, || ()).call(|()| Enforcer::remove().unwrap()));
    assert!(reaches(&lab, "y/b", closed, 80, true));
}

#[test]
fn what_others_change_is_put_in_order_and_theirs_is_left() {
    let test = "what_others_change_is_put_in_order_and_theirs_is_left";
    if !lab::has_rights(test) {
        return;
    }
    let mut lab = Lab::new();
    lab.set_policies(vec![deny("x")]);
    let netns = linux::NetNs::open(lab.nodes[0].netns.path()).unwrap();
    nft(
        &netns,
        &[
            "add table inet theirs; add chain inet theirs c { type filter hook forward priority 0; }",
        ],
    );
    let (sender, inputs) = unbounded();
    for input in lab.everything(0) {
        sender.unbounded_send(input).unwrap();
    }
    let (is_ready, ready) = std::sync::mpsc::channel();
    let daemon = Worker::start(&netns, || ());
    // Dropped before the thread is waited for.
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let end = daemon.begin(move |()| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let ready = move || is_ready.send(()).unwrap();
        let stop = async { drop(stopped.await) };
        runtime
            .block_on(policy::run("n1", inputs, ready, stop))
            .unwrap();
    });
    ready.recv_timeout(DEADLINE).unwrap();
    let wanted = nft(&netns, &["-s", "list", "table", "inet", "seaway-policy"]);
    let theirs = nft(&netns, &["list", "table", "inet", "theirs"]);
    for harm in [
        "delete table inet seaway-policy",
        "flush chain inet seaway-policy forward",
        "flush map inet seaway-policy ingress-pods4",
        "add element inet seaway-policy known4 { 192.0.2.1 }",
        "insert rule inet seaway-policy judge4 accept",
        "flush table inet seaway-policy",
        "add chain inet seaway-policy foreign",
    ] {
        nft(&netns, &[harm]);
        let start = std::time::Instant::now();
        let list = || {
            let exec = linux::exec::Exec::new("nft").args([
                "-s",
                "list",
                "table",
                "inet",
                "seaway-policy",
            ]);
            let output = netns.run(|| exec.output()).unwrap().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let lines = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        while lines(&list()) != lines(&wanted) {
            assert!(
                start.elapsed() < DEADLINE,
                "after {harm}:\n{}\nwanted:\n{wanted}",
                list()
            );
            std::thread::yield_now();
        }
    }
    assert_eq!(nft(&netns, &["list", "table", "inet", "theirs"]), theirs);
    drop(stop);
    end();
    assert!(!nft(&netns, &["list", "table", "inet", "seaway-policy"]).is_empty());
}

#[test]
fn a_thousand_pods_come_and_go_as_elements() {
    if !lab::has_rights("a_thousand_pods_come_and_go_as_elements") {
        return;
    }
    let mut lab = Lab::new();
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": "web"}]}],
        "egress": [{"to": [{"podSelector": {}}]}]});
    lab.set_policies(vec![policy("x", "own", spec)]);
    let object = |n: u16, ips: bool| {
        let [high, low] = n.to_be_bytes();
        let mut object = json!({
            "metadata": {"namespace": "x", "name": format!("p{n}"), "labels": {"n": n.to_string()}},
            "spec": {"nodeName": "n1", "containers": [
                {"ports": [{"name": "web", "containerPort": 80}]}]},
            "status": {"phase": "Pending"},
        });
        if ips {
            object["status"] = json!({"phase": "Running", "podIPs": [
                {"ip": format!("10.244.{}.{low}", 64 + high)}, {"ip": format!("fd00:10:244:1::1:{n:x}")}]});
        }
        object
    };
    for n in 0..1000_u16 {
        // Closed to addresses that nobody knows, then the address: known, isolated, itself, policies of both directions, one
        // set of pods, one named port, in both families; open again.
        let waits = lab.tell(0, vec![pod_input(&object(n, false))]);
        assert!(waits.elements_only && waits.objects == 4, "{waits:?}");
        let comes = lab.tell(0, vec![pod_input(&object(n, true))]);
        assert!(comes.elements_only && comes.objects == 14 + 4, "{comes:?}");
        // Far pods are two elements in the set of pods, and two of the named port.
        let far = lab.tell(1, vec![pod_input(&object(n, true))]);
        assert!(far.elements_only && far.objects == 4, "{far:?}");
    }
    for node in &lab.nodes {
        assert!(node.enforcer.call(|e| e.is_true().unwrap()));
    }
    for n in 0..1000_u16 {
        let gone = serde_json::from_value(object(n, true)).unwrap();
        let goes = lab.tell(0, vec![Input::Pod(Event::Delete(gone))]);
        assert!(goes.elements_only && goes.objects == 14, "{goes:?}");
    }
    assert!(lab.nodes[0].enforcer.call(|e| e.is_true().unwrap()));
}
