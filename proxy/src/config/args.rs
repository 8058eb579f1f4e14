//! The flags: kube-proxy's own names with its meanings, and ours. Flags and the file of `--config`
//! meet in one [`KubeProxyConfiguration`].

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, Parser, ValueEnum};

use super::file::KubeProxyConfiguration;
use super::time::{self, GoDuration};

/// Service proxy and cluster DNS of a node.
#[derive(Debug, Clone, Parser)]
#[command(name = "proxy", version, about, long_about = None, args_override_self = true)]
pub struct Args {
    /// Kubeconfig file of the API server to watch; without it and without --manifests, the service
    /// account of the pod this runs in
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, in place of the kubeconfig's
    #[arg(long, value_name = "URL", conflicts_with = "manifests")]
    pub master: Option<String>,
    /// Directory of YAML and JSON files (Service, EndpointSlice, Node, ServiceCIDR, List) to use in
    /// place of an API server; watched
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// File with a KubeProxyConfiguration (v1alpha1). Flags that it has keys for then have no
    /// effect, but for --hostname-override. When its content changes the program ends with exit
    /// code 1, to be started again
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write the configuration with all defaults to this file, and end
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Make the kernel settings that need all rights, and end. Later starts need CAP_NET_ADMIN only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub init_only: bool,
    /// Name of this node; default: the host name in lower case
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// How services are programmed: auto (nftables where the kernel has it, else iptables), nftables,
    /// iptables, ipvs or ebpf; default: auto
    #[arg(long, visible_alias = "proxy-mode", value_name = "MODE")]
    pub mode: Option<String>,
    /// Networks of the cluster's pods, one for each family at most, separated by commas
    #[arg(long, value_name = "CIDR,..")]
    pub cluster_cidr: Option<String>,
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
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade_all: Option<bool>,
    /// Bit of the packet mark that asks for masquerading; default: 14
    #[arg(long, value_name = "BIT", value_parser = clap::value_parser!(u8).range(0..=31))]
    pub iptables_masquerade_bit: Option<u8>,
    /// Serve node ports on 127.0.0.1, too (IPv4, mode iptables; sets
    /// net.ipv4.conf.all.route_localnet); default: true
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub iptables_localhost_nodeports: Option<bool>,
    /// How often the rules are compared with the kernel's, in all modes but ipvs; default: 30s
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub iptables_sync_period: Option<GoDuration>,
    /// Shortest time between two changes of the rules, in all modes but ipvs; default: 0s
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub iptables_min_sync_period: Option<GoDuration>,
    /// The same for mode ipvs; default: 30s
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub ipvs_sync_period: Option<GoDuration>,
    /// The same for mode ipvs; default: 0s
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub ipvs_min_sync_period: Option<GoDuration>,
    /// Scheduler of mode ipvs; default: rr
    #[arg(long, value_name = "NAME")]
    pub ipvs_scheduler: Option<String>,
    /// Its flags, as ipvsadm names them: sh-fallback, sh-port, mh-fallback, mh-port; default: mh-port
    /// for mh
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    pub ipvs_scheduler_flags: Vec<String>,
    /// Networks whose virtual servers are somebody else's, in mode ipvs
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    pub ipvs_exclude_cidrs: Vec<String>,
    /// Answer ARP for an address on its own interface only, in mode ipvs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub ipvs_strict_arp: Option<bool>,
    /// Time-out of idle TCP connections in mode ipvs; 0s: the kernel's
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub ipvs_tcp_timeout: Option<GoDuration>,
    /// Time-out of TCP connections after a FIN in mode ipvs; 0s: the kernel's
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub ipvs_tcpfin_timeout: Option<GoDuration>,
    /// Time-out of UDP in mode ipvs; 0s: the kernel's
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub ipvs_udp_timeout: Option<GoDuration>,
    /// Entries that connection tracking may have for each processor; 0: leave the limit as it is;
    /// default: 32768. A limit is never lowered
    #[arg(long, value_name = "N")]
    pub conntrack_max_per_core: Option<u32>,
    /// Entries that connection tracking may have at least; default: 131072
    #[arg(long, value_name = "N")]
    pub conntrack_min: Option<u32>,
    /// Idle time of established TCP connections; 0s: as it is; default: 24h
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,
    /// Time of TCP connections in CLOSE_WAIT; 0s: as it is; default: 1h
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,
    /// Do not drop packets that conntrack calls invalid
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// Idle time of UDP flows without an answer; 0s (default): as it is
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub conntrack_udp_timeout: Option<GoDuration>,
    /// Idle time of UDP flows with answers; 0s (default): as it is
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,
    /// Address of this node, where it is not to be the Node object's
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,
    /// End when a page cannot be served since its address is taken
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bind_address_hard_fail: Option<bool>,
    /// Where /healthz and /livez are served; without a port: 10256; empty: nowhere; default:
    /// 0.0.0.0:10256
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics and the other pages are served; without a port: 10249; empty: nowhere;
    /// default: 127.0.0.1:10249
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub metrics_bind_address: Option<String>,
    /// How willingly the kernel kills this process when memory is short, -1000 to 1000; default: -999
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub oom_score_adj: Option<i32>,
    /// Addresses on which this process answers cluster DNS, separated by commas; none: no DNS
    #[arg(long, value_name = "IP,..", value_delimiter = ',')]
    pub cluster_dns: Vec<String>,
    /// Domain of the cluster; default: cluster.local
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Name servers for all other names, separated by commas; default: those of /etc/resolv.conf
    #[arg(long, value_name = "IP[:PORT],..", value_delimiter = ',')]
    pub dns_upstream: Vec<String>,
    /// Control group (version 2) whose sockets mode ebpf translates; default: the root
    #[arg(long, value_name = "DIR")]
    pub ebpf_cgroup: Option<PathBuf>,
    /// Where mode ebpf pins its maps and programs, on a BPF file system
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/seaway")]
    pub ebpf_pin_dir: PathBuf,
    /// Entries for connections of clients outside in mode ebpf, two or three for each; default: by
    /// memory
    #[arg(long, value_name = "N")]
    pub ebpf_flows_max: Option<u32>,
    /// How mode ebpf attaches to interfaces: by links (Linux 6.6), or as filters of clsact
    #[arg(long, value_enum, default_value = "auto")]
    pub ebpf_attach: EbpfAttach,
    /// Whether mode ebpf also works before the network stack (XDP), at interfaces to the outside: in
    /// the driver (native), with every driver (generic), in the driver where that can (auto)
    #[arg(long, value_enum, default_value = "off")]
    pub ebpf_xdp: EbpfXdp,
    /// Print the tables of mode nftables as the kernel has them, with names of services, and end
    #[arg(long)]
    pub dump: bool,
    /// Take away all rules of this proxy in every mode (and of kube-proxy's iptables mode), and end
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub cleanup: bool,
    /// Which messages are logged, e.g. `info` or `proxy=debug`; default: by --v
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// kube-proxy's verbosity: up to 3 is info, 4 and 5 are debug, more is trace
    #[arg(short = 'v', long = "v", value_name = "N")]
    pub verbosity: Option<u32>,
    /// Flags of kube-proxy without effect here.
    #[command(flatten)]
    pub ignored: Ignored,
}

