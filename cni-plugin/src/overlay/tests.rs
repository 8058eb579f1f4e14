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

use super::daemon;
use super::firewall::{self, Saved};
use super::model::{
    Addr, Conflist, Desired, Family, FdbEntry, Neigh, Own, Peer, Plan, Settings, Underlay,
};
use super::nodes::Nodes;
use super::observe::{Observed, observe};
use super::{apply, conflist, diff, node, plan};

fn settings(dir: PathBuf) -> Settings {
    Settings {
        node_name: "n1".into(),
        iface: None,
        cni_conf_dir: dir.join("net.d"),
        cni_state_dir: dir.join("state"),
        vni: 1,
        port: 8472,
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/56".parse().unwrap(),
        ],
        masquerade: false,
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

fn peers(all: &[u8]) -> BTreeMap<String, Peer> {
    let peer = |i: &u8| {
        let mut problems = Vec::new();
        let peer = node::peer(&node(node_json(*i)), 1, &mut problems);
        assert_eq!(problems, [""; 0]);
        (format!("n{i}"), peer)
    };
    all.iter().map(peer).collect()
}

fn planned(own: &Own, underlay: &Underlay, peers: &BTreeMap<String, Peer>) -> Plan {
    plan::plan(&settings("/x".into()), own, underlay, peers)
}

fn lines(want: &Desired, seen: &Observed) -> String {
    diff::diff(&settings("/x".into()), want, seen)
        .iter()
        .map(|change| format!("{change}\n"))
        .collect()
}

#[track_caller]
fn check(plan: &Plan, expect: Expect) {
    let mut text = lines(&plan.desired, &Observed::default());
    for (key, value) in &plan.annotations {
        text += &format!("@ {key}={}\n", value.as_deref().unwrap_or("(none)"));
    }
    for problem in &plan.problems {
        text += &format!("! {problem}\n");
    }
    text += &format!("{:?}\n", plan.conflist);
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
        Some(Conflist { mtu: 1450, subnets: [V4(Ipv4Network { addr: 10.244.1.0, prefix: 24 })] })
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
            + neigh 10.244.2.0 lladdr 0a:8a:fa:bb:ab:b7 dev seaway.1
            + neigh 10.244.3.0 lladdr 0a:ac:89:e8:13:04 dev seaway.1
            + fdb 0a:8a:fa:bb:ab:b7 dst 172.31.250.12 dev seaway.1
            + fdb 0a:ac:89:e8:13:04 dst 172.31.250.13 dev seaway.1
            + neigh fd00:10:244:2:: lladdr 0a:d3:2d:fa:9a:c0 dev seaway-v6.1
            + neigh fd00:10:244:3:: lladdr 0a:32:1a:30:95:44 dev seaway-v6.1
            + fdb 0a:32:1a:30:95:44 dst fd00:31:250::13 dev seaway-v6.1
            + fdb 0a:d3:2d:fa:9a:c0 dst fd00:31:250::12 dev seaway-v6.1
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
            Some(Conflist { mtu: 1430, subnets: [V4(Ipv4Network { addr: 10.244.1.0, prefix: 24 }), V6(Ipv6Network { addr: fd00:10:244:1::, prefix: 64 })] })
        "#]],
    );
}

#[test]
fn what_is_told_already_is_not_told_again() {
    let told = node::own(&node(node_json(1))).unwrap();
    assert_eq!(
        planned(&told, &underlay(), &peers(&[])).annotations,
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
    assert_eq!(planned(&own, &underlay(), &peers(&[])).annotations, expect);
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
        let plan = planned(&own, &Underlay { mtu, ..underlay() }, &peers(&[]));
        assert_eq!(plan.conflist.map(|c| c.mtu), expect, "{mtu} {v6}");
    }
}

