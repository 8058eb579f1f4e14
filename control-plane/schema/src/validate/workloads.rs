//! The kinds that run pods.

use api::selector::LabelSelector;
use serde_json::{Value, json};

use super::pod::Place;
use super::{
    Errors, FieldError, IMMUTABLE, affinity, immutable, items, metadata, not_negative, one_of, pod,
    text,
};
use crate::kinds::Kind;

pub(super) fn check(kind: &Kind, object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    match kind.kind {
        "CronJob" => {
            if text(spec, "schedule").is_empty() {
                errors.push(FieldError::required("spec.schedule", ""));
            }
            let policies = ["Allow", "Forbid", "Replace"];
            one_of(
                &spec["concurrencyPolicy"],
                "spec.concurrencyPolicy",
                &policies,
                errors,
            );
            for name in [
                "startingDeadlineSeconds",
                "successfulJobsHistoryLimit",
                "failedJobsHistoryLimit",
            ] {
                not_negative(&spec[name], &format!("spec.{name}"), errors);
            }
            template(
                &spec["jobTemplate"]["spec"]["template"],
                "spec.jobTemplate.spec.template",
                Place::Job,
                errors,
            );
        }
        "Job" => job(spec, errors),
        "ControllerRevision" => {
            if object["data"].is_null() {
                errors.push(FieldError::required("data", "data is mandatory"));
            }
            not_negative(&object["revision"], "revision", errors);
        }
        _ => controller(kind, spec, errors),
    }
}

fn job(spec: &Value, errors: &mut Errors) {
    let limits = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
    ];
    for name in limits {
        not_negative(&spec[name], &format!("spec.{name}"), errors);
    }
    let modes = ["Indexed", "NonIndexed"];
    one_of(
        &spec["completionMode"],
        "spec.completionMode",
        &modes,
        errors,
    );
    if text(spec, "completionMode") == "Indexed" && spec["completions"].is_null() {
        let why = "when completion mode is Indexed";
        errors.push(FieldError::required("spec.completions", why));
    }
    if !spec["selector"].is_null() {
        selector_matches_template(&spec["selector"], spec, errors);
    }
    template(&spec["template"], "spec.template", Place::Job, errors);
}

fn controller(kind: &Kind, spec: &Value, errors: &mut Errors) {
    for name in [
        "replicas",
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ] {
        not_negative(&spec[name], &format!("spec.{name}"), errors);
    }
    if kind.kind == "ReplicationController" {
        plain_selector(spec, errors);
    } else if spec["selector"].is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else {
        selector_matches_template(&spec["selector"], spec, errors);
    }
    if spec["template"].is_null() {
        errors.push(FieldError::required("spec.template", ""));
    } else {
        let (at, claims) = ("spec.template", items(spec, "volumeClaimTemplates"));
        let labels = &spec["template"]["metadata"]["labels"];
        metadata::labels(labels, &format!("{at}.labels"), errors);
        let pods = &spec["template"]["spec"];
        pod::spec_with_claims(pods, claims, &format!("{at}.spec"), Place::Service, errors);
    }
    match kind.kind {
        "Deployment" => deployment_strategy(spec, errors),
        "DaemonSet" | "StatefulSet" => {
            let types = ["OnDelete", "RollingUpdate"];
            one_of(
                &spec["updateStrategy"]["type"],
                "spec.updateStrategy.type",
                &types,
                errors,
            );
            if kind.kind == "StatefulSet" {
                let types = ["OrderedReady", "Parallel"];
                one_of(
                    &spec["podManagementPolicy"],
                    "spec.podManagementPolicy",
                    &types,
                    errors,
                );
            }
        }
        _ => {}
    }
    if spec["progressDeadlineSeconds"]
        .as_i64()
        .is_some_and(|deadline| deadline <= spec["minReadySeconds"].as_i64().unwrap_or(0))
    {
        errors.push(FieldError::invalid(
            "spec.progressDeadlineSeconds",
            &spec["progressDeadlineSeconds"],
            "must be greater than minReadySeconds",
        ));
    }
}

