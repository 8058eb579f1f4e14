//! One decision becomes the virtual servers of its port and their entries in the sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use linux::ipvs::{self, ServerId};

use super::Options;
use super::sets::{Element, Entry, Key, SetId};
use crate::backend::{NodePortScope, Settings};
use crate::model::{BySource, Decision, Path, Protocol, Set, SourceFilter, Verdict};

/// All that planning one port needs beside its decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Settings of all modes.
    pub settings: Settings,
    /// Settings of this mode.
    pub options: Options,
    /// The node's own addresses of this family, loopback and services' addresses left out.
    pub node_ips: BTreeSet<IpAddr>,
}

impl Context {
    /// Where node ports are served.
    fn node_port_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let settings = &self.settings;
        let only = match &settings.node_ports {
            NodePortScope::All => None,
            NodePortScope::Only(ips) => Some(ips),
        };
        self.node_ips.iter().copied().filter(move |ip| {
            only.is_none_or(|only| only.contains(ip)) && !settings.dns_ips.contains(ip)
        })
    }
}

/// A virtual server and its destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Virtual {
    /// Its properties.
    pub server: ipvs::Server,
    /// Protocol of its packets: how destinations leave.
    pub protocol: Protocol,
    /// Destinations that get new connections, sorted.
    pub destinations: Arc<[SocketAddr]>,
}

/// A virtual server with what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// The virtual server, where there is anybody to serve.
    pub of: Option<Virtual>,
    /// Its entries in the sets.
    pub entries: Vec<Entry>,
    /// An address for the dummy device.
    pub bind: Option<IpAddr>,
}

/// One service port's share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortPlan {
    /// Virtual servers.
    pub frontends: BTreeMap<ServerId, Arc<Frontend>>,
    /// Entries that belong to none of these: endpoints that may reach themselves, and where health
    /// checks are answered.
    pub entries: BTreeSet<Entry>,
}

/// Whether pods and the node go to other endpoints than everybody else through external addresses:
/// then these go to a virtual server of their own, told by a mark.
pub fn needs_mark(decision: &Decision) -> bool {
    inside_set(decision).is_some()
}

fn inside_set(decision: &Decision) -> Option<Set> {
    let paths = decision.external;
    match paths.node.verdict {
        Verdict::Forward(set)
            if decision.externally_accessible() && paths.outside.verdict != paths.node.verdict =>
        {
            Some(set)
        }
        Verdict::Forward(_) | Verdict::Reject | Verdict::Drop => None,
    }
}

/// Plans one service port; `mark` is the one it has where [`needs_mark`].
pub fn plan_port(decision: &Decision, context: &Context, mark: Option<u32>) -> PortPlan {
    let mut planner = Planner {
        decision,
        context,
        sets: BTreeMap::new(),
        plan: PortPlan::default(),
    };
    planner.plan(mark);
    planner.plan
}

/// What kind of address a frontend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

struct Planner<'a> {
    decision: &'a Decision,
    context: &'a Context,
    /// Each set is made once: the port's virtual servers share it.
    sets: BTreeMap<Set, Arc<[SocketAddr]>>,
    plan: PortPlan,
}

