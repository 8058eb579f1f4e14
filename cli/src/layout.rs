//! Where everything of a cluster is: names, addresses, directories. Pure; every other module asks here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use clap::Args;

/// Parent of all clusters' directories.
pub(crate) const STATE_DIR: &str = "/var/lib/seaway";

/// Parent of all clusters' pins, on the BPF file system.
pub(crate) const BPF_DIR: &str = "/sys/fs/bpf/seaway";

/// Interface names end at 15 bytes: `sw-NAME-NN`.
const NAME_LEN_MAX: usize = 8;

/// More would not fit the underlay's host part, nor this machine.
const NODES_MAX: u8 = 100;

/// First host number given to a node on the underlay.
const FIRST_NODE_HOST: u8 = 11;

/// What a cluster is made from; the same values always give the same layout.
#[derive(Debug, Clone, Args, serde::Serialize, serde::Deserialize)]
pub(crate) struct ClusterArgs {
    /// Name of the cluster: at most 8 lower-case letters and digits
    #[arg(long, default_value = "dev", value_parser = parse_name)]
    pub(crate) name: String,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    pub(crate) nodes: u8,
    /// Underlay network of the nodes, a /24; clusters side by side need one each
    #[arg(long, default_value = "172.31.250.0", value_parser = parse_underlay)]
    pub(crate) underlay: Ipv4Addr,
    /// Port of the API server
    #[arg(long, default_value_t = 6443)]
    pub(crate) api_port: u16,
    /// How Services are programmed on the nodes
    #[arg(long, default_value = "iptables")]
    pub(crate) proxy_mode: String,
    /// Log level of the daemons
    #[arg(long, default_value = "info")]
    pub(crate) log_level: String,
}

/// Accepts a cluster name that fits interface names, cgroup paths and node names.
pub(crate) fn parse_name(name: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(good) {
        return Err(format!(
            "must be 1 to {NAME_LEN_MAX} lower-case letters and digits"
        ));
    }
    Ok(name.to_owned())
}

/// Accepts the first address of a private /24: a public one would hide a part of the Internet.
fn parse_underlay(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text.parse().map_err(|e| format!("{text}: {e}"))?;
    if !address.is_private() || address.octets()[3] != 0 {
        return Err("must be a private /24 network such as 172.31.250.0 (RFC 1918)".into());
    }
    Ok(address)
}

/// The layout of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) args: ClusterArgs,
}

/// One node of it.
#[derive(Debug, Clone)]
pub(crate) struct NodeLayout {
    /// The Node object's name.
    pub(crate) name: String,
    /// Its network namespace.
    pub(crate) netns: PathBuf,
    /// Where `ip netns` finds it: a link. A mount there would be doubled, and then impossible to
    /// take away, as soon as somebody's `ip netns add` mounts the folder over itself.
    pub(crate) netns_link: PathBuf,
    /// The host's end of the cable.
    pub(crate) cable: String,
    /// Underlay addresses.
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Its control group, in every hierarchy.
    pub(crate) cgroup: String,
}

impl Layout {
    pub(crate) fn new(args: ClusterArgs) -> Self {
        Self { args }
    }

    /// `/var/lib/seaway/NAME`.
    pub(crate) fn dir(&self) -> PathBuf {
        Path::new(STATE_DIR).join(&self.args.name)
    }

    /// The control plane's data directory.
    pub(crate) fn control_plane_dir(&self) -> PathBuf {
        self.dir().join("control-plane")
    }

