//! The command lines of a cluster's daemons. Pure.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use linux::cgroup::Hierarchies;
use linux::process::Daemon;

use crate::layout::{Layout, NodeLayout};

/// Cluster-wide networks; the defaults of every daemon's flags.
pub(crate) const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/56";
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/16,fd00:10:96::/112";
pub(crate) const CLUSTER_DNS: &str = "10.96.0.10";
pub(crate) const CLUSTER_DNS_BOTH: &str = "10.96.0.10,fd00:10:96::a";
pub(crate) const CLUSTER_DOMAIN: &str = "cluster.local";

/// A daemon with the name it goes by.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    /// `control-plane`, or `node-1/kubelet`.
    pub(crate) name: String,
    pub(crate) daemon: Daemon,
}

fn flags(log_level: &str, pairs: &[(&str, &str)]) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    for (flag, value) in pairs.iter().chain(&[("--log-level", log_level)]) {
        args.push(flag.into());
        args.push(value.into());
    }
    args
}

/// The control plane, in the host's namespace.
pub(crate) fn control_plane(layout: &Layout, bin: &Path, groups: &Hierarchies) -> Service {
    let bind = format!("[::]:{}", layout.args.api_port);
    let data = layout.control_plane_dir();
    let address = layout.host_v4().to_string();
    let args = flags(
        &layout.args.log_level,
        &[
            ("--data-dir", &data.to_string_lossy()),
            ("--bind", &bind),
            ("--advertise-address", &address),
            ("--service-cidr", SERVICE_CIDR),
            ("--cluster-cidr", CLUSTER_CIDR),
        ],
    );
    let daemon = Daemon {
        program: bin.join("control-plane"),
        args: [vec!["run".into()], args].concat(),
        cgroup_procs: groups.procs_files(&control_plane_cgroup(layout)),
        log: Some(layout.log("control-plane")),
        ..Daemon::default()
    };
    Service {
        name: "control-plane".into(),
        daemon,
    }
}

/// The control plane's own control group.
pub(crate) fn control_plane_cgroup(layout: &Layout) -> String {
    format!("{}/control-plane", layout.cgroup())
}

/// Names of the daemons of a node.
pub(crate) const NODE_DAEMONS: [&str; 3] = ["overlay", "kubelet", "proxy"];

/// The daemons of one node, in its namespace. `policies`: network policies can be enforced.
pub(crate) fn node(
    layout: &Layout,
    node: &NodeLayout,
    bin: &Path,
    groups: &Hierarchies,
    policies: bool,
) -> Vec<Service> {
    let pki = layout.control_plane_dir().join("nodes").join(&node.name);
    let path = |p: PathBuf| p.to_string_lossy().into_owned();
    let kubeconfig = |daemon: &str| path(pki.join(format!("{daemon}.kubeconfig")));
    let sub = |name: &str| path(node.dir.join(name));
    let addresses = node.addresses();
    // Without cgroup v2 the proxy says what it lacks, when it comes to that.
    let unified = groups.v2.clone().unwrap_or_default();
    let sockets = path(unified.join(node.cgroup.trim_start_matches('/')));
    let service = |name: &str, pairs: &[(&str, &str)]| Service {
        name: format!("{}/{name}", node.name),
        daemon: Daemon {
            program: bin.join(name),
            args: flags(&layout.args.log_level, pairs),
            netns: Some(node.netns.clone()),
            cgroup_procs: groups.procs_files(&node.daemon_cgroup(name)),
            log: Some(node.log(name)),
            ..Daemon::default()
        },
    };
    vec![
        service(
            "overlay",
            &[
                ("--kubeconfig", &kubeconfig("overlay")),
                ("--node-name", &node.name),
                ("--iface", "eth0"),
                ("--cluster-cidr", CLUSTER_CIDR),
                ("--network-policy", if policies { "true" } else { "false" }),
                ("--cni-conf-dir", &sub("cni/net.d")),
                ("--cni-state-dir", &sub("cni/state")),
            ],
        ),
        service(
            "kubelet",
            &[
                ("--kubeconfig", &kubeconfig("kubelet")),
                ("--node-name", &node.name),
                ("--node-ip", &addresses),
                ("--root-dir", &sub("kubelet")),
                ("--runtime-dir", &sub("runtime")),
                ("--images-dir", &path(layout.images_dir())),
                ("--cni-conf-dir", &sub("cni/net.d")),
                ("--cni-bin-dir", &path(bin.to_owned())),
                ("--cluster-dns", CLUSTER_DNS),
                ("--cluster-domain", CLUSTER_DOMAIN),
                ("--cgroup-root", &node.cgroup),
                ("--pod-logs-dir", &sub("logs/pods")),
                ("--netns-dir", &sub("netns")),
                ("--bind", "[::]:10250"),
                ("--tls-cert", &path(pki.join("kubelet.crt"))),
                ("--tls-key", &path(pki.join("kubelet.key"))),
                ("--client-ca", &path(pki.join("ca.crt"))),
            ],
        ),
        service(
            "proxy",
            &[
                ("--kubeconfig", &kubeconfig("proxy")),
                ("--hostname-override", &node.name),
                ("--mode", &layout.args.proxy_mode),
                ("--cluster-cidr", CLUSTER_CIDR),
                ("--cluster-dns", CLUSTER_DNS_BOTH),
                ("--cluster-domain", CLUSTER_DOMAIN),
                ("--ebpf-cgroup", &sockets),
                ("--ebpf-pin-dir", &path(layout.bpf_dir())),
            ],
        ),
    ]
}

/// Arguments of `control-plane init`: certificates and kubeconfigs for everybody.
pub(crate) fn init_args(layout: &Layout) -> Vec<String> {
    let mut args = vec![
        "init".to_owned(),
        "--data-dir".into(),
        layout.control_plane_dir().to_string_lossy().into_owned(),
        "--server".into(),
        layout.server(),
        "--advertise-address".into(),
        format!("{},{}", layout.host_v4(), layout.host_v6()),
    ];
    for node in layout.nodes() {
        args.push("--node".into());
        args.push(format!("{}={}", node.name, node.addresses()));
    }
    args
}
