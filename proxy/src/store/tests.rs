use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

mod t15;

const SERVICES: u8 = 4;
const SLICES: u8 = 6;

/// Service `i` in one of several states.
fn service(i: u8, variant: u8) -> Arc<Service> {
    let json = serde_json::json!({
        "metadata": {"namespace": "ns", "name": format!("s{i}"),
            "labels": if variant == 5 { serde_json::json!({LABEL_OTHER_PROXY: "x"}) } else { serde_json::json!({}) }},
        "spec": {
            "type": if variant == 4 { "ExternalName" } else { "NodePort" },
            "clusterIP": format!("172.30.0.{i}"),
            "clusterIPs": [format!("172.30.0.{i}"), format!("fd00::{i}")],
            "internalTrafficPolicy": if variant == 3 { "Local" } else { "Cluster" },
            "ports": (0..=variant.min(2)).map(|p| serde_json::json!({
                "name": format!("p{p}"), "port": 80 + p, "nodePort": if variant == 2 { 30000 + u16::from(i % 2) } else { 0 },
                "protocol": if p == 1 { "UDP" } else { "TCP" },
            })).collect::<Vec<_>>(),
        },
    });
    Arc::new(serde_json::from_value(json).unwrap())
}

/// Slice `i` in one of several states, which may belong to different services.
fn slice(i: u8, variant: u8) -> Arc<EndpointSlice> {
    let json = serde_json::json!({
        "metadata": {"namespace": "ns", "name": format!("e{i}"),
            "labels": {"kubernetes.io/service-name": format!("s{}", (i + variant) % SERVICES)}},
        "addressType": if i.is_multiple_of(2) { "IPv4" } else { "IPv6" },
        "ports": [{"name": "p0", "port": 8080}, {"name": "p1", "port": 8081, "protocol": "UDP"}],
        "endpoints": (0..variant).map(|e| serde_json::json!({
            // Different slices share endpoints.
            "addresses": [if i.is_multiple_of(2) { format!("10.0.0.{e}") } else { format!("fd00:1::{e}") }],
            "nodeName": if e == 0 { "node" } else { "other" },
            "conditions": {"ready": e != 2 || i < 2, "terminating": e == 2},
        })).collect::<Vec<_>>(),
    });
    Arc::new(serde_json::from_value(json).unwrap())
}

fn store() -> Store {
    let view = NodeView {
        name: "node".into(),
        ..NodeView::default()
    };
    Store::new(view, BTreeMap::new())
}

type World = (BTreeMap<u8, u8>, BTreeMap<u8, u8>);

/// A list of each kind.
fn relist(store: &mut Store, (services, slices): &World) {
    store.apply(Input::Service(Event::Init));
    for (i, variant) in services {
        store.apply(Input::Service(Event::InitApply(service(*i, *variant))));
    }
    store.apply(Input::Slice(Event::Init));
    for (i, variant) in slices.iter().rev() {
        store.apply(Input::Slice(Event::InitApply(slice(*i, *variant))));
    }
    store.apply(Input::Slice(Event::InitDone));
    store.apply(Input::Service(Event::InitDone));
}

/// What the changes that came out add up to.
fn add(sum: &mut Snapshot, changes: &Changes) {
    for family in Family::BOTH {
        for change in changes.of(family) {
            let known = match &change.new {
                Some(new) => sum.of_mut(family).insert(change.name.clone(), new.clone()),
                None => sum.of_mut(family).remove(&change.name),
            };
            assert_eq!(known, change.old);
        }
    }
}

proptest! {
    #[test]
    fn any_way_to_a_state_gives_the_same_snapshot(
        steps in prop::collection::vec((0..5_u8, 0..SLICES, 0..6_u8, any::<bool>()), 1..60)
    ) {
        let mut world = World::default();
        let mut tested = store();
        let mut sum = Snapshot::default();
        relist(&mut tested, &world);
        for (what, i, variant, sync) in steps {
            let s = i % SERVICES;
            match what {
                0 => {
                    world.0.insert(s, variant);
                    tested.apply(Input::Service(Event::Apply(service(s, variant))));
                }
                1 => {
                    world.1.insert(i, variant);
                    tested.apply(Input::Slice(Event::Apply(slice(i, variant))));
                    tested.apply(Input::Slice(Event::Apply(slice(i, variant))));
                }
                2 => {
                    world.0.remove(&s);
                    tested.apply(Input::Service(Event::Delete(service(s, variant))));
                }
                3 => {
                    world.1.remove(&i);
                    tested.apply(Input::Slice(Event::Delete(slice(i, variant))));
                }
                _ => relist(&mut tested, &world),
            }
            if sync {
                add(&mut sum, &tested.take_changes());
            }
        }
        add(&mut sum, &tested.take_changes());
        let mut fresh = store();
        relist(&mut fresh, &world);
        fresh.take_changes();
        prop_assert_eq!(tested.snapshot(), fresh.snapshot());
        prop_assert_eq!(&sum, fresh.snapshot());
        prop_assert!(tested.take_changes().is_empty());
    }
}

