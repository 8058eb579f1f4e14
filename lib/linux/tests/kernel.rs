//! The door to the real kernel, in network namespaces of the test's own. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

use std::net::IpAddr;
use std::time::Duration;

use linux::addr::Addr;
use linux::fdb::FdbEntry;
use linux::link::{LinkChange, NewBridge, NewVeth, NewVxlan};
use linux::neigh::Neigh;
use linux::netlink::{Group, Monitor};
use linux::route::{Kind, PROTOCOL_SEAWAY, Route, RouteFilter};
use linux::{Host, Kernel, Mac, NetNs, Replacement};

/// A door to a new namespace, or `None` (said aloud) without the rights.
fn netns(test: &str) -> Option<Kernel> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {test}: needs root");
        return None;
    }
    Some(Kernel::open_in(NetNs::anonymous().unwrap()).unwrap())
}

fn mac(last: u8) -> Mac {
    Mac::local([0, 0, 0, 0, last])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A pair between a bridge of one namespace and `eth0` of another, up.
fn wire(node: &mut Kernel, pod: &mut Kernel) {
    node.add_bridge(&NewBridge {
        name: "cni0".into(),
        mac: Some(mac(1)),
        mtu: Some(1450),
    })
    .unwrap();
    node.set_link("cni0", &LinkChange::up()).unwrap();
    node.add_veth(&NewVeth {
        name: "veth1".into(),
        mtu: Some(1450),
        master: Some("cni0".into()),
        peer_name: "eth0".into(),
        peer_mac: Some(mac(2)),
        peer_netns: Some(pod.netns()),
        ..NewVeth::default()
    })
    .unwrap();
    let change = LinkChange {
        hairpin: Some(true),
        isolated: Some(true),
        alias: Some("seaway pod".into()),
        ..LinkChange::up()
    };
    node.set_link("veth1", &change).unwrap();
    pod.set_link("eth0", &LinkChange::up()).unwrap();
}

#[test]
fn a_veth_pair_across_namespaces() {
    let test = "a_veth_pair_across_namespaces";
    let (Some(mut node), Some(mut pod)) = (netns(test), netns(test)) else {
        return;
    };
    wire(&mut node, &mut pod);
    let bridge = node.link("cni0").unwrap().unwrap();
    assert_eq!(
        (bridge.mac, bridge.kind.as_deref(), bridge.mtu),
        (Some(mac(1)), Some("bridge"), 1450)
    );
    let port = node.link("veth1").unwrap().unwrap();
    assert_eq!(port.master, Some(bridge.index));
    assert_eq!(port.alias.as_deref(), Some("seaway pod"));
    assert!(port.up && port.port.unwrap().hairpin && port.port.unwrap().isolated);
    let eth0 = pod.link("eth0").unwrap().unwrap();
    assert_eq!((eth0.mac, eth0.mtu, eth0.up), (Some(mac(2)), 1450, true));
    assert_eq!((eth0.peer, port.peer), (Some(port.index), Some(eth0.index)));
    // Errors name operation and object, and say what kind they are.
    let error = node.set_link(
        "veth1",
        &LinkChange {
            master: Some("nope".into()),
            ..LinkChange::default()
        },
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "get link nope: no such device"
    );
    let error = node.add_bridge(&NewBridge {
        name: "cni0".into(),
        ..NewBridge::default()
    });
    assert!(error.unwrap_err().is_exists());
    assert!(node.ensure_no_link("veth1").unwrap());
    assert!(!node.ensure_no_link("veth1").unwrap());
    assert_eq!(pod.link("eth0").unwrap(), None);
}

#[test]
fn a_link_made_anew_by_someone_else_is_found_again() {
    let test = "a_link_made_anew_by_someone_else_is_found_again";
    let Some(mut ours) = netns(test) else { return };
    let netns = NetNs::open(ours.namespace().path()).unwrap();
    let mut theirs = Kernel::open_in(netns).unwrap();
    let bridge = NewBridge {
        name: "br0".into(),
        ..NewBridge::default()
    };
    ours.add_bridge(&bridge).unwrap();
    ours.set_link("br0", &LinkChange::up()).unwrap();
    theirs.delete_link("br0").unwrap();
    theirs.add_bridge(&bridge).unwrap();
    ours.set_link("br0", &LinkChange::up()).unwrap();
    assert!(theirs.link("br0").unwrap().unwrap().up);
}

#[test]
fn addresses_and_routes_of_both_families() {
    let test = "addresses_and_routes_of_both_families";
    let (Some(mut node), Some(mut pod)) = (netns(test), netns(test)) else {
        return;
    };
    wire(&mut node, &mut pod);
    for (net, gateway, far) in [
        ("10.1.0.2/24", "10.1.0.1", "10.9.0.0/16"),
        ("fd00:1::2/64", "fd00:1::1", "fd00:9::/48"),
    ] {
        let addr = Addr::new(net.parse().unwrap()).protocol(PROTOCOL_SEAWAY);
        assert!(pod.ensure_addr("eth0", &addr).unwrap());
        assert!(!pod.ensure_addr("eth0", &addr).unwrap());
        let seen = pod.addrs("eth0").unwrap();
        let seen = seen.iter().find(|a| a.net == addr.net).unwrap();
        assert!(seen.permanent && !seen.tentative);
        assert_eq!((seen.nodad, seen.protocol), (addr.nodad, PROTOCOL_SEAWAY));

        let any = if addr.net.is_ipv6() {
            "::/0"
        } else {
            "0.0.0.0/0"
        };
        let default = Route::to(any.parse().unwrap()).via(ip(gateway)).dev("eth0");
        let mut narrow = Route::to(far.parse().unwrap()).via(ip(gateway)).dev("eth0");
        narrow.mtu = Some(1400);
        narrow.metric = Some(77);
        narrow.src = Some(addr.net.ip());
        pod.add_route(&default).unwrap();
        assert!(pod.add_route(&default).unwrap_err().is_exists());
        pod.replace_route(&default).unwrap();
        pod.add_route(&narrow).unwrap();
        let ours = RouteFilter {
            ipv6: Some(addr.net.is_ipv6()),
            protocol: Some(PROTOCOL_SEAWAY),
            dev: Some("eth0"),
            ..RouteFilter::default()
        };
        let mut seen = pod.routes(&ours).unwrap();
        seen.sort();
        assert_eq!(seen, [default.clone(), narrow.clone()]);
        assert!(pod.ensure_no_route(&narrow).unwrap());
        assert!(!pod.ensure_no_route(&narrow).unwrap());
        assert_eq!(pod.routes(&ours).unwrap(), [default]);
        assert!(pod.ensure_no_addr("eth0", addr.net).unwrap());
        assert!(!pod.ensure_no_addr("eth0", addr.net).unwrap());
    }
    // Kinds without a next hop.
    let mut hole = Route::to("10.99.0.0/16".parse().unwrap());
    hole.kind = Kind::Blackhole;
    pod.add_route(&hole).unwrap();
    assert!(pod.routes(&RouteFilter::default()).unwrap().contains(&hole));
}

#[test]
fn vxlan_with_neighbours_and_forwarding() {
    let test = "vxlan_with_neighbours_and_forwarding";
    let (Some(mut node), Some(mut pod)) = (netns(test), netns(test)) else {
        return;
    };
    wire(&mut node, &mut pod);
    for (name, own, overlay, far, inner) in [
        (
            "seaway.1",
            "10.1.0.2/24",
            "10.244.0.0/32",
            "10.1.0.3",
            "10.244.1.0",
        ),
        (
            "seaway-v6.1",
            "fd00:1::2/64",
            "fd00:244::/128",
            "fd00:1::3",
            "fd00:244:1::",
        ),
    ] {
        pod.add_addr("eth0", &Addr::new(own.parse().unwrap()))
            .unwrap();
        let local: IpAddr = own.split('/').next().unwrap().parse().unwrap();
        let new = NewVxlan {
            name: name.into(),
            mac: Some(mac(9)),
            mtu: Some(1380),
            vni: 1,
            port: 8472,
            local: Some(local),
            underlay: Some("eth0".into()),
            learning: false,
            gbp: local.is_ipv6(),
        };
        pod.add_vxlan(&new).unwrap();
        pod.set_link(name, &LinkChange::up()).unwrap();
        let link = pod.link(name).unwrap().unwrap();
        let seen = link.vxlan.unwrap();
        let eth0 = pod.link("eth0").unwrap().unwrap();
        assert_eq!((seen.vni, seen.port, seen.local), (1, 8472, Some(local)));
        assert_eq!((seen.underlay, seen.learning), (Some(eth0.index), false));
        assert_eq!((link.mac, link.mtu), (Some(mac(9)), 1380));
        assert_eq!(seen.gbp, local.is_ipv6());
        for on in [false, true] {
            pod.set_tx_checksum(name, on).unwrap();
            assert_eq!(pod.tx_checksum(name).unwrap(), on);
        }

        pod.add_addr(name, &Addr::new(overlay.parse().unwrap()))
            .unwrap();
        let neigh = Neigh::permanent(ip(inner), mac(7));
        pod.replace_neigh(name, &neigh).unwrap();
        pod.replace_neigh(name, &neigh).unwrap();
        assert_eq!(pod.neighs(name).unwrap(), std::slice::from_ref(&neigh));
        let entry = FdbEntry {
            mac: mac(7),
            dst: Some(ip(far)),
        };
        pod.replace_fdb(name, &entry).unwrap();
        pod.replace_fdb(name, &entry).unwrap();
        assert_eq!(pod.fdb(name).unwrap(), std::slice::from_ref(&entry));
        let prefix = if local.is_ipv4() { 24 } else { 64 };
        let dst = ipnetwork::IpNetwork::new(ip(inner), prefix).unwrap();
        let route = Route::to(dst).via(ip(inner)).dev(name).onlink();
        pod.replace_route(&route).unwrap();
        let ours = RouteFilter {
            protocol: Some(PROTOCOL_SEAWAY),
            ..RouteFilter::default()
        };
        assert!(pod.routes(&ours).unwrap().contains(&route));
        pod.del_route(&route).unwrap();
        pod.del_fdb(name, &entry).unwrap();
        pod.del_neigh(name, &neigh).unwrap();
        assert!(pod.fdb(name).unwrap().is_empty() && pod.neighs(name).unwrap().is_empty());
        assert!(pod.del_fdb(name, &entry).unwrap_err().is_not_found());
    }
}

/// More than go into one message, some of which the kernel refuses.
#[test]
fn many_replacements_are_made_at_once() {
    let test = "many_replacements_are_made_at_once";
    let (Some(mut node), Some(mut pod)) = (netns(test), netns(test)) else {
        return;
    };
    wire(&mut node, &mut pod);
    pod.add_addr("eth0", &Addr::new("10.1.0.2/24".parse().unwrap()))
        .unwrap();
    let neighs: Vec<Neigh> = (1..=250)
        .map(|i| Neigh::permanent([10, 1, 0, i].into(), mac(i)))
        .collect();
    let route = |i: u8, via: &str| {
        let dst = format!("10.{i}.0.0/16").parse().unwrap();
        Route::to(dst).via(ip(via)).dev("eth0")
    };
    // Nobody leads to the gateway of every tenth.
    let routes: Vec<Route> = (10..250)
        .map(|i| {
            route(
                i,
                if i % 10 == 0 {
                    "172.20.0.1"
                } else {
                    "10.1.0.1"
                },
            )
        })
        .collect();
    let mut all: Vec<Replacement<'_>> = Vec::new();
    all.extend(neighs.iter().map(|neigh| Replacement::Neigh("eth0", neigh)));
    all.extend(routes.iter().map(Replacement::Route));
    for _ in 0..2 {
        let refused = pod.replace_many(&all);
        let expect: Vec<usize> = (250..490).step_by(10).collect();
        assert_eq!(refused, expect);
        let there = pod.neighs("eth0").unwrap();
        assert!(neighs.iter().all(|neigh| there.contains(neigh)));
        let ours = RouteFilter {
            ipv6: Some(false),
            protocol: Some(PROTOCOL_SEAWAY),
            ..RouteFilter::default()
        };
        assert_eq!(pod.routes(&ours).unwrap().len(), 216);
    }
    assert_eq!(pod.replace_many(&[]), [0; 0]);
    // Without the link, nothing is made: the single function tells why.
    node.delete_link("veth1").unwrap();
    assert_eq!(pod.replace_many(&all[..3]), [0, 1, 2]);
    let error = pod.replace_neigh("eth0", &neighs[0]).unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[test]
fn settings_are_those_of_the_namespace() {
    let Some(mut node) = netns("settings_are_those_of_the_namespace") else {
        return;
    };
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let before = linux::sysctl::read(key).unwrap();
        node.set_sysctl(key, "0").unwrap();
        assert!(node.ensure_sysctl(key, "1").unwrap());
        assert!(!node.ensure_sysctl(key, "1").unwrap());
        assert_eq!(node.sysctl(key).unwrap(), "1");
        assert_eq!(linux::sysctl::read(key).unwrap(), before);
    }
    let error = node
        .set_sysctl("net/ipv4/conf/gone/forwarding", "1")
        .unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        "set sysctl net/ipv4/conf/gone/forwarding to 1: no such file or directory"
    );
}

