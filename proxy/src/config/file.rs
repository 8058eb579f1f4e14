//! KubeProxyConfiguration, `kubeproxy.config.k8s.io/v1alpha1`: the file of `--config`, and the form
//! in which flags and file meet. Every key of kube-proxy's is here with its default, and ours beside
//! them. Reading is strict: an unknown key is an error that names its path.
//!
//! As in kube-proxy a value that is absent, null or (for addresses, modes and most times) zero means
//! the default. The kinds of values are those of
//! `staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::time::GoDuration;

/// The `apiVersion` that is read.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// The `kind` that is read.
pub const KIND: &str = "KubeProxyConfiguration";

/// The whole configuration. Keys without a word about them are kube-proxy's and mean the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeProxyConfiguration {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// Feature gates: kept, without effect.
    pub feature_gates: BTreeMap<String, bool>,
    /// How to reach the API server.
    pub client_connection: ClientConnection,
    /// Logging; `verbosity` is `--v`.
    pub logging: Logging,
    /// Name of the node.
    pub hostname_override: String,
    /// Address of the node.
    pub bind_address: String,
    /// Where `/healthz` is.
    pub healthz_bind_address: String,
    /// Where `/metrics` is.
    pub metrics_bind_address: String,
    /// A page that cannot be served ends the program.
    pub bind_address_hard_fail: bool,
    /// `/debug/pprof`: without effect.
    pub enable_profiling: bool,
    /// Without effect.
    pub show_hidden_metrics_for_version: String,
    /// `iptables`, `nftables`, `ipvs`; ours: `ebpf`, `auto`. Empty: `auto`.
    pub mode: String,
    /// Settings of mode iptables.
    pub iptables: Iptables,
    /// Settings of mode ipvs.
    pub ipvs: Ipvs,
    /// Settings of modes nftables and ebpf.
    pub nftables: Nftables,
    /// Windows: without effect.
    pub winkernel: Winkernel,
    /// How local pods are told from others.
    pub detect_local_mode: String,
    /// Details of it.
    pub detect_local: DetectLocal,
    /// Networks of pods, separated by commas.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// Where node ports are served.
    pub node_port_addresses: Vec<String>,
    /// How willingly the kernel kills this process when memory is short.
    pub oom_score_adj: i32,
    /// Connection tracking.
    pub conntrack: Conntrack,
    /// Without effect: changes are watched, and lists need no repeating.
    pub config_sync_period: GoDuration,
    /// Without effect, as in kube-proxy.
    pub port_range: String,
    /// Windows: without effect.
    pub windows_run_as_service: bool,
    /// Ours: addresses on which cluster DNS is answered.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    /// Ours: domain of the cluster.
    pub cluster_domain: String,
    /// Ours: name servers for other names.
    pub dns_upstream: Vec<String>,
}

impl Default for KubeProxyConfiguration {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            feature_gates: BTreeMap::new(),
            client_connection: ClientConnection::default(),
            logging: Logging::default(),
            hostname_override: String::new(),
            bind_address: "0.0.0.0".to_owned(),
            healthz_bind_address: "0.0.0.0:10256".to_owned(),
            metrics_bind_address: "127.0.0.1:10249".to_owned(),
            bind_address_hard_fail: false,
            enable_profiling: false,
            show_hidden_metrics_for_version: String::new(),
            mode: String::new(),
            iptables: Iptables::default(),
            ipvs: Ipvs::default(),
            nftables: Nftables::default(),
            winkernel: Winkernel::default(),
            detect_local_mode: String::new(),
            detect_local: DetectLocal::default(),
            cluster_cidr: String::new(),
            node_port_addresses: Vec::new(),
            oom_score_adj: -999,
            conntrack: Conntrack::default(),
            config_sync_period: GoDuration::seconds(15 * 60),
            port_range: String::new(),
            windows_run_as_service: false,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            dns_upstream: Vec::new(),
        }
    }
}

/// How to reach the API server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConnection {
    /// Kubeconfig file; empty: the pod's service account.
    pub kubeconfig: String,
    /// Without effect: JSON is spoken.
    pub accept_content_types: String,
    /// Without effect: JSON is spoken.
    pub content_type: String,
    /// Without effect: there are four watches, and few events.
    pub qps: f32,
    /// Without effect.
    pub burst: i32,
}

impl Default for ClientConnection {
    fn default() -> Self {
        Self {
            kubeconfig: String::new(),
            accept_content_types: String::new(),
            content_type: "application/vnd.kubernetes.protobuf".to_owned(),
            qps: 5.0,
            burst: 10,
        }
    }
}

