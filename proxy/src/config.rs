//! Flags into a valid [`Config`]. Every default is written here, once; kube-proxy's where it has
//! the flag.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use api::cidr::{Family, parse_cidr, parse_ip};
use clap::{Parser, ValueEnum};
use ipnetwork::IpNetwork;

use crate::backend::{DetectLocal, Mode};

/// Service proxy and cluster DNS of a node.
#[derive(Debug, Clone, Parser)]
#[command(name = "proxy", version, about, long_about = None)]
pub struct Args {
    /// Kubeconfig file of the API server to watch; without it and without --manifests, the service
    /// account of the pod this runs in
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,
    /// Directory of YAML and JSON files (Service, EndpointSlice, Node, List) to use in place of an
    /// API server; watched
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Name of this node; default: the host name in lower case
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// How services are programmed: iptables (nftables, ipvs and ebpf come later)
    #[arg(
        long,
        visible_alias = "proxy-mode",
        value_name = "MODE",
        default_value = "iptables"
    )]
    pub mode: String,
    /// Networks of the cluster's pods, one for each family at most, separated by commas
    #[arg(long, value_name = "CIDR,..", default_value = "")]
    pub cluster_cidr: String,
    /// How traffic of local pods is told from other traffic; default: ClusterCIDR
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<DetectLocalMode>,
    /// Bridge that pods are attached to, for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// First letters of pods' interfaces, for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// Networks of the node's addresses on which node ports are served, separated by commas, or
    /// `primary`; default: all addresses
    #[arg(long, value_name = "CIDR,..", default_value = "")]
    pub nodeport_addresses: String,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub masquerade_all: bool,
    /// Bit of the packet mark that asks for masquerading
    #[arg(long, value_name = "BIT", default_value_t = 14, value_parser = clap::value_parser!(u8).range(0..=31))]
    pub iptables_masquerade_bit: u8,
    /// Serve node ports on 127.0.0.1, too (IPv4; sets net.ipv4.conf.all.route_localnet)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub iptables_localhost_nodeports: bool,
    /// How often the rules are compared with the kernel's
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub iptables_sync_period: Duration,
    /// Shortest time between two changes of the rules
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub iptables_min_sync_period: Duration,
    /// Do not drop packets that conntrack calls invalid
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub conntrack_tcp_be_liberal: bool,
    /// Address of this node where it cannot be found out otherwise
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub bind_address: String,
    /// Where /healthz and /livez are served; empty: nowhere
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: String,
    /// Where /metrics and /proxyMode are served; empty: nowhere
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: String,
    /// Addresses on which this process answers cluster DNS, separated by commas; none: no DNS
    #[arg(long, value_name = "IP,..", default_value = "")]
    pub cluster_dns: String,
    /// Domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Name servers for all other names, separated by commas; default: those of /etc/resolv.conf
    #[arg(long, value_name = "IP[:PORT],..", default_value = "")]
    pub dns_upstream: String,
    /// Take away all rules of this proxy (and of kube-proxy's iptables mode), and end
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub cleanup: bool,
    /// Which messages are logged, e.g. `info` or `proxy=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

/// How traffic of local pods is told from other traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DetectLocalMode {
    /// By --cluster-cidr
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// By the node's pod networks
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// By --pod-bridge-interface
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// By --pod-interface-name-prefix
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// A flag that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {what}")]
pub struct ConfigError {
    flag: &'static str,
    what: String,
}

/// Where objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// An API server; `None`: the pod's service account.
    ApiServer(Option<PathBuf>),
    /// Files.
    Manifests(PathBuf),
}

/// How local pods are detected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detect {
    /// Known from the flags, for each family.
    Fixed(Vec<(Family, DetectLocal)>),
    /// From the node's object.
    NodeCidr,
}

/// On which addresses node ports are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All.
    All,
    /// The node's primary ones.
    Primary,
    /// Those in these networks.
    Within(Vec<IpNetwork>),
}

/// Valid settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// How services are programmed.
    pub mode: Mode,
    /// Where objects come from.
    pub from: From,
    /// Name of the node.
    pub node_name: String,
    /// Address of the node given by flag.
    pub node_ip: Option<IpAddr>,
    /// How local pods are detected.
    pub detect: Detect,
    /// On which addresses node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// Cluster IP traffic is always masqueraded.
    pub masquerade_all: bool,
    /// The mark that asks for masquerading.
    pub mark: u32,
    /// Node ports on 127.0.0.1.
    pub localhost_node_ports: bool,
    /// Invalid packets are dropped.
    pub drop_invalid: bool,
    /// How often rules are verified.
    pub sync_period: Duration,
    /// Shortest time between two syncs.
    pub min_sync_period: Duration,
    /// Health server.
    pub healthz: Option<SocketAddr>,
    /// Metrics server.
    pub metrics: Option<SocketAddr>,
    /// Addresses of cluster DNS.
    pub dns_ips: Vec<IpAddr>,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// Name servers for other names; empty: of /etc/resolv.conf.
    pub dns_upstream: Vec<SocketAddr>,
}

