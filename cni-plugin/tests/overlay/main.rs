//! The overlay daemon on the real kernel: nodes as network namespaces on one bridge, pods made by the
//! real plugin with the configuration that the daemon wrote. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed test panics, a skipped one says so"
)]

#[cfg(feature = "etcd")]
mod etcd;
mod lab;
mod lost;
mod matrix;
mod paths;
mod policies;
mod program;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use cni_plugin::overlay::backend::{Backend, Vxlan};
use cni_plugin::overlay::firewall::Masquerader;
use cni_plugin::overlay::model::Settings;
use linux::link::{LinkChange, NewVxlan};
use linux::route::{PROTOCOL_BOOT, PROTOCOL_SEAWAY, Route, RouteFilter};
use linux::{Host, NetNs};

use lab::{Lab, Pod, deadline, has_iptables, wait_until};

fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    }
}

/// Connects from one namespace to an address of another; gives the address that the other side saw.
#[track_caller]
fn seen_as(from: &NetNs, to: &NetNs, address: IpAddr) -> IpAddr {
    let listener = to
        .run(|| TcpListener::bind((any(address), 0)))
        .unwrap()
        .unwrap();
    let target = SocketAddr::new(address, listener.local_addr().unwrap().port());
    let client = from
        .run(|| TcpStream::connect_timeout(&target, deadline()))
        .unwrap();
    let _client = client.unwrap_or_else(|e| panic!("TCP to {target}: {e}"));
    listener.accept().unwrap().1.ip()
}

/// Sends datagrams until one arrives.
#[track_caller]
fn udp(from: &NetNs, to: &Pod, address: IpAddr) {
    let server = to.netns.run(|| UdpSocket::bind((any(address), 0)));
    let server = server.unwrap().unwrap();
    server
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let target = SocketAddr::new(address, server.local_addr().unwrap().port());
    let client = from.run(|| UdpSocket::bind((any(address), 0))).unwrap();
    let client = client.unwrap();
    wait_until("a datagram to arrive", || {
        client.send_to(b"x", target).is_ok() && server.recv_from(&mut [0; 9]).is_ok()
    });
}

#[test]
fn pods_of_three_nodes_reach_each_other() {
    let Some(lab) = Lab::new("pods_of_three_nodes_reach_each_other", 3, true) else {
        return;
    };
    let pods: Vec<Pod> = lab.nodes.iter().map(|node| node.pod("p")).collect();
    for from in &pods {
        for to in &pods {
            for (source, address) in from.ips.iter().zip(&to.ips) {
                assert_eq!(seen_as(&from.netns, &to.netns, *address), *source);
            }
        }
        for (node, to) in lab.nodes.iter().zip(&pods) {
            // From a pod to nodes and back: a node sees the other node, a pod of its own sees it.
            udp(&node.netns, to, to.ips[0]);
        }
    }
    // What leaves the cluster has the node's address.
    for (outside, node_ip) in lab.outside.iter().zip(&lab.nodes[0].ips) {
        assert_eq!(seen_as(&pods[0].netns, &lab.fabric, *outside), *node_ip);
    }
}

#[test]
fn packets_as_large_as_the_underlay_carries_pass_whole() {
    let test = "packets_as_large_as_the_underlay_carries_pass_whole";
    if linux::exec::which("ping").is_none() {
        println!("SKIPPED {test}: ping is not installed (iputils-ping)");
        return;
    }
    for (dual, sizes) in [
        // IPv4 alone: 1500 - 50, of which 28 are headers.
        (false, &[1422][..]),
        // Both: 1500 - 70 for all, of which 28 and 48 are headers.
        (true, &[1402, 1382]),
    ] {
        let Some(lab) = Lab::new(test, 2, dual) else {
            return;
        };
        let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
        for (size, address) in sizes.iter().zip(&b.ips) {
            // The first may be waiting for the neighbour.
            udp(&a.netns, &b, *address);
            assert!(lab::ping(&a.netns, *address, *size), "{size} to {address}");
            assert!(!lab::ping(&a.netns, *address, size + 1), "{size} + 1");
        }
    }
}

type Break<'a> = &'a dyn Fn();

