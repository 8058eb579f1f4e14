//! Rows of autoscalers, role bindings, storage, certificates and admission.

use serde_json::Value;

use super::cells::{Object, scalar};
use super::time::human_duration;
use crate::kinds::Kind;

/// Metrics shown before `+ N more...`.
const METRICS_SHOWN: usize = 2;

pub(super) fn autoscaler(o: &Object<'_>) -> Vec<Value> {
    let reference = format!(
        "{}/{}",
        o.text("/spec/scaleTargetRef/kind"),
        o.text("/spec/scaleTargetRef/name")
    );
    let minimum = match o.at("/spec/minReplicas") {
        Value::Null => "<unset>".to_owned(),
        value => scalar(value),
    };
    o.named(vec![
        reference.into(),
        targets(o).into(),
        minimum.into(),
        scalar(o.at("/spec/maxReplicas")).into(),
        o.int("/status/currentReplicas").to_string().into(),
    ])
}

fn targets(o: &Object<'_>) -> String {
    // autoscaling/v1 holds one CPU percentage instead of a list.
    if let Value::Number(target) = o.at("/spec/targetCPUUtilizationPercentage") {
        let current = match o.at("/status/currentCPUUtilizationPercentage") {
            Value::Number(current) => format!("{current}%"),
            _ => "<unknown>".to_owned(),
        };
        return format!("cpu: {current}/{target}%");
    }
    let metrics = o.list("/spec/metrics");
    if metrics.is_empty() {
        return "<none>".to_owned();
    }
    let shown: Vec<String> = metrics
        .iter()
        .enumerate()
        .take(METRICS_SHOWN)
        .map(|(index, metric)| target(metric, &o.list("/status/currentMetrics").get(index)))
        .collect();
    match metrics.len().saturating_sub(METRICS_SHOWN) {
        0 => shown.join(", "),
        more => format!("{} + {more} more...", shown.join(", ")),
    }
}

fn target(metric: &Value, current: &Option<&Value>) -> String {
    let source = match metric["type"].as_str().unwrap_or_default() {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return "<unknown type>".to_owned(),
    };
    let wanted = &metric[source]["target"];
    let current = current.map_or(&Value::Null, |c| &c[source]["current"]);
    let (key, unit) = if wanted["averageUtilization"].is_null() {
        (
            if wanted["averageValue"].is_null() {
                "value"
            } else {
                "averageValue"
            },
            "",
        )
    } else {
        ("averageUtilization", "%")
    };
    let now = match &current[key] {
        Value::Null => "<unknown>".to_owned(),
        value => format!("{}{unit}", scalar(value)),
    };
    let average = if key == "averageValue" && matches!(source, "object" | "external") {
        " (avg)"
    } else {
        ""
    };
    let name = match source {
        "resource" | "containerResource" => format!("{}: ", scalar(&metric[source]["name"])),
        _ => String::new(),
    };
    format!("{name}{now}/{}{unit}{average}", scalar(&wanted[key]))
}

pub(super) fn role_binding(o: &Object<'_>) -> Vec<Value> {
    let subjects = |kind: &str| {
        let all: Vec<String> = o
            .list("/subjects")
            .iter()
            .filter(|s| s["kind"] == kind)
            .map(|s| match kind {
                "ServiceAccount" => format!("{}/{}", scalar(&s["namespace"]), scalar(&s["name"])),
                _ => scalar(&s["name"]),
            })
            .collect();
        Value::String(all.join(", "))
    };
    vec![
        o.name().into(),
        format!("{}/{}", o.text("/roleRef/kind"), o.text("/roleRef/name")).into(),
        o.age().into(),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

pub(super) fn signing_request(o: &Object<'_>) -> Vec<Value> {
    let is = |kind| {
        o.list("/status/conditions")
            .iter()
            .any(|c| c["type"] == kind)
    };
    let mut status = if is("Denied") {
        "Denied"
    } else if is("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if is("Failed") {
        status.push_str(",Failed");
    }
    if !o.text("/status/certificate").is_empty() {
        status.push_str(",Issued");
    }
    let duration = match o.at("/spec/expirationSeconds").as_i64() {
        Some(seconds) => human_duration(seconds),
        None => "<none>".to_owned(),
    };
    vec![
        o.name().into(),
        o.age().into(),
        o.text("/spec/signerName").into(),
        o.text("/spec/username").into(),
        duration.into(),
        status.into(),
    ]
}

pub(super) fn priority_class(o: &Object<'_>) -> Vec<Value> {
    vec![
        o.name().into(),
        o.int("/value").into(),
        (o.at("/globalDefault") == true).into(),
        o.age().into(),
        o.text("/preemptionPolicy").into(),
    ]
}

pub(super) fn storage_class(o: &Object<'_>) -> Vec<Value> {
    let is_default = o.text("/metadata/annotations/storageclass.kubernetes.io~1is-default-class");
    let mut name = o.name().to_owned();
    if is_default == "true" {
        name.push_str(" (default)");
    }
    vec![
        name.into(),
        o.text("/provisioner").into(),
        o.text_or("/reclaimPolicy", "Delete").into(),
        o.text_or("/volumeBindingMode", "Immediate").into(),
        (o.at("/allowVolumeExpansion") == true).into(),
        o.age().into(),
    ]
}

pub(super) fn csi_driver(o: &Object<'_>) -> Vec<Value> {
    let flag = |pointer, otherwise| Value::Bool(o.at(pointer).as_bool().unwrap_or(otherwise));
    let join = |pointer, key: Option<&str>| -> String {
        let all: Vec<String> = o
            .list(pointer)
            .iter()
            .map(|v| scalar(key.map_or(v, |k| &v[k])))
            .collect();
        all.join(",")
    };
    let tokens = match join("/spec/tokenRequests", Some("audience")) {
        text if text.is_empty() => "<unset>".to_owned(),
        text => text,
    };
    o.named(vec![
        flag("/spec/attachRequired", true),
        flag("/spec/podInfoOnMount", false),
        flag("/spec/storageCapacity", false),
        tokens.into(),
        flag("/spec/requiresRepublish", false),
        join("/spec/volumeLifecycleModes", None).into(),
    ])
}

pub(super) fn volume_attachment(o: &Object<'_>) -> Vec<Value> {
    o.named(vec![
        o.text("/spec/attacher").into(),
        o.text("/spec/source/persistentVolumeName").into(),
        o.text("/spec/nodeName").into(),
        (o.at("/status/attached") == true).into(),
    ])
}

pub(super) fn admission(kind: &Kind, o: &Object<'_>) -> Vec<Value> {
    match kind.kind {
        "ValidatingAdmissionPolicy" => {
            let param = match o.text("/spec/paramKind/kind") {
                "" => "<unset>".to_owned(),
                kind => format!("{}/{kind}", o.text("/spec/paramKind/apiVersion")),
            };
            o.named(vec![o.count("/spec/validations"), param.into()])
        }
        "ValidatingAdmissionPolicyBinding" => {
            let param = match o.text("/spec/paramRef/name") {
                "" => "<unset>".to_owned(),
                name => match o.text("/spec/paramRef/namespace") {
                    "" => format!("*/{name}"),
                    namespace => format!("{namespace}/{name}"),
                },
            };
            o.named(vec![o.text("/spec/policyName").into(), param.into()])
        }
        _ => o.named(vec![o.count("/webhooks")]),
    }
}
