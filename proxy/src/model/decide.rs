//! What happens to a packet for a service port: forwarded to which endpoints, refused or dropped,
//! with or without masquerade. Decided here once; backends render it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::cidr::Family;
use ipnetwork::IpNetwork;

use super::endpoint::Endpoint;
use super::service::{ServicePort, of_family};
use super::topology::usable;
use super::{NodeView, Policy, PortName, Protocol};

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A pod, as the local detector tells.
    Pod,
    /// The node itself.
    Node,
    /// Anywhere else.
    Outside,
}

/// One value for each [`Source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BySource<T> {
    /// From a pod. Without a local detector the same as `outside`.
    pub pod: T,
    /// From the node itself.
    pub node: T,
    /// From anywhere else.
    pub outside: T,
}

impl<T> BySource<T> {
    /// The value for one source.
    pub fn of(&self, source: Source) -> &T {
        match source {
            Source::Pod => &self.pod,
            Source::Node => &self.node,
            Source::Outside => &self.outside,
        }
    }
}

/// A set of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Those that traffic without restriction uses.
    Cluster,
    /// Those on this node.
    Local,
}

/// What is done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To one of these endpoints.
    Forward(Set),
    /// Refused: there is no usable endpoint anywhere.
    Reject,
    /// Dropped silently: endpoints exist, but none that this traffic may use.
    Drop,
}

/// Verdict, and whether the source becomes the node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// What is done.
    pub verdict: Verdict,
    /// The source becomes the node's address. A hairpin connection is masqueraded in any case.
    pub masquerade: bool,
}

/// Who may use the load balancer addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceFilter {
    /// Everybody.
    Anybody,
    /// These networks; all others are dropped.
    Only {
        /// Sorted.
        nets: Vec<IpNetwork>,
        /// A node address is within: the balancer's own address is allowed as a source too, as the
        /// source of a hairpin connection of the node.
        own_address: bool,
    },
}

/// A usable endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// In [`Set::Cluster`].
    pub in_cluster: bool,
    /// In [`Set::Local`].
    pub in_local: bool,
    /// On this node, whether that counts for this port or not.
    pub local: bool,
}

/// All there is to know of one service port in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Identity.
    pub name: PortName,
    /// Family of all addresses in here.
    pub family: Family,
    /// Port on `cluster_ip`, `external_ips` and `balancer_ips`.
    pub port: u16,
    /// Cluster IP; `None` where this process itself answers on it (cluster DNS).
    pub cluster_ip: Option<IpAddr>,
    /// External IPs.
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses.
    pub balancer_ips: Vec<IpAddr>,
    /// Who may use `balancer_ips`.
    pub source_filter: SourceFilter,
    /// Port on the node's own addresses.
    pub node_port: Option<u16>,
    /// Seconds for which a client stays with its endpoint.
    pub affinity_seconds: Option<u32>,
    /// Clients outside are spread by consistent hashing, over a table of so many places (mode ebpf).
    pub table_size: Option<u32>,
    /// Health check port.
    pub health_check_node_port: Option<u16>,
    /// Endpoints of either set, sorted.
    pub targets: Arc<[Target]>,
    /// Ready endpoints on this node, for the health check.
    pub local_ready: usize,
    /// For UDP: endpoints that pass their probe, whether this node uses them or not. A flow to any
    /// of them may stay as it is.
    pub serving: Arc<[SocketAddr]>,
    /// To the cluster IP.
    pub internal: BySource<Path>,
    /// To external IPs, load balancer addresses and the node port.
    pub external: BySource<Path>,
}

impl Decision {
    /// The endpoints of a set.
    pub fn set(&self, set: Set) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(move |target| match set {
            Set::Cluster => target.in_cluster,
            Set::Local => target.in_local,
        })
    }

    /// Whether it can be reached at another address than its cluster IP.
    pub fn externally_accessible(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.balancer_ips.is_empty()
    }
}

/// The port of the addresses in [`NodeView::dns_ips`] that stays out of the rules.
pub const DNS_PORT: u16 = 53;

