//! Service admission: families, cluster addresses and node ports.
//! After upstream's pkg/registry/core/service/storage/alloc.go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use schema::kinds::Kind;
use schema::validate::FieldError;
use serde_json::{Value, json};

use super::allocate::{free_ip, free_port, ip_key, is_taken, port_key, take};
use super::families::{cluster_ips, families, is_headless};
use crate::app::App;
use crate::http::error::{ApiError, Result};
use crate::rest::object::{child_mut, list, text, texts};
use crate::store::Op;

/// Completes a Service and returns the steps that take and release addresses and ports.
pub async fn admit(
    app: &Arc<App>,
    kind: &'static Kind,
    old: Option<&Value>,
    service: &mut Value,
) -> Result<Vec<Op>> {
    let name = text(service, "/metadata/name").to_owned();
    let invalid = |error: FieldError| ApiError::invalid(kind, &name, &[error]);
    if let Some(old) = old {
        unchanged(old, service).map_err(invalid)?;
        carry_over(old, service);
    }
    let before = old.map(keys).unwrap_or_default();
    if text(service, "/spec/type") == "ExternalName" {
        let spec = child_mut(service, "spec");
        for field in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            spec.shift_remove(field);
        }
    } else {
        families(&app.settings.service_cidrs, old, service).map_err(invalid)?;
        addresses(app, &before, service, invalid).await?;
    }
    ports(app, &before, service, invalid).await?;
    let after = keys(service);
    let owner = format!("{}/{name}", text(service, "/metadata/namespace"));
    let taken = after
        .difference(&before)
        .map(|key| take(key.clone(), &owner));
    let released = before.difference(&after).map(|key| Op::remove(key.clone()));
    Ok(taken.chain(released).collect())
}

/// The steps that give back all a Service has.
pub fn release(service: &Value) -> Vec<Op> {
    keys(service).into_iter().map(Op::remove).collect()
}

/// The keys of everything allocated to a Service.
fn keys(service: &Value) -> BTreeSet<String> {
    let ips = cluster_ips(service)
        .into_iter()
        .filter_map(|ip| ip.parse::<IpAddr>().ok());
    let mut keys: BTreeSet<String> = ips.map(ip_key).collect();
    keys.extend(node_ports(service).into_iter().map(port_key));
    keys
}

fn node_ports(service: &Value) -> BTreeSet<u16> {
    let ports = list(service, "/spec/ports")
        .iter()
        .map(|port| &port["nodePort"]);
    let all = ports.chain(service.pointer("/spec/healthCheckNodePort"));
    all.filter_map(Value::as_u64)
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .collect()
}

fn has_node_ports(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => {
            service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&false.into())
        }
        _ => false,
    }
}

/// Refuses another cluster address for a Service that has one.
fn unchanged(old: &Value, new: &Value) -> std::result::Result<(), FieldError> {
    let external = |service: &Value| text(service, "/spec/type") == "ExternalName";
    if external(old) || external(new) {
        return Ok(());
    }
    let was = texts(old, "/spec/clusterIPs");
    let refuse = |index: usize, ip: &str| {
        let field = format!("spec.clusterIPs[{index}]");
        FieldError::invalid(&field, &json!([ip]), "may not change once set")
    };
    let first = text(new, "/spec/clusterIP");
    if !first.is_empty() && was.first().is_some_and(|ip| *ip != first) {
        return Err(refuse(0, first));
    }
    let is = texts(new, "/spec/clusterIPs");
    for (index, (was, is)) in was.iter().zip(is).enumerate() {
        if !is.is_empty() && *was != is {
            return Err(refuse(index, is));
        }
    }
    Ok(())
}

