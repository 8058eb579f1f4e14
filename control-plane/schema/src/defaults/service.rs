//! Defaults of services, endpoint slices and network policies.

use serde_json::{Value, json};

use super::{Object, at, each, make, set, set_text};

/// How long a client sticks to its endpoint with `sessionAffinity: ClientIP`: three hours.
const AFFINITY_SECONDS: i64 = 10_800;

pub(super) fn service(o: &mut Object) {
    make(o, "spec", |spec| {
        set_text(spec, "sessionAffinity", "None");
        match spec.get("sessionAffinity").and_then(Value::as_str) {
            Some("None") => {
                spec.shift_remove("sessionAffinityConfig");
            }
            Some("ClientIP") => make(spec, "sessionAffinityConfig", |config| {
                make(config, "clientIP", |client| {
                    set(client, "timeoutSeconds", AFFINITY_SECONDS)
                });
            }),
            _ => {}
        }
        set_text(spec, "type", "ClusterIP");
        each(spec, "ports", |port| {
            set_text(port, "protocol", "TCP");
            let unset = matches!(port.get("targetPort"), None | Some(Value::Null))
                || port.get("targetPort") == Some(&json!(0))
                || port.get("targetPort") == Some(&json!(""));
            if unset && let Some(number) = port.get("port").cloned() {
                port.insert("targetPort".into(), number);
            }
            if port.get("nodePort") == Some(&json!(0)) {
                port.shift_remove("nodePort");
            }
        });
        let kind = spec
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let has_external_ips = spec
            .get("externalIPs")
            .and_then(Value::as_array)
            .is_some_and(|l| !l.is_empty());
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer")
            || (kind == "ClusterIP" && has_external_ips)
        {
            set_text(spec, "externalTrafficPolicy", "Cluster");
        }
        if kind != "ExternalName" {
            set_text(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set(spec, "allocateLoadBalancerNodePorts", true);
        }
    });
}

pub(super) fn endpoint_slice(o: &mut Object) {
    each(o, "ports", |port| {
        set(port, "name", "");
        set_text(port, "protocol", "TCP");
    });
}

pub(super) fn network_policy(o: &mut Object) {
    at(o, "spec", |spec| {
        for rules in ["ingress", "egress"] {
            each(spec, rules, |rule| {
                each(rule, "ports", |port| set(port, "protocol", "TCP"))
            });
        }
        let has_egress = spec
            .get("egress")
            .and_then(Value::as_array)
            .is_some_and(|l| !l.is_empty());
        let unset = spec
            .get("policyTypes")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty);
        if unset {
            let types = if has_egress {
                json!(["Ingress", "Egress"])
            } else {
                json!(["Ingress"])
            };
            spec.insert("policyTypes".into(), types);
        }
        set(spec, "podSelector", json!({}));
    });
}
