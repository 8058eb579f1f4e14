//! What the settings of the rules follow from, beside the flags: the node's addresses as the kernel
//! has them, and what the API says of the node and of the networks of cluster IPs. Pure: whoever
//! learns something new puts it in and takes the settings out.

use std::net::IpAddr;

use api::cidr::Family;
use ipnetwork::IpNetwork;

use crate::backend::{DetectLocal, Settings};
use crate::config::{Config, Detect};
use crate::node::{self, Addresses};
use crate::store::NodeFacts;

/// Everything about the rules that does not come from services.
#[derive(Debug, Clone)]
pub struct Local {
    config: Config,
    addresses: Addresses,
    facts: NodeFacts,
    service_cidrs: Vec<IpNetwork>,
}

impl Local {
    /// Before the API has said anything.
    pub fn new(config: Config, addresses: Addresses) -> Self {
        Self {
            config,
            addresses,
            facts: NodeFacts::default(),
            service_cidrs: Vec::new(),
        }
    }

    /// The flags.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The kernel has other addresses; true when they differ.
    pub fn set_addresses(&mut self, addresses: Addresses) -> bool {
        let differ = self.addresses != addresses;
        self.addresses = addresses;
        differ
    }

    /// The API says this; true when it is something else than before.
    pub fn set_facts(&mut self, facts: &NodeFacts, service_cidrs: Vec<IpNetwork>) -> bool {
        let mut facts = facts.clone();
        if facts.pod_networks.is_empty() {
            // A node does not lose its networks; an object that lacks them is on its way out.
            facts.pod_networks.clone_from(&self.facts.pod_networks);
        }
        let differ = self.facts != facts || self.service_cidrs != service_cidrs;
        self.facts = facts;
        self.service_cidrs = service_cidrs;
        differ
    }

    /// Whether all that the settings need is known: without the node's pod networks a detector by
    /// them would take everybody for a stranger.
    pub fn is_complete(&self) -> bool {
        self.config.detect != Detect::NodeCidr || !self.facts.pod_networks.is_empty()
    }

    /// The node's address for each family: by flag, else the Node object's, else the one by which
    /// the kernel sends.
    pub fn node_ips(&self) -> Vec<IpAddr> {
        let first =
            |ips: &[IpAddr], family| ips.iter().copied().find(|ip| Family::of(*ip) == family);
        let ips = Family::BOTH.into_iter().filter_map(|family| {
            let given = self.config.node_ip.filter(|ip| Family::of(*ip) == family);
            given
                .or_else(|| first(&self.facts.ips, family))
                .or_else(|| first(&self.addresses.primary, family))
        });
        ips.collect()
    }

    /// The settings of one family.
    pub fn settings(&self, family: Family) -> Settings {
        let config = &self.config;
        let wanted = &config.node_port_addresses;
        let node_ips = self.node_ips();
        let dns = config.dns_ips.iter().copied();
        let nets = self.service_cidrs.iter().copied();
        Settings {
            family,
            mark: config.mark,
            detect_local: self.detect_local(family),
            node_ports: node::node_port_scope(wanted, family, &node_ips, &self.addresses.all),
            localhost_node_ports: config.localhost_node_ports,
            random_fully: true,
            drop_invalid: config.drop_invalid,
            dns_ips: dns.filter(|ip| Family::of(*ip) == family).collect(),
            service_cidrs: nets.filter(|net| Family::of_net(net) == family).collect(),
        }
    }

