use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

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
                "name": format!("p{p}"), "port": 80 + p, "nodePort": if variant == 2 { 30000 + u16::from(i) } else { 0 },
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
