//! The `scale` subresource of deployments, replica sets, stateful sets and replication controllers.

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::validate::{FieldError, Reason};

/// The `autoscaling/v1` Scale of an object.
pub fn get(kind: &Kind, object: &Value) -> Value {
    let meta = &object["metadata"];
    let mut metadata = serde_json::Map::new();
    for name in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = meta.get(name) {
            metadata.insert(name.to_owned(), value.clone());
        }
    }
    let replicas = object["spec"]["replicas"].as_i64().unwrap_or(1);
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    let selector = selector_text(kind, &object["spec"]["selector"]);
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": replicas},
        "status": status,
    })
}

fn selector_text(kind: &Kind, selector: &Value) -> String {
    let parsed = if kind.kind == "ReplicationController" {
        serde_json::from_value(selector.clone())
            .map(|labels| api::selector::LabelSelector::from_labels(&labels))
            .ok()
    } else {
        api::selector::LabelSelector::from_json(selector).ok()
    };
    parsed
        .map(|selector| selector.to_string())
        .unwrap_or_default()
}

/// Writes a Scale's replicas into an object. The caller then treats the object as updated
/// (generation and resource version), and checks the Scale's `metadata.resourceVersion` if given.
pub fn put(object: &mut Value, scale: &Value) -> Result<(), FieldError> {
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        Value::Number(number) => number.as_i64().unwrap_or(-1),
        other => {
            return Err(FieldError::new(
                "spec.replicas",
                Reason::Invalid,
                format!("Invalid value: {other}: must be an integer"),
            ));
        }
    };
    if replicas < 0 {
        return Err(FieldError::invalid(
            "spec.replicas",
            &replicas.into(),
            "must be greater than or equal to 0",
        ));
    }
    object["spec"]["replicas"] = replicas.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind_by_gvk;

    #[test]
    fn there_and_back() {
        let kind = kind_by_gvk("apps", "v1", "Deployment").unwrap();
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "labels": {"x": "y"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}},
            "status": {"replicas": 1}});
        let mut scale = get(kind, &object);
        assert_eq!(
            scale,
            json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "web", "namespace": "default", "uid": "u"},
                "spec": {"replicas": 2}, "status": {"replicas": 1, "selector": "app=web"}})
        );
        scale["spec"]["replicas"] = 5.into();
        put(&mut object, &scale).unwrap();
        assert_eq!(object["spec"]["replicas"], 5);
        scale["spec"]["replicas"] = (-1).into();
        assert_eq!(
            put(&mut object, &scale).unwrap_err().to_string(),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }
}
