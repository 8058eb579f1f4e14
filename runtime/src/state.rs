//! The state directory: what lies where, and files that are whole or not there.
//!
//! ```text
//! ROOT/events/<sandbox>                      written at each change of a sandbox, for watchers
//! ROOT/sandboxes/<sandbox>/sandbox.json      what was asked for
//!                          shim.json         pid and birth of the shim
//!                          shim.sock shim.log
//!                          containers/<container>/container.json   what was asked for
//!                                                 state.json       what it is doing (shim)
//!                                                 config.json      OCI spec (with rootfs: the bundle)
//!                                                 rootfs upper work  overlay mount and its writable part
//!                                                 oci/             libcontainer's own state
//! ```

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::types::{ContainerSpec, ContainerState, SandboxSpec};

/// `sandbox.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxFile {
    pub(crate) spec: SandboxSpec,
    pub(crate) created_at: Timestamp,
}

/// `shim.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimFile {
    pub(crate) pid: i32,
    /// Start time in clock ticks since boot: with the pid it names one process for ever.
    pub(crate) birth: u64,
    /// First process of the shared process namespace, when there is one.
    pub(crate) pause: Option<i32>,
}

/// `container.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerFile {
    pub(crate) spec: ContainerSpec,
    pub(crate) sandbox_id: String,
    pub(crate) image_id: String,
    pub(crate) created_at: Timestamp,
    /// cgroup, with the default filled in.
    pub(crate) cgroup: String,
    /// Directories of the image's layers, the topmost first.
    pub(crate) lower: Vec<PathBuf>,
}

/// The paths in a state directory.
#[derive(Debug, Clone)]
pub(crate) struct Root(pub(crate) PathBuf);

impl Root {
    pub(crate) fn events(&self) -> PathBuf {
        self.0.join("events")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.0.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }
}

/// The directory of a container in its sandbox's.
pub(crate) fn container_dir(sandbox: &Path, id: &str) -> PathBuf {
    sandbox.join("containers").join(id)
}

/// Refuses ids that are no file names, or none that libcontainer takes.
pub(crate) fn check_id(field: &str, id: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if id.is_empty() || id.len() > 64 || id.starts_with('.') || !id.chars().all(fine) {
        return Err(Error::invalid(
            field,
            format!("{id:?} is no id (1 to 64 letters, digits, '-', '_', '.'; not '.' first)"),
        ));
    }
    Ok(())
}

/// Names of the directories in `dir`, sorted; none when it is not there.
pub(crate) fn subdirs(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Reads a JSON file; `None` when it is not there.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(Error::json(format!("read {}", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::path("read", path)(e)),
    }
}

/// Writes a JSON file so that readers see the old one or the new one, whole.
///
/// It is not flushed to the disk: what it describes (processes, mounts) does not outlive the kernel
/// that would lose it.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes =
        serde_json::to_vec(value).map_err(Error::json(format!("write {}", path.display())))?;
    write_bytes(path, &bytes)
}

/// Writes a file so that readers see the old one or the new one, whole.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let temp = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = fs::File::create(&temp).map_err(Error::path("create", &temp))?;
    file.write_all(bytes).map_err(Error::path("write", &temp))?;
    fs::rename(&temp, path).map_err(Error::path("write", path))
}

/// The state in a container's directory; `None` until it is made.
pub(crate) fn container_state(dir: &Path) -> Result<Option<ContainerState>> {
    read(&dir.join("state.json"))
}

/// Holds off others that would make, settle or remove the sandbox in `dir`; `None` when it is not
/// there (any more).
pub(crate) fn lock(dir: &Path) -> Result<Option<fs::File>> {
    loop {
        let file = match fs::File::open(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::path("open", dir))?,
        };
        file.lock().map_err(Error::path("lock", dir))?;
        let mine = file.metadata().map_err(Error::path("look at", dir))?;
        // While we waited it may have been removed, and made anew by somebody else.
        match fs::metadata(dir) {
            Ok(there) if (there.dev(), there.ino()) == (mine.dev(), mine.ino()) => {
                return Ok(Some(file));
            }
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::path("look at", dir)(e)),
        }
    }
}

/// Tells the watchers of `root` that sandbox `id` changed.
pub(crate) fn announce(root: &Root, id: &str) -> Result<()> {
    let path = root.events().join(id);
    fs::write(&path, b"").map_err(Error::path("write", &path))
}

/// Start time of a process, in clock ticks since boot; `None` when it is gone or a zombie.
pub(crate) fn birth(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The state follows the parenthesised name, which may itself hold parentheses.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    // Field 22 of proc_pid_stat(5); the state is field 3.
    fields.nth(18)?.parse().ok()
}

/// The living shim of the sandbox in `dir`.
pub(crate) fn living_shim(dir: &Path) -> Result<Option<ShimFile>> {
    let shim: Option<ShimFile> = read(&dir.join("shim.json"))?;
    Ok(shim.filter(|s| birth(s.pid) == Some(s.birth)))
}
