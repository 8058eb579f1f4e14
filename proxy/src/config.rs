//! Flags or a file into a valid [`Config`]. Defaults are written once, in [`mod@file`]; kube-proxy's
//! where it has the setting.

pub mod args;
pub mod file;
pub mod time;
pub mod watch;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use api::cidr::{Family, parse_cidr, parse_ip};
use ipnetwork::IpNetwork;

use linux::ipvs::{Options as ServerOptions, Scheduler, Timeouts};

use crate::backend::ebpf::{Attach, Place, xdp};
use crate::backend::{DetectLocal, Mode, ipvs};

pub use args::{Args, DetectLocalMode};
use args::{EbpfAttach, EbpfXdp};
pub use file::KubeProxyConfiguration;

/// Port of `/healthz` where an address is given without one.
const HEALTHZ_PORT: u16 = 10256;

/// Port of `/metrics` where an address is given without one.
const METRICS_PORT: u16 = 10249;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct ConfigError {
    /// The flag, or the file and the key.
    place: String,
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
    /// URL of the API server, in place of the kubeconfig's.
    pub server: Option<String>,
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
    /// A page that cannot be served ends the program.
    pub bind_hard_fail: bool,
    /// How willingly the kernel kills this process when memory is short.
    pub oom_score_adj: i32,
    /// Connection tracking.
    pub conntrack: file::Conntrack,
    /// Where mode ebpf attaches and pins.
    pub ebpf: Place,
    /// Addresses of cluster DNS.
    pub dns_ips: Vec<IpAddr>,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// Name servers for other names; empty: of /etc/resolv.conf.
    pub dns_upstream: Vec<SocketAddr>,
    /// Of the mode ipvs.
    pub ipvs: ipvs::Options,
    /// Everything as the file has it: for `/configz`, and for settings of one mode only.
    pub settings: KubeProxyConfiguration,
}

impl Config {
    /// Checks settings, which come from `args` or from the file it names; `hostname` is the host's.
    ///
    /// # Errors
    /// Names the flag, or the file and the key.
    pub fn new(
        args: &Args,
        settings: KubeProxyConfiguration,
        hostname: &str,
    ) -> Result<Self, ConfigError> {
        let origin = Origin(args.config.as_deref());
        let mode = parse_mode(&settings.mode).map_err(|what| origin.at("mode", "mode", what))?;
        let override_ = args.hostname_override.as_deref();
        let in_file = Some(settings.hostname_override.as_str()).filter(|name| !name.is_empty());
        let node_name = override_.or(in_file).unwrap_or(hostname);
        let node_name = node_name.trim().to_lowercase();
        if node_name.is_empty() {
            return origin.fail("hostname-override", "hostnameOverride", "is empty");
        }
        let domain = settings.cluster_domain.trim_end_matches('.').to_lowercase();
        if domain.is_empty() {
            return origin.fail("cluster-domain", "clusterDomain", "is empty");
        }
        let conntrack = settings.conntrack.clone();
        let common = Common::of(mode, &settings);
        if common.masquerade_bit > 31 {
            let what = format!("{} is not within 0..=31", common.masquerade_bit);
            return origin.fail("iptables-masquerade-bit", "masqueradeBit", what);
        }
        if !(-1000..=1000).contains(&settings.oom_score_adj) {
            let what = format!("{} is not within -1000..=1000", settings.oom_score_adj);
            return origin.fail("oom-score-adj", "oomScoreAdj", what);
        }
        let pages = [
            (
                "healthz-bind-address",
                "healthzBindAddress",
                &settings.healthz_bind_address,
                HEALTHZ_PORT,
            ),
            (
                "metrics-bind-address",
                "metricsBindAddress",
                &settings.metrics_bind_address,
                METRICS_PORT,
            ),
        ];
        let [healthz, metrics] = pages.map(|(flag, key, text, port)| {
            listen(text, port).map_err(|what| origin.at(flag, key, what))
        });
        Ok(Self {
            mode,
            from: from(args, &settings),
            server: args.master.clone().filter(|url| !url.is_empty()),
            node_ip: origin.node_ip(&settings)?,
            detect: origin.detect(&settings)?,
            node_port_addresses: origin.node_port_addresses(&settings)?,
            masquerade_all: common.masquerade_all,
            mark: 1 << common.masquerade_bit,
            // Virtual servers are not reached from loopback.
            localhost_node_ports: settings.iptables.localhost_node_ports && mode != Mode::Ipvs,
            drop_invalid: !conntrack.tcp_be_liberal,
            sync_period: common.sync_period.max(Duration::from_secs(1)),
            min_sync_period: common.min_sync_period,
            healthz: healthz?,
            metrics: metrics?,
            bind_hard_fail: settings.bind_address_hard_fail,
            oom_score_adj: settings.oom_score_adj,
            conntrack,
            ebpf: ebpf_place(args, &node_name),
            node_name,
            dns_ips: origin.dns_ips(&settings)?,
            cluster_domain: domain,
            dns_upstream: origin.dns_upstream(&settings)?,
            ipvs: origin.ipvs(&settings)?,
            settings,
        })
    }

