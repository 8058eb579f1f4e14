//! The kubelet's flags.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;

/// The node agent of Seaway: runs the pods the API server assigns to this node.
#[derive(Debug, Clone, Parser)]
#[command(name = "kubelet", version, about)]
pub struct Config {
    /// How to reach the API server, and as whom.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Name of this node.
    #[arg(long, value_name = "NAME")]
    pub node_name: String,
    /// Addresses of this node, one of each family; the first is the main one.
    #[arg(long, value_name = "IP[,IP]", value_delimiter = ',', required = true)]
    pub node_ip: Vec<IpAddr>,
    /// Where pods' volumes and the kubelet's own records are kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/seaway/kubelet")]
    pub root_dir: PathBuf,
    /// Where the container runtime keeps its state.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/seaway/runtime")]
    pub runtime_dir: PathBuf,
    /// The image store.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/seaway/images")]
    pub images_dir: PathBuf,
    /// Where the pod network's configuration is looked for.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are looked for.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Where pods' network namespaces are bound [default: ROOT_DIR/netns].
    #[arg(long, value_name = "DIR")]
    pub netns_dir: Option<PathBuf>,
    /// Addresses of the cluster DNS; without one pods get the node's own resolv.conf.
    #[arg(long, value_name = "IP[,IP]", value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// cgroup below which everything of this node lives.
    #[arg(long, value_name = "CGROUP", default_value = "/seaway")]
    pub cgroup_root: String,
    /// Where containers' logs are written.
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods")]
    pub pod_logs_dir: PathBuf,
    /// resolv.conf of the node, the source of what pods inherit.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Where the server for logs and exec listens.
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:10250")]
    pub bind: SocketAddr,
    /// The server's certificate (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_cert: PathBuf,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_key: PathBuf,
    /// Authority of the client certificates the server accepts (PEM).
    #[arg(long, value_name = "FILE")]
    pub client_ca: PathBuf,
    /// What to log: error, warn, info, debug, trace, or a filter such as kubelet=debug,info.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

impl Config {
    /// What clap cannot check: one line naming the flag.
    pub fn check(&self) -> Result<(), String> {
        if self.node_ip.len() > 2 || (self.node_ip.len() == 2 && same_family(&self.node_ip)) {
            return Err("--node-ip: one address, or one of each family".to_owned());
        }
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if self.node_name.is_empty() || !self.node_name.chars().all(valid) {
            return Err(format!(
                "--node-name: \"{}\" is not a DNS name",
                self.node_name
            ));
        }
        if !self.cgroup_root.starts_with('/') {
            return Err("--cgroup-root: must begin with /".to_owned());
        }
        Ok(())
    }
}

fn same_family(ips: &[IpAddr]) -> bool {
    ips.iter().all(IpAddr::is_ipv4) || ips.iter().all(IpAddr::is_ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<Config, String> {
        let base = "kubelet --kubeconfig k --node-name n1 --tls-cert c --tls-key k --client-ca a";
        let all = base.split(' ').chain(extra.split_whitespace());
        Config::try_parse_from(all).map_err(|e| e.to_string())
    }

    #[test]
    fn flags() {
        let config = parse("--node-ip 10.0.0.1,fd00::1 --cluster-dns 10.96.0.10,fd00::a").unwrap();
        assert_eq!(config.check(), Ok(()));
        assert_eq!((config.node_ip.len(), config.cluster_dns.len()), (2, 2));
        assert_eq!(config.bind.port(), 10250);
        assert!(parse("--node-ip x").unwrap_err().contains("--node-ip"));
        assert!(parse("").unwrap_err().contains("--node-ip"));
        let twice = parse("--node-ip 10.0.0.1,10.0.0.2").unwrap();
        assert!(twice.check().unwrap_err().starts_with("--node-ip"));
    }
}
