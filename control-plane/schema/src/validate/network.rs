//! Endpoints, ingresses and network policies.

use std::net::IpAddr;

use serde_json::Value;

use super::names::dns_label;
use super::{Errors, FieldError, PORT_RANGE, affinity, is_port, items, one_of, port_or_name, text};

const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
/// Upstream's limits of one EndpointSlice.
const SLICE_ENDPOINTS_MAX: usize = 1000;
const SLICE_PORTS_MAX: usize = 20_000;

/// What is wrong with an address traffic could be sent to.
fn endpoint_address(value: &Value) -> Option<&'static str> {
    let Ok(ip) = value.as_str().unwrap_or_default().parse::<IpAddr>() else {
        return Some(NOT_AN_IP);
    };
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else {
        None
    }
}

pub(super) fn endpoints(object: &Value, errors: &mut Errors) {
    for (index, subset) in items(object, "subsets").iter().enumerate() {
        let at = format!("subsets[{index}]");
        let (ready, unready) = (
            items(subset, "addresses"),
            items(subset, "notReadyAddresses"),
        );
        if ready.is_empty() && unready.is_empty() {
            let why = "must specify `addresses` or `notReadyAddresses`";
            errors.push(FieldError::required(at.clone(), why));
        }
        for (list, addresses) in [("addresses", ready), ("notReadyAddresses", unready)] {
            for (index, address) in addresses.iter().enumerate() {
                if let Some(why) = endpoint_address(&address["ip"]) {
                    let field = format!("{at}.{list}[{index}].ip");
                    errors.push(FieldError::invalid(field, &address["ip"], why));
                }
            }
        }
        let ports = items(subset, "ports");
        for (index, port) in ports.iter().enumerate() {
            let at = format!("{at}.ports[{index}]");
            if ports.len() > 1 && text(port, "name").is_empty() {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            }
            if !is_port(&port["port"]) {
                errors.push(FieldError::invalid(
                    format!("{at}.port"),
                    &port["port"],
                    PORT_RANGE,
                ));
            }
        }
    }
}

pub(super) fn endpoint_slice(object: &Value, errors: &mut Errors) {
    one_of(
        &object["addressType"],
        "addressType",
        &["FQDN", "IPv4", "IPv6"],
        errors,
    );
    let endpoints = items(object, "endpoints");
    for (list, length, limit) in [
        ("endpoints", endpoints.len(), SLICE_ENDPOINTS_MAX),
        ("ports", items(object, "ports").len(), SLICE_PORTS_MAX),
    ] {
        if length > limit {
            let detail = format!("Too many: {length}: must have at most {limit} items");
            errors.push(FieldError::new(list, super::Reason::Invalid, detail));
        }
    }
    let family = text(object, "addressType");
    for (index, endpoint) in endpoints.iter().enumerate() {
        let at = format!("endpoints[{index}].addresses");
        let addresses = items(endpoint, "addresses");
        if addresses.is_empty() {
            let why = "must contain at least 1 address";
            errors.push(FieldError::required(at.clone(), why));
        }
        for (index, address) in addresses.iter().enumerate() {
            let field = format!("{at}[{index}]");
            let is_v4 = address
                .as_str()
                .unwrap_or_default()
                .parse::<IpAddr>()
                .map(|ip| ip.is_ipv4());
            match (family, is_v4) {
                ("IPv4", Ok(false) | Err(_)) => {
                    errors.push(FieldError::invalid(
                        field,
                        address,
                        "must be a valid IPv4 address",
                    ));
                }
                ("IPv6", Ok(true) | Err(_)) => {
                    errors.push(FieldError::invalid(
                        field,
                        address,
                        "must be a valid IPv6 address",
                    ));
                }
                ("IPv4" | "IPv6", Ok(_)) => {
                    if let Some(why) = endpoint_address(address) {
                        errors.push(FieldError::invalid(field, address, why));
                    }
                }
                _ => {}
            }
        }
    }
    for (index, port) in items(object, "ports").iter().enumerate() {
        let at = format!("ports[{index}]");
        if !text(port, "name").is_empty() {
            for why in dns_label(text(port, "name")) {
                errors.push(FieldError::invalid(
                    format!("{at}.name"),
                    &port["name"],
                    &why,
                ));
            }
        }
        one_of(
            &port["protocol"],
            &format!("{at}.protocol"),
            &["SCTP", "TCP", "UDP"],
            errors,
        );
    }
}