#[test]
fn a_monitor_hears_of_changes() {
    let Some(mut node) = netns("a_monitor_hears_of_changes") else {
        return;
    };
    let monitor = Monitor::open_in(node.namespace(), &[Group::Link, Group::Ipv4Addr]).unwrap();
    assert!(!monitor.drain());
    node.set_link("lo", &LinkChange::up()).unwrap();
    assert!(monitor.wait(Duration::from_secs(60)));
}

fn has_nf_tables(node: &Kernel) -> bool {
    use linux::nftables::{Family, Nftables};
    let has = |family| Nftables::has_family(family).unwrap();
    let both = || [Family::Ipv4, Family::Ipv6].into_iter().all(has);
    node.namespace().run(both).unwrap()
}

#[test]
fn iptables_of_a_namespace() {
    use linux::iptables::{Backend, Family, Iptables};
    let test = "iptables_of_a_namespace";
    let Some(node) = netns(test) else {
        return;
    };
    if !has_nf_tables(&node) {
        println!("SKIPPED {test}: this kernel has no tables of nf_tables for IP");
        return;
    }
    for (family, address) in [(Family::V4, "10.96.0.1/32"), (Family::V6, "fd00:96::1/128")] {
        let Ok(iptables) = Iptables::of(family, Backend::Nft) else {
            println!("SKIPPED {test}: iptables-nft is not installed");
            return;
        };
        let run = |text: &str| node.namespace().run(|| iptables.restore(text)).unwrap();
        run(&format!(
            "*nat\n:SEAWAY-T - [0:0]\n-A SEAWAY-T -d {address} -j RETURN\nCOMMIT\n"
        ))
        .unwrap();
        let saved = node
            .namespace()
            .run(|| iptables.save(Some("nat")))
            .unwrap()
            .unwrap();
        assert!(
            saved.contains(&format!("-A SEAWAY-T -d {address} -j RETURN")),
            "{saved}"
        );
        let found = node
            .namespace()
            .run(|| Iptables::detect(family))
            .unwrap()
            .unwrap();
        assert_eq!(found.backend(), Backend::Nft);
        let error = run("*nat\n-A SEAWAY-T -j NOSUCH\nCOMMIT\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("NOSUCH") || error.contains("line 2"),
            "{error}"
        );
    }
}

