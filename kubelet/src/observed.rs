//! What the runtime says there is of one pod. Facts only; what they mean is decided in `plan` and `status`.

use std::net::IpAddr;

use jiff::Timestamp;

/// The sandbox and every container of one pod, dead ones included.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The sandbox, when there is one.
    pub sandbox: Option<Sandbox>,
    /// All containers, in no particular order.
    pub containers: Vec<Container>,
}

/// The namespaces the pod's containers share.
#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// Its namespaces are alive.
    pub ready: bool,
    /// Addresses the CNI plugins gave (empty for a pod in the host's network).
    pub ips: Vec<IpAddr>,
}

/// One run of one container.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Name in the pod's spec.
    pub name: String,
    /// 0 for the first run, one more for each restart.
    pub attempt: u32,
    /// The sandbox it was made in.
    pub sandbox_id: String,
    /// spec image as it was asked for.
    pub image: String,
    /// Digest of the image it really runs.
    pub image_id: String,
    /// What it is doing.
    pub state: State,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Made, and its program not started.
    Created,
    /// Its program runs.
    Running {
        /// Since when.
        started: Timestamp,
    },
    /// Its program ended.
    Exited(Exit),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exit {
    /// Exit code; 128 + n when signal n ended it.
    pub code: i32,
    /// The memory limit ended it.
    pub oom: bool,
    /// When it began, if it ever did.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// The runtime's own word (`StartError`), when it has one.
    pub reason: Option<String>,
    /// Termination message, or why it could not start.
    pub message: Option<String>,
}

impl Container {
    /// Its program runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            State::Created | State::Running { .. } => None,
        }
    }
}

impl Observed {
    /// The newest run of container `name`.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        let runs = self.containers.iter().filter(|c| c.name == name);
        runs.max_by_key(|c| c.attempt)
    }

    /// The newest ended run of container `name` that is older than run `before`.
    pub fn last_exit(&self, name: &str, before: u32) -> Option<&Container> {
        let runs = self.containers.iter().filter(|c| c.name == name);
        runs.filter(|c| c.attempt < before && c.exit().is_some())
            .max_by_key(|c| c.attempt)
    }

    /// The container with id `id`.
    pub fn by_id(&self, id: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.id == id)
    }

    /// Some container runs.
    pub fn any_running(&self) -> bool {
        self.containers.iter().any(Container::is_running)
    }
}
