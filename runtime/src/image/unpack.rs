//! Unpacking one layer, alone, into the form that overlayfs stacks (whiteouts as character devices
//! 0/0, opaque directories by attribute; <https://docs.kernel.org/filesystems/overlayfs.html>).

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::XattrFlags;

/// Beginning of the names of whiteouts (OCI image specification, layer.md).
const WHITEOUT: &str = ".wh.";
/// Name of the file that makes its directory opaque.
const OPAQUE: &str = ".wh..wh..opq";

/// Unpacks a layer's plain archive into the empty directory `dir`. Returns the size of its files in
/// bytes.
///
/// # Errors
/// The archive is broken or leads out of `dir`, or the kernel refuses something.
pub(super) fn layer(archive: &mut impl Read, dir: &Path) -> io::Result<u64> {
    // Paths are compared with resolved ones below.
    let dir = dir.canonicalize()?;
    set_mode(&dir, 0o755)?;
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_unpack_xattrs(true);
    archive.set_overwrite(true);
    let mut size = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = relative(&entry.path()?)?;
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let title =
            |e: io::Error| io::Error::new(e.kind(), format!("{}: {}", path.display(), root(&e)));
        if name == OPAQUE {
            set_opaque(&parent(&dir, &path)?).map_err(title)?;
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            // Names beginning with .wh..wh. are bookkeeping of aufs.
            if !hidden.starts_with(WHITEOUT) {
                whiteout(&parent(&dir, &path)?.join(hidden)).map_err(title)?;
            }
        } else {
            size += entry.size();
            unpack(&mut entry, &dir, &path).map_err(title)?;
        }
    }
    Ok(size)
}

fn unpack<R: Read>(entry: &mut tar::Entry<'_, R>, dir: &Path, path: &Path) -> io::Result<()> {
    use tar::EntryType;
    if path.as_os_str().is_empty() {
        // The root itself: only its mode can be ours.
        return set_mode(dir, entry.header().mode()? & 0o7777);
    }
    let target = parent(dir, path)?.join(path.file_name().unwrap_or_default());
    let kind = entry.header().entry_type();
    let was_hidden = clear_way(&target, kind.is_dir())?;
    match kind {
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            let header = entry.header();
            let kind = match kind {
                EntryType::Char => SFlag::S_IFCHR,
                EntryType::Block => SFlag::S_IFBLK,
                _ => SFlag::S_IFIFO,
            };
            // Some archivers leave the fields of pipes empty.
            let major = header.device_major().ok().flatten().unwrap_or(0);
            let minor = header.device_minor().ok().flatten().unwrap_or(0);
            mknod(
                &target,
                kind,
                Mode::empty(),
                makedev(major.into(), minor.into()),
            )?;
            let owner = |id: io::Result<u64>| u32::try_from(id?).map_err(io::Error::other);
            let (uid, gid) = (owner(header.uid())?, owner(header.gid())?);
            std::os::unix::fs::chown(&target, Some(uid), Some(gid))?;
            set_mode(&target, header.mode()? & 0o7777)
        }
        EntryType::XGlobalHeader => Ok(()),
        _ => {
            if !entry.unpack_in(dir)? {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "leads out of the layer",
                ));
            }
            // A directory that comes anew in place of a hidden one does not show the old content.
            if was_hidden && kind.is_dir() {
                set_opaque(&target)
            } else {
                Ok(())
            }
        }
    }
}

/// Removes what is at `target` when the entry to come would not replace it by itself. True when that
/// was a whiteout.
fn clear_way(target: &Path, dir_comes: bool) -> io::Result<bool> {
    let Ok(there) = fs::symlink_metadata(target) else {
        return Ok(false);
    };
    let hidden = there.file_type().is_char_device() && there.rdev() == 0;
    match (there.is_dir(), dir_comes) {
        (true, true) => {}
        (true, false) => fs::remove_dir_all(target)?,
        (false, _) => fs::remove_file(target)?,
    }
    Ok(hidden)
}

/// The cause at the bottom: the tar library's errors do not quote theirs.
fn root(error: &io::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// The path inside the layer, without anything that leads elsewhere.
fn relative(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                let why = format!("path {} leads out of the layer", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
    }
    Ok(clean)
}

/// The directory that holds `path`, made when missing; refused when links lead out of `dir`.
fn parent(dir: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut at = dir.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        at.push(part);
        match fs::create_dir(&at) {
            Ok(()) => set_mode(&at, 0o755)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                at = at.canonicalize()?;
                if !at.starts_with(dir) {
                    let why = format!("path {} leads out of the layer", path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(at)
}

fn whiteout(target: &Path) -> io::Result<()> {
    // What the layer itself brings wins: whiteouts concern the layers below.
    if target.symlink_metadata().is_ok() {
        return if target.is_dir() && !target.is_symlink() {
            set_opaque(target)
        } else {
            Ok(())
        };
    }
    Ok(mknod(target, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))?)
}

fn set_opaque(dir: &Path) -> io::Result<()> {
    Ok(rustix::fs::setxattr(
        dir,
        "trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )?)
}

/// Sets permission bits, whatever the umask.
pub(super) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}