/// Decides for one service port; `None` when it has no cluster IP in this family.
pub fn decide(
    port: &ServicePort,
    family: Family,
    endpoints: &[Endpoint],
    node: &NodeView,
    policy: Policy,
) -> Option<Decision> {
    let shared = &port.shared;
    let cluster_ip = shared.cluster_ip(family)?;
    let usable = usable(
        endpoints,
        node,
        port.uses_cluster_endpoints(family),
        port.uses_local_endpoints(family),
    );
    let targets = usable.all().into_iter().map(|i| Target {
        ip: endpoints[i].ip,
        port: endpoints[i].port,
        in_cluster: contains(usable.cluster.as_deref(), i),
        in_local: contains(usable.local.as_deref(), i),
        local: endpoints[i].local,
    });
    let verdict = |set: Set| {
        let chosen = match set {
            Set::Cluster => &usable.cluster,
            Set::Local => &usable.local,
        };
        match chosen {
            Some(chosen) if !chosen.is_empty() => Verdict::Forward(set),
            _ if usable.any => Verdict::Drop,
            _ => Verdict::Reject,
        }
    };
    // An address that is listed as several kinds is the least restricted of them.
    let external_ips: Vec<IpAddr> = of_family(&shared.external_ips, family)
        .filter(|ip| *ip != cluster_ip)
        .collect();
    let balancer_ips = of_family(&shared.balancer_ips, family)
        .filter(|ip| *ip != cluster_ip && !external_ips.contains(ip))
        .collect();
    Some(Decision {
        name: port.name.clone(),
        family,
        port: port.port,
        cluster_ip: Some(cluster_ip)
            .filter(|ip| !(port.port == DNS_PORT && node.dns_ips.contains(ip))),
        external_ips,
        balancer_ips,
        source_filter: source_filter(port, family, node),
        node_port: port.node_port,
        affinity_seconds: shared.affinity_seconds,
        table_size: shared.table_size,
        health_check_node_port: shared.health_check_node_port,
        targets: targets.collect(),
        local_ready: local_ready(endpoints),
        serving: serving(port.name.protocol, endpoints),
        internal: internal(shared.internal_local, policy, &verdict),
        external: external(shared.external_local, policy, &verdict),
    })
}

fn serving(protocol: Protocol, endpoints: &[Endpoint]) -> Arc<[SocketAddr]> {
    let serving = endpoints
        .iter()
        .filter(|e| protocol == Protocol::Udp && e.serving);
    serving.map(|e| SocketAddr::new(e.ip, e.port)).collect()
}

/// Whether `i` is in a sorted set.
fn contains(set: Option<&[usize]>, i: usize) -> bool {
    set.is_some_and(|set| set.binary_search(&i).is_ok())
}

/// Distinct addresses of ready endpoints on this node; terminating ones never count.
fn local_ready(endpoints: &[Endpoint]) -> usize {
    let ready = endpoints
        .iter()
        .filter(|e| e.local && e.ready && !e.terminating);
    let mut ips: Vec<IpAddr> = ready.map(|e| e.ip).collect();
    ips.sort_unstable();
    ips.dedup();
    ips.len()
}

fn internal(local: bool, policy: Policy, verdict: &dyn Fn(Set) -> Verdict) -> BySource<Path> {
    let verdict = verdict(if local { Set::Local } else { Set::Cluster });
    let path = |masquerade| Path {
        verdict,
        masquerade,
    };
    // Replies to sources that are not pods may take another way than through this node.
    let strangers = path(policy.masquerade_all || policy.detect_local);
    BySource {
        pod: path(policy.masquerade_all),
        node: strangers,
        outside: strangers,
    }
}

fn external(local: bool, policy: Policy, verdict: &dyn Fn(Set) -> Verdict) -> BySource<Path> {
    let anywhere = |masquerade| Path {
        verdict: verdict(Set::Cluster),
        masquerade,
    };
    if !local {
        let all = anywhere(true);
        return BySource {
            pod: all,
            node: all,
            outside: all,
        };
    }
    let outside = Path {
        verdict: verdict(Set::Local),
        masquerade: false,
    };
    BySource {
        // Pods and the node have no outer balancer that could have sent them elsewhere: for them
        // the external address is another name of the cluster IP.
        pod: if policy.detect_local {
            anywhere(false)
        } else {
            outside
        },
        node: anywhere(true),
        outside,
    }
}

fn source_filter(port: &ServicePort, family: Family, node: &NodeView) -> SourceFilter {
    match port.shared.source_ranges(family) {
        None => SourceFilter::Anybody,
        Some(nets) => SourceFilter::Only {
            nets: nets.to_vec(),
            own_address: node.ips.iter().any(|ip| api::cidr::any_contains(nets, *ip)),
        },
    }
}
