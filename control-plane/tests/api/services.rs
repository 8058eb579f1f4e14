//! Addresses and node ports: given once, kept, given back.

use std::collections::BTreeSet;

use futures::future::join_all;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::common::{Lab, lab, options, start_with};

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, mut spec: Value) -> Value {
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80}]);
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

async fn allocated(lab: &Lab) -> BTreeSet<String> {
    let range = control_plane::store::Range {
        prefix: "/seaway/allocated/",
        ..Default::default()
    };
    let page = lab.server.app.store.list(range).await.unwrap();
    page.items
        .iter()
        .map(|kv| kv.key.trim_start_matches("/seaway/allocated/").to_owned())
        .collect()
}

/// Every address and port in every service, as allocation keys.
async fn in_use(lab: &Lab) -> Vec<String> {
    let (_, list) = lab.get("/api/v1/services").await;
    let mut used = Vec::new();
    for service in list["items"].as_array().unwrap() {
        for ip in service["spec"]["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten()
        {
            if ip != "None" {
                used.push(format!("ip/{}", ip.as_str().unwrap()));
            }
        }
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let ports: BTreeSet<u64> = ports.filter_map(|port| port["nodePort"].as_u64()).collect();
        used.extend(ports.iter().map(|port| format!("port/{port:05}")));
    }
    used.sort();
    used
}

/// What is used is what is taken, and nothing is used twice.
async fn check(lab: &Lab) {
    let used = in_use(lab).await;
    let taken: Vec<String> = allocated(lab).await.into_iter().collect();
    assert_eq!(used, taken);
}

#[tokio::test]
async fn types_come_and_go() {
    let lab = lab().await;
    let (code, made) = lab
        .post(SERVICES, service("s", json!({"type": "NodePort"})))
        .await;
    assert_eq!(code, 201, "{made}");
    let port = made["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30_000..=32_767).contains(&port));
    assert_eq!(
        made["spec"]["clusterIPs"],
        json!([made["spec"]["clusterIP"]])
    );
    check(&lab).await;
    let path = format!("{SERVICES}/s");
    let (code, kept) = lab
        .put(&path, service("s", json!({"type": "NodePort"})))
        .await;
    assert_eq!(code, 200, "{kept}");
    assert_eq!(
        (&kept["spec"]["clusterIP"], &kept["spec"]["ports"]),
        (&made["spec"]["clusterIP"], &made["spec"]["ports"])
    );
    let (_, dual) = lab
        .patch(
            &path,
            "merge",
            json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}}),
        )
        .await;
    assert_eq!(
        dual["spec"]["ipFamilies"],
        json!(["IPv4", "IPv6"]),
        "{dual}"
    );
    assert_eq!(dual["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    check(&lab).await;
    let (_, single) = lab
        .patch(
            &path,
            "merge",
            json!({"spec": {"ipFamilyPolicy": "SingleStack"}}),
        )
        .await;
    assert_eq!(
        single["spec"]["clusterIPs"],
        json!([made["spec"]["clusterIP"]]),
        "{single}"
    );
    check(&lab).await;
    let (code, inner) = lab
        .patch(&path, "merge", json!({"spec": {"type": "ClusterIP"}}))
        .await;
    assert_eq!(code, 200, "{inner}");
    assert_eq!(inner["spec"]["ports"][0].get("nodePort"), None);
    check(&lab).await;
    let out = json!({"spec": {"type": "ExternalName", "externalName": "example.com", "clusterIP": null, "clusterIPs": null}});
    let (code, name) = lab.patch(&path, "merge", out).await;
    assert_eq!((code, name["spec"].get("clusterIP")), (200, None), "{name}");
    check(&lab).await;
    let back = json!({"spec": {"type": "LoadBalancer", "externalName": null, "externalTrafficPolicy": "Local"}});
    let (code, balanced) = lab.patch(&path, "merge", back).await;
    assert_eq!(code, 200, "{balanced}");
    assert!(balanced["spec"]["healthCheckNodePort"].as_u64().unwrap() >= 30_000);
    lab.delete(&path, Value::Null).await;
    check(&lab).await;
    assert_eq!(
        allocated(&lab).await,
        BTreeSet::from(["ip/10.96.0.1".to_owned()])
    );
}

#[tokio::test]
async fn explicit_choices() {
    let lab = lab().await;
    let dns = json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:10:96::a"], "ports": [
        {"name": "u", "port": 53, "protocol": "UDP"}, {"name": "t", "port": 53, "protocol": "TCP"}]});
    let (code, made) = lab.post(SERVICES, service("dns", dns.clone())).await;
    assert_eq!(
        (code, &made["spec"]["clusterIPs"]),
        (201, &json!(["10.96.0.10", "fd00:10:96::a"])),
        "{made}"
    );
    let refused = async |name: &str, spec: Value, expected: &str| {
        let (code, status) = lab.post(SERVICES, service(name, spec)).await;
        let message = status["message"].as_str().unwrap_or("");
        assert!(
            code == 422 && message.contains(expected),
            "{code} {message}"
        );
    };
    refused("b", dns, "provided IP is already allocated").await;
    refused(
        "b",
        json!({"clusterIP": "192.0.2.1"}),
        "is not in the valid range",
    )
    .await;
    let port =
        |number: u16| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": number}]});
    assert_eq!(lab.post(SERVICES, service("p", port(30_080))).await.0, 201);
    refused("q", port(30_080), "provided port is already allocated").await;
    refused("q", port(80), "The range of valid ports is 30000-32767").await;
    let (code, headless) = lab
        .post(
            SERVICES,
            service("h", json!({"clusterIP": "None", "selector": {"a": "b"}})),
        )
        .await;
    assert_eq!(
        (code, &headless["spec"]["clusterIPs"]),
        (201, &json!(["None"]))
    );
    for spec in [
        json!({"clusterIP": "10.96.0.11"}),
        json!({"clusterIP": "None"}),
        json!({"clusterIPs": ["10.96.0.10", "fd00:10:96::b"]}),
    ] {
        let patch = json!({"spec": spec});
        let (code, status) = lab.patch(&format!("{SERVICES}/dns"), "merge", patch).await;
        let message = status["message"].as_str().unwrap_or("");
        assert!(
            code == 422 && message.contains("may not change once set"),
            "{code} {message}"
        );
    }
    check(&lab).await;
}

