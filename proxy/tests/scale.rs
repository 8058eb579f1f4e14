//! Large clusters through store, decisions and plan: what comes out is counted, nothing is timed.

#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::cidr::Family;
use api::core::Service;
use api::discovery::EndpointSlice;
use api::watch::Event;
use proxy::backend::iptables::desired::Desired;
use proxy::backend::iptables::rule::Table;
use proxy::backend::{NodePortScope, Settings, ebpf, ipvs, nftables};
use proxy::model::NodeView;
use proxy::store::{Input, PortChange, Store};
use serde_json::json;

/// Endpoints of one slice, as the controller makes them.
const SLICE: usize = 100;

fn service(i: usize) -> Arc<Service> {
    let ip = format!("10.96.{}.{}", i / 256, i % 256);
    let json = json!({ "metadata": { "namespace": "ns", "name": format!("s{i}") },
        "spec": { "clusterIP": ip, "clusterIPs": [ip], "ports": [{ "port": 80 }] } });
    Arc::new(serde_json::from_value(json).unwrap())
}

/// Endpoints `from..to` of service `i`.
fn slice(i: usize, number: usize, from: usize, to: usize) -> Arc<EndpointSlice> {
    let endpoints: Vec<_> = (from..to)
        .map(|e| json!({ "addresses": [format!("10.{}.{}.{}", 128 + i / 256, i % 256, e % SLICE + 1)], "nodeName": "other" }))
        .collect();
    let json = json!({ "addressType": "IPv4", "endpoints": endpoints,
        "metadata": { "namespace": "ns", "name": format!("s{i}-{number}"), "labels": { "kubernetes.io/service-name": format!("s{i}") } },
        "ports": [{ "name": "", "port": 8080 + number }] });
    Arc::new(serde_json::from_value(json).unwrap())
}

fn store(services: usize, endpoints: usize) -> Store {
    let view = NodeView {
        name: "node".into(),
        ..NodeView::default()
    };
    let mut store = Store::new(view, BTreeMap::new());
    store.apply(Input::Service(Event::Init));
    store.apply(Input::Slice(Event::Init));
    for i in 0..services {
        store.apply(Input::Service(Event::InitApply(service(i))));
        for (number, from) in (0..endpoints).step_by(SLICE).enumerate() {
            let slice = slice(i, number, from, endpoints.min(from + SLICE));
            store.apply(Input::Slice(Event::InitApply(slice)));
        }
    }
    store.apply(Input::Service(Event::InitDone));
    store.apply(Input::Slice(Event::InitDone));
    store
}

fn settings() -> Settings {
    Settings {
        family: Family::V4,
        mark: 0x4000,
        detect_local: None,
        node_ports: NodePortScope::All,
        localhost_node_ports: false,
        random_fully: true,
        drop_invalid: true,
        dns_ips: Vec::new(),
        service_cidrs: Vec::new(),
    }
}

/// The plans of the modes whose cost does not follow the size of a table.
struct Others {
    nftables: nftables::desired::Desired,
    ebpf: (ebpf::desired::Desired, ebpf::diff::Known),
    ipvs: (ipvs::desired::Desired, ipvs::diff::Known),
}

impl Others {
    /// Of all services, whose objects are counted.
    fn new(store: &Store, services: usize, endpoints: usize) -> Self {
        let decisions = store.snapshot().of(Family::V4);
        let nftables = nftables::desired::Desired::with(settings(), decisions);
        // Each endpoint's slot, and its address, which slices share; what a service's address leads to,
        // twice, and the address as such; one chain that chooses.
        let elements = nftables.contents().len();
        let each = endpoints + endpoints.min(SLICE) + 3;
        assert_eq!(elements, services * each + 1);

        let wanted = ebpf::desired::Desired::with(settings(), decisions);
        let mut known = ebpf::diff::Known::default();
        let entries = ebpf::diff::full(&wanted, &mut known).puts();
        assert_eq!(entries, services * (endpoints + 2));
        let ebpf = (wanted, known);

        let context = ipvs::plan::Context {
            settings: settings(),
            options: ipvs::Options::default(),
            node_ips: [[192, 168, 0, 2].into()].into(),
        };
        let wanted = ipvs::desired::Desired::with(context, decisions);
        let mut known = ipvs::diff::Known::default();
        let change = ipvs::diff::full(&wanted, &known);
        assert_eq!(change.raise.len(), services * (endpoints + 1));
        ipvs::diff::applied(&mut known, &wanted, &change);
        let mut ipvs = (wanted, known);
        ipvs.0.take_touched();
        let mut others = Self {
            nftables,
            ebpf,
            ipvs,
        };
        others.ebpf.0.take_touched();
        others
    }

