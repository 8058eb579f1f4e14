//! Reading a Pod object: identity, and the questions several modules ask of its spec.

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde::{Deserialize, Serialize};

/// Grace period of a pod that names none, as the API server's default.
const GRACE_SECONDS_DEFAULT: i64 = 30;

/// Which pod: the three names that stay with it for life.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodId {
    /// metadata.uid
    pub uid: String,
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
}

impl PodId {
    /// The identity of `pod`; empty parts where the object lacks them.
    pub fn of(pod: &Pod) -> Self {
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
        }
    }

    /// Name of the directory below the pod log directory, as every log collector expects it.
    pub fn log_dir_name(&self) -> String {
        format!("{}_{}_{}", self.namespace, self.name, self.uid)
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// spec.restartPolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Restart whatever the exit code.
    Always,
    /// Restart after a failure.
    OnFailure,
    /// Never restart.
    Never,
}

/// The part a container plays in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next begins.
    Init,
    /// An init container with restartPolicy Always: runs beside the others from then on.
    Sidecar,
    /// One of spec.containers.
    App,
}

static EMPTY_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);

/// spec, or an empty one.
pub fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap_or(&EMPTY_SPEC)
}

/// spec.restartPolicy, Always by default.
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    match spec(pod).restart_policy.as_deref() {
        Some("OnFailure") => RestartPolicy::OnFailure,
        Some("Never") => RestartPolicy::Never,
        _ => RestartPolicy::Always,
    }
}

/// The init containers and sidecars in order, each with its role.
pub fn init_containers(pod: &Pod) -> impl DoubleEndedIterator<Item = (&Container, Role)> {
    let all = spec(pod).init_containers.iter().flatten();
    all.map(|c| match c.restart_policy.as_deref() {
        Some("Always") => (c, Role::Sidecar),
        _ => (c, Role::Init),
    })
}

/// spec.containers.
pub fn app_containers(pod: &Pod) -> &[Container] {
    &spec(pod).containers
}

/// Every container of the spec with its role: init containers first.
pub fn all_containers(pod: &Pod) -> impl Iterator<Item = (&Container, Role)> {
    init_containers(pod).chain(app_containers(pod).iter().map(|c| (c, Role::App)))
}

/// The container named `name` and its role.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<(&'a Container, Role)> {
    all_containers(pod).find(|(c, _)| c.name == name)
}

/// spec.hostNetwork
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

/// metadata.deletionTimestamp is set.
pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// How long the containers get to end by themselves: what the deletion asked for, else the spec's word.
pub fn grace(pod: &Pod) -> Duration {
    let asked = pod.metadata.deletion_grace_period_seconds;
    let own = spec(pod).termination_grace_period_seconds;
    let seconds = asked.or(own).unwrap_or(GRACE_SECONDS_DEFAULT).max(1);
    Duration::from_secs(seconds.unsigned_abs())
}

/// The host name inside the pod: spec.hostname or the pod's name, cut to what the kernel takes.
pub fn hostname(pod: &Pod) -> String {
    const HOSTNAME_MAX: usize = 63;
    let id = PodId::of(pod);
    let name = spec(pod).hostname.clone().filter(|h| !h.is_empty());
    let mut name = name.unwrap_or(id.name);
    name.truncate(HOSTNAME_MAX);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// The fully qualified name when the pod has a subdomain: `hostname.subdomain.namespace.svc.domain`.
pub fn fqdn(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let sub = spec(pod).subdomain.as_deref().filter(|s| !s.is_empty())?;
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{}.{sub}.{ns}.svc.{cluster_domain}", hostname(pod)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    #[test]
    fn grace_prefers_what_the_deletion_asked_for() {
        let mut p = pod("a: {terminationGracePeriodSeconds: 7}");
        assert_eq!(grace(&p), Duration::from_secs(7));
        p.metadata.deletion_grace_period_seconds = Some(0);
        assert_eq!(grace(&p), Duration::from_secs(1));
    }

    #[test]
    fn names_of_the_host() {
        let p = pod("web: {subdomain: peers, hostname: one}");
        assert_eq!(hostname(&p), "one");
        assert_eq!(
            fqdn(&p, "cluster.local").as_deref(),
            Some("one.peers.default.svc.cluster.local")
        );
        assert_eq!(fqdn(&pod("web: {}"), "cluster.local"), None);
    }
}