/// Values of --ebpf-attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EbpfAttach {
    /// By links where the kernel has them
    Auto,
    /// By links
    Tcx,
    /// As filters of clsact
    Clsact,
}

/// Values of --ebpf-xdp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EbpfXdp {
    /// Not at all
    Off,
    /// In the driver
    Native,
    /// At the entrance of the stack
    Generic,
    /// In the driver where that can do it
    Auto,
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

impl DetectLocalMode {
    /// As flags and files write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterCidr => "ClusterCIDR",
            Self::NodeCidr => "NodeCIDR",
            Self::BridgeInterface => "BridgeInterface",
            Self::InterfaceNamePrefix => "InterfaceNamePrefix",
        }
    }

    /// Reads what a file says; empty means [`Self::ClusterCidr`].
    pub fn parse(text: &str) -> Option<Self> {
        let all = Self::value_variants().iter().copied();
        match text {
            "" => Some(Self::ClusterCidr),
            text => all.into_iter().find(|mode| mode.name() == text),
        }
    }
}

/// Flags of kube-proxy that mean nothing here, and whether they stand for a truth value. They are
/// accepted, so that a command line can stay as it is, and told in one log line.
const IGNORED: [(&str, bool); 35] = [
    ("add-dir-header", true),
    ("allow-metric-labels", false),
    ("allow-metric-labels-manifest", false),
    ("alsologtostderr", true),
    ("boot-id-file", false),
    ("config-sync-period", false),
    ("disabled-metrics", false),
    ("emulated-version", false),
    ("emulation-forward-compatible", true),
    ("feature-gates", false),
    ("kube-api-burst", false),
    ("kube-api-content-type", false),
    ("kube-api-qps", false),
    ("log-backtrace-at", false),
    ("log-dir", false),
    ("log-file", false),
    ("log-file-max-size", false),
    ("log-flush-frequency", false),
    ("log-json-info-buffer-size", false),
    ("log-json-split-stream", true),
    ("log-text-info-buffer-size", false),
    ("log-text-split-stream", true),
    ("logging-format", false),
    ("logtostderr", true),
    ("machine-id-file", false),
    ("min-compatibility-version", false),
    ("one-output", true),
    ("profiling", true),
    ("proxy-port-range", false),
    ("show-hidden-metrics-for-version", false),
    ("skip-headers", true),
    ("skip-log-headers", true),
    ("stderrthreshold", false),
    ("vmodule", false),
    ("windows-service", true),
];

