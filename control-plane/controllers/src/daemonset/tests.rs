use serde_json::{Value, json};

use crate::config::Config;
use crate::fake::{Sim, node, template};
use crate::kinds::Kind;

fn daemon_set(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": template("web"),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        },
    })
}

fn sim(nodes: &[&str]) -> Sim {
    let mut sim = Sim::new(Config::default());
    for name in nodes {
        sim.put(Kind::Node, node(name));
    }
    sim.put(Kind::DaemonSet, daemon_set("agent"));
    sim.settle_with_kubelets();
    sim
}

fn nodes(sim: &Sim) -> Vec<String> {
    let mut nodes: Vec<String> = sim
        .list(Kind::Pod)
        .iter()
        .map(|pod| pod["spec"]["nodeName"].as_str().unwrap_or("-").to_owned())
        .collect();
    nodes.sort();
    nodes
}

fn status(sim: &Sim) -> Value {
    sim.get(Kind::DaemonSet, "default", "agent").unwrap()["status"].clone()
}

#[test]
fn one_pod_on_every_node_also_new_and_cordoned_ones() {
    let mut sim = sim(&["n1", "n2"]);
    assert_eq!(nodes(&sim), ["n1", "n2"]);
    let mut cordoned = node("n3");
    cordoned["spec"]["unschedulable"] = json!(true);
    sim.put(Kind::Node, cordoned);
    sim.settle_with_kubelets();
    assert_eq!(nodes(&sim), ["n1", "n2", "n3"]);
    let status = status(&sim);
    for count in [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    ] {
        assert_eq!(status[count], 3, "{count}");
    }
    assert_eq!(status["numberMisscheduled"], 0);
}

#[test]
fn taints_and_selectors_keep_it_away() {
    let mut sim = sim(&["n1", "n2"]);
    sim.edit(Kind::Node, "", "n2", |node| {
        node["spec"]["taints"] = json!([{"key": "only", "value": "gpu", "effect": "NoExecute"}]);
    });
    sim.settle_with_kubelets();
    assert_eq!(nodes(&sim), ["n1"]);
    sim.edit(Kind::DaemonSet, "default", "agent", |set| {
        set["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    });
    sim.settle_with_kubelets();
    assert!(nodes(&sim).is_empty());
    sim.edit(Kind::Node, "", "n1", |node| {
        node["metadata"]["labels"]["disk"] = json!("ssd")
    });
    sim.settle_with_kubelets();
    assert_eq!(nodes(&sim), ["n1"]);
}

#[test]
fn a_new_template_replaces_one_pod_at_a_time() {
    let mut sim = sim(&["n1", "n2", "n3"]);
    sim.edit(Kind::DaemonSet, "default", "agent", |set| {
        set["spec"]["template"]["spec"]["containers"][0]["image"] = json!("sample:2");
    });
    while sim.deliver() || sim.work() || sim.kubelets() {
        let running = sim
            .list(Kind::Pod)
            .iter()
            .filter(|pod| pod["status"]["phase"] == "Running")
            .count();
        assert!(running >= 2);
    }
    assert_eq!(nodes(&sim), ["n1", "n2", "n3"]);
    for pod in sim.list(Kind::Pod) {
        assert_eq!(pod["spec"]["containers"][0]["image"], "sample:2");
    }
    let mut revisions: Vec<i64> = sim
        .list(Kind::ControllerRevision)
        .iter()
        .map(|it| it["revision"].as_i64().unwrap())
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [1, 2]);
    assert_eq!(status(&sim)["updatedNumberScheduled"], 3);
}

#[test]
fn a_failed_pod_is_replaced() {
    let mut sim = sim(&["n1"]);
    let name = sim.list(Kind::Pod)[0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    sim.edit(Kind::Pod, "default", &name, |pod| {
        pod["status"] = json!({"phase": "Failed"})
    });
    sim.settle_with_kubelets();
    assert_eq!(nodes(&sim), ["n1"]);
    assert!(sim.get(Kind::Pod, "default", &name).is_none());
    assert!(
        sim.notes
            .iter()
            .any(|note| note.reason == "FailedDaemonPod")
    );
}
