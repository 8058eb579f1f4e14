//! Rows: what a policy and a pod mean.

use serde_json::{Value, json};

use super::*;

#[track_caller]
fn read(spec: Value) -> (Policy, Vec<String>) {
    let object = json!({"metadata": {"namespace": "x", "name": "p"}, "spec": spec});
    policy(&serde_json::from_value(object).unwrap())
}

#[track_caller]
fn good(spec: Value) -> Policy {
    let (policy, problems) = read(spec);
    assert_eq!(problems, Vec::<String>::new());
    policy
}

#[test]
fn types() {
    let rule = json!([{}]);
    for (spec, is_ingress, is_egress) in [
        (json!({}), true, false),
        (json!({"ingress": null, "egress": null}), true, false),
        (json!({"egress": rule}), true, true),
        (json!({"ingress": rule}), true, false),
        (
            json!({"policyTypes": ["Egress"], "ingress": rule}),
            false,
            true,
        ),
        (
            json!({"policyTypes": ["Ingress"], "egress": rule}),
            true,
            false,
        ),
        (json!({"policyTypes": ["Ingress", "Egress"]}), true, true),
    ] {
        let policy = good(spec.clone());
        let found = (policy.ingress.is_some(), policy.egress.is_some());
        assert_eq!(found, (is_ingress, is_egress), "{spec}");
    }
}

#[track_caller]
fn rule(rule: Value) -> Rule {
    let policy = good(json!({"podSelector": {}, "ingress": [rule]}));
    policy.ingress.unwrap().remove(0)
}

#[test]
fn nothing_said_is_everything_allowed() {
    for empty in [
        json!({}),
        json!({"from": [], "ports": []}),
        json!({"from": null}),
    ] {
        assert_eq!(rule(empty), Rule::default());
    }
}

#[test]
fn ports() {
    let numbers = |port: Value| rule(json!({"ports": [port]})).ports.unwrap().numbers;
    for (port, expected) in [
        (json!({}), (Protocol::Tcp, (0, 65535))),
        (json!({"protocol": "SCTP"}), (Protocol::Sctp, (0, 65535))),
        (json!({"port": 80}), (Protocol::Tcp, (80, 80))),
        (
            json!({"protocol": "UDP", "port": 80, "endPort": 90}),
            (Protocol::Udp, (80, 90)),
        ),
    ] {
        assert_eq!(numbers(port), [(expected.0, vec![expected.1])].into());
    }
    let several = rule(json!({"ports": [
        {"port": 81}, {"port": "web"}, {"port": 80}, {"port": 90, "endPort": 95}]}));
    let ports = several.ports.unwrap();
    assert_eq!(ports.numbers[&Protocol::Tcp], [(80, 81), (90, 95)]);
    assert_eq!(ports.names, [(Protocol::Tcp, "web".to_owned())].into());
}

#[test]
fn peers() {
    let peers = |from: Value| rule(json!({"from": from})).peers.unwrap();
    let of = |labels: &[(&str, &str)]| -> Labels {
        let owned = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        owned.collect()
    };
    let (yes, no) = (of(&[("a", "1")]), of(&[]));
    for (peer, same_ns, matching_ns, other_ns) in [
        (json!({"podSelector": {}}), true, false, false),
        (
            json!({"podSelector": {"matchLabels": {"a": "1"}}}),
            true,
            false,
            false,
        ),
        (json!({"namespaceSelector": {}}), true, true, true),
        (
            json!({"namespaceSelector": {"matchLabels": {"a": "1"}}}),
            false,
            true,
            false,
        ),
        (
            json!({"namespaceSelector": {"matchLabels": {"a": "1"}}, "podSelector": {}}),
            false,
            true,
            false,
        ),
        (
            json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "2"}}}),
            false,
            false,
            false,
        ),
    ] {
        let set = peers(json!([peer])).pods.pop_first().unwrap();
        let found = [
            set.holds("x", Some(&no), &yes),
            set.holds("y", Some(&yes), &yes),
            set.holds("z", Some(&no), &yes),
        ];
        assert_eq!(found, [same_ns, matching_ns, other_ns], "{peer}");
    }
    let blocks = peers(json!([
        {"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.0/25"]}},
        {"ipBlock": {"cidr": "10.0.1.0/24"}},
        {"ipBlock": {"cidr": "::/0"}},
    ]));
    assert_eq!(blocks.v4, [(0x0a00_0080, 0x0a00_01ff)]);
    assert_eq!(blocks.v6, [(0, u128::MAX)]);
}

