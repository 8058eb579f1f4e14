use proptest::prelude::*;
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Nodes come and go, events and answers are late, writes fail with and without effect: no two nodes ever have
    /// slices that overlap, and in the end every node has one of each family while there are enough.
    #[test]
    fn no_two_nodes_share_a_slice(
        steps in prop::collection::vec((0_u8..12, any::<bool>(), any::<bool>()), 1..60),
        order in prop::collection::vec(0_usize..3, 0..120),
        flaky in prop::collection::vec(0_u8..3, 0..60),
    ) {
        let config = Config {
            cluster_cidrs: vec!["10.244.0.0/20".parse().unwrap(), "fd00:10:244::/60".parse().unwrap()],
            ..Config::default()
        };
        let mut sim = Sim::new(config);
        sim.order = order.into();
        sim.flaky = flaky.into();
        sim.slow = true;
        for (index, remove, work) in steps {
            let name = format!("n{index}");
            if remove {
                sim.remove(Kind::Node, "", &name);
            } else if sim.get(Kind::Node, "", &name).is_none() {
                sim.put(Kind::Node, node(&name));
            }
            if work {
                sim.deliver();
                sim.work();
            }
            check_slices(&sim)?;
        }
        sim.settle();
        sim.pass(400);
        check_slices(&sim)?;
        for node in sim.list(Kind::Node) {
            prop_assert_eq!(node["spec"]["podCIDRs"].as_array().map(Vec::len), Some(2));
        }
    }
}

fn check_slices(sim: &Sim) -> Result<(), TestCaseError> {
    let all: Vec<String> = sim
        .list(Kind::Node)
        .iter()
        .flat_map(|node| {
            node["spec"]["podCIDRs"]
                .as_array()
                .cloned()
                .unwrap_or_default()
        })
        .map(|cidr| cidr.to_string())
        .collect();
    let mut distinct = all.clone();
    distinct.sort();
    distinct.dedup();
    prop_assert_eq!(distinct.len(), all.len(), "{:?}", all);
    Ok(())
}
