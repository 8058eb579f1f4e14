//! Versions, rate limits, chains and the less usual options of the bridge.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use api::cni::{AddResult, ErrorCode};
use linux::exec::Exec;
use linux::{Host, NetNs};
use serde_json::{Value, json};

use crate::lab::{Node, PLUGIN, Pod, V4, V6, refused};

fn with(node: &Node, changes: &Value) -> Value {
    let mut conf = node.conf();
    for (key, value) in changes.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

fn call(node: &Node, verb: &str, pod: &Pod, conf: &Value) -> Value {
    let text = node.call(&node.exec(verb, &pod.name, Some(pod.netns.path()), conf));
    serde_json::from_str(&text.unwrap()).unwrap_or(Value::Null)
}

#[test]
fn every_verb_in_every_version() {
    let Some(node) = Node::new("every_verb_in_every_version", &[V4, V6]) else {
        return;
    };
    let versions = [
        "", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ];
    for version in versions {
        let conf = with(&node, &json!({"cniVersion": version}));
        let pod = Pod::new("pod");
        let result = call(&node, "ADD", &pod, &conf);
        let wanted = if version.is_empty() { "0.1.0" } else { version };
        assert_eq!(result["cniVersion"], wanted);
        let addresses = match version {
            "" | "0.1.0" | "0.2.0" => [&result["ip4"]["ip"], &result["ip6"]["ip"]],
            _ => [&result["ips"][0]["address"], &result["ips"][1]["address"]],
        };
        assert!(
            addresses.iter().all(|a| a.is_string()),
            "{version}: {result}"
        );
        assert_eq!(
            result["ips"][1].get("version").is_some(),
            ("0.3.0".."1.0.0").contains(&version)
        );

        let mut checked = conf.clone();
        checked["prevResult"] = result.clone();
        let check = node.exec("CHECK", "pod", Some(pod.netns.path()), &checked);
        let mut valid = conf.clone();
        valid["cni.dev/valid-attachments"] = json!([{"containerID": "pod", "ifname": "eth0"}]);
        let gc = node.exec("GC", "pod", None, &valid);
        let status = node.exec("STATUS", "pod", None, &conf);
        let early = |verb| format!("cniVersion: {verb} needs at least version");
        if version >= "0.4.0" {
            assert_eq!(node.call(&check).unwrap(), "");
        } else {
            refused(
                node.call(&check),
                ErrorCode::INCOMPATIBLE_VERSION,
                &early("Check"),
            );
        }
        if version >= "1.1.0" {
            assert_eq!(node.call(&gc).unwrap(), "");
            assert_eq!(node.call(&status).unwrap(), "");
        } else {
            refused(
                node.call(&gc),
                ErrorCode::INCOMPATIBLE_VERSION,
                &early("Gc"),
            );
            refused(
                node.call(&status),
                ErrorCode::INCOMPATIBLE_VERSION,
                &early("Status"),
            );
        }
        for netns in [Some(pod.netns.path()), None] {
            let mut deleted = checked.clone();
            if netns.is_none() {
                // Nothing that a runtime has lost, or has wrong, stands in the way.
                deleted["prevResult"] = json!({"ips": "lost"});
                deleted["runtimeConfig"] = json!({"portMappings": "lost"});
            }
            let del = node.exec("DEL", "pod", netns, &deleted);
            assert_eq!(node.call(&del).unwrap(), "", "{version}");
            assert!(node.leases().is_empty());
        }
    }
    // A link alone cannot be told in the old words.
    let conf = with(&node, &json!({"cniVersion": "0.2.0", "ipam": {}}));
    let pod = Pod::new("pod");
    let add = node.exec("ADD", "pod", Some(pod.netns.path()), &conf);
    refused(
        node.call(&add),
        ErrorCode::INVALID_CONFIG,
        "without addresses",
    );
    assert_eq!(node.links(), ["cni0", "lo"]);
}

/// Sends bytes from one namespace to another, of which `burst` at once; bytes a second of the rest. The time
/// begins before the first is sent and ends after the last has come, so that nobody's delay makes it faster.
fn throughput(from: &NetNs, to: &NetNs, address: IpAddr, bytes: usize, burst: usize) -> f64 {
    let listener = to.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let target: SocketAddr = listener.local_addr().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        assert_eq!(stream.read_to_end(&mut got).unwrap(), bytes);
    });
    let start = Instant::now();
    let mut stream = from.run(|| TcpStream::connect(target)).unwrap().unwrap();
    stream.write_all(&vec![7; bytes]).unwrap();
    drop(stream);
    reader.join().unwrap();
    (bytes - burst) as f64 / start.elapsed().as_secs_f64()
}

