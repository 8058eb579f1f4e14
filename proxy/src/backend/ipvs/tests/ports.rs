//! What each kind of service port comes to.

use std::net::IpAddr;

use linux::ipvs::{Scheduler, ServerId};

use super::fake::Fake;
use super::{A, B, decision, is, key, plane, plane_on, poll, remove, set, web, web_id, weights};
use crate::backend::Backend;
use crate::backend::ipvs::sets::{Element, SetId};
use crate::backend::ipvs::{Options, rules};
use crate::model::{Path, Protocol, Set, SourceFilter, Verdict};

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
    assert!(entries.contains(&(SetId::LoadBalancerFw, Element::Key(key))));
    let of = |set: SetId| -> Vec<String> {
        let found = entries.iter().filter(|(of, _)| *of == set);
        found
            .filter_map(|(_, element)| match element {
                Element::From(of, net) if *of == key => Some(net.to_string()),
                _ => None,
            })
            .collect()
    };
    let nets = of(SetId::LoadBalancerSourceCidr);
    assert_eq!(nets, ["192.168.0.0/16", "203.0.113.0/25"]);
    assert_eq!(of(SetId::LoadBalancerSourceIp), ["1.2.3.4/32"]);
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

#[test]
fn health_checks_are_let_in_where_they_are_answered() {
    let mut plane = plane();
    let mut checked = web(&["_10.244.0.5:8080", B]);
    checked.health_check_node_port = Some(31000);
    let mut twin = decision("web2", 1, Protocol::Udp, &[A]);
    twin.health_check_node_port = Some(31000);
    set(&mut plane, checked.clone());
    set(&mut plane, twin.clone());
    plane.sync().unwrap();
    let entry = (SetId::HealthChecks, Element::Port(31000));
    assert!(plane.machine().sets.entries.contains(&entry));
    remove(&mut plane, &checked);
    plane.sync().unwrap();
    assert!(plane.machine().sets.entries.contains(&entry), "a port more");
    remove(&mut plane, &twin);
    plane.sync().unwrap();
    assert!(plane.machine().sets.entries.is_empty());
}

/// Table T14, MultiPortServiceBindAddr.
#[test]
fn ports_of_one_address_share_it() {
    let mut plane = plane();
    let (tcp, udp) = (web(&[A]), decision("dns", 1, Protocol::Udp, &[A]));
    set(&mut plane, tcp.clone());
    set(&mut plane, udp.clone());
    plane.sync().unwrap();
    let binds = |plane: &mut crate::backend::ipvs::apply::Plane<Fake>| {
        let log = plane.machine().take_log();
        let of = |line: &&String| line.contains("bind");
        log.iter().filter(of).cloned().collect::<Vec<_>>()
    };
    assert_eq!(binds(&mut plane), ["bind 10.96.0.1"]);
    remove(&mut plane, &udp);
    plane.sync().unwrap();
    assert_eq!(binds(&mut plane), Vec::<String>::new());
    remove(&mut plane, &tcp);
    plane.sync().unwrap();
    assert_eq!(binds(&mut plane), ["unbind 10.96.0.1"]);
}