#[test]
fn what_is_removed_comes_back_at_once() {
    let Some(lab) = Lab::new("what_is_removed_comes_back_at_once", 3, true) else {
        return;
    };
    let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
    let node = &lab.nodes[0];
    for device in ["seaway.1", "seaway-v6.1"] {
        let good = node.state(device);
        let ours = RouteFilter {
            protocol: Some(PROTOCOL_SEAWAY),
            dev: Some(device),
            ..RouteFilter::default()
        };
        let breaks: [(&str, Break<'_>); 9] = [
            ("route", &|| {
                let route = node.kernel().routes(&ours).unwrap().remove(0);
                node.kernel().del_route(&route).unwrap();
            }),
            ("route replaced by another's", &|| {
                let route = node.kernel().routes(&ours).unwrap().remove(0);
                let mut foreign = Route::to(route.dst).dev("eth0");
                foreign.protocol = PROTOCOL_BOOT;
                node.kernel().replace_route(&foreign).unwrap();
            }),
            ("neighbour", &|| {
                let neigh = node.kernel().neighs(device).unwrap().remove(0);
                node.kernel().del_neigh(device, &neigh).unwrap();
            }),
            ("forwarding entry", &|| {
                let entry = node.kernel().fdb(device).unwrap().remove(0);
                node.kernel().del_fdb(device, &entry).unwrap();
            }),
            ("address", &|| {
                let addr = node.kernel().addrs(device).unwrap().remove(0);
                node.kernel().del_addr(device, addr.net).unwrap();
            }),
            ("hardware address", &|| {
                let change = LinkChange {
                    mac: Some("0a:00:00:00:00:99".parse().unwrap()),
                    ..LinkChange::default()
                };
                node.kernel().set_link(device, &change).unwrap();
            }),
            ("link down", &|| {
                let down = LinkChange::down();
                node.kernel().set_link(device, &down).unwrap();
            }),
            ("device", &|| node.kernel().delete_link(device).unwrap()),
            ("another device under its name", &|| {
                node.kernel().delete_link(device).unwrap();
                let new = NewVxlan {
                    name: device.into(),
                    vni: 77,
                    port: 4789,
                    ..NewVxlan::default()
                };
                // The daemon may be faster.
                drop(node.kernel().add_vxlan(&new));
            }),
        ];
        for (what, break_it) in breaks {
            break_it();
            wait_until(what, || node.state(device) == good);
        }
    }
    for (address, source) in b.ips.iter().zip(&a.ips) {
        assert_eq!(seen_as(&a.netns, &b.netns, *address), *source);
    }
}

#[test]
fn a_restart_drops_nothing_and_a_node_that_leaves_is_forgotten() {
    let test = "a_restart_drops_nothing_and_a_node_that_leaves_is_forgotten";
    let Some(mut lab) = Lab::new(test, 3, true) else {
        return;
    };
    let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
    let before = lab.nodes[0].state("seaway.1");
    let index = |lab: &Lab| {
        let link = lab.nodes[0].kernel().link("seaway.1");
        link.unwrap().unwrap().index
    };
    let first = index(&lab);
    lab.nodes[0].stop();
    assert_eq!(lab.nodes[0].state("seaway.1"), before);
    seen_as(&a.netns, &b.netns, b.ips[0]);
    // While it is away, a node leaves.
    lab.api.delete("n3");
    lab.nodes[0].start(&lab.api);
    assert_eq!(index(&lab), first, "the device is the same");
    seen_as(&a.netns, &b.netns, b.ips[0]);
    let left = lab.nodes[0].state("seaway.1");
    assert!(
        before.contains("10.244.3.0") && !left.contains("10.244.3.0"),
        "{left}"
    );
    // And once more, while it is there.
    lab.api.delete("n2");
    wait_until("the other node to be forgotten", || {
        !lab.nodes[0].state("seaway.1").contains("10.244.2.0")
    });
}

/// Device, files and annotations are gone, as on a node that was installed anew: the others need not
/// learn of another hardware address.
#[test]
fn a_node_that_lost_everything_has_the_hardware_addresses_of_before() {
    let test = "a_node_that_lost_everything_has_the_hardware_addresses_of_before";
    let Some(mut lab) = Lab::new(test, 2, true) else {
        return;
    };
    let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
    let told = lab.api.annotations("n1");
    let macs = |lab: &Lab| {
        ["seaway.1", "seaway-v6.1"].map(|name| {
            let link = lab.nodes[0].kernel().link(name).unwrap();
            link.unwrap().mac
        })
    };
    let before = macs(&lab);
    let node = &mut lab.nodes[0];
    node.stop();
    node.cleanup();
    std::fs::remove_file(node.dir.path().join("subnet.env")).ok();
    lab.api.change("n1", |node| {
        node["metadata"]["annotations"] = serde_json::Value::Null
    });
    wait_until("the node to be left out", || lab.nodes[1].routes() == 0);
    lab.nodes[0].start(&lab.api);
    assert_eq!(macs(&lab), before);
    wait_until("the other node", || lab.nodes[1].routes() == 2);
    assert_eq!(lab.api.annotations("n1"), told);
    for (address, source) in b.ips.iter().zip(&a.ips) {
        assert_eq!(seen_as(&a.netns, &b.netns, *address), *source);
    }
}

#[test]
fn a_larger_underlay_makes_larger_packets() {
    let Some(lab) = Lab::new("a_larger_underlay_makes_larger_packets", 1, true) else {
        return;
    };
    let node = &lab.nodes[0];
    let change = LinkChange {
        mtu: Some(9000),
        ..LinkChange::default()
    };
    node.kernel().set_link("eth0", &change).unwrap();
    wait_until("the devices to follow", || {
        let mtu = |name: &str| node.kernel().link(name).unwrap().map(|link| link.mtu);
        (mtu("seaway.1"), mtu("seaway-v6.1")) == (Some(8950), Some(8930))
    });
    wait_until("the configuration to follow", || {
        node.conflist()["plugins"][0]["mtu"] == 8930
    });
}

#[test]
fn devices_of_another_vni_are_swept() {
    let Some(mut lab) = Lab::new("devices_of_another_vni_are_swept", 2, true) else {
        return;
    };
    let names = |lab: &Lab| -> Vec<String> {
        let links = lab.nodes[0].kernel().links().unwrap().into_iter();
        links.map(|link| link.name).collect()
    };
    for node in &mut lab.nodes {
        node.stop();
        node.settings.backend = Backend::Vxlan(Vxlan {
            vni: 7,
            ..Vxlan::default()
        });
        node.start(&lab.api);
    }
    assert_eq!(names(&lab), ["lo", "eth0", "seaway.7", "seaway-v6.7"]);
    let (a, b) = (lab.nodes[0].pod("a"), lab.nodes[1].pod("b"));
    wait_until("the other node under the new VNI", || {
        lab.nodes
            .iter()
            .all(|n| n.state("seaway.7").contains("route"))
    });
    seen_as(&a.netns, &b.netns, b.ips[0]);
}

#[test]
fn cleanup_leaves_no_trace() {
    let Some(mut lab) = Lab::new("cleanup_leaves_no_trace", 2, true) else {
        return;
    };
    let node = &mut lab.nodes[0];
    node.stop();
    assert!(node.kernel().link("seaway.1").unwrap().is_some());
    node.cleanup();
    let links: Vec<_> = node.kernel().links().unwrap();
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["lo", "eth0"]);
    let ours = RouteFilter {
        protocol: Some(PROTOCOL_SEAWAY),
        ..RouteFilter::default()
    };
    assert!(node.kernel().routes(&ours).unwrap().is_empty());
    assert!(!node.rules().contains("SEAWAY"), "{}", node.rules());
    assert_eq!(
        std::fs::read_dir(node.dir.path().join("net.d"))
            .unwrap()
            .count(),
        0
    );
    // Nothing to remove is not an error.
    node.cleanup();
}