#[test]
fn rates_are_limited_both_ways_and_checked() {
    let Some(node) = Node::new("rates_are_limited_both_ways_and_checked", &[V4]) else {
        return;
    };
    node.make_bridge();
    node.kernel()
        .set_link("lo", &linux::link::LinkChange::up())
        .unwrap();
    let before = node.dump();
    // 2 MB/s to the pod, 1 MB/s from it, 64 KB at once.
    let limits = json!({"ingressRate": 16_000_000, "ingressBurst": 512_000,
                        "egressRate": 8_000_000, "egressBurst": 512_000});
    let conf = with(&node, &json!({"runtimeConfig": {"bandwidth": limits}}));
    let pod = Pod::new("pod");
    let result = call(&node, "ADD", &pod, &conf);
    let ifb = result["interfaces"][3]["name"].as_str().unwrap().to_owned();
    assert!(
        ifb.starts_with("ifb") && node.links().contains(&ifb),
        "{result}"
    );
    let address: IpAddr = "10.244.7.3".parse().unwrap();
    assert_eq!(result["ips"][0]["address"], "10.244.7.3/24");
    let gateway: IpAddr = "10.244.7.1".parse().unwrap();
    let to = throughput(&node.netns, &pod.netns, address, 2_000_000, 64_000);
    let from = throughput(&pod.netns, &node.netns, gateway, 1_500_000, 64_000);
    // A limit is an upper one: a busy machine may be slower. 15 % for headers and rounding.
    assert!(to < 2_300_000.0, "{to} bytes a second to the pod");
    assert!(from < 1_150_000.0, "{from} bytes a second from the pod");

    let mut checked = conf.clone();
    checked["prevResult"] = result;
    let check = node.exec("CHECK", "pod", Some(pod.netns.path()), &checked);
    node.call(&check).unwrap();
    node.kernel().delete_link(&ifb).unwrap();
    refused(
        node.call(&check),
        ErrorCode::CHECK,
        "what goes from the pod is none, not 1000000",
    );
    call(&node, "DEL", &pod, &conf);
    assert_eq!(node.dump(), before);
    // Limits that are none.
    for limits in [json!({"ingressRate": 5}), json!({"egressBurst": 5})] {
        let conf = with(&node, &json!({"runtimeConfig": {"bandwidth": limits}}));
        let add = node.exec("ADD", "pod", Some(pod.netns.path()), &conf);
        refused(
            node.call(&add),
            ErrorCode::INVALID_CONFIG,
            "runtimeConfig.bandwidth.",
        );
    }
}

/// Calls a program as a plugin in the node's namespace.
fn call_program(node: &Node, program: &str, verb: &str, pod: &Pod, conf: &Value) -> Value {
    let netns = pod.netns.path().display().to_string();
    let env = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", &pod.name),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/usr/lib/cni"),
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ];
    let exec = Exec::new(program).env_only(env).stdin(conf.to_string());
    let output = node.netns.run(|| exec.output()).unwrap().unwrap();
    assert!(
        output.status.success(),
        "{verb} of {program}: {}",
        output.text()
    );
    serde_json::from_str(&output.text()).unwrap_or(Value::Null)
}

#[test]
fn behind_another_plugin_only_ports_and_rates_are_added() {
    let test = "behind_another_plugin_only_ports_and_rates_are_added";
    let Some(node) = Node::new(test, &[V4, V6]) else {
        return;
    };
    if !std::path::Path::new("/usr/lib/cni/bridge").exists() {
        println!(
            "SKIPPED {test}: /usr/lib/cni/bridge is not installed (containernetworking-plugins)"
        );
        return;
    }
    let mut bridge = with(
        &node,
        &json!({"cniVersion": "1.0.0", "type": "bridge", "isGateway": true}),
    );
    bridge["ipam"]["type"] = json!("host-local");
    let reference = "/usr/lib/cni/bridge";
    let pod = Pod::new("pod");
    let first = call_program(&node, reference, "ADD", &pod, &bridge);
    let before = node.links();
    let mut ours = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "seaway-cni", "prevResult": first,
        "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 512_000,
                          "egressRate": 8_000_000, "egressBurst": 512_000}
        }
    });
    let result = call_program(&node, PLUGIN, "ADD", &pod, &ours);
    // Its result is handed on, with the one interface that was made.
    let mut without = result.clone();
    without["interfaces"].as_array_mut().unwrap().pop();
    assert_eq!(without, first);
    let veth = first["interfaces"][1]["name"].as_str().unwrap();
    assert!(node.kernel().token_bucket(veth).unwrap().is_some());
    ours["prevResult"] = result;
    call_program(&node, PLUGIN, "CHECK", &pod, &ours);
    bridge["prevResult"] = first;
    call_program(&node, reference, "CHECK", &pod, &bridge);
    // DEL goes the other way round, and leaves the other's link alone.
    for _twice in 0..2 {
        call_program(&node, PLUGIN, "DEL", &pod, &ours);
        assert_eq!(node.links(), before);
        assert!(pod.kernel().link("eth0").unwrap().is_some());
    }
    call_program(&node, reference, "DEL", &pod, &bridge);
    // The first plugin's keys have no place behind another.
    ours["bridge"] = json!("cni0");
    let add = node.exec("ADD", "pod", Some(pod.netns.path()), &ours);
    refused(
        node.call(&add),
        ErrorCode::INVALID_CONFIG,
        "bridge: has no place behind another plugin",
    );
}

