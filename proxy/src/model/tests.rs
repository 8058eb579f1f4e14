use api::cidr::Family;

use super::decide::decide;
use super::endpoint::{Endpoint, NodeHint};
use super::topology::usable;
use super::*;

/// A service by its marks: `eL`, `iL` (traffic policies), `np` (node port).
fn service_port(marks: &str) -> service::ServicePort {
    let mut object = api::core::Service::default();
    object.metadata.namespace = "ns".to_owned();
    object.metadata.name = "svc".to_owned();
    let spec = &mut object.spec;
    spec.cluster_ip = "172.30.1.1".to_owned();
    let mut port = api::core::ServicePort {
        port: 80,
        ..api::core::ServicePort::default()
    };
    for mark in marks.split_whitespace() {
        match mark {
            "eL" => spec.external_traffic_policy = "Local".to_owned(),
            "iL" => spec.internal_traffic_policy = "Local".to_owned(),
            "np" => {
                spec.type_ = "NodePort".to_owned();
                port.node_port = 30000;
            }
            other => panic!("{other}"),
        }
    }
    spec.ports.push(port);
    let parsed = service::parse(&object);
    assert_eq!(parsed.problems, []);
    parsed.ports[0].clone()
}

/// `.3 za+zb n1 local -ST`: last octet, zone and node hints, place, ready/serving/terminating
/// (`RS-` when not told).
fn endpoint(text: &str, node: &str) -> Endpoint {
    let mut words = text.split_whitespace();
    let octet: u8 = words
        .next()
        .unwrap()
        .strip_prefix('.')
        .unwrap()
        .parse()
        .unwrap();
    let mut endpoint = Endpoint {
        ip: [10, 0, 0, octet].into(),
        port: 80,
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        node_hint: NodeHint::Nobody,
        zones: Default::default(),
    };
    for word in words {
        match word.as_bytes() {
            b"local" => endpoint.local = true,
            [b'z', ..] => endpoint.zones = word.split('+').collect(),
            [b'n', ..] if word == node => endpoint.node_hint = NodeHint::Me,
            [b'n', ..] => endpoint.node_hint = NodeHint::Others,
            [ready, serving, terminating] => {
                endpoint.ready = *ready == b'R';
                endpoint.serving = *serving == b'S';
                endpoint.terminating = *terminating == b'T';
            }
            _ => panic!("{word}"),
        }
    }
    endpoint
}

/// The table, which says what its columns mean.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    rows: Vec<Row>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    n: u32,
    about: String,
    #[serde(default)]
    service: String,
    #[serde(default = "node")]
    node: String,
    #[serde(default = "zone")]
    zone: Option<String>,
    endpoints: Vec<String>,
    expect: String,
}

fn node() -> String {
    "n".to_owned()
}

fn zone() -> Option<String> {
    Some("za".to_owned())
}

#[test]
fn endpoint_selection() {
    let text = include_str!("../../../tests/cases/topology.yaml");
    let table: Table = serde_saphyr::from_str(text).unwrap();
    for row in &table.rows {
        check(row);
    }
    assert!((1..=31).all(|n| table.rows.iter().any(|row| row.n == n)));
    println!("COUNTED rows of endpoint selection: {}", table.rows.len());
}

#[track_caller]
fn check(row: &Row) {
    let (node, at) = (row.node.as_str(), format!("row {}: {}", row.n, row.about));
    let port = service_port(&row.service);
    let view = NodeView {
        name: node.into(),
        zone: row.zone.as_deref().map(Into::into),
        ..NodeView::default()
    };
    let endpoints: Vec<Endpoint> = row.endpoints.iter().map(|e| endpoint(e, node)).collect();
    let family = Family::V4;
    let usable = usable(
        &endpoints,
        &view,
        port.uses_cluster_endpoints(family),
        port.uses_local_endpoints(family),
    );
    let octets = |set: &[usize]| {
        let all: Vec<String> = set
            .iter()
            .map(|i| {
                endpoints[*i]
                    .ip
                    .to_string()
                    .rsplit_once('.')
                    .unwrap()
                    .1
                    .to_owned()
            })
            .collect();
        if all.is_empty() {
            "-".to_owned()
        } else {
            all.join(" ")
        }
    };
    let set = |set: &Option<Vec<usize>>| set.as_deref().map_or("nil".to_owned(), octets);
    let mut got = format!("{} / {}", set(&usable.cluster), set(&usable.local));
    if usable.cluster.is_some() && usable.local.is_some() {
        got = format!("{got} / {}", octets(&usable.all()));
    }
    if !usable.any {
        got.push_str(" none");
    }
    assert_eq!(got, row.expect, "{at}");

    // What is decided agrees with it.
    let decision = decide(&port, family, &endpoints, &view, Policy::default()).unwrap();
    let of = |of: Set| decision.set(of).count();
    assert_eq!(
        of(Set::Cluster),
        usable.cluster.as_ref().map_or(0, Vec::len)
    );
    assert_eq!(of(Set::Local), usable.local.as_ref().map_or(0, Vec::len));
    assert_eq!(
        decision.internal.pod.verdict == Verdict::Reject,
        !usable.any
    );
}