impl Planner<'_> {
    fn plan(&mut self, mark: Option<u32>) {
        let decision = self.decision;
        if let Some(ip) = decision.cluster_ip {
            self.frontend(Kind::ClusterIp, ip, decision.port, None, None);
        }
        let mark = mark.filter(|_| needs_mark(decision));
        for ip in &decision.external_ips {
            self.frontend(Kind::ExternalIp, *ip, decision.port, None, mark);
        }
        if let Some(port) = decision.node_port {
            let context = self.context;
            for ip in context.node_port_ips() {
                self.frontend(Kind::NodePort, ip, port, None, mark);
            }
        }
        let sources = self.sources();
        for ip in &decision.balancer_ips {
            let sources = sources.as_deref();
            self.frontend(Kind::LoadBalancer, *ip, decision.port, sources, mark);
        }
        if let (Some(mark), Some(set)) = (mark, inside_set(decision)) {
            let ipv6 = decision.family == api::cidr::Family::V6;
            let id = ServerId::Mark { ipv6, mark };
            let of = self.server(id, set);
            let frontend = Frontend {
                of: Some(of),
                entries: Vec::new(),
                bind: None,
            };
            self.plan.frontends.insert(id, Arc::new(frontend));
        }
        if !self.plan.frontends.is_empty() {
            let here = decision.targets.iter().filter(|target| target.local);
            let itself = here.map(|target| {
                let key = Key {
                    ip: target.ip,
                    protocol: decision.name.protocol,
                    port: target.port,
                };
                let from = Element::From(key, IpNetwork::from(target.ip));
                (SetId::LoopBack, from)
            });
            self.plan.entries = itself.collect();
        }
        if let Some(port) = decision.health_check_node_port {
            let check = (SetId::HealthChecks, Element::Port(port));
            self.plan.entries.insert(check);
        }
    }

    fn server(&mut self, id: ServerId, set: Set) -> Virtual {
        let decision = self.decision;
        let destinations = self.sets.entry(set).or_insert_with(|| {
            let chosen = decision.set(set);
            chosen
                .map(|target| SocketAddr::new(target.ip, target.port))
                .collect()
        });
        let options = &self.context.options;
        Virtual {
            server: ipvs::Server {
                id,
                scheduler: Some(options.scheduler),
                options: options.of_servers(),
                persistence: decision.affinity_seconds,
            },
            protocol: decision.name.protocol,
            destinations: destinations.clone(),
        }
    }

    /// One address and port. `sources`: only these may come.
    fn frontend(
        &mut self,
        kind: Kind,
        ip: IpAddr,
        port: u16,
        sources: Option<&[IpNetwork]>,
        mark: Option<u32>,
    ) {
        let paths = match kind {
            Kind::ClusterIp => self.decision.internal,
            Kind::ExternalIp | Kind::LoadBalancer | Kind::NodePort => self.decision.external,
        };
        let key = Key {
            ip,
            protocol: self.decision.name.protocol,
            port,
        };
        let id = key.server();
        // The same address can be listed as several kinds; the first is the least restricted.
        if self.context.options.excludes(ip) || self.plan.frontends.contains_key(&id) {
            return;
        }
        // An address that is the node's own is local already. On the dummy device it would hide
        // what listens there, and would be taken away with the service.
        let own = self.context.node_ips.contains(&ip) || ip.is_loopback();
        let mut entries = vec![(SetId::Frontends, Element::Key(key))];
        if !own {
            entries.push((SetId::Addresses, Element::Ip(ip)));
        }
        if let Some(sources) = sources {
            entries.push((SetId::LoadBalancerFw, Element::Key(key)));
            let allowed = sources.iter().map(|net| Element::From(key, *net));
            entries.extend(allowed.map(|element| (SetId::LoadBalancerSourceCidr, element)));
            let own = self.own_addresses();
            let own = own.map(|ip| Element::From(key, IpNetwork::from(ip)));
            entries.extend(own.map(|element| (SetId::LoadBalancerSourceIp, element)));
        }
        if let Some(mark) = mark {
            entries.push((SetId::Inside, Element::Mark(key, mark)));
        }
        let sets = sets(kind, key.protocol, &paths).into_iter();
        let sets = sets.chain(denial(&paths));
        entries.extend(sets.map(|set| (set, set.element(key))));
        let of = match paths.outside.verdict {
            Verdict::Forward(set) => Some(self.server(id, set)),
            Verdict::Reject | Verdict::Drop => None,
        };
        let frontend = Frontend {
            of,
            entries,
            bind: (!own).then_some(ip),
        };
        self.plan.frontends.insert(id, Arc::new(frontend));
    }

    /// Who may use a balancer's address; `None`: everybody.
    fn sources(&self) -> Option<Vec<IpNetwork>> {
        let SourceFilter::Only { nets, .. } = &self.decision.source_filter else {
            return None;
        };
        let mut sources = nets.clone();
        // One look-up finds one network: those within another add nothing.
        let all = sources.clone();
        sources.sort_unstable();
        sources.dedup();
        sources.retain(|net| {
            !all.iter()
                .any(|other| other != net && is_within(*net, *other))
        });
        Some(sources)
    }

    /// A balancer's addresses, where a node may use them: as their own source.
    fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let may = match &self.decision.source_filter {
            SourceFilter::Only { own_address, .. } => *own_address,
            SourceFilter::Anybody => false,
        };
        let all = self.decision.balancer_ips.iter().copied();
        all.filter(move |_| may)
    }
}

fn is_within(net: IpNetwork, other: IpNetwork) -> bool {
    other.prefix() <= net.prefix() && other.contains(net.ip())
}

/// The sets of a kind of address, by which the rules tell who is masqueraded.
fn sets(kind: Kind, protocol: Protocol, paths: &BySource<Path>) -> Vec<SetId> {
    // Only `externalTrafficPolicy: Local` keeps the source of who comes to an external address.
    let local = !paths.outside.masquerade;
    let both = |all: SetId, some: SetId| {
        let some = local.then_some(some);
        std::iter::once(all).chain(some).collect()
    };
    match kind {
        Kind::ClusterIp => {
            let all = paths.pod.masquerade.then_some(SetId::MasqueradeAll);
            std::iter::once(SetId::ClusterIp).chain(all).collect()
        }
        Kind::ExternalIp if local => vec![SetId::ExternalIpLocal],
        Kind::ExternalIp => vec![SetId::ExternalIp],
        Kind::LoadBalancer => both(SetId::LoadBalancer, SetId::LoadBalancerLocal),
        Kind::NodePort => both(SetId::NodePort(protocol), SetId::NodePortLocal(protocol)),
    }
}

/// The set that says who is dropped.
fn denial(paths: &BySource<Path>) -> Option<SetId> {
    match (paths.node.verdict, paths.outside.verdict) {
        (Verdict::Drop, _) => Some(SetId::DropAll),
        (_, Verdict::Drop) => Some(SetId::DropOutside),
        (_, Verdict::Reject) => Some(SetId::Refuse),
        (_, Verdict::Forward(_)) => None,
    }
}