    /// Which messages are logged: --log-level, else what a verbosity of kube-proxy's means.
    pub fn log_filter(&self, log_level: Option<&str>) -> String {
        let level = match self.settings.logging.verbosity {
            0..=3 => "info",
            4 | 5 => "debug",
            _ => "trace",
        };
        log_level.unwrap_or(level).to_owned()
    }
}

/// What every mode has in a section of its own.
struct Common {
    masquerade_bit: u8,
    masquerade_all: bool,
    sync_period: Duration,
    min_sync_period: Duration,
}

impl Common {
    fn of(mode: Mode, settings: &KubeProxyConfiguration) -> Self {
        let KubeProxyConfiguration {
            iptables,
            nftables,
            ipvs,
            ..
        } = settings;
        let (masquerade_bit, masquerade_all) = match mode {
            // kube-proxy's ipvs mode has no section for these and uses those of iptables.
            Mode::Iptables | Mode::Ipvs => (iptables.masquerade_bit, iptables.masquerade_all),
            Mode::Nftables | Mode::Ebpf => (nftables.masquerade_bit, nftables.masquerade_all),
        };
        let (sync_period, min_sync_period) = match mode {
            Mode::Iptables => (iptables.sync_period, iptables.min_sync_period),
            Mode::Ipvs => (ipvs.sync_period, ipvs.min_sync_period),
            Mode::Nftables | Mode::Ebpf => (nftables.sync_period, nftables.min_sync_period),
        };
        Self {
            masquerade_bit,
            masquerade_all,
            sync_period: sync_period.0,
            min_sync_period: min_sync_period.0,
        }
    }
}

fn ebpf_place(args: &Args, node_name: &str) -> Place {
    Place {
        cgroup: args.ebpf_cgroup.clone(),
        pin_dir: args.ebpf_pin_dir.clone(),
        node: node_name.to_owned(),
        flows_max: args.ebpf_flows_max,
        attach: match args.ebpf_attach {
            EbpfAttach::Auto => None,
            EbpfAttach::Tcx => Some(Attach::Tcx),
            EbpfAttach::Clsact => Some(Attach::Clsact),
        },
        xdp: match args.ebpf_xdp {
            EbpfXdp::Off => None,
            EbpfXdp::Native => Some(xdp::Mode::Native),
            EbpfXdp::Generic => Some(xdp::Mode::Generic),
            EbpfXdp::Auto => Some(xdp::Mode::Auto),
        },
    }
}

fn from(args: &Args, settings: &KubeProxyConfiguration) -> From {
    if let Some(dir) = &args.manifests {
        return From::Manifests(dir.clone());
    }
    let in_file = Some(settings.client_connection.kubeconfig.as_str());
    let in_file = in_file.filter(|path| !path.is_empty()).map(PathBuf::from);
    From::ApiServer(args.kubeconfig.clone().or(in_file))
}

/// The file that settings come from; `None`: flags.
struct Origin<'a>(Option<&'a std::path::Path>);

