//! ConfigMaps, Secrets, volumes, nodes, roles and the other kinds that only describe something.

use serde_json::{Value, json};

use super::names::config_key;
use super::{Errors, FieldError, Reason, immutable, items, one_of, text};
use crate::kinds::Kind;

/// Upstream's limit of the data of one ConfigMap or Secret.
const DATA_MAX: usize = 1024 * 1024;

pub(super) fn config_map(object: &Value, errors: &mut Errors) {
    let mut size = 0;
    for list in ["data", "binaryData"] {
        for (key, value) in object[list].as_object().into_iter().flatten() {
            keys(list, key, errors);
            size += value.as_str().unwrap_or_default().len();
            if list == "binaryData" && object["data"].get(key).is_some() {
                let why = "duplicate of key present in data";
                errors.push(FieldError::invalid(
                    format!("binaryData[{key}]"),
                    &json!(key),
                    why,
                ));
            }
        }
    }
    if size > DATA_MAX {
        errors.push(FieldError::too_long("", DATA_MAX));
    }
}

fn keys(list: &str, key: &str, errors: &mut Errors) {
    for why in config_key(key) {
        errors.push(FieldError::invalid(
            format!("{list}[{key}]"),
            &json!(key),
            &why,
        ));
    }
}

pub(super) fn secret(object: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        keys("data", key, errors);
        // Three bytes stand in four characters of base64.
        size += value.as_str().unwrap_or_default().len() / 4 * 3;
    }
    if size > DATA_MAX {
        errors.push(FieldError::too_long("data", DATA_MAX));
    }
    let needed: &[&str] = match text(object, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if object["data"].get(key).is_none() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
}

pub(super) fn update(kind: &Kind, old: &Value, new: &Value, errors: &mut Errors) {
    if kind.kind == "Secret" {
        immutable(old, new, "/type", "type", errors);
    }
    if old["immutable"] == true {
        let why = "field is immutable when `immutable` is set";
        for name in ["immutable", "data", "binaryData"] {
            if old[name] != new[name] {
                errors.push(FieldError::forbidden(name, why));
            }
        }
    }
}

pub(super) fn node(object: &Value, errors: &mut Errors) {
    for (index, taint) in items(&object["spec"], "taints").iter().enumerate() {
        let at = format!("spec.taints[{index}]");
        if text(taint, "key").is_empty() {
            errors.push(FieldError::required(format!("{at}.key"), ""));
        }
        let effects = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
        one_of(&taint["effect"], &format!("{at}.effect"), &effects, errors);
    }
}

const ACCESS_MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

fn access_modes(spec: &Value, errors: &mut Errors) {
    let modes = items(spec, "accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required(
            "spec.accessModes",
            "at least 1 access mode is required",
        ));
    }
    for mode in modes {
        one_of(mode, "spec.accessModes", ACCESS_MODES, errors);
    }
}

pub(super) fn volume(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    access_modes(spec, errors);
    if spec["capacity"]["storage"].is_null() {
        errors.push(FieldError::required("spec.capacity", ""));
    }
    let policies = ["Delete", "Recycle", "Retain"];
    let field = "spec.persistentVolumeReclaimPolicy";
    one_of(
        &spec["persistentVolumeReclaimPolicy"],
        field,
        &policies,
        errors,
    );
}

pub(super) fn claim(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    access_modes(spec, errors);
    if spec["resources"]["requests"]["storage"].is_null() {
        errors.push(FieldError::required("spec.resources[storage]", ""));
    }
}

/// A claim keeps its spec but for the size, the volume it is bound to and its attributes class.
pub(super) fn claim_update(old: &Value, new: &Value, errors: &mut Errors) {
    let fixed = |object: &Value| {
        let mut spec = object["spec"].clone();
        if let Some(spec) = spec.as_object_mut() {
            for name in ["resources", "volumeAttributesClassName"] {
                spec.shift_remove(name);
            }
            if text(&old["spec"], "volumeName").is_empty() {
                spec.shift_remove("volumeName");
            }
        }
        spec
    };
    if fixed(old) != fixed(new) {
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", why));
    }
}