    /// One endpoint less: what each mode writes.
    fn check_change(&mut self, change: &PortChange) {
        self.nftables.set(&change.name, change.new.as_deref());
        let written = self.nftables.take_change().len();
        assert!(written <= 6, "nftables: {written} elements");

        let (wanted, known) = &mut self.ebpf;
        wanted.set(&change.name, change.new.as_ref());
        let (names, keys) = wanted.take_touched();
        let step = ebpf::diff::touched(wanted, known, &names, &keys);
        let written = step.puts() + step.deletes();
        assert!(written <= 4, "ebpf: {written} entries");

        let (wanted, known) = &mut self.ipvs;
        wanted.set(&change.name, change.new.as_ref());
        let touched = wanted.take_touched();
        let step = ipvs::diff::touched_only(wanted, known, &touched, &BTreeSet::new());
        let written = step.written() + step.deleted();
        assert_eq!(written, 1, "ipvs: {step:?}");
    }
}

#[track_caller]
fn check(services: usize, endpoints: usize) {
    let mut store = store(services, endpoints);
    let changes = store.take_changes();
    assert_eq!((changes.v4.len(), changes.v6.len()), (services, 0));
    let targets = |store: &Store| -> usize {
        let all = store.snapshot().v4.values();
        all.map(|decision| decision.targets.len()).sum()
    };
    assert_eq!(targets(&store), services * endpoints);

    let mut desired = Desired::with(settings(), store.snapshot().of(Family::V4));
    let mut others = Others::new(&store, services, endpoints);
    desired.take_touched();
    let chains = desired.chains();
    let rules: usize = chains.values().map(Vec::len).sum();
    // A rule for each endpoint, two for a service (its chain's way in, perhaps its own mark), and
    // the tree's branches.
    let least = services * (endpoints + 1);
    assert!(
        (least..least + services + 200).contains(&rules),
        "{rules} rules"
    );
    let own = chains
        .keys()
        .filter(|c| c.table == Table::Nat && c.name.as_str().starts_with("KUBE-SVC-"));
    assert_eq!(own.count(), services);

    // One endpoint less is one port and one chain.
    let last = endpoints.div_ceil(SLICE) - 1;
    let shorter = slice(services / 2, last, last * SLICE, endpoints - 1);
    store.apply(Input::Slice(Event::Apply(shorter)));
    let changes = store.take_changes();
    assert_eq!(changes.v4.len(), 1);
    assert_eq!(targets(&store), services * endpoints - 1);
    let change = &changes.v4[0];
    desired.set(&change.name, change.new.as_ref());
    let touched = desired.take_touched();
    assert_eq!(touched.len(), 1);
    let rules: usize = touched.values().flatten().map(Vec::len).sum();
    assert!(rules <= endpoints, "{rules} rules");
    others.check_change(change);

    // The same list again changes nothing.
    store.apply(Input::Service(Event::Init));
    for i in 0..services {
        store.apply(Input::Service(Event::InitApply(service(i))));
    }
    store.apply(Input::Service(Event::InitDone));
    assert_eq!(store.take_changes().len(), 0);
}

#[test]
fn many_services() {
    check(10_000, 10);
}

#[test]
fn many_endpoints() {
    check(50, 5000);
}
