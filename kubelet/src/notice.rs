//! Being told when files in a directory change (inotify), without threads or polling.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::AsyncReadExt;

use crate::stream::Reader;

/// Directories under watch.
#[derive(Debug)]
pub struct Notice {
    reader: Reader,
}

impl Notice {
    /// Watches `dirs` for files that are written, moved in or out, made or deleted; with `while_written`
    /// also for each write to an open file.
    pub fn watch(dirs: &[&Path], while_written: bool) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE;
        if while_written {
            flags |= AddWatchFlags::IN_MODIFY;
        }
        for dir in dirs {
            inotify.add_watch(*dir, flags)?;
        }
        let reader = Reader::new(OwnedFd::from(inotify))?;
        Ok(Self { reader })
    }

    /// Waits until something has changed. Changes that are close together count as one.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        self.reader.read(&mut buffer).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut notice = Notice::watch(&[dir.path()], false).unwrap();
        std::fs::write(dir.path().join("a"), "x").unwrap();
        notice.changed().await.unwrap();
    }
}
