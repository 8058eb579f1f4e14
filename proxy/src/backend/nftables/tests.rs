//! Properties over random services, on a fake kernel that refuses what the real one refuses and
//! checks after every transaction that nothing leads to what is not there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::cidr::Family;
use expect_test::expect_file;
use proptest::prelude::*;

use super::apply::{Plane, Tables, Transaction};
use super::desired::{Desired, label};
use super::diff::{self, Named};
use super::fixed;
use super::item::{Fate, Key, Value};
use super::observe::{Chains, LookedUp, Observed};
use super::suspects::Suspects;
use crate::backend::{Backend, DetectLocal, NodePortScope, Settings};
use crate::model::decide::Target;
use crate::model::{
    BySource, Decision, Decisions, Path, PortName, Protocol, ServiceName, Set, SourceFilter,
    Verdict,
};

/// Settings as most nodes have them.
pub(in crate::backend) fn settings(family: Family) -> Settings {
    let net = match family {
        Family::V4 => "10.0.0.0/8",
        Family::V6 => "fd00:10::/32",
    };
    Settings {
        family,
        mark: 0x4000,
        detect_local: Some(DetectLocal::Net(net.parse().unwrap())),
        node_ports: NodePortScope::All,
        localhost_node_ports: true,
        random_fully: true,
        drop_invalid: true,
        dns_ips: Vec::new(),
        service_cidrs: Vec::new(),
    }
}

/// A service port in short.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct Short {
    ip: u8,
    port: u8,
    node_port: Option<u8>,
    external: Option<u8>,
    /// Bits: which endpoints, and which of them are on this node.
    endpoints: u16,
    local: u16,
    external_local: bool,
    affinity: Option<u8>,
    ranges: u8,
}

fn decision(short: Short) -> Decision {
    let targets: Arc<[Target]> = (0..10_u8)
        .filter(|i| short.endpoints & 1 << i != 0)
        .map(|i| Target {
            ip: [10, 180, 0, i].into(),
            port: 8080,
            in_cluster: true,
            in_local: short.local & 1 << i != 0,
            local: short.local & 1 << i != 0,
        })
        .collect();
    let verdict = |set: Set| match set {
        Set::Cluster if targets.is_empty() => Verdict::Reject,
        Set::Local if targets.is_empty() => Verdict::Reject,
        Set::Local if !targets.iter().any(|target| target.in_local) => Verdict::Drop,
        set => Verdict::Forward(set),
    };
    let path = |set, masquerade| Path {
        verdict: verdict(set),
        masquerade,
    };
    let outside = match short.external_local {
        true => path(Set::Local, false),
        false => path(Set::Cluster, true),
    };
    let ranges = ["192.168.0.0/24", "192.168.0.0/16", "203.0.113.7/32"];
    let nets = ranges[..usize::from(short.ranges)].iter();
    Decision {
        name: PortName {
            service: ServiceName::new("ns", &format!("s{}", short.ip)),
            port: format!("p{}", short.port).into(),
            protocol: Protocol::Tcp,
        },
        family: Family::V4,
        port: u16::from(short.port) + 1,
        cluster_ip: Some([172, 30, 0, short.ip].into()),
        external_ips: short
            .external
            .map(|i| [192, 0, 2, i].into())
            .into_iter()
            .collect(),
        balancer_ips: short
            .external
            .map(|i| [198, 51, 100, i].into())
            .into_iter()
            .collect(),
        source_filter: match short.ranges {
            0 => SourceFilter::Anybody,
            _ => SourceFilter::Only {
                nets: nets.map(|net| net.parse().unwrap()).collect(),
                own_address: true,
            },
        },
        node_port: short.node_port.map(|port| 30_000 + u16::from(port)),
        affinity_seconds: short.affinity.map(u32::from),
        health_check_node_port: None,
        targets: targets.clone(),
        table_size: None,
        local_ready: 0,
        serving: [].into(),
        internal: BySource {
            pod: path(Set::Cluster, false),
            node: path(Set::Cluster, true),
            outside: path(Set::Cluster, true),
        },
        external: BySource {
            pod: path(Set::Cluster, false),
            node: path(Set::Cluster, true),
            outside,
        },
    }
}

