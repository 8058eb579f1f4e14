//! Backends, changes of nodes, and nodes that run flannel.

use std::net::IpAddr;

use cni_plugin::overlay::backend::{Backend, HostGw, Vxlan, WireGuard, WireGuardMode};
use cni_plugin::overlay::keys;
use cni_plugin::overlay::model::{IfaceChoice, Settings};
use linux::addr::Addr;
use linux::fdb::FdbEntry;
use linux::link::{LinkChange, NewVxlan};
use linux::neigh::Neigh;
use linux::route::{PROTOCOL_BOOT, Route};
use linux::{Host, Mac, NetNs};
use serde_json::json;

use crate::lab::{self, Lab, kernel, wait_until};
use crate::{seen_as, udp};

/// Routes of node `n1` to other nodes' pods, by where they leave.
fn ways(lab: &Lab) -> Vec<String> {
    let routes = lab.nodes[0].our_routes();
    let way = |route: Route| {
        let gateway = route.gateway.map(|ip| ip.to_string()).unwrap_or_default();
        format!("{} {gateway} {}", route.dst, route.dev.unwrap_or_default())
    };
    routes.into_iter().map(way).collect()
}

fn all_pods_reach_each_other(lab: &Lab) {
    let pods: Vec<_> = lab.nodes.iter().map(|node| node.pod("p")).collect();
    for from in &pods {
        for to in &pods {
            for (source, address) in from.ips.iter().zip(&to.ips) {
                assert_eq!(seen_as(&from.netns, &to.netns, *address), *source);
            }
        }
    }
}

#[test]
fn host_gw_sends_packets_as_they_are() {
    let host_gw = |settings: &mut Settings| {
        settings.backend = Backend::HostGw(HostGw::default());
    };
    let test = "host_gw_sends_packets_as_they_are";
    let Some(mut lab) = Lab::with(test, 3, true, &host_gw) else {
        return;
    };
    assert_eq!(
        ways(&lab),
        [
            "10.244.2.0/24 172.31.250.12 eth0",
            "10.244.3.0/24 172.31.250.13 eth0",
            "fd00:10:244:2::/64 fd00:31:250::c eth0",
            "fd00:10:244:3::/64 fd00:31:250::d eth0",
        ]
    );
    assert_eq!(lab.nodes[0].conflist()["plugins"][0]["mtu"], 1500);
    all_pods_reach_each_other(&lab);
    // What someone removes comes back.
    let before = ways(&lab);
    let route = lab.nodes[0].our_routes().remove(0);
    lab.nodes[0].kernel().del_route(&route).unwrap();
    wait_until("the route", || ways(&lab) == before);
    // A node that moves.
    lab.nodes[1].stop();
    lab.api.change("n2", |node| {
        node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] =
            json!("172.31.250.22");
    });
    wait_until("the route to the new address", || {
        ways(&lab)[0] == "10.244.2.0/24 172.31.250.22 eth0"
    });
    // Its daemon knows better.
    let api = lab.api.clone();
    lab.nodes[1].start(&api);
    wait_until("the node to insist", || ways(&lab) == before);
}

