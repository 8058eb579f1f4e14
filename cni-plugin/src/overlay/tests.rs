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
    Plan, Pods, Settings, Underlay, WgKey,
};
use super::nodes::{News, Nodes};
use super::observe::{Observed, observe};
use super::peers::Peers;
use super::sync::{Overlay, Synced};
use super::{apply, diff, files, node, plan, underlay};

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

#[test]
fn a_node_alone() {
    let own = Own {
        subnets: vec![net("10.244.1.0/24")],
        ..own()
    };
    check(
        &planned(&own, &underlay(), &peers(&[])),
        expect![[r#"
            + link seaway.1 vni 1 port 8472 local 172.31.250.11 mtu 1450
            = link seaway.1 no link-local
            = link seaway.1 up
            + addr 10.244.1.0/32 dev seaway.1
            = sysctl net/ipv4/ip_forward 1
            @ flannel.alpha.coreos.com/backend-data={"VNI":1,"VtepMAC":"0a:ed:6d:c3:a3:b9"}
            @ flannel.alpha.coreos.com/backend-type=vxlan
            @ flannel.alpha.coreos.com/kube-subnet-manager=true
            @ flannel.alpha.coreos.com/public-ip=172.31.250.11
            pods mtu 1450 10.244.1.0/24
        "#]],
    );
}

#[test]
fn three_nodes_of_both_families() {
    check(
        &planned(&own(), &underlay(), &peers(&[2, 3])),
        expect![[r#"
            + link seaway.1 vni 1 port 8472 local 172.31.250.11 mtu 1450
            = link seaway.1 no link-local
            = link seaway.1 up
            + addr 10.244.1.0/32 dev seaway.1
            + link seaway-v6.1 vni 1 port 8472 local fd00:31:250::11 mtu 1430
            = link seaway-v6.1 no link-local
            = link seaway-v6.1 up
            + addr fd00:10:244:1::/128 dev seaway-v6.1
            = sysctl net/ipv4/ip_forward 1
            = sysctl net/ipv6/conf/all/forwarding 1
            = sysctl net/ipv6/conf/seaway-v6.1/accept_ra 0
            + fdb 0a:32:1a:30:95:44 dst fd00:31:250::13 dev seaway-v6.1
            + fdb 0a:d3:2d:fa:9a:c0 dst fd00:31:250::12 dev seaway-v6.1
            + fdb 0a:8a:fa:bb:ab:b7 dst 172.31.250.12 dev seaway.1
            + fdb 0a:ac:89:e8:13:04 dst 172.31.250.13 dev seaway.1
            + neigh fd00:10:244:2:: lladdr 0a:d3:2d:fa:9a:c0 dev seaway-v6.1
            + neigh fd00:10:244:3:: lladdr 0a:32:1a:30:95:44 dev seaway-v6.1
            + neigh 10.244.2.0 lladdr 0a:8a:fa:bb:ab:b7 dev seaway.1
            + neigh 10.244.3.0 lladdr 0a:ac:89:e8:13:04 dev seaway.1
            + route 10.244.2.0/24 via 10.244.2.0 dev seaway.1
            + route 10.244.3.0/24 via 10.244.3.0 dev seaway.1
            + route fd00:10:244:2::/64 via fd00:10:244:2:: dev seaway-v6.1
            + route fd00:10:244:3::/64 via fd00:10:244:3:: dev seaway-v6.1
            @ flannel.alpha.coreos.com/backend-data={"VNI":1,"VtepMAC":"0a:ed:6d:c3:a3:b9"}
            @ flannel.alpha.coreos.com/backend-type=vxlan
            @ flannel.alpha.coreos.com/backend-v6-data={"VNI":1,"VtepMAC":"0a:b5:bf:9b:13:44"}
            @ flannel.alpha.coreos.com/kube-subnet-manager=true
            @ flannel.alpha.coreos.com/public-ip=172.31.250.11
            @ flannel.alpha.coreos.com/public-ipv6=fd00:31:250::11
            pods mtu 1430 10.244.1.0/24 fd00:10:244:1::/64
        "#]],
    );
}

#[test]
fn what_is_told_already_is_not_told_again() {
    let told = node::own(&node(node_json(1))).unwrap();
    assert_eq!(
        planned(&told, &underlay(), &peers(&[])).0.annotations,
        BTreeMap::new()
    );
    // A family that is gone is taken back, an address that the administrator chose is told.
    let mut value = node_json(1);
    value["spec"] = json!({"podCIDR": "10.244.1.0/24"});
    value["metadata"]["annotations"][node::PUBLIC_IP_OVERWRITE] = json!("192.0.2.1");
    let own = node::own(&node(value)).unwrap();
    let expect: BTreeMap<String, Option<String>> = BTreeMap::from([
        (node::PUBLIC_IP.to_owned(), Some("192.0.2.1".to_owned())),
        (node::BACKEND_V6_DATA.to_owned(), None),
        (node::PUBLIC_IPV6.to_owned(), None),
    ]);
    let (plan, _) = planned(&own, &underlay(), &peers(&[]));
    assert_eq!(plan.annotations, expect);
}

#[test]
fn mtu_follows_the_underlay() {
    for (mtu, v6, expect) in [
        (1500, true, Some(1430)),
        (1500, false, Some(1450)),
        (9000, true, Some(8930)),
        // Too small for IPv6: IPv4 goes on.
        (1349, true, Some(1299)),
        (600, false, None),
    ] {
        let mut own = own();
        own.subnets.truncate(if v6 { 2 } else { 1 });
        let (plan, _) = planned(&own, &Underlay { mtu, ..underlay() }, &peers(&[]));
        assert_eq!(plan.pods.map(|pods| pods.mtu), expect, "{mtu} {v6}");
    }
}

/// Nodes 2 to 6 with IPv4 alone, after these changes.
fn colliding() -> Vec<(String, Peer)> {
    let mut all: BTreeMap<String, Peer> = (2..=6)
        .map(|i| {
            let name = format!("n{i}");
            let peer = peers(&[i]).entitled(&name, |why| panic!("{why}"));
            (name, peer)
        })
        .collect();
    let two = all["n2"].v4.clone().unwrap();
    let mut set = |i: u8, change: &dyn Fn(&mut super::model::Reach)| {
        let peer = all.get_mut(&format!("n{i}")).unwrap();
        peer.v6 = None;
        change(peer.v4.as_mut().unwrap());
    };
    set(2, &|_| {});
    set(3, &|r| r.subnet = two.subnet);
    set(4, &|r| r.way = two.way);
    set(5, &|r| r.subnet = net("10.244.0.0/16"));
    set(6, &|r| r.public = ip("172.31.250.11"));
    all.into_iter().collect()
}

#[test]
fn claims_that_collide_are_left_out_and_told() {
    let (plan, entries) = planned(&own(), &underlay(), &colliding().into_iter().collect());
    let routes = entries.values().filter(|e| matches!(e, Entry::Route(_)));
    assert_eq!(routes.count(), 1);
    expect![[r#"
        node n3 is left out: 10.244.2.0/24 is another node's too
        node n4 is left out: hardware address 0a:8a:fa:bb:ab:b7 is another's too
        node n5 is left out: 10.244.0.0/16 overlaps with this node's own
        node n6 is left out: 172.31.250.11 is this node's own address"#]]
    .assert_eq(&plan.problems.join("\n"));
}

#[test]
fn what_other_nodes_tell() {
    let backend = settings("/x".into()).backend;
    for (change, expect) in [
        (json!({}), ""),
        (
            json!({node::BACKEND_TYPE: "host-gw"}),
            "node n2: flannel.alpha.coreos.com/backend-type is \"host-gw\", this node's is \"vxlan\"",
        ),
        (
            json!({node::BACKEND_DATA: "{"}),
            "node n2: flannel.alpha.coreos.com/backend-data \"{\": EOF while parsing an object at line 1 column 1",
        ),
        (
            json!({node::BACKEND_DATA: r#"{"VNI":7,"VtepMAC":"0a:00:00:00:00:01"}"#}),
            "node n2: flannel.alpha.coreos.com/backend-data: VNI is 7, ours is 1",
        ),
        (
            json!({node::BACKEND_DATA: r#"{"VNI":1,"VtepMAC":"x"}"#}),
            "node n2: flannel.alpha.coreos.com/backend-data: VtepMAC: not a hardware address of six hexadecimal bytes: \"x\"",
        ),
        (
            json!({node::BACKEND_DATA: r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#}),
            "node n2: flannel.alpha.coreos.com/backend-data: VtepMAC: ff:ff:ff:ff:ff:ff is not one device's",
        ),
        (
            json!({node::PUBLIC_IP: "fd00::1"}),
            "node n2: flannel.alpha.coreos.com/public-ip: \"fd00::1\" is not an IPv4 address",
        ),
        (
            json!({node::PUBLIC_IPV6: "::"}),
            "node n2: flannel.alpha.coreos.com/public-ipv6: \"::\" is not an IPv6 address",
        ),
    ] {
        let mut value = node_json(2);
        for (key, text) in change.as_object().unwrap() {
            value["metadata"]["annotations"][key] = text.clone();
        }
        let mut problems = Vec::new();
        node::peer(&node(value), &backend, &mut problems);
        assert_eq!(problems.join("|"), expect);
    }
    // Told in parts: nothing wrong, only not yet.
    let mut value = node_json(2);
    value["spec"] = json!({});
    let mut problems = Vec::new();
    let peer = node::peer(&node(value), &backend, &mut problems);
    assert_eq!(peer, Peer::default());
    assert_eq!(problems, [""; 0]);
    let mut value = node_json(2);
    value["spec"]["podCIDRs"] = json!(["10.0.0.0/x"]);
    assert_eq!(
        node::own(&node(value)).unwrap_err(),
        "spec.podCIDRs: \"10.0.0.0/x\" is not a network (ADDRESS/LENGTH)"
    );
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

#[test]
fn applied_twice_changes_nothing_and_the_conflist_comes_last() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let mut host = fake(&kernel);
    let first = sync(&mut host, &dir, &peers(&[2, 3]));
    assert_eq!(first.failures, [""; 0]);
    assert!(first.changes > 0);
    let text = std::fs::read_to_string(dir.path().join("net.d/10-seaway.conflist")).unwrap();
    let before = dump(&kernel);
    let second = sync(&mut host, &dir, &peers(&[2, 3]));
    assert_eq!(second.changes, 0);
    assert_eq!(dump(&kernel), before);
    // A node leaves, another comes; all leave.
    sync(&mut host, &dir, &peers(&[3, 4]));
    assert!(!kernel.dump().contains("10.244.2.0"));
    sync(&mut host, &dir, &peers(&[2, 3]));
    assert_eq!(dump(&kernel), before);
    let pods = Pods {
        mtu: 1430,
        subnets: own().subnets,
    };
    assert_eq!(text, files::conflist(&settings(dir.path().into()), &pods));
    let names: Vec<_> = std::fs::read_dir(dir.path().join("net.d"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["10-seaway.conflist"]);
}

#[test]
fn a_failure_at_any_step_is_mended_by_the_next_sync() {
    let dir = tempfile::tempdir().unwrap();
    let good = {
        let kernel = FakeKernel::new();
        sync(&mut fake(&kernel), &dir, &peers(&[2, 3]));
        dump(&kernel)
    };
    for step in 1.. {
        for failing in [Failing::Once(step), Failing::From(step)] {
            let dir = tempfile::tempdir().unwrap();
            let kernel = FakeKernel::new();
            let mut host = fake(&kernel);
            kernel.fail(failing);
            let first = sync(&mut host, &dir, &peers(&[2, 3]));
            let written = dir.path().join("net.d/10-seaway.conflist").exists();
            if first.failures.is_empty() {
                assert!(step > 20 && written, "{step}");
                return;
            }
            assert!(!written, "{:?}", first.failures);
            kernel.fail(Failing::Never);
            let second = sync(&mut host, &dir, &peers(&[2, 3]));
            assert_eq!(second.failures, [""; 0], "after {:?}", first.failures);
            assert_eq!(dump(&kernel), good, "after {:?}", first.failures);
        }
    }
}

type Break<'a> = &'a dyn Fn(&mut FakeHost);

#[test]
fn what_someone_broke_is_mended_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let mut host = fake(&kernel);
    sync(&mut host, &dir, &peers(&[2]));
    let good = dump(&kernel);
    let foreign = Mac([2, 0, 0, 0, 0, 9]);
    let breaks: [(&str, Break<'_>); 6] = [
        ("= link seaway.1 up\n", &|h| {
            h.set_link("seaway.1", &LinkChange::down()).unwrap();
        }),
        (
            "= link seaway.1 mtu 1450 address 0a:ed:6d:c3:a3:b9\n",
            &|h| {
                let change = LinkChange {
                    mtu: Some(1400),
                    mac: Some(foreign),
                    ..LinkChange::default()
                };
                h.set_link("seaway.1", &change).unwrap();
            },
        ),
        (
            "- addr 192.0.2.1/32 dev seaway.1\n+ addr 10.244.1.0/32 dev seaway.1\n",
            &|h| {
                h.del_addr("seaway.1", net("10.244.1.0/32")).unwrap();
                h.add_addr("seaway.1", &Addr::new(net("192.0.2.1/32")))
                    .unwrap();
            },
        ),
        (
            "- neigh 192.0.2.1 lladdr 02:00:00:00:00:09 dev seaway.1\n",
            &|h| {
                let neigh = Neigh::permanent(ip("192.0.2.1"), foreign);
                h.replace_neigh("seaway.1", &neigh).unwrap();
            },
        ),
        (
            "- fdb 02:00:00:00:00:09 dst 192.0.2.1 dev seaway.1\n",
            &|h| {
                let entry = FdbEntry {
                    mac: foreign,
                    dst: Some(ip("192.0.2.1")),
                };
                h.replace_fdb("seaway.1", &entry).unwrap();
            },
        ),
        (
            "+ fdb 0a:8a:fa:bb:ab:b7 dst 172.31.250.12 dev seaway.1\n",
            &|h| {
                let mut entry = h.fdb("seaway.1").unwrap().remove(0);
                entry.dst = Some(ip("192.0.2.1"));
                h.replace_fdb("seaway.1", &entry).unwrap();
            },
        ),
    ];
    for (expect, break_it) in breaks {
        break_it(&mut host);
        let settings = settings(dir.path().into());
        let (plan, entries) = planned(&own(), &underlay(), &peers(&[2]));
        let seen = observe(&mut host, &settings, &plan.desired).unwrap();
        let changes = diff::diff(&settings, &plan.desired, &entries, &seen);
        let text: String = changes.iter().map(|c| format!("{c}\n")).collect();
        assert_eq!(text, expect);
        assert!(apply::apply(&mut host, &changes).is_empty());
        assert_eq!(dump(&kernel), good);
    }
}

fn vxlan_of(plan: &Plan) -> NewVxlan {
    match &plan.desired.devices["seaway.1"].kind {
        DeviceKind::Vxlan { new, .. } => new.clone(),
        DeviceKind::WireGuard(_) => panic!(),
    }
}

#[test]
fn a_device_is_made_anew_only_if_it_must() {
    let want = planned(&own(), &underlay(), &peers(&[]));
    let fitting = vxlan_of(&want.0);
    for (new, anew) in [
        (fitting.clone(), false),
        (
            NewVxlan {
                mtu: Some(1300),
                mac: None,
                ..fitting.clone()
            },
            false,
        ),
        (
            NewVxlan {
                vni: 2,
                ..fitting.clone()
            },
            true,
        ),
        (
            NewVxlan {
                port: 4789,
                ..fitting.clone()
            },
            true,
        ),
        (
            NewVxlan {
                local: Some(ip("172.31.250.99")),
                ..fitting.clone()
            },
            true,
        ),
        (
            NewVxlan {
                learning: true,
                ..fitting.clone()
            },
            true,
        ),
        (
            NewVxlan {
                gbp: true,
                ..fitting
            },
            true,
        ),
    ] {
        let mut host = fake(&FakeKernel::new());
        host.add_vxlan(&new).unwrap();
        let settings = settings("/x".into());
        let seen = observe(&mut host, &settings, &want.0.desired).unwrap();
        let text = lines(&want, &seen);
        assert_eq!(text.contains("- link seaway.1\n"), anew, "{new:?}\n{text}");
        let changes = diff::diff(&settings, &want.0.desired, &want.1, &seen);
        assert!(apply::apply(&mut host, &changes).is_empty());
        let seen = observe(&mut host, &settings, &want.0.desired).unwrap();
        assert_eq!(lines(&want, &seen), "");
    }
}

#[test]
fn a_node_that_forwards_keeps_listening_to_routers() {
    for (there, expect) in [("1", "2"), ("0", "0"), ("2", "2")] {
        let dir = tempfile::tempdir().unwrap();
        let mut host = fake(&FakeKernel::new());
        host.preset_sysctl("net/ipv6/conf/eth0/accept_ra", there);
        sync(&mut host, &dir, &peers(&[]));
        let now = host.sysctl("net/ipv6/conf/eth0/accept_ra").unwrap();
        assert_eq!(now, expect);
    }
}

#[test]
fn another_device_in_the_way_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = fake(&FakeKernel::new());
    let flannel = NewVxlan {
        name: "flannel.1".into(),
        ..vxlan_of(&planned(&own(), &underlay(), &peers(&[])).0)
    };
    host.add_vxlan(&flannel).unwrap();
    let synced = sync(&mut host, &dir, &peers(&[]));
    let named = synced
        .failures
        .iter()
        .any(|f| f.contains("flannel.1 has VNI 1 and port 8472 already"));
    assert!(named || synced.failures.is_empty(), "{:?}", synced.failures);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn from_any_nodes_to_any_nodes(
        before in prop::collection::btree_set(2_u8..9, 0..6),
        after in prop::collection::btree_set(2_u8..9, 0..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let kernel = FakeKernel::new();
        let mut host = fake(&kernel);
        let of = |set: std::collections::BTreeSet<u8>| peers(&set.into_iter().collect::<Vec<_>>());
        let after = of(after);
        sync(&mut host, &dir, &of(before));
        let there = sync(&mut host, &dir, &after);
        prop_assert_eq!(there.failures, [""; 0]);
        prop_assert_eq!(sync(&mut host, &dir, &after).changes, 0);
        let fresh = FakeKernel::new();
        sync(&mut fake(&fresh), &dir, &after);
        prop_assert_eq!(dump(&kernel), dump(&fresh));
    }
}

#[test]
fn lists_and_changes_of_nodes() {
    let settings = settings("/x".into());
    let mut nodes = Nodes::default();
    let mut take = |event| nodes.take(&settings, event);
    let listed = |i| Event::InitApply(node(node_json(i)));
    let nothing = News::default();
    let all = News {
        all: true,
        ..News::default()
    };
    let some = |name: &str| News {
        names: [name.to_owned()].into(),
        ..News::default()
    };
    assert_eq!(take(Event::Init), nothing);
    assert_eq!(
        (take(listed(1)), take(listed(2))),
        (nothing.clone(), nothing.clone())
    );
    assert_eq!(take(Event::InitDone), all);
    // The same list again changes nothing, nor does what does not concern us.
    assert_eq!(take(Event::Init), nothing);
    assert_eq!(
        (take(listed(2)), take(listed(1))),
        (nothing.clone(), nothing.clone())
    );
    assert_eq!(take(Event::InitDone), nothing);
    let mut value = node_json(2);
    value["metadata"]["annotations"]["other/annotation"] = json!("y");
    assert_eq!(take(Event::Apply(node(value))), nothing);
    assert_eq!(take(Event::Apply(node(node_json(3)))), some("n3"));
    // One that says nonsense is told of by its name.
    let mut value = node_json(3);
    value["metadata"]["annotations"][node::PUBLIC_IP] = json!("x");
    assert_eq!(take(Event::Apply(node(value))), some("n3"));
    assert_eq!(take(Event::Delete(node(node_json(3)))), some("n3"));
    assert_eq!(take(Event::Delete(node(node_json(3)))), nothing);
    // This node's deletion is not a reason to do anything; its change concerns everything.
    assert_eq!(take(Event::Delete(node(node_json(1)))), nothing);
    let mut value = node_json(1);
    value["spec"]["podCIDRs"] = json!(["10.244.9.0/24"]);
    assert_eq!(take(Event::Apply(node(value))), all);
}

const NAT: &str = "# Generated
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:SEAWAY-POSTRTG - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -m comment --comment \"seaway masquerade\" -j SEAWAY-POSTRTG
-A SEAWAY-POSTRTG -j RETURN
COMMIT
";

#[test]
fn chains_of_iptables() {
    let cidrs = settings("/x".into()).cluster_cidrs;
    let chains = firewall::chains(linux::iptables::Family::V4, &cidrs);
    let [nat, forward] = chains.as_slice() else {
        panic!()
    };
    // Nothing there yet.
    expect![[r#"
        *nat
        :SEAWAY-POSTRTG - [0:0]
        -A SEAWAY-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
        -A SEAWAY-POSTRTG -s 10.244.0.0/16 -d 10.244.0.0/16 -j RETURN
        -A SEAWAY-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
        -A POSTROUTING -m comment --comment "seaway masquerade" -j SEAWAY-POSTRTG
        COMMIT
    "#]]
    .assert_eq(&firewall::text(nat, &Saved::of(nat, ""), None).unwrap());
    let good = ["-A SEAWAY-POSTRTG -j RETURN".to_owned()];
    // As it was left; then with changed rules, without its call, called twice.
    let of = |text: &str| firewall::text(nat, &Saved::of(nat, text), Some(&good));
    assert_eq!(of(NAT), None);
    assert!(of(&NAT.replace("-j RETURN", "-j ACCEPT")).is_some());
    let call = NAT.lines().find(|l| l.contains("seaway masq")).unwrap();
    let uncalled = of(&NAT.replace(call, "")).unwrap();
    assert!(uncalled.contains(call), "{uncalled}");
    let twice = of(&NAT.replace(call, &format!("{call}\n{call}"))).unwrap();
    assert!(
        twice.contains(&call.replace("-A ", "-D ")) && !twice.contains(call),
        "{twice}"
    );
    // FORWARD lets pass already, or not.
    let closed = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
    let of = |text: &str| firewall::text(forward, &Saved::of(forward, text), None);
    assert_eq!(of(&closed.replace("DROP", "ACCEPT")), None);
    expect![[r#"
        *filter
        :SEAWAY-FWD - [0:0]
        -A SEAWAY-FWD -s 10.244.0.0/16 -j ACCEPT
        -A SEAWAY-FWD -d 10.244.0.0/16 -j ACCEPT
        -A FORWARD -m comment --comment "seaway pods" -j SEAWAY-FWD
        COMMIT
    "#]]
    .assert_eq(&of(closed).unwrap());
    expect![[r#"
        *nat
        :SEAWAY-POSTRTG - [0:0]
        -D POSTROUTING -m comment --comment "seaway masquerade" -j SEAWAY-POSTRTG
        -X SEAWAY-POSTRTG
        COMMIT
    "#]]
    .assert_eq(&firewall::text_to_remove(nat, &Saved::of(nat, NAT)).unwrap());
    assert_eq!(firewall::text_to_remove(nat, &Saved::of(nat, "")), None);
    let v6 = firewall::chains(linux::iptables::Family::V6, &cidrs);
    assert!(
        v6[0]
            .rules
            .last()
            .unwrap()
            .contains("! -d ff00::/8 -j MASQUERADE")
    );
    assert!(firewall::chains(linux::iptables::Family::V6, &cidrs[..1]).is_empty());
}

/// A change of one node costs what it changes: the kernel is asked for nothing, and what is made is
/// what a full comparison would make.
#[test]
fn one_node_at_a_time_ends_where_all_at_once_does() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path().into());
    let (kernel, fresh) = (FakeKernel::new(), FakeKernel::new());
    let mut host = fake(&kernel);
    let mut peers = peers(&[2, 3]);
    let (_, mut overlay) = sync_with(&settings, &mut host, &peers);
    let step = |peers: &mut Peers, overlay: &mut Overlay, host: &mut FakeHost, change| {
        let (name, peer): (&str, Option<Peer>) = change;
        let names = peers.set(name, peer);
        kernel.fail(Failing::Never);
        let synced = overlay.nodes(host, peers, &names);
        assert_eq!(synced.failures, [""; 0]);
        assert_eq!(synced.changes, kernel.changes());
        synced.changes
    };
    let new = |i: u8| Some(self::peers(&[i]).entitled(&format!("n{i}"), |_| {}));
    // Three entries for each family.
    assert_eq!(step(&mut peers, &mut overlay, &mut host, ("n4", new(4))), 6);
    assert_eq!(step(&mut peers, &mut overlay, &mut host, ("n2", None)), 6);
    // Another outer address: the forwarding entry alone.
    let mut moved = new(3).unwrap();
    moved.v4.as_mut().unwrap().public = ip("172.31.250.33");
    assert_eq!(
        step(&mut peers, &mut overlay, &mut host, ("n3", Some(moved))),
        1
    );
    sync_with(&settings, &mut fake(&fresh), &peers);
    assert_eq!(dump(&kernel), dump(&fresh));
    // Whoever claims the same waits until the first goes.
    let mut same = new(5).unwrap();
    same.v6 = None;
    same.v4.as_mut().unwrap().subnet = net("10.244.4.0/24");
    step(&mut peers, &mut overlay, &mut host, ("n5", Some(same)));
    let problems: Vec<_> = overlay.problems().cloned().collect();
    assert_eq!(
        problems,
        ["node n5 is left out: 10.244.4.0/24 is another node's too"]
    );
    step(&mut peers, &mut overlay, &mut host, ("n4", None));
    assert_eq!(overlay.problems().count(), 0);
    let fresh = FakeKernel::new();
    sync_with(&settings, &mut fake(&fresh), &peers);
    assert_eq!(dump(&kernel), dump(&fresh));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever nodes come, go and claim, in whatever order: the same as all at once.
    #[test]
    fn any_order_of_changes_of_nodes(
        changes in prop::collection::vec((2_u8..7, 2_u8..7, any::<bool>()), 1..20),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path().into());
        let (kernel, fresh) = (FakeKernel::new(), FakeKernel::new());
        let mut host = fake(&kernel);
        let mut peers = Peers::default();
        let (_, mut overlay) = sync_with(&settings, &mut host, &peers);
        for (i, claim, there) in changes {
            let name = format!("n{i}");
            let mut peer = self::peers(&[i]).entitled(&name, |_| {});
            // Some claim the network of another.
            peer.v4.as_mut().unwrap().subnet = net(&format!("10.244.{claim}.0/24"));
            let names = peers.set(&name, there.then_some(peer));
            let synced = overlay.nodes(&mut host, &peers, &names);
            prop_assert_eq!(synced.failures, [""; 0]);
        }
        let (_, all) = sync_with(&settings, &mut fake(&fresh), &peers);
        prop_assert_eq!(dump(&kernel), dump(&fresh));
        let words = |o: &Overlay| o.problems().cloned().collect::<Vec<_>>();
        prop_assert_eq!(words(&overlay), words(&all));
        prop_assert_eq!(overlay.all(&mut host, &own(), &peers).unwrap().changes, 0);
    }
}

/// What the kernel tells is mended for itself, with nothing listed.
#[test]
fn told_entries_are_mended_alone() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let mut host = fake(&kernel);
    let settings = settings(dir.path().into());
    let (_, mut overlay) = sync_with(&settings, &mut host, &peers(&[2]));
    let good = dump(&kernel);
    let (_, entries) = planned(&own(), &underlay(), &peers(&[2]));
    for (key, entry) in &entries {
        // As it should be: our own echo.
        assert_eq!(overlay.told(&mut host, key, Some(entry)).changes, 0);
        // Removed.
        apply::apply(&mut host, &[diff::Change::Del(entry.clone())]);
        assert_ne!(dump(&kernel), good);
        assert_eq!(overlay.told(&mut host, key, None).failures, [""; 0]);
        assert_eq!(dump(&kernel), good);
    }
    // One of nobody's.
    let foreign = Entry::Neigh(
        "seaway.1".into(),
        Neigh::permanent(ip("192.0.2.1"), Mac([2, 0, 0, 0, 0, 9])),
    );
    apply::apply(&mut host, &[diff::Change::Set(foreign.clone())]);
    overlay.told(&mut host, &foreign.key(), Some(&foreign));
    assert_eq!(dump(&kernel), good);
    // Its echo.
    let synced = overlay.told(&mut host, &foreign.key(), None);
    assert_eq!(synced, Synced::default());
}

fn with_backend(backend: Backend) -> Settings {
    Settings {
        backend,
        ..settings("/x".into())
    }
}

/// On the same link as nodes 1 to 9; 192.0.2.0/24 is behind a router.
fn underlay_with_routes() -> Underlay {
    Underlay {
        routes: vec![
            (net("0.0.0.0/0"), false),
            (net("172.31.250.0/24"), true),
            (net("172.31.250.13/32"), false),
            (net("::/0"), false),
            (net("fd00:31:250::/64"), true),
        ],
        ..underlay()
    }
}

#[test]
fn direct_routing_leaves_out_the_tunnel_on_the_same_link() {
    let settings = with_backend(Backend::Vxlan(Vxlan {
        direct_routing: true,
        ..Vxlan::default()
    }));
    let own = Own {
        subnets: vec![net("10.244.1.0/24")],
        ..own()
    };
    check_with(
        &settings,
        &planned_with(&settings, &own, &underlay_with_routes(), &peers(&[2, 3])),
        expect![[r#"
            + link seaway.1 vni 1 port 8472 local 172.31.250.11 mtu 1450
            = link seaway.1 no link-local
            = link seaway.1 up
            + addr 10.244.1.0/32 dev seaway.1
            = sysctl net/ipv4/ip_forward 1
            + fdb 0a:ac:89:e8:13:04 dst 172.31.250.13 dev seaway.1
            + neigh 10.244.3.0 lladdr 0a:ac:89:e8:13:04 dev seaway.1
            + route 10.244.2.0/24 via 172.31.250.12 dev eth0
            + route 10.244.3.0/24 via 10.244.3.0 dev seaway.1
            @ flannel.alpha.coreos.com/backend-data={"VNI":1,"VtepMAC":"0a:ed:6d:c3:a3:b9"}
            @ flannel.alpha.coreos.com/backend-type=vxlan
            @ flannel.alpha.coreos.com/kube-subnet-manager=true
            @ flannel.alpha.coreos.com/public-ip=172.31.250.11
            pods mtu 1450 10.244.1.0/24
        "#]],
    );
}

/// Node `n<i>` with another backend's annotations.
fn node_with(i: u8, backend: &Backend, data: &str) -> Peer {
    let mut value = node_json(i);
    let annotations = &mut value["metadata"]["annotations"];
    annotations[node::BACKEND_TYPE] = json!(backend.name());
    annotations[node::BACKEND_DATA] = json!(data);
    annotations[node::BACKEND_V6_DATA] = json!(data);
    let mut problems = Vec::new();
    let peer = node::peer(&node(value), backend, &mut problems);
    assert_eq!(problems, [""; 0]);
    peer
}

#[test]
fn host_gw_is_routes_through_the_nodes() {
    let settings = with_backend(Backend::HostGw(HostGw::default()));
    let peer = |i| (format!("n{i}"), node_with(i, &settings.backend, "null"));
    let peers = [peer(2), peer(3)].into_iter().collect();
    check_with(
        &settings,
        &planned_with(&settings, &own(), &underlay_with_routes(), &peers),
        expect![[r#"
            = sysctl net/ipv4/ip_forward 1
            = sysctl net/ipv6/conf/all/forwarding 1
            + route 10.244.2.0/24 via 172.31.250.12 dev eth0
            + route fd00:10:244:2::/64 via fd00:31:250::12 dev eth0
            + route fd00:10:244:3::/64 via fd00:31:250::13 dev eth0
            @ flannel.alpha.coreos.com/backend-data=null
            @ flannel.alpha.coreos.com/backend-type=host-gw
            @ flannel.alpha.coreos.com/backend-v6-data=null
            @ flannel.alpha.coreos.com/kube-subnet-manager=true
            @ flannel.alpha.coreos.com/public-ip=172.31.250.11
            @ flannel.alpha.coreos.com/public-ipv6=fd00:31:250::11
            ! node n3 is left out: 172.31.250.13 is not on the link eth0 itself
            pods mtu 1500 10.244.1.0/24 fd00:10:244:1::/64
        "#]],
    );
}

fn wireguard(mode: WireGuardMode) -> Settings {
    with_backend(Backend::WireGuard(WireGuard {
        mode,
        psk: Some(WgKey([9; 32])),
        keepalive: 25,
        private: Some(WgKey([7; 32])),
        public: Some(WgKey([1; 32])),
        ..WireGuard::default()
    }))
}

fn wireguard_peers(settings: &Settings) -> Peers {
    let peer = |i| {
        let data = format!(r#"{{"PublicKey":"{}"}}"#, WgKey([i; 32]));
        (format!("n{i}"), node_with(i, &settings.backend, &data))
    };
    [peer(2), peer(3)].into_iter().collect()
}

#[test]
fn wireguard_with_a_device_for_each_family() {
    let settings = wireguard(WireGuardMode::Separate);
    let peers = wireguard_peers(&settings);
    check_with(
        &settings,
        &planned_with(&settings, &own(), &underlay(), &peers),
        expect![[r#"
            + link seaway-wg wireguard mtu 1420
            = link seaway-wg key port 51820
            = link seaway-wg up
            + addr 10.244.1.0/32 dev seaway-wg
            + link seaway-wg-v6 wireguard mtu 1420
            = link seaway-wg-v6 key port 51821
            = link seaway-wg-v6 up
            + addr fd00:10:244:1::/128 dev seaway-wg-v6
            = sysctl net/ipv4/ip_forward 1
            = sysctl net/ipv6/conf/all/forwarding 1
            = sysctl net/ipv6/conf/seaway-wg-v6/accept_ra 0
            + peer AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= dev seaway-wg endpoint 172.31.250.12:51820 allowed 10.244.2.0/24
            + peer AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM= dev seaway-wg endpoint 172.31.250.13:51820 allowed 10.244.3.0/24
            + peer AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= dev seaway-wg-v6 endpoint [fd00:31:250::12]:51821 allowed fd00:10:244:2::/64
            + peer AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM= dev seaway-wg-v6 endpoint [fd00:31:250::13]:51821 allowed fd00:10:244:3::/64
            + route 10.244.2.0/24 dev seaway-wg
            + route 10.244.3.0/24 dev seaway-wg
            + route fd00:10:244:2::/64 dev seaway-wg-v6
            + route fd00:10:244:3::/64 dev seaway-wg-v6
            @ flannel.alpha.coreos.com/backend-data={"PublicKey":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}
            @ flannel.alpha.coreos.com/backend-type=wireguard
            @ flannel.alpha.coreos.com/backend-v6-data={"PublicKey":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}
            @ flannel.alpha.coreos.com/kube-subnet-manager=true
            @ flannel.alpha.coreos.com/public-ip=172.31.250.11
            @ flannel.alpha.coreos.com/public-ipv6=fd00:31:250::11
            pods mtu 1420 10.244.1.0/24 fd00:10:244:1::/64
        "#]],
    );
}

#[test]
fn wireguard_with_one_device_for_both() {
    let v6_only = Underlay {
        v4: None,
        ..underlay()
    };
    for (mode, under, expect) in [
        (
            WireGuardMode::Auto,
            underlay(),
            expect![[r#"
            peer AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= dev seaway-wg endpoint 172.31.250.12:51820 allowed 10.244.2.0/24 allowed fd00:10:244:2::/64
            peer AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM= dev seaway-wg endpoint 172.31.250.13:51820 allowed 10.244.3.0/24 allowed fd00:10:244:3::/64
            route 10.244.2.0/24 dev seaway-wg
            route 10.244.3.0/24 dev seaway-wg
            route fd00:10:244:2::/64 dev seaway-wg
            route fd00:10:244:3::/64 dev seaway-wg
            [V4(Ipv4Network { addr: 10.244.1.0, prefix: 32 }), V6(Ipv6Network { addr: fd00:10:244:1::, prefix: 128 })]
        "#]],
        ),
        (
            WireGuardMode::Auto,
            v6_only,
            expect![[r#"
            peer AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= dev seaway-wg endpoint [fd00:31:250::12]:51820 allowed 10.244.2.0/24 allowed fd00:10:244:2::/64
            peer AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM= dev seaway-wg endpoint [fd00:31:250::13]:51820 allowed 10.244.3.0/24 allowed fd00:10:244:3::/64
            route 10.244.2.0/24 dev seaway-wg
            route 10.244.3.0/24 dev seaway-wg
            route fd00:10:244:2::/64 dev seaway-wg
            route fd00:10:244:3::/64 dev seaway-wg
            [V4(Ipv4Network { addr: 10.244.1.0, prefix: 32 }), V6(Ipv6Network { addr: fd00:10:244:1::, prefix: 128 })]
        "#]],
        ),
        (
            WireGuardMode::V6,
            underlay(),
            expect![[r#"
            peer AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= dev seaway-wg endpoint [fd00:31:250::12]:51820 allowed 10.244.2.0/24 allowed fd00:10:244:2::/64
            peer AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM= dev seaway-wg endpoint [fd00:31:250::13]:51820 allowed 10.244.3.0/24 allowed fd00:10:244:3::/64
            route 10.244.2.0/24 dev seaway-wg
            route 10.244.3.0/24 dev seaway-wg
            route fd00:10:244:2::/64 dev seaway-wg
            route fd00:10:244:3::/64 dev seaway-wg
            [V4(Ipv4Network { addr: 10.244.1.0, prefix: 32 }), V6(Ipv6Network { addr: fd00:10:244:1::, prefix: 128 })]
        "#]],
        ),
    ] {
        let settings = wireguard(mode);
        let peers = wireguard_peers(&settings);
        let (plan, entries) = planned_with(&settings, &own(), &under, &peers);
        let mut text: String = entries.values().map(|entry| format!("{entry}\n")).collect();
        text += &format!("{:?}\n", plan.desired.devices["seaway-wg"].addrs);
        // What is told is of the family that the annotation says, if the node has it at all.
        let told = |name: &str| plan.annotations.get(name).cloned().flatten();
        let v4 = under.v4.map(|ip| ip.to_string());
        assert_eq!(told(node::PUBLIC_IP), v4);
        assert_eq!(told(node::PUBLIC_IPV6).as_deref(), Some("fd00:31:250::11"));
        assert!(told(node::BACKEND_DATA).is_some() && told(node::BACKEND_V6_DATA).is_some());
        expect.assert_eq(&text);
    }
}

#[test]
fn wireguard_is_made_once_and_its_far_ends_may_move() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let mut host = fake(&kernel);
    let settings = Settings {
        cni_conf_dir: dir.path().join("net.d"),
        subnet_file: None,
        ..wireguard(WireGuardMode::Separate)
    };
    let peers = wireguard_peers(&settings);
    let (synced, mut overlay) = sync_with(&settings, &mut host, &peers);
    assert_eq!(synced.failures, [""; 0]);
    let again = overlay.all(&mut host, &own(), &peers).unwrap();
    assert_eq!(again, Synced::default());
    // It was heard of from elsewhere.
    let mut far = host.wireguard("seaway-wg").unwrap().peers.remove(0);
    far.endpoint = Some("192.0.2.9:1".parse().unwrap());
    host.set_wireguard_peer("seaway-wg", &far).unwrap();
    let again = overlay.all(&mut host, &own(), &peers).unwrap();
    assert_eq!(again, Synced::default());
    // Someone took networks and key away.
    far.allowed.clear();
    host.set_wireguard_peer("seaway-wg", &far).unwrap();
    host.set_wireguard("seaway-wg", &Default::default())
        .unwrap();
    let again = overlay.all(&mut host, &own(), &peers).unwrap();
    assert_eq!((again.changes, again.failures.len()), (2, 0));
}

#[test]
fn the_address_that_is_told() {
    let overwrite = (node::PUBLIC_IP_OVERWRITE, "192.0.2.1");
    let chosen = (node::NODE_PUBLIC_IP, "192.0.2.3");
    let broken = (node::PUBLIC_IP_OVERWRITE, "fd00::1");
    for (annotations, flag, expect) in [
        (&[][..], None, "172.31.250.11"),
        (&[chosen], None, "192.0.2.3"),
        (&[chosen], Some("192.0.2.2"), "192.0.2.2"),
        (&[overwrite, chosen], Some("192.0.2.2"), "192.0.2.1"),
        (&[broken], None, "172.31.250.11"),
    ] {
        let mut own = own();
        own.annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let settings = Settings {
            public: flag.into_iter().map(ip).collect(),
            ..settings("/x".into())
        };
        let plan = plan::plan(&settings, &own, &underlay());
        let told = plan.annotations[node::PUBLIC_IP].as_deref();
        assert_eq!(told, Some(expect), "{annotations:?} {flag:?}");
        // IPv6 has its own.
        let told = plan.annotations[node::PUBLIC_IPV6].as_deref();
        assert_eq!(told, Some("fd00:31:250::11"));
    }
}

#[test]
fn old_flannel_tells_no_vni_and_one_without_a_family_tells_null() {
    let backend = settings("/x".into()).backend;
    let read = |key: &str, text: &str| {
        let mut value = node_json(2);
        value["metadata"]["annotations"][key] = json!(text);
        let mut problems = Vec::new();
        let peer = node::peer(&node(value), &backend, &mut problems);
        assert_eq!(problems, [""; 0]);
        (peer.v4.is_some(), peer.v6.is_some())
    };
    let old = r#"{"VtepMAC":"0a:00:00:00:00:01"}"#;
    assert_eq!(read(node::BACKEND_DATA, old), (true, true));
    assert_eq!(read(node::BACKEND_V6_DATA, "null"), (true, false));
    // Not flannel's nor ours.
    assert_eq!(read(node::SUBNET_MANAGER, "false"), (false, false));
}

#[test]
fn a_kernel_that_spoils_checksums_does_not_get_to() {
    for (kernel, broken) in [("5.4.0", true), ("6.1.0", false)] {
        let dir = tempfile::tempdir().unwrap();
        let mut host = fake(&FakeKernel::new());
        let settings = Settings {
            kernel: kernel.into(),
            ..settings(dir.path().into())
        };
        let (_, mut overlay) = sync_with(&settings, &mut host, &peers(&[]));
        assert_eq!(host.tx_checksum("seaway.1").unwrap(), !broken);
        host.set_tx_checksum("seaway.1", true).unwrap();
        overlay.all(&mut host, &own(), &peers(&[])).unwrap();
        assert_eq!(host.tx_checksum("seaway.1").unwrap(), !broken);
    }
}

#[test]
fn files_for_plugins() {
    let pods = Pods {
        mtu: 1430,
        subnets: own().subnets,
    };
    let mut settings = settings("/x".into());
    expect![[r#"
        FLANNEL_NETWORK=10.244.0.0/16
        FLANNEL_SUBNET=10.244.1.1/24
        FLANNEL_IPV6_NETWORK=fd00:10:244::/56
        FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64
        FLANNEL_MTU=1430
        FLANNEL_IPMASQ=false
    "#]]
    .assert_eq(&files::subnet_env(&settings, &pods));
    settings.masquerade = true;
    settings.cluster_cidrs = vec![net("10.0.0.0/16"), net("10.1.0.0/16")];
    let v4 = Pods {
        mtu: 1450,
        subnets: vec![net("10.0.9.0/24")],
    };
    expect![[r#"
        FLANNEL_NETWORK=10.0.0.0/16,10.1.0.0/16
        FLANNEL_SUBNET=10.0.9.1/24
        FLANNEL_MTU=1450
        FLANNEL_IPMASQ=true
    "#]]
    .assert_eq(&files::subnet_env(&settings, &v4));
}

#[test]
fn which_link_is_the_underlay() {
    let mut host = fake(&FakeKernel::new());
    for (name, addr) in [("eth1", "192.0.2.11/24"), ("wan0", "198.51.100.7/24")] {
        host.add_bridge(&NewBridge {
            name: name.into(),
            ..NewBridge::default()
        })
        .unwrap();
        host.set_link(name, &LinkChange::up()).unwrap();
        host.add_addr(name, &Addr::new(net(addr))).unwrap();
    }
    let default = linux::route::Route::to(net("0.0.0.0/0"));
    host.add_route(&default.via(ip("198.51.100.1")).dev("wan0"))
        .unwrap();
    let own_ips = own().ips;
    let mut find = |iface: IfaceChoice, public: &[&str], ips: &[IpAddr], chosen: Option<&str>| {
        let settings = Settings {
            iface,
            public: public.iter().map(|text| ip(text)).collect(),
            ..settings("/x".into())
        };
        let mut own = Own {
            ips: ips.to_vec(),
            ..Own::default()
        };
        own.annotations
            .extend(chosen.map(|text| (node::NODE_PUBLIC_IP.to_owned(), text.to_owned())));
        match underlay::find(&mut host, &settings, &own) {
            Ok(underlay) => format!("{} {:?}", underlay.dev, underlay.v4.unwrap()),
            Err(why) => why.to_string(),
        }
    };
    let none = IfaceChoice::default;
    assert_eq!(find(none(), &[], &own_ips, None), "eth0 172.31.250.11");
    assert_eq!(find(none(), &[], &[], None), "wan0 198.51.100.7");
    assert_eq!(
        find(none(), &["192.0.2.11"], &own_ips, None),
        "eth1 192.0.2.11"
    );
    assert_eq!(
        find(none(), &[], &own_ips, Some("192.0.2.11")),
        "eth1 192.0.2.11"
    );
    // An address that no link has (NAT) chooses none.
    assert_eq!(
        find(none(), &["203.0.113.1"], &[], None),
        "wan0 198.51.100.7"
    );
    let names = |all: &[&str]| IfaceChoice {
        names: all.iter().map(|s| (*s).to_owned()).collect(),
        ..none()
    };
    assert_eq!(
        find(names(&["eth1"]), &[], &own_ips, None),
        "eth1 192.0.2.11"
    );
    assert_eq!(
        find(names(&["no", "198.51.100.7"]), &[], &own_ips, None),
        "wan0 198.51.100.7"
    );
    let pattern = |text: &str| IfaceChoice {
        patterns: vec![Pattern::new(text).unwrap()],
        ..none()
    };
    assert_eq!(
        find(pattern("^wan"), &[], &own_ips, None),
        "wan0 198.51.100.7"
    );
    assert_eq!(
        find(pattern(r"^192\.0\.2\."), &[], &own_ips, None),
        "eth1 192.0.2.11"
    );
    let reach = |text: &str| IfaceChoice {
        can_reach: Some(ip(text)),
        ..none()
    };
    assert_eq!(
        find(reach("192.0.2.200"), &[], &own_ips, None),
        "eth1 192.0.2.11"
    );
    assert_eq!(
        find(reach("8.8.8.8"), &[], &own_ips, None),
        "wan0 198.51.100.7"
    );
    let mut wrong = names(&["no"]);
    wrong.patterns = pattern("^x").patterns;
    wrong.can_reach = Some(ip("2001:db8::1"));
    assert_eq!(
        find(wrong, &[], &own_ips, None),
        "--iface no, --iface-regex ^x, --iface-can-reach 2001:db8::1: no such link"
    );
    assert!(Pattern::new("(").is_err());
}

#[test]
fn pods_follow_the_largest_packet() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let (mut host, mut pod) = (fake(&kernel), kernel.add_netns());
    host.add_bridge(&NewBridge {
        name: "cni0".into(),
        mtu: Some(1400),
        mac: None,
    })
    .unwrap();
    let veth = linux::link::NewVeth {
        name: "veth1".into(),
        mtu: Some(1400),
        master: Some("cni0".into()),
        peer_name: "eth0".into(),
        peer_netns: Some(pod.netns()),
        ..Default::default()
    };
    host.add_veth(&veth).unwrap();
    let alias = LinkChange {
        alias: Some("seaway:seaway:p:eth0".into()),
        ..LinkChange::default()
    };
    host.set_link("veth1", &alias).unwrap();
    let mut mtus = |host: &mut FakeHost| {
        let mut of = |name| host.link(name).unwrap().unwrap().mtu;
        (
            of("cni0"),
            of("veth1"),
            pod.link("eth0").unwrap().unwrap().mtu,
        )
    };
    sync(&mut host, &dir, &peers(&[]));
    assert_eq!(mtus(&mut host), (1430, 1430, 1430));
    let smaller = LinkChange {
        mtu: Some(1400),
        ..LinkChange::default()
    };
    host.set_link("eth0", &smaller).unwrap();
    sync(&mut host, &dir, &peers(&[]));
    assert_eq!(mtus(&mut host), (1330, 1330, 1330));
    assert_eq!(sync(&mut host, &dir, &peers(&[])).changes, 0);
}

#[test]
fn the_table_of_nftables() {
    let cidrs = settings("/x".into()).cluster_cidrs;
    let plan = nft::plan(Family::V4, &cidrs).unwrap();
    expect![[r#"
        table ip seaway-overlay
        meta bitwise cmp immediate: the proxy masquerades this itself #25d902a8ea21a171
        payload bitwise cmp payload bitwise cmp immediate: 10.244.0.0/16 to 10.244.0.0/16 stays within #431b6469be34bb22
        payload bitwise cmp payload bitwise cmp masq: 10.244.0.0/16 leaves #4f4b35a1359d698a
    "#]].assert_eq(&plan.words());
    let v6 = nft::plan(Family::V6, &cidrs).unwrap();
    expect![[r#"
        table ip6 seaway-overlay
        meta bitwise cmp immediate: the proxy masquerades this itself #25d902a8ea21a171
        payload bitwise cmp payload bitwise cmp immediate: fd00:10:244::/56 to fd00:10:244::/56 stays within #ba991c599757a656
        payload bitwise cmp payload bitwise cmp masq: fd00:10:244::/56 leaves #4488a5e7c4bb0808
    "#]].assert_eq(&v6.words());
    assert_eq!(nft::plan(Family::V6, &cidrs[..1]), None);
    // As it was made, and not.
    let listed = |rules: &[linux::nftables::Rule]| -> Vec<linux::nftables::ListedRule> {
        let rules = rules.iter();
        let listed = rules.map(|rule| linux::nftables::ListedRule {
            chain: "postrouting".into(),
            handle: 7,
            comment: rule.comment.clone(),
        });
        listed.collect()
    };
    let chain = linux::nftables::ListedChain {
        name: "postrouting".into(),
        is_base: true,
        drops: false,
    };
    let chains = std::slice::from_ref(&chain);
    assert!(plan.is_there(chains, &listed(&plan.rules)));
    assert!(!plan.is_there(&[], &listed(&plan.rules)));
    assert!(!plan.is_there(chains, &listed(&plan.rules[1..])));
    assert!(!plan.is_there(chains, &listed(&v6.rules)));
    let closed = linux::nftables::ListedChain {
        drops: true,
        ..chain.clone()
    };
    assert!(!plan.is_there(&[closed], &listed(&plan.rules)));
}

#[test]
fn wireguard_reaches_a_node_that_has_one_outer_family() {
    let settings = wireguard(WireGuardMode::Auto);
    let mut value = node_json(2);
    let annotations = &mut value["metadata"]["annotations"];
    annotations[node::BACKEND_TYPE] = json!("wireguard");
    let data = format!(r#"{{"PublicKey":"{}"}}"#, WgKey([2; 32]));
    annotations[node::BACKEND_DATA] = json!(data);
    annotations[node::BACKEND_V6_DATA] = json!(data);
    annotations
        .as_object_mut()
        .unwrap()
        .remove(node::PUBLIC_IPV6);
    let mut problems = Vec::new();
    let peer = node::peer(&node(value), &settings.backend, &mut problems);
    assert_eq!(problems, [""; 0]);
    assert_eq!(peer.v6.unwrap().public, ip("172.31.250.12"));
}
