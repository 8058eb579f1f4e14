//! What every pod's worker shares: the node's facts and the doors to runtime, network and API server.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::watch;

use crate::cni::Network;
use crate::dns;
use crate::downward;
use crate::env::Service;
use crate::events::Recorder;
use crate::kube_api::KubeApi;
use crate::observed::Observed;
use crate::pod::PodId;
use crate::rt::PodRuntime;

/// The services of all namespaces, by namespace and name; `None` until they were read once.
pub type Services = Option<Arc<BTreeMap<(String, String), Service>>>;

/// What does not change while the kubelet runs.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// Its addresses, the main one first.
    pub ips: Vec<IpAddr>,
    /// Where pods' files are kept.
    pub root_dir: PathBuf,
    /// Where pods' logs are kept.
    pub logs_dir: PathBuf,
    /// Where network namespaces are bound.
    pub netns_dir: PathBuf,
    /// The cgroup of this node.
    pub cgroup_root: String,
    /// Cluster DNS and the host's resolv.conf.
    pub dns: dns::Cluster,
    /// Allocatable CPU in thousandths.
    pub cpu_milli: i64,
    /// Allocatable memory in bytes.
    pub memory_bytes: i64,
}

impl Node {
    /// The kubelet's directory of a pod.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        crate::checkpoint::pod_dir(&self.root_dir, uid)
    }

    /// The log directory of a pod.
    pub fn log_dir(&self, pod: &PodId) -> PathBuf {
        self.logs_dir.join(pod.log_dir_name())
    }

    /// The network namespace of a pod.
    pub fn netns(&self, uid: &str) -> PathBuf {
        self.netns_dir.join(uid)
    }

    /// The cgroup of a pod.
    pub fn cgroup(&self, uid: &str) -> String {
        format!(
            "{}/kubepods/pod{uid}",
            self.cgroup_root.trim_end_matches('/')
        )
    }

    /// The facts of the downward API for a pod with these addresses.
    pub fn facts(&self, pod_ips: &[IpAddr], host_network: bool) -> downward::Facts {
        let ips = if host_network { &self.ips[..] } else { pod_ips };
        downward::Facts {
            host_ips: self.ips.clone(),
            pod_ips: ips.to_vec(),
            node_cpu_milli: self.cpu_milli,
            node_memory_bytes: self.memory_bytes,
        }
    }
}

/// One pod as the server's requests see it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// As the API has it.
    pub pod: Arc<Pod>,
    /// As the runtime has it.
    pub observed: Arc<Observed>,
    /// The status the kubelet computed last.
    pub status: Arc<PodStatus>,
}

/// All pods of the node, written by their workers and read by the server.
#[derive(Debug, Default)]
pub struct Board {
    pods: Mutex<BTreeMap<String, Shown>>,
}

impl Board {
    /// Shows a pod.
    pub fn show(&self, uid: &str, shown: Shown) {
        self.lock().insert(uid.to_owned(), shown);
    }

    /// Takes a pod away.
    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// The pod of this name; of several the newest.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Shown> {
        let pods = self.lock();
        let mut found: Vec<_> = pods
            .values()
            .filter(|s| {
                let meta = &s.pod.metadata;
                meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
            })
            .collect();
        found.sort_by_key(|s| s.pod.metadata.creation_timestamp.clone());
        found.last().map(|s| (*s).clone())
    }

    /// All pods, by uid.
    pub fn all(&self) -> Vec<Shown> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Shown>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shared by all workers.
#[derive(Clone)]
pub struct Context {
    /// The node.
    pub node: Arc<Node>,
    /// The container runtime.
    pub rt: Arc<dyn PodRuntime>,
    /// The pod network.
    pub net: Arc<dyn Network>,
    /// The API server.
    pub api: Arc<dyn KubeApi>,
    /// Events.
    pub events: Recorder,
    /// Services, for variables.
    pub services: watch::Receiver<Services>,
    /// What the server shows.
    pub board: Arc<Board>,
}

/// Reads a file of the host that pods may see; an unreadable one counts as empty.
pub fn host_file(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Runs blocking work on a thread for it.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // Blocking tasks are never cancelled; a panic in one goes on here.
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}
