//! Network policies on the real kernel: two nodes and nine pods as network namespaces. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

mod behaviour;
mod cases;
mod lab;
mod probe;
mod worker;

use policy::decide::Packet;
use policy::plan::{names, plan};
use policy::trace::{Circumstances, Outcome, trace};

use cases::{Case, Cell, cases, model, written};
use lab::Lab;
use probe::{PORTS, Target, probe};

/// Each pod to each, on each port, by each protocol, in both families, after each case: by sockets
/// for TCP and UDP, by the rules' tracer for SCTP. What is expected stands beside the case, and a
/// model of its own must say the same.
#[test]
fn reachability() {
    if lab::can_run("reachability") {
        reachable(Lab::new());
    }
}

/// The same on a kernel whose bridges hand nothing to the hooks of IP.
#[test]
fn reachability_without_br_netfilter() {
    if lab::can_run("reachability_without_br_netfilter") {
        reachable(Lab::with(lab::ROUTED));
    }
}

fn reachable(mut lab: Lab) {
    let cases = cases();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let mut probes = 0;
    for case in &cases {
        lab.set_policies(case.objects());
        probes += check(&lab, case);
        check_sctp(&lab, case);
        check_node(&lab, case);
        for node in &lab.nodes {
            assert!(
                node.enforcer.call(|e| e.is_true().unwrap()),
                "{}",
                case.name
            );
        }
    }
    println!("{} cases, {probes} probes by sockets", cases.len());
}

fn expectation(case: &Case, cell: &Cell<'_>) -> bool {
    let expected = written(case, cell);
    let modelled = model(&case.objects(), cell);
    assert_eq!(
        expected, modelled,
        "{}: the model and the case differ: {cell:?}",
        case.name
    );
    expected
}

fn check(lab: &Lab, case: &Case) -> usize {
    let mut waiting = Vec::new();
    for from in &lab.pods {
        let mut targets = Vec::new();
        for to in &lab.pods {
            for (from_ip, to_ip) in from.ips.into_iter().zip(to.ips) {
                for (udp, port) in [false, true]
                    .into_iter()
                    .flat_map(|u| PORTS.map(|p| (u, p)))
                {
                    let cell = Cell {
                        from: &from.object,
                        from_ip,
                        to: &to.object,
                        to_ip,
                        protocol: if udp { "UDP" } else { "TCP" },
                        port,
                    };
                    let target = Target {
                        ip: to_ip,
                        udp,
                        port,
                    };
                    targets.push((target, expectation(case, &cell)));
                }
            }
        }
        let asked = targets.clone();
        waiting.push((from, targets, from.worker.begin(move |()| probe(&asked))));
    }
    let mut count = 0;
    let mut wrong = Vec::new();
    for (from, targets, answers) in waiting {
        for ((target, expected), reached) in targets.into_iter().zip(answers()) {
            count += 1;
            if reached != expected {
                wrong.push(format!("{} -> {target:?}: reached {reached}", from.key()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{}:\n{}\n{}",
        case.name,
        wrong.join("\n"),
        lab::nft(
            &lab.nodes[0].netns,
            &["list", "table", "inet", "seaway-policy"]
        ),
    );
    count
}

/// This kernel may have no SCTP: its packets go through the rules one by one.
fn check_sctp(lab: &Lab, case: &Case) {
    let plans: Vec<_> = lab
        .nodes
        .iter()
        .map(|node| node.enforcer.call(|e| plan(e.model())))
        .collect();
    for (from, to) in lab
        .pods
        .iter()
        .flat_map(|a| lab.pods.iter().map(move |b| (a, b)))
    {
        for ((from_ip, to_ip), port) in from
            .ips
            .into_iter()
            .zip(to.ips)
            .flat_map(|ips| PORTS.map(|port| (ips, port)))
        {
            let cell = Cell {
                from: &from.object,
                from_ip,
                to: &to.object,
                to_ip,
                protocol: "SCTP",
                port,
            };
            let packet = Packet {
                source: from_ip,
                destination: to_ip,
                protocol: 132,
                port,
            };
            let passes = |plan| {
                let around = Circumstances::FIRST;
                trace(plan, names::FORWARD, &packet, around).unwrap() == Outcome::Pass
            };
            let reached = passes(&plans[from.node]) && passes(&plans[to.node]);
            assert_eq!(reached, expectation(case, &cell), "{}: {cell:?}", case.name);
        }
    }
}

/// Probes of the kubelet: a node reaches its own pods, whatever policies say.
fn check_node(lab: &Lab, case: &Case) {
    for (i, node) in lab.nodes.iter().enumerate() {
        let here = lab.pods.iter().filter(|pod| pod.node == i);
        let targets: Vec<_> = here
            .flat_map(|pod| pod.ips)
            .map(|ip| {
                let target = Target {
                    ip,
                    udp: false,
                    port: 80,
                };
                (target, true)
            })
            .collect();
        let asked = targets.clone();
        let answers = node.enforcer.call(move |_| probe(&asked));
        assert!(
            answers.iter().all(|reached| *reached),
            "{}: {targets:?}",
            case.name
        );
    }
}
