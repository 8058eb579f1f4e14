//! Containers: names, ports, environment, mounts, resources, probes.

use std::collections::{BTreeMap, BTreeSet};

use api::quantity::Quantity;
use serde_json::{Value, json};

use super::names::{dns_label, dns_subdomain, env_name, port_name, qualified_name};
use super::{
    Errors, FieldError, PORT_RANGE, is_port, items, not_negative, one_of, port_or_name, text,
};

pub(super) fn check(spec: &Value, at: &str, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    if items(spec, "containers").is_empty() {
        errors.push(FieldError::required(format!("{at}.containers"), ""));
    }
    let mut names = BTreeSet::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let mut host_ports = BTreeSet::new();
        for (index, container) in items(spec, list).iter().enumerate() {
            let at = format!("{at}.{list}[{index}]");
            let name = text(container, "name");
            if name.is_empty() {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            } else if !names.insert(name) {
                errors.push(FieldError::duplicate(
                    format!("{at}.name"),
                    &container["name"],
                ));
            } else {
                for why in dns_label(name) {
                    errors.push(FieldError::invalid(
                        format!("{at}.name"),
                        &container["name"],
                        &why,
                    ));
                }
            }
            one(container, &at, volumes, errors);
            // Init containers run one after the other and may share a port.
            if list == "initContainers" {
                host_ports.clear();
            }
            ports(container, &at, &mut host_ports, errors);
            if list == "initContainers" && text(container, "restartPolicy") != "Always" {
                for name in [
                    "livenessProbe",
                    "readinessProbe",
                    "startupProbe",
                    "lifecycle",
                ] {
                    if !container[name].is_null() {
                        let why = "may not be set for init containers without restartPolicy=Always";
                        errors.push(FieldError::forbidden(format!("{at}.{name}"), why));
                    }
                }
            }
        }
    }
}

fn one(container: &Value, at: &str, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{at}.image"), ""));
    } else if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(
            format!("{at}.image"),
            &container["image"],
            why,
        ));
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(
        &container["imagePullPolicy"],
        &format!("{at}.imagePullPolicy"),
        &policies,
        errors,
    );
    let policies = ["FallbackToLogsOnError", "File"];
    let field = format!("{at}.terminationMessagePolicy");
    one_of(
        &container["terminationMessagePolicy"],
        &field,
        &policies,
        errors,
    );
    environment(container, at, errors);
    mounts(container, at, volumes, errors);
    resources(&container["resources"], &format!("{at}.resources"), errors);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if !container[name].is_null() {
            probe(
                &container[name],
                &format!("{at}.{name}"),
                name != "readinessProbe",
                errors,
            );
        }
    }
    for name in ["postStart", "preStop"] {
        let handler = &container["lifecycle"][name];
        if !handler.is_null() {
            let kinds = ["exec", "httpGet", "tcpSocket", "sleep"];
            self::handler(handler, &format!("{at}.lifecycle.{name}"), &kinds, errors);
        }
    }
}

fn ports<'a>(
    container: &'a Value,
    at: &str,
    host_ports: &mut BTreeSet<(String, i64, &'a str)>,
    errors: &mut Errors,
) {
    let mut names = BTreeSet::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        let at = format!("{at}.ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            let wrong = port_name(name);
            for why in &wrong {
                errors.push(FieldError::invalid(
                    format!("{at}.name"),
                    &port["name"],
                    why,
                ));
            }
            if wrong.is_empty() && !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), &port["name"]));
            }
        }
        match port["containerPort"].as_i64().unwrap_or(0) {
            0 => errors.push(FieldError::required(format!("{at}.containerPort"), "")),
            _ if is_port(&port["containerPort"]) => {}
            _ => errors.push(FieldError::invalid(
                format!("{at}.containerPort"),
                &port["containerPort"],
                PORT_RANGE,
            )),
        }
        let protocols = ["SCTP", "TCP", "UDP"];
        one_of(
            &port["protocol"],
            &format!("{at}.protocol"),
            &protocols,
            errors,
        );
        if let Some(host) = port["hostPort"].as_i64().filter(|n| *n != 0) {
            if !is_port(&port["hostPort"]) {
                let why = PORT_RANGE;
                errors.push(FieldError::invalid(
                    format!("{at}.hostPort"),
                    &port["hostPort"],
                    why,
                ));
            } else if !host_ports.insert((
                text(port, "hostIP").to_owned(),
                host,
                text(port, "protocol"),
            )) {
                let key = format!("{}/{}/{host}", text(port, "protocol"), text(port, "hostIP"));
                errors.push(FieldError::duplicate(format!("{at}.hostPort"), &json!(key)));
            }
        }
    }
}

