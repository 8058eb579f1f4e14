//! A table in memory, as strict as the kernel's; small clusters by chance; and what holds for all of
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::networking::NetworkPolicy;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::decide::{Packet, allows};
use crate::diff;
use crate::model::Model;
use crate::nft::{Element, Expr, Value as Data, Verdict};
use crate::objects::{ChainPlan, Changes, Desired, Elements, Seen, sort};
use crate::parse::{self, Key, Labels, Pod};
use crate::plan::{self, names};
use crate::trace::{Circumstances, Outcome, trace};

mod unknown;

/// The kernel's table.
#[derive(Debug, Clone, Default, PartialEq)]
struct Fake {
    sets: BTreeSet<String>,
    chains: BTreeMap<String, ChainPlan>,
    elements: BTreeMap<(String, Vec<u8>), Element>,
}

impl Fake {
    /// Applies as the kernel would; panics where it would refuse.
    fn apply(&mut self, changes: &Changes) {
        if changes.rebuild {
            *self = Self::default();
        }
        for set in &changes.add_sets {
            assert!(
                self.sets.insert(set.name.clone()),
                "set {} is there",
                set.name
            );
        }
        for chain in &changes.add_chains {
            let plan = ChainPlan {
                chain: chain.clone(),
                rules: Vec::new(),
            };
            assert_eq!(self.chains.insert(chain.name.clone(), plan), None);
        }
        for name in &changes.delete_chains {
            self.chains.get_mut(name).unwrap().rules.clear();
        }
        for (set, element) in &changes.delete_elements {
            let key = (set.to_string(), element.key.clone());
            assert!(
                self.elements.remove(&key).is_some(),
                "no {element:?} in {set}"
            );
        }
        for (set, element) in &changes.add_elements {
            assert!(self.sets.contains(&**set), "no set {set}");
            let key = (set.to_string(), element.key.clone());
            assert_eq!(self.elements.insert(key, element.clone()), None);
        }
        for (name, rules) in &changes.rules {
            self.chains.get_mut(name).unwrap().rules.clone_from(rules);
        }
        for name in &changes.delete_chains {
            self.chains.remove(name).unwrap();
        }
        for name in &changes.delete_sets {
            assert!(self.sets.remove(name));
            self.elements.retain(|(set, _), _| set != name);
        }
        self.check_references();
    }

    fn check_references(&self) {
        let goes = |verdict: &Verdict| match verdict {
            Verdict::Jump(to) | Verdict::Goto(to) => {
                assert!(self.chains.contains_key(to), "no chain {to}");
            }
            _ => {}
        };
        for expr in self
            .chains
            .values()
            .flat_map(|c| &c.rules)
            .flat_map(|r| &r.expressions)
        {
            match expr {
                Expr::Verdict(verdict) => goes(verdict),
                Expr::Lookup { set: name, .. }
                | Expr::Map { map: name, .. }
                | Expr::VerdictMap { map: name, .. } => assert!(self.sets.contains(name)),
                _ => {}
            }
        }
        for element in self.elements.values() {
            if let Some(Data::Verdict(verdict)) = &element.value {
                goes(verdict);
            }
        }
    }

    fn seen(&self) -> Seen {
        let mut elements: Elements = self
            .elements
            .iter()
            .map(|((set, _), element)| (set.as_str().into(), element.clone()))
            .collect();
        sort(&mut elements);
        let rules = |plan: &ChainPlan| crate::objects::comments(&plan.rules);
        Seen {
            sets: self.sets.iter().map(|name| (name.clone(), true)).collect(),
            chains: self
                .chains
                .iter()
                .map(|(name, plan)| (name.clone(), rules(plan)))
                .collect(),
            elements,
        }
    }
}

/// One change of the cluster.
#[derive(Debug, Clone)]
enum Event {
    Pod(Key, Option<Pod>),
    Namespace(String, Option<Labels>),
    Policy(Key, Option<Value>),
}

fn take(model: &mut Model, event: &Event) {
    match event.clone() {
        Event::Pod(key, pod) => model.set_pod(&key, pod),
        Event::Namespace(name, labels) => model.set_namespace(&name, labels),
        Event::Policy(key, spec) => {
            let parsed = spec.map(|spec| {
                let object = json!({"metadata": {"namespace": key.namespace, "name": key.name},
                    "spec": spec});
                let object: NetworkPolicy = serde_json::from_value(object).unwrap();
                parse::policy(&object).0
            });
            model.set_policy(&key, parsed);
        }
    }
}

