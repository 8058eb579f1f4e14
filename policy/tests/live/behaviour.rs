//! What happens over time: connections, restarts, others' changes, many pods.

use std::net::IpAddr;

use api::watch::Event;
use futures::channel::mpsc::unbounded;
use policy::enforcer::Input;
use policy::{Enforcer, Options};
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
    if !lab::can_run("a_change_cuts_what_it_forbids_and_nothing_else") {
        return;
    }
    for options in [Options::default(), lab::ROUTED] {
        cut_what_is_forbidden(Lab::with(options));
    }
}

fn cut_what_is_forbidden(mut lab: Lab) {
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
    if !lab::can_run("a_label_that_goes_takes_the_connection_with_it") {
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
    if !lab::can_run("services_are_judged_by_who_stands_behind_them") {
        return;
    }
    for options in [Options::default(), lab::ROUTED] {
        judged_behind_services(Lab::with(options));
    }
}

fn judged_behind_services(mut lab: Lab) {
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
    let hairpin = ["set", "veth0", "type", "bridge_slave", "hairpin", "on"];
    ip_link(&lab.nodes[0].netns, &hairpin);
    assert!(reaches(&lab, "x/a", own, 8000, true));
}

#[test]
fn a_restart_changes_nothing_and_opens_nothing() {
    if !lab::can_run("a_restart_changes_nothing_and_opens_nothing") {
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
    lab.nodes[0].enforcer = Worker::start(&lab.nodes[0].netns, || {
        Enforcer::open("n1", Options::default()).unwrap()
    });
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

/// The loop over a node's enforcer, on a thread in the node, until dropped.
struct Daemon {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    end: Option<Box<dyn FnOnce()>>,
    _thread: Worker<()>,
}

impl Daemon {
    /// Starts it, and waits until policies hold.
    fn start(lab: &Lab, options: Options) -> Self {
        let (sender, inputs) = unbounded();
        for input in lab.everything(0) {
            sender.unbounded_send(input).unwrap();
        }
        let (holds, ready) = std::sync::mpsc::channel();
        let thread = Worker::start(&lab.nodes[0].netns, || ());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let end = thread.begin(move |()| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            // Whoever waits no more has heard it.
            let told = move |told: policy::Told| holds.send(told.holds).unwrap_or(());
            let stop = async { drop(stopped.await) };
            runtime
                .block_on(policy::run("n1", options, inputs, told, stop))
                .unwrap();
            drop(sender);
        });
        while !ready.recv_timeout(DEADLINE).unwrap() {}
        Self {
            stop: Some(stop),
            end: Some(end),
            _thread: thread,
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(end) = self.end.take()
            && !std::thread::panicking()
        {
            end();
        }
    }
}

/// The lines of a listing of `nft`, sorted: handles may be others.
fn listing(netns: &linux::NetNs, table: &[&str]) -> Vec<String> {
    let exec = linux::exec::Exec::new("nft").args(["-s", "list", "table"]);
    let output = netns.run(|| exec.args(table).output()).unwrap().unwrap();
    let mut lines: Vec<String> = output.text().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn what_others_change_is_put_in_order_and_theirs_is_left() {
    let test = "what_others_change_is_put_in_order_and_theirs_is_left";
    if !lab::can_run(test) {
        return;
    }
    let mut lab = Lab::with(lab::ROUTED);
    lab.set_policies(vec![deny("x")]);
    let netns = linux::NetNs::open(lab.nodes[0].netns.path()).unwrap();
    nft(
        &netns,
        &[
            "add table inet theirs; add chain inet theirs c { type filter hook forward priority 0; }",
        ],
    );
    let daemon = Daemon::start(&lab, lab::ROUTED);
    let tables = [["inet", "seaway-policy"], ["bridge", "seaway-policy"]];
    let list = || tables.map(|table| listing(&netns, &table));
    let wanted = list();
    let theirs = nft(&netns, &["list", "table", "inet", "theirs"]);
    for harm in [
        "delete table inet seaway-policy",
        "flush chain inet seaway-policy forward",
        "flush map inet seaway-policy ingress-pods4",
        "add element inet seaway-policy known4 { 192.0.2.1 }",
        "insert rule inet seaway-policy judge4 accept",
        "flush table inet seaway-policy",
        "add chain inet seaway-policy foreign",
        "delete table bridge seaway-policy",
        "flush chain bridge seaway-policy prerouting",
        "insert rule bridge seaway-policy prerouting accept",
    ] {
        nft(&netns, &[harm]);
        wait_for(harm, || list() == wanted);
    }
    assert_eq!(nft(&netns, &["list", "table", "inet", "theirs"]), theirs);
    // The bridge is made anew, with another hardware address.
    ip_link(&netns, &["set", "cni0", "address", "0a:00:00:00:00:99"]);
    let address = "0a:00:00:00:00:99";
    let follows = || {
        listing(&netns, &tables[1])
            .iter()
            .any(|line| line.contains(address))
    };
    wait_for("the bridge", follows);
    drop(daemon);
    assert!(!nft(&netns, &["list", "table", "inet", "seaway-policy"]).is_empty());
}

#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "waited in vain after {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn ip_link(netns: &linux::NetNs, words: &[&str]) {
    let exec = linux::exec::Exec::new("ip").arg("link").args(words);
    assert!(
        netns
            .run(|| exec.output())
            .unwrap()
            .unwrap()
            .status
            .success()
    );
}

/// It is the table for the bridge that brings packets before the rules, in both families.
#[test]
fn without_br_netfilter_bridges_judge_by_their_own_table() {
    if !lab::can_run("without_br_netfilter_bridges_judge_by_their_own_table") {
        return;
    }
    let mut lab = Lab::with(lab::ROUTED);
    lab.set_policies(vec![deny("x")]);
    let all = |lab: &Lab, open: bool| {
        for ip in lab.pod("x/a").ips {
            assert_eq!(reaches(lab, "y/b", ip, 80, open), open, "{ip}");
        }
    };
    all(&lab, false);
    nft(&lab.nodes[0].netns, &["delete table bridge seaway-policy"]);
    all(&lab, true);
    lab.nodes[0].enforcer.call(|enforcer| {
        enforcer.doubt(false);
        enforcer.sync().unwrap()
    });
    all(&lab, false);
    let removed = Worker::start(&lab.nodes[0].netns, || ()).call(|()| Enforcer::remove());
    assert!(removed.unwrap());
    let ruleset = nft(&lab.nodes[0].netns, &["list", "ruleset"]);
    assert!(!ruleset.contains("seaway-policy"), "{ruleset}");
}

/// A pod that comes while no daemon runs is closed, if the operator chose so; else it is open.
#[test]
fn pods_that_nobody_knows_wait_if_asked_for() {
    if !lab::can_run("pods_that_nobody_knows_wait_if_asked_for") {
        return;
    }
    for deny_unknown in [false, true] {
        let mut lab = Lab::with(Options {
            deny_unknown,
            ..Options::default()
        });
        lab.set_policies(vec![]);
        // As a pod that the daemon has not heard of.
        let new = lab.pod("x/a");
        let gone = serde_json::from_value(new.object.clone()).unwrap();
        lab.tell(0, vec![Input::Pod(Event::Delete(gone))]);
        for ip in lab.pod("x/a").ips {
            assert_eq!(reaches(&lab, "y/b", ip, 80, !deny_unknown), !deny_unknown);
        }
        for ip in lab.pod("z/a").ips {
            assert_eq!(reaches(&lab, "x/a", ip, 80, !deny_unknown), !deny_unknown);
            assert!(reaches(&lab, "y/b", ip, 80, true));
        }
        // The daemon hears of it.
        lab.tell(0, vec![pod_input(&lab.pod("x/a").object)]);
        for ip in lab.pod("x/a").ips {
            assert!(reaches(&lab, "y/b", ip, 80, true));
        }
    }
}

#[test]
fn a_thousand_pods_come_and_go_as_elements() {
    if !lab::can_run("a_thousand_pods_come_and_go_as_elements") {
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
