//! Pods and pod templates.

use serde_json::Value;

use super::names::{dns_label, dns_subdomain, qualified_name};
use super::{
    Errors, FieldError, affinity, containers, items, metadata, not_negative, one_of, text, volumes,
};

/// Where a pod spec stands; decides which restart policies it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A pod of its own.
    Pod,
    /// A template whose pods must run for ever.
    Service,
    /// A template of a Job.
    Job,
}

pub(super) fn spec(spec: &Value, at: &str, place: Place, errors: &mut Errors) {
    spec_with_claims(spec, &[], at, place, errors);
}

/// A spec whose pods also get volumes for these claim templates (of a StatefulSet).
pub(super) fn spec_with_claims(
    spec: &Value,
    claims: &[Value],
    at: &str,
    place: Place,
    errors: &mut Errors,
) {
    let mut names = volumes::check(items(spec, "volumes"), &format!("{at}.volumes"), errors);
    names.extend(claims.iter().map(|claim| text(&claim["metadata"], "name")));
    containers::check(spec, at, &names, errors);

    let field = format!("{at}.restartPolicy");
    match place {
        Place::Pod => {
            one_of(
                &spec["restartPolicy"],
                &field,
                &["Always", "OnFailure", "Never"],
                errors,
            );
        }
        Place::Service => one_of(&spec["restartPolicy"], &field, &["Always"], errors),
        Place::Job => match text(spec, "restartPolicy") {
            "OnFailure" | "Never" => {}
            "" | "Always" => errors.push(FieldError::new(
                field,
                super::Reason::Required,
                "Required value: valid values: \"OnFailure\", \"Never\"",
            )),
            _ => one_of(
                &spec["restartPolicy"],
                &field,
                &["OnFailure", "Never"],
                errors,
            ),
        },
    }
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(
        &spec["dnsPolicy"],
        &format!("{at}.dnsPolicy"),
        &policies,
        errors,
    );
    if text(spec, "dnsPolicy") == "None" && items(&spec["dnsConfig"], "nameservers").is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(
            format!("{at}.dnsConfig.nameservers"),
            why,
        ));
    }
    not_negative(
        &spec["terminationGracePeriodSeconds"],
        &format!("{at}.terminationGracePeriodSeconds"),
        errors,
    );
    if spec["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|n| n < 1)
    {
        errors.push(FieldError::invalid(
            format!("{at}.activeDeadlineSeconds"),
            &spec["activeDeadlineSeconds"],
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    metadata::labels(&spec["nodeSelector"], &format!("{at}.nodeSelector"), errors);
    for (name, check) in [
        (
            "serviceAccountName",
            dns_subdomain as fn(&str) -> Vec<String>,
        ),
        ("nodeName", dns_subdomain),
        ("hostname", dns_label),
        ("subdomain", dns_label),
        ("priorityClassName", dns_subdomain),
    ] {
        if !text(spec, name).is_empty() {
            for why in check(text(spec, name)) {
                errors.push(FieldError::invalid(
                    format!("{at}.{name}"),
                    &spec[name],
                    &why,
                ));
            }
        }
    }
    affinity::check(spec, at, errors);
    tolerations(
        items(spec, "tolerations"),
        &format!("{at}.tolerations"),
        errors,
    );
}

fn tolerations(tolerations: &[Value], at: &str, errors: &mut Errors) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        if !key.is_empty() {
            for why in qualified_name(key) {
                errors.push(FieldError::invalid(
                    format!("{at}.key"),
                    &toleration["key"],
                    &why,
                ));
            }
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(
                format!("{at}.operator"),
                &toleration["operator"],
                why,
            ));
        }
        match operator {
            "" | "Equal" => {}
            "Exists" if text(toleration, "value").is_empty() => {}
            "Exists" => {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(
                    format!("{at}.operator"),
                    toleration,
                    why,
                ));
            }
            _ => one_of(
                &toleration["operator"],
                &format!("{at}.operator"),
                &["Equal", "Exists"],
                errors,
            ),
        }
        if !text(toleration, "effect").is_empty() {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            one_of(
                &toleration["effect"],
                &format!("{at}.effect"),
                &effects,
                errors,
            );
        }
    }
}

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A pod's spec stays as it is but for images, tolerations, deadlines and scheduling gates.
/// (Binding, ephemeral containers and resize go through their subresources.)
pub(super) fn update(old: &Value, new: &Value, errors: &mut Errors) {
    let (before, after) = (&old["spec"], &new["spec"]);
    if before == after {
        return;
    }
    let count = |spec: &Value, list: &str| items(spec, list).len();
    for list in ["containers", "initContainers"] {
        if count(before, list) != count(after, list) {
            let why = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(format!("spec.{list}"), why));
            return;
        }
    }
    let kept = items(before, "tolerations")
        .iter()
        .all(|t| items(after, "tolerations").contains(t));
    if !kept {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", why));
    }
    let gates_grew = items(after, "schedulingGates")
        .iter()
        .any(|g| !items(before, "schedulingGates").contains(g));
    if gates_grew {
        let why = "only deletion is allowed, but found new scheduling gate";
        errors.push(FieldError::forbidden("spec.schedulingGates", why));
    }
    if fixed_part(before) != fixed_part(after) {
        errors.push(FieldError::forbidden("spec", MAY_CHANGE));
    }
}

fn fixed_part(spec: &Value) -> Value {
    let mut out = spec.clone();
    let Some(map) = out.as_object_mut() else {
        return out;
    };
    let was_negative = map
        .get("terminationGracePeriodSeconds")
        .and_then(Value::as_i64)
        .is_some_and(|n| n < 0 || n == 1);
    for name in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        map.shift_remove(name);
    }
    if was_negative {
        map.shift_remove("terminationGracePeriodSeconds");
    }
    for list in ["containers", "initContainers"] {
        if let Some(Value::Array(containers)) = map.get_mut(list) {
            for container in containers.iter_mut().filter_map(Value::as_object_mut) {
                container.shift_remove("image");
            }
        }
    }
    out
}
