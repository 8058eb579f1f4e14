//! The files below /etc that a pod's containers share: resolv.conf, hosts. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// The options a cluster pod gets: short names go through the search list first.
const CLUSTER_OPTIONS: &str = "ndots:5";
/// Limits of resolv.conf the kubelet enforces (upstream validation: 3 servers, 32 domains of 2048 characters in all).
const SERVERS_MAX: usize = 3;
const SEARCH_MAX: usize = 32;
const SEARCH_CHARS_MAX: usize = 2048;

/// What is the same for all pods of the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    /// Addresses of the cluster DNS, in order.
    pub servers: Vec<IpAddr>,
    /// `cluster.local`
    pub domain: String,
    /// The node's own resolv.conf.
    pub host_resolv_conf: String,
}

#[derive(Debug, Default, PartialEq)]
struct Resolv {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolv {
    fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => parsed.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => parsed.search = words.map(str::to_owned).collect(),
                Some("options") => parsed.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        parsed
    }

    fn render(mut self) -> String {
        dedup(&mut self.servers);
        dedup(&mut self.search);
        self.servers.truncate(SERVERS_MAX);
        self.search.truncate(SEARCH_MAX);
        while self.search.join(" ").len() > SEARCH_CHARS_MAX {
            self.search.pop();
        }
        let mut out = String::new();
        if !self.search.is_empty() {
            out.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        for server in &self.servers {
            out.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            out.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        out
    }
}

/// The pod's /etc/resolv.conf by dnsPolicy and dnsConfig.
pub fn resolv_conf(pod: &Pod, cluster: &Cluster) -> String {
    let spec = pod::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let in_cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod::host_network(pod),
        _ => false,
    };
    let host = Resolv::parse(&cluster.host_resolv_conf);
    let mut resolv = if policy == "None" {
        Resolv::default()
    } else if in_cluster && !cluster.servers.is_empty() {
        let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
        let domain = &cluster.domain;
        let own = [
            format!("{ns}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        Resolv {
            servers: cluster.servers.iter().map(ToString::to_string).collect(),
            search: own.into_iter().chain(host.search).collect(),
            options: vec![CLUSTER_OPTIONS.to_owned()],
        }
    } else {
        host
    };
    if let Some(config) = &spec.dns_config {
        let words = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        resolv.servers.extend(words(&config.nameservers));
        resolv.search.extend(words(&config.searches));
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            // A repeated option replaces the one that was there.
            let same = |o: &String| o.split(':').next() == Some(name);
            resolv.options.retain(|o| !same(o));
            resolv.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    resolv.render()
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

/// The pod's /etc/hosts. A pod in the host's network gets the host's file with its aliases added.
pub fn hosts(pod: &Pod, ips: &[IpAddr], cluster_domain: &str, host_file: &str) -> String {
    let mut out = String::new();
    if pod::host_network(pod) {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(host_file);
    } else {
        out.push_str(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let name = pod::hostname(pod);
        for ip in ips {
            match pod::fqdn(pod, cluster_domain) {
                Some(fqdn) => out.push_str(&format!("{ip}\t{fqdn}\t{name}\n")),
                None => out.push_str(&format!("{ip}\t{name}\n")),
            }
        }
    }
    let mut aliases = pod::spec(pod).host_aliases.iter().flatten().peekable();
    if aliases.peek().is_some() {
        out.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        out.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    fn cluster() -> Cluster {
        Cluster {
            servers: vec!["10.96.0.10".parse().unwrap()],
            domain: "cluster.local".into(),
            host_resolv_conf: "# c\nnameserver 1.1.1.1\nsearch corp.example\noptions edns0\n"
                .into(),
        }
    }

    #[test]
    fn resolv_conf_rows() {
        let in_cluster = "search default.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n";
        let of_host = "search corp.example\nnameserver 1.1.1.1\noptions edns0\n";
        for (spec, expect) in [
            ("{}", in_cluster),
            ("{dnsPolicy: ClusterFirst, hostNetwork: true}", of_host),
            (
                "{dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true}",
                in_cluster,
            ),
            ("{dnsPolicy: Default}", of_host),
            (
                "{dnsPolicy: None, dnsConfig: {nameservers: [\"9.9.9.9\"], searches: [a.b], options: [{name: ndots, value: \"2\"}, {name: edns0}]}}",
                "search a.b\nnameserver 9.9.9.9\noptions ndots:2 edns0\n",
            ),
            (
                "{dnsConfig: {options: [{name: ndots, value: \"1\"}], nameservers: [\"10.96.0.10\"]}}",
                "search default.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:1\n",
            ),
        ] {
            assert_eq!(
                resolv_conf(&pod(&format!("p: {spec}")), &cluster()),
                expect,
                "{spec}"
            );
        }
    }

    #[test]
    fn hosts_rows() {
        let ips = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let p = pod("web: {subdomain: sub, hostAliases: [{ip: \"1.2.3.4\", hostnames: [a, b]}]}");
        let text = hosts(&p, &ips, "cluster.local", "");
        assert!(
            text.contains("10.0.0.1\tweb.sub.default.svc.cluster.local\tweb\nfd00::1\tweb.sub")
        );
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        let host = hosts(
            &pod("w: {hostNetwork: true}"),
            &ips,
            "",
            "127.0.0.1 localhost\n",
        );
        assert!(host.ends_with("127.0.0.1 localhost\n"));
    }
}
