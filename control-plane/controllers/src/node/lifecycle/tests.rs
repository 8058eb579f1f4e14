use serde_json::{Value, json};

use crate::config::Config;
use crate::fake::{Sim, at, node};
use crate::kinds::Kind;

fn lease(name: &str, seconds: u64) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "renewTime": format!("{:.6}", at(seconds).wall)},
    })
}

fn sim() -> Sim {
    let config = Config {
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/56".parse().unwrap(),
        ],
        ..Config::default()
    };
    let mut sim = Sim::new(config);
    sim.put(Kind::Node, node("n1"));
    sim.settle();
    sim
}

fn ready(sim: &Sim) -> Value {
    let node = sim.get(Kind::Node, "", "n1").unwrap();
    node["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["type"] == "Ready")
        .unwrap()["status"]
        .clone()
}

fn taints(sim: &Sim) -> Vec<String> {
    let node = sim.get(Kind::Node, "", "n1").unwrap();
    let taints = node["spec"]["taints"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    taints
        .iter()
        .map(|it| {
            format!(
                "{}:{}",
                it["key"].as_str().unwrap(),
                it["effect"].as_str().unwrap()
            )
        })
        .collect()
}

#[test]
fn every_node_gets_a_slice_of_both_families() {
    let mut sim = sim();
    sim.put(Kind::Node, node("n2"));
    sim.settle();
    let cidrs = |name: &str| sim.get(Kind::Node, "", name).unwrap()["spec"]["podCIDRs"].clone();
    assert_eq!(cidrs("n1"), json!(["10.244.0.0/24", "fd00:10:244::/64"]));
    assert_eq!(cidrs("n2"), json!(["10.244.1.0/24", "fd00:10:244:1::/64"]));
    assert_eq!(
        sim.get(Kind::Node, "", "n1").unwrap()["spec"]["podCIDR"],
        "10.244.0.0/24"
    );
    sim.remove(Kind::Node, "", "n1");
    sim.put(Kind::Node, node("n3"));
    sim.settle();
    assert_eq!(
        sim.get(Kind::Node, "", "n3").unwrap()["spec"]["podCIDR"],
        "10.244.0.0/24"
    );
}

#[test]
fn a_renewed_lease_keeps_a_node_ready() {
    let mut sim = sim();
    for second in (0..120).step_by(10) {
        sim.put(Kind::Lease, lease("n1", second));
        sim.settle();
        sim.pass(10);
    }
    assert_eq!(ready(&sim), "True");
    assert!(taints(&sim).is_empty());
}

#[test]
fn a_silent_node_becomes_unreachable_and_comes_back() {
    let mut sim = sim();
    sim.put(Kind::Lease, lease("n1", 0));
    sim.settle();
    sim.pass(39);
    assert_eq!(ready(&sim), "True");
    sim.pass(2);
    assert_eq!(ready(&sim), "Unknown");
    assert_eq!(
        taints(&sim),
        [
            "node.kubernetes.io/unreachable:NoSchedule",
            "node.kubernetes.io/unreachable:NoExecute",
        ]
    );
    let added = &sim.get(Kind::Node, "", "n1").unwrap()["spec"]["taints"][1]["timeAdded"];
    assert!(added.is_string());
    sim.put(Kind::Lease, lease("n1", 41));
    sim.edit(Kind::Node, "", "n1", |node| {
        node["status"]["conditions"][0]["status"] = json!("True")
    });
    sim.edit(Kind::Node, "", "n1", |node| {
        for condition in node["status"]["conditions"].as_array_mut().unwrap() {
            condition["status"] = json!(if condition["type"] == "Ready" {
                "True"
            } else {
                "False"
            });
        }
    });
    sim.settle();
    assert!(taints(&sim).is_empty());
}

#[test]
fn conditions_and_cordon_become_taints_and_foreign_ones_stay() {
    let mut sim = sim();
    sim.edit(Kind::Node, "", "n1", |node| {
        node["spec"]["taints"] = json!([{"key": "mine", "effect": "NoSchedule"}]);
        node["spec"]["unschedulable"] = json!(true);
        node["status"]["conditions"] = json!([
            {"type": "Ready", "status": "False"},
            {"type": "DiskPressure", "status": "True"},
            {"type": "MemoryPressure", "status": "False"},
        ]);
    });
    sim.settle();
    assert_eq!(
        taints(&sim),
        [
            "mine:NoSchedule",
            "node.kubernetes.io/not-ready:NoSchedule",
            "node.kubernetes.io/not-ready:NoExecute",
            "node.kubernetes.io/disk-pressure:NoSchedule",
            "node.kubernetes.io/unschedulable:NoSchedule",
        ]
    );
}

#[test]
fn a_fresh_node_is_not_scheduled_to() {
    let mut sim = sim();
    sim.edit(Kind::Node, "", "n1", |node| node["status"] = json!({}));
    sim.settle();
    assert_eq!(taints(&sim), ["node.kubernetes.io/not-ready:NoSchedule"]);
}
