//! The file of `--config`: read once, then watched. A program whose settings changed ends, and its
//! init system starts it again with the new ones, as with kube-proxy.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::oneshot;

/// A file and what stood in it at the start.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    text: String,
}

impl ConfigFile {
    /// Reads it.
    ///
    /// # Errors
    /// There is none, or it is not text.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            text: fs::read_to_string(path)?,
        })
    }

    /// What stands in it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Comes when something else stands in it. A file that is away for a moment, as while it is
    /// being replaced, does not count.
    ///
    /// # Errors
    /// Its directory cannot be watched.
    pub fn changed(self) -> io::Result<oneshot::Receiver<()>> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        for dir in directories(&self.path) {
            let flags = AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_ONLYDIR;
            inotify.add_watch(&dir, flags)?;
        }
        let (tell, told) = oneshot::channel();
        let wait = move || {
            while self.stands() && inotify.read_events().is_ok() {}
            if !self.stands() {
                // Nobody may be left to be told.
                let _nobody = tell.send(());
            }
        };
        std::thread::Builder::new()
            .name("config".to_owned())
            .spawn(wait)?;
        Ok(told)
    }

    /// A file that is not there or empty is just being written.
    fn stands(&self) -> bool {
        fs::read_to_string(&self.path).map_or(true, |text| text.is_empty() || text == self.text)
    }
}

/// The directories in which something happens when the file changes: its own, and, as a ConfigMap's
/// file is a link into a directory that is itself a link, the one that it leads to.
fn directories(path: &Path) -> BTreeSet<PathBuf> {
    let own = |path: &Path| match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    };
    let real = fs::canonicalize(path).ok();
    [Some(own(path)), real.map(|path| own(&path))]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn told(file: ConfigFile, change: impl FnOnce()) -> bool {
        let mut told = file.changed().unwrap();
        change();
        let limit = tokio::time::timeout(Duration::from_secs(10), &mut told);
        limit.await.is_ok_and(|told| told.is_ok())
    }

    #[tokio::test]
    async fn another_content_is_told_and_the_same_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, "a").unwrap();
        let file = ConfigFile::read(&path).unwrap();
        let mut quiet = file.clone().changed().unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a").unwrap();
        let change = || {
            assert!(quiet.try_recv().is_err());
            fs::write(dir.path().join("new"), "b").unwrap();
            fs::rename(dir.path().join("new"), &path).unwrap();
        };
        assert!(told(file, change).await);
    }

    /// A ConfigMap's volume: the file is a link through `..data`, which is replaced.
    #[tokio::test]
    async fn links_of_a_config_map() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, at(name)).unwrap();
        for (version, text) in [("..1", "a"), ("..2", "b")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("config.conf"), text).unwrap();
        }
        link("..1", "..data");
        link("..data/config.conf", "config.conf");
        let file = ConfigFile::read(&at("config.conf")).unwrap();
        let change = || {
            link("..2", "..data_tmp");
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        assert!(told(file, change).await);
    }
}
