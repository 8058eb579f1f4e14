//! Defaults of the kinds that only describe something.

use serde_json::{Value, json};

use super::{Object, at, each, make, set, set_text};

const RBAC: &str = "rbac.authorization.k8s.io";

/// Every namespace carries its name as a label, so that selectors can name it.
pub(super) fn namespace(o: &mut Object) {
    make(o, "metadata", |metadata| {
        let name = metadata
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if !name.is_empty() {
            make(metadata, "labels", |labels| {
                labels.insert("kubernetes.io/metadata.name".into(), name.into());
            });
        }
    });
}

/// `stringData` is written only: it goes into `data`, where it wins over what stands there.
pub(super) fn secret(o: &mut Object) {
    use base64::Engine as _;
    set_text(o, "type", "Opaque");
    let Some(Value::Object(texts)) = o.shift_remove("stringData") else {
        return;
    };
    make(o, "data", |data| {
        for (key, text) in texts {
            let text = text.as_str().unwrap_or_default();
            let encoded = base64::engine::general_purpose::STANDARD.encode(text);
            data.insert(key, encoded.into());
        }
    });
}

pub(super) fn node(o: &mut Object) {
    at(o, "status", |status| {
        if let Some(capacity) = status.get("capacity").cloned() {
            set(status, "allocatable", capacity);
        }
    });
}

pub(super) fn persistent_volume(o: &mut Object) {
    at(o, "spec", |spec| {
        set_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        set(spec, "volumeMode", "Filesystem");
        at(spec, "hostPath", |s| set(s, "type", ""));
        at(spec, "iscsi", |s| set_text(s, "iscsiInterface", "default"));
    });
}

/// `default` falls back to `max`, `defaultRequest` to `default` and then `min`.
pub(super) fn limit_range(o: &mut Object) {
    at(o, "spec", |spec| {
        each(spec, "limits", |item| {
            if item.get("type") != Some(&json!("Container")) {
                return;
            }
            for (target, sources) in [
                ("default", &["max"][..]),
                ("defaultRequest", &["default", "min"]),
            ] {
                for source in sources {
                    let Some(Value::Object(values)) = item.get(*source).cloned() else {
                        continue;
                    };
                    make(item, target, |amounts| {
                        for (name, value) in values {
                            set(amounts, &name, value);
                        }
                    });
                }
            }
        });
    });
}

pub(super) fn role_binding(o: &mut Object) {
    at(o, "roleRef", |role| set_text(role, "apiGroup", RBAC));
    each(o, "subjects", |subject| {
        if let Some("User" | "Group") = subject.get("kind").and_then(Value::as_str) {
            set_text(subject, "apiGroup", RBAC);
        }
    });
}

pub(super) fn csi_driver(o: &mut Object) {
    make(o, "spec", |spec| {
        set(spec, "attachRequired", true);
        set(spec, "podInfoOnMount", false);
        set(spec, "storageCapacity", false);
        set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        set(spec, "volumeLifecycleModes", json!(["Persistent"]));
        set(spec, "requiresRepublish", false);
        set(spec, "seLinuxMount", false);
    });
}

pub(super) fn admission(kind: &str, o: &mut Object) {
    let match_rules = |rules: &mut Object| {
        set(rules, "matchPolicy", "Equivalent");
        set(rules, "namespaceSelector", json!({}));
        set(rules, "objectSelector", json!({}));
    };
    match kind {
        "ValidatingAdmissionPolicy" => at(o, "spec", |spec| {
            set(spec, "failurePolicy", "Fail");
            at(spec, "matchConstraints", |constraints| {
                match_rules(constraints);
                for list in ["resourceRules", "excludeResourceRules"] {
                    each(constraints, list, |rule| set(rule, "scope", "*"));
                }
            });
        }),
        "ValidatingAdmissionPolicyBinding" => {
            at(o, "spec", |spec| at(spec, "matchResources", match_rules));
        }
        _ => each(o, "webhooks", |webhook| {
            set(webhook, "failurePolicy", "Fail");
            set(webhook, "timeoutSeconds", 10);
            match_rules(webhook);
            if kind == "MutatingWebhookConfiguration" {
                set(webhook, "reinvocationPolicy", "Never");
            }
            at(webhook, "clientConfig", |c| {
                at(c, "service", |s| set(s, "port", 443))
            });
            each(webhook, "rules", |rule| set(rule, "scope", "*"));
        }),
    }
}