#[test]
fn claims_that_collide_are_left_out_and_told() {
    let mut all = peers(&[2, 3, 4, 5, 6]);
    let reach = |all: &BTreeMap<String, Peer>, i: u8| all[&format!("n{i}")].v4.clone().unwrap();
    let two = reach(&all, 2);
    let mut set = |i: u8, change: &dyn Fn(&mut super::model::Reach)| {
        let peer = all.get_mut(&format!("n{i}")).unwrap();
        peer.v6 = None;
        change(peer.v4.as_mut().unwrap());
    };
    set(3, &|r| r.subnet = two.subnet);
    set(4, &|r| r.mac = two.mac);
    set(5, &|r| r.subnet = net("10.244.0.0/16"));
    set(6, &|r| r.public = ip("172.31.250.11"));
    let plan = planned(&own(), &underlay(), &all);
    assert_eq!(plan.desired.devices["seaway.1"].routes.len(), 1);
    expect![[r#"
        node n3 is left out: 10.244.2.0/24 is another node's too
        node n4 is left out: hardware address 0a:8a:fa:bb:ab:b7 is another's too
        node n5 is left out: 10.244.0.0/16 overlaps with this node's own
        node n6 is left out: 172.31.250.11 is this node's own address"#]]
    .assert_eq(&plan.problems.join("\n"));
}

#[test]
fn what_other_nodes_tell() {
    for (change, expect) in [
        (json!({}), ""),
        (
            json!({node::BACKEND_TYPE: "host-gw"}),
            "node n2: flannel.alpha.coreos.com/backend-type is \"host-gw\", only \"vxlan\" is done",
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
        node::peer(&node(value), 1, &mut problems);
        assert_eq!(problems.join("|"), expect);
    }
    // Told in parts: nothing wrong, only not yet.
    let mut value = node_json(2);
    value["spec"] = json!({});
    let mut problems = Vec::new();
    assert_eq!(node::peer(&node(value), 1, &mut problems), Peer::default());
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

fn sync(
    host: &mut FakeHost,
    dir: &tempfile::TempDir,
    peers: &BTreeMap<String, Peer>,
) -> daemon::Synced {
    daemon::sync(host, &settings(dir.path().into()), &own(), peers).unwrap()
}

#[test]
fn applied_twice_changes_nothing_and_the_conflist_comes_last() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let mut host = fake(&kernel);
    let first = sync(&mut host, &dir, &peers(&[2, 3]));
    assert_eq!((first.failures.len(), first.problems.len()), (0, 0));
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
    let conf = Conflist {
        mtu: 1430,
        subnets: own().subnets,
    };
    assert_eq!(text, conflist::render(&settings(dir.path().into()), &conf));
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
        ("- neigh 192.0.2.1 dev seaway.1\n", &|h| {
            let neigh = Neigh::permanent(ip("192.0.2.1"), foreign);
            h.replace_neigh("seaway.1", &neigh).unwrap();
        }),
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
        let want = planned(&own(), &underlay(), &peers(&[2])).desired;
        let seen = observe(&mut host, &settings, &want).unwrap();
        let changes = diff::diff(&settings, &want, &seen);
        let text: String = changes.iter().map(|c| format!("{c}\n")).collect();
        assert_eq!(text, expect);
        assert!(apply::apply(&mut host, &changes).is_empty());
        assert_eq!(dump(&kernel), good);
    }
}

#[test]
fn a_device_is_made_anew_only_if_it_must() {
    let want = planned(&own(), &underlay(), &peers(&[])).desired;
    let fitting = want.devices["seaway.1"].vxlan.clone();
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
                ..fitting
            },
            true,
        ),
    ] {
        let mut host = fake(&FakeKernel::new());
        host.add_vxlan(&new).unwrap();
        let settings = settings("/x".into());
        let seen = observe(&mut host, &settings, &want).unwrap();
        let text = lines(&want, &seen);
        assert_eq!(text.contains("- link seaway.1\n"), anew, "{new:?}\n{text}");
        assert!(apply::apply(&mut host, &diff::diff(&settings, &want, &seen)).is_empty());
        let seen = observe(&mut host, &settings, &want).unwrap();
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
    let want = planned(&own(), &underlay(), &peers(&[])).desired;
    let flannel = NewVxlan {
        name: "flannel.1".into(),
        ..want.devices["seaway.1"].vxlan.clone()
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
    assert!(!take(Event::Init) && !take(listed(1)) && !take(listed(2)));
    assert!(take(Event::InitDone));
    // The same list again changes nothing, nor does what does not concern us.
    assert!(!take(Event::Init) && !take(listed(2)) && !take(listed(1)));
    assert!(!take(Event::InitDone));
    let mut value = node_json(2);
    value["metadata"]["annotations"]["other/annotation"] = json!("y");
    assert!(!take(Event::Apply(node(value))));
    assert!(take(Event::Apply(node(node_json(3)))));
    assert!(take(Event::Delete(node(node_json(3)))));
    assert!(!take(Event::Delete(node(node_json(3)))));
    // This node's deletion is not a reason to do anything.
    assert!(!take(Event::Delete(node(node_json(1)))));
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
