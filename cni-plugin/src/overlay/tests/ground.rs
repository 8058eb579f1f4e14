//! Files for plugins, the underlay, and pods that follow its MTU.

use super::*;

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