fn environment(container: &Value, at: &str, errors: &mut Errors) {
    for (index, env) in items(container, "env").iter().enumerate() {
        let at = format!("{at}.env[{index}]");
        let name = text(env, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if let Some(why) = env_name(name) {
            errors.push(FieldError::invalid(format!("{at}.name"), &env["name"], why));
        }
        let Some(from) = env.get("valueFrom").and_then(Value::as_object) else {
            continue;
        };
        let sources = from.values().filter(|v| !v.is_null()).count();
        let at = format!("{at}.valueFrom");
        let empty = env
            .get("value")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .is_empty();
        if !empty {
            let why = "may not be specified when `value` is not empty";
            errors.push(FieldError::invalid(at, &json!(""), why));
        } else if sources == 0 {
            let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            errors.push(FieldError::invalid(at, &json!(""), why));
        } else if sources > 1 {
            let why = "may not have more than one field specified at a time";
            errors.push(FieldError::invalid(at, &json!(""), why));
        } else {
            for (name, needed) in [
                ("configMapKeyRef", "key"),
                ("secretKeyRef", "key"),
                ("fieldRef", "fieldPath"),
            ] {
                if let Some(source) = from.get(name)
                    && text(source, needed).is_empty()
                {
                    errors.push(FieldError::required(format!("{at}.{name}.{needed}"), ""));
                }
            }
        }
    }
    for (index, env) in items(container, "envFrom").iter().enumerate() {
        let at = format!("{at}.envFrom[{index}]");
        let sources: Vec<&str> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|n| !env[*n].is_null())
            .collect();
        match sources[..] {
            [] => {
                let why = "must specify one of: `configMapRef` or `secretRef`";
                errors.push(FieldError::invalid(at, &json!(""), why));
            }
            [source] => {
                let name = text(&env[source], "name");
                let field = format!("{at}.{source}.name");
                if name.is_empty() {
                    errors.push(FieldError::required(field, ""));
                } else {
                    for why in dns_subdomain(name) {
                        errors.push(FieldError::invalid(
                            field.clone(),
                            &env[source]["name"],
                            &why,
                        ));
                    }
                }
            }
            _ => {
                let why = "may not have more than one field specified at a time";
                errors.push(FieldError::invalid(at, &json!(""), why));
            }
        }
    }
}

fn mounts(container: &Value, at: &str, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    let mut paths = BTreeSet::new();
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        let at = format!("{at}.volumeMounts[{index}]");
        let name = text(mount, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else if !volumes.contains(name) {
            errors.push(FieldError::not_found(format!("{at}.name"), &mount["name"]));
        }
        let path = text(mount, "mountPath");
        if path.is_empty() {
            errors.push(FieldError::required(format!("{at}.mountPath"), ""));
        } else if !paths.insert(path) {
            let why = "must be unique";
            errors.push(FieldError::invalid(
                format!("{at}.mountPath"),
                &mount["mountPath"],
                why,
            ));
        }
        for name in ["subPath", "subPathExpr"] {
            let path = text(mount, name);
            let why = if path.starts_with('/') {
                "must be a relative path"
            } else if path.split('/').any(|part| part == "..") {
                "must not contain '..'"
            } else {
                continue;
            };
            errors.push(FieldError::invalid(
                format!("{at}.{name}"),
                &mount[name],
                why,
            ));
        }
    }
}

pub(super) fn resources(resources: &Value, at: &str, errors: &mut Errors) {
    let mut limits = BTreeMap::new();
    for side in ["limits", "requests"] {
        for (name, value) in resources[side].as_object().into_iter().flatten() {
            let field = format!("{at}.{side}[{name}]");
            let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || name.starts_with("hugepages-");
            if !standard && !name.contains('/') {
                let why = "must be a standard resource for containers";
                errors.push(FieldError::invalid(field.clone(), &json!(name), why));
            } else {
                for why in qualified_name(name) {
                    errors.push(FieldError::invalid(field.clone(), &json!(name), &why));
                }
            }
            let Some(amount) = value.as_str().and_then(|t| t.parse::<Quantity>().ok()) else {
                continue;
            };
            if amount.is_negative() {
                let why = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(field.clone(), value, why));
            }
            if side == "limits" {
                limits.insert(name.as_str(), amount);
            } else if let Some(limit) = limits.get(name.as_str()).filter(|limit| amount > **limit) {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(format!("{at}.requests"), value, &why));
            }
        }
    }
}

fn probe(probe: &Value, at: &str, success_must_be_one: bool, errors: &mut Errors) {
    handler(probe, at, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for name in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        not_negative(&probe[name], &format!("{at}.{name}"), errors);
    }
    if success_must_be_one && probe["successThreshold"].as_i64().is_some_and(|n| n != 1) {
        let field = format!("{at}.successThreshold");
        errors.push(FieldError::invalid(
            field,
            &probe["successThreshold"],
            "must be 1",
        ));
    }
}

fn handler(handler: &Value, at: &str, kinds: &[&str], errors: &mut Errors) {
    let given: Vec<&str> = kinds
        .iter()
        .copied()
        .filter(|k| !handler[*k].is_null())
        .collect();
    if given.is_empty() {
        errors.push(FieldError::required(at, "must specify a handler type"));
    }
    for extra in given.iter().skip(1) {
        let why = "may not specify more than 1 handler type";
        errors.push(FieldError::forbidden(format!("{at}.{extra}"), why));
    }
    match given.first() {
        Some(&"exec") if items(&handler["exec"], "command").is_empty() => {
            errors.push(FieldError::required(format!("{at}.exec.command"), ""));
        }
        Some(&"httpGet") => {
            let action = &handler["httpGet"];
            port_or_name(&action["port"], &format!("{at}.httpGet.port"), errors);
            one_of(
                &action["scheme"],
                &format!("{at}.httpGet.scheme"),
                &["HTTP", "HTTPS"],
                errors,
            );
        }
        Some(&"tcpSocket") => {
            let field = format!("{at}.tcpSocket.port");
            port_or_name(&handler["tcpSocket"]["port"], &field, errors);
        }
        _ => {}
    }
}