#[test]
fn direct_routing_is_switched_on_and_off_with_pods_running() {
    let test = "direct_routing_is_switched_on_and_off_with_pods_running";
    let Some(mut lab) = Lab::new(test, 2, true) else {
        return;
    };
    let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
    let tunnelled = ways(&lab);
    assert_eq!(tunnelled[0], "10.244.2.0/24 10.244.2.0 seaway.1");
    for direct_routing in [true, false] {
        let api = lab.api.clone();
        for node in &mut lab.nodes {
            node.stop();
            node.settings.backend = Backend::Vxlan(Vxlan {
                direct_routing,
                ..Vxlan::default()
            });
            node.start(&api);
        }
        if direct_routing {
            assert_eq!(
                ways(&lab),
                [
                    "10.244.2.0/24 172.31.250.12 eth0",
                    "fd00:10:244:2::/64 fd00:31:250::c eth0"
                ]
            );
            // No entry is left on the device, which others may need.
            assert!(!lab.nodes[0].state("seaway.1").contains("fdb"));
        } else {
            assert_eq!(ways(&lab), tunnelled);
        }
        for (source, address) in a.ips.iter().zip(&b.ips) {
            assert_eq!(seen_as(&a.netns, &b.netns, *address), *source);
        }
    }
    // A route through a router for that node alone: it is not on the link any more.
    let api = lab.api.clone();
    let node = &mut lab.nodes[0];
    node.stop();
    node.settings.backend = Backend::Vxlan(Vxlan {
        direct_routing: true,
        ..Vxlan::default()
    });
    node.start(&api);
    let mut far = Route::to("172.31.250.12/32".parse().unwrap())
        .via("172.31.250.1".parse().unwrap())
        .dev("eth0");
    far.protocol = PROTOCOL_BOOT;
    node.kernel().add_route(&far).unwrap();
    wait_until("the tunnel", || ways(&lab)[0] == tunnelled[0]);
    lab.nodes[0].kernel().del_route(&far).unwrap();
    wait_until("the direct way", || {
        ways(&lab)[0] == "10.244.2.0/24 172.31.250.12 eth0"
    });
}

#[test]
fn other_nodes_change_come_and_go() {
    let Some(lab) = Lab::new("other_nodes_change_come_and_go", 1, true) else {
        return;
    };
    let node = &lab.nodes[0];
    let state = || node.state("seaway.1") + &node.state("seaway-v6.1");
    let alone = state();
    let annotations = |mac: &str, ip: &str, ip6: &str| {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        json!({
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": data,
            "flannel.alpha.coreos.com/backend-v6-data": data,
            "flannel.alpha.coreos.com/public-ip": ip,
            "flannel.alpha.coreos.com/public-ipv6": ip6,
        })
    };
    let tell = |annotations: serde_json::Value| {
        lab.api.change("n9", |node| {
            *node = json!({
                "metadata": {"name": "n9", "annotations": annotations},
                "spec": {"podCIDRs": ["10.244.9.0/24", "fd00:10:244:9::/64"]},
            });
        });
    };
    let has = |words: &[&str]| {
        let state = state();
        words.iter().all(|word| state.contains(word))
    };
    tell(annotations(
        "0a:00:00:00:00:09",
        "172.31.250.19",
        "fd00:31:250::19",
    ));
    wait_until("the node", || {
        has(&[
            "0a:00:00:00:00:09",
            "172.31.250.19",
            "fd00:31:250::19",
            "10.244.9.0/24",
        ])
    });
    // Its device was made anew.
    tell(annotations(
        "0a:00:00:00:00:0a",
        "172.31.250.19",
        "fd00:31:250::19",
    ));
    wait_until("the new hardware address", || {
        has(&["0a:00:00:00:00:0a"]) && !has(&["0a:00:00:00:00:09"])
    });
    // It moved.
    tell(annotations(
        "0a:00:00:00:00:0a",
        "172.31.250.29",
        "fd00:31:250::29",
    ));
    wait_until("the new outer addresses", || {
        has(&["172.31.250.29", "fd00:31:250::29"]) && !has(&["172.31.250.19"])
    });
    // It says nonsense for one family: the other goes on.
    let mut broken = annotations("0a:00:00:00:00:0a", "x", "fd00:31:250::29");
    tell(broken.clone());
    wait_until("IPv4 to go", || !has(&["10.244.9.0/24"]));
    assert!(has(&["fd00:10:244:9::/64"]));
    // It speaks another backend.
    broken["flannel.alpha.coreos.com/backend-type"] = json!("udp");
    tell(broken);
    wait_until("it to be left out", || state() == alone);
    tell(annotations(
        "0a:00:00:00:00:09",
        "172.31.250.19",
        "fd00:31:250::19",
    ));
    wait_until("it to be back", || {
        has(&["10.244.9.0/24", "fd00:10:244:9::/64"])
    });
    lab.api.delete("n9");
    wait_until("it to be forgotten", || state() == alone);
}

