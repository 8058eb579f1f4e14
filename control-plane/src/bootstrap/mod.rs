//! What every cluster has from the start: namespaces, roles, priority classes, and the service
//! through which pods find this server.

mod roles;

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use schema::kinds::kind_of;
use serde_json::{Value, json};

use crate::admit::allocate::{first_ip, ip_key, take};
use crate::admit::namespace::furnish;
use crate::app::App;
use crate::rest::create::identify;
use crate::rest::object::{encode, key, text};
use crate::store::{Change, Expect, Op};

/// Namespaces made at the first start.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Writes what is missing, in one transaction.
pub async fn ensure(app: &Arc<App>) -> Result<()> {
    let mut ops = Vec::new();
    for name in NAMESPACES {
        let mut namespace =
            json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}});
        let first = furnish(app, &mut namespace);
        if add(app, &mut ops, namespace).await? {
            ops.extend(first);
        }
    }
    for object in roles::objects().into_iter().chain(priority_classes()) {
        add(app, &mut ops, object).await?;
    }
    own_service(app, &mut ops).await?;
    app.store
        .txn(ops)
        .await
        .context("writing the first objects")?;
    Ok(())
}

/// Adds the write of an object that is not there; tells whether it was missing.
async fn add(app: &App, ops: &mut Vec<Op>, mut object: Value) -> Result<bool> {
    let kind =
        kind_of(&object).with_context(|| format!("{} is not served", text(&object, "/kind")))?;
    let key = key(
        kind,
        text(&object, "/metadata/namespace"),
        text(&object, "/metadata/name"),
    );
    if app.store.get(&key).await?.0.is_some() {
        return Ok(false);
    }
    schema::defaults::apply(kind, &mut object);
    schema::strategy::prepare_create(kind, &mut object);
    identify(&mut object);
    ops.push(Op::create(key, encode(&object)));
    Ok(true)
}

/// Service `kubernetes` with its EndpointSlices (and Endpoints, for old clients): this server.
async fn own_service(app: &App, ops: &mut Vec<Op>) -> Result<()> {
    let settings = &app.settings;
    if let Some(range) = settings.service_cidrs.first() {
        let ip = first_ip(range);
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let service = json!({
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": ip.to_string(),
                "clusterIPs": [ip.to_string()],
                "ipFamilies": [family],
                "ipFamilyPolicy": "SingleStack",
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": settings.port}],
            },
        });
        if add(app, ops, service).await? {
            ops.push(take(ip_key(ip), "default/kubernetes"));
        }
    }
    for (name, address_type, v4) in [
        ("kubernetes", "IPv4", true),
        ("kubernetes-ipv6", "IPv6", false),
    ] {
        let addresses: Vec<String> = settings
            .advertise
            .iter()
            .filter(|ip| ip.is_ipv4() == v4)
            .map(IpAddr::to_string)
            .collect();
        if addresses.is_empty() {
            continue;
        }
        let slice = json!({
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": address_type,
            "endpoints": [{"addresses": addresses, "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": settings.port, "protocol": "TCP"}],
        });
        replace(app, ops, slice).await?;
    }
    let addresses: Vec<Value> = settings
        .advertise
        .iter()
        .map(|ip| json!({"ip": ip.to_string()}))
        .collect();
    let endpoints = json!({
        "kind": "Endpoints",
        "apiVersion": "v1",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": addresses,
            "ports": [{"name": "https", "port": settings.port, "protocol": "TCP"}],
        }],
    });
    replace(app, ops, endpoints).await
}

/// Writes an object whose content the server owns: an older one keeps its identity.
async fn replace(app: &App, ops: &mut Vec<Op>, mut object: Value) -> Result<()> {
    let kind =
        kind_of(&object).with_context(|| format!("{} is not served", text(&object, "/kind")))?;
    let key = key(
        kind,
        text(&object, "/metadata/namespace"),
        text(&object, "/metadata/name"),
    );
    schema::strategy::prepare_create(kind, &mut object);
    let old = app.store.get(&key).await?.0;
    match &old {
        Some(kv) => {
            let old: Value =
                serde_json::from_slice(&kv.value).context("a stored object is broken")?;
            for field in ["uid", "creationTimestamp"] {
                object["metadata"][field] = old["metadata"][field].clone();
            }
        }
        None => identify(&mut object),
    }
    let value = encode(&object);
    if old.is_none_or(|kv| kv.value != value) {
        ops.push(Op {
            key,
            expect: Expect::Any,
            change: Change::Put(value),
        });
    }
    Ok(())
}

fn priority_classes() -> [Value; 2] {
    [
        ("system-cluster-critical", 2_000_000_000_u32),
        ("system-node-critical", 2_000_001_000),
    ]
    .map(|(name, value)| {
        json!({
            "kind": "PriorityClass",
            "apiVersion": "scheduling.k8s.io/v1",
            "metadata": {"name": name},
            "value": value,
            "description": "Used for pods the cluster cannot do without.",
        })
    })
}