#[tokio::test]
async fn a_hundred_at_once_share_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut tight = options(&dir, "embedded");
    tight.node_ports = 30_000..=30_039;
    let lab = start_with(tight, dir).await;
    let names: Vec<String> = (0..60).map(|n| format!("s{n}")).collect();
    let creates = names.iter().map(|name| {
        let spec = json!({"type": "NodePort", "ipFamilyPolicy": "PreferDualStack"});
        lab.server_call("POST", SERVICES, service(name, spec))
    });
    let codes: Vec<u16> = join_all(creates)
        .await
        .into_iter()
        .map(|(code, _)| code)
        .collect();
    assert_eq!(
        codes.iter().filter(|code| **code == 201).count(),
        40,
        "{codes:?}"
    );
    assert_eq!(
        codes.iter().filter(|code| **code == 500).count(),
        20,
        "{codes:?}"
    );
    check(&lab).await;
    let deletes = names
        .iter()
        .map(|name| lab.server_call("DELETE", format!("{SERVICES}/{name}"), Value::Null));
    join_all(deletes).await;
    check(&lab).await;
}

#[tokio::test]
async fn the_servers_own_service_comes_back() {
    let lab = lab().await;
    let mut watch = lab
        .watch(&format!(
            "{SERVICES}?watch=true&fieldSelector=metadata.name%3Dkubernetes"
        ))
        .await;
    assert_eq!(watch.brief().await, "ADDED kubernetes");
    lab.delete(&format!("{SERVICES}/kubernetes"), Value::Null)
        .await;
    assert_eq!(watch.brief().await, "DELETED kubernetes");
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["spec"]["clusterIP"]),
        (&json!("ADDED"), &json!("10.96.0.1"))
    );
    check(&lab).await;
}

#[derive(Clone, Debug)]
enum Step {
    Create(u8, &'static str, bool),
    Type(u8, &'static str),
    Delete(u8),
    Port(u8, u16),
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..5_u8;
    let kind = prop_oneof![Just("ClusterIP"), Just("NodePort"), Just("LoadBalancer")];
    prop_oneof![
        3 => (name.clone(), kind.clone(), any::<bool>()).prop_map(|(n, k, d)| Step::Create(n, k, d)),
        2 => (name.clone(), kind).prop_map(|(n, k)| Step::Type(n, k)),
        2 => name.clone().prop_map(Step::Delete),
        1 => (name, 30_000..30_004_u16).prop_map(|(n, p)| Step::Port(n, p)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever is created, changed and deleted, in any order: what is used is what is taken.
    #[test]
    fn used_is_taken(rounds in proptest::collection::vec(proptest::collection::vec(step(), 1..5), 1..6)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let lab = lab().await;
            for round in rounds {
                let calls = round.into_iter().map(|step| match step {
                    Step::Create(n, kind, dual) => {
                        let policy = if dual { "PreferDualStack" } else { "SingleStack" };
                        let spec = json!({"type": kind, "ipFamilyPolicy": policy});
                        lab.server_call("POST", SERVICES.to_owned(), service(&format!("s{n}"), spec))
                    }
                    Step::Type(n, kind) => {
                        let patch = json!({"spec": {"type": kind}});
                        lab.server_call("PATCH", format!("{SERVICES}/s{n}"), patch)
                    }
                    Step::Delete(n) => lab.server_call("DELETE", format!("{SERVICES}/s{n}"), Value::Null),
                    Step::Port(n, port) => {
                        let patch = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": port}]}});
                        lab.server_call("PATCH", format!("{SERVICES}/s{n}"), patch)
                    }
                });
                join_all(calls).await;
                check(&lab).await;
            }
        });
    }
}
