//! The backend over a kernel in memory: order, incrementality, draining, restarts, cleanup.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::cidr::Family;
use linux::ipvs::{Command, Destination, Scheduler, Server, ServerId};
use linux::{Error, Result};

use super::apply::Plane;
use super::filter::Filter;
use super::kernel::{Addresses, Machine};
use super::sets::{Element, Entry, Key, SetId};
use super::{Options, rules};
use crate::backend::{Backend, DetectLocal, NodePortScope, Settings};
use crate::model::decide::Target;
use crate::model::{
    BySource, Decision, Path, PortName, Protocol, ServiceName, Set, SourceFilter, Verdict,
};
use crate::store::PortChange;

/// A kernel in memory.
#[derive(Debug, Default)]
struct Fake {
    servers: BTreeMap<ServerId, (Server, BTreeMap<SocketAddr, Destination>)>,
    device: BTreeSet<IpAddr>,
    node: BTreeSet<IpAddr>,
    sets: Sets,
    /// Every change, in order.
    log: Vec<String>,
    /// Changes until one is refused.
    fails_in: Option<usize>,
}

#[derive(Debug, Default)]
struct Sets {
    rules: bool,
    entries: BTreeSet<Entry>,
    log: Vec<String>,
}

fn refusal(errno: nix::errno::Errno) -> Error {
    Error::new("fake", io::Error::from(errno))
}

