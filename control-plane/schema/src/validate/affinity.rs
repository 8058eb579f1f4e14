//! Affinity and topology spreading: what the scheduler relies on.

use serde_json::Value;

use super::names::qualified_name;
use super::{Errors, FieldError, items, metadata, one_of, text};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn check(spec: &Value, at: &str, errors: &mut Errors) {
    let affinity = &spec["affinity"];
    node(
        &affinity["nodeAffinity"],
        &format!("{at}.affinity.nodeAffinity"),
        errors,
    );
    for name in ["podAffinity", "podAntiAffinity"] {
        pod(&affinity[name], &format!("{at}.affinity.{name}"), errors);
    }
    for (index, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let at = format!("{at}.topologySpreadConstraints[{index}]");
        if constraint["maxSkew"].as_i64().unwrap_or(0) <= 0 {
            let why = "must be greater than zero";
            errors.push(FieldError::invalid(
                format!("{at}.maxSkew"),
                &constraint["maxSkew"],
                why,
            ));
        }
        if text(constraint, "topologyKey").is_empty() {
            errors.push(FieldError::required(
                format!("{at}.topologyKey"),
                "can not be empty",
            ));
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        let field = format!("{at}.whenUnsatisfiable");
        one_of(&constraint["whenUnsatisfiable"], &field, &actions, errors);
        label_selector(
            &constraint["labelSelector"],
            &format!("{at}.labelSelector"),
            errors,
        );
    }
}

fn node(affinity: &Value, at: &str, errors: &mut Errors) {
    let required = &affinity[REQUIRED];
    if !required.is_null() {
        let at = format!("{at}.{REQUIRED}.nodeSelectorTerms");
        let terms = items(required, "nodeSelectorTerms");
        if terms.is_empty() {
            let why = "must have at least one node selector term";
            errors.push(FieldError::required(at.clone(), why));
        }
        for (index, term) in terms.iter().enumerate() {
            node_term(term, &format!("{at}[{index}]"), errors);
        }
    }
    for (index, preferred) in items(affinity, PREFERRED).iter().enumerate() {
        let at = format!("{at}.{PREFERRED}[{index}]");
        weight(preferred, &at, errors);
        node_term(
            &preferred["preference"],
            &format!("{at}.preference"),
            errors,
        );
    }
}

fn node_term(term: &Value, at: &str, errors: &mut Errors) {
    for list in ["matchExpressions", "matchFields"] {
        for (index, expression) in items(term, list).iter().enumerate() {
            let at = format!("{at}.{list}[{index}]");
            for why in qualified_name(text(expression, "key")) {
                errors.push(FieldError::invalid(
                    format!("{at}.key"),
                    &expression["key"],
                    &why,
                ));
            }
            let values = items(expression, "values");
            match text(expression, "operator") {
                "In" | "NotIn" if values.is_empty() => {
                    let why = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(format!("{at}.values"), why));
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(format!("{at}.values"), why));
                }
                "Gt" | "Lt" if values.len() != 1 => {
                    let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                    errors.push(FieldError::required(format!("{at}.values"), why));
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                _ => errors.push(FieldError::invalid(
                    format!("{at}.operator"),
                    &expression["operator"],
                    "not a valid selector operator",
                )),
            }
        }
    }
}

fn pod(affinity: &Value, at: &str, errors: &mut Errors) {
    for (index, term) in items(affinity, REQUIRED).iter().enumerate() {
        pod_term(term, &format!("{at}.{REQUIRED}[{index}]"), errors);
    }
    for (index, preferred) in items(affinity, PREFERRED).iter().enumerate() {
        let at = format!("{at}.{PREFERRED}[{index}]");
        weight(preferred, &at, errors);
        pod_term(
            &preferred["podAffinityTerm"],
            &format!("{at}.podAffinityTerm"),
            errors,
        );
    }
}

fn pod_term(term: &Value, at: &str, errors: &mut Errors) {
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(
            format!("{at}.topologyKey"),
            "can not be empty",
        ));
    } else {
        for why in qualified_name(key) {
            errors.push(FieldError::invalid(
                format!("{at}.topologyKey"),
                &term["topologyKey"],
                &why,
            ));
        }
    }
    label_selector(
        &term["labelSelector"],
        &format!("{at}.labelSelector"),
        errors,
    );
    label_selector(
        &term["namespaceSelector"],
        &format!("{at}.namespaceSelector"),
        errors,
    );
}

fn weight(preferred: &Value, at: &str, errors: &mut Errors) {
    if !preferred["weight"]
        .as_i64()
        .is_some_and(|n| (1..=100).contains(&n))
    {
        let why = "must be in the range 1-100";
        errors.push(FieldError::invalid(
            format!("{at}.weight"),
            &preferred["weight"],
            why,
        ));
    }
}

/// `matchLabels` and `matchExpressions`.
pub(super) fn label_selector(selector: &Value, at: &str, errors: &mut Errors) {
    metadata::labels(
        &selector["matchLabels"],
        &format!("{at}.matchLabels"),
        errors,
    );
    for (index, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let at = format!("{at}.matchExpressions[{index}]");
        let values = items(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{at}.values"), why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{at}.values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => {
                let why = "not a valid selector operator";
                errors.push(FieldError::invalid(
                    format!("{at}.operator"),
                    &expression["operator"],
                    why,
                ));
            }
        }
        for why in qualified_name(text(expression, "key")) {
            errors.push(FieldError::invalid(
                format!("{at}.key"),
                &expression["key"],
                &why,
            ));
        }
    }
}
