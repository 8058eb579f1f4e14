//! Files and folders that are to be gone: what is not there is fine.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use anyhow::{Context, Result};

/// Removes a file or link. Says whether there was one.
pub(crate) fn file(path: &Path) -> Result<bool> {
    or_absent(fs::remove_file(path)).with_context(|| format!("remove {}", path.display()))
}

/// Removes a folder with everything in it. Says whether there was one.
pub(crate) fn dir(path: &Path) -> Result<bool> {
    or_absent(fs::remove_dir_all(path)).with_context(|| format!("remove {}", path.display()))
}

fn or_absent(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
