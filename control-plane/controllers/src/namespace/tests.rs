use serde_json::json;

use super::*;
use crate::config::Config;
use crate::fake::{Sim, at};
use crate::write::Propagation;

fn sim() -> Sim {
    let mut sim = Sim::new(Config::default());
    sim.put(
        Kind::Namespace,
        json!({"metadata": {"name": "team"}, "spec": {"finalizers": ["kubernetes"]}}),
    );
    sim.settle();
    sim
}

#[test]
fn an_empty_namespace_is_finalized() {
    let mut sim = sim();
    sim.delete(Kind::Namespace, "", "team", Propagation::Background);
    sim.settle();
    assert!(sim.get(Kind::Namespace, "", "team").is_none());
}

#[test]
fn what_remains_is_told_and_waited_for() {
    let mut sim = sim();
    sim.delete(Kind::Namespace, "", "team", Propagation::Background);
    sim.deliver();
    let key = Key::new("", "team");
    let uid = sim.get(Kind::Namespace, "", "team").unwrap()["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    let remaining = Remaining {
        objects: [("pods".to_owned(), 2)].into(),
        finalizers: [("foregroundDeletion".to_owned(), 1)].into(),
        failures: Vec::new(),
    };
    sim.brain.view.emptied.insert(uid, remaining);
    let plan = reconcile(&sim.brain.view, &key, at(1));
    let [
        Write::Patch { body, .. },
        Write::EmptyNamespace { name, .. },
    ] = plan.writes.as_slice()
    else {
        panic!("{plan:?}");
    };
    assert_eq!(name, "team");
    assert_eq!(plan.again, Some(RETRY));
    let conditions = body["status"]["conditions"].as_array().unwrap();
    let told = |kind: &str| {
        conditions
            .iter()
            .find(|it| it["type"] == kind)
            .unwrap()
            .clone()
    };
    assert_eq!(told("NamespaceDeletionContentFailure")["status"], "False");
    assert_eq!(told("NamespaceContentRemaining")["status"], "True");
    assert_eq!(
        told("NamespaceContentRemaining")["message"],
        "Some resources are remaining: pods has 2 resource instances"
    );
    assert_eq!(
        told("NamespaceFinalizersRemaining")["reason"],
        "SomeFinalizersRemain"
    );
}
