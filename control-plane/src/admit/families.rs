//! Which address families a Service has: from its addresses, its policy, and what the cluster offers.
//! After upstream's pkg/registry/core/service/storage/alloc.go (initIPFamilyFields).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use schema::validate::FieldError;
use serde_json::{Value, json};

use crate::rest::object::{child_mut, text, texts};

/// The addresses a Service has or asks for.
pub(super) fn cluster_ips(service: &Value) -> Vec<&str> {
    let all = texts(service, "/spec/clusterIPs");
    match text(service, "/spec/clusterIP") {
        "" => all,
        only if all.is_empty() => vec![only],
        _ => all,
    }
}

/// Whether the Service wants no address.
pub(super) fn is_headless(service: &Value) -> bool {
    cluster_ips(service).first() == Some(&"None")
}

fn family_of(ip: &IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Decides the families and their policy.
pub(super) fn families(
    ranges: &[IpNetwork],
    old: Option<&Value>,
    service: &mut Value,
) -> Result<(), FieldError> {
    let offered: Vec<&str> = ranges
        .iter()
        .map(|range| if range.is_ipv4() { "IPv4" } else { "IPv6" })
        .collect();
    let headless = is_headless(service);
    let ips: Vec<String> = cluster_ips(service)
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mut families: Vec<String> = texts(service, "/spec/ipFamilies")
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mut policy = text(service, "/spec/ipFamilyPolicy").to_owned();
    let selectorless = service
        .pointer("/spec/selector")
        .and_then(Value::as_object)
        .is_none_or(serde_json::Map::is_empty);
    // Nobody but their author fills the endpoints of such services, so any family may be there.
    let anything = headless && selectorless;
    for (index, ip) in ips.iter().enumerate().filter(|_| !headless) {
        let field = format!("spec.clusterIPs[{index}]");
        let parsed: IpAddr = ip.parse().map_err(|_not_an_address| {
            FieldError::invalid(
                &field,
                &json!(ip),
                "must be a valid IP address (e.g. 10.9.8.7 or 2001:db8::ffff)",
            )
        })?;
        match families.get(index) {
            None => families.push(family_of(&parsed).to_owned()),
            Some(family) if family == family_of(&parsed) => {}
            Some(family) => {
                let text =
                    format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
                return Err(FieldError::invalid(&field, &json!(ip), &text));
            }
        }
    }
    for (index, family) in families.iter().enumerate() {
        if !offered.contains(&family.as_str()) && !anything {
            let field = format!("spec.ipFamilies[{index}]");
            return Err(FieldError::invalid(
                &field,
                &json!(family),
                "not configured on this cluster",
            ));
        }
    }
    if policy.is_empty() {
        policy = match (families.len(), anything) {
            (2.., _) | (0, true) => "RequireDualStack",
            _ => "SingleStack",
        }
        .to_owned();
    }
    let field = "spec.ipFamilyPolicy";
    if policy == "SingleStack" && families.len() > 1 && old.is_none() {
        let text = "may not be SingleStack when multiple 'ipFamilies' are specified";
        return Err(FieldError::invalid(field, &json!(policy), text));
    }
    if policy == "RequireDualStack" && offered.len() < 2 && !(anything) {
        let text = "this cluster is not configured for dual-stack services";
        return Err(FieldError::invalid(field, &json!(policy), text));
    }
    if families.is_empty() {
        families.extend(offered.first().map(|family| (*family).to_owned()));
    }
    if policy == "SingleStack" {
        families.truncate(1);
    } else if families.len() == 1 {
        let wanted = if anything {
            &["IPv4", "IPv6"][..]
        } else {
            &offered[..]
        };
        let other = wanted.iter().find(|family| **family != families[0]);
        families.extend(other.map(|family| (*family).to_owned()));
    }
    let spec = child_mut(service, "spec");
    spec.insert("ipFamilies".to_owned(), json!(families));
    spec.insert("ipFamilyPolicy".to_owned(), policy.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `spec` is merged into nothing; the result is `families policy` or the error.
    #[track_caller]
    fn check(offered: &str, spec: Value, expected: &str) {
        let ranges: Vec<IpNetwork> = offered
            .split(' ')
            .map(|family| {
                if family == "4" {
                    "10.0.0.0/16"
                } else {
                    "fd00::/112"
                }
            })
            .map(|range| range.parse().unwrap())
            .collect();
        let mut service = json!({"spec": spec});
        let seen = match families(&ranges, None, &mut service) {
            Ok(()) => {
                let policy = text(&service, "/spec/ipFamilyPolicy");
                format!("{} {policy}", texts(&service, "/spec/ipFamilies").join(","))
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(seen, expected, "{offered} {spec}", spec = service["spec"]);
    }

    #[test]
    fn rows() {
        let selector = json!({"a": "b"});
        check("4 6", json!({}), "IPv4 SingleStack");
        check("6 4", json!({}), "IPv6 SingleStack");
        check(
            "4 6",
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            "IPv4,IPv6 PreferDualStack",
        );
        check(
            "6 4",
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "IPv6,IPv4 RequireDualStack",
        );
        check(
            "4",
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            "IPv4 PreferDualStack",
        );
        check(
            "4",
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        );
        check("4 6", json!({"ipFamilies": ["IPv6"]}), "IPv6 SingleStack");
        check(
            "4 6",
            json!({"ipFamilies": ["IPv6", "IPv4"]}),
            "IPv6,IPv4 RequireDualStack",
        );
        check(
            "4",
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        );
        check("4 6", json!({"clusterIP": "fd00::5"}), "IPv6 SingleStack");
        check(
            "4 6",
            json!({"clusterIPs": ["10.0.0.9", "fd00::5"]}),
            "IPv4,IPv6 RequireDualStack",
        );
        check(
            "4 6",
            json!({"clusterIP": "None", "selector": selector}),
            "IPv4 SingleStack",
        );
        check(
            "4",
            json!({"clusterIP": "None"}),
            "IPv4,IPv6 RequireDualStack",
        );
        check(
            "4 6",
            json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": may not be SingleStack when multiple 'ipFamilies' are specified",
        );
        check(
            "4 6",
            json!({"clusterIP": "fd00::5", "ipFamilies": ["IPv4"]}),
            "spec.clusterIPs[0]: Invalid value: \"fd00::5\": expected an IPv4 value as indicated by `ipFamilies[0]`",
        );
    }
}