/// A client that leaves out what was allocated to it keeps it.
fn carry_over(old: &Value, new: &mut Value) {
    let external = |service: &Value| text(service, "/spec/type") == "ExternalName";
    if !external(old) && !external(new) {
        let given = cluster_ips(new).first().copied().unwrap_or("").to_owned();
        let own = cluster_ips(old).first().copied().unwrap_or("").to_owned();
        let policy = text(new, "/spec/ipFamilyPolicy").to_owned();
        let single = policy == "SingleStack";
        let spec = child_mut(new, "spec");
        if given.is_empty() && !own.is_empty() {
            spec.insert("clusterIP".to_owned(), own.as_str().into());
            spec.insert("clusterIPs".to_owned(), json!([own]));
        }
        if given.is_empty() || given == own {
            let first = if single { 1 } else { usize::MAX };
            for field in ["clusterIPs", "ipFamilies"] {
                let was = list(old, &format!("/spec/{field}"));
                let is = spec
                    .get(field)
                    .and_then(Value::as_array)
                    .map_or(0, Vec::len);
                if single || is < was.len() && policy.is_empty() || is == 0 {
                    let kept: Vec<Value> = was.iter().take(first).cloned().collect();
                    spec.insert(field.to_owned(), kept.into());
                }
            }
            if policy.is_empty()
                && let Some(was) = old.pointer("/spec/ipFamilyPolicy")
            {
                spec.insert("ipFamilyPolicy".to_owned(), was.clone());
            }
        }
    }
    if has_node_ports(old) && has_node_ports(new) {
        keep_node_ports(old, new);
    } else if !has_node_ports(new) && has_node_ports(old) {
        drop_node_ports(old, new);
    }
    let port = old.pointer("/spec/healthCheckNodePort");
    if let Some(port) = port.filter(|_| needs_health_port(new)) {
        child_mut(new, "spec")
            .entry("healthCheckNodePort")
            .or_insert_with(|| port.clone());
    }
}

