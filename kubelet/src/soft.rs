//! What the kubelet knows of one pod besides the runtime's facts: steps in progress and their failures,
//! kills under way, probe results, back-off. Lost in a restart of the kubelet, and rebuilt from the facts.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::backoff::Backoff;

/// Progress of one thing that is done once.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Step {
    /// Not begun.
    #[default]
    Idle,
    /// Somebody is at it.
    Running,
    /// Done.
    Done,
    /// Did not work; tried again later.
    Failed(Failure),
}

/// Why a step did not work and when it is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Reason as the API shows it (`ErrImagePull`).
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When it is tried again.
    pub retry_at: Timestamp,
    /// How often it failed in a row.
    pub tries: u32,
}

impl Step {
    /// Nobody is at it and it may begin at `now`.
    pub fn may_begin(&self, now: Timestamp) -> bool {
        match self {
            Self::Idle => true,
            Self::Failed(failure) => failure.retry_at <= now,
            Self::Running | Self::Done => false,
        }
    }

    /// When to look again, for a failed step.
    pub fn retry_at(&self) -> Option<Timestamp> {
        match self {
            Self::Failed(failure) => Some(failure.retry_at),
            Self::Idle | Self::Running | Self::Done => None,
        }
    }

    /// How often it failed in a row so far.
    pub fn tries(&self) -> u32 {
        match self {
            Self::Failed(failure) => failure.tries,
            Self::Idle | Self::Running | Self::Done => 0,
        }
    }
}

/// A container on its way out.
#[derive(Debug, Clone, PartialEq)]
pub struct Kill {
    /// SIGKILL comes then.
    pub deadline: Timestamp,
    /// The preStop hook has not ended yet.
    pub hook_running: bool,
    /// SIGTERM was sent.
    pub term_sent: bool,
    /// SIGKILL was sent.
    pub kill_sent: bool,
}

/// What the probes and the postStart hook say of one running container.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Health {
    /// The postStart hook has not ended yet.
    pub post_start_running: bool,
    /// The startup probe succeeded (always true without one).
    pub started: bool,
    /// The readiness probe's last word (always true without one).
    pub ready: bool,
    /// Why it has to be killed: a failed liveness or startup probe or postStart hook.
    pub unhealthy: Option<Unhealthy>,
}

/// Why a running container has to be killed.
#[derive(Debug, Clone, PartialEq)]
pub struct Unhealthy {
    /// For the Killing event.
    pub message: String,
    /// The probe's own terminationGracePeriodSeconds, when it has one.
    pub grace_seconds: Option<i64>,
}

/// Everything soft about one pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Soft {
    /// Volumes, /etc files and the pod's cgroup.
    pub volumes: Step,
    /// Making or taking down the sandbox with its network.
    pub sandbox: Step,
    /// Starts in progress or failed, by container name.
    pub starts: BTreeMap<String, Step>,
    /// Containers on their way out, by id.
    pub kills: BTreeMap<String, Kill>,
    /// Removals of dead containers in progress, by id.
    pub removals: BTreeMap<String, Step>,
    /// Probe results, by container id.
    pub health: BTreeMap<String, Health>,
    /// Restart back-off, by container name.
    pub backoff: BTreeMap<String, Backoff>,
    /// The pod must end by then (deletion).
    pub end_by: Option<Timestamp>,
    /// The pod is gone from the API: nothing of it may stay.
    pub gone: bool,
    /// Why the whole pod failed (`DeadlineExceeded`).
    pub failed: Option<(&'static str, String)>,
    /// Unmounting and removing what the pod had on this node.
    pub cleanup: Step,
    /// Removing the API object after the end.
    pub delete: Step,
}
