//! Leases beside the reference plugin `host-local`, on the same directory.

use std::path::Path;

use linux::exec::Exec;
use serde_json::{Value, json};

use crate::lab::{Node, Pod, V4};

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
