//! Each verb by itself.

use std::path::PathBuf;
use std::thread;

use api::cni::ErrorCode;
use linux::addr::Addr;
use linux::link::LinkChange;
use linux::route::{Route, RouteFilter};
use linux::{Host, NetNs};
use serde_json::{Value, json};

use crate::lab::{Node, Pod, V4, V6, refused};

#[test]
fn add_check_del_of_every_family_leaves_nothing() {
    let test = "add_check_del_of_every_family_leaves_nothing";
    for ranges in [&[V4][..], &[V6], &[V4, V6]] {
        let Some(node) = Node::new(test, ranges) else {
            return;
        };
        node.make_bridge();
        let before = node.dump();

        let pod = Pod::new("pod");
        let result = node.add(&pod).unwrap();
        node.check(&pod, &result).unwrap();
        let eth0 = pod.kernel().link("eth0").unwrap().unwrap();
        assert_eq!((eth0.mtu, eth0.up, eth0.running), (1450, true, true));
        assert_eq!(result.interfaces[2].mac, eth0.mac.unwrap().to_string());
        let addrs: Vec<_> = pod.kernel().addrs("eth0").unwrap();
        for net in result.addresses_of("eth0") {
            let addr = addrs.iter().find(|a| a.net == net).unwrap();
            assert!(!addr.tentative, "{net} is usable at once");
        }
        assert_eq!(result.ips.len(), ranges.len());
        assert_eq!(node.leases().len(), ranges.len());
        let host = &result.interfaces[1].name;
        assert_eq!(node.links(), ["cni0", "lo", host.as_str()]);
        let port = node.kernel().link(host).unwrap().unwrap();
        assert!(port.port.unwrap().hairpin && port.port.unwrap().forwarding);
        assert_eq!(port.alias.as_deref(), Some("seaway:pods:pod:eth0"));
        if ranges.contains(&V4) {
            assert_eq!(node.kernel().sysctl("net/ipv4/ip_forward").unwrap(), "1");
        }
        if ranges.contains(&V6) {
            assert_eq!(
                node.kernel()
                    .sysctl("net/ipv6/conf/all/forwarding")
                    .unwrap(),
                "1"
            );
        }

        node.del(&pod).unwrap();
        assert_eq!(node.dump(), before, "{ranges:?}");
        assert!(node.leases().is_empty());
        assert_eq!(pod.kernel().links().unwrap().len(), 1);
        node.del(&pod).unwrap();
    }
}

#[test]
fn del_works_however_little_is_left() {
    let Some(node) = Node::new("del_works_however_little_is_left", &[V4, V6]) else {
        return;
    };
    // The namespace is gone, by path or without one.
    for path_given in [true, false] {
        let pod = Pod::new("pod");
        node.add(&pod).unwrap();
        let path = pod.netns.path();
        drop(pod);
        node.del_by_name("pod", path_given.then_some(path)).unwrap();
        assert!(node.leases().is_empty());
        assert_eq!(node.links(), ["cni0", "lo"]);
    }
    // The interface is gone.
    let pod = Pod::new("pod");
    node.add(&pod).unwrap();
    pod.kernel().delete_link("eth0").unwrap();
    node.del(&pod).unwrap();
    assert!(node.leases().is_empty());
    // Never added.
    node.del(&Pod::new("unknown")).unwrap();
    // The node's end has another name, as a network that was renamed leaves it.
    node.add(&pod).unwrap();
    let host = node.links().pop().unwrap();
    node.kernel().set_link(&host, &LinkChange::down()).unwrap();
    let renamed = LinkChange {
        name: Some("other".into()),
        ..LinkChange::default()
    };
    node.kernel().set_link(&host, &renamed).unwrap();
    node.del(&pod).unwrap();
    assert_eq!(node.links(), ["cni0", "lo"]);
}

#[test]
fn check_sees_what_was_broken() {
    let Some(node) = Node::new("check_sees_what_was_broken", &[V4, V6]) else {
        return;
    };
    let pod = Pod::new("pod");
    let result = node.add(&pod).unwrap();
    node.check(&pod, &result).unwrap();
    let broken = |words: &str| refused(node.check(&pod, &result), ErrorCode::CHECK, words);
    let host = result.interfaces[1].name.clone();
    let of = |default: bool| RouteFilter {
        ipv6: Some(default),
        ..RouteFilter::default()
    };
    let routes = pod.kernel().routes(&of(true)).unwrap();
    let default = routes.into_iter().find(Route::is_default).unwrap();
    pod.kernel().del_route(&default).unwrap();
    broken("no route to ::/0");
    pod.kernel().add_route(&default).unwrap();
    let net = result.ips[0].address;
    pod.kernel().del_addr("eth0", net).unwrap();
    broken(&format!("eth0 has no address {net}"));
    pod.kernel().add_addr("eth0", &Addr::new(net)).unwrap();
    broken("no route to 0.0.0.0/0");
    let gateway = result.routes[0].gw.unwrap();
    pod.kernel()
        .add_route(&Route::to(result.routes[0].dst).via(gateway).dev("eth0"))
        .unwrap();
    node.check(&pod, &result).unwrap();
    let out = LinkChange {
        master: Some(String::new()),
        ..LinkChange::default()
    };
    node.kernel().set_link(&host, &out).unwrap();
    broken(&format!("{host} is not a port of cni0"));
    node.kernel().delete_link(&host).unwrap();
    broken("eth0 is not there");
}

