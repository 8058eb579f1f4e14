use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{kind_by_gvk, kind_of};

/// Without nulls and empty values: what Go leaves out when it writes an object.
fn clean(value: &Value) -> Value {
    let empty = |v: &Value| {
        v.is_null() || v == &json!({}) || v == &json!([]) || v == &json!("") || v == &json!(false)
    };
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(k, v)| (k.clone(), clean(v)))
                .filter(|(_, v)| !empty(v))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.iter().map(clean).collect()),
        other => other.clone(),
    }
}

/// Rows whose results were computed by `kubectl patch --local`, which is Go's strategic merge.
#[test]
fn strategic_merge_as_kubectl_does_it() {
    let rows = include_str!("../../tests/data/strategic.jsonl").lines();
    let mut count = 0;
    for line in rows {
        let row: Value = serde_json::from_str(line).unwrap();
        let name = &row["name"];
        let kind = kind_of(&row["original"]).unwrap();
        let found = strategic_merge(kind, &row["original"], &row["patch"]);
        if row["error"] == true {
            assert!(
                matches!(found, Err(Error::Malformed(_))),
                "{name}: {found:?}"
            );
        } else {
            assert_eq!(clean(&found.unwrap()), clean(&row["expect"]), "{name}");
        }
        count += 1;
    }
    assert!(count >= 50, "{count}");
}

#[test]
fn directives_of_new_elements_are_not_stored() {
    let pod = kind_by_gvk("", "v1", "Pod").unwrap();
    let patch = json!({"spec": {"containers": [{"name": "a", "$setElementOrder/env": [{"name": "x"}],
        "env": [{"name": "x", "value": "1"}, {"$patch": "delete", "name": "y"}]}]}});
    assert_eq!(
        strategic_merge(pod, &json!({"spec": {}}), &patch).unwrap(),
        json!({"spec": {"containers": [{"name": "a", "env": [{"name": "x", "value": "1"}]}]}})
    );
}

#[test]
fn element_order_that_contradicts_the_patch_is_refused() {
    let pod = kind_by_gvk("", "v1", "Pod").unwrap();
    let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
        "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}});
    assert!(matches!(
        strategic_merge(pod, &json!({"spec": {}}), &patch),
        Err(Error::Malformed(_))
    ));
}

#[test]
fn json_merge_rows() {
    let object = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
    assert_eq!(
        json_merge(&object, &json!({"a": {"b": null, "d": 3}, "l": [3]})).unwrap(),
        json!({"a": {"c": 2, "d": 3}, "l": [3]})
    );
    assert!(matches!(
        json_merge(&object, &json!([])),
        Err(Error::Malformed(_))
    ));
}

#[test]
fn json_patch_rows() {
    let object = json!({"a": {"b": 1}, "l": [1, 2]});
    let patch = json!([{"op": "test", "path": "/a/b", "value": 1},
        {"op": "replace", "path": "/a/b", "value": 2}, {"op": "add", "path": "/l/-", "value": 3},
        {"op": "remove", "path": "/l/0"}]);
    assert_eq!(
        json_patch(&object, &patch).unwrap(),
        json!({"a": {"b": 2}, "l": [2, 3]})
    );
    let failing = json!([{"op": "test", "path": "/a/b", "value": 9}]);
    assert!(matches!(
        json_patch(&object, &failing),
        Err(Error::Rejected(_))
    ));
    let missing = json!([{"op": "remove", "path": "/nothing/here"}]);
    assert!(matches!(
        json_patch(&object, &missing),
        Err(Error::Rejected(_))
    ));
    assert!(matches!(
        json_patch(&object, &json!({"op": "add"})),
        Err(Error::Malformed(_))
    ));
    let many: Vec<Value> = (0..10_001)
        .map(|_| json!({"op": "test", "path": "/a/b", "value": 1}))
        .collect();
    assert!(matches!(
        json_patch(&object, &many.into()),
        Err(Error::Malformed(_))
    ));
}

/// A merge patch from `a` to `b`.
fn diff(a: &Value, b: &Value) -> Value {
    let (Value::Object(a), Value::Object(b)) = (a, b) else {
        return b.clone();
    };
    let gone = a
        .keys()
        .filter(|k| !b.contains_key(*k))
        .map(|k| (k.clone(), Value::Null));
    let changed = b
        .iter()
        .filter(|(k, v)| a.get(*k) != Some(v))
        .map(|(k, v)| {
            (
                k.clone(),
                a.get(k).map_or_else(|| v.clone(), |old| diff(old, v)),
            )
        });
    Value::Object(gone.chain(changed).collect())
}

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (0_i64..9).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
        prop::collection::vec(0_i64..3, 0..3).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop::collection::btree_map("[a-d]", inner, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    })
}

fn object() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", tree(), 0..5)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

fn containers() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-e]", "[x-z]", 0..5).prop_map(|map| {
        map.into_iter()
            .map(|(name, image)| json!({"name": name, "image": image}))
            .collect()
    })
}

proptest! {
    #[test]
    fn merging_the_difference_gives_the_other(a in object(), b in object()) {
        prop_assert_eq!(json_merge(&a, &diff(&a, &b)).unwrap(), b);
    }

    #[test]
    fn strategic_merges_can_be_repeated(old in containers(), new in containers()) {
        let pod = kind_by_gvk("", "v1", "Pod").unwrap();
        let original = json!({"spec": {"containers": old}});
        let patch = json!({"spec": {"containers": new}});
        let once = strategic_merge(pod, &original, &patch).unwrap();
        prop_assert_eq!(&strategic_merge(pod, &once, &patch).unwrap(), &once);
        prop_assert_eq!(&strategic_merge(pod, &original, &original).unwrap(), &original);
        prop_assert_eq!(strategic_merge(pod, &original, &json!({})).unwrap(), original);
        for container in new.as_array().unwrap() {
            prop_assert!(once["spec"]["containers"].as_array().unwrap().contains(container));
        }
    }

    #[test]
    fn any_patch_is_answered(a in object(), b in object()) {
        let pod = kind_by_gvk("", "v1", "Pod").unwrap();
        drop(strategic_merge(pod, &a, &b));
        drop(json_patch(&a, &b));
    }
}
