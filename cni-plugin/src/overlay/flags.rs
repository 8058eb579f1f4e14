//! The daemon's flags, and the settings they make with a network configuration.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{ArgAction, Parser, ValueEnum};
use ipnetwork::IpNetwork;

use super::backend::{Backend, HostGw, Vxlan, WireGuard, WireGuardMode};
use super::firewall::Masquerader;
use super::keys;
use super::model::{IfaceChoice, Pattern, Settings};
use super::netconf::{self, NetConf};
use super::path::Pace;

/// Networks of all pods where nothing says otherwise.
const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];

/// Joins the pods of all nodes, masquerades what leaves the cluster, and writes the CNI
/// configuration of this node.
#[derive(Debug, Clone, Parser)]
#[command(name = "overlay", version)]
pub struct Args {
    /// Kubeconfig file; without it, the service account of the pod this runs in
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// This node's name in the API
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: String,
    /// Flannel's net-conf.json: networks and backend; flags that say the same win
    #[arg(long, value_name = "FILE")]
    pub net_config_path: Option<PathBuf>,
    /// Networks and subnets from etcd at these URLs, in place of the Nodes' podCIDRs and of a file
    #[arg(
        long,
        value_name = "URLS",
        value_delimiter = ',',
        conflicts_with = "net_config_path"
    )]
    pub etcd_endpoints: Vec<String>,
    /// What all keys in etcd begin with
    #[arg(long, value_name = "KEY", default_value = "/coreos.com/network")]
    pub etcd_prefix: String,
    /// Who signed etcd's certificates
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// This client's certificate for etcd
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "NAME", requires = "etcd_password")]
    pub etcd_username: Option<String>,
    /// The user's password; better in the environment than on the command line
    #[arg(
        long,
        env = "ETCD_PASSWORD",
        hide_env_values = true,
        value_name = "TEXT"
    )]
    pub etcd_password: Option<String>,
    /// How packets get from node to node [default: vxlan]
    #[arg(long)]
    pub backend: Option<BackendName>,
    /// VXLAN network identifier, equal on all nodes [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub vni: Option<u32>,
    /// UDP port of VXLAN, equal on all nodes [default: 8472]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// VXLAN: nodes on the same link are reached without it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub direct_routing: Option<bool>,
    /// VXLAN: the mark of packets travels along (group based policy)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub vxlan_gbp: Option<bool>,
    /// VXLAN: learn forwarding entries from traffic
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub vxlan_learning: Option<bool>,
    /// Largest packet of the underlay in bytes [default: what its link says]
    #[arg(long, value_parser = clap::value_parser!(u32).range(576..=65535))]
    pub mtu: Option<u32>,
    /// Probe what the paths to other nodes carry, and fit routes to it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, action = ArgAction::Set)]
    pub probe_path_mtu: bool,
    /// This node's private WireGuard key; made if it is not there
    #[arg(long, value_name = "FILE", default_value = netconf::WIREGUARD_KEY_FILE)]
    pub wireguard_key_file: PathBuf,
    /// Link that leads to the other nodes, by name or address; of several the first that is there
    /// [default: the one with the node's address, else the default route's]
    #[arg(long, value_name = "LINK")]
    pub iface: Vec<String>,
    /// The same by a pattern for names or addresses
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::new)]
    pub iface_regex: Vec<Pattern>,
    /// The link by which this address is reached
    #[arg(long, value_name = "IP")]
    pub iface_can_reach: Option<IpAddr>,
    /// IPv4 address by which other nodes reach this one [default: the link's]
    #[arg(long, value_name = "IP")]
    pub public_ip: Option<std::net::Ipv4Addr>,
    /// IPv6 address by which other nodes reach this one [default: the link's]
    #[arg(long, value_name = "IP")]
    pub public_ipv6: Option<std::net::Ipv6Addr>,
    /// Networks of all pods of the cluster; traffic to anywhere else is masqueraded [default:
    /// 10.244.0.0/16,fd00:10:244::/56]
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',', value_parser = network)]
    pub cluster_cidr: Vec<IpNetwork>,
    /// Keep rules that masquerade what leaves the cluster and let pods' traffic pass
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub masquerade: bool,
    /// What masquerades
    #[arg(long, default_value = "auto")]
    pub masquerade_by: Masquerader,
    /// Enforce network policies on this node's pods
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    pub network_policy: bool,
    /// Network policies: drop what pods send and get until the daemon knows them, also while it
    /// does not run
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub network_policy_deny_unknown: bool,
    /// Network policies: how what pods of one node say to each other comes before the rules. auto:
    /// by br_netfilter where the kernel has it
    #[arg(long, default_value = "auto")]
    pub network_policy_bridged: BridgedName,
    /// Directory for the CNI configuration
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Directory in which the CNI plugin keeps the leases of pod addresses
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/networks")]
    pub cni_state_dir: PathBuf,
    /// Write this node's networks for flannel's CNI plugin (which reads /run/flannel/subnet.env)
    #[arg(long, value_name = "FILE")]
    pub subnet_file: Option<PathBuf>,
    /// Address for /healthz, /readyz and /metrics
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub healthz_ip: IpAddr,
    /// Port for them; 0: they are not served
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub healthz_port: u16,
    /// Set the Node's condition NetworkUnavailable to False once pods can be reached
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub set_node_network_unavailable: bool,
    /// What to log (tracing's filter syntax)
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
    /// Remove everything this daemon made on this node, and end
    #[arg(long)]
    pub cleanup: bool,
}

/// [`policy::Bridged`] by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BridgedName {
    /// By br_netfilter where the kernel has it, else routed
    Auto,
    /// Routed by the node
    Route,
}

