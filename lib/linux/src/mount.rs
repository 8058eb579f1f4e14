//! Mounts: what is mounted, bind and overlay mounts, and taking them away again.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use crate::error::{Error, Result};

/// One line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub target: PathBuf,
    /// File system type, e.g. `overlay`.
    pub fstype: String,
    /// The source as given to mount.
    pub source: String,
    /// Super block options.
    pub options: String,
}

/// Every mount of this mount namespace, in mount order.
pub fn mounts() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(path).map_err(|e| Error::new(format!("read {path}"), e))?;
    Ok(text.lines().filter_map(parse_line).collect())
}

fn parse_line(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let target = unescape(left.split(' ').nth(4)?);
    let mut right = right.splitn(3, ' ');
    Some(Mount {
        target: target.into(),
        fstype: right.next()?.to_owned(),
        source: unescape(right.next()?),
        options: right.next().unwrap_or_default().to_owned(),
    })
}

/// Undoes the kernel's octal escapes of blank, tab, newline and backslash.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Mounts `source` at `target`.
pub fn mount(
    source: &str,
    target: &Path,
    fstype: &str,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    nix::mount::mount(Some(source), target, Some(fstype), flags, options)
        .map_err(|e| Error::new(format!("mount {fstype} at {}", target.display()), e))
}

/// Binds `source` to `target` (both must exist); `recursive` takes the mounts below along.
pub fn bind(source: &Path, target: &Path, recursive: bool) -> Result<()> {
    let flags = if recursive {
        MsFlags::MS_BIND | MsFlags::MS_REC
    } else {
        MsFlags::MS_BIND
    };
    nix::mount::mount(Some(source), target, None::<&str>, flags, None::<&str>).map_err(|e| {
        Error::new(
            format!("bind {} to {}", source.display(), target.display()),
            e,
        )
    })
}

/// Changes the propagation of the mount at `target` to private.
pub fn make_private(target: &Path) -> Result<()> {
    let none = None::<&str>;
    nix::mount::mount(none, target, none, MsFlags::MS_PRIVATE, none)
        .map_err(|e| Error::new(format!("make mount {} private", target.display()), e))
}

/// An overlay of `lower` (topmost first) with a writable `upper` and its `work` directory.
pub fn overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
    let lower: Vec<_> = lower.iter().map(|p| p.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    mount(
        "overlay",
        target,
        "overlay",
        MsFlags::empty(),
        Some(&options),
    )
}

/// Unmounts `target`, now or, when it is busy, as soon as nobody uses it. Not mounted is fine.
pub fn unmount(target: &Path) -> Result<()> {
    match nix::mount::umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(e) => Err(Error::new(format!("unmount {}", target.display()), e)),
    }
}

/// Unmounts everything at or below `dir`, the last mounted first. Returns how many there were.
pub fn unmount_below(dir: &Path) -> Result<usize> {
    let below: Vec<_> = mounts()?
        .into_iter()
        .filter(|m| m.target.starts_with(dir))
        .collect();
    for mount in below.iter().rev() {
        unmount(&mount.target)?;
    }
    Ok(below.len())
}

/// True when `path` itself is a mount point.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mounts()?.iter().any(|m| m.target == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_parse() {
        let line = "36 35 98:0 / /mnt/a\\040b rw,noatime shared:1 - ext3 /dev/root rw,errors=x";
        let expect = Mount {
            target: "/mnt/a b".into(),
            fstype: "ext3".into(),
            source: "/dev/root".into(),
            options: "rw,errors=x".into(),
        };
        assert_eq!(parse_line(line), Some(expect));
        assert_eq!(parse_line("broken"), None);
        assert!(
            mounts()
                .unwrap()
                .iter()
                .any(|m| m.target == Path::new("/proc"))
        );
    }
}