impl Origin<'_> {
    fn at(&self, flag: &str, key: &str, what: impl fmt::Display) -> ConfigError {
        ConfigError {
            place: match self.0 {
                Some(file) => format!("--config {}: {key}", file.display()),
                None => format!("--{flag}"),
            },
            what: what.to_string(),
        }
    }

    fn fail<T>(&self, flag: &str, key: &str, what: impl fmt::Display) -> Result<T, ConfigError> {
        Err(self.at(flag, key, what))
    }

    fn node_ip(&self, settings: &KubeProxyConfiguration) -> Result<Option<IpAddr>, ConfigError> {
        let text = &settings.bind_address;
        match parse_ip(text) {
            Some(ip) => Ok(Some(ip).filter(|ip| !ip.is_unspecified())),
            None => {
                let what = format!("{text:?} is no address");
                self.fail("bind-address", "bindAddress", what)
            }
        }
    }

    fn ipvs(&self, settings: &KubeProxyConfiguration) -> Result<ipvs::Options, ConfigError> {
        let ipvs = &settings.ipvs;
        let name = Some(ipvs.scheduler.as_str()).filter(|name| !name.is_empty());
        let scheduler = match name.map_or(Some(Scheduler::default()), Scheduler::parse) {
            Some(scheduler) => scheduler,
            None => {
                let known: Vec<&str> = Scheduler::ALL.iter().map(|s| s.name()).collect();
                let what = format!("{:?} is none of {}", ipvs.scheduler, known.join(", "));
                return self.fail("ipvs-scheduler", "ipvs.scheduler", what);
            }
        };
        let mut flags: Option<ServerOptions> = None;
        for name in &ipvs.scheduler_flags {
            if !flags.get_or_insert_default().add_flag(scheduler, name) {
                let what = match scheduler.flags() {
                    [] => format!("{name:?}: scheduler {} has no flags", scheduler.name()),
                    known => format!("{name:?} is none of {}", known.join(", ")),
                };
                return self.fail("ipvs-scheduler-flags", "ipvs.schedulerFlags", what);
            }
        }
        let mut exclude = Vec::new();
        for text in &ipvs.exclude_cidrs {
            match parse_cidr(text) {
                Ok(net) => exclude.push(net),
                Err(error) => {
                    return self.fail("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", error);
                }
            }
        }
        Ok(ipvs::Options {
            scheduler,
            flags,
            strict_arp: ipvs.strict_arp,
            exclude,
            timeouts: Timeouts {
                tcp: ipvs.tcp_timeout.0,
                tcp_fin: ipvs.tcp_fin_timeout.0,
                udp: ipvs.udp_timeout.0,
            },
        })
    }

    fn dns_ips(&self, settings: &KubeProxyConfiguration) -> Result<Vec<IpAddr>, ConfigError> {
        let all = words(&settings.cluster_dns).map(|text| match parse_ip(text) {
            Some(ip) if !ip.is_unspecified() && !ip.is_loopback() => Ok(ip),
            _ => {
                let what = format!("{text:?} is no address to serve on");
                self.fail("cluster-dns", "clusterDNS", what)
            }
        });
        all.collect()
    }

    fn dns_upstream(
        &self,
        settings: &KubeProxyConfiguration,
    ) -> Result<Vec<SocketAddr>, ConfigError> {
        let all = words(&settings.dns_upstream).map(|text| {
            let with_port = text.parse::<SocketAddr>().ok();
            match with_port.or_else(|| Some(SocketAddr::new(parse_ip(text)?, 53))) {
                Some(address) => Ok(address),
                None => {
                    let what = format!("{text:?} is no address");
                    self.fail("dns-upstream", "dnsUpstream", what)
                }
            }
        });
        all.collect()
    }

    fn detect(&self, settings: &KubeProxyConfiguration) -> Result<Detect, ConfigError> {
        let Some(mode) = DetectLocalMode::parse(&settings.detect_local_mode) else {
            let what = format!("{:?} is unknown", settings.detect_local_mode);
            return self.fail("detect-local-mode", "detectLocalMode", what);
        };
        let both = |detect: DetectLocal| {
            let all = Family::BOTH.map(|family| (family, detect.clone()));
            Ok(Detect::Fixed(all.to_vec()))
        };
        let name = |flag, key, name: &str| {
            let at = |what| self.at(flag, key, what);
            if name.is_empty() {
                return Err(at("is needed by this --detect-local-mode".to_owned()));
            }
            if name.len() < 16 && !name.contains([' ', '/', '+']) {
                return Ok(name.to_owned());
            }
            Err(at(format!("{name:?} is no name of an interface")))
        };
        let detect = &settings.detect_local;
        match mode {
            DetectLocalMode::NodeCidr => Ok(Detect::NodeCidr),
            DetectLocalMode::BridgeInterface => both(DetectLocal::Interface(name(
                "pod-bridge-interface",
                "detectLocal.bridgeInterface",
                &detect.bridge_interface,
            )?)),
            DetectLocalMode::InterfaceNamePrefix => both(DetectLocal::InterfacePrefix(name(
                "pod-interface-name-prefix",
                "detectLocal.interfaceNamePrefix",
                &detect.interface_name_prefix,
            )?)),
            DetectLocalMode::ClusterCidr => self.cluster_cidr(settings),
        }
    }

    fn cluster_cidr(&self, settings: &KubeProxyConfiguration) -> Result<Detect, ConfigError> {
        let at = |what| self.at("cluster-cidr", "clusterCIDR", what);
        let mut nets: Vec<(Family, DetectLocal)> = Vec::new();
        for text in split(&settings.cluster_cidr) {
            let net = parse_cidr(text).map_err(|e| at(e.to_string()))?;
            let family = Family::of_net(&net);
            if nets.iter().any(|(known, _)| *known == family) {
                return Err(at(format!("more than one {family} network")));
            }
            nets.push((family, DetectLocal::Net(net)));
        }
        Ok(Detect::Fixed(nets))
    }

    fn node_port_addresses(
        &self,
        settings: &KubeProxyConfiguration,
    ) -> Result<NodePortAddresses, ConfigError> {
        let parts: Vec<&str> = words(&settings.node_port_addresses).collect();
        if parts == ["primary"] {
            return Ok(NodePortAddresses::Primary);
        }
        let nets: Result<Vec<_>, _> = parts.into_iter().map(parse_cidr).collect();
        match nets {
            Ok(nets) if nets.is_empty() => Ok(NodePortAddresses::All),
            Ok(nets) => Ok(NodePortAddresses::Within(nets)),
            Err(e) => self.fail("nodeport-addresses", "nodePortAddresses", e),
        }
    }
}

