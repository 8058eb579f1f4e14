//! Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::names::{dns_label, dns_subdomain};
use super::{Errors, FieldError, PORT_RANGE, is_port, items, metadata, one_of, port_or_name, text};

/// A day, the longest a client may stick to its endpoint.
const AFFINITY_SECONDS_MAX: i64 = 86_400;

pub(super) fn check(object: &Value, errors: &mut Errors) {
    let spec = &object["spec"];
    let kind = text(spec, "type");
    let headless = text(spec, "clusterIP") == "None";
    one_of(
        &spec["type"],
        "spec.type",
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        errors,
    );
    if items(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match kind {
        "ExternalName" => external_name(spec, errors),
        "NodePort" | "LoadBalancer" if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(
                "spec.clusterIPs[0]",
                &json!("None"),
                &why,
            ));
        }
        _ => {}
    }
    ports(spec, kind, errors);
    metadata::labels(&spec["selector"], "spec.selector", errors);
    one_of(
        &spec["sessionAffinity"],
        "spec.sessionAffinity",
        &["ClientIP", "None"],
        errors,
    );
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if timeout
        .as_i64()
        .is_some_and(|n| !(1..=AFFINITY_SECONDS_MAX).contains(&n))
    {
        let why = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.push(FieldError::invalid(field, timeout, &why));
    }
    addresses(spec, errors);
    policies(spec, kind, errors);
}

fn external_name(spec: &Value, errors: &mut Errors) {
    if !text(spec, "clusterIP").is_empty() {
        let why = "may not be set for ExternalName services";
        errors.push(FieldError::forbidden("spec.clusterIPs", why));
    }
    let name = text(spec, "externalName").trim_end_matches('.');
    if name.is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    } else {
        for why in dns_subdomain(&name.to_lowercase()) {
            errors.push(FieldError::invalid(
                "spec.externalName",
                &spec["externalName"],
                &why,
            ));
        }
    }
}

fn ports(spec: &Value, kind: &str, errors: &mut Errors) {
    let ports = items(spec, "ports");
    let (mut names, mut numbers, mut node_ports) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        let name = text(port, "name");
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            }
        } else {
            for why in dns_label(name) {
                errors.push(FieldError::invalid(
                    format!("{at}.name"),
                    &port["name"],
                    &why,
                ));
            }
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), &port["name"]));
            }
        }
        let number = port.get("port").cloned().unwrap_or(json!(0));
        if !is_port(&number) {
            errors.push(FieldError::invalid(
                format!("{at}.port"),
                &number,
                PORT_RANGE,
            ));
        }
        let protocols = ["SCTP", "TCP", "UDP"];
        one_of(
            &port["protocol"],
            &format!("{at}.protocol"),
            &protocols,
            errors,
        );
        if kind != "ExternalName" {
            port_or_name(&port["targetPort"], &format!("{at}.targetPort"), errors);
        }
        if !numbers.insert((number.as_i64(), text(port, "protocol"))) {
            let key = json!({"port": number, "protocol": port["protocol"]});
            errors.push(FieldError::duplicate(at.clone(), &key));
        }
        if let Some(node_port) = port["nodePort"].as_i64().filter(|n| *n != 0) {
            let field = format!("{at}.nodePort");
            if !matches!(kind, "NodePort" | "LoadBalancer") {
                let why = format!("may not be used when `type` is '{kind}'");
                errors.push(FieldError::forbidden(field, &why));
            } else if !is_port(&port["nodePort"]) {
                errors.push(FieldError::invalid(field, &port["nodePort"], PORT_RANGE));
            } else if !node_ports.insert((node_port, text(port, "protocol"))) {
                errors.push(FieldError::duplicate(field, &port["nodePort"]));
            }
        }
    }
}

