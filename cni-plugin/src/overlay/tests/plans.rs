//! Nodes to plan, and plan to changes of an empty host.

use super::*;

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
    let mut set = |i: u8, change: &dyn Fn(&mut Reach)| {
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