fn deployment_strategy(spec: &Value, errors: &mut Errors) {
    let strategy = &spec["strategy"];
    let rolling = &strategy["rollingUpdate"];
    match text(strategy, "type") {
        "Recreate" if !rolling.is_null() => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", why));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let at = "spec.strategy.rollingUpdate";
            for name in ["maxUnavailable", "maxSurge"] {
                int_or_percent(&rolling[name], &format!("{at}.{name}"), errors);
            }
            let zero = |name: &str| {
                matches!(&rolling[name], Value::Number(n) if n.as_i64() == Some(0))
                    || rolling[name] == "0%"
            };
            if zero("maxUnavailable") && zero("maxSurge") {
                errors.push(FieldError::invalid(
                    format!("{at}.maxUnavailable"),
                    &rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
        }
        _ => one_of(
            &strategy["type"],
            "spec.strategy.type",
            &["Recreate", "RollingUpdate"],
            errors,
        ),
    }
}

fn int_or_percent(value: &Value, field: &str, errors: &mut Errors) {
    match value {
        Value::String(text) => {
            let number = text.strip_suffix('%').and_then(|n| n.parse::<u32>().ok());
            match number {
                None => {
                    let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                    errors.push(FieldError::invalid(field, value, why));
                }
                Some(101..) if field.ends_with("maxUnavailable") => {
                    let why = "must not be greater than 100%";
                    errors.push(FieldError::invalid(field, value, why));
                }
                Some(_) => {}
            }
        }
        other => not_negative(other, field, errors),
    }
}

fn plain_selector(spec: &Value, errors: &mut Errors) {
    let selector = &spec["selector"];
    if selector.as_object().is_none_or(|s| s.is_empty()) {
        errors.push(FieldError::required("spec.selector", ""));
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if selector
        .as_object()
        .into_iter()
        .flatten()
        .any(|(k, v)| labels.get(k) != Some(v))
    {
        mismatch(labels, errors);
    }
}

fn mismatch(labels: &Value, errors: &mut Errors) {
    let shown = if labels.is_null() {
        json!({})
    } else {
        labels.clone()
    };
    let why = "`selector` does not match template `labels`";
    errors.push(FieldError::invalid(
        "spec.template.metadata.labels",
        &shown,
        why,
    ));
}

fn selector_matches_template(selector: &Value, spec: &Value, errors: &mut Errors) {
    affinity::label_selector(selector, "spec.selector", errors);
    let Ok(parsed) = LabelSelector::from_json(selector) else {
        return;
    };
    if parsed.is_empty() {
        let why = "empty selector is invalid for deployment";
        errors.push(FieldError::invalid("spec.selector", selector, why));
    } else if !parsed.matches_object(&spec["template"]) {
        mismatch(&spec["template"]["metadata"]["labels"], errors);
    }
}

/// A pod template.
pub(super) fn template(template: &Value, at: &str, place: Place, errors: &mut Errors) {
    metadata::labels(
        &template["metadata"]["labels"],
        &format!("{at}.labels"),
        errors,
    );
    pod::spec(&template["spec"], &format!("{at}.spec"), place, errors);
}

const STATEFUL_SET_MAY_CHANGE: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

pub(super) fn update(kind: &Kind, old: &Value, new: &Value, errors: &mut Errors) {
    match kind.kind {
        "Deployment" | "ReplicaSet" | "DaemonSet" => {
            immutable(old, new, "/spec/selector", "spec.selector", errors);
        }
        "StatefulSet" => {
            let fixed = |object: &Value| {
                let mut spec = object["spec"].clone();
                if let Some(spec) = spec.as_object_mut() {
                    for name in [
                        "replicas",
                        "ordinals",
                        "template",
                        "updateStrategy",
                        "revisionHistoryLimit",
                        "persistentVolumeClaimRetentionPolicy",
                        "minReadySeconds",
                    ] {
                        spec.shift_remove(name);
                    }
                }
                spec
            };
            if fixed(old) != fixed(new) {
                errors.push(FieldError::forbidden("spec", STATEFUL_SET_MAY_CHANGE));
            }
        }
        "Job" => {
            for name in [
                "completions",
                "selector",
                "completionMode",
                "podFailurePolicy",
                "backoffLimitPerIndex",
            ] {
                immutable(
                    old,
                    new,
                    &format!("/spec/{name}"),
                    &format!("spec.{name}"),
                    errors,
                );
            }
            if old["spec"]["template"] != new["spec"]["template"] {
                errors.push(FieldError::invalid(
                    "spec.template",
                    &new["spec"]["template"],
                    IMMUTABLE,
                ));
            }
        }
        "ControllerRevision" => immutable(old, new, "/data", "data", errors),
        _ => {}
    }
}

pub(super) fn autoscaler(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    let (minimum, maximum) = (
        spec["minReplicas"].as_i64().unwrap_or(1),
        spec["maxReplicas"].as_i64().unwrap_or(0),
    );
    if minimum < 1 {
        let why = "must be greater than or equal to 1";
        errors.push(FieldError::invalid(
            "spec.minReplicas",
            &spec["minReplicas"],
            why,
        ));
    }
    if maximum < 1 {
        let why = "must be greater than 0";
        errors.push(FieldError::invalid(
            "spec.maxReplicas",
            &json!(maximum),
            why,
        ));
    } else if maximum < minimum {
        let why = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid(
            "spec.maxReplicas",
            &spec["maxReplicas"],
            why,
        ));
    }
    for name in ["kind", "name"] {
        if text(&spec["scaleTargetRef"], name).is_empty() {
            errors.push(FieldError::required(
                format!("spec.scaleTargetRef.{name}"),
                "",
            ));
        }
    }
}

pub(super) fn disruption_budget(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid("spec", spec, why));
    }
    for name in ["minAvailable", "maxUnavailable"] {
        int_or_percent(&spec[name], &format!("spec.{name}"), errors);
    }
}
