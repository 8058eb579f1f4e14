//! The chains that are there whatever services exist, and the rules of ours in built-in chains.

use std::collections::BTreeMap;

use api::cidr::Family;

use super::names;
use super::rule::{ChainName, ChainRef, Hook, Match, Rule, Table, Target, to};
use crate::backend::{NodePortScope, Settings};

/// Chains of a name of their own, without those in which a dispatch tree starts. With `counted`, rules
/// count into the kernel's counters.
pub fn chains(settings: &Settings, counted: bool) -> BTreeMap<ChainRef, Vec<Rule>> {
    let mut chains = BTreeMap::new();
    for table in Table::ALL {
        chains.insert(ChainRef::new(table, names::CANARY), Vec::new());
    }
    let mut add = |table, name, rules| chains.insert(ChainRef::new(table, name), rules);
    let bit = settings.mark;
    add(
        Table::Nat,
        names::MARK_MASQ,
        vec![Rule::new([], Target::SetMark(bit))],
    );
    let masquerade = Target::Masquerade {
        random_fully: settings.random_fully,
    };
    let mut leaving = vec![Rule::new(
        [Match::Marked { bit, not: true }],
        Target::Return,
    )];
    if counted && settings.serves_localhost() {
        // The node is masqueraded on its way to a node port, so each such connection comes by, once.
        let loopback = Match::FirstDestination(settings.family.loopback());
        let matches = [loopback, Match::Counted(names::COUNTER_LOCALHOST)];
        leaving.push(Rule::new(matches, Target::Continue));
    }
    // A packet that passes here twice (an overlay's outer packet keeps the mark) must not be
    // masqueraded twice.
    leaving.push(Rule::new([], Target::FlipMark(bit)));
    leaving.push(Rule::new([], masquerade).comment("kubernetes service traffic requiring SNAT"));
    add(Table::Nat, names::POSTROUTING, leaving);
    add(Table::Filter, names::FORWARD, forward(settings, counted));
    if settings.serves_localhost() {
        add(Table::Filter, names::FIREWALL, vec![localnet_rule()]);
    }
    chains
}

fn forward(settings: &Settings, counted: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    if settings.drop_invalid {
        // Conntrack does not translate such a packet back, and its receiver would answer an
        // unknown source with a reset that kills the connection.
        let mut matches = vec![Match::StateInvalid];
        if counted {
            matches.push(Match::Counted(names::COUNTER_INVALID));
        }
        rules.push(Rule::new(matches, Target::Drop));
    }
    let marked = Match::Marked {
        bit: settings.mark,
        not: false,
    };
    rules.push(Rule::new([marked], Target::Accept).comment("kubernetes forwarding rules"));
    rules.push(
        Rule::new([Match::StateEstablished], Target::Accept)
            .comment("kubernetes forwarding conntrack rule"),
    );
    rules
}

/// With `route_localnet` on, neighbours could send to 127.0.0.1; this keeps them out.
fn localnet_rule() -> Rule {
    let net = Family::V4.loopback();
    Rule::new(
        [
            Match::Source { net, not: true },
            Match::Destination { net, not: false },
            Match::StateForeign,
        ],
        Target::Drop,
    )
    .comment("block incoming localnet connections")
}

/// The last rules of nat `KUBE-SERVICES`: what is no service address may be a node port.
pub fn services_tail(settings: &Settings) -> Vec<Rule> {
    const COMMENT: &str =
        "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
    let node_ports = ChainName::new(names::NODEPORTS);
    let dns = settings.dns_ips.iter().map(|ip| {
        let comment = "cluster DNS addresses have no node ports";
        Rule::new([to(*ip)], Target::Return).comment(comment)
    });
    let mut rules: Vec<Rule> = dns.collect();
    match &settings.node_ports {
        NodePortScope::All => {
            let mut matches = Vec::new();
            if !settings.serves_localhost() {
                matches.push(Match::Destination {
                    net: settings.family.loopback(),
                    not: true,
                });
            }
            matches.push(Match::DestinationIsLocal);
            rules.push(Rule::jump(matches, &node_ports).comment(COMMENT));
        }
        NodePortScope::Only(ips) => {
            let served = ips
                .iter()
                .filter(|ip| !ip.is_loopback() || settings.serves_localhost());
            rules.extend(served.map(|ip| Rule::jump([to(*ip)], &node_ports).comment(COMMENT)));
        }
    }
    rules
}

/// The last rule of filter `KUBE-EXTERNAL-SERVICES`.
pub fn external_tail() -> Vec<Rule> {
    let to = ChainName::new(names::EXTERNAL_NODEPORTS);
    vec![Rule::jump([Match::DestinationIsLocal], &to).comment("node ports that cannot be served")]
}