const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn addresses(spec: &Value, errors: &mut Errors) {
    let check = |value: &Value, field: String, errors: &mut Errors| {
        let Ok(ip) = value.as_str().unwrap_or_default().parse::<IpAddr>() else {
            errors.push(FieldError::invalid(field, value, NOT_AN_IP));
            return None;
        };
        Some(ip)
    };
    let cluster_ips = items(spec, "clusterIPs");
    let mut families = Vec::new();
    for (index, value) in cluster_ips.iter().enumerate() {
        if value == "None" || value == "" {
            continue;
        }
        if let Some(ip) = check(value, format!("spec.clusterIPs[{index}]"), errors) {
            families.push(ip.is_ipv4());
        }
    }
    if families.len() == 2 && families[0] == families[1] {
        let why = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(
            "spec.clusterIPs",
            &spec["clusterIPs"],
            why,
        ));
    }
    if cluster_ips.len() > 2 {
        let why = "may only hold up to 2 values";
        errors.push(FieldError::invalid(
            "spec.clusterIPs",
            &spec["clusterIPs"],
            why,
        ));
    }
    if let (Some(first), Some(single)) = (cluster_ips.first(), spec.get("clusterIP"))
        && first != single
    {
        let why = "first value must match `clusterIP`";
        errors.push(FieldError::invalid(
            "spec.clusterIPs",
            &spec["clusterIPs"],
            why,
        ));
    }
    for (index, value) in items(spec, "externalIPs").iter().enumerate() {
        if let Some(ip) = check(value, format!("spec.externalIPs[{index}]"), errors)
            && (ip.is_unspecified() || ip.is_loopback())
        {
            let why = if ip.is_loopback() {
                "may not be in the loopback range (127.0.0.0/8, ::1/128)"
            } else {
                "may not be unspecified (0.0.0.0 or ::)"
            };
            errors.push(FieldError::invalid(
                format!("spec.externalIPs[{index}]"),
                value,
                why,
            ));
        }
    }
    for (index, value) in items(spec, "ipFamilies").iter().enumerate() {
        one_of(
            value,
            &format!("spec.ipFamilies[{index}]"),
            &["IPv4", "IPv6"],
            errors,
        );
    }
    if !text(spec, "ipFamilyPolicy").is_empty() {
        let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        one_of(
            &spec["ipFamilyPolicy"],
            "spec.ipFamilyPolicy",
            &policies,
            errors,
        );
    }
    for (index, value) in items(spec, "loadBalancerSourceRanges").iter().enumerate() {
        let text = value.as_str().unwrap_or_default().trim();
        if !text.contains('/') || text.parse::<ipnetwork::IpNetwork>().is_err() {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            let field = format!("spec.loadBalancerSourceRanges[{index}]");
            errors.push(FieldError::invalid(field, value, why));
        }
    }
}

fn policies(spec: &Value, kind: &str, errors: &mut Errors) {
    let allowed = ["Cluster", "Local"];
    let external = &spec["externalTrafficPolicy"];
    let reachable = matches!(kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !items(spec, "externalIPs").is_empty());
    if !text(spec, "externalTrafficPolicy").is_empty() {
        if !reachable {
            let why = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid(
                "spec.externalTrafficPolicy",
                external,
                why,
            ));
        } else {
            one_of(external, "spec.externalTrafficPolicy", &allowed, errors);
        }
    }
    if kind != "ExternalName" {
        let field = "spec.internalTrafficPolicy";
        one_of(&spec["internalTrafficPolicy"], field, &allowed, errors);
    }
    if !text(spec, "trafficDistribution").is_empty() {
        let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        one_of(
            &spec["trafficDistribution"],
            "spec.trafficDistribution",
            &known,
            errors,
        );
    }
}

/// The primary cluster address stays, unless the type changes to or from ExternalName.
pub(super) fn update(old: &Value, new: &Value, errors: &mut Errors) {
    let (before, after) = (&old["spec"], &new["spec"]);
    let external = |spec: &Value| text(spec, "type") == "ExternalName";
    let first = text(before, "clusterIP");
    if !external(before)
        && !external(after)
        && !first.is_empty()
        && first != text(after, "clusterIP")
    {
        let shown = match items(after, "clusterIPs") {
            [] => json!([text(after, "clusterIP")]),
            list => json!(list),
        };
        errors.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            &shown,
            "may not change once set",
        ));
    }
    let families = |spec: &Value| items(spec, "ipFamilies").first().cloned();
    if let (Some(a), Some(b)) = (families(before), families(after))
        && a != b
        && !external(before)
    {
        let field = "spec.ipFamilies[0]";
        errors.push(FieldError::invalid(
            field,
            &after["ipFamilies"],
            "may not change once set",
        ));
    }
}