/// Logging (`k8s.io/component-base/logs/api/v1`). Only `verbosity` has an effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Logging {
    /// `text`.
    pub format: String,
    /// How often buffers would be written.
    pub flush_frequency: GoDuration,
    /// How much is logged, 0 to 10.
    pub verbosity: u32,
    /// Verbosity of single files.
    pub vmodule: Vec<Value>,
    /// Options of formats.
    pub options: LoggingOptions,
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: "text".to_owned(),
            flush_frequency: GoDuration::seconds(5),
            verbosity: 0,
            vmodule: Vec::new(),
            options: LoggingOptions::default(),
        }
    }
}

/// Options of log formats; without effect.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoggingOptions {
    /// Of `text`.
    pub text: LogStream,
    /// Of `json`.
    pub json: LogStream,
}

/// Options of one log format; without effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogStream {
    /// Errors apart.
    pub split_stream: bool,
    /// A quantity.
    pub info_buffer_size: Value,
}

impl Default for LogStream {
    fn default() -> Self {
        Self {
            split_stream: false,
            info_buffer_size: "0".into(),
        }
    }
}

/// Settings of mode iptables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Iptables {
    /// Bit of the mark that asks for masquerading.
    pub masquerade_bit: u8,
    /// All traffic to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// Node ports on 127.0.0.1.
    pub localhost_node_ports: bool,
    /// How often rules are compared with the kernel's.
    pub sync_period: GoDuration,
    /// Shortest time between two syncs.
    pub min_sync_period: GoDuration,
}

impl Default for Iptables {
    fn default() -> Self {
        Self {
            masquerade_bit: MASQUERADE_BIT,
            masquerade_all: false,
            localhost_node_ports: true,
            sync_period: SYNC_PERIOD,
            min_sync_period: GoDuration::default(),
        }
    }
}

/// Settings of mode nftables; ours: also of mode ebpf.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Nftables {
    /// As in [`Iptables`].
    pub masquerade_bit: u8,
    /// As in [`Iptables`].
    pub masquerade_all: bool,
    /// As in [`Iptables`].
    pub sync_period: GoDuration,
    /// As in [`Iptables`].
    pub min_sync_period: GoDuration,
}

impl Default for Nftables {
    fn default() -> Self {
        Self {
            masquerade_bit: MASQUERADE_BIT,
            masquerade_all: false,
            sync_period: SYNC_PERIOD,
            min_sync_period: GoDuration::default(),
        }
    }
}

/// Settings of mode ipvs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipvs {
    /// How often everything is compared with the kernel's.
    pub sync_period: GoDuration,
    /// Shortest time between two syncs.
    pub min_sync_period: GoDuration,
    /// The kernel's scheduler; empty: `rr`.
    pub scheduler: String,
    /// Ours: the scheduler's flags; empty: `mh-port` for `mh`, as kube-proxy has it.
    pub scheduler_flags: Vec<String>,
    /// Virtual servers in these networks are somebody else's.
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    /// Answer ARP for an address on its own interface only.
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    /// Time-out of idle TCP connections; 0: the kernel's.
    pub tcp_timeout: GoDuration,
    /// After a FIN; 0: the kernel's.
    pub tcp_fin_timeout: GoDuration,
    /// Of UDP; 0: the kernel's.
    pub udp_timeout: GoDuration,
}

impl Default for Ipvs {
    fn default() -> Self {
        Self {
            sync_period: SYNC_PERIOD,
            min_sync_period: GoDuration::default(),
            scheduler: String::new(),
            scheduler_flags: Vec::new(),
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            tcp_timeout: GoDuration::default(),
            tcp_fin_timeout: GoDuration::default(),
            udp_timeout: GoDuration::default(),
        }
    }
}

/// Settings of kube-proxy on Windows: read, without effect.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Winkernel {
    /// Windows.
    pub network_name: String,
    /// Windows.
    pub source_vip: String,
    /// Windows.
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    /// Windows.
    pub root_hns_endpoint_name: String,
    /// Windows.
    pub forward_health_check_vip: bool,
}

/// How local pods are told from others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DetectLocal {
    /// Bridge of the pods.
    pub bridge_interface: String,
    /// First letters of the pods' interfaces.
    pub interface_name_prefix: String,
}

