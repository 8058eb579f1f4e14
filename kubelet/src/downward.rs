//! The downward API: what a pod may say of itself in variables and files. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::pod;
use crate::qos;
use crate::quantity;

/// What is known only on the node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The node's addresses, the main one first.
    pub host_ips: Vec<IpAddr>,
    /// The pod's addresses, the main one first.
    pub pod_ips: Vec<IpAddr>,
    /// Allocatable CPU of the node in thousandths, the value of an unset limit.
    pub node_cpu_milli: i64,
    /// Allocatable memory of the node in bytes, the value of an unset limit.
    pub node_memory_bytes: i64,
}

/// A path or resource the downward API does not offer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// fieldPath
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// resource
    #[error("unsupported container resource: {0}")]
    Resource(String),
    /// divisor
    #[error("invalid divisor: {0}")]
    Divisor(String),
}

/// The value of a fieldRef.
pub fn field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, Error> {
    let meta = &pod.metadata;
    let spec = pod::spec(pod);
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(Error::Field(path.to_owned())),
        };
        let value = map.as_ref().and_then(|m| m.get(key));
        return Ok(value.cloned().unwrap_or_default());
    }
    let join = |ips: &[IpAddr]| {
        let texts: Vec<_> = ips.iter().map(ToString::to_string).collect();
        texts.join(",")
    };
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => join(&facts.host_ips),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => join(&facts.pod_ips),
        _ => return Err(Error::Field(path.to_owned())),
    })
}

/// `metadata.labels['key']` as its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// `key="value"` lines, sorted, values quoted as Go does.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let quoted = |s: &String| serde_json::Value::from(s.as_str()).to_string();
    let all = map.into_iter().flatten();
    let all: Vec<_> = all.map(|(k, v)| format!("{k}={}", quoted(v))).collect();
    all.join("\n")
}

/// The value of a resourceFieldRef.
pub fn resource(
    container: &Container,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, Error> {
    let a = qos::amounts(container.resources.as_ref());
    let name = selector.resource.as_str();
    // Everything in thousandths, so that a divisor such as 1m works for both.
    let milli = match name {
        "limits.cpu" => a.cpu_limit.unwrap_or(facts.node_cpu_milli),
        "requests.cpu" => a.cpu_request.unwrap_or(0),
        "limits.memory" => a
            .memory_limit
            .unwrap_or(facts.node_memory_bytes)
            .saturating_mul(1000),
        "requests.memory" => a.memory_request.unwrap_or(0).saturating_mul(1000),
        _ => return Err(Error::Resource(name.to_owned())),
    };
    let divisor = match selector
        .divisor
        .as_ref()
        .filter(|d| !d.0.is_empty() && d.0 != "0")
    {
        None => 1000,
        Some(d) => quantity::milli(d)
            .filter(|d| *d > 0)
            .ok_or_else(|| Error::Divisor(d.0.clone()))?,
    };
    Ok((milli.saturating_add(divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    #[test]
    fn fields() {
        let mut p = crate::testing::pod("p: {nodeName: n1}");
        p.metadata.labels = Some(BTreeMap::from([
            ("app".into(), "web \"x\"".into()),
            ("a/b".into(), "c".into()),
        ]));
        let facts = Facts {
            pod_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ..Facts::default()
        };
        for (path, expect) in [
            ("spec.nodeName", "n1"),
            ("status.podIPs", "10.0.0.1,fd00::1"),
            ("metadata.labels['a/b']", "c"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a/b=\"c\"\napp=\"web \\\"x\\\"\""),
        ] {
            assert_eq!(field(&p, path, &facts).as_deref(), Ok(expect));
        }
        assert!(field(&p, "spec.nope", &facts).is_err());
    }

    #[test]
    fn resources_round_up_to_the_divisor() {
        let p = crate::testing::pod(
            "p: {containers: [{name: c, image: i, resources: {limits: {cpu: 1500m, memory: 10Mi}}}]}",
        );
        let c = &p.spec.as_ref().unwrap().containers[0];
        let get = |resource: &str, divisor: &str| {
            let selector = ResourceFieldSelector {
                resource: resource.into(),
                divisor: Some(Quantity(divisor.into())),
                container_name: None,
            };
            super::resource(c, &selector, &Facts::default()).unwrap()
        };
        assert_eq!(get("limits.cpu", "0"), "2");
        assert_eq!(get("limits.cpu", "1m"), "1500");
        assert_eq!(get("limits.memory", "1Mi"), "10");
    }
}