#[test]
fn rules_that_were_removed_come_back() {
    let test = "rules_that_were_removed_come_back";
    if !lab::has_tables_of_ip(test) {
        return;
    }
    let Some(mut lab) = Lab::new(test, 1, true) else {
        return;
    };
    let node = &mut lab.nodes[0];
    assert!(node.has_tables());
    node.delete_table();
    wait_until("the table", || node.has_tables());
    if has_iptables() {
        // A host firewall that lets nothing pass. iptables tells nothing: it is looked at with the
        // next thing that is mended.
        assert!(!node.rules().contains("SEAWAY"), "{}", node.rules());
        node.iptables("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
        node.kernel().delete_link("seaway.1").unwrap();
        wait_until("the chain", || {
            node.rules()
                .contains("-A SEAWAY-FWD -s 10.244.0.0/16 -j ACCEPT")
        });
    }
    node.stop();
    node.cleanup();
    assert!(!node.has_tables());
    assert!(!node.rules().contains("SEAWAY"), "{}", node.rules());
}

#[test]
fn iptables_masquerades_where_it_is_told_to() {
    let test = "iptables_masquerades_where_it_is_told_to";
    if !has_iptables() {
        println!("SKIPPED {test}: iptables is not installed");
        return;
    }
    let by_iptables = |settings: &mut Settings| settings.masquerader = Masquerader::Iptables;
    let Some(mut lab) = Lab::with(test, 1, true, &by_iptables) else {
        return;
    };
    let pod = lab.nodes[0].pod("p");
    let masqueraded = |lab: &Lab| {
        for (outside, node_ip) in lab.outside.iter().zip(&lab.nodes[0].ips) {
            assert_eq!(seen_as(&pod.netns, &lab.fabric, *outside), *node_ip);
        }
    };
    masqueraded(&lab);
    let good = lab.nodes[0].rules();
    assert!(good.contains("--random-fully"), "{good}");
    lab.nodes[0].iptables(
        "*nat\n-F POSTROUTING\n-F SEAWAY-POSTRTG\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\nCOMMIT\n",
    );
    lab.nodes[0].kernel().delete_link("seaway.1").unwrap();
    wait_until("the chains", || {
        let rules = lab.nodes[0].rules();
        good.lines()
            .filter(|l| l.contains("SEAWAY-POSTRTG"))
            .all(|l| rules.contains(l))
            && rules.contains("-A SEAWAY-FWD -s 10.244.0.0/16 -j ACCEPT")
    });
    // Another way of masquerading takes over from it, and back.
    for masquerader in [Masquerader::Auto, Masquerader::Iptables] {
        let api = lab.api.clone();
        let node = &mut lab.nodes[0];
        node.stop();
        node.settings.masquerader = masquerader;
        node.start(&api);
        let by_nft = masquerader == Masquerader::Auto && lab::takes_tables();
        assert_eq!(node.has_tables(), by_nft);
        assert_eq!(!node.rules().contains("SEAWAY-POSTRTG"), by_nft);
        masqueraded(&lab);
    }
    let node = &mut lab.nodes[0];
    node.stop();
    node.cleanup();
    assert!(!node.rules().contains("SEAWAY"), "{}", node.rules());
}

#[test]
fn bad_flags_and_files_are_told_in_one_line() {
    for (flags, expect) in [
        (
            &["--node-name", "n", "--cluster-cidr", "10.0.0.0"][..],
            "error: invalid value '10.0.0.0' for '--cluster-cidr <NETWORKS>': \"10.0.0.0\" is not a network (ADDRESS/LENGTH)",
        ),
        (
            &["--node-name", "n", "--vni", "16777216"],
            "16777216 is not in 1..16777216",
        ),
        (
            &["--node-name", "n", "--port", "0"],
            "0 is not in 1..=65535",
        ),
        (&["--nodename", "n"], "unexpected argument '--nodename'"),
        (&[], "--node-name <NAME>"),
        (
            &["--node-name", "", "--kubeconfig", "x"],
            "--node-name must not be empty",
        ),
        (
            &["--node-name", "n", "--log-level", "a=b=c"],
            "--log-level: ",
        ),
        (
            &["--node-name", "n", "--kubeconfig", "/nowhere/config"],
            "kubeconfig /nowhere/config: No such file or directory",
        ),
    ] {
        let output = linux::exec::Exec::new(env!("CARGO_BIN_EXE_overlay"))
            .args(flags)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{flags:?}");
        assert!(text.contains(expect), "{flags:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
