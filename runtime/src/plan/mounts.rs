//! The mounts of a container.

use std::path::Path;

use serde_json::{Value, json};

use super::Host;
use crate::error::{Error, Result};
use crate::types::{ContainerSpec, Mount, Propagation, SandboxSpec};

/// Files that tell of, or act on, the machine, hidden from containers (Docker's list).
pub(super) const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];

/// Files that containers may only read (Docker's list).
pub(super) const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Where the termination message is written when the pod does not say.
const TERMINATION_TARGET: &str = "/dev/termination-log";

/// All mounts, in the order in which they are made.
pub(super) fn plan(sandbox: &SandboxSpec, spec: &ContainerSpec, host: &Host) -> Result<Value> {
    let mut asked = spec.mounts.clone();
    if let Some(source) = &spec.termination_log {
        let target = spec.termination_target.clone();
        asked.push(Mount {
            source: source.clone(),
            target: target.unwrap_or_else(|| TERMINATION_TARGET.into()),
            ..Mount::default()
        });
    }
    for mount in &asked {
        for (field, path) in [("source", &mount.source), ("target", &mount.target)] {
            if !path.is_absolute() {
                let why = format!("{} is not an absolute path", path.display());
                return Err(Error::invalid(format!("mounts.{field}"), why));
            }
        }
    }
    // A mount below another comes after it; those of one depth stay as they were given.
    asked.sort_by_key(|mount| mount.target.components().count());
    let replaced = |target: &str| asked.iter().any(|m| m.target == Path::new(target));
    let own = own(sandbox, spec, host).into_iter();
    let own = own.filter(|m| {
        m.get("destination")
            .and_then(Value::as_str)
            .is_none_or(|d| !replaced(d))
    });
    Ok(own.chain(asked.iter().map(bind)).collect())
}

/// What every container has.
fn own(sandbox: &SandboxSpec, spec: &ContainerSpec, host: &Host) -> Vec<Value> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": source, "options": options });
    let sys_access = if spec.security.privileged { "rw" } else { "ro" };
    let sys = if sandbox.host_network {
        // A new sysfs of the host's own network namespace would show it writable elsewhere.
        mount(
            "/sys",
            "bind",
            "/sys",
            &["rbind", "rprivate", "nosuid", "noexec", "nodev", sys_access],
        )
    } else {
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", sys_access],
        )
    };
    let shm = host.shm.display().to_string();
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/shm",
            "bind",
            &shm,
            &["rbind", "rprivate", "nosuid", "noexec", "nodev"],
        ),
        sys,
    ]
}

fn bind(mount: &Mount) -> Value {
    let propagation = match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = if mount.read_only { "ro" } else { "rw" };
    json!({
        "destination": mount.target, "type": "bind", "source": mount.source,
        "options": ["rbind", propagation, access],
    })
}

/// Propagation of the root: as wide as the widest mount in it needs.
pub(super) fn root_propagation(mounts: &[Mount]) -> &'static str {
    let has = |wanted: Propagation| mounts.iter().any(|m| m.propagation == wanted);
    if has(Propagation::Bidirectional) {
        "shared"
    } else if has(Propagation::HostToContainer) {
        "slave"
    } else {
        "private"
    }
}