/// Decisions on these service ports.
pub(in crate::backend) fn decisions(shorts: &[Short]) -> Decisions {
    let all = shorts.iter().map(|short| decision(*short));
    all.map(|decision| (decision.name.clone(), Arc::new(decision)))
        .collect()
}

prop_compose! {
    fn short()(
        ip in 0..12_u8, port in 0..3_u8,
        // Few numbers: several services want the same.
        node_port in prop::option::of(0..5_u8), external in prop::option::of(0..3_u8),
        endpoints in 0..1024_u16, local in 0..1024_u16, external_local in any::<bool>(),
        affinity in prop::option::weighted(0.3, 10..12_u8), ranges in 0..4_u8,
    ) -> Short {
        Short { ip, port, node_port, external, endpoints, local, external_local, affinity, ranges }
    }
}

/// Random services, of which several want the same.
pub(in crate::backend) fn shorts(max: usize) -> impl Strategy<Value = Vec<Short>> {
    prop::collection::vec(short(), 0..max)
}

/// The table in a fake kernel.
#[derive(Debug, Default, Clone)]
struct Fake {
    exists: bool,
    items: BTreeMap<Key, Value>,
    chains: BTreeMap<String, Vec<String>>,
    numbers: HashMap<String, u32>,
    commits: usize,
    /// The transaction that fails, counted from the next.
    fails: Option<usize>,
}

impl Fake {
    fn check(&self) {
        for (key, value) in &self.items {
            if let (Key::Cluster(_) | Key::Local(_), Value::Word(word)) = (key, value) {
                let Some(Value::Pick(pick)) = self.items.get(&Key::Pick(word.low)) else {
                    panic!("{key:?} leads to no pick");
                };
                assert!(self.chains.contains_key(&pick.chain()), "{pick:?}");
                for slot in 0..pick.count {
                    if pick.affinity_seconds == 0 {
                        assert!(
                            self.items.contains_key(&Key::Slot(word.set, slot)),
                            "{key:?}"
                        );
                        continue;
                    }
                    let found = self.items.get(&Key::StickySlot(word.set, slot));
                    let Some(Value::Word(number)) = found else {
                        panic!("{key:?}: no slot {slot}");
                    };
                    assert!(self.items.contains_key(&Key::Sticky(*number)), "{key:?}");
                }
            }
            if let (Key::Front(front), Value::Service(service)) = (key, value) {
                for fate in service.fates {
                    let leads = match fate {
                        Fate::Cluster => self.items.contains_key(&Key::Cluster(*front)),
                        Fate::Local => self.items.contains_key(&Key::Local(*front)),
                        Fate::Drop | Fate::Reject => true,
                    };
                    assert!(leads, "{front:?} leads nowhere");
                }
            }
        }
    }
}

impl Tables for &mut Fake {
    fn observe(&mut self, _family: Family) -> linux::Result<Observed> {
        Ok(Observed {
            exists: self.exists,
            usable: true,
            items: self
                .items
                .iter()
                .map(|(key, value)| (*key, *value))
                .collect(),
            strange: Vec::new(),
            chains: self.chains.clone(),
            numbers: self.numbers.clone(),
        })
    }

    fn look_up(
        &mut self,
        _family: Family,
        keys: &BTreeSet<Key>,
    ) -> linux::Result<Option<LookedUp>> {
        let each = keys.iter().map(|key| (*key, self.items.get(key).copied()));
        Ok(Some(each.collect()))
    }

    fn chains(&mut self, _family: Family) -> linux::Result<Chains> {
        Ok(self.chains.clone())
    }

