//! What passes the type check can be read by a typed client: one malformed object must not stop a
//! controller's watch. Real objects are damaged at random places, and what is still accepted is
//! decoded with k8s-openapi.

#![expect(clippy::unwrap_used, reason = "a test")]

use k8s_openapi::api::{apps, batch, core, discovery, networking, policy, rbac};
use proptest::prelude::*;
use proptest::sample::Index;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Objects of the other tests' recordings.
fn objects() -> Vec<Value> {
    let recorded = include_str!("data/protobuf.txt").lines();
    let printed = recorded.filter_map(|line| line.split('\t').nth(2));
    let merged = include_str!("data/strategic.jsonl").lines();
    let mut out: Vec<Value> = printed
        .filter_map(|text| serde_json::from_str(text).ok())
        .collect();
    for line in merged {
        let row: Value = serde_json::from_str(line).unwrap();
        if !out.contains(&row["original"]) {
            out.push(row["original"].clone());
        }
    }
    out
}

fn read<T: DeserializeOwned>(object: &Value) -> Result<(), String> {
    serde_json::from_value::<T>(object.clone())
        .map(|_| ())
        .map_err(|e| e.to_string())
}

fn typed(object: &Value) -> Result<(), String> {
    match object["kind"].as_str().unwrap() {
        "Pod" => read::<core::v1::Pod>(object),
        "Service" => read::<core::v1::Service>(object),
        "Node" => read::<core::v1::Node>(object),
        "Namespace" => read::<core::v1::Namespace>(object),
        "ConfigMap" => read::<core::v1::ConfigMap>(object),
        "Secret" => read::<core::v1::Secret>(object),
        "ServiceAccount" => read::<core::v1::ServiceAccount>(object),
        "ResourceQuota" => read::<core::v1::ResourceQuota>(object),
        "Deployment" => read::<apps::v1::Deployment>(object),
        "CronJob" => read::<batch::v1::CronJob>(object),
        "Job" => read::<batch::v1::Job>(object),
        "EndpointSlice" => read::<discovery::v1::EndpointSlice>(object),
        "Ingress" => read::<networking::v1::Ingress>(object),
        "PodDisruptionBudget" => read::<policy::v1::PodDisruptionBudget>(object),
        "Role" => read::<rbac::v1::Role>(object),
        "RoleBinding" => read::<rbac::v1::RoleBinding>(object),
        _ => Ok(()),
    }
}

/// Puts `value` somewhere below `at`, led by `steps`.
fn damage(at: &mut Value, steps: &[Index], value: Value) {
    let Some((step, rest)) = steps.split_first() else {
        *at = value;
        return;
    };
    let inner = match at {
        Value::Object(map) if !map.is_empty() => {
            let name = map.keys().nth(step.index(map.len())).unwrap().clone();
            // Not the type of the object: the request's path decides it.
            if name == "kind" || name == "apiVersion" {
                None
            } else {
                map.get_mut(&name)
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let index = step.index(list.len());
            list.get_mut(index)
        }
        _ => None,
    };
    if let Some(inner) = inner {
        damage(inner, rest, value);
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-2_i64..70_000).prop_map(Value::from),
        "[a-z0-9:./-]{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([null])),
        Just(json!([{}])),
        Just(json!(["a", 1])),
        Just(json!({"a": null})),
        Just(json!({"name": "x", "port": 80})),
        Just(json!("2026-01-01T00:00:00Z")),
        Just(json!("1Gi")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_is_accepted_can_be_read(
        which in any::<Index>(),
        damages in prop::collection::vec((prop::collection::vec(any::<Index>(), 1..8), value()), 1..4),
    ) {
        let objects = objects();
        let mut object = objects[which.index(objects.len())].clone();
        for (steps, value) in damages {
            damage(&mut object, &steps, value);
        }
        let kind = schema::kind_of(&object).unwrap();
        if schema::fields::check_types(kind, &object).is_ok() {
            schema::fields::normalize(kind, &mut object);
            schema::defaults::apply(kind, &mut object);
            schema::strategy::prepare_create(kind, &mut object);
            drop(schema::validate::create(kind, &object));
            let read = typed(&object);
            prop_assert!(read.is_ok(), "{read:?}: {object}");
        }
    }
}