fn labels() -> impl Strategy<Value = Labels> {
    let label = prop_oneof![Just(("a", "1")), Just(("a", "2")), Just(("b", "1"))];
    proptest::collection::vec(label, 0..2).prop_map(|labels| {
        let owned = labels
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
        owned.collect()
    })
}

fn namespace() -> impl Strategy<Value = String> {
    prop_oneof![Just("x".to_owned()), Just("y".to_owned())]
}

/// Addresses of a few pods: two may claim the same, as for a moment in life.
fn ips(n: u8) -> BTreeSet<IpAddr> {
    [format!("10.0.0.{n}"), format!("fd00::{n}")]
        .iter()
        .map(|ip| ip.parse().unwrap())
        .collect()
}

fn pod_event() -> impl Strategy<Value = Event> {
    let pod = (
        labels(),
        0u8..3,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    (namespace(), 0u8..3, proptest::option::weighted(0.8, pod)).prop_map(|(namespace, n, pod)| {
        let pod = pod.map(|(labels, at, here, has_ip, named, leaves)| Pod {
            labels,
            node: if here { "n1" } else { "n2" }.to_owned(),
            ips: if has_ip {
                ips(n + 2 * at)
            } else {
                BTreeSet::new()
            },
            ports: if named {
                let port = parse::NamedPort {
                    protocol: parse::Protocol::Tcp,
                    name: "web".to_owned(),
                    port: 80 + u16::from(at),
                };
                [port].into()
            } else {
                BTreeSet::new()
            },
            leaves,
            made: format!("t{at}"),
        });
        Event::Pod(Key::new(namespace, format!("p{n}")), pod)
    })
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"matchLabels": {"a": "1"}})),
        Just(json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]})),
        Just(json!({"matchExpressions": [{"key": "b", "operator": "Exists"}]})),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|s| json!({"podSelector": s})),
        selector().prop_map(|s| json!({"namespaceSelector": s})),
        (selector(), selector())
            .prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        Just(json!({"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.2/31"]}})),
        Just(json!({"ipBlock": {"cidr": "::/0"}})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"port": 80})),
        Just(json!({"port": 81, "endPort": 90})),
        Just(json!({"protocol": "UDP"})),
        Just(json!({"protocol": "SCTP", "port": 80})),
        Just(json!({"port": 443})),
        Just(json!({"port": "web"})),
    ]
}

fn policy_event() -> impl Strategy<Value = Event> {
    let rule = |peers: &'static str| {
        let parts = (
            proptest::collection::vec(peer(), 0..3),
            proptest::collection::vec(port(), 0..3),
        );
        parts.prop_map(move |(p, ports)| json!({peers: p, "ports": ports}))
    };
    let types = prop_oneof![
        Just(json!([])),
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"])),
    ];
    let spec = (
        selector(),
        types,
        proptest::collection::vec(rule("from"), 0..3),
        proptest::collection::vec(rule("to"), 0..3),
    );
    let spec = spec.prop_map(|(selector, types, ingress, egress)| {
        json!({"podSelector": selector, "policyTypes": types, "ingress": ingress, "egress": egress})
    });
    (namespace(), 0u8..3, proptest::option::weighted(0.8, spec))
        .prop_map(|(at, n, spec)| Event::Policy(Key::new(at, format!("np{n}")), spec))
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => pod_event(),
        1 => (namespace(), proptest::option::weighted(0.9, labels()))
            .prop_map(|(name, labels)| Event::Namespace(name, labels)),
        3 => policy_event(),
    ]
}

fn packets() -> Vec<Packet> {
    let mut all = Vec::new();
    for (from, to) in (0..9).flat_map(|a| (0..9).map(move |b| (a, b))) {
        for (source, destination) in [
            (format!("10.0.0.{from}"), format!("10.0.0.{to}")),
            (format!("fd00::{from}"), format!("fd00::{to}")),
        ] {
            for (protocol, port) in [(6, 80), (6, 81), (17, 80), (132, 80), (1, 0)] {
                all.push(Packet {
                    source: source.parse().unwrap(),
                    destination: destination.parse().unwrap(),
                    protocol,
                    port,
                });
            }
        }
    }
    all
}

/// A plan kept up to date as `enforcer` does: by addresses where that is enough.
fn follow(model: &mut Model, kept: &mut Desired, asked: &mut plan::Asked) {
    let dirty = model.take_dirty();
    if dirty.whole {
        *asked = plan::asked(model);
        *kept = plan::plan(model);
        return;
    }
    for ip in dirty.ips {
        let elements = plan::address(model, asked, ip);
        if elements.is_empty() {
            kept.addresses.remove(&ip);
        } else {
            kept.addresses.insert(ip, elements);
        }
    }
    kept.fixed.retain(|(set, _)| !set.contains("-closed"));
    kept.fixed.extend(plan::closed(model));
    sort(&mut kept.fixed);
}

