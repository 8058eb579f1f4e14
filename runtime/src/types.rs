//! What callers ask for and what they are told: plain data, stored as JSON in the state directory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A sandbox: the namespaces that the containers of one pod share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Its id (the pod's uid): letters, digits, `-`, `_`, `.`; at most 64 characters.
    pub id: String,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// Host name inside. Not used with `host_network`, where the host's stays.
    pub hostname: String,
    /// File of the pod's network namespace; `None` means the network of the calling process.
    pub netns: Option<PathBuf>,
    /// cgroup of the pod, e.g. `/seaway/dev/node-1/kubepods/pod1234`; made, limited and removed
    /// with the sandbox.
    pub cgroup_parent: String,
    /// Limits of the pod's cgroup.
    pub limits: Limits,
    /// Kernel parameters of the pod's namespaces (`net.*`, `kernel.shm*`, `kernel.msg*`,
    /// `kernel.sem`, `fs.mqueue.*`), by dotted name.
    pub sysctls: BTreeMap<String, String>,
    /// The containers share one process namespace, whose first process is the shim's `pause`.
    pub share_pid: bool,
    /// The pod uses the node's network.
    pub host_network: bool,
    /// The containers see the host's processes.
    pub host_pid: bool,
    /// The containers use the host's System V IPC and message queues.
    pub host_ipc: bool,
    /// Kept for the caller.
    pub labels: BTreeMap<String, String>,
    /// Kept for the caller.
    pub annotations: BTreeMap<String, String>,
}

/// Limits to write into a cgroup. Absent means unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory and swap together, in bytes.
    pub memory_bytes: Option<i64>,
    /// CPU time per period, in microseconds.
    pub cpu_quota_us: Option<i64>,
    /// The period, in microseconds; 100 000 when absent.
    pub cpu_period_us: Option<u64>,
    /// Weight against siblings (`cpu.shares`, 1024 is one CPU).
    pub cpu_shares: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<i64>,
}

/// How mounts travel between host and container (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// Mounts made later on the host appear in the container.
    HostToContainer,
    /// Both ways. The host's mount must be shared.
    Bidirectional,
}

/// A file or directory of the host seen by a container (a recursive bind mount).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// On the host; must exist.
    pub source: PathBuf,
    /// In the container; made when missing.
    pub target: PathBuf,
    /// Not writable (mounts below it keep their own access, as in Kubernetes).
    pub read_only: bool,
    /// Propagation of mounts.
    pub propagation: Propagation,
}

/// The user a program runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Wins over the image's user.
    pub uid: Option<u32>,
    /// Wins over the group that the image or its `/etc/passwd` give.
    pub gid: Option<u32>,
    /// Groups besides those that the image's `/etc/group` gives the user.
    pub groups: Vec<u32>,
    /// Refuse to run as uid 0.
    pub non_root: bool,
}

/// Privileges of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// All capabilities of the shim, all its devices, nothing masked or read-only in /proc and /sys.
    pub privileged: bool,
    /// The root file system is read-only.
    pub read_only_root: bool,
    /// Programs with set-user-id bits give no privileges.
    pub no_new_privileges: bool,
    /// Capabilities besides the default set, with or without `CAP_`; `ALL` for all.
    pub add_caps: Vec<String>,
    /// Capabilities to take away, with or without `CAP_`; `ALL` for all.
    pub drop_caps: Vec<String>,
}

/// A container to make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its id, unique in the state directory: letters, digits, `-`, `_`, `.`; at most 64 characters.
    pub id: String,
    /// Name in the pod's spec.
    pub name: String,
    /// Number of this run, 0 for the first.
    pub attempt: u32,
    /// Name or id of an image in the store.
    pub image: String,
    /// Program and arguments; empty: the image's ENTRYPOINT and CMD.
    pub argv: Vec<String>,
    /// Variables besides the image's own, which they win over.
    pub env: Vec<(String, String)>,
    /// Working directory; empty: the image's, or `/`. Made when missing.
    pub cwd: String,
    /// Who it runs as.
    pub user: User,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// cgroup; empty: `<cgroup_parent of the sandbox>/<id>`.
    pub cgroup: String,
    /// Its limits.
    pub limits: Limits,
    /// Privileges.
    pub security: Security,
    /// Added to the badness the OOM killer sees (-1000..=1000); only raised where the machine does
    /// not let us lower it, which is logged.
    pub oom_score_adj: Option<i32>,
    /// Standard streams are a terminal.
    pub tty: bool,
    /// Standard input stays open for [`crate::Runtime::attach`]; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Standard input ends when the first attached client ends its own.
    pub stdin_once: bool,
    /// Log file in CRI format; nothing is logged when absent.
    pub log_path: Option<PathBuf>,
    /// File on the host that the container sees at `termination_target`; made empty when missing.
    pub termination_log: Option<PathBuf>,
    /// Where in the container; `/dev/termination-log` when absent.
    pub termination_target: Option<PathBuf>,
    /// Kept for the caller.
    pub labels: BTreeMap<String, String>,
    /// Kept for the caller.
    pub annotations: BTreeMap<String, String>,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum ContainerState {
    /// Made, and its program not started.
    Created,
    /// Its program runs.
    Running {
        /// Process id on the host.
        pid: i32,
        /// Since when.
        started_at: Timestamp,
    },
    /// Its program ended, or could not be started.
    Exited(Exit),
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + n when signal n ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The memory limit of its cgroup killed a process of it.
    pub oom_killed: bool,
    /// When its program began, if it ever did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, or `ContainerStatusUnknown` when the pod's
    /// shim had died and nobody saw the end.
    pub reason: String,
    /// Why it could not be started or how it was lost; empty otherwise.
    pub message: String,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    /// Its id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// Name in the pod's spec.
    pub name: String,
    /// Number of this run.
    pub attempt: u32,
    /// Image as asked for.
    pub image: String,
    /// Digest of the image it runs.
    pub image_id: String,
    /// What it is doing.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Log file.
    pub log_path: Option<PathBuf>,
    /// As given.
    pub labels: BTreeMap<String, String>,
    /// As given.
    pub annotations: BTreeMap<String, String>,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxStatus {
    /// As given.
    pub spec: SandboxSpec,
    /// Its shim lives and holds the namespaces.
    pub ready: bool,
    /// Process id of the shim.
    pub pid: Option<i32>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A program to run inside a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Connect standard input; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Give it a terminal. All output then comes on the terminal.
    pub tty: bool,
    /// Variables besides the container's own.
    pub env: Vec<(String, String)>,
    /// Working directory; empty: the container's.
    pub cwd: String,
    /// Somebody else than the container's user.
    pub user: Option<User>,
}
