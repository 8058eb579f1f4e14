//! The real binary against an API server: what it asks for, what it waits for, what it tells. Needs
//! root.

mod api;

use crate::lab::Lab;
use api::Api;
use linux::iptables::Family;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn web(port: u16) -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "u-1"},
        "spec": {"clusterIP": "172.30.0.41", "ports": [{"port": port, "protocol": "TCP"}]},
    })
}

fn slice(ip: &str) -> Value {
    json!({
        "metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [ip], "nodeName": "node"}],
    })
}

/// A lab whose proxy asks an API server on the node.
fn lab(test: &str) -> Option<(Lab, Api)> {
    let lab = Lab::new(test)?;
    let api = lab.node.run(Api::start);
    let master = format!("--master=http://127.0.0.1:{}", api.port);
    Some((lab.with(&[&master]), api))
}

fn asked(api: &Api, kind: &str, watch: bool) -> Vec<String> {
    let requests = api.requests().into_iter();
    let of_kind = requests.filter(|request| {
        let (path, query) = request.split_once('?').unwrap_or((request, ""));
        path.ends_with(&format!("/{kind}")) && query.contains("watch=true") == watch
    });
    of_kind.collect()
}

/// Row P01: the selectors, exactly.
#[test]
fn what_is_asked_for() {
    let Some((mut lab, api)) = lab("what_is_asked_for") else {
        return;
    };
    lab.start();
    for (kind, path, selectors) in [
        (
            "services",
            "/api/v1/services",
            &[
                "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name",
                "fieldSelector=spec.clusterIP%21%3DNone",
            ][..],
        ),
        (
            "endpointslices",
            "/apis/discovery.k8s.io/v1/endpointslices",
            &["labelSelector=%21service.kubernetes.io%2Fheadless"],
        ),
        (
            "nodes",
            "/api/v1/nodes",
            &["fieldSelector=metadata.name%3Dnode"],
        ),
        (
            "servicecidrs",
            "/apis/networking.k8s.io/v1/servicecidrs",
            &[],
        ),
    ] {
        for watch in [false, true] {
            lab.wait(kind, |_| !asked(&api, kind, watch).is_empty());
            let all = asked(&api, kind, watch);
            let last = all.last().unwrap();
            assert!(last.starts_with(&format!("GET {path}?")), "{last}");
            let of = |name: &str| {
                last.split(['?', '&'])
                    .filter(|part| part.contains(name))
                    .count()
            };
            assert_eq!(of("Selector="), selectors.len(), "{last}");
            for selector in selectors {
                assert!(last.contains(selector), "{last} lacks {selector}");
            }
        }
    }
}

/// Row P08: rules of before stay until services and slices have been listed.
#[test]
fn old_rules_stay_while_a_list_is_slow() {
    let Some((mut lab, api)) = lab("old_rules_stay_while_a_list_is_slow") else {
        return;
    };
    // An older API server: without ServiceCIDRs all else works.
    api.lacks("servicecidrs");
    api.put("services", web(80));
    api.put("endpointslices", slice("10.180.0.2"));
    lab.start();
    lab.p1.answer("172.30.0.41:80");
    lab.stop(Signal::SIGKILL);
    api.hold("endpointslices");
    let before = lab.rules(Family::V4);
    let lists = asked(&api, "endpointslices", false).len();
    lab.spawn();
    lab.wait("the slow list", |_| {
        asked(&api, "endpointslices", false).len() > lists
    });
    lab.wait("the watch of services", |_| {
        asked(&api, "services", true).len() >= 2
    });
    api.put("services", web(81));
    let page = |lab: &Lab| lab.node.get("127.0.0.1:10256", "/livez");
    lab.wait("the pages", |lab| page(lab).is_ok());
    assert_eq!(lab.rules(Family::V4), before);
    lab.p1.answer("172.30.0.41:80");
    api.release();
    lab.wait("the new port", |lab| lab.p1.ask("172.30.0.41:81").is_ok());
    assert!(lab.p1.ask("172.30.0.41:80").is_err());
}