fn model() -> Model {
    let mut model = Model::new("n1");
    model.set_nets(vec![
        "10.0.0.0/29".parse().unwrap(),
        "fd00::/125".parse().unwrap(),
    ]);
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// What follows change by change is what is planned from scratch; each step can be applied, and
    /// leaves the kernel with the whole plan; another order of the same facts gives the same plan.
    #[test]
    fn plans_do_not_depend_on_history(events in proptest::collection::vec(event(), 1..24)) {
        let mut model = model();
        let (mut kept, mut asked) = (Desired::default(), plan::Asked::default());
        let mut fake = Fake::default();
        for event in &events {
            take(&mut model, event);
            follow(&mut model, &mut kept, &mut asked);
            let whole = plan::plan(&model);
            prop_assert_eq!(&kept, &whole);
            fake.apply(&diff::diff(&fake.seen(), &whole));
            prop_assert_eq!(fake.seen(), Seen::from(&whole));
            prop_assert!(diff::diff(&fake.seen(), &whole).is_empty());
        }
        // The last word on each object, backwards.
        let mut last: BTreeMap<String, &Event> = BTreeMap::new();
        for event in &events {
            let name = match event {
                Event::Pod(key, _) => format!("pod {key}"),
                Event::Namespace(name, _) => format!("namespace {name}"),
                Event::Policy(key, _) => format!("policy {key}"),
            };
            last.insert(name, event);
        }
        let mut other = self::model();
        for event in last.values().rev() {
            take(&mut other, event);
        }
        prop_assert_eq!(plan::plan(&other), plan::plan(&model));
    }

    /// The rules of the plan, run one by one, say of every packet what the model says.
    #[test]
    fn plans_say_what_the_model_says(events in proptest::collection::vec(event(), 1..20)) {
        let mut model = model();
        for event in &events {
            take(&mut model, event);
        }
        let desired = plan::plan(&model);
        for packet in packets() {
            let expected = if allows(&model, &packet) { Outcome::Pass } else { Outcome::Drop };
            let outcome = trace(&desired, names::FORWARD, &packet, Circumstances::FIRST);
            prop_assert_eq!(outcome, Ok(expected), "{:?}", packet);
        }
    }
}

