//! What the controllers must be told.

use std::time::Duration;

use ipnetwork::IpNetwork;

/// Configuration of [`crate::run`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The pod networks of the cluster, at most one for each family. Every node gets one slice of each.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// Prefix length of a node's IPv4 slice.
    pub node_mask_size_v4: u8,
    /// Prefix length of a node's IPv6 slice.
    pub node_mask_size_v6: u8,
    /// The service networks: no node slice may overlap them.
    pub service_cidrs: Vec<IpNetwork>,
    /// The cluster's CA certificates (PEM), published as the ConfigMap `kube-root-ca.crt` in every namespace.
    /// Nothing is published when it is empty.
    pub root_ca_pem: String,
    /// How long a node may be silent (Lease and status) before it counts as unreachable.
    pub node_monitor_grace: Duration,
    /// How long a pod without a matching toleration stays on a node that is not ready or unreachable.
    pub default_toleration: Duration,
    /// The scheduler's name: pods that ask for another one are left alone.
    pub scheduler_name: String,
    /// How many finished pods may stay before the oldest are removed (upstream: 12500).
    pub terminated_pod_threshold: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster_cidrs: Vec::new(),
            node_mask_size_v4: 24,
            node_mask_size_v6: 64,
            service_cidrs: Vec::new(),
            root_ca_pem: String::new(),
            node_monitor_grace: Duration::from_secs(40),
            default_toleration: Duration::from_secs(300),
            scheduler_name: "default-scheduler".to_owned(),
            terminated_pod_threshold: 12_500,
        }
    }
}
