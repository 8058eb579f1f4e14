//! From the API's objects to typed ones. What cannot be read allows nothing, and is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use api::cidr::{Family, parse_cidr, parse_ip};
use api::networking::{NetworkPolicy, NumberOrName, PolicyPeer, PolicyPort};
use api::selector::{LabelSelector, LabelSelectorSpec};

use crate::ranges::{self, Range};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// From its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A direction, as the selected pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// A transport protocol that policies know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// By the API's word; the empty one is TCP.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// `IPPROTO_...`.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A network policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The pods of its namespace that it is about; none at all when the selector cannot be read.
    pub selects: Option<LabelSelector>,
    /// What it lets in; `None`: it is not about ingress.
    pub ingress: Option<Vec<Rule>>,
    /// What it lets out; `None`: it is not about egress.
    pub egress: Option<Vec<Rule>>,
}

impl Policy {
    /// The rules of a direction.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Allows what fits a peer and a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// `None`: everyone.
    pub peers: Option<Peers>,
    /// `None`: every port, and what has no ports.
    pub ports: Option<Ports>,
}

/// Who is at the other end: any of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peers {
    /// Pods.
    pub pods: BTreeSet<PodSet>,
    /// IPv4 addresses.
    pub v4: Vec<Range>,
    /// IPv6 addresses.
    pub v6: Vec<Range>,
}

impl Peers {
    /// The addresses of one family.
    pub fn ranges(&self, family: Family) -> &[Range] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// Ports of the side that is connected to: any of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// Numbers.
    pub numbers: BTreeMap<Protocol, Vec<Range>>,
    /// Names, resolved for each pod.
    pub names: BTreeSet<(Protocol, String)>,
}

/// Pods by labels, of namespaces by name or labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSet {
    /// Of which namespaces.
    pub namespaces: Namespaces,
    /// Which of them.
    pub pods: LabelSelector,
    /// Tells it from others.
    text: String,
}

/// Which namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    /// This one.
    Named(String),
    /// Those with labels.
    Labelled(LabelSelector),
}

impl PodSet {
    /// From its parts.
    pub fn new(namespaces: Namespaces, pods: LabelSelector) -> Self {
        // Not for people: selectors that differ must not look the same.
        let text = format!("{namespaces:?} {pods:?}");
        Self {
            namespaces,
            pods,
            text,
        }
    }

    /// Equal for equal ones only.
    pub fn identity(&self) -> &str {
        &self.text
    }

    /// Whether a pod with these labels in a namespace with those is one of them.
    pub fn holds(&self, namespace: &str, of_namespace: Option<&Labels>, labels: &Labels) -> bool {
        let place = match &self.namespaces {
            Namespaces::Named(name) => name == namespace,
            Namespaces::Labelled(selector) => of_namespace.is_some_and(|l| selector.matches(l)),
        };
        place && self.pods.matches(labels)
    }
}

impl PartialOrd for PodSet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PodSet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Display for PodSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            Namespaces::Named(name) => write!(f, "namespace {name}")?,
            Namespaces::Labelled(selector) => write!(f, "namespaces {{{selector}}}")?,
        }
        write!(f, " pods {{{}}}", self.pods)
    }
}

/// A port of a container that has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// Protocol.
    pub protocol: Protocol,
    /// Name.
    pub name: String,
    /// Number.
    pub port: u16,
}

/// A pod with a network of its own that has not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Labels.
    pub labels: Labels,
    /// The node it is on.
    pub node: String,
    /// Its addresses; none before it has its network.
    pub ips: BTreeSet<IpAddr>,
    /// Ports with names.
    pub ports: BTreeSet<NamedPort>,
    /// It is being deleted.
    pub leaves: bool,
    /// When it was made, RFC 3339.
    pub made: String,
}

/// Reads a pod; `None` for one that policies are not about.
pub fn pod(pod: api::pod::Pod) -> Option<Pod> {
    let ended = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
    if ended || pod.spec.host_network {
        return None;
    }
    let addresses = pod.status.addresses();
    let ips = addresses.into_iter().filter_map(parse_ip).collect();
    let beside = |c: &&api::pod::Container| c.restart_policy.as_deref() == Some("Always");
    let sidecars = pod.spec.init_containers.iter().filter(beside);
    let ports = sidecars.chain(&pod.spec.containers).flat_map(|c| &c.ports);
    let named = ports
        .filter(|port| !port.name.is_empty())
        .filter_map(|port| {
            Some(NamedPort {
                protocol: Protocol::parse(&port.protocol)?,
                name: port.name.clone(),
                port: u16::try_from(port.container_port).ok()?,
            })
        });
    Some(Pod {
        ips,
        ports: named.collect(),
        leaves: pod.metadata.deletion_timestamp.is_some(),
        made: pod.metadata.creation_timestamp.unwrap_or_default(),
        labels: pod.metadata.labels,
        node: pod.spec.node_name,
    })
}

