//! Metadata: names by kind, labels, annotations, owners, finalizers.

use serde_json::{Value, json};

use super::names::{
    dns_1035_label, dns_label, dns_subdomain, label_value, path_segment, qualified_name,
};
use super::{Errors, FieldError, items, text};
use crate::kinds::Kind;

/// Sum of all keys and values of annotations.
const ANNOTATIONS_MAX: usize = 256 * 1024;
/// A CronJob's jobs get 11 more characters.
const CRON_JOB_NAME_MAX: usize = 52;

pub(super) fn check(kind: &Kind, object: &Value, errors: &mut Errors) {
    let metadata = &object["metadata"];
    name(kind, metadata, errors);
    if kind.namespaced && kind.is_stored() {
        let namespace = text(metadata, "namespace");
        if namespace.is_empty() {
            errors.push(FieldError::required("metadata.namespace", ""));
        } else {
            for why in dns_label(namespace) {
                errors.push(FieldError::invalid(
                    "metadata.namespace",
                    &metadata["namespace"],
                    &why,
                ));
            }
        }
    } else if !kind.namespaced && !text(metadata, "namespace").is_empty() {
        errors.push(FieldError::forbidden(
            "metadata.namespace",
            "not allowed on this type",
        ));
    }
    labels(&metadata["labels"], "metadata.labels", errors);
    annotations(&metadata["annotations"], errors);
    owners(metadata, errors);
    for (index, finalizer) in items(metadata, "finalizers").iter().enumerate() {
        for why in qualified_name(finalizer.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(
                format!("metadata.finalizers[{index}]"),
                finalizer,
                &why,
            ));
        }
    }
}

/// An object that is being deleted gets no new finalizers: it would never go.
pub(super) fn update(old: &Value, new: &Value, errors: &mut Errors) {
    if old["metadata"]["deletionTimestamp"].is_null() {
        return;
    }
    let before = items(&old["metadata"], "finalizers");
    let added: Vec<&Value> = items(&new["metadata"], "finalizers")
        .iter()
        .filter(|f| !before.contains(f))
        .collect();
    if !added.is_empty() {
        let why = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers {}",
            json!(added)
        );
        errors.push(FieldError::forbidden("metadata.finalizers", &why));
    }
}

fn name(kind: &Kind, metadata: &Value, errors: &mut Errors) {
    let given = text(metadata, "name");
    if given.is_empty() {
        if kind.is_stored() {
            let why = "name or generateName is required";
            errors.push(FieldError::required("metadata.name", why));
        }
        return;
    }
    let mut wrong = match (kind.group, kind.kind) {
        ("", "Service") => dns_1035_label(given),
        ("", "Namespace") => dns_label(given),
        ("rbac.authorization.k8s.io" | "certificates.k8s.io", _) => path_segment(given),
        ("networking.k8s.io", "IPAddress") => match given.parse::<std::net::IpAddr>() {
            Ok(ip) if ip.to_string() == given => Vec::new(),
            _ => vec!["must be a valid IP address in canonical form".to_owned()],
        },
        _ => dns_subdomain(given),
    };
    if (kind.group, kind.kind) == ("batch", "CronJob") && given.len() > CRON_JOB_NAME_MAX {
        wrong.push(format!(
            "must be no more than {CRON_JOB_NAME_MAX} characters"
        ));
    }
    for why in wrong {
        errors.push(FieldError::invalid(
            "metadata.name",
            &metadata["name"],
            &why,
        ));
    }
}

/// A map of labels.
pub(super) fn labels(labels: &Value, field: &str, errors: &mut Errors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        for why in qualified_name(key) {
            errors.push(FieldError::invalid(field, &json!(key), &why));
        }
        for why in label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(field, value, &why));
        }
    }
}

fn annotations(annotations: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        size += key.len() + value.as_str().unwrap_or_default().len();
        for why in qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(
                "metadata.annotations",
                &json!(key),
                &why,
            ));
        }
    }
    if size > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(
            "metadata.annotations",
            ANNOTATIONS_MAX,
        ));
    }
}

fn owners(metadata: &Value, errors: &mut Errors) {
    let owners = items(metadata, "ownerReferences");
    for (index, owner) in owners.iter().enumerate() {
        for name in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, name).is_empty() {
                errors.push(FieldError::invalid(
                    format!("metadata.ownerReferences[{index}].{name}"),
                    &json!(""),
                    &format!(
                        "{} must not be empty",
                        if name == "apiVersion" {
                            "version"
                        } else {
                            name
                        }
                    ),
                ));
            }
        }
    }
    if owners.iter().filter(|o| o["controller"] == true).count() > 1 {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            &metadata["ownerReferences"],
            "Only one reference can have Controller set to true",
        ));
    }
}