fn pod(node: &str, ips: &[&str]) -> Pod {
    Pod {
        node: node.to_owned(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..Pod::default()
    }
}

/// Default deny in `x`, with pods 10.0.0.1 (isolated, here) and 10.0.0.3 (in `y`, here).
fn denied() -> Model {
    let mut model = model();
    let both = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    take(
        &mut model,
        &Event::Policy(Key::new("x", "deny"), Some(both)),
    );
    model.set_pod(
        &Key::new("x", "a"),
        Some(pod("n1", &["10.0.0.1", "fd00::1"])),
    );
    model.set_pod(
        &Key::new("y", "a"),
        Some(pod("n1", &["10.0.0.3", "fd00::3"])),
    );
    model
}

fn outcome(model: &Model, entry: &str, from: &str, to: &str, around: Circumstances) -> Outcome {
    let packet = Packet {
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol: 6,
        port: 80,
    };
    trace(&plan::plan(model), entry, &packet, around).unwrap()
}

#[test]
fn what_is_no_first_packet() {
    let model = denied();
    let first = Circumstances::FIRST;
    let established = Circumstances { state: 2, ..first };
    let middle = Circumstances { flags: 16, ..first };
    let node = Circumstances {
        from_node: true,
        ..first
    };
    for (entry, from, to, around, expected) in [
        ("forward", "10.0.0.3", "10.0.0.1", first, Outcome::Drop),
        (
            "forward",
            "10.0.0.3",
            "10.0.0.1",
            established,
            Outcome::Pass,
        ),
        ("forward", "fd00::1", "fd00::3", established, Outcome::Pass),
        // A connection that was cut comes back from neither side.
        ("forward", "10.0.0.3", "10.0.0.1", middle, Outcome::Reset),
        ("forward", "fd00::1", "fd00::3", middle, Outcome::Reset),
        ("forward", "10.0.0.3", "10.0.0.9", middle, Outcome::Pass),
        // Probes of the node; IPVS sends on with the client's address.
        ("output", "10.0.0.6", "10.0.0.1", node, Outcome::Pass),
        ("output", "10.0.0.3", "10.0.0.1", first, Outcome::Drop),
        ("output", "10.0.0.1", "192.0.2.1", first, Outcome::Drop),
        ("forward", "10.0.0.1", "10.0.0.1", first, Outcome::Pass),
    ] {
        let found = outcome(&model, entry, from, to, around);
        assert_eq!(found, expected, "{entry} {from} {to} {around:?}");
    }
}

#[test]
fn neighbour_discovery_is_not_judged() {
    let desired = plan::plan(&denied());
    for (icmp_type, expected) in [
        (128, Outcome::Drop),
        (130, Outcome::Pass),
        (135, Outcome::Pass),
        (136, Outcome::Pass),
        (137, Outcome::Pass),
        (138, Outcome::Drop),
        (143, Outcome::Pass),
    ] {
        let packet = Packet {
            source: "fd00::3".parse().unwrap(),
            destination: "fd00::1".parse().unwrap(),
            protocol: 58,
            port: 0,
        };
        let around = Circumstances {
            icmp_type,
            ..Circumstances::FIRST
        };
        assert_eq!(
            trace(&desired, "forward", &packet, around),
            Ok(expected),
            "{icmp_type}"
        );
    }
}

#[test]
fn a_pod_is_a_few_elements_however_many_there_are() {
    let mut model = denied();
    let allow = json!({"podSelector": {}, "ingress": [
        {"from": [{"podSelector": {}}], "ports": [{"port": "web"}]}]});
    take(
        &mut model,
        &Event::Policy(Key::new("x", "allow"), Some(allow)),
    );
    let mut before = plan::plan(&model);
    model.take_dirty();
    for n in 0..300_u16 {
        let [high, low] = n.to_be_bytes();
        let mut new = pod(
            "n1",
            &[&format!("10.9.{high}.{low}"), &format!("fd00:9::{n:x}")],
        );
        new.ports.insert(parse::NamedPort {
            protocol: parse::Protocol::Tcp,
            name: "web".to_owned(),
            port: 80,
        });
        model.set_pod(&Key::new("x", format!("new-{n}")), Some(new));
        let dirty = model.take_dirty();
        assert!(!dirty.whole && dirty.ips.len() == 2, "{dirty:?}");
        if n % 100 == 0 {
            let after = plan::plan(&model);
            let changes = diff::between(&before, &after);
            assert!(changes.is_elements_only());
            // known, isolated, self, its policies in both directions, one set of pods, one named
            // port; in both families.
            assert_eq!(changes.count(), if n == 0 { 14 } else { 14 * 100 });
            before = after;
        }
    }
}

#[test]
fn connections_are_judged_by_their_real_ends() {
    use linux::conntrack::{Flow, Tuple};
    let model = denied();
    let tuple = |from: &str, to: &str| Tuple {
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
    };
    let node = ["10.0.0.6".parse().unwrap()].into();
    for (original, reply, expected) in [
        // Through a service, masqueraded: what counts are the client and the pod behind.
        (
            ("10.0.0.3:1", "10.96.0.1:80"),
            ("10.0.0.1:8080", "10.0.0.6:9"),
            true,
        ),
        (
            ("10.0.0.3:1", "10.96.0.1:80"),
            ("10.0.0.9:8080", "10.0.0.6:9"),
            false,
        ),
        (
            ("10.0.0.1:1", "192.0.2.1:80"),
            ("192.0.2.1:80", "10.0.0.6:9"),
            true,
        ),
        // A probe of the node, and DNS on the node.
        (
            ("10.0.0.6:1", "10.0.0.1:80"),
            ("10.0.0.1:80", "10.0.0.6:1"),
            false,
        ),
        (
            ("10.0.0.1:1", "10.0.0.6:53"),
            ("10.0.0.6:53", "10.0.0.1:1"),
            false,
        ),
    ] {
        let flow = Flow::new(6, tuple(original.0, original.1), tuple(reply.0, reply.1));
        assert_eq!(
            crate::cut::is_forbidden(&model, &flow, &node),
            expected,
            "{flow}"
        );
    }
}

#[test]
fn a_set_of_another_kind_has_the_table_made_anew() {
    let want = plan::plan(&denied());
    let mut seen = Seen::from(&want);
    seen.sets.insert("known4".to_owned(), false);
    let changes = diff::diff(&seen, &want);
    assert!(changes.rebuild && changes.add_sets.len() == want.sets.len());
    let mut fake = Fake::default();
    fake.apply(&changes);
    assert_eq!(fake.seen(), Seen::from(&want));
}
