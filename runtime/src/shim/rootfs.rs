//! A container's root file system: the image's layers with a writable one on top.

use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use linux::mount;
use nix::mount::MsFlags;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::state::ContainerFile;

/// The kernel takes one page of mount options.
const OPTIONS_BYTES_MAX: usize = 4095;

/// Mounts the root file system of the container in `dir`.
pub(super) fn mount(dir: &Path, file: &ContainerFile) -> Result<()> {
    let target = dir.join("rootfs");
    let lower: Vec<_> = file.lower.iter().map(|p| p.display().to_string()).collect();
    // Volatile: the writable layer goes with the container, so there is no use in flushing it to the
    // disk (and the whole file system with it) when the container asks or at unmounting.
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        lower.join(":"),
        dir.join("upper").display(),
        dir.join("work").display(),
    );
    if options.len() > OPTIONS_BYTES_MAX {
        let why = format!(
            "{} layers are more than one overlay mount takes",
            lower.len()
        );
        return Err(Error::image(file.spec.image.clone(), why));
    }
    Ok(mount::mount(
        "overlay",
        &target,
        "overlay",
        MsFlags::empty(),
        Some(&options),
    )?)
}

/// Takes the root file system away again. Not mounted is fine.
pub(super) fn unmount(dir: &Path) -> Result<()> {
    Ok(mount::unmount(&dir.join("rootfs"))?)
}

/// Makes the working directory where the image lacks it, as other runtimes do. Links in the image
/// lead to where they lead inside the container.
pub(super) fn ensure_dir(rootfs: &Path, path: &str) -> Result<()> {
    let fail = |e: Errno| Error::io(format!("make working directory {path}"), e);
    let root = openat2(
        CWD,
        rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    )
    .map_err(fail)?;
    let open = |path: &Path| -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    if open(Path::new(path)).is_ok() {
        return Ok(());
    }
    let mut at = Path::new("/").to_owned();
    for part in Path::new(path).components() {
        let Component::Normal(name) = part else {
            continue;
        };
        let parent = open(&at).map_err(fail)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => at.push(name),
            Err(e) => return Err(fail(e)),
        }
    }
    open(&at).map(drop).map_err(fail)
}
