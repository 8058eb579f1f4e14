//! What the rules look up: sets by name, and their entries.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use linux::ipvs::Protocol as Transport;
pub use linux::ipvs::ServerId;

use crate::model::Protocol;

/// Where packets for a service arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Address.
    pub ip: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

impl Key {
    /// The virtual server of this address.
    pub fn server(self) -> ServerId {
        ServerId::Address {
            protocol: transport(self.protocol),
            ip: self.ip,
            port: self.port,
        }
    }

    /// The address of a virtual server that has one.
    pub fn of(id: ServerId) -> Option<Self> {
        match id {
            ServerId::Address { protocol, ip, port } => Some(Self {
                ip,
                protocol: match protocol {
                    Transport::Tcp => Protocol::Tcp,
                    Transport::Udp => Protocol::Udp,
                    Transport::Sctp => Protocol::Sctp,
                },
                port,
            }),
            ServerId::Mark { .. } => None,
        }
    }
}

/// As the kernel's load balancer calls a protocol.
pub fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    }
}

/// A set, or the one map. Those that hold what a set of kube-proxy's ipvs mode holds have its name
/// and type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// Where services are, whatever kind of address it is: address, protocol, port.
    Frontends,
    /// To the mark of the virtual server that pods and the node use there, in place of outsiders'.
    Inside,
    /// Cluster IPs at which pods are masqueraded, too.
    MasqueradeAll,
    /// Refused: there is no endpoint.
    Refuse,
    /// Dropped whoever comes.
    DropAll,
    /// Dropped unless a pod or the node comes.
    DropOutside,
    /// `KUBE-IPVS-IPS`: addresses of services on the dummy device.
    Addresses,
    /// `KUBE-CLUSTER-IP`.
    ClusterIp,
    /// `KUBE-EXTERNAL-IP`: without those of [`SetId::ExternalIpLocal`].
    ExternalIp,
    /// `KUBE-EXTERNAL-IP-LOCAL`: of services with `externalTrafficPolicy: Local`.
    ExternalIpLocal,
    /// `KUBE-LOAD-BALANCER`: all of them.
    LoadBalancer,
    /// `KUBE-LOAD-BALANCER-LOCAL`: those with `externalTrafficPolicy: Local`.
    LoadBalancerLocal,
    /// `KUBE-LOAD-BALANCER-FW`: those that only some sources may use.
    LoadBalancerFw,
    /// `KUBE-LOAD-BALANCER-SOURCE-IP`: the address itself as its source, where nodes may use it.
    LoadBalancerSourceIp,
    /// `KUBE-LOAD-BALANCER-SOURCE-CIDR`: the networks of `loadBalancerSourceRanges`.
    LoadBalancerSourceCidr,
    /// `KUBE-NODE-PORT-TCP`, `-UDP` and `-SCTP-HASH`: node ports, all of them.
    NodePort(Protocol),
    /// `KUBE-NODE-PORT-LOCAL-TCP`, `-UDP`, `-SCTP-HASH`: those with `externalTrafficPolicy: Local`.
    NodePortLocal(Protocol),
    /// `KUBE-HEALTH-CHECK-NODE-PORT`: where this process answers health checks of services.
    HealthChecks,
    /// `KUBE-LOOP-BACK`: endpoints on this node, which may reach themselves.
    LoopBack,
}

/// What the elements of a set are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// An address.
    Ip,
    /// Address, protocol and port.
    Key,
    /// The same with a mark.
    KeyMark,
    /// Address, protocol, port, and an address as source.
    KeySource,
    /// Address, protocol, port, and a network as source.
    KeyNet,
    /// A port.
    Port,
}

