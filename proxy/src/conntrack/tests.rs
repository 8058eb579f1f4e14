use linux::conntrack::{Tuple, UDP};

use super::*;
use crate::model::endpoint::Endpoint;
use crate::model::{NodeView, Policy, decide, service};

/// 172.30.1.1:8000 (UDP with node port 30000; TCP and SCTP beside it), 1.2.3.4 and 192.168.99.11;
/// serving 10.240.0.4, not serving 10.240.1.5. `None`: without any endpoint.
fn decision(endpoints: bool) -> Arc<Decision> {
    let object: api::core::Service = serde_json::from_value(serde_json::json!({
        "metadata": {"namespace": "ns", "name": "s"},
        "spec": {"type": "LoadBalancer", "clusterIP": "172.30.1.1", "externalIPs": ["192.168.99.11"],
            "ports": [{"name": "u", "port": 8000, "protocol": "UDP", "nodePort": 30000}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}},
    }))
    .unwrap();
    let port = service::parse(&object).ports.remove(0);
    let endpoint = |ip: &str, serving| Endpoint {
        ip: ip.parse().unwrap(),
        port: 8000,
        ready: serving,
        serving,
        terminating: false,
        local: false,
        node_hint: Default::default(),
        zones: Default::default(),
    };
    let all = [endpoint("10.240.0.4", true), endpoint("10.240.1.5", false)];
    let endpoints = if endpoints { &all[..] } else { &[] };
    let family = Family::V4;
    let decision = decide::decide(
        &port,
        family,
        endpoints,
        &NodeView::default(),
        Policy::default(),
    );
    Arc::new(decision.unwrap())
}

/// A flow from a client to `to` that really goes to `really`.
fn flow(to: &str, really: &str) -> Flow {
    let client = "10.1.1.1:4000".parse().unwrap();
    let original = Tuple {
        source: client,
        destination: to.parse().unwrap(),
    };
    let reply = Tuple {
        source: really.parse().unwrap(),
        destination: client,
    };
    Flow::new(UDP, original, reply)
}

#[track_caller]
fn check(changed: &Changed, to: &str, really: &str, stale: bool) {
    let local = |ip: IpAddr| ip == IpAddr::from([192, 168, 0, 2]);
    assert_eq!(
        changed.stale(&flow(to, really), local).is_some(),
        stale,
        "{to} ({really})"
    );
}

#[test]
fn entries_of_changed_ports() {
    let mut changed = Changed::default();
    changed.add(None, Some(&decision(true)));
    for to in [
        "172.30.1.1:8000",
        "1.2.3.4:8000",
        "192.168.99.11:8000",
        "192.168.0.2:30000",
    ] {
        check(&changed, to, "10.240.0.4:8000", false);
        check(&changed, to, "10.240.1.5:8000", true);
        check(&changed, to, "10.240.2.6:8000", true);
        check(&changed, to, "10.240.0.4:7999", true);
        // Not translated at all: tracked while there was no endpoint.
        check(&changed, to, to, true);
    }
    for to in [
        "172.30.1.1:8001",
        "1.2.3.4:8001",
        "192.168.0.2:8000",
        "172.30.1.2:8000",
    ] {
        check(&changed, to, "10.240.1.5:8000", false);
        check(&changed, to, to, false);
    }
    // The same number at somebody else's address.
    check(&changed, "203.0.113.7:30000", "203.0.113.7:30000", false);
}

#[test]
fn without_endpoints_and_deleted() {
    for new in [Some(decision(false)), None] {
        let mut changed = Changed::default();
        changed.add(Some(&decision(true)), new.as_ref());
        for to in ["172.30.1.1:8000", "1.2.3.4:8000", "192.168.0.2:30000"] {
            check(&changed, to, "10.240.0.4:8000", true);
        }
    }
}

#[test]
fn an_address_that_another_port_takes_over() {
    let mut changed = Changed::default();
    changed.add(None, Some(&decision(true)));
    changed.add(Some(&decision(true)), None);
    check(&changed, "172.30.1.1:8000", "10.240.0.4:8000", false);
    check(&changed, "172.30.1.1:8000", "10.240.1.5:8000", true);
}

#[test]
fn the_busiest_services_are_named() {
    let decisions = [decision(true)];
    let owners = Owners::new(&decisions);
    let local: Vec<IpAddr> = vec![IpAddr::from([192, 168, 0, 2])];
    let to = |to: &str| flow(to, "10.240.0.4:8000");
    let mut tcp = to("172.30.1.1:8000");
    tcp.protocol = linux::conntrack::TCP;
    let flows = [
        to("172.30.1.1:8000"),
        to("1.2.3.4:8000"),
        to("192.168.0.2:30000"),
        // Another's port of the same number, another protocol, no service at all.
        to("203.0.113.7:30000"),
        tcp,
        to("10.240.0.4:8000"),
    ];
    let counts = owners.count(&flows, &local);
    assert_eq!(words(&counts).as_deref(), Some("most are for ns/s:u (3)"));
    assert_eq!(words(&Counts::new()), None);
    let name = |service: &str| PortName::first(&ServiceName::new("ns", service));
    let many = ["a", "b", "c", "d"].map(name);
    let counts: Counts = many.into_iter().zip([5, 70, 5, 1]).collect();
    let expect = "most are for ns/b (70), ns/a (5), ns/c (5)";
    assert_eq!(words(&counts).as_deref(), Some(expect));
}
