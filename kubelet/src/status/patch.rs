//! The strategic merge patch that turns the status the API has into the one it should have. Pure.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Lists the API server merges by key; they are replaced as a whole when an old entry has to go.
const MERGED_LISTS: [&str; 1] = ["podIPs"];

/// The body of `PATCH pods/NAME/status`, or `None` when nothing differs.
pub fn patch(uid: &str, have: &PodStatus, want: &PodStatus) -> Option<Value> {
    let (have, want) = (object(have), object(want));
    let mut status = Map::new();
    for (key, value) in &want {
        if have.get(key) != Some(value) {
            status.insert(key.clone(), changed(key, have.get(key), value));
        }
    }
    for key in have.keys().filter(|k| !want.contains_key(*k)) {
        status.insert(key.clone(), Value::Null);
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

fn changed(key: &str, have: Option<&Value>, want: &Value) -> Value {
    match (have, want) {
        (Some(Value::Array(old)), Value::Array(new)) if MERGED_LISTS.contains(&key) => {
            let kept = old.iter().all(|o| new.contains(o));
            let mut list = new.clone();
            if !kept {
                list.push(json!({"$patch": "replace"}));
            }
            Value::Array(list)
        }
        // Only what differs, and fields that went away as null, since entries are merged by type.
        (Some(Value::Array(old)), Value::Array(new)) if key == "conditions" => {
            let differs = new.iter().filter(|n| !old.contains(n));
            Value::Array(differs.map(|n| condition(old, n)).collect())
        }
        _ => want.clone(),
    }
}

fn condition(old: &[Value], new: &Value) -> Value {
    let mut entry = new.as_object().cloned().unwrap_or_default();
    let before = old.iter().find(|o| o["type"] == new["type"]);
    for key in before.and_then(Value::as_object).into_iter().flatten() {
        entry.entry(key.0.clone()).or_insert(Value::Null);
    }
    Value::Object(entry)
}

fn object(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        // A PodStatus always serializes to an object.
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: Value) -> PodStatus {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_differences_travel() {
        let a = status(json!({"phase": "Pending", "reason": "X", "conditions": [
            {"type": "Ready", "status": "False", "reason": "R"}, {"type": "Other", "status": "True"}],
            "podIPs": [{"ip": "10.0.0.1"}]}));
        assert_eq!(patch("u", &a, &a), None);
        let b = status(json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}],
            "podIPs": [{"ip": "10.0.0.2"}]}));
        let expect = json!({"metadata": {"uid": "u"}, "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "reason": null}],
            "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "replace"}],
            "reason": null}});
        assert_eq!(patch("u", &a, &b).unwrap(), expect);
    }
}