impl Fake {
    fn count(&mut self, what: String) -> Result<()> {
        let earlier = std::mem::take(&mut self.sets.log);
        self.log.extend(earlier);
        self.log.push(what);
        match &mut self.fails_in {
            Some(0) => Err(refusal(nix::errno::Errno::ENOBUFS)),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn one(&mut self, command: &Command) -> Result<()> {
        self.count(command.to_string())?;
        let missing = || refusal(nix::errno::Errno::ENOENT);
        let there = || refusal(nix::errno::Errno::EEXIST);
        let new = |to: &SocketAddr, weight: u32| Destination {
            address: *to,
            weight,
            translated: true,
            active: 0,
            inactive: 0,
        };
        match command {
            Command::AddServer(server) => {
                if self.servers.contains_key(&server.id) {
                    return Err(there());
                }
                self.servers
                    .insert(server.id, (server.clone(), BTreeMap::new()));
            }
            Command::SetServer(server) => {
                self.servers.get_mut(&server.id).ok_or_else(missing)?.0 = server.clone();
            }
            Command::DeleteServer(id) => {
                self.servers.remove(id).ok_or_else(missing)?;
            }
            Command::AddDestination(id, to, weight) => {
                let all = &mut self.servers.get_mut(id).ok_or_else(missing)?.1;
                if all.insert(*to, new(to, *weight)).is_some() {
                    return Err(there());
                }
            }
            Command::SetDestination(id, to, weight) => {
                let all = &mut self.servers.get_mut(id).ok_or_else(missing)?.1;
                all.get_mut(to).ok_or_else(missing)?.weight = *weight;
            }
            Command::DeleteDestination(id, to) => {
                let all = &mut self.servers.get_mut(id).ok_or_else(missing)?.1;
                all.remove(to).ok_or_else(missing)?;
            }
        }
        Ok(())
    }

    fn weights(&self, id: ServerId) -> BTreeMap<SocketAddr, u32> {
        let all = self.servers.get(&id).map(|(_, all)| all);
        let each = all.into_iter().flatten();
        each.map(|(to, d)| (*to, d.weight)).collect()
    }

    fn connections(&mut self, id: ServerId, to: &str, active: u32, inactive: u32) {
        let to: SocketAddr = to.parse().unwrap();
        let found = self.servers.get_mut(&id).unwrap().1.get_mut(&to).unwrap();
        (found.active, found.inactive) = (active, inactive);
    }

    fn take_log(&mut self) -> Vec<String> {
        let mut log = std::mem::take(&mut self.log);
        log.append(&mut self.sets.log);
        log
    }
}

impl Filter for Sets {
    fn install(&mut self, _: &Settings) -> Result<BTreeSet<Entry>> {
        self.rules = true;
        Ok(self.entries.clone())
    }

    fn installed(&mut self, _: &Settings) -> Result<Option<BTreeSet<Entry>>> {
        Ok(self.rules.then(|| self.entries.clone()))
    }

    fn entries(&mut self) -> Result<BTreeSet<Entry>> {
        Ok(self.entries.clone())
    }

    fn change(&mut self, add: &[Entry], delete: &[Entry]) -> Result<()> {
        self.log
            .push(format!("sets +{} -{}", add.len(), delete.len()));
        for entry in delete {
            assert!(self.entries.remove(entry), "{entry:?} is not there");
        }
        for entry in add {
            assert!(self.entries.insert(*entry), "{entry:?} is there");
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        *self = Self::default();
        Ok(())
    }
}

impl Machine for Fake {
    fn prepare(&mut self, _: &Options) -> Result<()> {
        Ok(())
    }

    fn servers(&mut self) -> Result<Vec<Server>> {
        Ok(self
            .servers
            .values()
            .map(|(server, _)| server.clone())
            .collect())
    }

    fn destinations(&mut self, id: ServerId) -> Result<Vec<Destination>> {
        let all = self.servers.get(&id).map(|(_, all)| all);
        Ok(all.into_iter().flatten().map(|(_, to)| *to).collect())
    }

    fn apply(&mut self, commands: &[Command]) -> Result<Vec<(usize, Error)>> {
        let mut refused = Vec::new();
        for (i, command) in commands.iter().enumerate() {
            if let Err(error) = self.one(command) {
                refused.push((i, error));
            }
        }
        Ok(refused)
    }

    fn addresses(&mut self) -> Result<Addresses> {
        Ok(Addresses {
            device: self.device.clone(),
            node: self.node.clone(),
        })
    }

    fn bind(&mut self, changes: &[(IpAddr, bool)]) -> Result<()> {
        for (ip, wanted) in changes {
            self.count(format!("{} {ip}", if *wanted { "bind" } else { "unbind" }))?;
            if *wanted {
                self.device.insert(*ip);
            } else {
                self.device.remove(ip);
            }
        }
        Ok(())
    }

    fn remove_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn filter(&mut self) -> &mut dyn Filter {
        &mut self.sets
    }
}

fn settings() -> Settings {
    Settings {
        family: Family::V4,
        mark: 0x4000,
        detect_local: Some(DetectLocal::Net("10.244.0.0/16".parse().unwrap())),
        node_ports: NodePortScope::All,
        localhost_node_ports: false,
        random_fully: true,
        drop_invalid: false,
        dns_ips: Vec::new(),
        service_cidrs: Vec::new(),
    }
}

fn node() -> IpAddr {
    "192.168.0.2".parse().unwrap()
}

fn plane_on(mut fake: Fake, options: Options) -> Plane<Fake> {
    fake.node.insert(node());
    Plane::new(fake, settings(), options).unwrap()
}

fn plane() -> Plane<Fake> {
    plane_on(Fake::default(), Options::default())
}

fn name(service: &str, protocol: Protocol) -> PortName {
    PortName {
        service: ServiceName::new("shop", service),
        port: "".into(),
        protocol,
    }
}

/// A decision: cluster IP 10.96.0.N, these endpoints; `_` marks one of this node.
fn decision(service: &str, n: u8, protocol: Protocol, endpoints: &[&str]) -> Decision {
    let targets = endpoints.iter().map(|text| {
        let to: SocketAddr = text.trim_start_matches('_').parse().unwrap();
        let local = text.starts_with('_');
        Target {
            ip: to.ip(),
            port: to.port(),
            in_cluster: true,
            in_local: local,
            local,
        }
    });
    let mut targets: Vec<Target> = targets.collect();
    targets.sort();
    let verdict = if targets.is_empty() {
        Verdict::Reject
    } else {
        Verdict::Forward(Set::Cluster)
    };
    let path = |masquerade| Path {
        verdict,
        masquerade,
    };
    let of = |pod, others| BySource {
        pod: path(pod),
        node: path(others),
        outside: path(others),
    };
    Decision {
        name: name(service, protocol),
        family: Family::V4,
        port: 80,
        cluster_ip: Some([10, 96, 0, n].into()),
        external_ips: Vec::new(),
        balancer_ips: Vec::new(),
        source_filter: SourceFilter::Anybody,
        node_port: None,
        affinity_seconds: None,
        health_check_node_port: None,
        targets: targets.into(),
        local_ready: 0,
        serving: Arc::default(),
        internal: of(false, true),
        external: of(true, true),
    }
}

fn web(endpoints: &[&str]) -> Decision {
    decision("web", 1, Protocol::Tcp, endpoints)
}

fn web_id() -> ServerId {
    key("10.96.0.1:80", Protocol::Tcp).server()
}

fn key(to: &str, protocol: Protocol) -> Key {
    let to: SocketAddr = to.parse().unwrap();
    Key {
        ip: to.ip(),
        protocol,
        port: to.port(),
    }
}

fn set(plane: &mut Plane<Fake>, decision: Decision) {
    let change = PortChange {
        name: decision.name.clone(),
        old: None,
        new: Some(Arc::new(decision)),
    };
    plane.set(&[change]);
}

fn remove(plane: &mut Plane<Fake>, of: &Decision) {
    let change = PortChange {
        name: of.name.clone(),
        old: None,
        new: None,
    };
    plane.set(&[change]);
}

fn weights(plane: &mut Plane<Fake>, id: ServerId) -> Vec<(String, u32)> {
    let all = plane.machine().weights(id);
    all.iter()
        .map(|(to, weight)| (to.to_string(), *weight))
        .collect()
}

fn is(expect: &[(&str, u32)]) -> Vec<(String, u32)> {
    expect
        .iter()
        .map(|(to, n)| ((*to).to_owned(), *n))
        .collect()
}

const A: &str = "10.244.0.5:8080";
const B: &str = "10.244.1.5:8080";

#[test]
fn a_new_service_is_reached_last_and_an_endpoint_is_one_message() {
    let mut plane = plane();
    plane.sync().unwrap();
    set(&mut plane, web(&[A]));
    plane.sync().unwrap();
    let expect = [
        "sets +3 -0",
        "add virtual server tcp 10.96.0.1:80",
        "add destination 10.244.0.5:8080 of weight 1 to tcp 10.96.0.1:80",
        "bind 10.96.0.1",
    ];
    assert_eq!(plane.machine().take_log(), expect);
    set(&mut plane, web(&[A, B]));
    let report = plane.sync().unwrap();
    assert_eq!((report.objects, report.deleted, report.full), (1, 0, false));
    let expect = ["add destination 10.244.1.5:8080 of weight 1 to tcp 10.96.0.1:80"];
    assert_eq!(plane.machine().take_log(), expect);
    set(&mut plane, web(&[B]));
    plane.sync().unwrap();
    let expect = ["set weight of destination 10.244.0.5:8080 of tcp 10.96.0.1:80 to 0"];
    assert_eq!(plane.machine().take_log(), expect);
    // Nothing changed: nothing is written, also when everything is compared.
    plane.distrust();
    assert!(plane.sync().unwrap().full);
    assert_eq!(plane.machine().take_log(), Vec::<String>::new());
}

/// Lets the time pass until draining destinations are asked.
fn poll(plane: &mut Plane<Fake>) {
    plane.poll_now();
    plane.sync().unwrap();
}

#[test]
fn graceful_termination() {
    let mut plane = plane();
    set(&mut plane, web(&[A, B]));
    plane.sync().unwrap();
    assert_eq!(plane.due(), None);
    plane.machine().connections(web_id(), A, 1, 0);
    set(&mut plane, web(&[B]));
    plane.sync().unwrap();
    assert!(plane.due().is_some());
    poll(&mut plane);
    assert_eq!(
        weights(&mut plane, web_id()),
        is(&[(A, 0), (B, 1)]),
        "a connection is up"
    );
    plane.machine().connections(web_id(), A, 0, 1);
    poll(&mut plane);
    assert_eq!(
        weights(&mut plane, web_id()),
        is(&[(A, 0), (B, 1)]),
        "a connection closes"
    );
    // Back again while it drains.
    set(&mut plane, web(&[A, B]));
    plane.sync().unwrap();
    assert_eq!(weights(&mut plane, web_id()), is(&[(A, 1), (B, 1)]));
    assert_eq!(plane.due(), None);
    set(&mut plane, web(&[B]));
    plane.sync().unwrap();
    plane.machine().connections(web_id(), A, 0, 0);
    poll(&mut plane);
    assert_eq!(weights(&mut plane, web_id()), is(&[(B, 1)]));
    assert_eq!(plane.due(), None);
}

#[test]
fn udp_and_sctp_leave_at_once() {
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        let mut plane = plane();
        set(&mut plane, decision("dns", 1, protocol, &[A, B]));
        plane.sync().unwrap();
        let id = key("10.96.0.1:80", protocol).server();
        plane.machine().connections(id, A, 0, 5);
        set(&mut plane, decision("dns", 1, protocol, &[B]));
        plane.sync().unwrap();
        assert_eq!(weights(&mut plane, id), is(&[(B, 1)]));
        assert_eq!(plane.due(), None);
    }
}

#[test]
fn what_somebody_else_took_away_does_not_stop_us() {
    let mut plane = plane();
    set(&mut plane, web(&[A, B]));
    plane.sync().unwrap();
    plane.machine().connections(web_id(), A, 1, 0);
    set(&mut plane, web(&[B]));
    plane.sync().unwrap();
    plane
        .machine()
        .servers
        .get_mut(&web_id())
        .unwrap()
        .1
        .remove(&A.parse().unwrap());
    poll(&mut plane);
    assert_eq!(weights(&mut plane, web_id()), is(&[(B, 1)]));
    assert!(plane.known().unwrap().draining.is_empty());
    // A whole server: noticed when everything is compared, and made again.
    plane.machine().servers.clear();
    assert!(!plane.is_intact().unwrap());
    plane.distrust();
    plane.sync().unwrap();
    assert_eq!(weights(&mut plane, web_id()), is(&[(B, 1)]));
    assert!(plane.is_intact().unwrap());
}

#[test]
fn a_service_that_is_gone_stays_for_its_connections_only() {
    let mut plane = plane();
    set(&mut plane, web(&[A]));
    plane.sync().unwrap();
    plane.machine().connections(web_id(), A, 1, 0);
    remove(&mut plane, &web(&[]));
    plane.sync().unwrap();
    assert_eq!(weights(&mut plane, web_id()), is(&[(A, 0)]));
    let ip: IpAddr = [10, 96, 0, 1].into();
    assert!(
        plane.machine().device.contains(&ip),
        "its packets must still come in"
    );
    plane.machine().connections(web_id(), A, 0, 3);
    poll(&mut plane);
    let fake = plane.machine();
    assert!(fake.servers.is_empty() && fake.device.is_empty() && fake.sets.entries.is_empty());
    // Without a connection it goes in the same sync.
    set(&mut plane, web(&[A]));
    plane.sync().unwrap();
    remove(&mut plane, &web(&[]));
    plane.sync().unwrap();
    let fake = plane.machine();
    assert!(fake.servers.is_empty() && fake.device.is_empty() && fake.sets.entries.is_empty());
}

#[test]
fn no_endpoints_is_refused_by_a_rule() {
    let mut plane = plane();
    set(&mut plane, web(&[]));
    plane.sync().unwrap();
    let entry = (
        SetId::Refuse,
        Element::Key(key("10.96.0.1:80", Protocol::Tcp)),
    );
    assert!(plane.machine().sets.entries.contains(&entry));
    assert!(plane.machine().servers.is_empty());
    set(&mut plane, web(&[A]));
    plane.machine().take_log();
    plane.sync().unwrap();
    let expect = [
        "add virtual server tcp 10.96.0.1:80",
        "add destination 10.244.0.5:8080 of weight 1 to tcp 10.96.0.1:80",
        "sets +0 -1",
    ];
    assert_eq!(plane.machine().take_log(), expect);
}

#[test]
fn weights_are_restored_at_the_start() {
    let mut old = plane();
    set(&mut old, web(&[A, B]));
    old.sync().unwrap();
    let mut fake = std::mem::take(old.machine());
    fake.one(&Command::SetDestination(web_id(), A.parse().unwrap(), 0))
        .unwrap();
    fake.one(&Command::SetDestination(web_id(), B.parse().unwrap(), 7))
        .unwrap();
    let mut plane = plane_on(fake, Options::default());
    set(&mut plane, web(&[A, B]));
    plane.sync().unwrap();
    assert_eq!(weights(&mut plane, web_id()), is(&[(A, 1), (B, 1)]));
}

#[test]
fn a_process_that_died_is_continued() {
    // Killed after each step; the next start repairs, and never lets an endpoint go that stays.
    for step in 0..20 {
        let mut old = plane();
        set(&mut old, web(&[A]));
        set(&mut old, decision("old", 2, Protocol::Tcp, &[A]));
        old.sync().unwrap();
        old.machine().fails_in = Some(step);
        set(&mut old, web(&[A, B]));
        remove(&mut old, &decision("old", 2, Protocol::Tcp, &[]));
        set(&mut old, decision("new", 3, Protocol::Udp, &[B]));
        let done = old.sync().is_ok();
        let mut fake = std::mem::take(old.machine());
        fake.fails_in = None;
        assert_eq!(fake.weights(web_id()).get(&A.parse().unwrap()), Some(&1));
        let mut plane = plane_on(fake, Options::default());
        set(&mut plane, web(&[A, B]));
        set(&mut plane, decision("new", 3, Protocol::Udp, &[B]));
        plane.sync().unwrap();
        poll(&mut plane);
        assert_eq!(weights(&mut plane, web_id()), is(&[(A, 1), (B, 1)]));
        let new = key("10.96.0.3:80", Protocol::Udp).server();
        assert_eq!(weights(&mut plane, new), is(&[(B, 1)]));
        let fake = plane.machine();
        assert_eq!(
            (fake.servers.len(), fake.device.len()),
            (2, 2),
            "step {step}"
        );
        if done {
            return;
        }
    }
    panic!("more steps than expected");
}

#[test]
fn others_virtual_servers_are_left_alone() {
    let mut fake = Fake::default();
    let foreign = key("192.168.0.2:9000", Protocol::Tcp).server();
    let excluded = key("10.96.9.9:80", Protocol::Tcp).server();
    let marked = ServerId::Mark {
        ipv6: false,
        mark: 7,
    };
    for id in [foreign, excluded, marked] {
        let server = Server {
            id,
            scheduler: Some(Scheduler::Wlc),
            options: linux::ipvs::Options::default(),
            persistence: None,
        };
        fake.one(&Command::AddServer(server)).unwrap();
    }
    fake.device.insert([10, 96, 9, 9].into());
    let options = Options {
        exclude: vec!["10.96.9.0/24".parse().unwrap()],
        ..Options::default()
    };
    let mut plane = plane_on(fake, options);
    let mut with_port = web(&[A]);
    with_port.node_port = Some(30080);
    set(&mut plane, with_port);
    plane.sync().unwrap();
    assert_eq!(plane.machine().servers.len(), 5);
    plane.cleanup().unwrap();
    let fake = plane.machine();
    let left: Vec<ServerId> = fake.servers.keys().copied().collect();
    let mut expect = vec![foreign, excluded, marked];
    expect.sort();
    assert_eq!(left, expect);
    assert_eq!(fake.device, BTreeSet::from(["10.96.9.9".parse().unwrap()]));
    assert!(fake.sets.entries.is_empty() && !fake.sets.rules);
}

#[test]
fn an_address_of_the_node_is_never_bound() {
    let mut plane = plane();
    let mut decision = web(&[A]);
    decision.external_ips = vec![node(), [198, 51, 100, 7].into()];
    set(&mut plane, decision);
    plane.sync().unwrap();
    let expect: BTreeSet<IpAddr> = [[10, 96, 0, 1].into(), [198, 51, 100, 7].into()].into();
    assert_eq!(plane.machine().device, expect);
    let own = key("192.168.0.2:80", Protocol::Tcp);
    assert!(plane.machine().servers.contains_key(&own.server()));
    let entry = (SetId::Addresses, Element::Ip(node()));
    assert!(
        !plane.machine().sets.entries.contains(&entry),
        "else its other ports were refused"
    );
    // The node gets another address: node ports and the rest follow.
    plane.machine().node = BTreeSet::from(["198.51.100.7".parse().unwrap()]);
    assert!(!plane.is_intact().unwrap());
    plane.distrust();
    plane.sync().unwrap();
    let expect: BTreeSet<IpAddr> = [[10, 96, 0, 1].into(), node()].into();
    assert_eq!(plane.machine().device, expect);
}

#[test]
fn affinity_schedulers_and_flags() {
    let mut sticky = web(&[A]);
    sticky.affinity_seconds = Some(10800);
    for scheduler in Scheduler::ALL {
        let options = Options {
            scheduler,
            ..Options::default()
        };
        let mut plane = plane_on(Fake::default(), options);
        set(&mut plane, sticky.clone());
        plane.sync().unwrap();
        let server = &plane.machine().servers[&web_id()].0;
        assert_eq!(server.scheduler, Some(scheduler));
        assert_eq!(server.options.hash_port, scheduler == Scheduler::Mh);
        assert_eq!(server.persistence, Some(10800));
        // Taken back: the server is changed, not made anew.
        set(&mut plane, web(&[A]));
        plane.machine().take_log();
        plane.sync().unwrap();
        let expect = ["change virtual server tcp 10.96.0.1:80"];
        assert_eq!(plane.machine().take_log(), expect);
    }
}

#[test]
fn source_ranges() {
    let mut decision = web(&[A]);
    let vip: IpAddr = [1, 2, 3, 4].into();
    decision.balancer_ips = vec![vip];
    let nets = ["192.168.0.0/16", "192.168.7.0/24", "203.0.113.0/25"];
    decision.source_filter = SourceFilter::Only {
        nets: nets.iter().map(|net| net.parse().unwrap()).collect(),
        own_address: true,
    };
    let mut plane = plane();
    set(&mut plane, decision);
    plane.sync().unwrap();
    let key = key("1.2.3.4:80", Protocol::Tcp);
    let entries = &plane.machine().sets.entries;
    assert!(entries.contains(&(SetId::Restricted, Element::Key(key))));
    let allowed: Vec<String> = entries
        .iter()
        .filter_map(|(_, element)| match element {
            Element::From(of, net) if *of == key => Some(net.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(allowed, ["1.2.3.4/32", "192.168.0.0/16", "203.0.113.0/25"]);
}

#[test]
fn one_address_and_port_has_one_owner() {
    let mut plane = plane();
    let mut first = decision("a", 1, Protocol::Tcp, &[A]);
    first.external_ips = vec![[198, 51, 100, 7].into()];
    let mut second = decision("b", 2, Protocol::Tcp, &[B]);
    second.external_ips = first.external_ips.clone();
    let id = key("198.51.100.7:80", Protocol::Tcp).server();
    set(&mut plane, second.clone());
    set(&mut plane, first.clone());
    plane.sync().unwrap();
    assert_eq!(weights(&mut plane, id), is(&[(A, 1)]));
    remove(&mut plane, &first);
    plane.sync().unwrap();
    poll(&mut plane);
    assert_eq!(weights(&mut plane, id), is(&[(B, 1)]));
    remove(&mut plane, &second);
    plane.sync().unwrap();
    assert!(plane.machine().servers.is_empty() && plane.machine().device.is_empty());
}

#[test]
fn local_policy_has_a_marked_server_for_pods_and_the_node() {
    let mut plane = plane();
    let mut decision = web(&["_10.244.0.5:8080", B]);
    decision.node_port = Some(30080);
    decision.external.outside = Path {
        verdict: Verdict::Forward(Set::Local),
        masquerade: false,
    };
    decision.external.pod.masquerade = false;
    set(&mut plane, decision.clone());
    plane.sync().unwrap();
    let port = key("192.168.0.2:30080", Protocol::Tcp);
    assert_eq!(weights(&mut plane, port.server()), is(&[(A, 1)]));
    let mark = plane.machine().servers.keys().find_map(|id| match id {
        ServerId::Mark { mark, .. } => Some(*mark),
        ServerId::Address { .. } => None,
    });
    let mark = mark.unwrap();
    assert!(rules::is_ours(mark, 0x4000));
    let id = ServerId::Mark { ipv6: false, mark };
    assert_eq!(weights(&mut plane, id), is(&[(A, 1), (B, 1)]));
    let entry = (SetId::Inside, Element::Mark(port, mark));
    assert!(plane.machine().sets.entries.contains(&entry));
    // Nobody here any more: outsiders are dropped, the others go on.
    decision.external.outside.verdict = Verdict::Drop;
    decision.targets = web(&[B]).targets;
    set(&mut plane, decision);
    plane.sync().unwrap();
    poll(&mut plane);
    assert_eq!(weights(&mut plane, id), is(&[(B, 1)]));
    assert!(weights(&mut plane, port.server()).is_empty());
    let entry = (SetId::DropOutside, Element::Key(port));
    assert!(plane.machine().sets.entries.contains(&entry));
}

#[test]
fn marks_leave_the_masquerade_bit_alone() {
    for bit in 0..32 {
        let bit = 1 << bit;
        for n in [0, 1, 0x4000, 0xf_ffff, u32::MAX] {
            let mark = rules::mark(n, bit);
            assert!(mark & bit == 0 && mark != 0 && rules::is_ours(mark, bit));
            assert!(!rules::is_ours(mark | bit, bit));
        }
        assert!(!rules::is_ours(0, bit) && !rules::is_ours(bit, bit));
    }
}