/// Rules in built-in chains, in the order in which they are put in front of what is there.
pub fn hooks(settings: &Settings) -> Vec<Hook> {
    let new = || vec![Match::StateNew];
    let mut hooks = Vec::new();
    let mut add = |table, chain: &str, matches: Vec<Match>, to: &str, comment: &str| {
        hooks.push(Hook {
            chain: ChainRef::new(table, chain),
            rule: Rule::jump(matches, &ChainName::new(to)).comment(comment),
        });
    };
    let external = "kubernetes externally-visible service portals";
    let services = "kubernetes service portals";
    // The node's own connections to an address without endpoints are refused as everybody's are
    // (OUTPUT; kube-proxy lets them leave the node).
    for chain in ["INPUT", "FORWARD", "OUTPUT"] {
        add(
            Table::Filter,
            chain,
            new(),
            names::EXTERNAL_SERVICES,
            external,
        );
    }
    let health = "kubernetes health check service ports";
    add(Table::Filter, "INPUT", vec![], names::NODEPORTS, health);
    for chain in ["FORWARD", "OUTPUT"] {
        add(Table::Filter, chain, new(), names::SERVICES, services);
    }
    let forwarding = "kubernetes forwarding rules";
    add(Table::Filter, "FORWARD", vec![], names::FORWARD, forwarding);
    let firewall = "kubernetes load balancer firewall";
    for chain in ["INPUT", "OUTPUT", "FORWARD"] {
        add(Table::Filter, chain, new(), names::PROXY_FIREWALL, firewall);
    }
    if settings.serves_localhost() {
        for chain in ["INPUT", "OUTPUT"] {
            let comment = "kubernetes localnet firewall";
            add(Table::Filter, chain, vec![], names::FIREWALL, comment);
        }
    }
    for chain in ["OUTPUT", "PREROUTING"] {
        add(Table::Nat, chain, vec![], names::SERVICES, services);
    }
    let postrouting = "kubernetes postrouting rules";
    add(
        Table::Nat,
        "POSTROUTING",
        vec![],
        names::POSTROUTING,
        postrouting,
    );
    hooks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules of a chain of ours, as they are written.
    fn written(change: impl FnOnce(&mut Settings), table: Table, name: &str) -> Vec<String> {
        of(change, false, table, name)
    }

    fn of(
        change: impl FnOnce(&mut Settings),
        counted: bool,
        table: Table,
        name: &str,
    ) -> Vec<String> {
        let mut settings = Settings {
            family: Family::V4,
            mark: 0x4000,
            detect_local: None,
            node_ports: NodePortScope::All,
            localhost_node_ports: true,
            random_fully: true,
            drop_invalid: true,
            dns_ips: Vec::new(),
            service_cidrs: Vec::new(),
        };
        change(&mut settings);
        let rules = chains(&settings, counted).remove(&ChainRef::new(table, name));
        rules
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Table T16: MasqueradeRule.
    #[test]
    fn random_fully_where_it_is_known() {
        for random_fully in [true, false] {
            let of = |settings: &mut Settings| settings.random_fully = random_fully;
            let rules = written(of, Table::Nat, names::POSTROUTING);
            assert!(rules[2].contains("-j MASQUERADE"), "{rules:?}");
            assert_eq!(
                rules[2].contains("--random-fully"),
                random_fully,
                "{rules:?}"
            );
        }
    }

    #[test]
    fn counters_count_what_is_dropped_and_what_loopback_asks() {
        let forward = of(|_| {}, true, Table::Filter, names::FORWARD);
        let drop = "-m conntrack --ctstate INVALID -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP";
        assert_eq!(forward[0], drop);
        let leaving = of(|_| {}, true, Table::Nat, names::POSTROUTING);
        let count = "-m conntrack --ctorigdst 127.0.0.0/8 -m nfacct --nfacct-name localhost_nps_accepted_pkts";
        assert_eq!(leaving[1].trim_end(), count);
        assert_eq!(leaving.len(), 4);
        let elsewhere = |settings: &mut Settings| settings.localhost_node_ports = false;
        assert_eq!(of(elsewhere, true, Table::Nat, names::POSTROUTING).len(), 3);
    }

    /// Table T16: DropInvalidRule.
    #[test]
    fn invalid_packets_are_dropped_unless_tcp_is_liberal() {
        for drop_invalid in [true, false] {
            let of = |settings: &mut Settings| settings.drop_invalid = drop_invalid;
            let rules = written(of, Table::Filter, names::FORWARD);
            let drops = rules
                .iter()
                .any(|rule| rule.contains("INVALID") && rule.contains("DROP"));
            assert_eq!(drops, drop_invalid, "{rules:?}");
        }
    }
}