#[test]
fn nothing_is_ready_before_both_lists_are_complete() {
    let mut store = store();
    store.apply(Input::Service(Event::Init));
    store.apply(Input::Service(Event::InitDone));
    assert!(!store.ready());
    store.apply(Input::Slice(Event::Init));
    store.apply(Input::Slice(Event::InitApply(slice(0, 1))));
    assert!(!store.ready());
    store.apply(Input::Slice(Event::InitDone));
    assert!(store.ready());
}

#[test]
fn a_list_under_way_hides_nothing() {
    let mut store = store();
    relist(&mut store, &([(0, 0)].into(), BTreeMap::new()));
    store.take_changes();
    store.apply(Input::Service(Event::Init));
    assert!(store.take_changes().is_empty());
    assert_eq!(store.snapshot().v4.len(), 1);
    store.apply(Input::Service(Event::InitDone));
    assert_eq!(store.take_changes().v4.len(), 1);
    assert!(store.snapshot().v4.is_empty());
}

#[test]
fn an_endpoint_changes_its_port_only() {
    let mut store = store();
    relist(&mut store, &([(0, 2), (1, 2)].into(), [(0, 1)].into()));
    assert_eq!(store.take_changes().v4.len(), 6);
    store.apply(Input::Slice(Event::Apply(slice(0, 5))));
    // In both states the slice belongs to service 1, and has ports for two of its three.
    let changed = store.take_changes().v4;
    let changed: Vec<String> = changed
        .iter()
        .map(|change| change.name.to_string())
        .collect();
    assert_eq!(changed, ["ns/s1:p0", "ns/s1:p1"]);
}

fn store_of(objects: &str) -> Store {
    let (objects, complaints) = crate::manifests::parse_documents(objects);
    assert_eq!(complaints, Vec::<String>::new());
    let mut store = store();
    store.apply(Input::Service(Event::Init));
    store.apply(Input::Slice(Event::Init));
    for object in objects {
        store.apply(object.listed());
    }
    store.apply(Input::Slice(Event::InitDone));
    store.apply(Input::Service(Event::InitDone));
    store.take_changes();
    store
}

/// What a service port has in IPv4: cluster IP, external IPs, balancer IPs, node port, endpoints.
fn shown(store: &Store, port: &str) -> String {
    let found = store
        .snapshot()
        .v4
        .iter()
        .find(|(name, _)| name.to_string() == port);
    let Some((_, d)) = found else {
        return "nothing".to_owned();
    };
    let mut parts: Vec<String> = d
        .cluster_ip
        .iter()
        .map(|ip| format!("cluster {ip}"))
        .collect();
    parts.extend(d.external_ips.iter().map(|ip| format!("external {ip}")));
    parts.extend(d.balancer_ips.iter().map(|ip| format!("balancer {ip}")));
    parts.extend(d.node_port.map(|port| format!("node port {port}")));
    parts.extend(d.targets.iter().map(|t| format!("-> {}:{}", t.ip, t.port)));
    parts.join(", ")
}

/// A row: objects, what is complained of, and what is served all the same.
#[track_caller]
fn check_malformed(objects: &str, problems: &[&str], served: &[(&str, &str)]) {
    let good = "kind: Service\nmetadata: {name: good, namespace: ns}\nspec: {clusterIP: 172.30.9.9, ports: [{port: 80}]}\n---\n";
    let mut store = store_of(&format!("{good}{objects}"));
    let news: Vec<String> = store.take_news().iter().map(ToString::to_string).collect();
    assert_eq!(news, problems);
    assert_eq!(shown(&store, "ns/good"), "cluster 172.30.9.9");
    for (port, expect) in served {
        assert_eq!(shown(&store, port), *expect, "{port}");
    }
    // Told once as long as it lasts.
    assert_eq!(store.take_news(), []);
}

