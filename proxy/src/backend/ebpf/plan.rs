//! One decision becomes what its port needs in the maps. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use api::cidr::Family;
use ebpf_common::abi::{
    self, Addr, Endpoint, FLAG_MEMBERS, FLAG_OWN_ADDRESS, FLAG_RANGES, FrontendKey, KIND_BALANCER,
    KIND_CLUSTER, KIND_EXTERNAL, PATH_CLUSTER, PATH_DROP, PATH_LOCAL, PATH_MASQUERADE, PATH_REJECT,
    RANGE_BITS, RangeKey, Service,
};
use ebpf_common::maglev;
use ebpf_common::resolve::wildcard;

use crate::model::{BySource, Decision, Path, Protocol, Set, SourceFilter, Verdict};

/// What a service port needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortPlan {
    /// Its addresses, with their `KIND_*`.
    pub frontends: BTreeMap<FrontendKey, u8>,
    /// Its value in the map of services.
    pub service: Service,
    /// Endpoints of the cluster's and of the node's set.
    pub sets: [BTreeSet<Endpoint>; 2],
    /// Endpoints that flows may stay with.
    pub serving: BTreeSet<Endpoint>,
    /// Source ranges: bits and address.
    pub ranges: BTreeSet<(u32, Addr)>,
}

/// An address as the maps have it.
pub fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => abi::v4(ip.octets()),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// An address of the maps as others write it.
pub fn ip(addr: &Addr) -> IpAddr {
    std::net::Ipv6Addr::from(*addr).to_canonical()
}

/// An endpoint as the maps have it.
pub fn endpoint(ip: IpAddr, port: u16) -> Endpoint {
    Endpoint::new(addr(ip), port.to_be_bytes())
}

/// An endpoint of the maps as others write it.
pub fn socket(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(ip(&endpoint.addr), u16::from_be_bytes(endpoint.port))
}

/// The number of a protocol in IP headers; `None` for one that the programs do not translate.
pub fn protocol(protocol: Protocol) -> Option<u8> {
    match protocol {
        Protocol::Tcp => Some(abi::TCP),
        Protocol::Udp => Some(abi::UDP),
        Protocol::Sctp => None,
    }
}

/// Bits of a prefix that count in a 128 bit address.
pub fn bits(net: &ipnetwork::IpNetwork) -> u32 {
    let inside = u32::from(net.prefix());
    match net {
        ipnetwork::IpNetwork::V4(_) => 96 + inside,
        ipnetwork::IpNetwork::V6(_) => inside,
    }
}

/// Plans one port; `None` when its protocol is not served in this mode.
pub fn plan_port(decision: &Decision) -> Option<PortPlan> {
    let protocol = protocol(decision.name.protocol)?;
    let mut plan = PortPlan {
        frontends: frontends(decision, protocol),
        ..PortPlan::default()
    };
    for target in decision.targets.iter() {
        let endpoint = endpoint(target.ip, target.port);
        for (set, is_in) in [(0, target.in_cluster), (1, target.in_local)] {
            if is_in {
                plan.sets[set].insert(endpoint);
            }
        }
    }
    let mut flags = 0;
    if protocol == abi::UDP || decision.affinity_seconds.is_some() {
        flags |= FLAG_MEMBERS;
        let serving = decision.serving.iter();
        plan.serving = serving.map(|s| endpoint(s.ip(), s.port())).collect();
    }
    if let SourceFilter::Only { nets, own_address } = &decision.source_filter {
        flags |= FLAG_RANGES;
        if *own_address {
            flags |= FLAG_OWN_ADDRESS;
        }
        let nets = nets.iter();
        plan.ranges = nets.map(|net| (bits(net), addr(net.network()))).collect();
    }
    plan.service = Service {
        counts: plan.sets.each_ref().map(|set| count(set.len())),
        affinity_seconds: decision.affinity_seconds.unwrap_or(0),
        flags,
        internal: paths(&decision.internal),
        external: paths(&decision.external),
        pad: [0; 2],
        family: match decision.family {
            Family::V4 => 4,
            Family::V6 => 6,
        },
        table_size: decision.table_size.map_or(0, |asked| {
            let most = plan.sets.iter().map(BTreeSet::len).max().unwrap_or(0);
            maglev::size_for(asked, most)
        }),
        // Which tables there are is known to the maps alone.
        tables: [0; 2],
    };
    Some(plan)
}

/// Endpoints of one port are far fewer.
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn frontends(decision: &Decision, protocol: u8) -> BTreeMap<FrontendKey, u8> {
    let key = |addr, port: u16| FrontendKey {
        addr,
        port: port.to_be_bytes(),
        protocol,
        pad: 0,
    };
    let mut all = BTreeMap::new();
    if let Some(port) = decision.node_port {
        let wildcard = wildcard(decision.family == Family::V4);
        all.insert(key(wildcard, port), KIND_EXTERNAL);
    }
    let external = decision.external_ips.iter().map(|ip| (ip, KIND_EXTERNAL));
    let balancer = decision.balancer_ips.iter().map(|ip| (ip, KIND_BALANCER));
    let cluster = decision.cluster_ip.iter().map(|ip| (ip, KIND_CLUSTER));
    // The last one counts where an address is all of these: the one that lets most in.
    for (ip, kind) in balancer.chain(external).chain(cluster) {
        all.insert(key(addr(*ip), decision.port), kind);
    }
    all
}

fn paths(paths: &BySource<Path>) -> [u8; 3] {
    [&paths.pod, &paths.node, &paths.outside].map(|path| {
        let verdict = match path.verdict {
            Verdict::Reject => PATH_REJECT,
            Verdict::Drop => PATH_DROP,
            Verdict::Forward(Set::Cluster) => PATH_CLUSTER,
            Verdict::Forward(Set::Local) => PATH_LOCAL,
        };
        verdict | if path.masquerade { PATH_MASQUERADE } else { 0 }
    })
}

/// The key of a source range.
pub fn range_key(service: u32, (bits, addr): &(u32, Addr)) -> RangeKey {
    RangeKey {
        bits: RANGE_BITS + bits,
        service,
        addr: *addr,
    }
}
