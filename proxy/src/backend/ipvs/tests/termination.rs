//! Changes in their order, and endpoints that go.

use std::net::IpAddr;

use super::{A, B, decision, is, key, plane, poll, remove, set, web, web_id, weights};
use crate::backend::Backend;
use crate::model::Protocol;

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

/// Table T14, RaceTerminateRSList: endpoints come, go and come back while others drain.
#[test]
fn endpoints_that_drain_and_come_back_in_any_order() {
    for order in 0..64_u32 {
        let mut plane = plane();
        set(&mut plane, web(&[A, B]));
        plane.sync().unwrap();
        plane.machine().connections(web_id(), A, 1, 0);
        plane.machine().connections(web_id(), B, 1, 0);
        for step in 0..3 {
            let choice = order >> (2 * step) & 3;
            let all: Vec<&str> = [(1, A), (2, B)]
                .into_iter()
                .filter(|(bit, _)| choice & bit != 0)
                .map(|(_, to)| to)
                .collect();
            set(&mut plane, web(&all));
            plane.sync().unwrap();
            poll(&mut plane);
            // Connections are up: nothing is taken away, and weights say who is wanted.
            let weight = |bit| u32::from(choice & bit != 0);
            assert_eq!(
                weights(&mut plane, web_id()),
                is(&[(A, weight(1)), (B, weight(2))]),
                "{order:b} {step}"
            );
        }
        plane.machine().connections(web_id(), A, 0, 0);
        plane.machine().connections(web_id(), B, 0, 0);
        poll(&mut plane);
        let last = order >> 4;
        let left = weights(&mut plane, web_id()).len();
        assert_eq!(
            left,
            usize::try_from(last.count_ones()).unwrap(),
            "{order:b}"
        );
        assert_eq!(plane.due(), None);
    }
}
