use proptest::prelude::*;
use serde_json::json;

use crate::config::Config;
use crate::fake::{Sim, node, pod, replica_set};
use crate::kinds::Kind;
use crate::write::Propagation;

fn sim() -> Sim {
    Sim::new(Config::default())
}

fn pods(sim: &Sim) -> usize {
    sim.list(Kind::Pod).len()
}

#[test]
fn makes_pods_with_labels_and_owner() {
    let mut sim = sim();
    sim.put(Kind::ReplicaSet, replica_set("web", 3));
    sim.settle();
    assert_eq!(pods(&sim), 3);
    let pod = sim.list(Kind::Pod)[0].clone();
    let set = sim.get(Kind::ReplicaSet, "default", "web").unwrap();
    assert_eq!(pod["metadata"]["labels"], json!({"app": "web"}));
    assert_eq!(
        pod["metadata"]["ownerReferences"][0]["uid"],
        set["metadata"]["uid"]
    );
    assert_eq!(pod["metadata"]["ownerReferences"][0]["controller"], true);
    assert_eq!(set["status"]["replicas"], 3);
    assert_eq!(set["status"]["fullyLabeledReplicas"], 3);
    assert_eq!(set["status"]["observedGeneration"], 1);
    let made = sim
        .notes
        .iter()
        .filter(|note| note.reason == "SuccessfulCreate")
        .count();
    assert_eq!(made, 3);
}

#[test]
fn counts_ready_and_available_pods() {
    let mut sim = sim();
    sim.put(Kind::Node, node("n1"));
    let mut set = replica_set("web", 2);
    set["spec"]["minReadySeconds"] = json!(5);
    sim.put(Kind::ReplicaSet, set);
    sim.settle_with_kubelets();
    let status = |sim: &Sim| sim.get(Kind::ReplicaSet, "default", "web").unwrap()["status"].clone();
    assert_eq!(status(&sim)["readyReplicas"], 2);
    assert!(status(&sim)["availableReplicas"].is_null());
    sim.pass(6);
    assert_eq!(status(&sim)["availableReplicas"], 2);
}

#[test]
fn adopts_matching_orphans_and_releases_others() {
    let mut sim = sim();
    sim.put(Kind::Pod, pod("orphan"));
    sim.put(Kind::ReplicaSet, replica_set("web", 2));
    sim.settle();
    assert_eq!(pods(&sim), 2);
    let owners = |sim: &Sim| {
        sim.get(Kind::Pod, "default", "orphan").unwrap()["metadata"]["ownerReferences"].clone()
    };
    assert_eq!(owners(&sim)[0]["name"], "web");
    sim.edit(Kind::Pod, "default", "orphan", |pod| {
        pod["metadata"]["labels"] = json!({"app": "x"})
    });
    sim.settle();
    assert!(owners(&sim).is_null());
    assert_eq!(pods(&sim), 3);
}

#[test]
fn removes_the_least_useful_pods_first() {
    let mut sim = sim();
    sim.put(Kind::Node, node("n1"));
    sim.put(Kind::ReplicaSet, replica_set("web", 3));
    sim.settle_with_kubelets();
    let name = sim.list(Kind::Pod)[1]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    sim.edit(Kind::Pod, "default", &name, |pod| {
        pod["status"]["conditions"][0]["status"] = json!("False");
    });
    sim.edit(Kind::ReplicaSet, "default", "web", |set| {
        set["spec"]["replicas"] = json!(2)
    });
    sim.settle();
    assert_eq!(pods(&sim), 2);
    assert!(
        sim.get(Kind::Pod, "default", &name).is_none(),
        "the pod that is not ready"
    );
}

#[test]
fn a_failed_creation_is_told_and_tried_again() {
    let mut sim = sim();
    sim.refuse = Some(Kind::Pod);
    sim.put(Kind::ReplicaSet, replica_set("web", 1));
    sim.pass(3);
    let condition =
        sim.get(Kind::ReplicaSet, "default", "web").unwrap()["status"]["conditions"][0].clone();
    assert_eq!(condition["type"], "ReplicaFailure");
    assert_eq!(condition["reason"], "FailedCreate");
    assert!(sim.notes.iter().any(|note| note.reason == "FailedCreate"));
    sim.refuse = None;
    sim.pass(60);
    assert_eq!(pods(&sim), 1);
    assert!(sim.get(Kind::ReplicaSet, "default", "web").unwrap()["status"]["conditions"].is_null());
}