#[test]
fn what_cannot_be_read_allows_nothing_and_is_told() {
    let bad = json!({"matchExpressions": [{"key": "a", "operator": "Like"}]});
    for (spec, word) in [
        (json!({"podSelector": bad}), "podSelector: \"Like\""),
        (
            json!({"policyTypes": ["Sideways"]}),
            "policyTypes: no such type",
        ),
        (
            json!({"ingress": [{"from": [{}]}]}),
            "ingress[0] peer 0: is empty",
        ),
        (
            json!({"ingress": [{"from": [{"podSelector": bad}]}]}),
            "podSelector: \"Like\"",
        ),
        (
            json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.300/8"}}]}]}),
            "ipBlock.cidr",
        ),
        (
            json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/8"]}}]}]}),
            "except",
        ),
        (
            json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]}),
            "excludes",
        ),
        (
            json!({"egress": [{"ports": [{"protocol": "QUIC", "port": 1}]}]}),
            "egress[0].ports[0]: no such protocol",
        ),
        (
            json!({"ingress": [{"ports": [{"port": 0}]}]}),
            "0 is not a port",
        ),
        (
            json!({"ingress": [{"ports": [{"port": 9, "endPort": 8}]}]}),
            "endPort 8 is below",
        ),
        (
            json!({"ingress": [{"ports": [{"port": "web", "endPort": 8}]}]}),
            "endPort needs",
        ),
        (
            json!({"ingress": [{"ports": [{"endPort": 8}]}]}),
            "endPort needs",
        ),
    ] {
        let (policy, problems) = read(spec.clone());
        assert!(
            problems.len() == 1 && problems[0].contains(word),
            "{spec}: {problems:?}"
        );
        let rules = policy.ingress.iter().chain(&policy.egress).flatten();
        for rule in rules {
            let nobody = rule.peers.as_ref().is_some_and(|p| *p == Peers::default());
            let nowhere = rule.ports.as_ref().is_some_and(|p| *p == Ports::default());
            assert!(nobody || nowhere, "{spec}");
        }
    }
}

#[test]
fn pods() {
    let read = |spec: Value, status: Value| {
        let metadata = json!({"namespace": "x", "name": "p"});
        let object = json!({"metadata": metadata, "spec": spec, "status": status});
        pod(serde_json::from_value(object).unwrap())
    };
    let running = json!({"phase": "Running", "podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]});
    let containers = json!([{"ports": [{"name": "web", "containerPort": 80},
        {"containerPort": 81}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]);
    let found = read(
        json!({"nodeName": "n1", "containers": containers}),
        running.clone(),
    )
    .unwrap();
    assert_eq!(
        (found.ips.len(), found.ports.len(), found.node.as_str()),
        (2, 2, "n1")
    );
    let init = json!([{"ports": [{"name": "a", "containerPort": 1}]},
        {"ports": [{"name": "b", "containerPort": 2}], "restartPolicy": "Always"}]);
    let found = read(
        json!({"initContainers": init, "containers": []}),
        running.clone(),
    )
    .unwrap();
    assert_eq!(found.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [2]);
    assert_eq!(read(json!({"hostNetwork": true}), running), None);
    for phase in ["Succeeded", "Failed"] {
        assert_eq!(
            read(json!({}), json!({"phase": phase, "podIP": "10.0.0.1"})),
            None
        );
    }
    let pending = read(json!({"nodeName": "n1"}), json!({"phase": "Pending"})).unwrap();
    assert!(pending.ips.is_empty());
}