pub(super) fn ingress(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    if items(spec, "rules").is_empty() && spec["defaultBackend"].is_null() {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid("spec", spec, why));
    }
    if !spec["defaultBackend"].is_null() {
        ingress_backend(&spec["defaultBackend"], "spec.defaultBackend", errors);
    }
    for (index, rule) in items(spec, "rules").iter().enumerate() {
        for (path_index, path) in items(&rule["http"], "paths").iter().enumerate() {
            let at = format!("spec.rules[{index}].http.paths[{path_index}]");
            match text(path, "pathType") {
                "" => {
                    let why = "pathType must be specified";
                    errors.push(FieldError::required(format!("{at}.pathType"), why));
                }
                "Exact" | "Prefix" if !text(path, "path").starts_with('/') => {
                    let why = "must be an absolute path";
                    errors.push(FieldError::invalid(
                        format!("{at}.path"),
                        &path["path"],
                        why,
                    ));
                }
                _ => {
                    let types = ["Exact", "ImplementationSpecific", "Prefix"];
                    one_of(&path["pathType"], &format!("{at}.pathType"), &types, errors);
                }
            }
            ingress_backend(&path["backend"], &format!("{at}.backend"), errors);
        }
    }
}

fn ingress_backend(backend: &Value, at: &str, errors: &mut Errors) {
    let service = &backend["service"];
    match (service.is_null(), backend["resource"].is_null()) {
        (true, true) => errors.push(FieldError::required(at, "must specify a backend")),
        (false, false) => {
            let why = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(at, &"".into(), why));
        }
        (false, true) => {
            if text(service, "name").is_empty() {
                errors.push(FieldError::required(format!("{at}.service.name"), ""));
            }
            let port = &service["port"];
            if text(port, "name").is_empty() && !is_port(&port["number"]) {
                let why = "port name or number is required";
                errors.push(FieldError::required(format!("{at}.service.port"), why));
            }
        }
        (true, false) => {}
    }
}

pub(super) fn network_policy(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    affinity::label_selector(&spec["podSelector"], "spec.podSelector", errors);
    for (index, kind) in items(spec, "policyTypes").iter().enumerate() {
        one_of(
            kind,
            &format!("spec.policyTypes[{index}]"),
            &["Egress", "Ingress"],
            errors,
        );
    }
    for (rules, side) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(spec, rules).iter().enumerate() {
            let at = format!("spec.{rules}[{index}]");
            for (index, port) in items(rule, "ports").iter().enumerate() {
                let at = format!("{at}.ports[{index}]");
                if !port["port"].is_null() {
                    port_or_name(&port["port"], &format!("{at}.port"), errors);
                }
                one_of(
                    &port["protocol"],
                    &format!("{at}.protocol"),
                    &["SCTP", "TCP", "UDP"],
                    errors,
                );
            }
            for (index, peer) in items(rule, side).iter().enumerate() {
                let at = format!("{at}.{side}[{index}]");
                let given = ["podSelector", "namespaceSelector", "ipBlock"]
                    .into_iter()
                    .filter(|n| !peer[*n].is_null())
                    .count();
                for name in ["podSelector", "namespaceSelector"] {
                    affinity::label_selector(&peer[name], &format!("{at}.{name}"), errors);
                }
                if given == 0 {
                    errors.push(FieldError::required(at, "must specify a peer"));
                } else if given > 1 && !peer["ipBlock"].is_null() {
                    let why = "may not specify both ipBlock and another peer";
                    errors.push(FieldError::forbidden(at, why));
                } else if !peer["ipBlock"].is_null() {
                    let cidr = &peer["ipBlock"]["cidr"];
                    let text = cidr.as_str().unwrap_or_default();
                    if !text.contains('/') || text.parse::<ipnetwork::IpNetwork>().is_err() {
                        let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                        errors.push(FieldError::invalid(format!("{at}.ipBlock.cidr"), cidr, why));
                    }
                }
            }
        }
    }
}
