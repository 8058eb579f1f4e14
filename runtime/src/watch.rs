//! Being told of changes without polling: one inotify watch on the directory that shims write to,
//! and one pidfd for each shim, which tells of its death even by SIGKILL.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::destroy;
use crate::error::{Error, Result};
use crate::state::{self, Root};

/// Key of the inotify descriptor among those that are polled; shims have their pid.
const INOTIFY_KEY: u64 = 0;

/// Something about a sandbox changed: look at it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Id of the sandbox. It may be gone.
    pub sandbox_id: String,
}

/// A stream of changes. As a descriptor ([`AsFd`]) it is readable when [`Watch::next`] has
/// something to do.
#[derive(Debug)]
pub struct Watch {
    root: Root,
    epoll: Epoll,
    inotify: Inotify,
    /// Shims by pid, with their sandbox.
    shims: BTreeMap<i32, (String, OwnedFd)>,
    ready: VecDeque<Event>,
}

impl Watch {
    pub(crate) fn new(root: Root) -> Result<Self> {
        let fail = |e: nix::Error| Error::io(format!("watch {}", root.events().display()), e);
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).map_err(fail)?;
        let changes = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_DELETE;
        inotify.add_watch(&root.events(), changes).map_err(fail)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(fail)?;
        epoll
            .add(&inotify, EpollEvent::new(EpollFlags::EPOLLIN, INOTIFY_KEY))
            .map_err(fail)?;
        let shims = BTreeMap::new();
        let mut watch = Self {
            root,
            epoll,
            inotify,
            shims,
            ready: VecDeque::new(),
        };
        for id in state::subdirs(&watch.root.sandboxes()) {
            watch.follow(&id)?;
        }
        Ok(watch)
    }

    /// The next change; `None` when there is none within `timeout` (absent: waits for ever).
    ///
    /// # Errors
    /// The kernel refuses; a state file cannot be read.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Event>> {
        if let Some(event) = self.ready.pop_front() {
            return Ok(Some(event));
        }
        let fail = |e: nix::Error| Error::io("wait for changes of containers", e);
        // An interval beyond the kernel's range is as good as for ever.
        let wait = match timeout {
            Some(t) => PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let mut events = [EpollEvent::empty(); 16];
        let count = match self.epoll.wait(&mut events, wait) {
            Err(nix::Error::EINTR) => 0,
            other => other.map_err(fail)?,
        };
        for event in events.iter().take(count) {
            match event.data() {
                INOTIFY_KEY => self.read_inotify()?,
                key => self.shim_died(i32::try_from(key).unwrap_or_default())?,
            }
        }
        Ok(self.ready.pop_front())
    }

    fn read_inotify(&mut self) -> Result<()> {
        let events = match self.inotify.read_events() {
            Err(nix::Error::EAGAIN) => return Ok(()),
            other => other.map_err(|e| Error::io("read changes of containers", e))?,
        };
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                // The kernel's queue was full: everything may have changed.
                for id in state::subdirs(&self.root.sandboxes()) {
                    self.changed(&id)?;
                }
            }
            if let Some(id) = event.name.as_ref().and_then(|n| n.to_str()) {
                self.changed(id)?;
            }
        }
        Ok(())
    }

    fn changed(&mut self, id: &str) -> Result<()> {
        self.follow(id)?;
        let event = Event {
            sandbox_id: id.to_owned(),
        };
        if !self.ready.contains(&event) {
            self.ready.push_back(event);
        }
        Ok(())
    }

    /// Watches the life of a sandbox's shim.
    fn follow(&mut self, id: &str) -> Result<()> {
        let fail = |e: std::io::Error| Error::io(format!("watch the shim of sandbox {id}"), e);
        let Some(shim) = state::living_shim(&self.root.sandbox(id))? else {
            return Ok(());
        };
        if self.shims.contains_key(&shim.pid) {
            return Ok(());
        }
        let Some(pid) = Pid::from_raw(shim.pid) else {
            return Ok(());
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // It died this moment; whoever removes or reads the sandbox sees to it.
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(e) => return Err(fail(e.into())),
        };
        let key = u64::try_from(shim.pid).unwrap_or_default();
        self.epoll
            .add(&pidfd, EpollEvent::new(EpollFlags::EPOLLIN, key))
            .map_err(|e| fail(e.into()))?;
        self.shims.insert(shim.pid, (id.to_owned(), pidfd));
        Ok(())
    }

    fn shim_died(&mut self, pid: i32) -> Result<()> {
        let Some((id, pidfd)) = self.shims.remove(&pid) else {
            return Ok(());
        };
        // Dropping the descriptor takes it out of the poll as well.
        drop(pidfd);
        destroy::reap(pid);
        destroy::settle(&self.root, &id)?;
        self.changed(&id)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
