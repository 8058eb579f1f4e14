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
        zones: Box::default(),
    };
    for word in words {
        match word.as_bytes() {
            b"local" => endpoint.local = true,
            [b'z', ..] => endpoint.zones = word.split('+').map(Into::into).collect(),
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

/// `marks` of the service, the node's name and zone, endpoints; expected
/// `cluster / local / all`, then `none` when nothing could serve anywhere.
#[track_caller]
fn check(marks: &str, node: &str, zone: &str, endpoints: &[&str], expect: &str) {
    let port = service_port(marks);
    let view = NodeView {
        name: node.into(),
        zone: Some(zone.into()).filter(|_| !zone.is_empty()),
        ..NodeView::default()
    };
    let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| endpoint(text, node)).collect();
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
    assert_eq!(got, expect);

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

const ZONES: &[&str] = &[".3 za", ".4 zb", ".5 zc", ".6 za"];

#[test]
fn zone_hints() {
    check("", "n", "za", ZONES, "3 6 / nil");
    let local = &[".3 za local", ".4 zb local", ".5 zc", ".6 za"];
    check("eL np", "n", "za", local, "3 6 / 3 4 / 3 4 6");
    check("iL np", "n", "za", local, "3 6 / 3 4 / 3 4 6");
    check("", "n", "", ZONES, "3 4 5 6 / nil");
    check("", "n", "zb", &[".3 za", ".4 za"], "3 4 / nil");
    check(
        "",
        "n",
        "za",
        &[".3 za", ".4 zb", ".5 zc", ".6 za ---"],
        "3 / nil",
    );
    check(
        "",
        "n",
        "za",
        &[".3 za ---", ".4 zb", ".5 zc", ".6 za ---"],
        "4 5 / nil",
    );
    check(
        "",
        "n",
        "za",
        &[".3 za", ".4", ".5 zc", ".6 za"],
        "3 4 5 6 / nil",
    );
    let several = &[".3 za+zb+zc", ".4 zb+zc", ".5 zb+zd", ".6 zc"];
    check("", "n", "zc", several, "3 4 6 / nil");
    let both = &[".0 za local", ".1 zb local", ".2 za", ".3 zb"];
    check("eL np", "n", "za", both, "0 2 / 0 1 / 0 1 2");
}

#[test]
fn node_hints() {
    let all = &[".3 za n1", ".4 zb n2", ".5 zc n3", ".6 za n4"];
    check("", "n1", "za", all, "3 / nil");
    check(
        "",
        "n1",
        "za",
        &[".3 za n1", ".4 zb n2", ".5", ".6 za n4"],
        "3 4 5 6 / nil",
    );
    check("", "n0", "za", all, "3 6 / nil");
    check("", "n1", "za", &[".3 za n1 ---", ".4 zb n2"], "4 / nil");
    check("", "n1", "", all, "3 / nil");
}

#[test]
fn policies() {
    check("iL", "n", "za", &[], "nil / - none");
    check("iL", "n", "za", &[".0", ".1"], "nil / -");
    check("iL", "n", "za", &[".0 local", ".1 local"], "nil / 0 1");
    check("iL", "n", "za", &[".0 local", ".1"], "nil / 0");
    check("", "n", "za", &[".0 ---", ".1 ---"], "- / nil none");
    check("", "n", "za", &[".0", ".1 ---"], "0 / nil");
    check("", "n", "za", &[".0 -ST", ".1 -ST"], "0 1 / nil");
    check("iL np", "n", "za", &[".0 local", ".1"], "0 1 / 0 / 0 1");
    check("eL np", "n", "za", &[".0 local", ".1"], "0 1 / 0 / 0 1");
    check("iL eL np", "n", "za", &[".0 local", ".1"], "0 1 / 0 / 0 1");
    check("iL eL np", "n", "za", &[".0", ".1"], "0 1 / - / 0 1");
    check(
        "iL eL np",
        "n",
        "za",
        &[".0 -ST", ".1 -ST"],
        "0 1 / - / 0 1",
    );
    let draining = &[".0", ".1 --- local", ".2 -ST local", ".3 -ST"];
    check("eL np", "n", "za", draining, "0 / 2 / 0 2");
    check("eL", "n", "za", &[".0 local", ".1"], "0 1 / nil");
    check("iL", "n", "za", &[".0 local", ".1"], "nil / 0");
    check("", "n", "za", &[], "- / nil none");
    check("", "n", "za", &[".0 ---"], "- / nil none");
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
