use serde_json::{Value, json};

use crate::config::Config;
use crate::fake::{Sim, node, template};
use crate::kinds::Kind;

fn sim(policy: &str) -> Sim {
    let mut sim = Sim::new(Config::default());
    sim.put(Kind::Node, node("n1"));
    sim.put(Kind::StatefulSet, json!({
        "metadata": {"name": "db", "namespace": "default"},
        "spec": {
            "replicas": 3,
            "serviceName": "db",
            "podManagementPolicy": policy,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template("web"),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
        },
    }));
    sim
}

fn names(sim: &Sim) -> Vec<String> {
    sim.list(Kind::Pod)
        .iter()
        .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

fn status(sim: &Sim) -> Value {
    sim.get(Kind::StatefulSet, "default", "db").unwrap()["status"].clone()
}

fn edit(sim: &mut Sim, edit: impl FnOnce(&mut Value)) {
    sim.edit(Kind::StatefulSet, "default", "db", |set| {
        edit(&mut set["spec"])
    });
}

#[test]
fn pods_come_one_after_the_other() {
    let mut sim = sim("OrderedReady");
    sim.settle();
    assert_eq!(names(&sim), ["db-0"]);
    sim.settle_with_kubelets();
    assert_eq!(names(&sim), ["db-0", "db-1", "db-2"]);
    let pod = sim.get(Kind::Pod, "default", "db-1").unwrap();
    assert_eq!(pod["spec"]["hostname"], "db-1");
    assert_eq!(pod["spec"]["subdomain"], "db");
    assert_eq!(
        pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"],
        "1"
    );
    assert_eq!(
        pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"],
        "data-db-1"
    );
    assert_eq!(sim.list(Kind::PersistentVolumeClaim).len(), 3);
    let status = status(&sim);
    assert_eq!(status["readyReplicas"], 3);
    assert_eq!(status["updatedReplicas"], 3);
    assert_eq!(status["currentRevision"], status["updateRevision"]);
}

#[test]
fn in_parallel_when_asked_to() {
    let mut sim = sim("Parallel");
    sim.settle();
    assert_eq!(names(&sim), ["db-0", "db-1", "db-2"]);
}

#[test]
fn the_last_goes_first() {
    let mut sim = sim("OrderedReady");
    sim.settle_with_kubelets();
    edit(&mut sim, |spec| spec["replicas"] = json!(1));
    sim.settle_with_kubelets();
    assert_eq!(names(&sim), ["db-0"]);
}

#[test]
fn a_new_template_goes_from_the_last_to_the_partition() {
    let mut sim = sim("OrderedReady");
    sim.settle_with_kubelets();
    edit(&mut sim, |spec| {
        spec["template"]["spec"]["containers"][0]["image"] = json!("sample:2");
        spec["updateStrategy"]["rollingUpdate"]["partition"] = json!(1);
    });
    while sim.deliver() || sim.work() || sim.kubelets() {
        let running = sim
            .list(Kind::Pod)
            .iter()
            .filter(|pod| pod["status"]["phase"] == "Running")
            .count();
        assert!(running >= 2);
    }
    let image = |sim: &Sim, pod: &str| {
        sim.get(Kind::Pod, "default", pod).unwrap()["spec"]["containers"][0]["image"].clone()
    };
    assert_eq!(
        (
            image(&sim, "db-0"),
            image(&sim, "db-1"),
            image(&sim, "db-2")
        ),
        (json!("sample:1"), json!("sample:2"), json!("sample:2"))
    );
    assert_ne!(
        status(&sim)["currentRevision"],
        status(&sim)["updateRevision"]
    );
    // A pod below the partition comes back as it was.
    sim.remove(Kind::Pod, "default", "db-0");
    sim.settle_with_kubelets();
    assert_eq!(image(&sim, "db-0"), "sample:1");
    edit(&mut sim, |spec| {
        spec["updateStrategy"]["rollingUpdate"]["partition"] = json!(0)
    });
    sim.settle_with_kubelets();
    assert_eq!(image(&sim, "db-0"), "sample:2");
    assert_eq!(
        status(&sim)["currentRevision"],
        status(&sim)["updateRevision"]
    );
    assert_eq!(status(&sim)["currentReplicas"], 3);
}