    fn commit(&mut self, transaction: &Transaction, desired: &Desired) -> linux::Result<()> {
        self.commits += 1;
        if let Some(left) = self.fails {
            self.fails = left.checked_sub(1);
            if left == 0 {
                return Err(linux::Error::other("commit", "as told"));
            }
        }
        self.exists |= transaction.makes_table;
        assert!(self.exists);
        for plan in &transaction.chains {
            let comments = plan.comments().map(str::to_owned).collect();
            self.chains.insert(plan.chain.name.clone(), comments);
        }
        for chain in &transaction.delete_chains {
            self.chains.remove(chain).unwrap();
        }
        for (key, value) in &transaction.change.delete {
            assert_eq!(self.items.remove(key), Some(*value), "{key:?} is deleted");
            if let Value::Pick(pick) = value {
                self.chains.remove(&pick.chain()).unwrap();
            }
        }
        for (key, value) in &transaction.change.add {
            assert_eq!(self.items.insert(*key, *value), None, "{key:?} is added");
            if let Value::Pick(pick) = value {
                let plan = fixed::pick(desired.settings(), *pick);
                let comments = plan.comments().map(str::to_owned).collect();
                self.chains.insert(plan.chain.name, comments);
            }
            if let Value::Service(service) = value {
                let name = desired.name(service.port).unwrap();
                self.numbers.insert(name, service.port);
            }
        }
        self.check();
        Ok(())
    }

    fn remove(&mut self, _family: Family) -> linux::Result<()> {
        **self = Fake::default();
        Ok(())
    }

    fn port(&self) -> Option<u32> {
        Some(1)
    }
}

/// What services lead to, without the numbers by which it is named.
fn meaning(items: impl IntoIterator<Item = (Key, Value)>, names: &impl Named) -> Vec<String> {
    let items: BTreeMap<Key, Value> = items.into_iter().collect();
    let mut out = Vec::new();
    for (key, value) in &items {
        let name = names.name(key.port(value)).unwrap_or_default();
        out.push(match (key, value) {
            (Key::Cluster(front) | Key::Local(front), Value::Word(word)) => {
                format!(
                    "{front:?} {name} {} {:?}",
                    word.set.local,
                    items[&Key::Pick(word.low)]
                )
            }
            (Key::Slot(set, _), endpoint) => format!("{name} {} {endpoint:?}", set.local),
            (Key::StickySlot(set, _), Value::Word(word)) => {
                format!(
                    "{name} {} sticky {:?}",
                    set.local,
                    items[&Key::Sticky(*word)]
                )
            }
            (Key::Front(front), Value::Service(service)) => {
                let (fates, masquerade) = (service.fates, service.masquerade);
                format!(
                    "{front:?} {name} {fates:?} {masquerade:?} {}",
                    service.filtered
                )
            }
            (Key::Source(_, first, last), _) => format!("{name} {first} {last}"),
            // They are in what leads to them. A chain may stay when nobody needs it.
            (Key::Pick(_) | Key::Sticky(_), _) => continue,
            (key, value) => format!("{key:?} {value:?}"),
        });
    }
    out.sort();
    out
}

fn wanted(decisions: &Decisions) -> Vec<String> {
    let desired = Desired::with(settings(Family::V4), decisions);
    meaning(desired.contents(), &desired)
}

