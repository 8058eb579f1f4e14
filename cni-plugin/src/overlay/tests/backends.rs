//! Direct routing, host-gw and WireGuard.

use super::*;

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