/// A Service whose `spec` is this JSON: expected ports, and the fields that are complained about.
#[track_caller]
fn check_parse(spec: serde_json::Value, ports: &[&str], fields: &[&str]) {
    let object: api::core::Service =
        serde_json::from_value(serde_json::json!({ "metadata": {"name": "s"}, "spec": spec }))
            .unwrap();
    let parsed = service::parse(&object);
    let got: Vec<String> = parsed
        .ports
        .iter()
        .map(|port| {
            format!(
                "{}/{} {}",
                port.port,
                port.name.protocol,
                port.node_port.unwrap_or(0)
            )
        })
        .collect();
    assert_eq!(got, ports);
    let got: Vec<&str> = parsed
        .problems
        .iter()
        .map(|problem| problem.field.as_str())
        .collect();
    assert_eq!(got, fields);
}

#[test]
fn bad_parts_are_left_out_alone() {
    let json = |text: &str| serde_json::from_str(text).unwrap();
    check_parse(
        json(
            r#"{"clusterIP": "10.0.0.1", "ports": [
            {"port": 80}, {"name": "a", "port": 0}, {"name": "b", "port": 65536}, {"name": "c", "port": -1},
            {"name": "d", "port": 81, "protocol": "ICMP"}, {"name": "e", "port": 82, "nodePort": 70000},
            {"port": 83}, {"port": 80, "protocol": "UDP"}]}"#,
        ),
        &["80/tcp 0", "82/tcp 0", "80/udp 0"],
        &[
            "spec.ports[1].port",
            "spec.ports[2].port",
            "spec.ports[3].port",
            "spec.ports[4].protocol",
            "spec.ports[5].nodePort",
            "spec.ports[6].name",
        ],
    );
    check_parse(
        json(
            r#"{"clusterIP": "10.0.0.1", "externalIPs": ["x", "1.2.3.4"], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}, "loadBalancerSourceRanges": ["1.2.3.4"],
            "ports": [{"port": 80}]}"#,
        ),
        &["80/tcp 0"],
        &[
            "spec.loadBalancerSourceRanges[0]",
            "spec.externalIPs[0]",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ],
    );
    check_parse(
        json(r#"{"clusterIP": "x", "ports": [{"port": 80}]}"#),
        &[],
        &["spec.clusterIP[0]"],
    );
    check_parse(
        json(r#"{"clusterIP": "None", "ports": [{"port": 0}]}"#),
        &[],
        &[],
    );
    check_parse(
        json(r#"{"clusterIP": "", "ports": [{"port": 0}]}"#),
        &[],
        &[],
    );
}

/// What annotations say of the choice for clients outside: a table's size, or a complaint.
#[test]
fn balancing_by_annotation() {
    let parse = |annotations: &[(&str, &str)]| {
        let mut object = api::core::Service::default();
        object.metadata.name = "svc".to_owned();
        object.spec.cluster_ip = "172.30.1.1".to_owned();
        let port = api::core::ServicePort {
            port: 80,
            ..api::core::ServicePort::default()
        };
        object.spec.ports.push(port);
        let all = annotations.iter();
        let all = all.map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        object.metadata.annotations = all.collect();
        let parsed = service::parse(&object);
        let problems = parsed.problems.into_iter().map(|p| p.field);
        (
            parsed.ports[0].shared.table_size,
            problems.collect::<Vec<_>>(),
        )
    };
    let (how, size) = ("seaway/balancing", "seaway/maglev-table-size");
    assert_eq!(parse(&[]), (None, vec![]));
    assert_eq!(parse(&[(how, "random"), (size, "251")]), (None, vec![]));
    assert_eq!(parse(&[(how, "maglev")]), (Some(16_381), vec![]));
    assert_eq!(
        parse(&[(how, "maglev"), (size, "251")]),
        (Some(251), vec![])
    );
    let field = |name| vec![format!("metadata.annotations[{name}]")];
    assert_eq!(parse(&[(how, "Maglev")]), (None, field(how)));
    for bad in ["250", "", "-251", "251 ", "262147"] {
        let found = parse(&[(how, "maglev"), (size, bad)]);
        assert_eq!(found, (Some(16_381), field(size)), "{bad:?}");
    }
}
