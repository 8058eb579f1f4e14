//! fsGroup: files of a volume belong to a group and are open to it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Permission bits upstream's `SetVolumeOwnership` adds.
const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const EXEC: u32 = 0o110;
const SET_GID: u32 = 0o2000;

/// Gives everything at and below `path` to group `gid`.
pub fn give_to_group(path: &Path, gid: u32, read_only: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    std::os::unix::fs::lchown(path, None, Some(gid))?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let add = if read_only { READ_ONLY } else { READ_WRITE };
    let add = if meta.is_dir() {
        add | EXEC | SET_GID
    } else {
        add
    };
    fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() | add))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to_group(&entry?.path(), gid, read_only)?;
        }
    }
    Ok(())
}