pub(super) fn event(object: &Value, errors: &mut Errors) {
    let (own, of) = (
        text(&object["metadata"], "namespace"),
        text(&object["involvedObject"], "namespace"),
    );
    // Objects without namespace have their events in `default`.
    if own != of && !(of.is_empty() && own == "default") && !of.is_empty() {
        let why = "does not match event.namespace";
        let value = &object["involvedObject"]["namespace"];
        errors.push(FieldError::invalid("involvedObject.namespace", value, why));
    }
}

pub(super) fn binding(object: &Value, errors: &mut Errors) {
    let target = &object["target"];
    if !matches!(text(target, "kind"), "" | "Node") {
        errors.push(FieldError::not_supported(
            "target.kind",
            &target["kind"],
            &["Node", "<empty>"],
        ));
    }
    if text(target, "name").is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
}

pub(super) fn rbac(kind: &Kind, object: &Value, errors: &mut Errors) {
    if kind.kind.ends_with("Binding") {
        return role_binding(kind, object, errors);
    }
    for (index, rule) in items(object, "rules").iter().enumerate() {
        let at = format!("rules[{index}]");
        if items(rule, "verbs").is_empty() {
            let why = "verbs must contain at least one value";
            errors.push(FieldError::required(format!("{at}.verbs"), why));
        }
        let urls = items(rule, "nonResourceURLs");
        if !urls.is_empty() {
            if kind.namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(
                    format!("{at}.nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    why,
                ));
            }
            if !items(rule, "apiGroups").is_empty() || !items(rule, "resources").is_empty() {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(
                    format!("{at}.nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    why,
                ));
            }
            continue;
        }
        for (list, why) in [
            (
                "apiGroups",
                "resource rules must supply at least one api group",
            ),
            (
                "resources",
                "resource rules must supply at least one resource",
            ),
        ] {
            if items(rule, list).is_empty() {
                errors.push(FieldError::required(format!("{at}.{list}"), why));
            }
        }
    }
}

fn role_binding(kind: &Kind, object: &Value, errors: &mut Errors) {
    let role = &object["roleRef"];
    one_of(
        &role["apiGroup"],
        "roleRef.apiGroup",
        &["rbac.authorization.k8s.io"],
        errors,
    );
    let kinds: &[&str] = if kind.namespaced {
        &["ClusterRole", "Role"]
    } else {
        &["ClusterRole"]
    };
    one_of(&role["kind"], "roleRef.kind", kinds, errors);
    if text(role, "name").is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    }
    for (index, subject) in items(object, "subjects").iter().enumerate() {
        let at = format!("subjects[{index}]");
        if text(subject, "name").is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        let kinds = ["Group", "ServiceAccount", "User"];
        one_of(&subject["kind"], &format!("{at}.kind"), &kinds, errors);
        if text(subject, "kind") == "ServiceAccount" && text(subject, "namespace").is_empty() {
            errors.push(FieldError::required(format!("{at}.namespace"), ""));
        }
    }
}

pub(super) fn storage_class(object: &Value, errors: &mut Errors) {
    if text(object, "provisioner").is_empty() {
        errors.push(FieldError::required("provisioner", ""));
    }
    one_of(
        &object["reclaimPolicy"],
        "reclaimPolicy",
        &["Delete", "Retain"],
        errors,
    );
    let modes = ["Immediate", "WaitForFirstConsumer"];
    one_of(
        &object["volumeBindingMode"],
        "volumeBindingMode",
        &modes,
        errors,
    );
}

/// Above this, only the system's own classes.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;

pub(super) fn priority_class(object: &Value, errors: &mut Errors) {
    let name = text(&object["metadata"], "name");
    let own = matches!(name, "system-node-critical" | "system-cluster-critical");
    if name.starts_with("system-") && !own {
        let why = "priority class names with 'system-' prefix are reserved for system use only";
        errors.push(FieldError::forbidden("metadata.name", why));
    }
    if object["value"]
        .as_i64()
        .is_some_and(|n| n > USER_PRIORITY_MAX)
        && !own
    {
        errors.push(FieldError::new(
            "value",
            Reason::Forbidden,
            format!(
                "Forbidden: maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}"
            ),
        ));
    }
    let policies = ["Never", "PreemptLowerPriority"];
    one_of(
        &object["preemptionPolicy"],
        "preemptionPolicy",
        &policies,
        errors,
    );
}
