//! The environment of a container: `$(VAR)` expansion, values from elsewhere, service variables. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

use crate::downward;
use crate::pod;

/// What configMaps, secrets and the pod itself say when asked.
pub trait Lookup {
    /// Data of a ConfigMap; `None` when there is no such object.
    fn config_map(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>>;
    /// Data of a Secret; `None` when there is no such object.
    fn secret(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>>;
    /// The facts the downward API gives.
    fn facts(&self) -> &downward::Facts;
}

/// A variable that cannot be filled in; shown as CreateContainerConfigError.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such ConfigMap or Secret.
    #[error("{kind} \"{name}\" not found")]
    NoObject {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The key.
        key: String,
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// A fieldRef or resourceFieldRef that says nothing.
    #[error(transparent)]
    Downward(#[from] downward::Error),
    /// A kind of source that is not supported.
    #[error("env {0}: this kind of valueFrom is not supported")]
    Unsupported(String),
}

/// The services whose addresses a container gets as variables: name, cluster IP, ports as (name, port, protocol).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// metadata.name
    pub name: String,
    /// spec.clusterIP
    pub cluster_ip: String,
    /// spec.ports
    pub ports: Vec<(String, i32, String)>,
}

/// The whole environment of `container`, in the order of the spec, as upstream's `makeEnvironmentVariables`.
pub fn environment(
    pod: &Pod,
    container: &Container,
    services: &[Service],
    lookup: &dyn Lookup,
) -> Result<Vec<(String, String)>, Error> {
    let service_env = service_variables(services);
    let mut result: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |name: String, value: String, result: &mut BTreeMap<String, String>| {
        if result.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for (name, value) in from_sources(container, lookup)? {
        set(name, value, &mut result);
    }
    for var in container.env.iter().flatten() {
        let value = match &var.value_from {
            None => expand(var.value.as_deref().unwrap_or_default(), |name| {
                result.get(name).or_else(|| service_env.get(name)).cloned()
            }),
            Some(_) => match value_from(pod, container, var, lookup)? {
                Some(value) => value,
                None => continue,
            },
        };
        set(var.name.clone(), value, &mut result);
    }
    // The user's own word wins over a service's.
    for (name, value) in &service_env {
        if !result.contains_key(name) {
            set(name.clone(), value.clone(), &mut result);
        }
    }
    Ok(order
        .into_iter()
        .filter_map(|name| result.remove_entry(&name))
        .collect())
}

fn from_sources(
    container: &Container,
    lookup: &dyn Lookup,
) -> Result<Vec<(String, String)>, Error> {
    let mut vars = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional, data) = if let Some(r) = &source.config_map_ref {
            ("configmap", &r.name, r.optional, lookup.config_map(&r.name))
        } else if let Some(r) = &source.secret_ref {
            ("secret", &r.name, r.optional, lookup.secret(&r.name))
        } else {
            continue;
        };
        let Some(data) = data else {
            if optional == Some(true) {
                continue;
            }
            let name = name.clone();
            return Err(Error::NoObject { kind, name });
        };
        for (key, value) in data {
            // A value with a zero byte (binaryData of a ConfigMap) cannot be a variable.
            if !key.is_empty() && !key.contains('=') && !value.contains(&0) {
                let value = String::from_utf8_lossy(&value).into_owned();
                vars.push((format!("{prefix}{key}"), value));
            }
        }
    }
    Ok(vars)
}

fn value_from(
    pod: &Pod,
    container: &Container,
    var: &EnvVar,
    lookup: &dyn Lookup,
) -> Result<Option<String>, Error> {
    let Some(from) = &var.value_from else {
        return Ok(None);
    };
    if let Some(field) = &from.field_ref {
        return Ok(Some(downward::field(
            pod,
            &field.field_path,
            lookup.facts(),
        )?));
    }
    if let Some(resource) = &from.resource_field_ref {
        let name = resource.container_name.as_deref();
        let of = name.and_then(|n| pod::container(pod, n)).map(|(c, _)| c);
        let value = downward::resource(of.unwrap_or(container), resource, lookup.facts())?;
        return Ok(Some(value));
    }
    let (kinds, name, key, optional, data) = if let Some(r) = &from.config_map_key_ref {
        let data = lookup.config_map(&r.name);
        (
            ("configmap", "ConfigMap"),
            &r.name,
            &r.key,
            r.optional,
            data,
        )
    } else if let Some(r) = &from.secret_key_ref {
        let data = lookup.secret(&r.name);
        (("secret", "Secret"), &r.name, &r.key, r.optional, data)
    } else {
        return Err(Error::Unsupported(var.name.clone()));
    };
    let optional = optional == Some(true);
    let Some(data) = data else {
        let (kind, name) = (kinds.0, name.clone());
        return if optional {
            Ok(None)
        } else {
            Err(Error::NoObject { kind, name })
        };
    };
    match data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional => Ok(None),
        None => Err(Error::NoKey {
            kind: kinds.1,
            key: key.clone(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: name.clone(),
        }),
    }
}

/// Replaces `$(NAME)` by what `get` says; an unknown name stays as written, `$$` is one `$`.
pub fn expand(text: &str, get: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(end) = rest.strip_prefix('(').and_then(|r| r.find(')')) {
            let name = &rest[1..=end];
            match get(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = &rest[end + 2..];
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT[_X]`, and the Docker-style `NAME_PORT_...`.
pub fn service_variables(services: &[Service]) -> BTreeMap<String, String> {
    let mut vars = BTreeMap::new();
    for service in services {
        let usable = !service.cluster_ip.is_empty() && service.cluster_ip != "None";
        let Some(first) = service.ports.first().filter(|_| usable) else {
            continue;
        };
        let name = upper(&service.name);
        let ip = &service.cluster_ip;
        vars.insert(format!("{name}_SERVICE_HOST"), ip.clone());
        vars.insert(format!("{name}_SERVICE_PORT"), first.1.to_string());
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.clone()
        };
        for (i, (port_name, port, protocol)) in service.ports.iter().enumerate() {
            if !port_name.is_empty() {
                let key = format!("{name}_SERVICE_PORT_{}", upper(port_name));
                vars.insert(key, port.to_string());
            }
            let lower = protocol.to_lowercase();
            let url = format!("{lower}://{host}:{port}");
            if i == 0 {
                vars.insert(format!("{name}_PORT"), url.clone());
            }
            let prefix = format!("{name}_PORT_{port}_{}", protocol.to_uppercase());
            vars.insert(format!("{prefix}_PROTO"), lower);
            vars.insert(format!("{prefix}_PORT"), port.to_string());
            vars.insert(format!("{prefix}_ADDR"), ip.clone());
            vars.insert(prefix, url);
        }
    }
    vars
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests;