    fn detect_local(&self, family: Family) -> Option<DetectLocal> {
        match &self.config.detect {
            Detect::Fixed(all) => {
                let of_family = all.iter().find(|(of, _)| *of == family);
                of_family.map(|(_, detect)| detect.clone())
            }
            Detect::NodeCidr => {
                let mut nets = self.facts.pod_networks.iter();
                let net = nets.find(|net| Family::of_net(net) == family);
                net.map(|net| DetectLocal::Net(*net))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::backend::NodePortScope;
    use crate::config::Args;

    fn local(flags: &[&str]) -> Local {
        let args = Args::try_parse_from([&["proxy"], flags].concat()).unwrap();
        let config = Config::new(&args, args.configuration(), "node").unwrap();
        let ip = |text: &str| text.parse().unwrap();
        let addresses = Addresses {
            all: vec![
                ip("127.0.0.1"),
                ip("192.168.0.2"),
                ip("192.168.1.2"),
                ip("::1"),
                ip("2001:db8::1"),
            ],
            primary: vec![ip("192.168.0.2"), ip("2001:db8::1")],
        };
        Local::new(config, addresses)
    }

    fn facts(ips: &[&str], networks: &[&str]) -> NodeFacts {
        NodeFacts {
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            pod_networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
            ..NodeFacts::default()
        }
    }

    #[test]
    fn the_node_is_what_the_flag_says_then_the_object_then_the_kernel() {
        let mut local = local(&[]);
        let shown = |local: &Local| {
            local
                .node_ips()
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(shown(&local), ["192.168.0.2", "2001:db8::1"]);
        assert!(local.set_facts(&facts(&["192.168.1.2"], &[]), Vec::new()));
        assert_eq!(shown(&local), ["192.168.1.2", "2001:db8::1"]);
        let mut flagged = self::local(&["--bind-address=192.0.2.7"]);
        flagged.set_facts(&facts(&["192.168.1.2"], &[]), Vec::new());
        assert_eq!(shown(&flagged), ["192.0.2.7", "2001:db8::1"]);
    }

    #[test]
    fn primary_node_ports_follow_the_node_object() {
        let mut local = local(&["--nodeport-addresses=primary"]);
        let only = |ip: &str| NodePortScope::Only(vec![ip.parse().unwrap()]);
        assert_eq!(local.settings(Family::V4).node_ports, only("192.168.0.2"));
        local.set_facts(&facts(&["192.168.1.2"], &[]), Vec::new());
        assert_eq!(local.settings(Family::V4).node_ports, only("192.168.1.2"));
    }

    #[test]
    fn node_ports_follow_the_kernels_addresses() {
        let mut local = local(&["--nodeport-addresses=192.168.0.0/16"]);
        let addresses = Addresses {
            all: vec!["192.168.7.7".parse().unwrap()],
            primary: Vec::new(),
        };
        assert!(local.set_addresses(addresses.clone()));
        assert!(!local.set_addresses(addresses));
        let only = NodePortScope::Only(vec!["192.168.7.7".parse().unwrap()]);
        assert_eq!(local.settings(Family::V4).node_ports, only);
    }

    #[test]
    fn pod_networks_of_the_node_are_waited_for_and_followed() {
        let mut local = local(&["--detect-local-mode=NodeCIDR"]);
        assert!(!local.is_complete());
        let net = |text: &str| Some(DetectLocal::Net(text.parse().unwrap()));
        local.set_facts(&facts(&[], &["10.1.0.0/24"]), Vec::new());
        assert!(local.is_complete());
        assert_eq!(local.settings(Family::V4).detect_local, net("10.1.0.0/24"));
        assert_eq!(local.settings(Family::V6).detect_local, None);
        local.set_facts(&facts(&[], &["10.2.0.0/24", "fd00::/64"]), Vec::new());
        assert_eq!(local.settings(Family::V4).detect_local, net("10.2.0.0/24"));
        assert_eq!(local.settings(Family::V6).detect_local, net("fd00::/64"));
    }

    #[test]
    fn networks_of_cluster_ips_go_to_their_family() {
        let mut local = local(&[]);
        let nets: Vec<IpNetwork> = ["10.96.0.0/16", "fd00:96::/112"]
            .map(|n| n.parse().unwrap())
            .into();
        assert!(local.set_facts(&NodeFacts::default(), nets.clone()));
        assert!(!local.set_facts(&NodeFacts::default(), nets.clone()));
        assert_eq!(local.settings(Family::V4).service_cidrs, nets[..1]);
        assert_eq!(local.settings(Family::V6).service_cidrs, nets[1..]);
    }
}
