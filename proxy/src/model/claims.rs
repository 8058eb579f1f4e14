//! Who has an address or a node port when several service ports want it. The API server keeps
//! cluster IPs and node ports apart, but not external addresses, and files are checked by nobody.
//!
//! The older service has it (by `creationTimestamp`, then by name), so that nobody takes away what
//! another one serves, and the outcome does not depend on the order of events.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use api::cidr::Family;

use super::service::{ServicePort, of_family};
use super::{Decision, ObjectRef, PortName, Problem, Protocol, ServiceName};

/// What only one service port can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// A port of an address.
    Address(IpAddr, Protocol, u16),
    /// A port of the node's addresses of a family.
    NodePort(Family, Protocol, u16),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip, protocol, port) => {
                let address = std::net::SocketAddr::new(*ip, *port);
                write!(f, "{address}/{protocol}")
            }
            Self::NodePort(family, protocol, port) => write!(f, "{family} port {port}/{protocol}"),
        }
    }
}

/// One who wants it; the first has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claimant {
    created: Arc<str>,
    /// Place in the service's list.
    index: u16,
    port: PortName,
}

impl Ord for Claimant {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_age = self.created.cmp(&other.created);
        by_age
            .then_with(|| self.port.service.cmp(&other.port.service))
            .then_with(|| self.index.cmp(&other.index))
            .then_with(|| self.port.cmp(&other.port))
    }
}

impl PartialOrd for Claimant {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Claimant {
    fn new(port: &ServicePort) -> Self {
        Self {
            created: port.shared.created.clone(),
            index: port.index,
            port: port.name.clone(),
        }
    }
}

/// All claims.
#[derive(Debug, Default)]
pub struct Claims {
    /// Sorted; hardly ever more than one.
    all: BTreeMap<Claim, Vec<Claimant>>,
}

impl Claims {
    /// A service's ports are other ones now; returns the services that share a claim with them.
    pub fn replace(&mut self, old: &[ServicePort], new: &[ServicePort]) -> BTreeSet<ServiceName> {
        let mut shared = BTreeSet::new();
        for (port, claim) in each(old) {
            let claimant = Claimant::new(port);
            if let Some(claimants) = self.all.get_mut(&claim) {
                claimants.retain(|known| *known != claimant);
                shared.extend(claimants.iter().map(|other| other.port.service.clone()));
                if claimants.is_empty() {
                    self.all.remove(&claim);
                }
            }
        }
        for (port, claim) in each(new) {
            let claimants = self.all.entry(claim).or_default();
            shared.extend(claimants.iter().map(|other| other.port.service.clone()));
            let claimant = Claimant::new(port);
            if let Err(place) = claimants.binary_search(&claimant) {
                claimants.reserve_exact(1);
                claimants.insert(place, claimant);
            }
        }
        shared
    }

    /// Takes out of a decision what others have. What was taken is told.
    pub fn settle(&self, port: &ServicePort, decision: &mut Decision) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut has = |claim: Claim, field: &str| {
            let Some(winner) = self.all.get(&claim).and_then(|all| all.first()) else {
                return true;
            };
            if winner.port == port.name {
                return true;
            }
            problems.push(Problem {
                object: ObjectRef::service(&port.name.service),
                field: field.to_owned(),
                message: format!("{claim} is {}'s already", winner.port),
            });
            false
        };
        let (protocol, number) = (port.name.protocol, decision.port);
        let address = |ip: IpAddr| Claim::Address(ip, protocol, number);
        decision.cluster_ip = decision
            .cluster_ip
            .filter(|ip| has(address(*ip), "spec.clusterIPs"));
        decision
            .external_ips
            .retain(|ip| has(address(*ip), "spec.externalIPs"));
        decision
            .balancer_ips
            .retain(|ip| has(address(*ip), "status.loadBalancer.ingress"));
        decision.node_port = decision.node_port.filter(|node_port| {
            let claim = Claim::NodePort(decision.family, protocol, *node_port);
            has(claim, &format!("spec.ports[{}].nodePort", port.index))
        });
        problems
    }
}

/// What each port claims.
fn each(ports: &[ServicePort]) -> impl Iterator<Item = (&ServicePort, Claim)> {
    ports.iter().flat_map(|port| {
        let families = Family::BOTH
            .into_iter()
            .filter(|family| port.shared.cluster_ip(*family).is_some());
        families.flat_map(move |family| {
            let shared = &port.shared;
            let addresses = of_family(&shared.cluster_ips, family)
                .chain(of_family(&shared.external_ips, family))
                .chain(of_family(&shared.balancer_ips, family));
            let protocol = port.name.protocol;
            let node_port = port
                .node_port
                .map(|number| Claim::NodePort(family, protocol, number));
            addresses
                .map(move |ip| Claim::Address(ip, protocol, port.port))
                .chain(node_port)
                .map(move |claim| (port, claim))
        })
    })
}
