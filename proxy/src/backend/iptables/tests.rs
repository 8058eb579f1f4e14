//! Properties over random services: what was changed bit by bit is what would have been built at
//! once, and the kernel (a fake one, that understands restore text) ends up the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::cidr::Family;
use linux::nftables::{self, Edit, Notice, Subject};
use proptest::prelude::*;

use super::apply::{Plane, Rules};
use super::desired::Desired;
use crate::backend::{Backend, NodePortScope, Settings};
use crate::model::decide::Target;
use crate::model::{
    BySource, Decision, Decisions, Path, PortName, Protocol, ServiceName, Set, SourceFilter,
    Verdict,
};

fn settings() -> Settings {
    Settings {
        family: Family::V4,
        mark: 0x4000,
        detect_local: None,
        node_ports: NodePortScope::All,
        localhost_node_ports: true,
        random_fully: true,
        drop_invalid: true,
        dns_ips: Vec::new(),
        service_cidrs: Vec::new(),
    }
}

/// A service port in short: address, port and what it has.
type Short = (u16, u8, u8, bool, u8);

fn decision((ip, port, protocol, node_port, endpoints): Short) -> Decision {
    let [high, low] = (ip * 41).to_be_bytes();
    let protocol = Protocol::ALL[usize::from(protocol % 3)];
    let verdict = if endpoints == 0 {
        Verdict::Reject
    } else {
        Verdict::Forward(Set::Cluster)
    };
    let path = |masquerade| Path {
        verdict,
        masquerade,
    };
    let all = |masquerade| BySource {
        pod: path(masquerade),
        node: path(masquerade),
        outside: path(masquerade),
    };
    let target = |i: u8| Target {
        ip: [10, 180, 0, i].into(),
        port: 8080,
        in_cluster: true,
        in_local: false,
        local: false,
    };
    Decision {
        name: PortName {
            service: ServiceName::new("ns", &format!("s{ip}")),
            port: format!("p{port}").into(),
            protocol,
        },
        family: Family::V4,
        port: u16::from(port) + 1,
        cluster_ip: Some([172, 30, high, low].into()),
        external_ips: Vec::new(),
        balancer_ips: Vec::new(),
        source_filter: SourceFilter::Anybody,
        node_port: node_port.then(|| 30000 + ip * 8 + u16::from(port % 8)),
        affinity_seconds: None,
        health_check_node_port: None,
        targets: (0..endpoints).map(target).collect(),
        table_size: None,
        local_ready: 0,
        serving: [].into(),
        internal: all(false),
        external: all(true),
    }
}

fn decisions(shorts: &[Short]) -> Decisions {
    shorts
        .iter()
        .map(|short| decision(*short))
        .map(|decision| (decision.name.clone(), Arc::new(decision)))
        .collect()
}

fn shorts(max: usize) -> impl Strategy<Value = Vec<Short>> {
    let short = (0..60_u16, 0..6_u8, 0..3_u8, any::<bool>(), 0..3_u8);
    prop::collection::vec(short, 0..max)
}

/// Tables of a fake kernel: rules as text, by table and chain.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Fake {
    chains: BTreeMap<(String, String), Vec<String>>,
    restores: usize,
    fails: usize,
}

const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

impl Fake {
    fn apply(&mut self, text: &str) -> Result<(), String> {
        let mut table = String::new();
        for line in text.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (name, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            let key = |name: &str| (table.clone(), name.to_owned());
            match word {
                "COMMIT" => self.check(&table)?,
                "-A" => self
                    .chains
                    .get_mut(&key(name))
                    .ok_or(line)?
                    .push(rule.to_owned()),
                "-I" => self
                    .chains
                    .entry(key(name))
                    .or_default()
                    .insert(0, rule.to_owned()),
                "-D" => self
                    .chains
                    .get_mut(&key(name))
                    .ok_or(line)?
                    .retain(|known| known != rule),
                "-X" => {
                    let rules = self.chains.remove(&key(name)).ok_or(line)?;
                    if !rules.is_empty() {
                        return Err(format!("{name} is not empty"));
                    }
                }
                _ if line.starts_with('*') => table = line[1..].to_owned(),
                _ if line.starts_with(':') => {
                    self.chains
                        .insert((table.clone(), word[1..].to_owned()), Vec::new());
                }
                _ => return Err(format!("what is {line}")),
            }
        }
        Ok(())
    }