/// What flannel makes on its node, by hand, for one other node.
fn flannel_node(netns: &NetNs, mac: Mac, own: (&str, &str), other: (Mac, &str, &str)) {
    let mut host = kernel(netns);
    host.add_vxlan(&NewVxlan {
        name: "flannel.1".into(),
        mac: Some(mac),
        mtu: Some(1450),
        vni: 1,
        port: 8472,
        local: Some(own.0.parse().unwrap()),
        underlay: Some("eth0".into()),
        ..NewVxlan::default()
    })
    .unwrap();
    host.set_link("flannel.1", &LinkChange::up()).unwrap();
    let addr = Addr::new(format!("{}/32", own.1).parse().unwrap());
    host.add_addr("flannel.1", &addr).unwrap();
    let (other_mac, other_public, other_subnet) = other;
    let subnet: ipnetwork::IpNetwork = other_subnet.parse().unwrap();
    let mut neigh = Neigh::permanent(subnet.network(), other_mac);
    neigh.protocol = 0;
    host.replace_neigh("flannel.1", &neigh).unwrap();
    let entry = FdbEntry {
        mac: other_mac,
        dst: Some(other_public.parse().unwrap()),
    };
    host.replace_fdb("flannel.1", &entry).unwrap();
    let mut route = Route::to(subnet)
        .via(subnet.network())
        .dev("flannel.1")
        .onlink();
    route.protocol = PROTOCOL_BOOT;
    host.add_route(&route).unwrap();
    host.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
}

#[test]
fn a_node_with_flannel_and_one_with_seaway_reach_each_others_pods() {
    let test = "a_node_with_flannel_and_one_with_seaway_reach_each_others_pods";
    let Some(mut lab) = Lab::new(test, 1, false) else {
        return;
    };
    let flannel = lab.node(2, false);
    let mac: Mac = "c6:21:00:00:00:02".parse().unwrap();
    // As flannel writes it.
    lab.api.change("n2", |node| {
        node["metadata"]["annotations"] = json!({
            "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#),
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/public-ip": "172.31.250.12",
        });
    });
    wait_until("the node with flannel", || lab.nodes[0].routes() == 1);
    // As flannel reads what our node tells.
    let told = lab.api.annotations("n1");
    let get = |name: &str| told[&format!("flannel.alpha.coreos.com/{name}")].clone();
    assert_eq!(
        (get("backend-type"), get("kube-subnet-manager")),
        (json!("vxlan"), json!("true"))
    );
    let data: serde_json::Value =
        serde_json::from_str(get("backend-data").as_str().unwrap()).unwrap();
    assert_eq!(data["VNI"], 1);
    let other: Mac = data["VtepMAC"].as_str().unwrap().parse().unwrap();
    let public = get("public-ip");
    let own = ("172.31.250.12", "10.244.2.0");
    let far = (other, public.as_str().unwrap(), "10.244.1.0/24");
    flannel_node(&flannel.netns, mac, own, far);
    // A pod there, as any bridge plugin would make it.
    flannel.write_conflist("10.244.2.0/24", 1450);
    let (a, b) = (lab.nodes[0].pod("a"), flannel.pod("b"));
    for (from, to) in [(&a, &b), (&b, &a)] {
        assert_eq!(seen_as(&from.netns, &to.netns, to.ips[0]), from.ips[0]);
        udp(&from.netns, to, to.ips[0]);
    }
    lab.nodes.push(flannel);
}