/// Connection tracking. Times of 0 leave the kernel's setting as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conntrack {
    /// Entries for each processor; 0 leaves the limit as it is.
    pub max_per_core: u32,
    /// Least number of entries.
    pub min: u32,
    /// Idle time of established TCP connections.
    pub tcp_established_timeout: GoDuration,
    /// Time in CLOSE_WAIT.
    pub tcp_close_wait_timeout: GoDuration,
    /// Out-of-window packets are not invalid.
    pub tcp_be_liberal: bool,
    /// Idle time of UDP flows without an answer.
    pub udp_timeout: GoDuration,
    /// Idle time of UDP flows with answers.
    pub udp_stream_timeout: GoDuration,
}

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: GoDuration::seconds(24 * 3600),
            tcp_close_wait_timeout: GoDuration::seconds(3600),
            tcp_be_liberal: false,
            udp_timeout: GoDuration::default(),
            udp_stream_timeout: GoDuration::default(),
        }
    }
}

const MASQUERADE_BIT: u8 = 14;

const SYNC_PERIOD: GoDuration = GoDuration::seconds(30);

/// What is wrong with a file, and where in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}")]
pub struct FileError {
    /// The key, e.g. `conntrack.maxPerCore`; `.` for the file as a whole.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

impl KubeProxyConfiguration {
    /// Reads a file, YAML or JSON.
    ///
    /// # Errors
    /// Names the key.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let fail = |path: &str, what: String| FileError {
            path: path.to_owned(),
            what,
        };
        let mut value: Value = serde_saphyr::from_str(text).map_err(|error| {
            let error = error.to_string();
            fail(".", error.lines().next().unwrap_or_default().to_owned())
        })?;
        for (key, expect) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            match value.get(key).and_then(Value::as_str) {
                Some(found) if found == expect => {}
                Some(found) => return Err(fail(key, format!("{found:?} is not {expect}"))),
                None => return Err(fail(key, format!("is missing; must be {expect}"))),
            }
        }
        let known = serde_json::to_value(Self::default()).unwrap_or_default();
        if let Some(path) = unknown_key(&known, &value, "") {
            return Err(fail(&path, "unknown key".to_owned()));
        }
        drop_nulls(&mut value);
        // Their defaults depend on the family of bindAddress.
        for page in ["healthzBindAddress", "metricsBindAddress"] {
            if let Value::Object(map) = &mut value {
                map.entry(page).or_insert_with(|| "".into());
            }
        }
        let read: Self = serde_path_to_error::deserialize(value)
            .map_err(|e| fail(&e.path().to_string(), e.inner().to_string()))?;
        Ok(read.zero_means_default())
    }

    /// The file's text.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).unwrap_or_default()
    }

    /// kube-proxy's `SetDefaults_KubeProxyConfiguration`: kubeadm writes every key, with zeros.
    fn zero_means_default(mut self) -> Self {
        let default = Self::default();
        let word = |text: &mut String, default: &str| {
            if text.is_empty() {
                default.clone_into(text);
            }
        };
        word(&mut self.bind_address, &default.bind_address);
        let v6 = self.bind_address.contains(':');
        let (healthz, metrics) = if v6 {
            ("[::]:10256", "[::1]:10249")
        } else {
            ("0.0.0.0:10256", "127.0.0.1:10249")
        };
        word(&mut self.healthz_bind_address, healthz);
        word(&mut self.metrics_bind_address, metrics);
        word(&mut self.cluster_domain, &default.cluster_domain);
        word(&mut self.logging.format, &default.logging.format);
        let content_type = &default.client_connection.content_type;
        word(&mut self.client_connection.content_type, content_type);
        if self.client_connection.qps == 0.0 {
            self.client_connection.qps = default.client_connection.qps;
        }
        if self.client_connection.burst == 0 {
            self.client_connection.burst = default.client_connection.burst;
        }
        let time = |of: &mut GoDuration, default: GoDuration| *of = of.or(default);
        time(&mut self.config_sync_period, default.config_sync_period);
        time(&mut self.iptables.sync_period, SYNC_PERIOD);
        time(&mut self.nftables.sync_period, SYNC_PERIOD);
        time(&mut self.ipvs.sync_period, SYNC_PERIOD);
        let flush = default.logging.flush_frequency;
        time(&mut self.logging.flush_frequency, flush);
        self
    }
}

/// The path of the first key of `value` that `known` has not. What is empty in `known` may have
/// any keys.
fn unknown_key(known: &Value, value: &Value, at: &str) -> Option<String> {
    let (Value::Object(known), Value::Object(value)) = (known, value) else {
        return None;
    };
    if known.is_empty() {
        return None;
    }
    value.iter().find_map(|(key, value)| {
        let path = if at.is_empty() {
            key.clone()
        } else {
            format!("{at}.{key}")
        };
        match known.get(key) {
            None => Some(path),
            Some(known) => unknown_key(known, value, &path),
        }
    })
}

fn drop_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, value| !value.is_null());
        map.values_mut().for_each(drop_nulls);
    }
}

#[cfg(test)]
mod tests;
