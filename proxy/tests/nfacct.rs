//! Counters with names in mode iptables: what they count, and that they go. Needs root, and a kernel
//! that has them (`cargo xtask test --only vm` runs it in one).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

#[expect(dead_code, reason = "other suites use more of it")]
mod lab;
mod sockets;

use std::io::Write;

use lab::{Lab, service};
use linux::Host;
use linux::conntrack::{Conntrack, TCP};
use linux::iptables::{Family, Iptables};
use linux::nfacct::Counters;
use nix::sys::signal::Signal;

const INVALID: &str = "ct_state_invalid_dropped_packets_total";
const LOCALHOST: &str = "localhost_nodeports_accepted_packets_total";
const COUNTERS: [&str; 2] = [
    "ct_state_invalid_dropped_pkts",
    "localhost_nps_accepted_pkts",
];

/// Why the node of this lab cannot count, if it cannot.
fn missing(lab: &Lab) -> Option<String> {
    lab.node.run(|| {
        let mut counters = Counters::open().unwrap();
        if let Err(error) = counters.ensure("seaway-test") {
            return Some(error.to_string());
        }
        let rule = "*filter\n:T - [0:0]\n-A T -m nfacct --nfacct-name seaway-test\nCOMMIT\n";
        let iptables = Iptables::detect(Family::V4).unwrap();
        let restored = iptables.restore(rule);
        iptables
            .restore("*filter\n:T - [0:0]\n-X T\nCOMMIT\n")
            .unwrap();
        restored.err().map(|error| error.to_string())
    })
}

/// The value of one of kube-proxy's metrics of this mode.
fn metric(lab: &Lab, name: &str) -> Option<u64> {
    let (_, page) = lab.node.get("127.0.0.1:10249", "/metrics").unwrap();
    let start = format!("kubeproxy_iptables_{name} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&start));
    Some(line?.trim().parse().unwrap())
}

#[test]
fn named_counters_count_and_go() {
    let Some(mut lab) = Lab::new("named_counters_count_and_go") else {
        return;
    };
    if let Some(why) = missing(&lab) {
        println!("SKIPPED named_counters_count_and_go: {why}");
        return;
    }
    let spec = "{type: NodePort, clusterIP: 172.30.0.41, ports: [{port: 80, nodePort: 30041}]}";
    lab.write("web.yaml", &service("web", spec, &[("10.180.0.1", "node")]));
    lab.start();
    assert_eq!(metric(&lab, LOCALHOST), Some(0));

    lab.node.ask_many("127.0.0.1:30041", 3);
    lab.node.ask_many("192.168.0.2:30041", 2);
    lab.node.ask_many("172.30.0.41:80", 2);
    lab.cli.ask_many("192.168.0.2:30041", 2);
    assert_eq!(metric(&lab, LOCALHOST), Some(3));

    // A connection that the node no longer knows, where it takes none up in its middle.
    let mut stream = lab.cli.connect("10.180.0.1:8080");
    let before = metric(&lab, INVALID);
    assert!(before.is_some());
    let loose = "net/netfilter/nf_conntrack_tcp_loose";
    lab.node.kernel.set_sysctl(loose, "0").unwrap();
    lab.node.run(|| {
        let mut flows = Conntrack::open().unwrap();
        for flow in flows.list(false, TCP).unwrap() {
            flows.delete(&flow).unwrap();
        }
    });
    stream.write_all(b"lost").unwrap();
    lab.wait("the packet to be dropped", |lab| {
        metric(lab, INVALID) > before
    });

    // What was counted outlives the process.
    lab.stop(Signal::SIGKILL);
    lab.start();
    assert_eq!(metric(&lab, LOCALHOST), Some(3));
    assert!(metric(&lab, INVALID) > before);

    lab.stop(Signal::SIGTERM);
    lab.cleanup();
    let left = lab.node.run(|| {
        let mut counters = Counters::open().unwrap();
        COUNTERS.map(|name| counters.get(name).unwrap())
    });
    assert_eq!(left, [None, None]);
}
