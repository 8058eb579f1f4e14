//! Network namespaces: open, make, remove, and run code inside one. Entering happens on threads of
//! its own only, so no pool thread ever wakes up in a foreign namespace.

#![expect(
    clippy::disallowed_methods,
    reason = "this module is the home of setns and unshare"
)]

pub mod scan;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::{Error, Result};

/// `NSFS_MAGIC` of `linux/magic.h`: the file system of namespace files.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// The calling thread's own network namespace.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It lives as long as this handle, a process or a mount holds it.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    title: String,
    identity: (u64, u64),
}

impl PartialEq for NetNs {
    /// Equal when both are the same namespace (device and inode).
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for NetNs {}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A number by which the namespace can be named in a request: a descriptor of the real kernel, an
/// index in a fake. Valid as long as the handle it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NsRef(pub(crate) i32);

impl NetNs {
    /// The calling thread's namespace.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn current() -> Result<Self> {
        Self::open(CURRENT)
    }

    /// The namespace at `path`: a bind mount or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// No such file, or a file that is not a namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let title = path.display().to_string();
        let op = || format!("open network namespace {title}");
        let file = File::open(path).map_err(|e| Error::new(op(), e))?;
        let kind = fstatfs(&file)
            .map_err(|e| Error::new(op(), e))?
            .filesystem_type();
        if kind != NSFS_MAGIC {
            return Err(Error::other(op(), "the file is not a namespace"));
        }
        let meta = file.metadata().map_err(|e| Error::new(op(), e))?;
        Ok(Self {
            identity: (meta.dev(), meta.ino()),
            file,
            title,
        })
    }

    /// The namespace of process `pid`.
    ///
    /// # Errors
    /// No such process.
    pub fn from_pid(pid: u32) -> Result<Self> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// A new namespace without a name: it is gone when the last handle and process is.
    ///
    /// # Errors
    /// The kernel refuses a new namespace.
    pub fn anonymous() -> Result<Self> {
        on_own_thread("make a network namespace", || {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::new("make a network namespace", e))?;
            Self::current()
        })?
    }

    /// A new namespace, kept alive by a bind mount at `path`. Parent directories are made. A plain
    /// file at `path` (left by a reboot) is reused.
    ///
    /// # Errors
    /// A namespace is mounted there already (`is_exists`), or the mount is refused.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let op = || format!("make network namespace {}", path.display());
        if Self::open(path).is_ok() {
            return Err(Error::new(op(), io::Error::from_raw_os_error(libc::EEXIST)));
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::new(op(), e))?;
        }
        File::create(path).map_err(|e| Error::new(op(), e))?;
        let made = on_own_thread("make a network namespace", || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::new(op(), e))?;
            mount(
                Some(CURRENT),
                path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .map_err(|e| Error::new(op(), e).with_detail("bind mount"))
        });
        match made.and_then(|inner| inner) {
            Ok(()) => Self::open(path),
            Err(error) => {
                drop(fs::remove_file(path));
                Err(error)
            }
        }
    }

    /// Unmounts and deletes what [`NetNs::create`] made. What is not there is not an error.
    ///
    /// # Errors
    /// The kernel refuses to unmount or delete.
    pub fn remove(path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let fail =
            |e: io::Error| Error::new(format!("remove network namespace {}", path.display()), e);
        // Mounts can be stacked; EINVAL says that nothing is mounted here any more.
        loop {
            match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(nix::Error::EINVAL) => break,
                Err(nix::Error::ENOENT) => return Ok(()),
                Err(e) => return Err(fail(e.into())),
            }
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fail(e)),
            _ => Ok(()),
        }
    }

    /// Runs `work` inside the namespace, on a thread of its own that ends with it. Programs started
    /// by `work` run in the namespace too. Mounts, and thus `/sys`, stay the caller's.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let op = format!("enter network namespace {}", self.title);
        on_own_thread(&op, || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| Error::new(op.clone(), e))?;
            Ok(work())
        })?
    }

    /// Moves the calling thread into the namespace, for good. Only for a process or thread whose
    /// whole life is in there, before it starts others.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter_for_good(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::new(format!("enter network namespace {}", self.title), e))
    }

    /// Device and inode, which identify the namespace on this machine while it lives.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// A path by which any process of this machine with the rights can open the namespace as long
    /// as this handle lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// The reference used when a link is made in or moved to this namespace.
    pub fn reference(&self) -> NsRef {
        NsRef(self.file.as_raw_fd())
    }
}

/// Runs `work` on a thread made for it.
fn on_own_thread<T: Send>(op: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|e| Error::new(op.to_owned(), e))?;
        thread
            .join()
            .map_err(|_panic| Error::other(op.to_owned(), "the work in there panicked"))
    })
}

#[cfg(test)]
mod tests;