impl SetId {
    /// All, in order. The first is there as long as any is.
    pub const ALL: [Self; 23] = [
        Self::Frontends,
        Self::Inside,
        Self::MasqueradeAll,
        Self::Refuse,
        Self::DropAll,
        Self::DropOutside,
        Self::Addresses,
        Self::ClusterIp,
        Self::ExternalIp,
        Self::ExternalIpLocal,
        Self::LoadBalancer,
        Self::LoadBalancerLocal,
        Self::LoadBalancerFw,
        Self::LoadBalancerSourceIp,
        Self::LoadBalancerSourceCidr,
        Self::NodePort(Protocol::Tcp),
        Self::NodePort(Protocol::Udp),
        Self::NodePort(Protocol::Sctp),
        Self::NodePortLocal(Protocol::Tcp),
        Self::NodePortLocal(Protocol::Udp),
        Self::NodePortLocal(Protocol::Sctp),
        Self::HealthChecks,
        Self::LoopBack,
    ];

    /// Whether what is in it is kept out.
    pub fn denies(self) -> bool {
        matches!(
            self,
            Self::Refuse | Self::DropAll | Self::DropOutside | Self::LoadBalancerFw
        )
    }

    /// Whether kube-proxy has a set of this name for the same.
    pub fn is_kubes(self) -> bool {
        !matches!(
            self,
            Self::Frontends
                | Self::Inside
                | Self::MasqueradeAll
                | Self::Refuse
                | Self::DropAll
                | Self::DropOutside
        )
    }

    /// What it is called in a table of our own; kube-proxy's name is `KUBE-` and this in capitals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frontends => "frontends",
            Self::Inside => "inside",
            Self::MasqueradeAll => "masq-all",
            Self::Refuse => "refuse",
            Self::DropAll => "drop-all",
            Self::DropOutside => "drop-outside",
            Self::Addresses => "ipvs-ips",
            Self::ClusterIp => "cluster-ip",
            Self::ExternalIp => "external-ip",
            Self::ExternalIpLocal => "external-ip-local",
            Self::LoadBalancer => "load-balancer",
            Self::LoadBalancerLocal => "load-balancer-local",
            Self::LoadBalancerFw => "load-balancer-fw",
            Self::LoadBalancerSourceIp => "load-balancer-source-ip",
            Self::LoadBalancerSourceCidr => "load-balancer-source-cidr",
            Self::NodePort(Protocol::Tcp) => "node-port-tcp",
            Self::NodePort(Protocol::Udp) => "node-port-udp",
            Self::NodePort(Protocol::Sctp) => "node-port-sctp-hash",
            Self::NodePortLocal(Protocol::Tcp) => "node-port-local-tcp",
            Self::NodePortLocal(Protocol::Udp) => "node-port-local-udp",
            Self::NodePortLocal(Protocol::Sctp) => "node-port-local-sctp-hash",
            Self::HealthChecks => "health-check-node-port",
            Self::LoopBack => "loop-back",
        }
    }

    /// What it is made of.
    pub fn shape(self) -> Shape {
        match self {
            Self::Addresses => Shape::Ip,
            Self::Inside => Shape::KeyMark,
            Self::LoadBalancerSourceIp | Self::LoopBack => Shape::KeySource,
            Self::LoadBalancerSourceCidr => Shape::KeyNet,
            Self::NodePort(Protocol::Tcp | Protocol::Udp)
            | Self::NodePortLocal(Protocol::Tcp | Protocol::Udp)
            | Self::HealthChecks => Shape::Port,
            Self::Frontends
            | Self::MasqueradeAll
            | Self::Refuse
            | Self::DropAll
            | Self::DropOutside
            | Self::ClusterIp
            | Self::ExternalIp
            | Self::ExternalIpLocal
            | Self::LoadBalancer
            | Self::LoadBalancerLocal
            | Self::LoadBalancerFw
            | Self::NodePort(Protocol::Sctp)
            | Self::NodePortLocal(Protocol::Sctp) => Shape::Key,
        }
    }

    /// The element that stands for a frontend in a set of keys or ports.
    pub fn element(self, key: Key) -> Element {
        if self.shape() == Shape::Port {
            Element::Port(key.port)
        } else {
            Element::Key(key)
        }
    }
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// An address.
    Ip(IpAddr),
    /// Address, protocol and port.
    Key(Key),
    /// The same, and who may come.
    From(Key, IpNetwork),
    /// The same, and the mark it maps to.
    Mark(Key, u32),
    /// A port.
    Port(u16),
}

/// An element of a set.
pub type Entry = (SetId, Element);