fn split(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

/// The words of a list, each of which may be a list itself.
fn words(list: &[String]) -> impl Iterator<Item = &str> {
    list.iter().flat_map(|text| split(text))
}

/// Which mode is meant; what leaves the choice to the kernel has been answered before.
fn parse_mode(mode: &str) -> Result<Mode, String> {
    match mode {
        "iptables" => Ok(Mode::Iptables),
        "nftables" => Ok(Mode::Nftables),
        "ipvs" => Ok(Mode::Ipvs),
        "ebpf" => Ok(Mode::Ebpf),
        _ if is_auto(mode) => Ok(Mode::Nftables),
        _ => Err(format!(
            "{mode:?} is unknown; use auto, nftables, iptables, ipvs or ebpf"
        )),
    }
}

/// Whether a mode's name leaves the choice to the kernel: nftables where it has that.
pub fn is_auto(mode: &str) -> bool {
    matches!(mode, "" | "auto")
}

/// Where a page is served. An address without a port gets `port`; empty means nowhere.
fn listen(text: &str, port: u16) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address = text
        .parse()
        .ok()
        .or_else(|| Some(SocketAddr::new(parse_ip(bare)?, port)))
        // As Go's, without an address: all of them.
        .or_else(|| {
            let port = text.strip_prefix(':')?.parse().ok()?;
            Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        });
    match address {
        Some(address) => Ok(Some(address)),
        None => Err(format!("{text:?} is not ADDRESS:PORT")),
    }
}

#[cfg(test)]
mod tests;
