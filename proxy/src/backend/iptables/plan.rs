//! One decision becomes the chains of its port and its entries in the dispatch trees.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::dispatch::Key;
use super::names;
use super::rule::{ChainName, ChainRef, Match, Rule, Target, from, port, to};
use crate::backend::{DetectLocal, Settings};
use crate::model::decide::Target as Endpoint;
use crate::model::{BySource, Decision, Path, Protocol, Set, SourceFilter, Verdict};

/// A dispatch tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    /// nat: addresses to service chains.
    Services,
    /// nat: node ports to service chains.
    NodePorts,
    /// filter: cluster IPs that are refused or dropped.
    NoCluster,
    /// filter: external addresses that are refused or dropped.
    NoExternal,
    /// filter: node ports that are refused or dropped.
    NoNodePort,
    /// filter: load balancer addresses whose source was not let through.
    Firewall,
    /// filter: health check ports, accepted.
    Health,
}

impl Tree {
    /// All.
    pub const ALL: [Self; 7] = [
        Self::Services,
        Self::NodePorts,
        Self::NoCluster,
        Self::NoExternal,
        Self::NoNodePort,
        Self::Firewall,
        Self::Health,
    ];
}

/// One service port's share of the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortPlan {
    /// Its own chains, in the nat table.
    pub chains: BTreeMap<ChainName, Vec<Rule>>,
    /// Its rules in chains that all services share.
    pub entries: BTreeMap<(Tree, Key), Rule>,
}

/// Plans one service port.
pub fn plan_port(decision: &Decision, settings: &Settings) -> PortPlan {
    let planner = Planner {
        decision,
        settings,
        name: decision.name.to_string().into(),
        plan: PortPlan::default(),
    };
    planner.plan()
}

struct Planner<'a> {
    decision: &'a Decision,
    settings: &'a Settings,
    name: Arc<str>,
    plan: PortPlan,
}