fn each_port(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    service["spec"]
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// A port without node port gets the one its protocol and number had.
fn keep_node_ports(old: &Value, new: &mut Value) {
    let mut used = node_ports(new);
    for port in each_port(new) {
        if port["nodePort"].as_u64().unwrap_or(0) != 0 {
            continue;
        }
        let same =
            |own: &&Value| own["protocol"] == port["protocol"] && own["port"] == port["port"];
        let was = list(old, "/spec/ports")
            .iter()
            .find(same)
            .map(|own| own["nodePort"].clone());
        let number = was
            .as_ref()
            .and_then(Value::as_u64)
            .and_then(|n| u16::try_from(n).ok());
        if let (Some(was), Some(number)) = (was, number)
            && number > 0
            && used.insert(number)
        {
            port["nodePort"] = was;
        }
    }
}

/// A service that stops being reachable from outside loses the node ports it did not ask for anew.
fn drop_node_ports(old: &Value, new: &mut Value) {
    let had = node_ports(old);
    for port in each_port(new) {
        let number = port["nodePort"]
            .as_u64()
            .and_then(|n| u16::try_from(n).ok());
        if number.is_some_and(|number| had.contains(&number))
            && let Some(map) = port.as_object_mut()
        {
            map.shift_remove("nodePort");
        }
    }
}

fn needs_health_port(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer"
        && text(service, "/spec/externalTrafficPolicy") == "Local"
}

/// Fills in the cluster addresses of all families.
async fn addresses(
    app: &App,
    before: &BTreeSet<String>,
    service: &mut Value,
    invalid: impl Fn(FieldError) -> ApiError,
) -> Result<()> {
    if is_headless(service) {
        let spec = child_mut(service, "spec");
        spec.insert("clusterIP".to_owned(), "None".into());
        spec.insert("clusterIPs".to_owned(), json!(["None"]));
        return Ok(());
    }
    let families: Vec<String> = texts(service, "/spec/ipFamilies")
        .into_iter()
        .map(str::to_owned)
        .collect();
    let given: Vec<IpAddr> = cluster_ips(service)
        .into_iter()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let mut ips: Vec<IpAddr> = Vec::new();
    for (index, family) in families.iter().enumerate() {
        let ranges = &app.settings.service_cidrs;
        let Some(range) = ranges
            .iter()
            .find(|range| range.is_ipv4() == (family == "IPv4"))
        else {
            continue;
        };
        let Some(ip) = given.get(index) else {
            ips.push(free_ip(&*app.store, range, &ips).await?);
            continue;
        };
        let field = if index == 0 {
            "spec.clusterIPs[0]"
        } else {
            "spec.clusterIPs[1]"
        };
        let refuse = |text: &str| {
            let text = format!("failed to allocate IP {ip}: {text}");
            Err(invalid(FieldError::invalid(
                field,
                &json!([ip.to_string()]),
                &text,
            )))
        };
        let key = ip_key(*ip);
        let kept = before.contains(&key);
        if !range.contains(*ip) && !kept {
            return refuse(&format!(
                "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}"
            ));
        }
        if !kept && is_taken(&*app.store, &key).await? {
            return refuse("provided IP is already allocated");
        }
        ips.push(*ip);
    }
    let texts: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
    let spec = child_mut(service, "spec");
    if let Some(first) = texts.first() {
        spec.insert("clusterIP".to_owned(), first.as_str().into());
    }
    spec.insert("clusterIPs".to_owned(), json!(texts));
    Ok(())
}

/// Fills in node ports where the type has them.
async fn ports(
    app: &App,
    before: &BTreeSet<String>,
    service: &mut Value,
    invalid: impl Fn(FieldError) -> ApiError,
) -> Result<()> {
    let range = &app.settings.node_ports;
    let mut mine: Vec<u16> = node_ports(service).into_iter().collect();
    let checks = list(service, "/spec/ports")
        .iter()
        .enumerate()
        .map(|(index, port)| {
            (
                format!("spec.ports[{index}].nodePort"),
                port["nodePort"].as_u64().unwrap_or(0),
            )
        });
    for (field, number) in checks.collect::<Vec<_>>() {
        let Some(port) = u16::try_from(number).ok().filter(|port| *port > 0) else {
            continue;
        };
        let key = port_key(port);
        if before.contains(&key) {
            continue;
        }
        let refuse = |text: &str| invalid(FieldError::invalid(&field, &json!(port), text));
        if !range.contains(&port) {
            let text = format!(
                "The range of valid ports is {}-{}",
                range.start(),
                range.end()
            );
            return Err(refuse(&text));
        }
        if is_taken(&*app.store, &key).await? {
            return Err(refuse("provided port is already allocated"));
        }
    }
    if needs_health_port(service) {
        if service
            .pointer("/spec/healthCheckNodePort")
            .and_then(Value::as_u64)
            .unwrap_or(0)
            == 0
        {
            let port = free_port(&*app.store, range, &mine).await?;
            mine.push(port);
            child_mut(service, "spec").insert("healthCheckNodePort".to_owned(), port.into());
        }
    } else {
        child_mut(service, "spec").shift_remove("healthCheckNodePort");
    }
    if !has_node_ports(service) {
        return Ok(());
    }
    let count = list(service, "/spec/ports").len();
    for index in 0..count {
        let port = &service["spec"]["ports"][index];
        if port["nodePort"].as_u64().unwrap_or(0) != 0 {
            continue;
        }
        // One number serves both protocols of the same port, as upstream gives DNS services.
        let twin = list(service, "/spec/ports")[..index]
            .iter()
            .find(|other| other["port"] == port["port"] && other["protocol"] != port["protocol"]);
        let number = match twin.and_then(|twin| twin["nodePort"].as_u64()) {
            Some(number) if number > 0 => json!(number),
            _ => {
                let port = free_port(&*app.store, range, &mine).await?;
                mine.push(port);
                json!(port)
            }
        };
        service["spec"]["ports"][index]["nodePort"] = number;
    }
    Ok(())
}