#[test]
fn malformed_addresses() {
    check_malformed(
        "kind: Service\nmetadata: {name: a, namespace: ns}\nspec: {clusterIP: 172.30.0.1, externalIPs: [192.0.2.300, 192.0.2.7, ''], ports: [{port: 80}]}\nstatus: {loadBalancer: {ingress: [{ip: x}, {ip: 192.0.2.8}]}}",
        &[
            "Service ns/a: spec.externalIPs[0]: \"192.0.2.300\" is no address",
            "Service ns/a: spec.externalIPs[2]: \"\" is no address",
            "Service ns/a: status.loadBalancer.ingress[0].ip: \"x\" is no address",
        ],
        &[(
            "ns/a",
            "cluster 172.30.0.1, external 192.0.2.7, balancer 192.0.2.8",
        )],
    );
    check_malformed(
        "kind: Service\nmetadata: {name: a, namespace: ns}\nspec: {clusterIP: nonsense, ports: [{port: 80}]}",
        &["Service ns/a: spec.clusterIP[0]: \"nonsense\" is no address"],
        &[("ns/a", "nothing")],
    );
    check_malformed(
        "kind: Service\nmetadata: {name: a, namespace: ns}\nspec: {clusterIP: 172.30.0.1, ports: [{port: 80}]}\n---\nkind: EndpointSlice\nmetadata: {name: a-1, namespace: ns, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: '', port: 8080}]\nendpoints: [{addresses: [10.0.0.256]}, {addresses: ['fd00::1']}, {addresses: []}, {addresses: [10.0.0.1]}]",
        &[
            "EndpointSlice ns/a-1: endpoints[0].addresses[0]: \"10.0.0.256\" is no IPv4 address",
            "EndpointSlice ns/a-1: endpoints[1].addresses[0]: \"fd00::1\" is no IPv4 address",
        ],
        &[("ns/a", "cluster 172.30.0.1, -> 10.0.0.1:8080")],
    );
    check_malformed(
        "kind: EndpointSlice\nmetadata: {name: a-1, namespace: ns, labels: {kubernetes.io/service-name: good}}\naddressType: IPX\nports: [{name: '', port: 8080}]\nendpoints: [{addresses: [10.0.0.1]}]",
        &["EndpointSlice ns/a-1: addressType: \"IPX\" is unknown"],
        &[],
    );
}

#[test]
fn malformed_ports_and_protocols() {
    check_malformed(
        "kind: Service\nmetadata: {name: a, namespace: ns}\nspec: {type: NodePort, clusterIP: 172.30.0.1, ports: [{name: zero, port: 0}, {name: high, port: 65536}, {name: minus, port: -1}, {name: ok, port: 80, nodePort: 99999}]}",
        &[
            "Service ns/a: spec.ports[0].port: 0 is not within 1..=65535",
            "Service ns/a: spec.ports[1].port: 65536 is not within 1..=65535",
            "Service ns/a: spec.ports[2].port: -1 is not within 1..=65535",
            "Service ns/a: spec.ports[3].nodePort: 99999 is not within 1..=65535",
        ],
        &[("ns/a:ok", "cluster 172.30.0.1"), ("ns/a:zero", "nothing")],
    );
    check_malformed(
        "kind: Service\nmetadata: {name: a, namespace: ns}\nspec: {clusterIP: 172.30.0.1, ports: [{name: x, port: 80, protocol: QUIC}, {name: w, port: 81}]}\n---\nkind: EndpointSlice\nmetadata: {name: a-1, namespace: ns, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: w, port: 70000}, {name: w, port: 8081, protocol: TCP}, {name: w, port: 1, protocol: DCCP}]\nendpoints: [{addresses: [10.0.0.1]}]",
        &[
            "Service ns/a: spec.ports[0].protocol: \"QUIC\" is unknown",
            "EndpointSlice ns/a-1: ports[0].port: 70000 is not within 1..=65535",
            "EndpointSlice ns/a-1: ports[2].protocol: \"DCCP\" is unknown",
        ],
        &[
            ("ns/a:x", "nothing"),
            ("ns/a:w", "cluster 172.30.0.1, -> 10.0.0.1:8081"),
        ],
    );
}

