//! Volumes of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::names::dns_label;
use super::{Errors, FieldError, items, text};

/// Checks the volumes and returns their names.
pub(super) fn check<'a>(volumes: &'a [Value], at: &str, errors: &mut Errors) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let name = text(volume, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else {
            for why in dns_label(name) {
                errors.push(FieldError::invalid(
                    format!("{at}.name"),
                    &volume["name"],
                    &why,
                ));
            }
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), &volume["name"]));
            }
        }
        source(volume, &at, errors);
    }
    names
}

fn source(volume: &Value, at: &str, errors: &mut Errors) {
    let sources: Vec<(&String, &Value)> = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| name.as_str() != "name" && !value.is_null())
        .collect();
    if sources.is_empty() {
        errors.push(FieldError::required(at, "must specify a volume type"));
    }
    for (extra, _) in sources.iter().skip(1) {
        let why = "may not specify more than 1 volume type";
        errors.push(FieldError::forbidden(format!("{at}.{extra}"), why));
    }
    let Some((kind, source)) = sources.first() else {
        return;
    };
    let at = format!("{at}.{kind}");
    let mut require = |name: &str| {
        if text(source, name).is_empty() {
            errors.push(FieldError::required(format!("{at}.{name}"), ""));
        }
    };
    match kind.as_str() {
        "hostPath" => {
            require("path");
            if text(source, "path").split('/').any(|part| part == "..") {
                let why = "must not contain '..'";
                errors.push(FieldError::invalid(
                    format!("{at}.path"),
                    &source["path"],
                    why,
                ));
            }
        }
        "secret" => require("secretName"),
        "configMap" => require("name"),
        "persistentVolumeClaim" => require("claimName"),
        "nfs" => {
            require("server");
            require("path");
        }
        "csi" => require("driver"),
        "projected" => {
            for (index, part) in items(source, "sources").iter().enumerate() {
                let count = part
                    .as_object()
                    .map_or(0, |m| m.values().filter(|v| !v.is_null()).count());
                let at = format!("{at}.sources[{index}]");
                if count == 0 {
                    errors.push(FieldError::required(
                        at,
                        "must specify a projected volume source",
                    ));
                } else if count > 1 {
                    let why = "may not specify more than 1 volume type per source";
                    errors.push(FieldError::forbidden(at, why));
                } else if let Some(token) = part.get("serviceAccountToken") {
                    if text(token, "path").is_empty() {
                        let field = format!("{at}.serviceAccountToken.path");
                        errors.push(FieldError::required(field, ""));
                    }
                    if token["expirationSeconds"].as_i64().is_some_and(|n| n < 600) {
                        let field = format!("{at}.serviceAccountToken.expirationSeconds");
                        let why = "may not specify a duration less than 10 minutes";
                        errors.push(FieldError::invalid(field, &token["expirationSeconds"], why));
                    }
                }
            }
        }
        _ => {}
    }
    modes(source, &at, errors);
}

fn modes(source: &Value, at: &str, errors: &mut Errors) {
    let mut check = |value: &Value, field: String| {
        if value.as_i64().is_some_and(|n| !(0..=0o777).contains(&n)) {
            let why = "must be a number between 0 and 0777 (octal), both inclusive";
            errors.push(FieldError::invalid(field, value, why));
        }
    };
    check(&source["defaultMode"], format!("{at}.defaultMode"));
    for (index, item) in items(source, "items").iter().enumerate() {
        check(&item["mode"], format!("{at}.items[{index}].mode"));
    }
}
