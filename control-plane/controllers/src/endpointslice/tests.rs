use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fake::{Sim, node, patient, pod, service};
use crate::kinds::Kind;

fn sim() -> Sim {
    let mut sim = Sim::new(patient());
    let mut node = node("n1");
    node["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!("z1");
    sim.put(Kind::Node, node);
    sim
}

/// A pod on n1 with this address.
fn running(name: &str, address: &str, ready: bool) -> Value {
    let mut pod = pod(name);
    pod["spec"]["nodeName"] = json!("n1");
    pod["status"] = json!({
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}, {"ip": format!("fd00::{}", address.replace('.', ":"))}],
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
    });
    pod
}

fn endpoints(sim: &Sim) -> Vec<Value> {
    sim.list(Kind::EndpointSlice)
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
        .collect()
}

#[test]
fn a_ready_pod_is_an_endpoint() {
    let mut sim = sim();
    sim.put(Kind::Service, service("web"));
    sim.put(Kind::Pod, running("a", "10.244.0.5", true));
    sim.settle();
    let slice = sim.list(Kind::EndpointSlice)[0].clone();
    assert_eq!(slice["addressType"], "IPv4");
    assert_eq!(
        slice["ports"],
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}])
    );
    let labels = &slice["metadata"]["labels"];
    assert_eq!(labels["kubernetes.io/service-name"], "web");
    assert_eq!(
        labels["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
    assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Service");
    assert!(
        slice["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"]
            .is_string()
    );
    let uid = &sim.get(Kind::Pod, "default", "a").unwrap()["metadata"]["uid"];
    assert_eq!(
        slice["endpoints"],
        json!([{
            "addresses": ["10.244.0.5"],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "n1",
            "zone": "z1",
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "a", "uid": uid},
        }])
    );
}

#[test]
fn condition_rows() {
    for (ready, deleting, publish, want) in [
        (true, false, false, [true, true, false]),
        (false, false, false, [false, false, false]),
        (true, true, false, [false, true, true]),
        (false, true, false, [false, false, true]),
        (false, false, true, [true, false, false]),
        (true, true, true, [true, true, true]),
    ] {
        let mut sim = sim();
        let mut service = service("web");
        service["spec"]["publishNotReadyAddresses"] = json!(publish);
        sim.put(Kind::Service, service);
        let mut pod = running("a", "10.244.0.5", ready);
        if deleting {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        }
        sim.put(Kind::Pod, pod);
        sim.settle();
        let [ready_, serving, terminating] = want;
        assert_eq!(
            endpoints(&sim)[0]["conditions"],
            json!({"ready": ready_, "serving": serving, "terminating": terminating}),
            "ready {ready}, deleting {deleting}, publish {publish}"
        );
    }
}

#[test]
fn finished_pods_and_pods_without_address_are_none() {
    let mut sim = sim();
    sim.put(Kind::Service, service("web"));
    let mut done = running("done", "10.244.0.6", true);
    done["status"]["phase"] = json!("Succeeded");
    sim.put(Kind::Pod, done);
    sim.put(Kind::Pod, pod("pending"));
    sim.settle();
    let slices = sim.list(Kind::EndpointSlice);
    assert_eq!(
        slices.len(),
        1,
        "an empty slice says that there is no endpoint"
    );
    assert_eq!(slices[0]["endpoints"], json!([]));
    assert_eq!(slices[0]["ports"], json!([]));
}

