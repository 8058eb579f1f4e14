//! Endpoint slices become endpoints of one service port: defaults, families, merging.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::cidr::{Family, parse_ip};
use api::discovery::EndpointSlice;

use super::{ObjectRef, Problem, Protocol, quoted};

/// Which nodes a slice's hint names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeHint {
    /// None: all nodes may use the endpoint.
    #[default]
    Nobody,
    /// Other nodes.
    Others,
    /// This node.
    Me,
}

/// Names of zones, sorted. Hardly any endpoint has some, and there are many endpoints: so it is one
/// word, and nothing else where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Zones(Option<Arc<ZoneNames>>);

type ZoneNames = Box<[Arc<str>]>;

impl Zones {
    /// Whether no zone is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether this zone is named.
    pub fn contains(&self, zone: &str) -> bool {
        let names = self.0.iter().flat_map(|names| names.iter());
        names.into_iter().any(|name| **name == *zone)
    }
}

impl<'a> FromIterator<&'a str> for Zones {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        let names: BTreeSet<&str> = names.into_iter().collect();
        if names.is_empty() {
            return Self(None);
        }
        Self(Some(Arc::new(names.into_iter().map(Into::into).collect())))
    }
}

/// One endpoint of a slice; its port comes from the slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Address (the first, the only one that counts).
    pub ip: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Passes its probe.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
    /// On this node.
    pub local: bool,
    /// Node hint.
    pub node_hint: NodeHint,
    /// Zone hints.
    pub zones: Zones,
}

/// What the proxy keeps of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Family of all endpoints.
    pub family: Family,
    /// Ports of each endpoint.
    pub ports: Box<[(Arc<str>, Protocol, u16)]>,
    /// Endpoints.
    pub endpoints: Box<[SliceEndpoint]>,
}

/// An endpoint of one service port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// Takes new connections.
    pub ready: bool,
    /// Passes its probe.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
    /// On this node.
    pub local: bool,
    /// Node hint.
    pub node_hint: NodeHint,
    /// Zone hints.
    pub zones: Zones,
}

/// Reads a slice as node `node` sees it; `None` for addresses that are names.
pub fn parse(slice: &EndpointSlice, node: &str) -> (Option<Slice>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut problem = |field: String, message: String| {
        problems.push(Problem {
            object: ObjectRef::new("EndpointSlice", &slice.metadata),
            field,
            message,
        });
    };
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return (None, problems),
        other => {
            problem(
                "addressType".to_owned(),
                format!("{} is unknown", quoted(other)),
            );
            return (None, problems);
        }
    };
    let mut ports = Vec::new();
    for (i, port) in slice.ports.iter().enumerate() {
        let (Some(name), Some(number)) = (&port.name, port.port) else {
            continue;
        };
        if number == 0 {
            continue;
        }
        let Some(protocol) = Protocol::parse(port.protocol.as_deref().unwrap_or_default()) else {
            let text = port.protocol.as_deref().unwrap_or_default();
            let text = format!("{} is unknown", quoted(text));
            problem(format!("ports[{i}].protocol"), text);
            continue;
        };
        match u16::try_from(number) {
            Ok(number) => ports.push((name.as_str().into(), protocol, number)),
            Err(_) => problem(
                format!("ports[{i}].port"),
                format!("{number} is not within 1..=65535"),
            ),
        }
    }
    let mut endpoints = Vec::with_capacity(slice.endpoints.len());
    for (i, endpoint) in slice.endpoints.iter().enumerate() {
        let Some(text) = endpoint.addresses.first() else {
            continue;
        };
        let ip = parse_ip(text).filter(|ip| Family::of(*ip) == family);
        let Some(ip) = ip else {
            let text = format!("{} is no {family} address", quoted(text));
            problem(format!("endpoints[{i}].addresses[0]"), text);
            continue;
        };
        let (node_hint, zones) = hints(endpoint, node);
        endpoints.push(SliceEndpoint {
            ip,
            ready: endpoint.conditions.is_ready(),
            serving: endpoint.conditions.is_serving(),
            terminating: endpoint.conditions.is_terminating(),
            local: endpoint.node_name.as_deref() == Some(node),
            node_hint,
            zones,
        });
    }
    let slice = Slice {
        family,
        ports: ports.into(),
        endpoints: endpoints.into(),
    };
    (Some(slice), problems)
}

fn hints(endpoint: &api::discovery::Endpoint, node: &str) -> (NodeHint, Zones) {
    let Some(hints) = &endpoint.hints else {
        return (NodeHint::Nobody, Zones::default());
    };
    let node_hint = if hints.for_nodes.is_empty() {
        NodeHint::Nobody
    } else if hints.for_nodes.iter().any(|hint| hint.name == node) {
        NodeHint::Me
    } else {
        NodeHint::Others
    };
    let zones = hints.for_zones.iter().map(|hint| hint.name.as_str());
    (node_hint, zones.collect())
}

/// The endpoints of one port, from all slices of its service, sorted by address and port. Where an
/// address and port is there twice, the one that is not terminating wins.
pub fn merge<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    family: Family,
    port: &str,
    protocol: Protocol,
) -> Vec<Endpoint> {
    let mut merged: BTreeMap<(IpAddr, u16), &SliceEndpoint> = BTreeMap::new();
    for slice in slices {
        if slice.family != family {
            continue;
        }
        for (name, of, number) in &*slice.ports {
            if **name != *port || *of != protocol {
                continue;
            }
            for endpoint in &*slice.endpoints {
                let known = merged.entry((endpoint.ip, *number)).or_insert(endpoint);
                if better(endpoint, known) {
                    *known = endpoint;
                }
            }
        }
    }
    let endpoints = merged.into_iter().map(|((ip, port), e)| Endpoint {
        ip,
        port,
        ready: e.ready,
        serving: e.serving,
        terminating: e.terminating,
        local: e.local,
        node_hint: e.node_hint,
        zones: e.zones.clone(),
    });
    endpoints.collect()
}

/// Whether `new` tells more of an endpoint than `known` does. A total order, so that the order of
/// slices does not matter.
fn better(new: &SliceEndpoint, known: &SliceEndpoint) -> bool {
    let rank = |e: &SliceEndpoint| (!e.terminating, e.ready, e.serving, e.local, e.node_hint);
    match rank(new).cmp(&rank(known)) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => new.zones > known.zones,
    }
}