impl Config {
    /// Checks flags; `hostname` is the host's.
    ///
    /// # Errors
    /// Names the flag.
    pub fn new(args: &Args, hostname: &str) -> Result<Self, ConfigError> {
        let mode = parse_mode(&args.mode)?;
        let node_name = args.hostname_override.as_deref().unwrap_or(hostname);
        let node_name = node_name.trim().to_lowercase();
        if node_name.is_empty() {
            return fail("hostname-override", "is empty");
        }
        let bind = parse_ip(&args.bind_address);
        let Some(bind) = bind else {
            return fail(
                "bind-address",
                format!("{:?} is no address", args.bind_address),
            );
        };
        let mut dns_ips = Vec::new();
        for text in split(&args.cluster_dns) {
            match parse_ip(text) {
                Some(ip) if !ip.is_unspecified() && !ip.is_loopback() => dns_ips.push(ip),
                _ => return fail("cluster-dns", format!("{text:?} is no address to serve on")),
            }
        }
        let mut dns_upstream = Vec::new();
        for text in split(&args.dns_upstream) {
            dns_upstream.push(upstream(text)?);
        }
        let from = match &args.manifests {
            Some(dir) => From::Manifests(dir.clone()),
            None => From::ApiServer(args.kubeconfig.clone()),
        };
        let domain = args.cluster_domain.trim_end_matches('.').to_lowercase();
        if domain.is_empty() {
            return fail("cluster-domain", "is empty");
        }
        Ok(Self {
            mode,
            from,
            node_name,
            node_ip: Some(bind).filter(|ip| !ip.is_unspecified()),
            detect: detect(args)?,
            node_port_addresses: node_port_addresses(&args.nodeport_addresses)?,
            masquerade_all: args.masquerade_all,
            mark: 1 << args.iptables_masquerade_bit,
            localhost_node_ports: args.iptables_localhost_nodeports,
            drop_invalid: !args.conntrack_tcp_be_liberal,
            sync_period: args.iptables_sync_period.max(Duration::from_secs(1)),
            min_sync_period: args.iptables_min_sync_period,
            healthz: listen("healthz-bind-address", &args.healthz_bind_address)?,
            metrics: listen("metrics-bind-address", &args.metrics_bind_address)?,
            dns_ips,
            cluster_domain: domain,
            dns_upstream,
        })
    }
}

fn fail<T>(flag: &'static str, what: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError {
        flag,
        what: what.into(),
    })
}

fn split(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

fn parse_mode(mode: &str) -> Result<Mode, ConfigError> {
    match mode {
        "" | "iptables" => Ok(Mode::Iptables),
        "nftables" | "ipvs" | "ebpf" | "auto" => {
            fail("mode", format!("{mode} is not there yet; use iptables"))
        }
        _ => fail("mode", format!("{mode:?} is unknown; use iptables")),
    }
}

fn detect(args: &Args) -> Result<Detect, ConfigError> {
    let mode = args
        .detect_local_mode
        .unwrap_or(DetectLocalMode::ClusterCidr);
    let both = |detect: DetectLocal| {
        let all = Family::BOTH.map(|family| (family, detect.clone()));
        Ok(Detect::Fixed(all.to_vec()))
    };
    let name = |flag: &'static str, value: &Option<String>| match value.as_deref() {
        Some(name) if !name.is_empty() && name.len() < 16 && !name.contains([' ', '/', '+']) => {
            Ok(name.to_owned())
        }
        Some(name) => fail(flag, format!("{name:?} is no name of an interface")),
        None => fail(flag, "is needed by this --detect-local-mode"),
    };
    match mode {
        DetectLocalMode::NodeCidr => Ok(Detect::NodeCidr),
        DetectLocalMode::BridgeInterface => both(DetectLocal::Interface(name(
            "pod-bridge-interface",
            &args.pod_bridge_interface,
        )?)),
        DetectLocalMode::InterfaceNamePrefix => both(DetectLocal::InterfacePrefix(name(
            "pod-interface-name-prefix",
            &args.pod_interface_name_prefix,
        )?)),
        DetectLocalMode::ClusterCidr => {
            let mut nets: Vec<(Family, DetectLocal)> = Vec::new();
            for text in split(&args.cluster_cidr) {
                let net = match parse_cidr(text) {
                    Ok(net) => net,
                    Err(e) => return fail("cluster-cidr", e.to_string()),
                };
                let family = Family::of_net(&net);
                if nets.iter().any(|(known, _)| *known == family) {
                    return fail("cluster-cidr", format!("more than one {family} network"));
                }
                nets.push((family, DetectLocal::Net(net)));
            }
            if nets.is_empty() && args.detect_local_mode.is_some() {
                return fail(
                    "cluster-cidr",
                    "is needed by --detect-local-mode ClusterCIDR",
                );
            }
            Ok(Detect::Fixed(nets))
        }
    }
}

