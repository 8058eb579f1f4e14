use serde_json::{Value, json};

use crate::config::Config;
use crate::fake::{Sim, node, pod, stamp};
use crate::kinds::Kind;

fn sim(tolerations: Value) -> Sim {
    let mut sim = Sim::new(Config::default());
    sim.put(Kind::Node, node("n1"));
    let mut pod = pod("p");
    pod["spec"]["nodeName"] = json!("n1");
    pod["spec"]["tolerations"] = tolerations;
    sim.put(Kind::Pod, pod);
    sim.put(Kind::Node, node("alive"));
    sim.settle_with_kubelets();
    sim
}

/// Lets time pass in which only the node `alive` is heard of.
fn pass(sim: &mut Sim, seconds: u64) {
    for _ in 0..seconds {
        let heard = stamp(sim.seconds);
        sim.edit(Kind::Node, "", "alive", |node| {
            node["status"]["conditions"] =
                json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": heard}]);
        });
        sim.pass(1);
    }
}

fn exists(sim: &Sim) -> bool {
    sim.get(Kind::Pod, "default", "p").is_some()
}

#[test]
fn pods_of_a_dead_node_are_not_ready_and_leave_after_five_minutes() {
    let mut sim = sim(json!(null));
    pass(&mut sim, 41);
    let pod = sim.get(Kind::Pod, "default", "p").unwrap();
    assert_eq!(pod["status"]["conditions"][0]["status"], "False");
    pass(&mut sim, 298);
    assert!(exists(&sim));
    pass(&mut sim, 3);
    assert!(!exists(&sim));
    assert!(
        sim.notes
            .iter()
            .any(|note| note.message == "Marking for deletion Pod default/p")
    );
}

#[test]
fn toleration_rows() {
    let tolerate = |seconds: Value| {
        json!([{
            "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }])
    };
    for (tolerations, gone_after) in [
        (tolerate(json!(10)), Some(10)),
        (tolerate(json!(0)), Some(0)),
        (tolerate(json!(null)), None),
        (json!([{"operator": "Exists"}]), None),
    ] {
        let mut sim = sim(tolerations.clone());
        match gone_after {
            Some(seconds) => {
                pass(&mut sim, 39 + seconds);
                assert!(exists(&sim), "{tolerations}");
                pass(&mut sim, 3);
                assert!(!exists(&sim), "{tolerations}");
            }
            None => {
                pass(&mut sim, 1000);
                assert!(exists(&sim), "{tolerations}");
            }
        }
    }
}

#[test]
fn a_taint_of_a_person_evicts_at_once() {
    let mut sim = sim(json!(null));
    sim.edit(Kind::Node, "", "n1", |node| {
        node["spec"]["taints"] = json!([{"key": "away", "effect": "NoExecute"}]);
    });
    sim.settle();
    assert!(!exists(&sim));
}

#[test]
fn nobody_is_evicted_while_no_node_is_heard_of() {
    let mut sim = sim(json!(null));
    sim.pass(1000);
    assert!(exists(&sim));
    pass(&mut sim, 2);
    assert!(
        !exists(&sim),
        "one node is back: the others are really gone"
    );
}