#[test]
fn the_same_port_twice() {
    check_malformed(
        "kind: Service\nmetadata: {name: a, namespace: ns}\nspec: {clusterIP: 172.30.0.1, ports: [{name: x, port: 80}, {name: x, port: 81}]}",
        &["Service ns/a: spec.ports[1].name: \"x\" (tcp) is there twice; the first counts"],
        &[("ns/a:x", "cluster 172.30.0.1")],
    );
    // Other names, the same number: the first in the list has the address.
    check_malformed(
        "kind: Service\nmetadata: {name: a, namespace: ns}\nspec: {type: NodePort, clusterIP: 172.30.0.1, ports: [{name: w, port: 80, nodePort: 30080}, {name: x, port: 80, nodePort: 30080}, {name: u, port: 80, protocol: UDP}]}",
        &[
            "Service ns/a: spec.clusterIPs: 172.30.0.1:80/tcp is ns/a:w's already",
            "Service ns/a: spec.ports[1].nodePort: IPv4 port 30080/tcp is ns/a:w's already",
        ],
        &[
            ("ns/a:w", "cluster 172.30.0.1, node port 30080"),
            ("ns/a:x", ""),
            ("ns/a:u", "cluster 172.30.0.1"),
        ],
    );
}

#[test]
fn what_two_services_want_the_older_one_has() {
    let two = "kind: Service\nmetadata: {name: a, namespace: ns, creationTimestamp: '2026-02-01T00:00:00Z'}\nspec: {type: NodePort, clusterIP: 172.30.0.1, externalIPs: [192.0.2.1], ports: [{port: 80, nodePort: 30080}]}\n---\nkind: Service\nmetadata: {name: b, namespace: ns, creationTimestamp: '2026-01-01T00:00:00Z'}\nspec: {type: NodePort, clusterIP: 172.30.0.1, externalIPs: [192.0.2.1, 192.0.2.2], ports: [{port: 80, nodePort: 30080}]}";
    check_malformed(
        two,
        &[
            "Service ns/a: spec.clusterIPs: 172.30.0.1:80/tcp is ns/b's already",
            "Service ns/a: spec.externalIPs: 192.0.2.1:80/tcp is ns/b's already",
            "Service ns/a: spec.ports[0].nodePort: IPv4 port 30080/tcp is ns/b's already",
        ],
        &[
            ("ns/a", ""),
            (
                "ns/b",
                "cluster 172.30.0.1, external 192.0.2.1, external 192.0.2.2, node port 30080",
            ),
        ],
    );
    // When the older one goes, the other one has it all.
    let mut store = store_of(two);
    let (objects, _) = crate::manifests::parse_documents(two);
    let older = objects.into_iter().nth(1).unwrap();
    store.apply(older.clone().deleted());
    store.take_changes();
    let all = "cluster 172.30.0.1, external 192.0.2.1, node port 30080";
    assert_eq!(shown(&store, "ns/a"), all);
    store.take_news();
    store.apply(older.applied());
    store.take_changes();
    assert_eq!(shown(&store, "ns/a"), "");
    assert_eq!(store.take_news().len(), 3);
}

#[test]
fn an_address_of_several_kinds_is_one_address() {
    check_malformed(
        "kind: Service\nmetadata: {name: a, namespace: ns}\nspec: {type: LoadBalancer, clusterIP: 172.30.0.1, externalIPs: [172.30.0.1, 192.0.2.1], ports: [{port: 80}]}\nstatus: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {ip: 192.0.2.2}]}}",
        &[],
        &[(
            "ns/a",
            "cluster 172.30.0.1, external 192.0.2.1, balancer 192.0.2.2",
        )],
    );
}

#[test]
fn very_long_names_are_served_and_cut_in_messages() {
    let long = "x".repeat(10_000);
    let mut store = store_of(&format!(
        "kind: Service\nmetadata: {{name: {long}, namespace: ns}}\nspec: {{clusterIP: 172.30.0.1, externalIPs: [{long}], ports: [{{name: {long}, port: 80, protocol: TCP}}]}}"
    ));
    assert_eq!(
        shown(&store, &format!("ns/{long}:{long}")),
        "cluster 172.30.0.1"
    );
    let told = store.take_news().remove(0).to_string();
    assert!(told.len() < 400 && told.contains("..."), "{told}");
}