#[test]
fn a_finished_pod_is_replaced() {
    let mut sim = sim();
    sim.put(Kind::ReplicaSet, replica_set("web", 1));
    sim.settle();
    let name = sim.list(Kind::Pod)[0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    sim.edit(Kind::Pod, "default", &name, |pod| {
        pod["status"] = json!({"phase": "Failed"})
    });
    sim.settle();
    assert_eq!(pods(&sim), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// From any number of owned, orphaned, foreign, finished and deleted pods, in any order of events, the set ends
    /// with the wanted number of pods, and never makes more than the wanted number on its way.
    #[test]
    fn converges_from_any_state(
        wanted in 0_i32..8,
        states in prop::collection::vec(0_u8..5, 0..10),
        then in 0_i32..8,
        order in prop::collection::vec(0_usize..4, 0..60),
        steps in prop::collection::vec(any::<bool>(), 0..60),
        slow in any::<bool>(),
    ) {
        let mut sim = sim();
        sim.slow = slow;
        sim.put(Kind::ReplicaSet, replica_set("web", wanted));
        let uid = sim.get(Kind::ReplicaSet, "default", "web").unwrap()["metadata"]["uid"].clone();
        for (index, state) in states.iter().enumerate() {
            let mut pod = pod(&format!("pod-{index}"));
            if *state != 1 {
                pod["metadata"]["ownerReferences"] = json!([{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid,
                    "controller": true, "blockOwnerDeletion": true,
                }]);
            }
            match state {
                2 => pod["status"] = json!({"phase": "Failed"}),
                3 => pod["metadata"]["labels"] = json!({"app": "other"}),
                4 => {
                    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                    pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
                }
                _ => {}
            }
            sim.put(Kind::Pod, pod);
        }
        let active = |sim: &Sim| sim.list(Kind::Pod).iter().filter(|pod| {
            pod["metadata"]["ownerReferences"][0]["uid"] == uid
                && pod["status"]["phase"] != "Failed"
                && pod["metadata"]["deletionTimestamp"].is_null()
        }).count();
        // What was there before the controllers is in their first list.
        while sim.deliver() {}
        sim.order = order.into();
        let mut limit = active(&sim).max(usize::try_from(wanted).unwrap());
        limit += states.iter().filter(|it| **it == 1).count();
        for (index, deliver) in steps.iter().enumerate() {
            if index == steps.len() / 2 {
                sim.edit(Kind::ReplicaSet, "default", "web", |set| set["spec"]["replicas"] = json!(then));
                limit = limit.max(usize::try_from(then).unwrap());
            }
            if *deliver { sim.deliver(); } else { sim.work(); }
            prop_assert!(active(&sim) <= limit, "{} of at most {}", active(&sim), limit);
        }
        sim.edit(Kind::ReplicaSet, "default", "web", |set| set["spec"]["replicas"] = json!(then));
        sim.settle();
        sim.pass(3);
        prop_assert_eq!(active(&sim), usize::try_from(then).unwrap());
        let made = sim.notes.iter().filter(|note| note.reason == "SuccessfulCreate").count();
        let deleted = sim.notes.iter().filter(|note| note.reason == "SuccessfulDelete").count();
        prop_assert!(made <= 16 && deleted <= 18, "{} made, {} deleted", made, deleted);
    }
}

#[test]
fn pods_of_a_deleted_set_go_with_it() {
    let mut sim = sim();
    sim.put(Kind::ReplicaSet, replica_set("web", 3));
    sim.settle();
    sim.delete(Kind::ReplicaSet, "default", "web", Propagation::Background);
    sim.settle();
    assert_eq!(pods(&sim), 0);
}
