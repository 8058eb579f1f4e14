//! The sets and maps of the table.

use api::cidr::Family;
use linux::nftables::{DataType, Set};

/// Clients that stay with their endpoints, at most. When there are more, the rest are served
/// without affinity.
pub const AFFINITY_MAX: u32 = 1 << 18;

/// Our sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// Address, protocol and port (node ports: no address) to the service and what is done for
    /// each source.
    Services,
    /// The same to the set of endpoints anywhere, and how one is chosen.
    Cluster,
    /// The same to the set of endpoints on this node.
    Local,
    /// How one is chosen to the chain that does.
    Picks,
    /// Set of endpoints and slot to the endpoint.
    Endpoints,
    /// Set of endpoints and slot to the number of the endpoint, where clients stay with theirs.
    StickySlots,
    /// Number of an endpoint to the endpoint.
    StickyEndpoints,
    /// Set of endpoints and client to the number of the endpoint it has. Rules write it.
    Affinity,
    /// Each endpoint's address, twice: from itself to itself.
    EndpointIps,
    /// Sources that may use load balancer addresses.
    Sources,
    /// Cluster IPs: other ports of them are refused.
    ClusterIps,
    /// Where cluster IPs come from: other addresses there are dropped.
    ServiceNets,
    /// Addresses of cluster DNS: not ours.
    DnsIps,
    /// Addresses on which node ports are served, where it is not all.
    NodeIps,
}

impl SetName {
    /// All.
    pub const ALL: [Self; 14] = [
        Self::Services,
        Self::Cluster,
        Self::Local,
        Self::Picks,
        Self::Endpoints,
        Self::StickySlots,
        Self::StickyEndpoints,
        Self::Affinity,
        Self::EndpointIps,
        Self::Sources,
        Self::ClusterIps,
        Self::ServiceNets,
        Self::DnsIps,
        Self::NodeIps,
    ];

    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Cluster => "cluster",
            Self::Local => "local",
            Self::Picks => "picks",
            Self::Endpoints => "endpoints",
            Self::StickySlots => "sticky-slots",
            Self::StickyEndpoints => "sticky-endpoints",
            Self::Affinity => "affinity",
            Self::EndpointIps => "endpoint-ips",
            Self::Sources => "allowed-sources",
            Self::ClusterIps => "cluster-ips",
            Self::ServiceNets => "service-cidrs",
            Self::DnsIps => "dns-ips",
            Self::NodeIps => "node-ips",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Services => "address . protocol . port (0: node port) : service, what is done",
            Self::Cluster => "the same : set of all endpoints, pick",
            Self::Local => "the same : set of endpoints on this node, pick",
            Self::Picks => "pick : chain that chooses",
            Self::Endpoints => "set . slot : endpoint",
            Self::StickySlots => "set . slot : number of an endpoint, where clients stay",
            Self::StickyEndpoints => "number of an endpoint : endpoint",
            Self::Affinity => "set . client : number of its endpoint",
            Self::EndpointIps => "from an endpoint to itself",
            Self::Sources => "service . source that may use its load balancer addresses",
            Self::ClusterIps => "other ports of them are refused",
            Self::ServiceNets => "other addresses in them are dropped",
            Self::DnsIps => "cluster DNS on this node",
            Self::NodeIps => "addresses with node ports, where it is not all",
        }
    }

    /// As the kernel is told.
    pub fn set(self, family: Family) -> Set {
        use DataType::{Mark, Port, Protocol};
        let ip = match family {
            Family::V4 => DataType::Ipv4,
            Family::V6 => DataType::Ipv6,
        };
        let name = self.name();
        let set = match self {
            Self::Services | Self::Cluster | Self::Local => {
                Set::map(name, [ip, Protocol, Port], [Mark])
            }
            Self::Picks => Set::verdict_map(name, [Mark]),
            Self::Endpoints => Set::map(name, [Mark; 2], [ip, Port]),
            Self::StickySlots => Set::map(name, [Mark; 2], [Mark]),
            Self::StickyEndpoints => Set::map(name, [Mark], [ip, Port]),
            Self::Affinity => Set {
                dynamic: true,
                timeout: true,
                size: Some(AFFINITY_MAX),
                ..Set::map(name, [Mark, ip], [Mark])
            },
            Self::EndpointIps => Set::new(name, [ip; 2]),
            Self::Sources => Set {
                interval: true,
                ..Set::new(name, [Mark, ip])
            },
            Self::ServiceNets => Set {
                interval: true,
                ..Set::new(name, [ip])
            },
            Self::ClusterIps | Self::DnsIps | Self::NodeIps => Set::new(name, [ip]),
        };
        Set {
            comment: Some(self.about().to_owned()),
            ..set
        }
    }
}