#[test]
fn refusals_leave_nothing_behind() {
    let Some(node) = Node::new("refusals_leave_nothing_behind", &[V4]) else {
        return;
    };
    let pod = Pod::new("pod");
    let before = node.dump();
    let add = |conf: &Value, netns: PathBuf| node.call(&node.exec("ADD", "pod", Some(netns), conf));
    let path = || pod.netns.path();
    let mut conf = node.conf();
    conf["mtu"] = json!("large");
    refused(
        add(&conf, path()),
        ErrorCode::DECODE,
        "mtu: must be a whole number, not \"large\"",
    );
    let env = ErrorCode::INVALID_ENVIRONMENT;
    refused(
        add(&node.conf(), "/run/netns/no-such".into()),
        env,
        "CNI_NETNS: open network namespace",
    );
    refused(
        add(&node.conf(), "/etc/hosts".into()),
        env,
        "the file is not a namespace",
    );
    refused(
        add(&node.conf(), node.netns.path()),
        env,
        "that the plugin runs in",
    );
    assert_eq!((node.dump(), node.leases().len()), (before, 0));
    // The kernel itself refuses: IPv6 needs an MTU of 1280.
    let Some(node) = Node::new("refusals_leave_nothing_behind", &[V4, V6]) else {
        return;
    };
    let mut conf = node.conf();
    conf["mtu"] = json!(1000);
    let error = node.call(&node.exec("ADD", "pod", Some(pod.netns.path()), &conf));
    assert!(error.is_err());
    assert_eq!(
        (node.links(), node.leases().len()),
        (vec!["cni0".into(), "lo".into()], 0)
    );
    assert_eq!(pod.kernel().links().unwrap().len(), 1);
}

#[test]
fn adding_twice_is_refused_and_harms_nothing() {
    let Some(node) = Node::new("adding_twice_is_refused_and_harms_nothing", &[V4]) else {
        return;
    };
    let pod = Pod::new("pod");
    let result = node.add(&pod).unwrap();
    refused(
        node.add(&pod),
        ErrorCode::ADDRESS,
        "DEL must come before another ADD",
    );
    // Another container with the same namespace.
    let other = Pod {
        netns: NetNs::open(pod.netns.path()).unwrap(),
        name: "other".into(),
    };
    refused(
        node.add(&other),
        ErrorCode::INVALID_ENVIRONMENT,
        "CNI_IFNAME: eth0 exists in ",
    );
    assert_eq!(node.leases().len(), 1);
    node.check(&pod, &result).unwrap();
}

#[test]
fn gc_and_status() {
    let Some(node) = Node::new("gc_and_status", &[V4, V6]) else {
        return;
    };
    let pods = ["a", "b", "c"].map(Pod::new);
    let results: Vec<_> = pods.iter().map(|pod| node.add(pod).unwrap()).collect();
    let mut conf = node.conf();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    node.call(&node.exec("GC", "", None, &conf)).unwrap();
    assert_eq!(node.leases().len(), 2);
    assert_eq!(node.links().len(), 3);
    node.check(&pods[1], &results[1]).unwrap();
    assert_eq!(
        node.call(&node.exec("STATUS", "", None, &node.conf()))
            .unwrap(),
        ""
    );
    let mut conf = node.conf();
    let small = json!([[{"subnet": V4, "rangeEnd": "10.244.7.3", "rangeStart": "10.244.7.3"}]]);
    conf["ipam"]["ranges"] = small;
    let status = node.call(&node.exec("STATUS", "", None, &conf));
    refused(
        status,
        ErrorCode::NOT_AVAILABLE,
        "IP pool 10.244.7.0/24 full: 1 of 1",
    );
}

#[test]
fn eight_at_a_time() {
    let Some(node) = Node::new("eight_at_a_time", &[V4, V6]) else {
        return;
    };
    let pods: Vec<Pod> = (0..32).map(|n| Pod::new(&format!("pod{n}"))).collect();
    let in_parallel = |work: &(dyn Fn(&Pod) + Sync)| {
        thread::scope(|scope| {
            for chunk in pods.chunks(pods.len() / 8) {
                scope.spawn(move || chunk.iter().for_each(work));
            }
        });
    };
    // Also the first ones at once, which all want to make the bridge.
    in_parallel(&|pod| {
        let result = node.add(pod).unwrap();
        node.check(pod, &result).unwrap();
    });
    assert_eq!(
        node.leases().len(),
        2 * pods.len(),
        "no address was given twice"
    );
    assert_eq!(node.links().len(), pods.len() + 2);
    let mut macs: Vec<_> = node
        .kernel()
        .links()
        .unwrap()
        .into_iter()
        .map(|l| l.mac)
        .collect();
    macs.sort();
    macs.dedup();
    assert_eq!(macs.len(), pods.len() + 2);
    in_parallel(&|pod| node.del(pod).unwrap());
    assert!(node.leases().is_empty());
    assert_eq!(node.links(), ["cni0", "lo"]);
}

#[test]
fn a_node_that_got_another_subnet() {
    let Some(node) = Node::new("a_node_that_got_another_subnet", &[V4, V6]) else {
        return;
    };
    let (old, new) = (Pod::new("old"), Pod::new("new"));
    node.add(&old).unwrap();
    let mut conf = node.conf();
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd00:99::/64"}]]);
    let add = || node.call(&node.exec("ADD", &new.name, Some(new.netns.path()), &conf));
    let words = "cni0 has address 10.244.7.1/24 and 1 pods, the network wants 10.99.0.1/24";
    refused(add(), ErrorCode::INVALID_CONFIG, words);
    assert_eq!(node.leases().len(), 2, "the old pod's");
    node.del(&old).unwrap();
    add().unwrap();
    let addrs = node.kernel().addrs("cni0").unwrap();
    let v4: Vec<_> = addrs
        .iter()
        .map(|a| a.net.to_string())
        .filter(|n| !n.contains(':'))
        .collect();
    assert_eq!(v4, ["10.99.0.1/24"]);
}
