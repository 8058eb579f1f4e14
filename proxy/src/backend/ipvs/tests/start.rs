//! What a start finds, and what is others'.

use std::collections::BTreeSet;
use std::net::IpAddr;

use linux::ipvs::{Command, Scheduler, Server, ServerId};

use super::fake::Fake;
use super::{
    A, B, decision, is, key, node, plane, plane_on, poll, remove, set, web, web_id, weights,
};
use crate::backend::Backend;
use crate::backend::ipvs::Options;
use crate::backend::ipvs::sets::{Element, SetId};
use crate::model::Protocol;

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
    assert!(plane.is_intact().unwrap(), "what was written is there");
    assert!(plane.see_addresses() && plane.due().is_some());
    assert!(!plane.sync().unwrap().full);
    let expect: BTreeSet<IpAddr> = [[10, 96, 0, 1].into(), node()].into();
    assert_eq!(plane.machine().device, expect);
    assert!(!plane.see_addresses());
}

/// Table T14, CleanLegacyService: what an earlier process, ours or kube-proxy, had on the device.
#[test]
fn what_an_earlier_process_left_goes() {
    let mut fake = Fake::default();
    let [legacy, kept] = ["10.96.0.8:80", "10.96.0.1:80"].map(|to| key(to, Protocol::Tcp).server());
    for id in [legacy, kept] {
        let server = Server {
            id,
            scheduler: Some(Scheduler::Rr),
            options: linux::ipvs::Options::default(),
            persistence: None,
        };
        fake.one(&Command::AddServer(server)).unwrap();
        fake.one(&Command::AddDestination(id, A.parse().unwrap(), 1))
            .unwrap();
    }
    fake.device = ["10.96.0.8", "10.96.0.1"]
        .map(|ip| ip.parse().unwrap())
        .into();
    fake.connections(legacy, A, 1, 0);
    let mut plane = plane_on(fake, Options::default());
    set(&mut plane, web(&[A]));
    plane.sync().unwrap();
    // A connection through it goes on to its end.
    assert_eq!(weights(&mut plane, legacy), is(&[(A, 0)]));
    assert_eq!(plane.machine().device.len(), 2);
    plane.machine().connections(legacy, A, 0, 1);
    poll(&mut plane);
    let fake = plane.machine();
    assert_eq!(fake.servers.keys().copied().collect::<Vec<_>>(), [kept]);
    assert_eq!(fake.device, BTreeSet::from(["10.96.0.1".parse().unwrap()]));
}
