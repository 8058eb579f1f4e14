//! Kinds that are two views of one stored object: `events.k8s.io/v1` Events are stored as core `v1`
//! Events, `autoscaling/v1` autoscalers as `autoscaling/v2` ones.

use serde_json::{Map, Value, json};

use crate::kinds::Kind;

/// core/v1 name, events.k8s.io/v1 name.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

const CPU_TARGET: &str = "targetCPUUtilizationPercentage";
const CPU_CURRENT: &str = "currentCPUUtilizationPercentage";

/// From the form of `kind` to the form that is stored; nothing for most kinds.
pub fn to_storage(kind: &'static Kind, object: &mut Value) {
    let stored = kind.storage();
    if stored == kind {
        return;
    }
    if let Value::Object(map) = object {
        match kind.kind {
            "Event" => rename(map, |(core, new)| (new, core)),
            "HorizontalPodAutoscaler" => autoscaler_to_v2(map),
            _ => {}
        }
        set_type(map, stored);
    }
}

/// From the stored form to the form of `kind`.
pub fn from_storage(kind: &'static Kind, object: &mut Value) {
    if kind.storage() == kind {
        return;
    }
    if let Value::Object(map) = object {
        match kind.kind {
            "Event" => rename(map, |(core, new)| (core, new)),
            "HorizontalPodAutoscaler" => autoscaler_to_v1(map),
            _ => {}
        }
        set_type(map, kind);
    }
}

fn set_type(map: &mut Map<String, Value>, kind: &Kind) {
    map.insert("apiVersion".into(), kind.api_version().into());
    map.insert("kind".into(), kind.kind.into());
}

fn rename(
    map: &mut Map<String, Value>,
    direction: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    for (from, to) in EVENT_FIELDS.iter().copied().map(direction) {
        if let Some(value) = map.shift_remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

fn autoscaler_to_v2(map: &mut Map<String, Value>) {
    if let Some(Value::Object(spec)) = map.get_mut("spec")
        && let Some(target) = spec.shift_remove(CPU_TARGET)
    {
        spec.insert(
            "metrics".into(),
            json!([{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": target}}}]),
        );
    }
    if let Some(Value::Object(status)) = map.get_mut("status")
        && let Some(current) = status.shift_remove(CPU_CURRENT)
    {
        status.insert(
            "currentMetrics".into(),
            json!([{"type": "Resource", "resource":
            {"name": "cpu", "current": {"averageUtilization": current}}}]),
        );
    }
}

/// What v1 cannot say (other metrics, behavior) is left out of the v1 view.
fn autoscaler_to_v1(map: &mut Map<String, Value>) {
    let cpu = |metrics: Option<Value>, side: &str| {
        metrics?.as_array()?.iter().find_map(|m| {
            let resource = m.get("resource").filter(|r| r["name"] == "cpu")?;
            resource[side].get("averageUtilization").cloned()
        })
    };
    if let Some(Value::Object(spec)) = map.get_mut("spec") {
        spec.shift_remove("behavior");
        if let Some(target) = cpu(spec.shift_remove("metrics"), "target") {
            spec.insert(CPU_TARGET.into(), target);
        }
    }
    if let Some(Value::Object(status)) = map.get_mut("status") {
        status.shift_remove("conditions");
        if let Some(current) = cpu(status.shift_remove("currentMetrics"), "current") {
            status.insert(CPU_CURRENT.into(), current);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind_by_gvk;

    #[track_caller]
    fn there_and_back(group: &str, version: &str, kind: &str, object: Value, stored: Value) {
        let kind = kind_by_gvk(group, version, kind).unwrap();
        let mut value = object.clone();
        to_storage(kind, &mut value);
        assert_eq!(value, stored);
        from_storage(kind, &mut value);
        assert_eq!(value, object);
    }

    #[test]
    fn events() {
        there_and_back(
            "events.k8s.io",
            "v1",
            "Event",
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"name": "p"},
                "note": "n", "reportingController": "c", "reason": "r"}),
            json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "p"},
                "message": "n", "reportingComponent": "c", "reason": "r"}),
        );
    }

    #[test]
    fn autoscalers() {
        there_and_back(
            "autoscaling",
            "v1",
            "HorizontalPodAutoscaler",
            json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
                "spec": {"maxReplicas": 5, CPU_TARGET: 70}}),
            json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "spec": {"maxReplicas": 5, "metrics": [{"type": "Resource", "resource": {
                    "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}]}}),
        );
        let kind = kind_by_gvk("apps", "v1", "Deployment").unwrap();
        let mut object = json!({"kind": "Deployment"});
        to_storage(kind, &mut object);
        assert_eq!(object, json!({"kind": "Deployment"}));
    }
}