#[test]
fn addresses_may_come_from_another_plugin() {
    let test = "addresses_may_come_from_another_plugin";
    let Some(node) = Node::new(test, &[V4]) else {
        return;
    };
    let conf = with(
        &node,
        &json!({"cniVersion": "1.0.0", "ipam": {"type": "static", "addresses": [
        {"address": "10.9.0.7/24"}, {"address": "fd00:9::7/64", "gateway": "fd00:9::1"}
    ], "routes": [{"dst": "10.8.0.0/16"}]}}),
    );
    let path = |conf: &Value, path: &str| {
        let pod = Pod::new("pod");
        let exec = node
            .exec("ADD", "pod", Some(pod.netns.path()), conf)
            .env("CNI_PATH", path);
        (node.call(&exec), pod)
    };
    let (missing, _) = path(&conf, "/no/such/dir");
    refused(
        missing,
        ErrorCode::DELEGATE,
        "find plugin static: it is not in CNI_PATH (/no/such/dir)",
    );
    if !std::path::Path::new("/usr/lib/cni/static").exists() {
        println!(
            "SKIPPED {test}: /usr/lib/cni/static is not installed (containernetworking-plugins)"
        );
        return;
    }
    let (added, pod) = path(&conf, "/usr/lib/cni");
    let result: AddResult = serde_json::from_str(&added.unwrap()).unwrap();
    let ips: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
    assert_eq!(ips, ["10.9.0.7/24", "fd00:9::7/64"]);
    // The gateway that it did not name is the first address.
    assert_eq!(result.ips[0].gateway.unwrap().to_string(), "10.9.0.1");
    assert_eq!(result.routes.len(), 3);
    let bridge = node.kernel().addrs("cni0").unwrap();
    assert!(
        bridge.iter().any(|a| a.net.to_string() == "10.9.0.1/24"),
        "{bridge:?}"
    );
    let del = node
        .exec("DEL", "pod", Some(pod.netns.path()), &conf)
        .env("CNI_PATH", "/usr/lib/cni");
    node.call(&del).unwrap();
    assert_eq!(node.links(), ["cni0", "lo"]);
    // Its own words are handed on.
    let wrong = with(
        &node,
        &json!({"cniVersion": "1.0.0",
        "ipam": {"type": "static", "addresses": [{"address": "x"}]}}),
    );
    refused(
        path(&wrong, "/usr/lib/cni").0,
        ErrorCode(999),
        "ADD of static: ",
    );
}

#[test]
fn options_of_the_bridge_that_this_kernel_may_lack() {
    let test = "options_of_the_bridge_that_this_kernel_may_lack";
    let Some(node) = Node::new(test, &[V4]) else {
        return;
    };
    let pod = Pod::new("pod");
    let conf = with(
        &node,
        &json!({"vlan": 100, "vlanTrunk": [{"minID": 200, "maxID": 210}],
                                   "preserveDefaultVlan": false}),
    );
    let exec = node.exec("ADD", "pod", Some(pod.netns.path()), &conf);
    match node.call(&exec) {
        Ok(_) => {
            let exec = Exec::new("bridge").args(["vlan", "show"]);
            let shown = node.netns.run(|| exec.run().unwrap().text()).unwrap();
            assert!(shown.contains("100 PVID Egress Untagged"), "{shown}");
            assert!(
                shown.contains("200") && node.links().contains(&"cni0.100".into()),
                "{shown}"
            );
            call(&node, "DEL", &pod, &conf);
        }
        Err(error) => {
            // A kernel without VLANs says so itself, and nothing is left.
            assert!(
                error.msg.starts_with("set VLAN filtering of cni0 on"),
                "{error}"
            );
            println!("SKIPPED {test}: {error}");
        }
    }
    assert!(node.leases().is_empty());
}

#[test]
fn a_pods_end_may_stay_down_and_ipv6_addresses_may_be_probed() {
    let test = "a_pods_end_may_stay_down_and_ipv6_addresses_may_be_probed";
    let Some(node) = Node::new(test, &[V6]) else {
        return;
    };
    let pod = Pod::new("down");
    let conf = with(
        &node,
        &json!({"disableContainerInterface": true, "ipam": null}),
    );
    call(&node, "ADD", &pod, &conf);
    assert!(!pod.kernel().link("eth0").unwrap().unwrap().up);
    call(&node, "DEL", &pod, &conf);
    let pod = Pod::new("probed");
    let conf = with(&node, &json!({"enabledad": true}));
    call(&node, "ADD", &pod, &conf);
    let addrs = pod.kernel().addrs("eth0").unwrap();
    let global = addrs
        .iter()
        .find(|a| a.net.prefix() == 64 && a.net.to_string().starts_with("fd00"));
    assert!(
        global.is_some_and(|a| !a.tentative && !a.nodad),
        "{addrs:?}"
    );
    call(&node, "DEL", &pod, &conf);
}
