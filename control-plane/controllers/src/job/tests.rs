use serde_json::{Value, json};

use super::status::ranges;
use crate::config::Config;
use crate::fake::{Sim, node, stamp, template};
use crate::kinds::Kind;

fn sim(spec: Value) -> Sim {
    let mut sim = Sim::new(Config::default());
    sim.put(Kind::Node, node("n1"));
    let mut job = json!({
        "metadata": {"name": "work", "namespace": "default"},
        "spec": {"completions": 1, "parallelism": 1, "backoffLimit": 2, "template": template("work")},
    });
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    sim.put(Kind::Job, job);
    sim.settle_with_kubelets();
    sim
}

/// Ends all running pods.
fn end(sim: &mut Sim, phase: &str) {
    let names: Vec<String> = sim
        .list(Kind::Pod)
        .iter()
        .filter(|pod| pod["status"]["phase"] == "Running")
        .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    let at = stamp(sim.seconds);
    for name in names {
        sim.edit(Kind::Pod, "default", &name, |pod| {
            pod["status"] = json!({"phase": phase, "containerStatuses": [{
                "name": "main", "image": "x", "imageID": "x", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 1, "finishedAt": at}},
            }]});
        });
    }
    sim.settle();
}

fn status(sim: &Sim) -> Value {
    sim.get(Kind::Job, "default", "work").unwrap()["status"].clone()
}

fn is(sim: &Sim, condition: &str) -> bool {
    status(sim)["conditions"].as_array().is_some_and(|it| {
        it.iter()
            .any(|known| known["type"] == condition && known["status"] == "True")
    })
}

#[test]
fn runs_its_completions() {
    let mut sim = sim(json!({"completions": 3, "parallelism": 2}));
    assert_eq!(status(&sim)["active"], 2);
    end(&mut sim, "Succeeded");
    sim.settle_with_kubelets();
    assert_eq!(status(&sim)["active"], 1);
    end(&mut sim, "Succeeded");
    assert!(is(&sim, "Complete"));
    assert_eq!(status(&sim)["succeeded"], 3);
    assert!(status(&sim)["active"].is_null());
    assert_eq!(sim.list(Kind::Pod).len(), 3);
}

#[test]
fn fails_after_its_limit_with_waits_between() {
    let mut sim = sim(json!({}));
    end(&mut sim, "Failed");
    assert_eq!(sim.list(Kind::Pod).len(), 1, "waits");
    sim.pass(11);
    assert_eq!(sim.list(Kind::Pod).len(), 2);
    for _ in 0..2 {
        sim.settle_with_kubelets();
        end(&mut sim, "Failed");
        sim.pass(60);
    }
    assert!(is(&sim, "Failed"));
    assert_eq!(status(&sim)["failed"], 3);
}

#[test]
fn indexes_each_get_a_pod() {
    let mut sim = sim(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"}));
    let mut indexes: Vec<String> = sim
        .list(Kind::Pod)
        .iter()
        .map(|pod| {
            pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    indexes.sort();
    assert_eq!(indexes, ["0", "1", "2"]);
    end(&mut sim, "Succeeded");
    assert_eq!(status(&sim)["completedIndexes"], "0-2");
    assert!(is(&sim, "Complete"));
}

#[test]
fn deadline_suspension_and_time_to_live() {
    let mut deadline = sim(json!({"activeDeadlineSeconds": 10}));
    deadline.pass(11);
    assert!(is(&deadline, "Failed"));
    assert!(deadline.list(Kind::Pod).is_empty());

    let mut suspended = sim(json!({"suspend": true}));
    assert!(is(&suspended, "Suspended"));
    assert!(suspended.list(Kind::Pod).is_empty());
    suspended.edit(Kind::Job, "default", "work", |job| {
        job["spec"]["suspend"] = json!(false)
    });
    suspended.settle();
    assert_eq!(suspended.list(Kind::Pod).len(), 1);

    let mut short = sim(json!({"ttlSecondsAfterFinished": 5}));
    end(&mut short, "Succeeded");
    short.pass(6);
    assert!(short.get(Kind::Job, "default", "work").is_none());
    assert!(short.list(Kind::Pod).is_empty());
}

#[test]
fn range_rows() {
    for (indexes, text) in [
        (vec![], ""),
        (vec![0], "0"),
        (vec![0, 1, 2, 5], "0-2,5"),
        (vec![1, 3, 4], "1,3-4"),
    ] {
        assert_eq!(ranges(&indexes.into_iter().collect()), text);
    }
}