/// Rows P01 and P39: a label hides a service, and it comes back.
#[test]
fn a_service_of_another_proxy() {
    let Some((mut lab, api)) = lab("a_service_of_another_proxy") else {
        return;
    };
    api.put("services", web(80));
    api.put("endpointslices", slice("10.180.0.2"));
    lab.start();
    lab.p1.answer("172.30.0.41:80");
    // A server that does not select shows the label; one that does says that the object is gone.
    let mut hidden = web(80);
    hidden["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "x"});
    api.put("services", hidden);
    lab.wait("the label", |lab| lab.p1.ask("172.30.0.41:80").is_err());
    api.put("services", web(80));
    lab.wait("the label to go", |lab| {
        lab.p1.ask("172.30.0.41:80").is_ok()
    });
    api.delete("services", "web");
    lab.wait("the service to go", |lab| {
        lab.p1.ask("172.30.0.41:80").is_err()
    });
}

#[test]
fn events_about_what_cannot_be_used() {
    let Some((mut lab, api)) = lab("events_about_what_cannot_be_used") else {
        return;
    };
    let mut bad = web(80);
    bad["spec"]["externalIPs"] = json!(["192.0.2.999"]);
    bad["spec"]["type"] = json!("LoadBalancer");
    bad["spec"]["externalTrafficPolicy"] = json!("Local");
    // The port of the pages: taken.
    bad["spec"]["healthCheckNodePort"] = json!(10256);
    api.put("services", bad.clone());
    api.put("endpointslices", slice("10.180.0.2"));
    lab.start();
    lab.p1.answer("172.30.0.41:80");
    let with = |reason: &str| {
        let events = api.events().into_iter();
        events
            .filter(|event| event["reason"] == reason)
            .collect::<Vec<_>>()
    };
    lab.wait("both Events", |_| {
        !with("UnusableField").is_empty() && !with("FailedToStartServiceHealthcheck").is_empty()
    });
    let event = with("UnusableField").remove(0);
    assert_eq!(
        event["message"],
        "spec.externalIPs[0]: \"192.0.2.999\" is no address; left out"
    );
    assert_eq!(event["type"], "Warning");
    assert_eq!(
        event["source"],
        json!({"component": "kube-proxy", "host": "node"})
    );
    assert_eq!(
        event["involvedObject"],
        json!({"kind": "Service", "apiVersion": "v1", "name": "web", "uid": "u-1", "namespace": "ns"})
    );
    let event = with("FailedToStartServiceHealthcheck").remove(0);
    let message = event["message"].as_str().unwrap();
    assert!(
        message.starts_with("health check on 0.0.0.0:10256 cannot be served: "),
        "{message}"
    );
    // What lasts is told once.
    bad["spec"]["ports"][0]["port"] = json!(81);
    api.put("services", bad);
    lab.wait("the change", |lab| lab.p1.ask("172.30.0.41:81").is_ok());
    assert_eq!(with("UnusableField").len(), 1);
    let (_, text) = lab.node.get("127.0.0.1:10249", "/metrics").unwrap();
    assert!(
        text.contains("seaway_proxy_object_problems_total 1\n"),
        "{text}"
    );
}

#[test]
fn the_node_goes_away() {
    let Some((mut lab, api)) = lab("the_node_goes_away") else {
        return;
    };
    let node = |taints: Value| json!({"metadata": {"name": "node"}, "spec": {"taints": taints}});
    api.put("nodes", node(json!([])));
    lab.start();
    let code = |lab: &Lab, page: &str| {
        lab.node
            .get("127.0.0.1:10256", page)
            .ok()
            .map(|(code, _)| code)
    };
    assert_eq!(code(&lab, "/healthz"), Some(200));
    api.put(
        "nodes",
        node(json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}])),
    );
    lab.wait("the taint", |lab| code(lab, "/healthz") == Some(503));
    assert_eq!(code(&lab, "/livez"), Some(200));
    api.put("nodes", node(json!([])));
    lab.wait("the taint to go", |lab| code(lab, "/healthz") == Some(200));
    api.delete("nodes", "node");
    lab.wait("the node to go", |lab| code(lab, "/healthz") == Some(503));
}
