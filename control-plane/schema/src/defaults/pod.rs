//! Defaults of pods and pod templates.

use serde_json::{Value, json};

use super::{Object, at, each, make, set, set_text};

/// Mode of files in configMap, secret, downwardAPI and projected volumes: 0644.
const FILE_MODE: i64 = 0o644;
const TERMINATION_GRACE_SECONDS: i64 = 30;
const TOKEN_SECONDS: i64 = 3600;

/// Volume fields that are not a volume source.
const NOT_A_SOURCE: &str = "name";

/// A pod: its spec, and what only pods get (not templates).
pub(super) fn pod(o: &mut Object) {
    make(o, "spec", |spec| {
        for list in ["containers", "initContainers"] {
            each(spec, list, |container| {
                at(container, "resources", requests_from_limits)
            });
        }
        set(spec, "enableServiceLinks", true);
        self::spec(spec);
    });
}

/// What is limited and not requested is requested at its limit.
fn requests_from_limits(resources: &mut Object) {
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    make(resources, "requests", |requests| {
        for (name, value) in limits {
            set(requests, &name, value);
        }
    });
}

/// A pod spec, in a pod or in a template.
pub(super) fn spec(spec: &mut Object) {
    set_text(spec, "dnsPolicy", "ClusterFirst");
    set_text(spec, "restartPolicy", "Always");
    set(
        spec,
        "terminationGracePeriodSeconds",
        TERMINATION_GRACE_SECONDS,
    );
    set(spec, "securityContext", json!({}));
    set_text(spec, "schedulerName", "default-scheduler");
    mirror(spec, "serviceAccountName", "serviceAccount");
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        each(spec, list, |container| {
            self::container(container);
            if host_network {
                each(container, "ports", |port| {
                    if let Some(number) = port.get("containerPort").cloned() {
                        set(port, "hostPort", number);
                    }
                });
            }
        });
    }
    each(spec, "ephemeralContainers", container);
    each(spec, "volumes", volume);
}

/// Two names of one field, the second deprecated: whichever is set fills the other.
fn mirror(object: &mut Object, name: &str, deprecated: &str) {
    let text = |object: &Object, name: &str| {
        object
            .get(name)
            .and_then(Value::as_str)
            .filter(|t| !t.is_empty())
            .map(str::to_owned)
    };
    if let Some(value) = text(object, name).or_else(|| text(object, deprecated)) {
        object.insert(name.to_owned(), value.clone().into());
        object.insert(deprecated.to_owned(), value.into());
    }
}

fn container(c: &mut Object) {
    let image = c.get("image").and_then(Value::as_str).unwrap_or_default();
    let pull = if is_latest(image) {
        "Always"
    } else {
        "IfNotPresent"
    };
    set_text(c, "imagePullPolicy", pull);
    set_text(c, "terminationMessagePath", "/dev/termination-log");
    set_text(c, "terminationMessagePolicy", "File");
    set(c, "resources", json!({}));
    each(c, "ports", |port| set_text(port, "protocol", "TCP"));
    each(c, "env", |env| {
        at(env, "valueFrom", |from| {
            at(from, "fieldRef", |r| set_text(r, "apiVersion", "v1"))
        });
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        at(c, name, probe);
    }
    at(c, "lifecycle", |lifecycle| {
        for name in ["postStart", "preStop"] {
            at(lifecycle, name, |handler| at(handler, "httpGet", http_get));
        }
    });
}

/// Whether an image is named without digest by the tag `latest`, or by none.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or_default();
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn http_get(action: &mut Object) {
    set_text(action, "path", "/");
    set_text(action, "scheme", "HTTP");
}

fn probe(p: &mut Object) {
    let positive = |p: &mut Object, name: &str, value: i64| {
        if p.get(name).and_then(Value::as_i64).unwrap_or(0) == 0 {
            p.insert(name.to_owned(), value.into());
        }
    };
    positive(p, "timeoutSeconds", 1);
    positive(p, "periodSeconds", 10);
    positive(p, "successThreshold", 1);
    positive(p, "failureThreshold", 3);
    at(p, "httpGet", http_get);
    at(p, "grpc", |grpc| set(grpc, "service", ""));
}

fn volume(v: &mut Object) {
    if v.keys().all(|name| name == NOT_A_SOURCE) {
        v.insert("emptyDir".into(), json!({}));
    }
    at(v, "secret", |s| set(s, "defaultMode", FILE_MODE));
    at(v, "configMap", |s| set(s, "defaultMode", FILE_MODE));
    at(v, "downwardAPI", |s| {
        set(s, "defaultMode", FILE_MODE);
        field_refs(s);
    });
    at(v, "hostPath", |s| set(s, "type", ""));
    at(v, "projected", |s| {
        set(s, "defaultMode", FILE_MODE);
        each(s, "sources", |source| {
            at(source, "downwardAPI", field_refs);
            at(source, "serviceAccountToken", |t| {
                set(t, "expirationSeconds", TOKEN_SECONDS)
            });
        });
    });
    at(v, "ephemeral", |s| {
        at(s, "volumeClaimTemplate", |t| {
            at(t, "spec", |spec| set(spec, "volumeMode", "Filesystem"));
        });
    });
    at(v, "iscsi", |s| set_text(s, "iscsiInterface", "default"));
    at(v, "rbd", |s| {
        set_text(s, "pool", "rbd");
        set_text(s, "user", "admin");
        set_text(s, "keyring", "/etc/ceph/keyring");
    });
    at(v, "azureDisk", |s| {
        set(s, "cachingMode", "ReadWrite");
        set(s, "kind", "Shared");
        set(s, "fsType", "ext4");
        set(s, "readOnly", false);
    });
    at(v, "scaleIO", |s| {
        set_text(s, "storageMode", "ThinProvisioned");
        set_text(s, "fsType", "xfs");
    });
}

fn field_refs(source: &mut Object) {
    each(source, "items", |item| {
        at(item, "fieldRef", |r| set_text(r, "apiVersion", "v1"))
    });
}