#[test]
fn what_the_node_says() {
    let mut store = store();
    let node = |json: serde_json::Value| Arc::new(serde_json::from_value::<Node>(json).unwrap());
    let first = node(serde_json::json!({
        "metadata": {"name": "node", "labels": {"topology.kubernetes.io/zone": "za"}},
        "spec": {"podCIDRs": ["10.1.0.0/24", "fd00::/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "node"},
            {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "InternalIP", "address": "192.168.0.2"},
            {"type": "InternalIP", "address": "192.168.0.3"},
        ]},
    }));
    let other = node(
        serde_json::json!({"metadata": {"name": "other"}, "spec": {"podCIDR": "10.2.0.0/24"}}),
    );
    store.apply(Input::Node(Event::Apply(first.clone())));
    store.apply(Input::Node(Event::Apply(other)));
    let facts = store.facts().clone();
    assert_eq!(facts.zone.as_deref(), Some("za"));
    assert_eq!(store.node().zone.as_deref(), Some("za"));
    assert_eq!(
        facts.ips,
        ["192.168.0.2".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(facts.pod_networks.len(), 2);
    assert!(!facts.goes);
    let tainted = node(serde_json::json!({
        "metadata": {"name": "node"},
        "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
    }));
    store.apply(Input::Node(Event::Apply(tainted)));
    assert!(store.facts().goes && store.node().zone.is_none());
    store.apply(Input::Node(Event::Apply(first.clone())));
    assert!(!store.facts().goes);
    store.apply(Input::Node(Event::Delete(first)));
    assert!(store.facts().goes && store.facts().zone.is_some());
}

#[test]
fn networks_of_cluster_ips_of_all_objects() {
    let mut store = store();
    let text = "kind: ServiceCIDR\nmetadata: {name: b}\nspec: {cidrs: [10.97.0.0/16, x]}\n---\nkind: ServiceCIDR\nmetadata: {name: a}\nspec: {cidrs: [10.96.0.0/16, 'fd00:96::/112']}";
    let (objects, _) = crate::manifests::parse_documents(text);
    for object in objects.clone() {
        store.apply(object.applied());
    }
    let shown = |store: &Store| {
        let all = store.service_cidrs();
        all.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        shown(&store),
        ["10.96.0.0/16", "10.97.0.0/16", "fd00:96::/112"]
    );
    let news: Vec<String> = store.take_news().iter().map(ToString::to_string).collect();
    assert_eq!(news.len(), 1);
    assert!(
        news[0].starts_with("ServiceCIDR b: spec.cidrs[1]: "),
        "{news:?}"
    );
    store.apply(objects[1].clone().deleted());
    assert_eq!(shown(&store), ["10.97.0.0/16"]);
}

#[test]
fn trigger_times_of_slices_that_changed() {
    let mut store = store();
    relist(&mut store, &([(0, 0)].into(), BTreeMap::new()));
    let with_trigger = |variant: u8, time: &str| {
        let mut slice = EndpointSlice::clone(&slice(0, variant));
        slice
            .metadata
            .annotations
            .insert(ANNOTATION_TRIGGER.to_owned(), time.to_owned());
        Arc::new(slice)
    };
    let apply = |store: &mut Store, variant, time| {
        store.apply(Input::Slice(Event::Apply(with_trigger(variant, time))));
    };
    apply(&mut store, 1, "2026-01-01T00:00:00.5Z");
    // The same endpoints again: nothing to program.
    apply(&mut store, 1, "2026-01-01T00:00:01Z");
    apply(&mut store, 2, "2026-01-01T00:00:02Z");
    apply(&mut store, 3, "nonsense");
    // A slice that goes has the time of its last change, which is not when it went.
    store.apply(Input::Slice(Event::Delete(with_trigger(
        3,
        "2026-01-01T00:00:03Z",
    ))));
    let times = store.take_triggers();
    let times: Vec<String> = times[&Family::V4].iter().map(ToString::to_string).collect();
    assert_eq!(times, ["2026-01-01T00:00:00.5Z", "2026-01-01T00:00:02Z"]);
    let counts = store.take_counts();
    assert_eq!(counts[&Family::V4].endpoints, 4);
    assert_eq!(counts[&Family::V4].services, 1);
}

#[test]
fn local_ready_endpoints_of_a_service_are_distinct_addresses() {
    let store = store_of(
        "kind: Service\nmetadata: {name: a, namespace: ns}\nspec: {clusterIP: 172.30.0.1, ports: [{name: x, port: 80}, {name: w, port: 81}]}\n---\nkind: EndpointSlice\nmetadata: {name: a-1, namespace: ns, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: x, port: 8080}, {name: w, port: 8081}]\nendpoints: [{addresses: [10.0.0.1], nodeName: node}, {addresses: [10.0.0.2], nodeName: node, conditions: {ready: false, serving: true, terminating: true}}, {addresses: [10.0.0.3], nodeName: other}]\n---\nkind: EndpointSlice\nmetadata: {name: a-2, namespace: ns, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: w, port: 9081}]\nendpoints: [{addresses: [10.0.0.1], nodeName: node}, {addresses: [10.0.0.4], nodeName: node}]",
    );
    let service = ServiceName::new("ns", "a");
    assert_eq!(store.local_ready(&service, Family::V4), 2);
    assert_eq!(store.local_ready(&service, Family::V6), 0);
}