#[test]
fn running_pods_follow_the_underlays_mtu() {
    let Some(lab) = Lab::new("running_pods_follow_the_underlays_mtu", 2, true) else {
        return;
    };
    let (a, b) = (lab.nodes[0].mounted_pod("a"), lab.nodes[1].mounted_pod("b"));
    let mtus = || {
        let mut host = lab.nodes[0].kernel();
        let mut all: Vec<u32> = host
            .links()
            .unwrap()
            .into_iter()
            .filter(|link| link.name == "cni0" || link.name.starts_with("veth"))
            .map(|link| link.mtu)
            .collect();
        all.push(kernel(&a.pod.netns).link("eth0").unwrap().unwrap().mtu);
        all
    };
    let reach = || {
        for (source, address) in a.pod.ips.iter().zip(&b.pod.ips) {
            let seen: IpAddr = seen_as(&a.pod.netns, &b.pod.netns, *address);
            assert_eq!(seen, *source);
        }
    };
    assert_eq!(mtus(), [1430; 3]);
    for (underlay, pods) in [(1400, 1330), (9000, 8930), (1500, 1430)] {
        for node in &lab.nodes {
            let change = LinkChange {
                mtu: Some(underlay),
                ..LinkChange::default()
            };
            node.kernel().set_link("eth0", &change).unwrap();
        }
        wait_until("the pods to follow", || mtus() == [pods; 3]);
        wait_until("the configuration to follow", || {
            lab.nodes[0].conflist()["plugins"][0]["mtu"] == pods
        });
        reach();
    }
}

/// A node gets other addresses while its daemon runs: device, annotations and the other node follow.
#[test]
fn a_node_whose_underlay_addresses_change_is_reached_by_the_new_ones() {
    let test = "a_node_whose_underlay_addresses_change_is_reached_by_the_new_ones";
    let Some(mut lab) = Lab::bare(test, true) else {
        return;
    };
    for i in 1..=2 {
        let mut node = lab.node(i, true);
        node.settings.iface = IfaceChoice {
            names: vec!["eth0".to_owned()],
            ..IfaceChoice::default()
        };
        lab.nodes.push(node);
    }
    let api = lab.api.clone();
    for node in &mut lab.nodes {
        node.start(&api);
    }
    for node in &lab.nodes {
        wait_until("the other node", || node.routes() == 2);
    }
    let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
    let reach = || {
        for (source, address) in a.ips.iter().zip(&b.ips) {
            assert_eq!(seen_as(&a.netns, &b.netns, *address), *source);
        }
    };
    reach();
    let new = ["172.31.250.21/24", "fd00:31:250::21/64"];
    let mut host = lab.nodes[0].kernel();
    // Else the new one goes with the old.
    let promote = "net/ipv4/conf/eth0/promote_secondaries";
    host.set_sysctl(promote, "1").unwrap();
    for (old, new) in lab.nodes[0].ips.iter().zip(new) {
        let all = host.addrs("eth0").unwrap();
        let old = all.iter().find(|addr| addr.net.ip() == *old).unwrap().net;
        host.add_addr("eth0", &Addr::new(new.parse().unwrap()))
            .unwrap();
        host.del_addr("eth0", old).unwrap();
    }
    for (key, device, ip) in [
        ("public-ip", "seaway.1", "172.31.250.21"),
        ("public-ipv6", "seaway-v6.1", "fd00:31:250::21"),
    ] {
        let ip: IpAddr = ip.parse().unwrap();
        wait_until("the device to have the new address", || {
            let link = lab.nodes[0].kernel().link(device).unwrap();
            link.and_then(|link| link.vxlan?.local) == Some(ip)
        });
        wait_until("the annotation", || {
            let key = format!("flannel.alpha.coreos.com/{key}");
            lab.api.annotations("n1")[key] == ip.to_string()
        });
        wait_until("the other node to know", || {
            lab.nodes[1].state(device).contains(&format!(" {ip}\n"))
        });
    }
    wait_until("the routes", || {
        lab.nodes.iter().all(|node| node.routes() == 2)
    });
    reach();
}

