//! Nodes to plan, plan to changes, changes to a host in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use api::core::Node;
use api::watch::Event;
use expect_test::{Expect, expect};
use ipnetwork::IpNetwork;
use linux::fake::{Failing, FakeHost, FakeKernel};
use linux::link::{LinkChange, NewBridge, NewVxlan};
use linux::{Host, Mac};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::backend::{Backend, HostGw, Vxlan, WireGuard, WireGuardMode};
use super::firewall::iptables::{self as firewall, Saved};
use super::firewall::{Masquerader, nft};
use super::model::{
    Addr, DeviceKind, Entries, Entry, Family, FdbEntry, IfaceChoice, Neigh, Own, Pattern, Peer,
    Plan, Pods, Reach, Settings, Underlay, WgKey,
};
use super::nodes::{News, Nodes};
use super::observe::{Observed, observe};
use super::peers::Peers;
use super::sync::{Overlay, Synced};
use super::{apply, diff, files, node, plan, underlay};

mod backends;
mod changes;
mod firewall_rules;
mod ground;
mod narrow;
mod plans;
mod sync_all;
mod told;

fn settings(dir: PathBuf) -> Settings {
    Settings {
        node_name: "n1".into(),
        iface: IfaceChoice::default(),
        public: Vec::new(),
        subnet_file: Some(dir.join("run/subnet.env")),
        backend: Backend::Vxlan(Vxlan::default()),
        kernel: "6.1.0".into(),
        cni_conf_dir: dir.join("net.d"),
        cni_state_dir: dir.join("state"),
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/56".parse().unwrap(),
        ],
        masquerade: false,
        masquerader: Masquerader::Auto,
        pace: None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn underlay() -> Underlay {
    Underlay {
        dev: "eth0".into(),
        index: 2,
        mtu: 1500,
        v4: Some("172.31.250.11".parse().unwrap()),
        v6: Some("fd00:31:250::11".parse().unwrap()),
        routes: Vec::new(),
    }
}

/// Node `n<i>` as the API has it, with the annotations of its daemon.
fn node_json(i: u8) -> Value {
    let mac = |family| plan::vtep_mac(&format!("n{i}"), family);
    json!({
        "metadata": {"name": format!("n{i}"), "annotations": {
            "other/annotation": "x",
            node::BACKEND_TYPE: "vxlan",
            node::BACKEND_DATA: format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(Family::V4)),
            node::BACKEND_V6_DATA: format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(Family::V6)),
            node::PUBLIC_IP: format!("172.31.250.1{i}"),
            node::PUBLIC_IPV6: format!("fd00:31:250::1{i}"),
            node::SUBNET_MANAGER: "true",
        }},
        "spec": {"podCIDRs": [format!("10.244.{i}.0/24"), format!("fd00:10:244:{i}::/64")]},
        "status": {"addresses": [
            {"type": "Hostname", "address": format!("n{i}")},
            {"type": "InternalIP", "address": format!("172.31.250.1{i}")},
            {"type": "InternalIP", "address": format!("fd00:31:250::1{i}")},
        ]},
    })
}

fn node(value: Value) -> Node {
    serde_json::from_value(value).unwrap()
}

/// What this node, `n1`, has told nobody yet.
fn own() -> Own {
    let mut own = node::own(&node(node_json(1))).unwrap();
    own.annotations.clear();
    own
}

fn peers(all: &[u8]) -> Peers {
    let backend = settings("/x".into()).backend;
    let peer = |i: &u8| {
        let mut problems = Vec::new();
        let peer = node::peer(&node(node_json(*i)), &backend, &mut problems);
        assert_eq!(problems, [""; 0]);
        (format!("n{i}"), peer)
    };
    all.iter().map(peer).collect()
}

/// The plan of this node, with what the others bring and what is wrong with them.
fn planned_with(
    settings: &Settings,
    own: &Own,
    underlay: &Underlay,
    peers: &Peers,
) -> (Plan, Entries) {
    let mut plan = plan::plan(settings, own, underlay);
    let mut entries = Entries::new();
    for name in peers.names() {
        let problems = &mut plan.problems;
        let peer = peers.entitled(name, |why| problems.push(why));
        let told = |why| problems.push(why);
        let brought = plan::entries(settings, &plan.ground, name, &peer, told);
        entries.extend(brought.into_iter().map(|entry| (entry.key(), entry)));
    }
    (plan, entries)
}

fn planned(own: &Own, underlay: &Underlay, peers: &Peers) -> (Plan, Entries) {
    planned_with(&settings("/x".into()), own, underlay, peers)
}

fn lines((plan, entries): &(Plan, Entries), seen: &Observed) -> String {
    lines_with(&settings("/x".into()), (plan, entries), seen)
}

fn lines_with(settings: &Settings, (plan, entries): (&Plan, &Entries), seen: &Observed) -> String {
    diff::diff(settings, &plan.desired, entries, seen)
        .iter()
        .map(|change| format!("{change}\n"))
        .collect()
}

#[track_caller]
fn check(planned: &(Plan, Entries), expect: Expect) {
    check_with(&settings("/x".into()), planned, expect);
}

#[track_caller]
fn check_with(settings: &Settings, (plan, entries): &(Plan, Entries), expect: Expect) {
    let mut text = lines_with(settings, (plan, entries), &Observed::default());
    for (key, value) in &plan.annotations {
        text += &format!("@ {key}={}\n", value.as_deref().unwrap_or("(none)"));
    }
    for problem in &plan.problems {
        text += &format!("! {problem}\n");
    }
    match &plan.pods {
        Some(pods) => {
            let nets: Vec<String> = pods.subnets.iter().map(ToString::to_string).collect();
            text += &format!("pods mtu {} {}\n", pods.mtu, nets.join(" "));
        }
        None => text += "no pods\n",
    }
    expect.assert_eq(&text);
}

/// A host with an underlay link of index 2, like [`underlay`].
fn fake(kernel: &FakeKernel) -> FakeHost {
    let mut host = kernel.add_netns();
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        host.preset_sysctl(key, "0");
    }
    host.add_bridge(&NewBridge {
        name: "eth0".into(),
        mac: None,
        mtu: Some(1500),
    })
    .unwrap();
    host.set_link("eth0", &LinkChange::up()).unwrap();
    for net in ["172.31.250.11/24", "fd00:31:250::11/64"] {
        host.add_addr("eth0", &Addr::new(net.parse().unwrap()))
            .unwrap();
    }
    host
}

/// Everything there is; neighbours and entries that were replaced stand elsewhere in the kernel's
/// own order, which means nothing.
fn dump(kernel: &FakeKernel) -> String {
    let mut link = String::new();
    let mut lines: Vec<String> = Vec::new();
    for line in kernel.dump().lines() {
        if line.starts_with("  link") {
            link = line.to_owned();
        }
        lines.push(format!("{link} {line}\n"));
    }
    lines.sort();
    lines.concat()
}

fn sync(host: &mut FakeHost, dir: &tempfile::TempDir, peers: &Peers) -> Synced {
    sync_with(&settings(dir.path().into()), host, peers).0
}

fn sync_with(settings: &Settings, host: &mut FakeHost, peers: &Peers) -> (Synced, Overlay) {
    let mut overlay = Overlay::new(settings.clone());
    let synced = overlay.all(host, &own(), peers).unwrap();
    (synced, overlay)
}
