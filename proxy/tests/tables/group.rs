//! What is run: cases with the same settings together, and what their objects say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use api::cidr::{Family, parse_ip};
use proxy::backend::Mode;
use proxy::model::Protocol;
use serde_json::{Value, json};

use super::lab::{FENCE, FENCE_PORT, mapped};
use crate::cases::{self, Case, File, MANY, NODE, Row, Setting};

/// One case in the families it is run in.
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) localnet_rule: Option<bool>,
    pub(crate) families: Vec<(Family, Setting, Vec<Value>, Vec<Row>)>,
}

/// All cases, those with the same settings together.
pub(crate) fn groups() -> Vec<Vec<Job>> {
    type Settings = BTreeMap<Family, Setting>;
    let mut groups: Vec<(Settings, Vec<Job>)> = Vec::new();
    let (v4, v6) = (cases::files(Family::V4), cases::files(Family::V6));
    // One table, for whoever works on it.
    let wanted = std::env::var("SEAWAY_TABLE").unwrap_or_default();
    for ((name, v4), (_, v6)) in v4.iter().zip(&v6).filter(|(v4, _)| v4.0.contains(&wanted)) {
        for (i, case) in v4.cases.iter().enumerate() {
            let job = job(
                format!("{name}/{}", case.name),
                [(Family::V4, v4), (Family::V6, v6)],
                i,
            );
            let settings: Settings = job.families.iter().map(|f| (f.0, f.1.clone())).collect();
            let fits = |group: &Settings| {
                let mut common = settings
                    .iter()
                    .filter_map(|(f, s)| Some((s, group.get(f)?)));
                common.clone().next().is_some() && common.all(|(a, b)| a == b)
            };
            match groups.iter_mut().find(|(group, _)| fits(group)) {
                Some((group, jobs)) => {
                    group.extend(settings);
                    jobs.push(job);
                }
                None => groups.push((settings, vec![job])),
            }
        }
    }
    groups.into_iter().map(|(_, jobs)| jobs).collect()
}

pub(crate) fn job(name: String, files: [(Family, &File); 2], i: usize) -> Job {
    let localnet_rule = files[0].1.cases[i].localnet_rule;
    let families = files.into_iter().filter_map(|(family, file)| {
        let case: &Case = &file.cases[i];
        let setting = file.setting(case, family)?;
        let objects = file.objects.iter().chain(&case.objects);
        let objects = objects.map(|object| of_family(object, family)).collect();
        let rows = case.rows.iter().map(|row| Row::parse(row, &name)).collect();
        Some((family, setting, objects, rows))
    });
    let families = families.collect();
    Job {
        name,
        localnet_rule,
        families,
    }
}

/// Both families' objects are there at once, in namespaces of their own.
pub(crate) fn of_family(object: &Value, family: Family) -> Value {
    let mut object = object.clone();
    if object["kind"] != "Node" {
        object["metadata"]["namespace"] = format!("{family}").to_lowercase().into();
    }
    object
}

/// The flags that `settings` stand for.
pub(crate) fn args(mode: Mode, settings: &[(Family, Setting)], manifests: &Path) -> Vec<String> {
    let (_, any) = &settings[0];
    let join = |of: &dyn Fn(&Setting) -> Vec<String>| {
        let all: BTreeSet<String> = settings.iter().flat_map(|(_, s)| of(s)).collect();
        all.into_iter().collect::<Vec<_>>().join(",")
    };
    let mut args = vec![
        format!("--mode={}", mode.name()),
        format!("--hostname-override={NODE}"),
        format!("--manifests={}", manifests.display()),
        format!(
            "--cluster-cidr={}",
            join(&|s| s.cluster_cidr.iter().cloned().collect())
        ),
        format!(
            "--nodeport-addresses={}",
            join(&|s| s.nodeport_addresses.clone())
        ),
        format!("--cluster-dns={}", join(&|s| s.cluster_dns.clone())),
        "--dns-upstream=192.0.2.1".to_owned(),
        format!("--masquerade-all={}", any.masquerade_all),
        format!("--iptables-localhost-nodeports={}", any.localhost_nodeports),
        "--log-level=debug".to_owned(),
    ];
    if let Some(prefix) = &any.pod_interface {
        args.push("--detect-local-mode=InterfaceNamePrefix".to_owned());
        args.push(format!("--pod-interface-name-prefix={prefix}"));
    }
    args
}

/// An endpoint that some object names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) local: bool,
}

pub(crate) fn endpoints_of(object: &Value) -> Vec<Endpoint> {
    let mut all = Vec::new();
    let list = |key: &str| object[key].as_array().cloned().unwrap_or_default();
    let labels = &object["metadata"]["labels"];
    if object["kind"] != "EndpointSlice" || labels["kubernetes.io/service-name"] == MANY {
        return all;
    }
    for endpoint in list("endpoints") {
        for ip in endpoint["addresses"].as_array().into_iter().flatten() {
            let Some(ip) = ip.as_str().and_then(parse_ip) else {
                continue;
            };
            for port in list("ports") {
                let number = port["port"].as_u64().and_then(|n| u16::try_from(n).ok());
                let protocol = Protocol::parse(port["protocol"].as_str().unwrap_or_default());
                let (Some(port), Some(protocol)) = (number.filter(|n| *n > 0), protocol) else {
                    continue;
                };
                all.push(Endpoint {
                    ip,
                    port,
                    protocol,
                    local: endpoint["nodeName"] == NODE,
                });
            }
        }
    }
    all
}

/// The node's object: the case's own one, with the addresses of all families.
pub(crate) fn node(families: &[(Family, Setting, Vec<Value>, Vec<Row>)]) -> Value {
    let given = families
        .iter()
        .flat_map(|f| &f.2)
        .find(|o| o["kind"] == "Node");
    let mut node = given
        .cloned()
        .unwrap_or_else(|| json!({ "kind": "Node", "metadata": { "name": NODE } }));
    let first = families.iter().filter_map(|f| f.1.ips().first().copied());
    let addresses: Vec<Value> = first
        .map(|ip| json!({ "type": "InternalIP", "address": ip }))
        .collect();
    node["status"]["addresses"] = addresses.into();
    node
}

/// A service by which one sees that everything up to it is programmed.
pub(crate) fn marker(family: Family, vip: &str) -> [Value; 2] {
    let name = format!("marker-{family}").to_lowercase();
    let kind = format!("{family}");
    [
        json!({ "kind": "Service", "metadata": { "namespace": "lab", "name": name },
            "spec": { "clusterIP": vip, "ports": [{ "port": FENCE_PORT }] } }),
        json!({ "kind": "EndpointSlice", "addressType": kind,
            "metadata": { "namespace": "lab", "name": name, "labels": { "kubernetes.io/service-name": name } },
            "ports": [{ "port": FENCE_PORT }], "endpoints": [{ "addresses": [mapped(FENCE, family)] }] }),
    ]
}

/// Whether `ip` is this address, in its family.
pub(crate) fn is(text: &str, ip: IpAddr) -> bool {
    parse_ip(&mapped(text, Family::of(ip))) == Some(ip)
}
