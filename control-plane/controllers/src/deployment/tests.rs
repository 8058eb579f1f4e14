use proptest::prelude::*;
use serde_json::{Value, json};

use crate::config::Config;
use crate::fake::{Sim, deployment, node, patient};
use crate::kinds::Kind;
use crate::workload::template_hash;

fn sim(replicas: i32) -> Sim {
    let mut sim = Sim::new(patient());
    for name in ["n1", "n2", "n3"] {
        sim.put(Kind::Node, node(name));
    }
    sim.put(Kind::Deployment, deployment("web", replicas));
    sim
}

fn get(sim: &Sim) -> Value {
    sim.get(Kind::Deployment, "default", "web").unwrap().clone()
}

fn condition(sim: &Sim, kind: &str) -> Value {
    let deployment = get(sim);
    let conditions = deployment["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    conditions
        .into_iter()
        .find(|it| it["type"] == kind)
        .unwrap_or(Value::Null)
}

fn set_image(sim: &mut Sim, image: &str) {
    sim.edit(Kind::Deployment, "default", "web", |it| {
        it["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
    });
}

/// `(revision, replicas)` of each ReplicaSet, by revision.
fn sets(sim: &Sim) -> Vec<(i64, i64)> {
    let mut sets: Vec<(i64, i64)> = sim
        .list(Kind::ReplicaSet)
        .iter()
        .map(|set| {
            let revision = &set["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
            (
                revision.as_str().unwrap().parse().unwrap(),
                set["spec"]["replicas"].as_i64().unwrap(),
            )
        })
        .collect();
    sets.sort_unstable();
    sets
}

#[test]
fn three_replicas_land_on_three_nodes() {
    let mut sim = sim(3);
    sim.settle_with_kubelets();
    let mut nodes: Vec<String> = sim
        .list(Kind::Pod)
        .iter()
        .map(|pod| pod["spec"]["nodeName"].as_str().unwrap().to_owned())
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2", "n3"]);
    let status = &get(&sim)["status"];
    for count in [
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
    ] {
        assert_eq!(status[count], 3, "{count}");
    }
    assert!(status["unavailableReplicas"].is_null());
    assert_eq!(condition(&sim, "Available")["status"], "True");
    assert_eq!(
        condition(&sim, "Progressing")["reason"],
        "NewReplicaSetAvailable"
    );
    assert_eq!(
        get(&sim)["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "1"
    );
    let set = sim.list(Kind::ReplicaSet)[0].clone();
    let hash = &set["metadata"]["labels"]["pod-template-hash"];
    assert_eq!(
        set["metadata"]["name"],
        format!("web-{}", hash.as_str().unwrap())
    );
    assert_eq!(
        set["spec"]["selector"]["matchLabels"]["pod-template-hash"],
        *hash
    );
    let said: Vec<&str> = sim.notes.iter().map(|note| note.message.as_str()).collect();
    assert!(
        said.contains(
            &format!(
                "Scaled up replica set {} from 0 to 3",
                set["metadata"]["name"].as_str().unwrap()
            )
            .as_str()
        )
    );
}

#[test]
fn a_new_template_rolls_out_within_its_limits() {
    let mut sim = sim(4);
    sim.settle_with_kubelets();
    set_image(&mut sim, "sample:2");
    let mut steps = 0;
    while sim.deliver() || sim.work() || sim.kubelets() {
        let ready = sim
            .list(Kind::Pod)
            .iter()
            .filter(|pod| pod["status"]["phase"] == "Running")
            .count();
        let wanted: i64 = sets(&sim).iter().map(|(_, replicas)| replicas).sum();
        assert!(
            ready >= 3,
            "{ready} of 4 pods are ready with 25 % unavailable"
        );
        assert!(wanted <= 5, "{wanted} pods with 25 % surge");
        steps += 1;
    }
    assert!(steps > 10);
    assert_eq!(sets(&sim), [(1, 0), (2, 4)]);
    assert_eq!(
        get(&sim)["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "2"
    );
    assert_eq!(
        condition(&sim, "Progressing")["reason"],
        "NewReplicaSetAvailable"
    );
    assert_eq!(get(&sim)["status"]["observedGeneration"], 2);
}

#[test]
fn going_back_gives_the_old_set_a_new_revision() {
    let mut sim = sim(2);
    sim.settle_with_kubelets();
    set_image(&mut sim, "sample:2");
    sim.settle_with_kubelets();
    set_image(&mut sim, "sample:1");
    sim.settle_with_kubelets();
    assert_eq!(sets(&sim), [(2, 0), (3, 2)]);
    let set = sim
        .list(Kind::ReplicaSet)
        .into_iter()
        .find(|set| set["spec"]["replicas"] == 2);
    let annotations = &set.unwrap()["metadata"]["annotations"];
    assert_eq!(
        annotations["deployment.kubernetes.io/revision-history"],
        "1"
    );
}

#[test]
fn history_is_limited() {
    let mut sim = sim(1);
    sim.edit(Kind::Deployment, "default", "web", |it| {
        it["spec"]["revisionHistoryLimit"] = json!(2);
    });
    for image in ["a", "b", "c", "d", "e"] {
        sim.settle_with_kubelets();
        set_image(&mut sim, image);
    }
    sim.settle_with_kubelets();
    assert_eq!(sets(&sim).len(), 3);
}

#[test]
fn recreate_has_no_two_versions_at_a_time() {
    let mut sim = sim(3);
    sim.edit(Kind::Deployment, "default", "web", |it| {
        it["spec"]["strategy"] = json!({"type": "Recreate"});
    });
    sim.settle_with_kubelets();
    set_image(&mut sim, "sample:2");
    while sim.deliver() || sim.work() || sim.kubelets() {
        let mut images: Vec<Value> = sim
            .list(Kind::Pod)
            .iter()
            .map(|pod| pod["spec"]["containers"][0]["image"].clone())
            .collect();
        images.dedup();
        assert!(images.len() <= 1, "{images:?}");
    }
    assert_eq!(sets(&sim), [(1, 0), (2, 3)]);
}

#[test]
fn paused_deployments_scale_but_do_not_roll() {
    let mut sim = sim(2);
    sim.settle_with_kubelets();
    sim.edit(Kind::Deployment, "default", "web", |it| {
        it["spec"]["paused"] = json!(true)
    });
    sim.settle_with_kubelets();
    assert_eq!(condition(&sim, "Progressing")["reason"], "DeploymentPaused");
    set_image(&mut sim, "sample:2");
    sim.edit(Kind::Deployment, "default", "web", |it| {
        it["spec"]["replicas"] = json!(3)
    });
    sim.settle_with_kubelets();
    assert_eq!(sets(&sim), [(1, 3)]);
    sim.edit(Kind::Deployment, "default", "web", |it| {
        it["spec"]["paused"] = json!(false)
    });
    sim.settle_with_kubelets();
    assert_eq!(sets(&sim), [(1, 0), (2, 3)]);
}

#[test]
fn no_progress_for_too_long_is_told() {
    let mut sim = Sim::new(Config::default());
    let mut stuck = deployment("web", 1);
    stuck["spec"]["progressDeadlineSeconds"] = json!(10);
    sim.put(Kind::Deployment, stuck);
    sim.settle();
    assert_eq!(condition(&sim, "Progressing")["status"], "True");
    sim.pass(15);
    assert_eq!(
        condition(&sim, "Progressing")["reason"],
        "ProgressDeadlineExceeded"
    );
    assert_eq!(condition(&sim, "Progressing")["status"], "False");
    sim.put(Kind::Node, node("n1"));
    sim.settle_with_kubelets();
    assert_eq!(
        condition(&sim, "Progressing")["reason"],
        "NewReplicaSetAvailable"
    );
}

#[test]
fn scaling_during_a_rollout_shares_the_difference() {
    let mut sim = sim(10);
    sim.settle_with_kubelets();
    set_image(&mut sim, "broken");
    // No kubelets: the rollout stops at its limits.
    sim.settle();
    let before = sets(&sim);
    assert_eq!(before, [(1, 8), (2, 5)]);
    sim.edit(Kind::Deployment, "default", "web", |it| {
        it["spec"]["replicas"] = json!(20)
    });
    sim.settle();
    let total: i64 = sets(&sim).iter().map(|(_, replicas)| replicas).sum();
    assert_eq!(total, 25);
    assert!(sets(&sim)[0].1 > sets(&sim)[1].1, "{:?}", sets(&sim));
}

#[test]
fn copies_annotations_but_not_its_own() {
    let mut sim = sim(1);
    sim.edit(Kind::Deployment, "default", "web", |it| {
        it["metadata"]["annotations"] = json!({"kubernetes.io/change-cause": "first"});
    });
    sim.settle_with_kubelets();
    let set = sim.list(Kind::ReplicaSet)[0].clone();
    assert_eq!(
        set["metadata"]["annotations"]["kubernetes.io/change-cause"],
        "first"
    );
    assert_eq!(
        set["metadata"]["annotations"]["deployment.kubernetes.io/desired-replicas"],
        "1"
    );
}

#[test]
fn the_hash_is_stable_and_depends_on_collisions() {
    let template = serde_json::from_value(crate::fake::template("web")).unwrap();
    let hash = template_hash(&template, None);
    assert_eq!(hash, template_hash(&template, None));
    assert_ne!(hash, template_hash(&template, Some(1)));
    assert!(
        hash.bytes()
            .all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte)),
        "{hash}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever is asked for while a rollout runs, however late events and answers come and whichever writes fail, the
    /// last wish is what comes out.
    #[test]
    fn the_last_wish_comes_out(
        wishes in prop::collection::vec((0_i32..6, 0_u8..3, 0_usize..30), 1..5),
        order in prop::collection::vec(0_usize..5, 0..120),
        flaky in prop::collection::vec(0_u8..3, 0..60),
        slow in any::<bool>(),
    ) {
        let mut sim = sim(2);
        sim.order = order.into();
        sim.flaky = flaky.into();
        sim.slow = slow;
        for (replicas, image, steps) in &wishes {
            sim.edit(Kind::Deployment, "default", "web", |it| {
                it["spec"]["replicas"] = json!(replicas);
                it["spec"]["template"]["spec"]["containers"][0]["image"] = json!(format!("i{image}"));
            });
            for _ in 0..*steps {
                if !(sim.deliver() || sim.work()) {
                    sim.kubelets();
                }
            }
        }
        // Longer than the longest back-offs.
        for _ in 0..400 {
            sim.settle_with_kubelets();
            sim.pass(1);
        }
        let (replicas, image, _) = wishes.last().unwrap();
        let pods = sim.list(Kind::Pod);
        prop_assert_eq!(pods.len(), usize::try_from(*replicas).unwrap());
        for pod in pods {
            prop_assert_eq!(&pod["spec"]["containers"][0]["image"], &json!(format!("i{image}")));
        }
        prop_assert_eq!(condition(&sim, "Progressing")["reason"].clone(), json!("NewReplicaSetAvailable"));
    }
}
