//! The facts of the machine and of the sandbox that a plan needs.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use linux::cgroup::{CONTROLLERS, Hierarchies};

use super::caps;
use crate::error::{Error, Result};

/// What each container has of its own in `/dev`.
const DEV_OWN: [&str; 12] = [
    "pts", "shm", "mqueue", "fd", "console", "null", "zero", "full", "random", "urandom", "tty",
    "ptmx",
];

/// Facts of the machine and of the sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Capabilities that processes of this machine can have, as bits by number.
    pub caps: u64,
    /// Device files, for privileged containers.
    pub devices: Vec<Device>,
    /// The process namespace that the pod's containers share, when they do.
    pub shared_pid: Option<PathBuf>,
    /// Which of [`CONTROLLERS`] there are; without one, its limits have no effect.
    pub controllers: Vec<&'static str>,
    /// The directory to see as `/dev/shm`.
    pub shm: PathBuf,
}

/// A device file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where it is.
    pub path: PathBuf,
    /// A block device; a character device otherwise.
    pub block: bool,
    /// Its driver.
    pub major: u64,
    /// Which of that driver's devices.
    pub minor: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Host {
    /// Looks at this machine; at its devices only when `privileged`.
    ///
    /// # Errors
    /// `/proc` or `/dev` cannot be read.
    pub fn observe(
        groups: &Hierarchies,
        shm: PathBuf,
        shared_pid: Option<PathBuf>,
        privileged: bool,
    ) -> Result<Self> {
        let path = Path::new("/proc/self/status");
        let text = fs::read_to_string(path).map_err(Error::path("read", path))?;
        let bounding = text.lines().find_map(|l| l.strip_prefix("CapBnd:"));
        let caps = bounding.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        let mut devices = Vec::new();
        if privileged {
            find_devices(Path::new("/dev"), &mut devices)?;
        }
        Ok(Self {
            caps: caps.unwrap_or(caps::ALL_KNOWN),
            devices,
            shared_pid,
            controllers: controllers(groups),
            shm,
        })
    }
}

/// Those of [`CONTROLLERS`] that this machine has.
pub(crate) fn controllers(groups: &Hierarchies) -> Vec<&'static str> {
    let mut found = CONTROLLERS.to_vec();
    found.retain(|name| groups.has_controller(name));
    found
}

fn find_devices(dir: &Path, found: &mut Vec<Device>) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(Error::path("list", dir))?;
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        // Device files come and go; one that has gone is none.
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if DEV_OWN.contains(&name) {
            continue;
        }
        if meta.is_dir() {
            find_devices(&path, found)?;
        }
        let kind = meta.file_type();
        if !kind.is_char_device() && !kind.is_block_device() {
            continue;
        }
        found.push(Device {
            path,
            block: kind.is_block_device(),
            major: nix::sys::stat::major(meta.rdev()),
            minor: nix::sys::stat::minor(meta.rdev()),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
        });
    }
    Ok(())
}