fn change<T: Tables>(plane: &mut Plane<T>, before: &Decisions, after: &Decisions) {
    for name in before.keys().filter(|name| !after.contains_key(name)) {
        plane.desired_mut().set(name, None);
    }
    for (name, decision) in after {
        if before.get(name) != Some(decision) {
            plane.desired_mut().set(name, Some(decision));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changes_lead_where_a_new_start_leads(
        steps in prop::collection::vec(shorts(30), 1..5), part in 1..60_usize,
    ) {
        let mut fake = Fake::default();
        let mut plane = Plane::new(&mut fake, settings(Family::V4)).with_parts(part);
        plane.sync().unwrap();
        let mut before = Decisions::new();
        for step in &steps {
            let after = decisions(step);
            change(&mut plane, &before, &after);
            prop_assert!(!plane.sync().unwrap().full);
            // Nothing is left to do.
            prop_assert_eq!(plane.sync().unwrap(), crate::backend::Report::default());
            let items = plane.tables().items.clone();
            prop_assert_eq!(meaning(items, plane.desired()), wanted(&after));
            before = after;
        }
        // A comparison with the kernel finds nothing but chains that nobody needs.
        plane.distrust_all();
        plane.sync().unwrap();
        let items: Vec<_> = plane.tables().items.clone().into_iter().collect();
        prop_assert_eq!(plane.desired().contents(), items);
    }

    #[test]
    fn a_new_process_takes_over(
        old in shorts(30), new in shorts(30), part in 1..60_usize, fails in 0..6_usize,
    ) {
        let (old, new) = (decisions(&old), decisions(&new));
        let mut fake = Fake::default();
        let mut plane = Plane::new(&mut fake, settings(Family::V4)).with_parts(part);
        change(&mut plane, &Decisions::new(), &old);
        plane.sync().unwrap();
        drop(plane);
        let before = fake.items.clone();
        fake.fails = Some(fails);
        let mut plane = Plane::new(&mut fake, settings(Family::V4)).with_parts(part);
        change(&mut plane, &Decisions::new(), &new);
        while plane.sync().is_err() {}
        let items = plane.tables().items.clone();
        prop_assert_eq!(meaning(items.clone(), plane.desired()), wanted(&new));
        if old == new {
            prop_assert_eq!(&items, &before);
        }
        // Another process that wants the same writes nothing.
        drop(plane);
        let commits = fake.commits;
        let mut plane = Plane::new(&mut fake, settings(Family::V4));
        change(&mut plane, &Decisions::new(), &new);
        plane.sync().unwrap();
        drop(plane);
        prop_assert_eq!(fake.commits, commits);
        prop_assert_eq!(&fake.items, &items);
    }

    #[test]
    fn the_difference_makes_one_the_other(a in shorts(30), b in shorts(30)) {
        let desired = |shorts: &[Short]| Desired::with(settings(Family::V4), &decisions(shorts));
        let (a, b) = (desired(&a), desired(&b));
        let mut items: BTreeMap<Key, Value> = a.contents().into_iter().collect();
        let change = diff::full(&b, &a.contents());
        for (key, value) in &change.delete {
            prop_assert_eq!(items.remove(key), Some(*value));
        }
        for (key, value) in &change.add {
            prop_assert_eq!(items.insert(*key, *value), None);
        }
        prop_assert_eq!(items.into_iter().collect::<Vec<_>>(), b.contents());
        prop_assert!(diff::full(&b, &b.contents()).is_empty());
    }

    /// Somebody takes elements away, gives some another value, brings some of his own and empties a
    /// chain, while services change.
    #[test]
    fn only_what_others_changed_is_looked_at(
        old in shorts(20), new in shorts(20), theirs in shorts(6), every in 1..7_usize, chain in any::<prop::sample::Index>(),
    ) {
        let (old, new) = (decisions(&old), decisions(&new));
        let theirs = Desired::with(settings(Family::V4), &decisions(&theirs)).contents();
        let mut fake = Fake::default();
        let mut plane = Plane::new(&mut fake, settings(Family::V4));
        change(&mut plane, &Decisions::new(), &old);
        plane.sync().unwrap();
        let before = plane.tables().items.clone();
        let items = &mut plane.tables().items;
        // Chains that choose cannot be taken from what leads to them.
        let is_data = |key: &Key| !matches!(key, Key::Pick(_));
        let gone: Vec<Key> = before.keys().copied().filter(is_data).step_by(every).collect();
        let mut edited: BTreeSet<Key> = gone.iter().copied().collect();
        for key in gone {
            items.remove(&key);
        }
        for (key, value) in theirs.iter().filter(|(key, _)| is_data(key)) {
            items.insert(*key, *value);
            edited.insert(*key);
        }
        let names: Vec<String> = plane.tables().chains.keys().cloned().collect();
        let emptied = chain.get(&names).clone();
        plane.tables().chains.insert(emptied, Vec::new());
        plane.tables().chains.insert("of-others".to_owned(), Vec::new());
        plane.suspect(Suspects { chains: true, keys: edited, everything: false });
        prop_assert!(!plane.is_intact().unwrap());
        change(&mut plane, &old, &new);
        plane.doubt();
        prop_assert!(!plane.sync().unwrap().full);
        prop_assert!(plane.is_intact().unwrap());
        let items = plane.tables().items.clone();
        prop_assert_eq!(meaning(items, plane.desired()), wanted(&new));
        let chains = plane.tables().chains.clone();
        plane.distrust_all();
        prop_assert!(plane.sync().unwrap().full);
        for (name, comments) in &plane.tables().chains {
            prop_assert_eq!(Some(comments), chains.get(name));
        }
    }

    #[test]
    fn each_element_is_found_by_its_key(shorts in shorts(30), others in shorts(30)) {
        let of = |shorts: &[Short]| Desired::with(settings(Family::V4), &decisions(shorts));
        let (desired, others) = (of(&shorts), of(&others));
        let contents: BTreeMap<Key, Value> = desired.contents().into_iter().collect();
        for (key, value) in &contents {
            prop_assert_eq!(desired.value(key), Some(*value));
        }
        for (key, _) in others.contents() {
            prop_assert_eq!(desired.value(&key), contents.get(&key).copied());
        }
    }

    #[test]
    fn elements_are_read_as_they_are_written(shorts in shorts(20)) {
        let desired = Desired::with(settings(Family::V4), &decisions(&shorts));
        for (key, value) in desired.contents() {
            let element = key.element(Family::V4, &value);
            prop_assert_eq!(Key::read(key.set(), Family::V4, &element), Some((key, value)));
        }
    }
}

/// One endpoint more or less: what is written is data, as much as the service has addresses.
#[test]
fn an_endpoint_change_writes_a_few_data_elements() {
    let short = Short {
        ip: 1,
        port: 1,
        node_port: Some(1),
        external: None,
        endpoints: 0b111,
        local: 0,
        external_local: false,
        affinity: None,
        ranges: 0,
    };
    let with = |endpoints| decision(Short { endpoints, ..short });
    let mut desired = Desired::new(settings(Family::V4));
    let mut written = |decision: &Decision| {
        desired.set(&decision.name.clone(), Some(decision));
        desired.take_change()
    };
    written(&with(0b111));
    written(&with(0b1111));
    for endpoints in [0b111, 0b1101, 0b1011, 0b1111] {
        let change = written(&with(endpoints));
        assert!(change.len() <= 8, "{change:?}");
        let data = |(key, value): &(Key, Value)| {
            matches!(key, Key::Slot(..) | Key::EndpointIp(_) | Key::Cluster(_))
                && !matches!(value, Value::Pick(_))
        };
        assert!(
            change.add.iter().chain(&change.delete).all(data),
            "{change:?}"
        );
    }
}

#[test]
fn labels_are_of_one_port() {
    let mut name = decision(Short {
        ip: 1,
        port: 1,
        node_port: None,
        external: None,
        endpoints: 0,
        local: 0,
        external_local: false,
        affinity: None,
        ranges: 0,
    })
    .name;
    assert_eq!(label(&name), "ns/s1:p1/tcp");
    name.protocol = Protocol::Udp;
    assert_eq!(label(&name), "ns/s1:p1/udp");
}

#[test]
fn golden() {
    let base = Short {
        ip: 1,
        port: 79,
        node_port: Some(80),
        external: Some(9),
        endpoints: 0b11,
        local: 0b10,
        external_local: true,
        affinity: None,
        ranges: 1,
    };
    let sticky = Short {
        ip: 2,
        node_port: None,
        external: None,
        external_local: false,
        affinity: Some(10),
        ranges: 0,
        ..base
    };
    let none = Short {
        ip: 3,
        endpoints: 0,
        affinity: None,
        ..sticky
    };
    let mut settings = settings(Family::V4);
    settings.service_cidrs = vec!["172.30.0.0/16".parse().unwrap()];
    settings.dns_ips = vec![[172, 30, 0, 10].into()];
    let desired = Desired::with(settings, &decisions(&[base, sticky, none]));
    expect_file!["golden/ipv4.txt"].assert_eq(&desired.to_string());
}

#[test]
fn golden_chains_of_ipv6() {
    let mut settings = settings(Family::V6);
    settings.detect_local = Some(DetectLocal::InterfacePrefix("veth".to_owned()));
    settings.node_ports = NodePortScope::Only(vec!["fd00:10::1".parse().unwrap()]);
    settings.drop_invalid = false;
    let desired = Desired::new(settings);
    expect_file!["golden/ipv6.txt"].assert_eq(&desired.to_string());
}
