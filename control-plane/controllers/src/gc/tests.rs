use serde_json::json;

use crate::config::Config;
use crate::fake::{Sim, deployment, node, pod, replica_set};
use crate::kinds::Kind;
use crate::write::Propagation;

fn sim() -> Sim {
    let mut sim = Sim::new(Config::default());
    sim.put(Kind::Node, node("n1"));
    sim.put(Kind::Deployment, deployment("web", 2));
    sim.settle_with_kubelets();
    assert_eq!(left(&sim), (1, 1, 2));
    sim
}

fn left(sim: &Sim) -> (usize, usize, usize) {
    let count = |kind| sim.list(kind).len();
    (
        count(Kind::Deployment),
        count(Kind::ReplicaSet),
        count(Kind::Pod),
    )
}

#[test]
fn in_the_background_dependents_follow() {
    let mut sim = sim();
    sim.delete(Kind::Deployment, "default", "web", Propagation::Background);
    sim.settle();
    assert_eq!(left(&sim), (0, 0, 0));
}

#[test]
fn in_the_foreground_dependents_go_first() {
    let mut sim = sim();
    sim.delete(Kind::Deployment, "default", "web", Propagation::Foreground);
    loop {
        let (deployments, sets, pods) = left(&sim);
        assert!(deployments == 1 || (sets == 0 && pods == 0));
        assert!(sets == 1 || pods == 0);
        if !(sim.deliver() || sim.work()) {
            break;
        }
    }
    assert_eq!(left(&sim), (0, 0, 0));
}

#[test]
fn orphans_stay() {
    let mut sim = sim();
    sim.delete(Kind::Deployment, "default", "web", Propagation::Orphan);
    sim.settle();
    assert_eq!(left(&sim), (0, 1, 2));
    assert!(sim.list(Kind::ReplicaSet)[0]["metadata"]["ownerReferences"].is_null());
}

#[test]
fn one_of_two_owners_is_enough() {
    let mut sim = Sim::new(Config::default());
    sim.put(Kind::ReplicaSet, replica_set("a", 0));
    sim.put(Kind::Service, crate::fake::service("s"));
    let uid = |sim: &Sim, kind, name: &str| {
        sim.get(kind, "default", name).unwrap()["metadata"]["uid"].clone()
    };
    let mut both = pod("both");
    both["metadata"]["labels"] = json!({});
    both["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": uid(&sim, Kind::ReplicaSet, "a")},
        {"apiVersion": "v1", "kind": "Service", "name": "s", "uid": uid(&sim, Kind::Service, "s")},
    ]);
    sim.put(Kind::Pod, both);
    sim.settle();
    sim.delete(Kind::ReplicaSet, "default", "a", Propagation::Background);
    sim.settle();
    let owners = &sim.get(Kind::Pod, "default", "both").unwrap()["metadata"]["ownerReferences"];
    assert_eq!(owners.as_array().unwrap().len(), 1);
    assert_eq!(owners[0]["name"], "s");
    sim.delete(Kind::Service, "default", "s", Propagation::Background);
    sim.settle();
    assert!(sim.get(Kind::Pod, "default", "both").is_none());
}

#[test]
fn an_owner_of_another_uid_is_no_owner() {
    let mut sim = Sim::new(Config::default());
    sim.know_resources();
    sim.put(Kind::ReplicaSet, replica_set("a", 0));
    let mut stale = pod("stale");
    stale["metadata"]["labels"] = json!({});
    stale["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "the-one-before"},
    ]);
    sim.put(Kind::Pod, stale.clone());
    stale["metadata"]["name"] = json!("unknown");
    stale["metadata"]["ownerReferences"][0]["apiVersion"] = json!("example.com/v1");
    stale["metadata"]["ownerReferences"][0]["uid"] = json!("of-a-strange-kind");
    sim.put(Kind::Pod, stale);
    sim.settle();
    assert!(sim.get(Kind::Pod, "default", "stale").is_none());
    assert!(
        sim.get(Kind::Pod, "default", "unknown").is_some(),
        "its owner's kind is not served"
    );
}

#[test]
fn pods_of_a_removed_node_go_after_a_while() {
    let mut sim = sim();
    sim.remove(Kind::Node, "", "n1");
    sim.pass(39);
    assert_eq!(
        sim.list(Kind::Pod)
            .iter()
            .filter(|pod| pod["spec"]["nodeName"] == "n1")
            .count(),
        2
    );
    sim.pass(2);
    assert_eq!(
        sim.list(Kind::Pod)
            .iter()
            .filter(|pod| pod["spec"]["nodeName"] == "n1")
            .count(),
        0
    );
}
