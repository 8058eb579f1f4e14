//! The backend over a kernel in memory: order, incrementality, draining, restarts, cleanup.

mod fake;
mod ports;
mod start;
mod termination;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::cidr::Family;
use linux::ipvs::ServerId;

use super::Options;
use super::apply::Plane;
use super::sets::Key;
use crate::backend::{Backend, DetectLocal, NodePortScope, Settings};
use crate::model::decide::Target;
use crate::model::{
    BySource, Decision, Path, PortName, Protocol, ServiceName, Set, SourceFilter, Verdict,
};
use crate::store::PortChange;
use fake::Fake;

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
        table_size: None,
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

/// Lets the time pass until draining destinations are asked.
fn poll(plane: &mut Plane<Fake>) {
    plane.poll_now();
    plane.sync().unwrap();
}
