//! What a sandbox may ask for.

use crate::error::{Error, Result};
use crate::types::SandboxSpec;

/// Longest host name the kernel takes (`__NEW_UTS_LEN`).
const HOSTNAME_LEN_MAX: usize = 64;

/// Refuses a sandbox that cannot be made, naming the field.
///
/// # Errors
/// A malformed host name or cgroup, namespaces that exclude each other, a sysctl that is not of the
/// pod's own namespaces.
pub fn check(spec: &SandboxSpec) -> Result<()> {
    if spec.hostname.len() > HOSTNAME_LEN_MAX {
        return Err(Error::invalid(
            "hostname",
            format!("{:?} is too long", spec.hostname),
        ));
    }
    let parts = spec
        .cgroup_parent
        .strip_prefix('/')
        .map(|rest| rest.split('/'));
    if parts.is_none_or(|mut parts| parts.any(|p| p.is_empty() || p == "." || p == "..")) {
        let why = format!(
            "{:?} is not a path such as /seaway/pods/pod1",
            spec.cgroup_parent
        );
        return Err(Error::invalid("cgroup_parent", why));
    }
    if spec.share_pid && spec.host_pid {
        return Err(Error::invalid(
            "share_pid",
            "cannot be combined with host_pid",
        ));
    }
    if spec.host_network && spec.netns.is_some() {
        return Err(Error::invalid(
            "netns",
            "cannot be combined with host_network",
        ));
    }
    spec.sysctls
        .keys()
        .try_for_each(|name| check_sysctl(spec, name))
}

fn check_sysctl(spec: &SandboxSpec, name: &str) -> Result<()> {
    let invalid = |why: &str| Err(Error::invalid(format!("sysctls[{name}]"), why));
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if name.contains("..") || name.starts_with(['.', '/']) || !name.chars().all(fine) {
        return invalid("is no sysctl name");
    }
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name.starts_with("net.") {
        if spec.host_network {
            return invalid("cannot be set with the host's network");
        }
    } else if name == "kernel.sem" || ipc.iter().any(|start| name.starts_with(start)) {
        if spec.host_ipc {
            return invalid("cannot be set with the host's IPC");
        }
    } else {
        return invalid("does not belong to the pod's namespaces");
    }
    Ok(())
}
