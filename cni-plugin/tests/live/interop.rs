//! Beside the reference plugins: leases on the directory of `host-local`, and a chain of others
//! behind ours.

use std::path::Path;

use api::cni::{AddResult, ConfList};
use linux::Host;
use linux::exec::{Exec, Output};
use linux::route::{RouteFilter, TABLE_ANY, TABLE_MAIN};
use serde_json::{Map, Value, json};

use crate::lab::{Node, PLUGIN, Pod, V4, path};

/// Where Debian's containernetworking-plugins puts it.
const HOST_LOCAL: &str = "/usr/lib/cni/host-local";

fn host_local(node: &Node, verb: &str, container: &str) -> Option<Value> {
    let mut conf = node.conf();
    conf["ipam"]["type"] = json!("host-local");
    conf["cniVersion"] = json!("1.0.0");
    let env = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", container),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/usr/lib/cni"),
    ];
    let text = Exec::new(HOST_LOCAL)
        .env_only(env)
        .stdin(conf.to_string())
        .run()
        .unwrap()
        .text();
    serde_json::from_str(&text).ok()
}

#[test]
fn leases_are_shared_with_host_local() {
    let test = "leases_are_shared_with_host_local";
    let Some(node) = Node::new(test, &[V4]) else {
        return;
    };
    if !Path::new(HOST_LOCAL).exists() {
        println!("SKIPPED {test}: {HOST_LOCAL} is not installed (containernetworking-plugins)");
        return;
    }
    let address = |result: &Value| result["ips"][0]["address"].as_str().unwrap().to_owned();
    // They take turns in one round.
    let pods = [Pod::new("ours1"), Pod::new("ours2")];
    assert_eq!(
        node.add(&pods[0]).unwrap().ips[0].address.to_string(),
        "10.244.7.2/24"
    );
    assert_eq!(
        address(&host_local(&node, "ADD", "theirs").unwrap()),
        "10.244.7.3/24"
    );
    assert_eq!(
        node.add(&pods[1]).unwrap().ips[0].address.to_string(),
        "10.244.7.4/24"
    );
    // Each gives back what the other has leased.
    assert_eq!(node.leases().len(), 3);
    host_local(&node, "DEL", "ours1");
    assert_eq!(node.leases().len(), 2);
    node.del_by_name("theirs", None).unwrap();
    assert_eq!(node.leases().len(), 1);
}

/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Calls plugin number `at` of the list as a runtime does, in the node's namespace; it must succeed.
fn call(node: &Node, list: &ConfList, at: usize, verb: &str, pod: &Pod, input: &Value) -> String {
    let output = output(node, list, at, verb, pod, input);
    let (kind, text) = (list.plugin_type(at).unwrap(), output.text());
    assert!(output.status.success(), "{verb} of {kind}: {text}");
    text
}

/// The same, whatever comes of it.
fn output(node: &Node, list: &ConfList, at: usize, verb: &str, pod: &Pod, input: &Value) -> Output {
    let kind = list.plugin_type(at).unwrap();
    let program = if kind == "seaway-cni" {
        PLUGIN.into()
    } else {
        format!("{REFERENCE}/{kind}")
    };
    let netns = pod.netns.path().display().to_string();
    let env = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", &pod.name),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", REFERENCE),
        ("PATH", path()),
    ];
    let exec = Exec::new(program).env_only(env).stdin(input.to_string());
    node.netns.run(|| exec.output()).unwrap().unwrap()
}

/// ADD of each plugin of the list; the last one's result.
fn add(node: &Node, list: &ConfList, pod: &Pod, offered: &Map<String, Value>) -> AddResult {
    let mut previous: Option<AddResult> = None;
    for at in 0..list.plugins.len() {
        let input = list.plugin_input(at, offered, previous.as_ref());
        let text = call(node, list, at, "ADD", pod, &input);
        previous = Some(serde_json::from_str(&text).unwrap());
    }
    previous.unwrap()
}

/// DEL of each plugin of the list, the last one first.
fn del(node: &Node, list: &ConfList, pod: &Pod, offered: &Map<String, Value>, last: &AddResult) {
    for at in (0..list.plugins.len()).rev() {
        let input = list.plugin_input(at, offered, Some(last));
        call(node, list, at, "DEL", pod, &input);
    }
}