#[test]
fn iptables_of_the_kind_that_has_rules() {
    use linux::iptables::{Backend, Family, Iptables};
    let test = "iptables_of_the_kind_that_has_rules";
    let Some(node) = netns(test) else { return };
    let inside = |work: &(dyn Fn() -> Backend + Sync)| node.namespace().run(work).unwrap();
    // Where the kernel takes one kind only, it is that one.
    let both = has_nf_tables(&node);
    let usual = if both { Backend::Nft } else { Backend::Legacy };
    for family in [Family::V4, Family::V6] {
        let legacy = Iptables::of(family, Backend::Legacy);
        let (Ok(legacy), Ok(_)) = (legacy, Iptables::of(family, Backend::Nft)) else {
            println!("SKIPPED {test}: needs both kinds of iptables");
            return;
        };
        let detect = || Iptables::detect(family).unwrap().backend();
        assert_eq!(inside(&detect), usual, "nobody has rules");
        let rule = "*filter\n:SEAWAY-T - [0:0]\n-A SEAWAY-T -j RETURN\nCOMMIT\n";
        if let Err(e) = node.namespace().run(|| legacy.restore(rule)).unwrap() {
            assert!(both, "neither kind of tables in this kernel: {e}");
            println!("SKIPPED {test}: no legacy tables in this kernel: {e}");
            return;
        }
        assert_eq!(inside(&detect), Backend::Legacy);
        if !both {
            continue;
        }
        let nft = Iptables::of(family, Backend::Nft).unwrap();
        node.namespace().run(|| nft.restore(rule)).unwrap().unwrap();
        assert_eq!(inside(&detect), Backend::Nft, "both have rules");
    }
}