/// The flags without effect that were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignored(pub Vec<&'static str>);

impl clap::Args for Ignored {
    fn augment_args(command: Command) -> Command {
        IGNORED.iter().fold(command, |command, (name, truth)| {
            let arg = Arg::new(*name).long(*name).hide(true);
            let arg = if *truth {
                arg.num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
            } else {
                arg.allow_hyphen_values(true)
            };
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Ignored {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = IGNORED.iter().map(|(name, _)| *name);
        Ok(Self(
            given.filter(|name| matches.contains_id(name)).collect(),
        ))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Flags that keep their effect beside --config.
const BESIDE_FILE: [&str; 17] = [
    "config",
    "write-config-to",
    "init-only",
    "cleanup",
    "ebpf-attach",
    "ebpf-cgroup",
    "ebpf-flows-max",
    "ebpf-pin-dir",
    "ebpf-xdp",
    "hostname-override",
    "manifests",
    "master",
    "log-level",
    "v",
    "help",
    "version",
    "kubeconfig",
];

/// As kube-proxy does, takes underscores in names of flags for hyphens.
pub fn normalize(args: impl Iterator<Item = String>) -> Vec<String> {
    args.map(|arg| match arg.strip_prefix("--") {
        Some(rest) => {
            let (name, value) = rest.split_at(rest.find('=').unwrap_or(rest.len()));
            format!("--{}{value}", name.replace('_', "-"))
        }
        None => arg,
    })
    .collect()
}

/// Names of the flags in `args` that have no effect beside a file.
pub fn overruled(args: &[String]) -> Vec<&str> {
    let names = args.iter().filter_map(|arg| {
        let name = arg.strip_prefix("--")?;
        Some(name.split_once('=').map_or(name, |(name, _)| name))
    });
    names
        .filter(|name| !name.is_empty() && !BESIDE_FILE.contains(name))
        .collect()
}

impl Args {
    /// What the flags say, in the form of the file.
    pub fn configuration(&self) -> KubeProxyConfiguration {
        let mut all = KubeProxyConfiguration::default();
        let text = |to: &mut String, from: &Option<String>| {
            if let Some(from) = from {
                to.clone_from(from);
            }
        };
        text(&mut all.mode, &self.mode);
        text(&mut all.hostname_override, &self.hostname_override);
        text(&mut all.cluster_cidr, &self.cluster_cidr);
        text(
            &mut all.detect_local.bridge_interface,
            &self.pod_bridge_interface,
        );
        let prefix = &self.pod_interface_name_prefix;
        text(&mut all.detect_local.interface_name_prefix, prefix);
        text(&mut all.bind_address, &self.bind_address);
        text(&mut all.healthz_bind_address, &self.healthz_bind_address);
        text(&mut all.metrics_bind_address, &self.metrics_bind_address);
        text(&mut all.cluster_domain, &self.cluster_domain);
        if let Some(mode) = self.detect_local_mode {
            mode.name().clone_into(&mut all.detect_local_mode);
        }
        all.node_port_addresses.clone_from(&self.nodeport_addresses);
        all.cluster_dns.clone_from(&self.cluster_dns);
        all.dns_upstream.clone_from(&self.dns_upstream);
        set(&mut all.bind_address_hard_fail, self.bind_address_hard_fail);
        set(&mut all.oom_score_adj, self.oom_score_adj);
        set(&mut all.logging.verbosity, self.verbosity);
        self.modes(&mut all);
        self.conntrack(&mut all);
        all
    }

    fn modes(&self, all: &mut KubeProxyConfiguration) {
        // kube-proxy's flags name iptables and mean every mode that has such a setting.
        for bit in [
            &mut all.iptables.masquerade_bit,
            &mut all.nftables.masquerade_bit,
        ] {
            set(bit, self.iptables_masquerade_bit);
        }
        for masquerade_all in [
            &mut all.iptables.masquerade_all,
            &mut all.nftables.masquerade_all,
        ] {
            set(masquerade_all, self.masquerade_all);
        }
        for period in [&mut all.iptables.sync_period, &mut all.nftables.sync_period] {
            set(period, self.iptables_sync_period);
        }
        for period in [
            &mut all.iptables.min_sync_period,
            &mut all.nftables.min_sync_period,
        ] {
            set(period, self.iptables_min_sync_period);
        }
        let localhost = self.iptables_localhost_nodeports;
        set(&mut all.iptables.localhost_node_ports, localhost);
        set(&mut all.ipvs.sync_period, self.ipvs_sync_period);
        set(&mut all.ipvs.min_sync_period, self.ipvs_min_sync_period);
        set(&mut all.ipvs.scheduler, self.ipvs_scheduler.clone());
        let flags = &self.ipvs_scheduler_flags;
        all.ipvs.scheduler_flags.clone_from(flags);
        all.ipvs.exclude_cidrs.clone_from(&self.ipvs_exclude_cidrs);
        set(&mut all.ipvs.strict_arp, self.ipvs_strict_arp);
        set(&mut all.ipvs.tcp_timeout, self.ipvs_tcp_timeout);
        set(&mut all.ipvs.tcp_fin_timeout, self.ipvs_tcpfin_timeout);
        set(&mut all.ipvs.udp_timeout, self.ipvs_udp_timeout);
    }

    fn conntrack(&self, all: &mut KubeProxyConfiguration) {
        let conntrack = &mut all.conntrack;
        set(&mut conntrack.max_per_core, self.conntrack_max_per_core);
        set(&mut conntrack.min, self.conntrack_min);
        set(
            &mut conntrack.tcp_established_timeout,
            self.conntrack_tcp_timeout_established,
        );
        set(
            &mut conntrack.tcp_close_wait_timeout,
            self.conntrack_tcp_timeout_close_wait,
        );
        set(&mut conntrack.tcp_be_liberal, self.conntrack_tcp_be_liberal);
        set(&mut conntrack.udp_timeout, self.conntrack_udp_timeout);
        let stream = self.conntrack_udp_timeout_stream;
        set(&mut conntrack.udp_stream_timeout, stream);
    }
}

fn set<T>(to: &mut T, from: Option<T>) {
    if let Some(from) = from {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(flags: &[&str]) -> Result<Args, String> {
        let all = ["proxy"].iter().chain(flags).map(|&flag| flag.to_owned());
        Args::try_parse_from(normalize(all)).map_err(|e| e.to_string())
    }

    #[test]
    fn without_flags_all_is_as_in_an_empty_file() {
        let all = args(&[]).unwrap().configuration();
        assert_eq!(all, KubeProxyConfiguration::default());
    }

    /// The command line that kube-proxy 1.36 understands, flag by flag.
    #[test]
    fn every_flag_of_kube_proxy() {
        let values = [
            "bind-address=192.0.2.1",
            "bind-address-hard-fail",
            "cleanup=false",
            "cluster-cidr=10.0.0.0/8",
            "config=/x",
            "conntrack-max-per-core=1",
            "conntrack-min=2",
            "conntrack-tcp-be-liberal",
            "conntrack-tcp-timeout-close-wait=1h0m0s",
            "conntrack-tcp-timeout-established=24h0m0s",
            "conntrack-udp-timeout=5s",
            "conntrack-udp-timeout-stream=6s",
            "detect-local-mode=NodeCIDR",
            "healthz-bind-address=0.0.0.0",
            "hostname-override=n",
            "init-only",
            "iptables-localhost-nodeports=true",
            "iptables-masquerade-bit=14",
            "iptables-min-sync-period=1s",
            "iptables-sync-period=30s",
            "ipvs-exclude-cidrs=10.0.0.0/8,11.0.0.0/8",
            "ipvs-min-sync-period=0s",
            "ipvs-scheduler=rr",
            "ipvs-strict-arp",
            "ipvs-sync-period=30s",
            "ipvs-tcp-timeout=0s",
            "ipvs-tcpfin-timeout=0s",
            "ipvs-udp-timeout=0s",
            "kubeconfig=/k",
            "masquerade-all",
            "master=https://192.0.2.1",
            "metrics-bind-address=127.0.0.1",
            "nodeport-addresses=10.0.0.0/8",
            "oom-score-adj=-999",
            "pod-bridge-interface=b",
            "pod-interface-name-prefix=p",
            "proxy-mode=iptables",
            "v=2",
            "write-config-to=/y",
        ];
        for value in values {
            let flag = format!("--{value}");
            args(&[&flag]).unwrap_or_else(|e| panic!("{flag}: {e}"));
        }
        for (name, truth) in IGNORED {
            let flag = format!("--{name}");
            let flags: &[&str] = if truth { &[&flag] } else { &[&flag, "-x=y"] };
            let parsed = args(flags).unwrap_or_else(|e| panic!("{flag}: {e}"));
            assert_eq!(parsed.ignored.0, [name]);
            let whole = format!("{flag}=false");
            assert_eq!(args(&[&whole]).unwrap().ignored.0, [name]);
        }
    }

    #[test]
    fn as_go_reads_flags() {
        assert_eq!(args(&["-v=4"]).unwrap().verbosity, Some(4));
        assert_eq!(args(&["-v", "5"]).unwrap().verbosity, Some(5));
        assert_eq!(args(&["--v=2", "--v=6"]).unwrap().verbosity, Some(6));
        let under = args(&["--log_dir=/a_b", "--oom_score_adj", "-5"]).unwrap();
        assert_eq!(under.ignored.0, ["log-dir"]);
        assert_eq!(under.oom_score_adj, Some(-5));
        let twice = ["--nodeport-addresses", "a,b", "--nodeport-addresses=c"];
        assert_eq!(args(&twice).unwrap().nodeport_addresses, ["a", "b", "c"]);
        assert_eq!(
            args(&["--masquerade-all=false"]).unwrap().masquerade_all,
            Some(false)
        );
    }

    #[test]
    fn flags_that_a_file_overrules() {
        let given = [
            "proxy",
            "--config=/x",
            "--v=2",
            "--mode",
            "iptables",
            "--cluster-cidr=a",
        ];
        let given: Vec<String> = given.iter().map(|&arg| arg.to_owned()).collect();
        assert_eq!(overruled(&given), ["mode", "cluster-cidr"]);
    }

    #[test]
    fn flags_of_iptables_hold_for_nftables_too() {
        let flags = [
            "--iptables-sync-period=7s",
            "--masquerade-all",
            "--iptables-masquerade-bit=3",
        ];
        let all = args(&flags).unwrap().configuration();
        assert_eq!(all.nftables.sync_period, GoDuration::seconds(7));
        assert_eq!(
            (all.nftables.masquerade_bit, all.nftables.masquerade_all),
            (3, true)
        );
        assert_eq!(all.ipvs.sync_period, GoDuration::seconds(30));
    }
}
