//! What a Service keeps, and gives up, when it is written anew.

use serde_json::{Map, Value, json};

/// A Service that is replaced without naming its addresses and node ports keeps them; one that
/// becomes an ExternalName gives them up.
pub(super) fn keep_allocated(old: &Value, new: &mut Value) {
    let text = |spec: &Value, name: &str| spec[name].as_str().unwrap_or_default().to_owned();
    let (before, after) = (text(old, "type"), text(new, "type"));
    let Value::Object(spec) = new else { return };
    if after == "ExternalName" && before != "ExternalName" {
        let same = spec.get("clusterIP") == old.get("clusterIP");
        if same {
            for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.shift_remove(name);
            }
        }
    } else if after != "ExternalName" && before != "ExternalName" {
        let unset = |spec: &Map<String, Value>, name: &str| {
            spec.get(name)
                .is_none_or(|v| v.is_null() || v == "" || v == &json!([]))
        };
        if unset(spec, "clusterIP") {
            for name in ["clusterIP", "clusterIPs"] {
                if let Some(value) = old.get(name) {
                    spec.insert(name.into(), value.clone());
                }
            }
        } else if unset(spec, "clusterIPs") && spec.get("clusterIP") == old.get("clusterIP") {
            spec.extend(
                old.get("clusterIPs")
                    .map(|v| ("clusterIPs".to_owned(), v.clone())),
            );
        }
        for name in ["ipFamilies", "ipFamilyPolicy"] {
            if unset(spec, name)
                && let Some(value) = old.get(name)
            {
                spec.insert(name.into(), value.clone());
            }
        }
    }
    let node_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    drop_foreign_fields(&after, old, spec);
    let Some(Value::Array(ports)) = spec.get_mut("ports") else {
        return;
    };
    for port in ports.iter_mut().filter_map(Value::as_object_mut) {
        let same = old["ports"].as_array().into_iter().flatten().find(|other| {
            other.get("port") == port.get("port") && other.get("protocol") == port.get("protocol")
        });
        let had = same.and_then(|port| port.get("nodePort"));
        if node_ports(&before) && node_ports(&after) {
            if port.get("nodePort").is_none_or(|p| p.is_null() || p == 0)
                && let Some(had) = had
            {
                port.insert("nodePort".into(), had.clone());
            }
        } else if node_ports(&before) && !node_ports(&after) && port.get("nodePort") == had {
            port.shift_remove("nodePort");
        }
    }
}

/// Fields that the type does not have any more go, when the writer did not touch them.
fn drop_foreign_fields(kind: &str, old: &Value, spec: &mut Map<String, Value>) {
    let external_ips = |spec: &Map<String, Value>| {
        spec.get("externalIPs")
            .and_then(Value::as_array)
            .is_some_and(|l| !l.is_empty())
    };
    let reachable =
        matches!(kind, "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external_ips(spec));
    let balanced = kind == "LoadBalancer";
    let local = spec
        .get("externalTrafficPolicy")
        .is_some_and(|p| p == "Local");
    for (name, wanted) in [
        ("externalTrafficPolicy", reachable),
        ("healthCheckNodePort", balanced && local),
        ("allocateLoadBalancerNodePorts", balanced),
        ("loadBalancerClass", balanced),
        ("internalTrafficPolicy", kind != "ExternalName"),
    ] {
        if !wanted && spec.get(name) == old.get(name) {
            spec.shift_remove(name);
        }
    }
}