    /// Every jump leads somewhere.
    fn check(&self, table: &str) -> Result<(), String> {
        for rule in self
            .chains
            .iter()
            .filter(|((of, _), _)| of == table)
            .flat_map(|(_, rules)| rules)
        {
            let (_, target) = rule.rsplit_once("-j ").ok_or("no target")?;
            let target = target.split(' ').next().unwrap();
            let verdict = [
                "RETURN",
                "ACCEPT",
                "DROP",
                "REJECT",
                "MARK",
                "MASQUERADE",
                "DNAT",
            ];
            if !verdict.contains(&target)
                && !self
                    .chains
                    .contains_key(&(table.to_owned(), target.to_owned()))
            {
                return Err(format!("{rule} leads nowhere"));
            }
        }
        Ok(())
    }

    fn save(&self) -> String {
        let mut text = String::new();
        let tables: BTreeSet<&String> = self.chains.keys().map(|(table, _)| table).collect();
        for table in tables {
            text.push_str(&format!("*{table}\n"));
            let of = || self.chains.iter().filter(|((of, _), _)| of == table);
            for ((_, chain), _) in of() {
                let policy = if BUILT_IN.contains(&chain.as_str()) {
                    "ACCEPT"
                } else {
                    "-"
                };
                text.push_str(&format!(":{chain} {policy} [0:0]\n"));
            }
            for ((_, chain), rules) in of() {
                for rule in rules {
                    text.push_str(&format!("-A {chain} {rule}\n"));
                }
            }
            text.push_str("COMMIT\n");
        }
        text
    }
}

impl Rules for &mut Fake {
    fn stamp(&mut self) -> linux::Result<Option<linux::iptables::Stamp>> {
        Ok(None)
    }

    fn save(&mut self) -> linux::Result<String> {
        Ok(Fake::save(self))
    }

    fn restore(&mut self, text: &str) -> linux::Result<Option<u32>> {
        self.restores += 1;
        if self.fails > 0 {
            self.fails -= 1;
            return Err(linux::Error::other("restore", "as told"));
        }
        let mut next = self.clone();
        next.apply(text)
            .map_err(|e| linux::Error::other("restore", e))?;
        **self = next;
        Ok(u32::try_from(self.restores).ok())
    }

    /// The fake has chains only.
    fn remove_empty(&mut self, _tables: &BTreeSet<super::rule::Table>) -> linux::Result<()> {
        Ok(())
    }

    fn ensure_counters(&mut self, _writers: &mut Vec<Option<u32>>) -> bool {
        false
    }

    fn remove_counters(&mut self) {}
}

fn change(plane: &mut Plane<&mut Fake>, from: &Decisions, to: &Decisions) {
    let gone = from
        .keys()
        .filter(|name| !to.contains_key(*name))
        .map(|name| (name, None));
    let new = to
        .iter()
        .filter(|(name, decision)| from.get(*name) != Some(decision));
    plane.set(gone);
    plane.set(new.map(|(name, decision)| (name, Some(decision))));
}

/// The chains of a fake kernel with all of `decisions` written at once.
fn at_once(decisions: &Decisions) -> BTreeMap<(String, String), Vec<String>> {
    let mut fake = Fake::default();
    Plane::new(&mut fake, Desired::with(settings(), decisions))
        .sync()
        .unwrap();
    fake.chains
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changes_lead_where_a_new_start_leads(steps in prop::collection::vec(shorts(90), 1..4)) {
        let mut fake = Fake::default();
        let mut plane = Plane::new(&mut fake, Desired::new(settings()));
        plane.sync().unwrap();
        let mut before = Decisions::new();
        for step in &steps {
            let after = decisions(step);
            change(&mut plane, &before, &after);
            prop_assert!(!plane.sync().unwrap().full);
            prop_assert!(plane.is_intact().unwrap());
            // Nothing is left to do.
            prop_assert_eq!(plane.sync().unwrap(), crate::backend::Report::default());
            before = after;
        }
        drop(plane);
        prop_assert_eq!(&fake.chains, &at_once(&before));
    }

    #[test]
    fn a_new_process_takes_over(old in shorts(60), new in shorts(60), fails in 0..3_usize) {
        let mut fake = Fake { chains: at_once(&decisions(&old)), ..Fake::default() };
        fake.fails = fails;
        let new = decisions(&new);
        let mut plane = Plane::new(&mut fake, Desired::with(settings(), &new));
        // A write that fails together with deletions is tried again without them.
        while let Err(_as_told) = plane.sync() {}
        plane.distrust();
        prop_assert!(plane.sync().unwrap().full);
        drop(plane);
        prop_assert_eq!(&fake.chains, &at_once(&new));
        Plane::new(&mut fake, Desired::new(settings())).cleanup().unwrap();
        let left: Vec<_> = fake.chains.iter().filter(|(_, rules)| !rules.is_empty()).collect();
        prop_assert_eq!(left, Vec::new());
        prop_assert!(fake.chains.keys().all(|(_, chain)| BUILT_IN.contains(&chain.as_str())));
    }
}