/// A pod that has a larger packet size than its node can carry is told, to the byte.
#[test]
fn packets_that_are_too_large_are_answered_with_what_passes() {
    let test = "packets_that_are_too_large_are_answered_with_what_passes";
    if linux::exec::which("ping").is_none() {
        println!("SKIPPED {test}: ping is not installed (iputils-ping)");
        return;
    }
    // Headers of IPv4 and ICMP are 28 bytes, of IPv6 and ICMPv6 48.
    for (dual, rows) in [
        (false, &[(1422, "Frag needed and DF set (mtu = 1450)")][..]),
        (
            true,
            &[
                (1422, "Frag needed and DF set (mtu = 1450)"),
                (1382, "Packet too big: mtu=1430"),
            ],
        ),
    ] {
        let Some(mut lab) = Lab::new(test, 2, dual) else {
            return;
        };
        let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
        // A daemon gives pods the right size as soon as it sees them.
        for node in &mut lab.nodes {
            node.stop();
        }
        // As they were before the underlay shrank.
        let larger = LinkChange {
            mtu: Some(1500),
            ..LinkChange::default()
        };
        for (node, pod) in lab.nodes.iter().zip([&a, &b]) {
            let mut host = node.kernel();
            for link in host.links().unwrap() {
                if link.name == "cni0" || link.name.starts_with("veth") {
                    host.set_link(&link.name, &larger).unwrap();
                }
            }
            kernel(&pod.netns).set_link("eth0", &larger).unwrap();
        }
        for ((size, words), address) in rows.iter().zip(&b.ips) {
            udp(&a.netns, &b, *address);
            assert!(lab::ping(&a.netns, *address, *size), "{size} to {address}");
            let said = lab::ping_text(&a.netns, *address, size + 1);
            assert!(said.contains(words), "{said}");
        }
    }
}

#[test]
fn wireguard_carries_pods_encrypted() {
    let test = "wireguard_carries_pods_encrypted";
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {test}: needs root");
        return;
    }
    let mut probe = kernel(&NetNs::anonymous().unwrap());
    if let Err(error) = probe.add_wireguard("wg0", None) {
        let there = std::path::Path::new("/sys/module/wireguard").exists();
        assert!(!there, "{error}");
        println!("SKIPPED {test}: this kernel has no WireGuard ({error})");
        return;
    }
    for mode in [WireGuardMode::Separate, WireGuardMode::Auto] {
        let wireguard = |settings: &mut Settings| {
            let mut wg = WireGuard {
                mode,
                psk: Some(linux::wireguard::Key([3; 32])),
                key_file: settings.cni_conf_dir.with_file_name("wireguard.key"),
                ..WireGuard::default()
            };
            keys::load(&mut wg).unwrap();
            settings.backend = Backend::WireGuard(wg);
        };
        let Some(lab) = Lab::with(test, 2, true, &wireguard) else {
            return;
        };
        let v6 = match mode {
            WireGuardMode::Separate => "seaway-wg-v6",
            _ => "seaway-wg",
        };
        assert_eq!(
            ways(&lab),
            [
                "10.244.2.0/24  seaway-wg".to_owned(),
                format!("fd00:10:244:2::/64  {v6}")
            ]
        );
        assert_eq!(lab.nodes[0].conflist()["plugins"][0]["mtu"], 1420);
        // Someone takes the far end away, and the device: both come back.
        let mut host = lab.nodes[0].kernel();
        let before = host.wireguard("seaway-wg").unwrap();
        host.delete_link("seaway-wg").unwrap();
        wait_until("the device", || {
            lab.nodes[0]
                .kernel()
                .wireguard("seaway-wg")
                .is_ok_and(|now| {
                    now.config == before.config
                        && now
                            .peers
                            .iter()
                            .map(|p| p.key)
                            .eq(before.peers.iter().map(|p| p.key))
                })
                && lab.nodes[0].routes() == 2
        });
        all_pods_reach_each_other(&lab);
    }
}
