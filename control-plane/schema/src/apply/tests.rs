use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::kind_by_gvk;

fn deployment() -> &'static Kind {
    kind_by_gvk("apps", "v1", "Deployment").unwrap()
}

fn writer(manager: &str) -> Writer<'_> {
    Writer {
        manager,
        subresource: "",
        now: "2026-01-02T03:04:05Z".parse().unwrap(),
    }
}

fn config(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

#[track_caller]
fn applied(live: Option<&Value>, config: &Value, manager: &str) -> Value {
    apply(deployment(), live, config, &writer(manager), false).unwrap()
}

fn fields<'a>(object: &'a Value, manager: &str) -> &'a Value {
    object["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["manager"] == manager)
        .map_or(&Value::Null, |entry| &entry["fieldsV1"])
}

#[test]
fn the_first_apply_owns_what_it_says() {
    let object = applied(
        None,
        &json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "labels": {"a": "b"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}},
                "template": {"spec": {"containers": [{"name": "c", "image": "i",
                    "ports": [{"containerPort": 80}], "args": ["x"]}]}}}}),
        "me",
    );
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{"manager": "me", "operation": "Apply", "apiVersion": "apps/v1",
            "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {"f:spec": {"f:containers": {
                "k:{\"name\":\"c\"}": {".": {}, "f:args": {}, "f:image": {}, "f:name": {}, "f:ports": {
                    "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}}}])
    );
}

#[test]
fn what_leaves_the_configuration_leaves_the_object() {
    let first = config(
        json!({"replicas": 2, "paused": true, "template": {"spec": {"containers": [
        {"name": "a", "image": "i", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
        {"name": "b", "image": "j"}]}}}),
    );
    let live = applied(None, &first, "me");
    let second = config(json!({"replicas": 2, "template": {"spec": {"containers": [
        {"name": "a", "image": "i", "env": [{"name": "Y", "value": "3"}]}]}}}));
    let object = applied(Some(&live), &second, "me");
    assert_eq!(object["spec"], second["spec"]);
}

#[test]
fn what_nobody_applied_stays() {
    let mut live = applied(None, &config(json!({"replicas": 2})), "me");
    live["spec"]["revisionHistoryLimit"] = 10.into();
    let object = applied(Some(&live), &config(json!({"replicas": 3})), "me");
    assert_eq!(
        object["spec"],
        json!({"replicas": 3, "revisionHistoryLimit": 10})
    );
}

#[test]
fn two_managers_share_an_object() {
    let live = applied(
        None,
        &config(json!({"replicas": 2, "template": {"spec": {"containers": [
        {"name": "a", "image": "i"}]}}})),
        "one",
    );
    let object = applied(
        Some(&live),
        &config(json!({"template": {"spec": {"containers": [
        {"name": "b", "image": "j"}, {"name": "a", "env": [{"name": "X", "value": "1"}]}]}}})),
        "two",
    );
    let containers = &object["spec"]["template"]["spec"]["containers"];
    assert_eq!(
        containers,
        &json!([{"name": "b", "image": "j"}, {"name": "a", "image": "i", "env": [{"name": "X", "value": "1"}]}])
    );
    // The first gives up its container; the second's part of it stays.
    let object = applied(Some(&object), &config(json!({"replicas": 2})), "one");
    assert_eq!(
        &object["spec"]["template"]["spec"]["containers"],
        &json!([{"name": "b", "image": "j"}, {"name": "a", "env": [{"name": "X", "value": "1"}]}])
    );
    let object = applied(Some(&object), &config(json!({})), "two");
    assert_eq!(object["spec"], json!({"replicas": 2}));
}

#[test]
fn another_value_is_a_conflict_and_force_takes_it() {
    let live = applied(None, &config(json!({"replicas": 2})), "one");
    let other = config(json!({"replicas": 5}));
    let error = apply(deployment(), Some(&live), &other, &writer("two"), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas"
    );
    let Error::Conflicts(conflicts) = error else {
        panic!("{error}")
    };
    assert_eq!(
        conflict_status(deployment(), "web", &conflicts)["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".spec.replicas"}])
    );
    let object = apply(deployment(), Some(&live), &other, &writer("two"), true).unwrap();
    assert_eq!(object["spec"]["replicas"], 5);
    assert_eq!(fields(&object, "one"), &Value::Null);
    assert_eq!(
        fields(&object, "two"),
        &json!({"f:spec": {"f:replicas": {}}})
    );
    // The same value is no conflict: both own it.
    let object = applied(Some(&object), &config(json!({"replicas": 5})), "one");
    assert_eq!(fields(&object, "one"), fields(&object, "two"));
}

#[test]
fn an_object_from_before_the_first_apply() {
    let live = config(json!({"replicas": 2, "paused": true}));
    let error = apply(
        deployment(),
        Some(&live),
        &config(json!({"replicas": 3, "paused": false})),
        &writer("me"),
        false,
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"before-first-apply\" using apps/v1 at 2026-01-02T03:04:05Z:\n- .spec.paused\n- .spec.replicas"
    );
    let object = applied(Some(&live), &config(json!({"replicas": 2})), "me");
    assert_eq!(
        fields(&object, "me"),
        &json!({"f:spec": {"f:replicas": {}}})
    );
    assert_eq!(
        fields(&object, "before-first-apply"),
        &json!({"f:spec": {"f:paused": {}, "f:replicas": {}}})
    );
}

#[test]
fn kubectl_takes_over_what_it_applied_client_side() {
    let mut live = config(json!({"replicas": 2, "paused": true}));
    let last = config(json!({"replicas": 2})).to_string();
    live["metadata"]["annotations"] = json!({(LAST_APPLIED): last});
    let object = applied(Some(&live), &config(json!({"replicas": 3})), "kubectl");
    assert_eq!(object["spec"]["replicas"], 3);
    let result = apply(
        deployment(),
        Some(&live),
        &config(json!({"paused": false})),
        &writer("kubectl"),
        false,
    );
    assert!(matches!(result, Err(Error::Conflicts(_))));
}

#[test]
fn updates_are_tracked_once_somebody_applied() {
    let old = config(json!({"replicas": 2}));
    let mut new = config(json!({"replicas": 3}));
    track_update(deployment(), &old, &mut new, &writer("edit"));
    assert!(new["metadata"].get("managedFields").is_none());

    let live = applied(None, &config(json!({"replicas": 2, "paused": true})), "one");
    let mut new = live.clone();
    new["spec"] = json!({"replicas": 4, "minReadySeconds": 1});
    track_update(deployment(), &live, &mut new, &writer("edit"));
    assert_eq!(
        fields(&new, "edit"),
        &json!({"f:spec": {"f:minReadySeconds": {}, "f:replicas": {}}})
    );
    assert_eq!(fields(&new, "one"), &Value::Null);
    // A client that does not send the managed fields keeps them.
    let mut without = new.clone();
    without["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("managedFields");
    track_update(deployment(), &new, &mut without, &writer("edit"));
    assert_eq!(without, new);
    // One empty entry forgets them.
    let mut reset = new.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    track_update(deployment(), &new, &mut reset, &writer("edit"));
    assert!(reset["metadata"].get("managedFields").is_none());
}

#[test]
fn applying_again_changes_nothing_not_even_the_time() {
    let configuration = config(
        json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "a", "image": "i"}]}}}),
    );
    let live = applied(None, &configuration, "me");
    let later = Writer {
        now: "2027-01-01T00:00:00Z".parse().unwrap(),
        ..writer("me")
    };
    assert_eq!(
        apply(deployment(), Some(&live), &configuration, &later, false).unwrap(),
        live
    );
}