#[test]
fn the_route_that_would_be_taken() {
    let (Some(mut node), Some(mut pod)) = (
        netns("the_route_that_would_be_taken"),
        netns("the_route_that_would_be_taken"),
    ) else {
        return;
    };
    wire(&mut node, &mut pod);
    pod.add_addr("eth0", &Addr::new("192.0.2.2/24".parse().unwrap()))
        .unwrap();
    pod.add_addr("eth0", &Addr::new("2001:db8::2/64".parse().unwrap()))
        .unwrap();
    let default = Route::to("0.0.0.0/0".parse().unwrap());
    pod.add_route(&default.via(ip("192.0.2.1")).dev("eth0"))
        .unwrap();
    for (to, gateway, src) in [
        ("192.0.2.9", None, "192.0.2.2"),
        ("198.51.100.1", Some("192.0.2.1"), "192.0.2.2"),
        ("2001:db8::9", None, "2001:db8::2"),
    ] {
        let route = pod.route_to(ip(to)).unwrap().unwrap();
        assert_eq!(route.dev.as_deref(), Some("eth0"), "{to}");
        assert_eq!((route.gateway, route.src), (gateway.map(ip), Some(ip(src))));
    }
    assert_eq!(pod.route_to(ip("2001:db8:1::1")).unwrap(), None);
}