/// What the flags say of network policies.
pub fn policy_options(args: &Args) -> policy::Options {
    policy::Options {
        bridged: match args.network_policy_bridged {
            BridgedName::Auto => policy::Bridged::Auto,
            BridgedName::Route => policy::Bridged::Route,
        },
        deny_unknown: args.network_policy_deny_unknown,
    }
}

/// A backend by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// UDP tunnels
    Vxlan,
    /// Routes through the nodes themselves, which must be on one link
    HostGw,
    /// Encrypted tunnels, where the kernel has WireGuard
    Wireguard,
}

fn network(text: &str) -> Result<IpNetwork, String> {
    api::cidr::parse_cidr(text).map_err(|e| e.to_string())
}

/// The settings that flags and the file they name make. `kernel` is its release.
///
/// # Errors
/// What is wrong, with the flag's or the field's name.
pub fn settings(args: &Args, kernel: String) -> Result<Settings> {
    let conf = args.net_config_path.as_deref().map(read).transpose()?;
    settings_with(args, conf, kernel)
}

fn read(path: &Path) -> Result<NetConf> {
    let at = || format!("--net-config-path {}", path.display());
    let text = std::fs::read_to_string(path).with_context(at)?;
    netconf::parse(&text)
        .map_err(anyhow::Error::msg)
        .with_context(at)
}

/// The settings that flags and a configuration make.
///
/// # Errors
/// As [`settings`].
pub fn settings_with(args: &Args, conf: Option<NetConf>, kernel: String) -> Result<Settings> {
    let absolute = |flag: &str, dir: &PathBuf| {
        std::path::absolute(dir).with_context(|| format!("--{flag} {}", dir.display()))
    };
    if args.node_name.is_empty() {
        bail!("--node-name must not be empty");
    }
    let (networks, backend) = match conf {
        Some(conf) => (conf.networks, Some(conf.backend)),
        None => (Vec::new(), None),
    };
    let cluster_cidrs = match (args.cluster_cidr.is_empty(), networks.is_empty()) {
        (false, _) => args.cluster_cidr.clone(),
        (true, false) => networks,
        (true, true) => CLUSTER_CIDRS
            .into_iter()
            .filter_map(|text| network(text).ok())
            .collect(),
    };
    let v4 = args.public_ip.map(IpAddr::V4);
    let v6 = args.public_ipv6.map(IpAddr::V6);
    Ok(Settings {
        node_name: args.node_name.clone(),
        iface: IfaceChoice {
            names: args.iface.clone(),
            patterns: args.iface_regex.clone(),
            can_reach: args.iface_can_reach,
        },
        public: v4.into_iter().chain(v6).collect(),
        cni_conf_dir: absolute("cni-conf-dir", &args.cni_conf_dir)?,
        cni_state_dir: absolute("cni-state-dir", &args.cni_state_dir)?,
        subnet_file: args
            .subnet_file
            .as_ref()
            .map(|file| absolute("subnet-file", file))
            .transpose()?,
        backend: backend_of(args, backend)?,
        cluster_cidrs,
        masquerade: args.masquerade,
        masquerader: args.masquerade_by,
        pace: args.probe_path_mtu.then(Pace::default),
        kernel,
    })
}

fn backend_of(args: &Args, configured: Option<Backend>) -> Result<Backend> {
    let named = match args.backend {
        None => None,
        Some(BackendName::Vxlan) => Some(Backend::Vxlan(Vxlan::default())),
        Some(BackendName::HostGw) => Some(Backend::HostGw(HostGw::default())),
        Some(BackendName::Wireguard) => Some(Backend::WireGuard(WireGuard::default())),
    };
    let mut backend = match (named, configured) {
        (Some(named), Some(configured)) if named.name() == configured.name() => configured,
        (Some(named), _) => named,
        (None, Some(configured)) => configured,
        (None, None) => Backend::Vxlan(Vxlan::default()),
    };
    if let Backend::Vxlan(vxlan) = &mut backend {
        vxlan.vni = args.vni.unwrap_or(vxlan.vni);
        vxlan.port = args.port.unwrap_or(vxlan.port);
        vxlan.direct_routing = args.direct_routing.unwrap_or(vxlan.direct_routing);
        vxlan.gbp = args.vxlan_gbp.unwrap_or(vxlan.gbp);
        vxlan.learning = args.vxlan_learning.unwrap_or(vxlan.learning);
    } else {
        let given = [
            ("--vni", args.vni.is_some()),
            ("--port", args.port.is_some()),
            ("--direct-routing", args.direct_routing.is_some()),
            ("--vxlan-gbp", args.vxlan_gbp.is_some()),
            ("--vxlan-learning", args.vxlan_learning.is_some()),
        ];
        if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
            bail!("{flag} is for VXLAN; the backend is {}", backend.name());
        }
    }
    if let Some(mtu) = args.mtu {
        backend.set_mtu(mtu);
    }
    if let Backend::WireGuard(wg) = &mut backend {
        wg.key_file.clone_from(&args.wireguard_key_file);
        if !args.cleanup {
            keys::load(wg)?;
        }
    }
    Ok(backend)
}

impl Default for WireGuard {
    fn default() -> Self {
        Self {
            port: netconf::WIREGUARD_PORT,
            port_v6: netconf::WIREGUARD_PORT_V6,
            psk: None,
            mode: WireGuardMode::Separate,
            keepalive: 0,
            mtu: None,
            key_file: PathBuf::from(netconf::WIREGUARD_KEY_FILE),
            private: None,
            public: None,
        }
    }
}