#[test]
fn both_families_have_slices_of_their_own() {
    let mut sim = sim();
    let mut dual = service("web");
    dual["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
    sim.put(Kind::Service, dual);
    sim.put(Kind::Pod, running("a", "10.244.0.5", true));
    sim.settle();
    let mut types: Vec<String> = sim
        .list(Kind::EndpointSlice)
        .iter()
        .map(|it| it["addressType"].as_str().unwrap().to_owned())
        .collect();
    types.sort();
    assert_eq!(types, ["IPv4", "IPv6"]);
    sim.edit(Kind::Service, "default", "web", |it| {
        it["spec"]["ipFamilies"] = json!(["IPv4"])
    });
    sim.settle();
    assert_eq!(sim.list(Kind::EndpointSlice).len(), 1);
}

#[test]
fn named_ports_group_pods_by_what_they_resolve_to() {
    let mut sim = sim();
    let mut named = service("web");
    named["spec"]["ports"][0]["targetPort"] = json!("http");
    sim.put(Kind::Service, named);
    for (name, port) in [("a", 8080), ("b", 8081), ("c", 8080)] {
        let mut pod = running(name, &format!("10.244.0.{}", name.as_bytes()[0]), true);
        pod["spec"]["containers"][0]["ports"] =
            json!([{"name": "http", "containerPort": port, "protocol": "TCP"}]);
        sim.put(Kind::Pod, pod);
    }
    sim.settle();
    let mut found: Vec<(i64, usize)> = sim
        .list(Kind::EndpointSlice)
        .iter()
        .map(|it| {
            (
                it["ports"][0]["port"].as_i64().unwrap(),
                it["endpoints"].as_array().unwrap().len(),
            )
        })
        .collect();
    found.sort_unstable();
    assert_eq!(found, [(8080, 2), (8081, 1)]);
}

#[test]
fn headless_services_give_pods_their_names() {
    let mut sim = sim();
    let mut headless = service("db");
    headless["spec"]["clusterIP"] = json!("None");
    sim.put(Kind::Service, headless);
    let mut pod = running("a", "10.244.0.5", true);
    pod["spec"]["hostname"] = json!("db-0");
    pod["spec"]["subdomain"] = json!("db");
    sim.put(Kind::Pod, pod);
    sim.settle();
    assert_eq!(endpoints(&sim)[0]["hostname"], "db-0");
    assert_eq!(
        sim.list(Kind::EndpointSlice)[0]["metadata"]["labels"]["service.kubernetes.io/headless"],
        ""
    );
}

#[test]
fn services_without_selector_and_external_names_have_none() {
    let mut sim = sim();
    let mut manual = service("manual");
    manual["spec"]["selector"] = json!(null);
    sim.put(Kind::Service, manual);
    let mut external = service("external");
    external["spec"]["type"] = json!("ExternalName");
    sim.put(Kind::Service, external);
    sim.put(Kind::Pod, running("a", "10.244.0.5", true));
    sim.settle();
    assert!(sim.list(Kind::EndpointSlice).is_empty());
}

#[test]
fn one_change_writes_one_slice_and_its_fellows_stay() {
    let mut sim = sim();
    sim.put(Kind::Service, service("web"));
    for index in 0..250 {
        sim.put(
            Kind::Pod,
            running(
                &format!("p{index:03}"),
                &format!("10.244.{}.{}", index / 200, index % 200),
                true,
            ),
        );
    }
    sim.settle();
    let sizes = |sim: &Sim| {
        let mut sizes: Vec<usize> = sim
            .list(Kind::EndpointSlice)
            .iter()
            .map(|it| it["endpoints"].as_array().unwrap().len())
            .collect();
        sizes.sort_unstable();
        sizes
    };
    assert_eq!(sizes(&sim).iter().sum::<usize>(), 250);
    assert!(sizes(&sim).iter().all(|size| *size <= 100));
    let versions = |sim: &Sim| -> Vec<Value> {
        sim.list(Kind::EndpointSlice)
            .iter()
            .map(|it| it["metadata"]["resourceVersion"].clone())
            .collect()
    };
    let before = versions(&sim);
    sim.put(Kind::Pod, running("p017", "10.244.0.17", false));
    sim.settle();
    let changed = versions(&sim)
        .iter()
        .zip(&before)
        .filter(|(after, before)| after != before)
        .count();
    assert_eq!(changed, 1);
    sim.remove(Kind::Pod, "default", "p018");
    sim.settle();
    assert_eq!(sizes(&sim).iter().sum::<usize>(), 249);
}

#[test]
fn someone_elses_change_of_a_slice_is_put_right() {
    let mut sim = sim();
    sim.put(Kind::Service, service("web"));
    sim.put(Kind::Pod, running("a", "10.244.0.5", true));
    sim.settle();
    let name = sim.list(Kind::EndpointSlice)[0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    sim.edit(Kind::EndpointSlice, "default", &name, |slice| {
        slice["endpoints"] = json!([])
    });
    sim.settle();
    assert_eq!(endpoints(&sim).len(), 1);
    sim.remove(Kind::EndpointSlice, "default", &name);
    sim.settle();
    assert_eq!(endpoints(&sim).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever happens to pods in whatever order of events, in the end the slices hold exactly the pods with an
    /// address, once each, and no slice is too large.
    #[test]
    fn slices_hold_exactly_the_pods(
        steps in prop::collection::vec((0_u8..140, 0_u8..4, any::<bool>()), 0..200),
        order in prop::collection::vec(0_usize..3, 0..100),
        flaky in prop::collection::vec(0_u8..3, 0..40),
        slow in any::<bool>(),
    ) {
        let mut sim = sim();
        sim.flaky = flaky.into();
        sim.slow = slow;
        sim.put(Kind::Service, service("web"));
        sim.order = order.into();
        let mut alive = std::collections::BTreeMap::new();
        for (index, what, work) in steps {
            let name = format!("p{index:03}");
            if what == 3 {
                sim.remove(Kind::Pod, "default", &name);
                alive.remove(&name);
            } else {
                sim.put(Kind::Pod, running(&name, &format!("10.244.0.{index}"), what == 0));
                alive.insert(name, what == 0);
            }
            if work {
                sim.deliver();
                sim.work();
            }
        }
        sim.settle();
        sim.pass(400);
        let mut found: Vec<(String, bool)> = endpoints(&sim)
            .iter()
            .map(|it| (it["targetRef"]["name"].as_str().unwrap().to_owned(), it["conditions"]["ready"].as_bool().unwrap()))
            .collect();
        found.sort();
        prop_assert_eq!(found, alive.into_iter().collect::<Vec<_>>());
        for slice in sim.list(Kind::EndpointSlice) {
            prop_assert!(slice["endpoints"].as_array().unwrap().len() <= 100);
        }
    }
}