#[test]
fn reference_plugins_chain_behind_ours() {
    let test = "reference_plugins_chain_behind_ours";
    let Some(node) = Node::new(test, &[V4]) else {
        return;
    };
    let chain = ["tuning", "bandwidth", "portmap"];
    if let Some(missing) = chain
        .iter()
        .find(|kind| !Path::new(REFERENCE).join(kind).exists())
    {
        println!(
            "SKIPPED {test}: {REFERENCE}/{missing} is not installed (containernetworking-plugins)"
        );
        return;
    }
    let data = node.leases.path().join("tuning");
    let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        node.conf(),
        {"type": "tuning", "mtu": 1400, "dataDir": data},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
    ]});
    let list = ConfList::parse(&list.to_string()).unwrap();
    let offered: Map<String, Value> = serde_json::from_value(json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 1_000_000}
    }))
    .unwrap();
    let pod = Pod::new("pod");
    let last = add(&node, &list, &pod, &offered);
    assert_eq!(last.addresses_of("eth0").len(), 1);
    assert_eq!(pod.kernel().link("eth0").unwrap().unwrap().mtu, 1400);
    // Ours is first on the way in and last on the way out.
    let input = list.plugin_input(0, &offered, Some(&last));
    call(&node, &list, 0, "CHECK", &pod, &input);
    del(&node, &list, &pod, &offered, &last);
    assert!(node.leases().is_empty());
    assert_eq!(node.links(), ["cni0", "lo"]);
}

/// What a command that only looks says in a namespace; `None`: the kernel lacks what it asks for.
fn look(netns: &linux::NetNs, command: &str) -> Option<String> {
    let words = command.split(' ');
    let exec = Exec::new("env").arg(format!("PATH={}", path())).args(words);
    let output = netns.run(|| exec.output()).unwrap().unwrap();
    output.status.success().then(|| output.text())
}

/// Each of those that need nothing but a kernel, behind ours: it has done what it is for.
#[test]
fn each_reference_plugin_does_its_work_behind_ours() {
    let test = "each_reference_plugin_does_its_work_behind_ours";
    // Whose work, whether the kernel has what it takes, what the work looks like.
    for (kind, more, can, seen) in [
        (
            "firewall",
            json!({"backend": "iptables"}),
            "iptables -t filter -S",
            ["node", "iptables -S CNI-FORWARD", "-d 10.244.7.2/32"],
        ),
        (
            "sbr",
            json!({}),
            "ip rule",
            ["pod", "ip rule", "from 10.244.7.2"],
        ),
        (
            "vrf",
            json!({"vrfname": "blue"}),
            "ip link add probe type vrf table 77",
            ["pod", "ip -o link show master blue", "eth0"],
        ),
    ] {
        let Some(node) = Node::new(test, &[V4]) else {
            return;
        };
        if !Path::new(REFERENCE).join(kind).exists() {
            println!(
                "SKIPPED {test}: {REFERENCE}/{kind} is not installed (containernetworking-plugins)"
            );
            return;
        }
        if look(&Pod::new("probe").netns, can).is_none() {
            println!("SKIPPED {test} ({kind}): this kernel refuses: {can}");
            continue;
        }
        let mut other = json!({"type": kind});
        other
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [node.conf(), other]});
        let list = ConfList::parse(&list.to_string()).unwrap();
        let (pod, none) = (Pod::new("pod"), Map::new());
        let last = add(&node, &list, &pod, &none);
        let [place, command, expect] = seen;
        let netns = if place == "pod" {
            &pod.netns
        } else {
            &node.netns
        };
        let said = look(netns, command).unwrap_or_default();
        assert!(said.contains(expect), "{kind}: {command}: {said}");
        // Two of them move the pod's routes to tables of their own. With an older vrf the default route
        // is gone: the kernel took it away when the interface moved.
        let input = list.plugin_input(0, &none, Some(&last));
        let mut host = pod.kernel();
        let of_link = RouteFilter {
            dev: Some("eth0"),
            table: Some(TABLE_ANY),
            ..RouteFilter::default()
        };
        let routes = host.routes(&of_link).unwrap();
        let default = routes.iter().find(|route| route.is_default());
        assert!(default.is_some() || kind == "vrf", "{kind}: {routes:?}");
        let check = |there: bool| {
            let output = output(&node, &list, 0, "CHECK", &pod, &input);
            assert_eq!(output.status.success(), there, "{kind}: {}", output.text());
            assert!(there || output.text().contains("no route to 0.0.0.0/0"));
        };
        check(default.is_some());
        if let Some(moved) = default.filter(|_| kind == "sbr") {
            assert_ne!(moved.table, TABLE_MAIN);
            host.del_route(moved).unwrap();
            check(false);
            host.add_route(moved).unwrap();
        }
        del(&node, &list, &pod, &none, &last);
        let said = look(netns, command).unwrap_or_default();
        assert!(!said.contains(expect), "{kind}: {command}: {said}");
        assert!(node.leases().is_empty());
        assert_eq!(node.links(), ["cni0", "lo"]);
    }
}
