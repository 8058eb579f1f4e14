//! The cases, what is written beside them, and a model of network policies that knows nothing of
//! the one that is tested.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

/// A case of `tests/cases/policy`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) policies: Vec<PolicySpec>,
    /// `deny FROM -> TO [PORTS]`, `allow ...`: the last that fits counts. Without any, all is allowed.
    pub(crate) expect: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicySpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) spec: Value,
}

impl Case {
    pub(crate) fn objects(&self) -> Vec<Value> {
        let object = |p: &PolicySpec| json!({"metadata": {"namespace": p.namespace, "name": p.name}, "spec": p.spec});
        self.policies.iter().map(object).collect()
    }
}

/// All cases, by file and place.
pub(crate) fn cases() -> Vec<Case> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/policy");
    let entries = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.collect();
    files.sort();
    let read = |path: PathBuf| -> Vec<Case> {
        let text = std::fs::read_to_string(&path).unwrap();
        serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    files.into_iter().flat_map(read).collect()
}

/// One cell of a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell<'a> {
    pub(crate) from: &'a Value,
    pub(crate) from_ip: IpAddr,
    pub(crate) to: &'a Value,
    pub(crate) to_ip: IpAddr,
    /// `TCP`...
    pub(crate) protocol: &'a str,
    pub(crate) port: u16,
}

fn key(pod: &Value) -> String {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap();
    format!("{}/{}", text("namespace"), text("name"))
}

/// What is written beside the case.
pub(crate) fn written(case: &Case, cell: &Cell<'_>) -> bool {
    let (from, to) = (key(cell.from), key(cell.to));
    if from == to {
        return true;
    }
    let port = format!("{}/{}", cell.protocol.to_lowercase(), cell.port);
    let fits =
        |patterns: &str, text: &str| patterns.split(',').any(|p| fits_pattern(p.trim(), text));
    let mut allowed = true;
    for line in &case.expect {
        let (verb, rest) = line.split_once(' ').unwrap();
        let (sources, rest) = rest.split_once("->").unwrap();
        let words = rest.split([' ', ',']).filter(|word| !word.is_empty());
        let is_port = |word: &&str| {
            ["tcp/", "udp/", "sctp/"]
                .iter()
                .any(|p| word.starts_with(p))
        };
        let (ports, targets): (Vec<&str>, Vec<&str>) = words.partition(is_port);
        let ports = if ports.is_empty() {
            "*".to_owned()
        } else {
            ports.join(",")
        };
        let targets = targets.join(",");
        assert!(["allow", "deny"].contains(&verb), "{line}");
        if fits(sources, &from) && fits(&targets, &to) && fits(&ports, &port) {
            allowed = verb == "allow";
        }
    }
    allowed
}

/// `x/*`, `*/a`, `*`.
fn fits_pattern(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let (a, b) = pattern.split_once('/').unwrap();
    let (x, y) = text.split_once('/').unwrap();
    (a == "*" || a == x) && (b == "*" || b == y)
}

/// What the documentation of the API says, as simply as can be.
pub(crate) fn model(policies: &[Value], cell: &Cell<'_>) -> bool {
    key(cell.from) == key(cell.to)
        || (side(policies, cell, "Egress", cell.from) && side(policies, cell, "Ingress", cell.to))
}

fn side(policies: &[Value], cell: &Cell<'_>, kind: &str, pod: &Value) -> bool {
    let (rules_of, peers_of) = match kind {
        "Egress" => ("egress", "to"),
        _ => ("ingress", "from"),
    };
    let mut isolated = false;
    for policy in policies {
        let spec = &policy["spec"];
        let types: Vec<&str> = list(&spec["policyTypes"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let has_type = match kind {
            _ if types.contains(&kind) => true,
            "Ingress" => types.is_empty(),
            _ => types.is_empty() && !list(&spec["egress"]).is_empty(),
        };
        let here = policy["metadata"]["namespace"] == pod["metadata"]["namespace"];
        if !has_type || !here || !selects(&spec["podSelector"], &pod["metadata"]["labels"]) {
            continue;
        }
        isolated = true;
        for rule in list(&spec[rules_of]) {
            let peers = list(&rule[peers_of]);
            let ports = list(&rule["ports"]);
            let peer_fits = peers.is_empty() || peers.iter().any(|p| peer(p, policy, cell, kind));
            if peer_fits && (ports.is_empty() || ports.iter().any(|p| port(p, cell))) {
                return true;
            }
        }
    }
    !isolated
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let expressions = list(&selector["matchExpressions"]);
    equal.into_iter().all(|(k, v)| labels.get(k) == Some(v))
        && expressions.iter().all(|e| {
            let label = labels.get(e["key"].as_str().unwrap());
            let among = label.is_some_and(|label| list(&e["values"]).contains(label));
            match e["operator"].as_str().unwrap() {
                "In" => among,
                "NotIn" => !among,
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                other => panic!("{other}"),
            }
        })
}

fn peer(peer: &Value, policy: &Value, cell: &Cell<'_>, kind: &str) -> bool {
    let (pod, ip) = match kind {
        "Egress" => (cell.to, cell.to_ip),
        _ => (cell.from, cell.from_ip),
    };
    if let Some(block) = peer.get("ipBlock") {
        let within = |net: &Value| {
            let net: ipnetwork::IpNetwork = net.as_str().unwrap().parse().unwrap();
            net.contains(ip)
        };
        return within(&block["cidr"]) && !list(&block["except"]).iter().any(within);
    }
    let namespace = &pod["metadata"]["namespace"];
    let place = match peer.get("namespaceSelector") {
        Some(selector) => selects(
            selector,
            &json!({"ns": namespace, "kubernetes.io/metadata.name": namespace}),
        ),
        None => *namespace == policy["metadata"]["namespace"],
    };
    let pods = peer.get("podSelector");
    place && pods.is_none_or(|selector| selects(selector, &pod["metadata"]["labels"]))
}

fn port(port: &Value, cell: &Cell<'_>) -> bool {
    if port["protocol"].as_str().unwrap_or("TCP") != cell.protocol {
        return false;
    }
    match &port["port"] {
        Value::Null => true,
        Value::String(name) => list(&cell.to["spec"]["containers"][0]["ports"])
            .iter()
            .any(|p| {
                p["name"] == *name
                    && p["protocol"].as_str().unwrap_or("TCP") == cell.protocol
                    && p["containerPort"] == cell.port
            }),
        number => {
            let first = number.as_u64().unwrap();
            let last = port["endPort"].as_u64().unwrap_or(first);
            (first..=last).contains(&u64::from(cell.port))
        }
    }
}