/// A deletion that comes while a sync is under way: ours is told from others' by who made it.
#[test]
fn deletions_of_others_are_told_from_our_own() {
    let mut fake = Fake::default();
    let mut plane = Plane::new(&mut fake, Desired::new(settings()));
    plane.sync().unwrap();
    let deletion = |port: u32| {
        Notice::Edit(Edit {
            family: nftables::Family::Ipv4,
            table: "nat",
            deletes: true,
            subject: Subject::Chain,
            port,
        })
    };
    assert!(!plane.see(&deletion(1)));
    assert!(plane.see(&deletion(2)));
    // By then another process may have its number.
    plane.seen_all();
    assert!(plane.see(&deletion(1)));
}

/// Rules written for one change among `n` services.
fn cost(n: u16, of: impl Fn(Short) -> Option<Short>) -> (usize, usize) {
    let all: Vec<Short> = (0..n).map(|i| (i, 1, 0, i % 2 == 0, 2)).collect();
    let before = decisions(&all);
    let mut fake = Fake::default();
    let mut plane = Plane::new(&mut fake, Desired::with(settings(), &before));
    plane.sync().unwrap();
    let changed: Vec<Short> = all
        .iter()
        .filter_map(|short| {
            if short.0 == n / 2 {
                of(*short)
            } else {
                Some(*short)
            }
        })
        .collect();
    change(&mut plane, &before, &decisions(&changed));
    let report = plane.sync().unwrap();
    (report.objects + report.deleted, report.rules)
}

#[test]
fn a_change_costs_what_it_changes() {
    for n in [10, 100, 1500] {
        // One endpoint more: the chain that chooses.
        assert_eq!(
            cost(n, |s| Some((s.0, s.1, s.2, s.3, 3))),
            (1, 3),
            "{n} services"
        );
        // No endpoints any more: refused, and taken out of the trees.
        let (chains, rules) = cost(n, |s| Some((s.0, s.1, s.2, s.3, 0)));
        assert!(
            chains <= 16 && rules <= 100,
            "{n} services: {chains} chains, {rules} rules"
        );
        let (chains, rules) = cost(n, |_| None);
        assert!(
            chains <= 12 && rules <= 90,
            "{n} services: {chains} chains, {rules} rules"
        );
    }
}

#[test]
fn a_packet_passes_few_rules_however_many_services() {
    for n in [1_u16, 8, 9, 100, 1500] {
        let all: Vec<Short> = (0..n).map(|i| (i, 1, 0, true, 1)).collect();
        let desired = Desired::with(settings(), &decisions(&all));
        let chains = desired.chains();
        let longest = chains
            .iter()
            .filter(|(chain, _)| {
                !chain.name.as_str().starts_with("KUBE-S")
                    || chain.name.as_str().starts_with("KUBE-SERV")
            })
            .map(|(_, rules)| rules.len())
            .max();
        assert!(
            longest.unwrap() <= 17,
            "{n} services: {longest:?} rules in one chain"
        );
    }
}

#[test]
fn what_a_listing_says_of_us() {
    let listing = "*mangle\n:OUTPUT ACCEPT\nCOMMIT\n*filter\n:INPUT DROP\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A FORWARD -j DROP\n-A KUBE-SERVICES -d 172.30.0.9/32 -p udp -m udp --dport 9 -j REJECT\nCOMMIT\n*nat\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:KUBE-SERVICES - [0:0]\n:OTHERS - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A KUBE-SERVICES -d 172.30.0.1/32 -p udp -m comment --comment \"ns/dns cluster IP\" -m udp --dport 53 -j KUBE-SVC-X\n-A KUBE-SERVICES -d 172.30.0.1/32 -p tcp -m tcp --dport 53 -j KUBE-SVC-Y\n-A KUBE-NODEPORTS -p udp -m udp --dport 30053 -j KUBE-EXT-X\n-A OTHERS -d 10.0.0.1/32 -p udp -m udp --dport 7 -j DNAT\nCOMMIT\n";
    let found = super::observe::frontends(listing);
    let addresses: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["172.30.0.1:53"]);
    assert_eq!(found.node_ports, [30053].into());
    let idle = super::observe::idle_chains(listing);
    let idle: Vec<String> = idle
        .iter()
        .map(|c| format!("{} {}", c.table.name(), c.name))
        .collect();
    assert_eq!(idle, ["filter OUTPUT", "nat OUTPUT", "mangle OUTPUT"]);
}