#[test]
fn removed_labels_leave_no_empty_map() {
    let mut first = config(json!({"replicas": 1}));
    first["metadata"]["labels"] = json!({"a": "b"});
    first["metadata"]["finalizers"] = json!(["x/a", "x/b"]);
    let live = applied(None, &first, "me");
    let object = applied(Some(&live), &config(json!({"replicas": 1})), "me");
    assert!(
        object["metadata"].get("labels").is_none()
            && object["metadata"].get("finalizers").is_none()
    );
    let mut fewer = first.clone();
    fewer["metadata"]["finalizers"] = json!(["x/b"]);
    let object = applied(Some(&live), &fewer, "me");
    assert_eq!(object["metadata"]["finalizers"], json!(["x/b"]));
}

#[test]
fn refusals() {
    let bad = |spec: Value| {
        apply(deployment(), None, &config(spec), &writer("me"), false)
            .unwrap_err()
            .to_string()
    };
    assert!(
        bad(json!({"template": {"spec": {"containers": [{"image": "i"}]}}}))
            .contains("omits key field \"name\"")
    );
    assert!(
        bad(json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}}))
            .contains("duplicate entries for key {\"name\":\"a\"}")
    );
    let mut managed = config(json!({}));
    managed["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    let error = apply(deployment(), None, &managed, &writer("me"), false).unwrap_err();
    assert_eq!(error.to_string(), "metadata.managedFields must be nil");
}