fn node_port_addresses(text: &str) -> Result<NodePortAddresses, ConfigError> {
    let parts: Vec<&str> = split(text).collect();
    if parts == ["primary"] {
        return Ok(NodePortAddresses::Primary);
    }
    let mut nets = Vec::new();
    for part in parts {
        match parse_cidr(part) {
            Ok(net) => nets.push(net),
            Err(e) => return fail("nodeport-addresses", e.to_string()),
        }
    }
    Ok(if nets.is_empty() {
        NodePortAddresses::All
    } else {
        NodePortAddresses::Within(nets)
    })
}

fn listen(flag: &'static str, text: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => fail(flag, format!("{text:?} is not ADDRESS:PORT")),
    }
}

fn upstream(text: &str) -> Result<SocketAddr, ConfigError> {
    let with_port = text.parse::<SocketAddr>().ok();
    let address = with_port.or_else(|| Some(SocketAddr::new(parse_ip(text)?, 53)));
    match address {
        Some(address) => Ok(address),
        None => fail("dns-upstream", format!("{text:?} is no address")),
    }
}

/// Reads a time as kube-proxy's flags have it: `30s`, `1m30s`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time such as 30s, 1m30s or 500ms");
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        if number == "0" && tail.is_empty() && total.is_zero() {
            return Ok(total);
        }
        let number: u64 = number.parse().map_err(|_not_a_number| bad())?;
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let unit = units.iter().find(|(unit, _)| tail.starts_with(unit));
        let (unit, ms) = unit.ok_or_else(bad)?;
        total += Duration::from_millis(number.checked_mul(*ms).ok_or_else(bad)?);
        rest = &tail[unit.len()..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Result<Config, String> {
        let args = Args::try_parse_from([&["proxy"], flags].concat()).map_err(|e| e.to_string())?;
        Config::new(&args, "Node-1").map_err(|e| e.to_string())
    }

    #[test]
    fn defaults() {
        let config = config(&[]).unwrap();
        assert_eq!(config.node_name, "node-1");
        assert_eq!(config.from, From::ApiServer(None));
        assert_eq!(config.detect, Detect::Fixed(Vec::new()));
        assert_eq!(config.mark, 0x4000);
        assert_eq!(config.sync_period, Duration::from_secs(30));
        assert_eq!(config.healthz.unwrap().to_string(), "0.0.0.0:10256");
        assert!(config.localhost_node_ports && config.drop_invalid && !config.masquerade_all);
    }

    #[track_caller]
    fn check_error(flags: &[&str], expect: &str) {
        let error = config(flags).unwrap_err();
        assert!(error.contains(expect), "{error}");
    }

    #[test]
    fn errors_name_the_flag() {
        check_error(&["--mode", "nftables"], "--mode: nftables is not there yet");
        check_error(&["--mode", "x"], "--mode: \"x\" is unknown");
        check_error(
            &["--cluster-cidr", "10.0.0.0"],
            "--cluster-cidr: \"10.0.0.0\" is not",
        );
        check_error(
            &["--cluster-cidr", "10.0.0.0/8,11.0.0.0/8"],
            "more than one IPv4",
        );
        check_error(&["--cluster-dns", "x"], "--cluster-dns: \"x\"");
        check_error(&["--healthz-bind-address", "x"], "--healthz-bind-address");
        check_error(&["--nodeport-addresses", "1.2.3.4"], "--nodeport-addresses");
        check_error(
            &["--detect-local-mode", "BridgeInterface"],
            "--pod-bridge-interface",
        );
        check_error(
            &["--iptables-masquerade-bit", "32"],
            "--iptables-masquerade-bit",
        );
        check_error(&["--iptables-sync-period", "5"], "--iptables-sync-period");
        check_error(&["--nonsense"], "--nonsense");
    }

    #[test]
    fn times() {
        assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
        assert!(duration("").is_err() && duration("1").is_err() && duration("s").is_err());
    }

    #[test]
    fn booleans_as_go_writes_them() {
        assert!(config(&["--masquerade-all"]).unwrap().masquerade_all);
        assert!(config(&["--masquerade-all=true"]).unwrap().masquerade_all);
        assert!(
            !config(&["--iptables-localhost-nodeports=false"])
                .unwrap()
                .localhost_node_ports
        );
    }
}
