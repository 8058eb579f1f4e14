//! The namespaces of a pod, held by the shim itself: its children have them without being told.

use std::fs;
use std::path::{Path, PathBuf};

use linux::cgroup::Hierarchies;
use linux::mount;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use super::pause;
use crate::error::{Error, Result};
use crate::types::SandboxSpec;

/// Size of the pod's `/dev/shm`, as with other runtimes.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// Enters the pod's own UTS and IPC namespaces (the network namespace has been entered on the way
/// here), names the host, sets kernel parameters, mounts `/dev/shm`. Returns the first process of the
/// shared process namespace, when there is one.
pub(super) fn enter(
    dir: &Path,
    program: &Path,
    groups: &Hierarchies,
    spec: &SandboxSpec,
) -> Result<Option<i32>> {
    let mut flags = CloneFlags::empty();
    if !spec.host_network {
        flags |= CloneFlags::CLONE_NEWUTS;
    }
    if !spec.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a process of one thread, for its own namespaces"
    )]
    nix::sched::unshare(flags).map_err(|e| Error::io("make the pod's namespaces", e))?;
    if !spec.host_network && !spec.hostname.is_empty() {
        nix::unistd::sethostname(&spec.hostname)
            .map_err(|e| Error::io(format!("set host name {}", spec.hostname), e))?;
    }
    for (name, value) in &spec.sysctls {
        let path = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value)
            .map_err(|e| Error::io(format!("set sysctl {name} to {value}"), e))?;
    }
    if !spec.host_ipc {
        let shm = dir.join("shm");
        fs::create_dir_all(&shm).map_err(Error::path("make directory", &shm))?;
        // One of a shim that died may be mounted still.
        mount::unmount(&shm)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        mount::mount("shm", &shm, "tmpfs", flags, Some(SHM_OPTIONS))?;
    }
    if !spec.share_pid {
        return Ok(None);
    }
    let pid = pause::create(program)?;
    groups.join(&spec.cgroup_parent, pid)?;
    Ok(Some(pid))
}