/// Reads a policy. Beside it, what cannot be read.
pub fn policy(policy: &NetworkPolicy) -> (Policy, Vec<String>) {
    let mut reader = Reader {
        namespace: &policy.metadata.namespace,
        problems: Vec::new(),
    };
    let spec = &policy.spec;
    let selects = reader.selector("podSelector", &spec.pod_selector);
    let types: Vec<&str> = spec.policy_types.iter().map(String::as_str).collect();
    for other in types.iter().filter(|t| !["Ingress", "Egress"].contains(t)) {
        reader.problem(format!("policyTypes: no such type {other:?}"));
    }
    // Without types every policy is about ingress, and about egress if it has rules for it.
    let is_ingress = types.is_empty() || types.contains(&"Ingress");
    let is_egress = types.contains(&"Egress") || (types.is_empty() && !spec.egress.is_empty());
    let ingress = is_ingress.then(|| {
        let rules = spec.ingress.iter().enumerate();
        let read = rules.map(|(i, r)| reader.rule(&format!("ingress[{i}]"), &r.from, &r.ports));
        read.collect()
    });
    let egress = is_egress.then(|| {
        let rules = spec.egress.iter().enumerate();
        let read = rules.map(|(i, r)| reader.rule(&format!("egress[{i}]"), &r.to, &r.ports));
        read.collect()
    });
    let parsed = Policy {
        selects,
        ingress,
        egress,
    };
    (parsed, reader.problems)
}

struct Reader<'a> {
    namespace: &'a str,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    fn selector(&mut self, field: &str, spec: &LabelSelectorSpec) -> Option<LabelSelector> {
        match LabelSelector::from_spec(spec) {
            Ok(selector) => Some(selector),
            Err(error) => {
                self.problem(format!("{field}: {error}; it matches nothing"));
                None
            }
        }
    }

    fn rule(&mut self, field: &str, peers: &[PolicyPeer], ports: &[PolicyPort]) -> Rule {
        Rule {
            peers: (!peers.is_empty()).then(|| self.peers(field, peers)),
            ports: (!ports.is_empty()).then(|| self.ports(field, ports)),
        }
    }

    fn peers(&mut self, field: &str, peers: &[PolicyPeer]) -> Peers {
        let mut out = Peers::default();
        for (i, peer) in peers.iter().enumerate() {
            let field = format!("{field} peer {i}");
            let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
            match &peer.ip_block {
                Some(block) if !selects => self.block(&field, block, &mut out),
                None if selects => out.pods.extend(self.pods(&field, peer)),
                Some(_) => self.problem(format!(
                    "{field}: ipBlock excludes selectors; it is left out"
                )),
                None => self.problem(format!("{field}: is empty; it is left out")),
            }
        }
        out.v4 = ranges::union(out.v4);
        out.v6 = ranges::union(out.v6);
        out
    }

    fn pods(&mut self, field: &str, peer: &PolicyPeer) -> Option<PodSet> {
        let namespaces = match &peer.namespace_selector {
            None => Namespaces::Named(self.namespace.to_owned()),
            Some(spec) => {
                Namespaces::Labelled(self.selector(&format!("{field}.namespaceSelector"), spec)?)
            }
        };
        let pods = match &peer.pod_selector {
            None => LabelSelector::everything(),
            Some(spec) => self.selector(&format!("{field}.podSelector"), spec)?,
        };
        Some(PodSet::new(namespaces, pods))
    }

    fn block(&mut self, field: &str, block: &api::networking::IpBlock, out: &mut Peers) {
        let net = match parse_cidr(&block.cidr) {
            Ok(net) => net,
            Err(error) => {
                return self.problem(format!("{field}.ipBlock.cidr: {error}; it is left out"));
            }
        };
        let family = Family::of_net(&net);
        let mut without = Vec::new();
        for except in &block.except {
            match parse_cidr(except) {
                Ok(except) if Family::of_net(&except) == family => {
                    without.push(ranges::of_net(&except))
                }
                // Better nobody than someone who was to be left out.
                Ok(_) | Err(_) => {
                    let text =
                        format!("{field}.ipBlock.except: {except:?} is not a network of {net}");
                    return self.problem(format!("{text}; the block is left out"));
                }
            }
        }
        let ranges = ranges::subtract(ranges::of_net(&net), without);
        match family {
            Family::V4 => out.v4.extend(ranges),
            Family::V6 => out.v6.extend(ranges),
        }
    }

    fn ports(&mut self, field: &str, ports: &[PolicyPort]) -> Ports {
        let mut out = Ports::default();
        for (i, port) in ports.iter().enumerate() {
            if let Err(problem) = add_port(port, &mut out) {
                self.problem(format!("{field}.ports[{i}]: {problem}; it is left out"));
            }
        }
        for ranges in out.numbers.values_mut() {
            *ranges = ranges::union(std::mem::take(ranges));
        }
        out
    }
}

fn add_port(port: &PolicyPort, out: &mut Ports) -> Result<(), String> {
    let word = port.protocol.as_deref().unwrap_or_default();
    let protocol = Protocol::parse(word).ok_or_else(|| format!("no such protocol {word:?}"))?;
    let range = match (&port.port, port.end_port) {
        (None, None) => (0, u128::from(u16::MAX)),
        (Some(NumberOrName::Number(first)), last) => {
            let number = |n: i64| match u16::try_from(n) {
                Ok(n) if n > 0 => Ok(u128::from(n)),
                _ => Err(format!("{n} is not a port")),
            };
            let first = number(*first)?;
            let last = last.map_or(Ok(first), number)?;
            if last < first {
                return Err(format!("endPort {last} is below port {first}"));
            }
            (first, last)
        }
        (Some(NumberOrName::Name(name)), None) => {
            out.names.insert((protocol, name.clone()));
            return Ok(());
        }
        (_, Some(_)) => return Err("endPort needs a port that is a number".to_owned()),
    };
    out.numbers.entry(protocol).or_default().push(range);
    Ok(())
}

#[cfg(test)]
mod tests;