/// A mounted namespace, gone with this.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(NetNs::remove(&self.0));
    }
}

#[test]
fn far_ends_of_veths_are_found_mounted_or_held_open() {
    let test = "far_ends_of_veths_are_found_mounted_or_held_open";
    let Some(mut node) = netns(test) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted(dir.path().join("pod 1"));
    let mut pod = Kernel::open_in(NetNs::create(&mounted.0).unwrap()).unwrap();
    let mut held = netns(test).unwrap();
    wire(&mut node, &mut pod);
    node.add_veth(&NewVeth {
        name: "veth2".into(),
        mtu: Some(1450),
        master: Some("cni0".into()),
        peer_name: "eth0".into(),
        peer_netns: Some(held.netns()),
        ..NewVeth::default()
    })
    .unwrap();
    let mut links = node.links().unwrap();
    links.retain(|link| link.name.starts_with("veth"));
    let found = node.set_peer_mtu(&links, 1400).unwrap();
    let expect = links.iter().map(|link| link.index).collect();
    assert_eq!(found, expect);
    let mtu = |host: &mut Kernel| host.link("eth0").unwrap().unwrap().mtu;
    assert_eq!((mtu(&mut pod), mtu(&mut held)), (1400, 1400));
}

#[test]
fn wireguard_devices_and_their_far_ends() {
    use linux::wireguard::{Config, Key, Peer};
    let test = "wireguard_devices_and_their_far_ends";
    let Some(mut node) = netns(test) else {
        return;
    };
    if let Err(error) = node.add_wireguard("wg0", Some(1420)) {
        let there = std::path::Path::new("/sys/module/wireguard").exists();
        assert!(!there, "{error}");
        println!("SKIPPED {test}: this kernel has no WireGuard ({error})");
        return;
    }
    let config = Config {
        private: Key([0x48; 32]),
        port: 51820,
    };
    node.set_wireguard("wg0", &config).unwrap();
    let mut peer = Peer {
        key: Key([9; 32]),
        psk: Some(Key([2; 32])),
        endpoint: Some("192.0.2.1:51820".parse().unwrap()),
        keepalive: 25,
        allowed: vec![
            "10.244.2.0/24".parse().unwrap(),
            "fd00:10:244:2::/64".parse().unwrap(),
        ],
    };
    node.set_wireguard_peer("wg0", &peer).unwrap();
    let seen = node.wireguard("wg0").unwrap();
    assert_eq!(seen.config, config);
    assert_ne!(seen.public, Key::default());
    assert_eq!(seen.peers, [peer.clone()]);
    peer.psk = None;
    peer.endpoint = Some("[2001:db8::1]:51821".parse().unwrap());
    peer.allowed.truncate(1);
    node.set_wireguard_peer("wg0", &peer).unwrap();
    assert_eq!(node.wireguard("wg0").unwrap().peers, [peer.clone()]);
    node.del_wireguard_peer("wg0", peer.key).unwrap();
    node.del_wireguard_peer("wg0", peer.key).unwrap();
    assert_eq!(node.wireguard("wg0").unwrap().peers, []);
}