    /// The administrator's kubeconfig, as the control plane writes it.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.control_plane_dir().join("admin.kubeconfig")
    }

    /// The image store that all nodes share.
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.dir().join("images")
    }

    /// What `up` was asked for, so that `down` and the supervisor know.
    pub(crate) fn args_file(&self) -> PathBuf {
        self.dir().join("cluster.json")
    }

    /// The supervisor's pid and those of its daemons.
    pub(crate) fn pids_file(&self) -> PathBuf {
        self.dir().join("pids.json")
    }

    /// Sockets on which daemons say that they are ready.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// Log of a daemon that belongs to no node.
    pub(crate) fn log(&self, daemon: &str) -> PathBuf {
        self.dir().join(format!("{daemon}.log"))
    }

    /// The underlay bridge, in the host's namespace.
    pub(crate) fn bridge(&self) -> String {
        format!("sw-{}", self.args.name)
    }

    /// Where the proxies of all nodes pin eBPF maps and programs.
    pub(crate) fn bpf_dir(&self) -> PathBuf {
        Path::new(BPF_DIR).join(&self.args.name)
    }

    /// The top control group.
    pub(crate) fn cgroup(&self) -> String {
        format!("/seaway/{}", self.args.name)
    }

    /// The host's underlay addresses; the API server is reached there by the nodes.
    pub(crate) fn host_v4(&self) -> Ipv4Addr {
        self.underlay_v4(1)
    }

    pub(crate) fn host_v6(&self) -> Ipv6Addr {
        self.underlay_v6(1)
    }

    fn underlay_v4(&self, host: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.args.underlay.octets();
        Ipv4Addr::new(a, b, c, host)
    }

    /// A unique local network (RFC 4193) that carries the digits of the IPv4 one.
    fn underlay_v6(&self, host: u8) -> Ipv6Addr {
        let [a, b, c, _] = self.args.underlay.octets().map(u16::from);
        Ipv6Addr::new(0xfd00, a, b, c, 0, 0, 0, u16::from(host))
    }

    /// The API server as the nodes reach it.
    pub(crate) fn server(&self) -> String {
        format!("https://{}:{}", self.host_v4(), self.args.api_port)
    }

    /// The nodes in order.
    pub(crate) fn nodes(&self) -> Vec<NodeLayout> {
        (0..self.args.nodes).map(|i| self.node(i)).collect()
    }

    fn node(&self, index: u8) -> NodeLayout {
        let name = format!("node-{}", index + 1);
        let host = FIRST_NODE_HOST + index;
        NodeLayout {
            netns: self.dir().join("nodes").join(&name).join("netns/self"),
            netns_link: PathBuf::from(format!("/run/netns/seaway-{}-{name}", self.args.name)),
            cable: format!("{}-{}", self.bridge(), index + 1),
            v4: self.underlay_v4(host),
            v6: self.underlay_v6(host),
            dir: self.dir().join("nodes").join(&name),
            cgroup: format!("{}/{name}", self.cgroup()),
            name,
        }
    }
}

impl NodeLayout {
    /// Both addresses as flags take them.
    pub(crate) fn addresses(&self) -> String {
        format!("{},{}", self.v4, self.v6)
    }

    pub(crate) fn log(&self, daemon: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{daemon}.log"))
    }

    /// The control group of a daemon.
    pub(crate) fn daemon_cgroup(&self, daemon: &str) -> String {
        format!("{}/system/{daemon}", self.cgroup)
    }

    /// Underlay addresses with their prefix lengths.
    pub(crate) fn underlay(&self) -> [(IpAddr, u8); 2] {
        [(self.v4.into(), 24), (self.v6.into(), 64)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn layout(name: &str) -> Layout {
        Layout::new(ClusterArgs {
            name: name.into(),
            nodes: 3,
            underlay: "172.31.250.0".parse().unwrap(),
            api_port: 6443,
            proxy_mode: "iptables".into(),
            log_level: "info".into(),
        })
    }

    #[test]
    fn names_and_addresses_follow_from_the_arguments() {
        let layout = layout("dev");
        assert_eq!(layout.server(), "https://172.31.250.1:6443");
        let node = &layout.nodes()[2];
        assert_eq!(node.name, "node-3");
        assert_eq!(node.addresses(), "172.31.250.13,fd00:ac:1f:fa::d");
        assert_eq!(node.cgroup, "/seaway/dev/node-3");
        assert_eq!(node.cable, "sw-dev-3");
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        let mut layout = layout("abcdefgh");
        layout.args.nodes = NODES_MAX;
        assert!(
            layout.nodes().iter().all(|n| n.cable.len() <= 15),
            "IFNAMSIZ"
        );
    }

    #[test]
    fn the_underlay_is_private() {
        assert!(parse_underlay("172.31.7.0").is_ok());
        for text in ["8.8.8.0", "172.31.7.1", "x", "fd00::"] {
            assert!(parse_underlay(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for name in ["", "Dev", "a-b", "abcdefghi", "a/b"] {
            assert!(parse_name(name).is_err(), "{name}");
        }
    }
}