impl Planner<'_> {
    fn plan(mut self) -> PortPlan {
        let decision = self.decision;
        for set in [Set::Cluster, Set::Local] {
            if self.uses(set) {
                self.set_chain(set);
            }
        }
        self.internal();
        if decision.externally_accessible() {
            self.external();
        }
        if let Some(number) = decision.health_check_node_port {
            let matches = [port(Protocol::Tcp, number)];
            let rule = Rule::new(matches, Target::Accept)
                .comment(format!("{} health check node port", self.name));
            let key = Key::port(Protocol::Tcp, number);
            self.plan.entries.insert((Tree::Health, key), rule);
        }
        self.plan
    }

    /// Whether any traffic goes to the endpoints of `set`.
    fn uses(&self, set: Set) -> bool {
        let forwards = |paths: &BySource<Path>| {
            [paths.pod, paths.node, paths.outside]
                .iter()
                .any(|path| path.verdict == Verdict::Forward(set))
        };
        let inside = self.decision.cluster_ip.is_some() && forwards(&self.decision.internal);
        inside || (self.decision.externally_accessible() && forwards(&self.decision.external))
    }

    fn set_name(&self, set: Set) -> ChainName {
        match set {
            Set::Cluster => names::cluster(&self.decision.name),
            Set::Local => names::local(&self.decision.name),
        }
    }

    /// The chain that chooses an endpoint, and the chains of the endpoints.
    fn set_chain(&mut self, set: Set) {
        let decision = self.decision;
        let mut rules = Vec::new();
        if decision.internal.pod.verdict == Verdict::Forward(set) {
            rules.extend(self.internal_masquerade());
        }
        let endpoints: Vec<&Endpoint> = decision.set(set).collect();
        let chain_of = |e: &Endpoint| names::endpoint(&decision.name, e.ip, e.port);
        if let Some(seconds) = decision.affinity_seconds {
            for endpoint in &endpoints {
                let chain = chain_of(endpoint);
                let seen = Match::Seen {
                    list: chain.clone(),
                    seconds,
                };
                rules.push(Rule::jump([seen], &chain).comment(self.arrow(endpoint)));
            }
        }
        let mut left = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        for endpoint in &endpoints {
            let chance = (left > 1).then_some(Match::OneOf(left));
            left = left.saturating_sub(1);
            rules.push(if self.has_chain(endpoint) {
                let matches: Vec<Match> = chance.into_iter().collect();
                Rule::jump(matches, &chain_of(endpoint)).comment(self.arrow(endpoint))
            } else {
                let mut matches = vec![Match::Protocol(decision.name.protocol)];
                matches.extend(chance);
                // No comment: it would be most of the rule, in every copy of the table.
                Rule::new(matches, dnat(endpoint))
            });
        }
        self.plan.chains.insert(self.set_name(set), rules);
        for endpoint in endpoints {
            if self.has_chain(endpoint) {
                self.endpoint_chain(endpoint);
            }
        }
    }

    /// Whether an endpoint needs a chain of its own: to remember its clients, or since it may be
    /// its own client. Others' pods reach us, if at all, masqueraded, but for the external
    /// addresses whose policy lets pods' sources through.
    fn has_chain(&self, endpoint: &Endpoint) -> bool {
        let decision = self.decision;
        let pod = decision.external.pod;
        let lets_pods_through = decision.externally_accessible()
            && pod.verdict == Verdict::Forward(Set::Cluster)
            && !pod.masquerade;
        endpoint.local || decision.affinity_seconds.is_some() || lets_pods_through
    }

    fn arrow(&self, endpoint: &Endpoint) -> String {
        let address = std::net::SocketAddr::new(endpoint.ip, endpoint.port);
        format!("{} -> {address}", self.name)
    }

    fn endpoint_chain(&mut self, endpoint: &Endpoint) {
        let decision = self.decision;
        let chain = names::endpoint(&decision.name, endpoint.ip, endpoint.port);
        if self.plan.chains.contains_key(&chain) {
            return;
        }
        // An endpoint that reaches itself must see another source, or it would answer itself
        // directly and nobody would translate the reply.
        let hairpin = self
            .mark(vec![from(endpoint.ip)])
            .comment(self.name.clone());
        let mut matches = vec![Match::Protocol(decision.name.protocol)];
        if decision.affinity_seconds.is_some() {
            matches.push(Match::Remember {
                list: chain.clone(),
            });
        }
        let dnat = Rule::new(matches, dnat(endpoint)).comment(self.name.clone());
        self.plan.chains.insert(chain, vec![hairpin, dnat]);
    }

    /// In the chain of the set that cluster IP traffic uses. Other traffic comes through there,
    /// too, hence the address in the match.
    fn internal_masquerade(&self) -> Option<Rule> {
        let decision = self.decision;
        let address = [
            to(decision.cluster_ip?),
            port(decision.name.protocol, decision.port),
        ];
        let matches = match (
            decision.internal.pod.masquerade,
            decision.internal.outside.masquerade,
        ) {
            (true, true) => address.to_vec(),
            (false, true) => {
                let mut matches = address.to_vec();
                matches.push(self.pod_match(true)?);
                matches
            }
            (_, false) => return None,
        };
        Some(
            self.mark(matches)
                .comment(format!("{} cluster IP", self.name)),
        )
    }

    fn reject(&self) -> Target {
        Target::Reject {
            tcp_reset: self.decision.name.protocol == Protocol::Tcp,
        }
    }

    fn internal(&mut self) {
        let decision = self.decision;
        let Some(ip) = decision.cluster_ip else {
            return;
        };
        let (tree, target, what) = match decision.internal.pod.verdict {
            Verdict::Forward(set) => {
                let chain = Target::Jump(self.set_name(set));
                (Tree::Services, chain, "cluster IP")
            }
            Verdict::Reject => (Tree::NoCluster, self.reject(), "has no endpoints"),
            Verdict::Drop => (Tree::NoCluster, Target::Drop, "has no local endpoints"),
        };
        self.address_entry(tree, ip, target, what);
    }

    fn external(&mut self) {
        let decision = self.decision;
        let paths = decision.external;
        let refused = match paths.outside.verdict {
            Verdict::Forward(_) => None,
            Verdict::Reject => Some((self.reject(), "has no endpoints")),
            Verdict::Drop => Some((Target::Drop, "has no local endpoints")),
        };
        if let Some((target, what)) = refused {
            for ip in decision.external_ips.iter().chain(&decision.balancer_ips) {
                self.address_entry(Tree::NoExternal, *ip, target.clone(), what);
            }
            self.node_port_entry(Tree::NoNodePort, target, what);
        }
        let served = [paths.pod, paths.node, paths.outside];
        if !served
            .iter()
            .any(|path| matches!(path.verdict, Verdict::Forward(_)))
        {
            return;
        }
        let chain = names::external(&decision.name);
        let rules = self.external_chain();
        self.plan.chains.insert(chain.clone(), rules);
        let jump = || Target::Jump(chain.clone());
        for ip in &decision.external_ips {
            self.address_entry(Tree::Services, *ip, jump(), "external IP");
        }
        self.node_port_entry(Tree::NodePorts, jump(), "node port");
        self.balancer(&chain);
    }

    fn balancer(&mut self, external: &ChainName) {
        let decision = self.decision;
        if decision.balancer_ips.is_empty() {
            return;
        }
        let SourceFilter::Only { nets, own_address } = &decision.source_filter else {
            for ip in &decision.balancer_ips {
                let jump = Target::Jump(external.clone());
                self.address_entry(Tree::Services, *ip, jump, "loadbalancer IP");
            }
            return;
        };
        let allow = |each: Match| {
            Rule::jump([each], external).comment(format!("{} loadbalancer IP", self.name))
        };
        let mut rules: Vec<Rule> = nets
            .iter()
            .map(|net| {
                allow(Match::Source {
                    net: *net,
                    not: false,
                })
            })
            .collect();
        if *own_address {
            rules.extend(decision.balancer_ips.iter().map(|ip| allow(from(*ip))));
        }
        let chain = names::firewall(&decision.name);
        self.plan.chains.insert(chain.clone(), rules);
        for ip in &decision.balancer_ips {
            let jump = Target::Jump(chain.clone());
            self.address_entry(Tree::Services, *ip, jump, "loadbalancer IP");
            // What was not translated is still addressed to the balancer when it comes here.
            let what = "traffic not accepted by its source ranges";
            self.address_entry(Tree::Firewall, *ip, Target::Drop, what);
        }
    }

    /// Each source that goes another way than everybody is told apart first.
    fn external_chain(&self) -> Vec<Rule> {
        let paths = self.decision.external;
        let mut rules = Vec::new();
        if paths.pod != paths.outside
            && let Some(pod) = self.pod_match(false)
        {
            let text = format!("pod traffic for {} external destinations", self.name);
            self.follow(paths.pod, vec![pod], &text, &mut rules);
        }
        if paths.node != paths.outside {
            let text = format!(
                "route LOCAL traffic for {} external destinations",
                self.name
            );
            self.follow(paths.node, vec![Match::SourceIsLocal], &text, &mut rules);
        }
        let text = format!("traffic for {} external destinations", self.name);
        self.follow(paths.outside, vec![], &text, &mut rules);
        rules
    }

    fn follow(&self, path: Path, matches: Vec<Match>, text: &str, rules: &mut Vec<Rule>) {
        // What is refused or dropped stays untranslated; the filter table sees to it.
        let Verdict::Forward(set) = path.verdict else {
            return;
        };
        if path.masquerade {
            rules.push(self.mark(matches.clone()).comment(text));
        }
        rules.push(Rule::jump(matches, &self.set_name(set)).comment(text));
    }

    fn mark(&self, matches: Vec<Match>) -> Rule {
        Rule::jump(matches, &ChainName::new(names::MARK_MASQ))
    }

    /// Comes from a pod of this node (or not); `None` without a detector.
    fn pod_match(&self, not: bool) -> Option<Match> {
        Some(match self.settings.detect_local.as_ref()? {
            DetectLocal::Net(net) => Match::Source { net: *net, not },
            DetectLocal::Interface(name) => Match::Arrived {
                interface: name.clone(),
                prefix: false,
                not,
            },
            DetectLocal::InterfacePrefix(name) => Match::Arrived {
                interface: name.clone(),
                prefix: true,
                not,
            },
        })
    }

    fn address_entry(&mut self, tree: Tree, ip: IpAddr, target: Target, what: &str) {
        let (protocol, number) = (self.decision.name.protocol, self.decision.port);
        let rule = Rule::new([to(ip), port(protocol, number)], target)
            .comment(format!("{} {what}", self.name));
        let key = Key::address(ip, protocol, number);
        // The same address can be listed as several kinds; the first is the least restricted.
        self.plan.entries.entry((tree, key)).or_insert(rule);
    }

    fn node_port_entry(&mut self, tree: Tree, target: Target, what: &str) {
        let Some(number) = self.decision.node_port else {
            return;
        };
        let protocol = self.decision.name.protocol;
        let rule =
            Rule::new([port(protocol, number)], target).comment(format!("{} {what}", self.name));
        self.plan
            .entries
            .insert((tree, Key::port(protocol, number)), rule);
    }
}

fn dnat(endpoint: &Endpoint) -> Target {
    Target::Dnat {
        ip: endpoint.ip,
        port: endpoint.port,
    }
}

/// Where a chain of a port's plan lives.
pub fn own_chain(name: &ChainName) -> ChainRef {
    ChainRef::nat(name.clone())
}