#[test]
fn the_status_is_not_applied_through_the_object() {
    let mut configuration = config(json!({"replicas": 1}));
    configuration["status"] = json!({"replicas": 9});
    let object = applied(None, &configuration, "me");
    assert!(object.get("status").is_none());
    let status = Writer {
        subresource: "status",
        ..writer("controller")
    };
    let object = apply(deployment(), Some(&object), &configuration, &status, false).unwrap();
    assert_eq!(object["status"], json!({"replicas": 9}));
    assert_eq!(
        fields(&object, "controller"),
        &json!({"f:status": {"f:replicas": {}}})
    );
    assert_eq!(
        fields(&object, "me"),
        &json!({"f:spec": {"f:replicas": {}}})
    );
}

fn specs() -> impl Strategy<Value = Value> {
    let container = (
        "[a-c]",
        prop::option::of("[x-z]"),
        prop::collection::btree_map("[A-C]", "[1-3]", 0..3),
    );
    let containers = prop::collection::btree_map("[a-c]", container, 0..3);
    let labels = prop::collection::btree_map("[a-c]", "[1-3]", 0..3);
    (prop::option::of(0_i64..4), containers, labels).prop_map(|(replicas, containers, labels)| {
        let containers: Vec<Value> = containers
            .into_iter()
            .map(|(name, (_, image, env))| {
                let env: Vec<Value> = env
                    .into_iter()
                    .map(|(n, v)| json!({"name": n, "value": v}))
                    .collect();
                let mut out = json!({"name": name});
                if let Some(image) = image {
                    out["image"] = image.into();
                }
                if !env.is_empty() {
                    out["env"] = env.into();
                }
                out
            })
            .collect();
        let mut spec = json!({});
        if let Some(replicas) = replicas {
            spec["replicas"] = replicas.into();
        }
        if !containers.is_empty() {
            spec["template"] = json!({"spec": {"containers": containers}});
        }
        let mut out = config(spec);
        if !labels.is_empty() {
            out["metadata"]["labels"] = json!(labels);
        }
        out
    })
}

proptest! {
    /// Whatever the history: a forced apply makes the object say what the configuration says, owns
    /// exactly that, and a manager that applies nothing any more leaves nothing behind.
    #[test]
    fn any_history(steps in prop::collection::vec((0_usize..3, specs()), 1..6)) {
        let names = ["one", "two", "three"];
        let mut live: Option<Value> = None;
        for (who, configuration) in &steps {
            let me = writer(names[*who]);
            let object = apply(deployment(), live.as_ref(), configuration, &me, true).unwrap();
            let again = apply(deployment(), Some(&object), configuration, &me, false).unwrap();
            prop_assert_eq!(&again, &object);
            let root = Node::Struct(types::get(deployment().type_name).unwrap());
            let change = walk::compare(root, &object, configuration);
            prop_assert!(strip(change.added.union(&change.modified)).is_empty(), "{} {}", object, configuration);
            live = Some(object);
        }
        let mut object = live.unwrap();
        for name in names {
            object = apply(deployment(), Some(&object), &config(json!({})), &writer(name), false).unwrap();
        }
        prop_assert!(object["metadata"].get("labels").is_none(), "{}", object);
        prop_assert!(object.get("spec").is_none_or(|s| s == &json!({})), "{}", object);
    }
}
