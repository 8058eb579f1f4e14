use serde_json::json;

use super::*;
use crate::kind_by_gvk;

fn deployment() -> &'static Kind {
    kind_by_gvk("apps", "v1", "Deployment").unwrap()
}

#[test]
fn unknown_fields_are_named_by_path() {
    let object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": {"any": "x"}},
        "spec": {"foo": 1, "template": {"spec": {"containers": [{"name": "a", "bar": {}}]}}}, "x": 2});
    assert_eq!(
        unknown(deployment(), &object),
        [
            "unknown field \"spec.foo\"",
            "unknown field \"spec.template.spec.containers[0].bar\"",
            "unknown field \"x\""
        ]
    );
}

#[test]
fn duplicate_fields_are_named_by_path() {
    let body = br#"{"a": 1, "spec": {"x": [{"b": 1, "b": 2}], "x": null}, "a": 3}"#;
    assert_eq!(
        duplicates(body),
        [
            "duplicate field \"spec.x[0].b\"",
            "duplicate field \"spec.x\"",
            "duplicate field \"a\""
        ]
    );
    assert!(duplicates(b"{nonsense").is_empty());
}

#[test]
fn wrong_types_are_refused_in_gos_words() {
    let check = |object: Value| check_types(deployment(), &object).unwrap_err();
    assert_eq!(
        check(json!({"spec": {"replicas": "3"}})),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert_eq!(
        check(json!({"spec": {"template": {"spec": {"containers": {}}}}})),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container"
    );
    assert_eq!(
        check(json!({"spec": {"replicas": 5_000_000_000_i64}})),
        "json: cannot unmarshal number 5000000000 into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert_eq!(
        check(json!({"spec": {"replicas": 1.5}})),
        "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    let seconds = json!({"template": {"spec": {"activeDeadlineSeconds": 5_000_000_000_i64}}});
    assert_eq!(check_types(deployment(), &json!({"spec": seconds})), Ok(()));
    let resources = json!({"requests": {"cpu": "lots"}});
    assert!(
        check(json!({"spec": {"template": {"spec": {"containers": [{"resources": resources}]}}}}))
            .starts_with("quantities must match")
    );
    assert!(check(json!({"metadata": {"creationTimestamp": "x"}})).starts_with("parsing time"));
    assert_eq!(
        check_types(
            deployment(),
            &json!({"metadata": {"creationTimestamp": null}})
        ),
        Ok(())
    );
}

#[test]
fn stored_form() {
    let mut object = json!({"kind": "Deployment", "metadata": {"creationTimestamp": null, "foo": 1},
        "spec": {"template": {"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "0.5", "memory": 1024}}}]}}}});
    normalize(deployment(), &mut object);
    assert_eq!(
        object,
        json!({"kind": "Deployment", "metadata": {}, "spec": {"template": {"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1024"}}}]}}}})
    );
}

#[test]
fn selectable_fields() {
    let node = kind_by_gvk("", "v1", "Node").unwrap();
    let found = selectable(node, &json!({"metadata": {"name": "n"}}));
    assert_eq!(found["spec.unschedulable"], "false");
    assert_eq!(found["metadata.name"], "n");
    assert!(is_selectable(node, "spec.unschedulable") && !is_selectable(node, "spec.x"));
}
