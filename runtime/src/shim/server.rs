//! The loop: waits for requests, output and ends, and answers.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use linux::cgroup::Hierarchies;
use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use super::container::Container;
use super::diagnostics::Diagnostics;
use super::{namespaces, note};
use crate::client::SOCKET;
use crate::error::{Error, Result};
use crate::log::Stream;
use crate::protocol::{self, Reply, Request, SessionEvent, SessionRequest};
use crate::state::{self, Root, SandboxFile, ShimFile};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Connections at one time; more are turned away (each waiting stop, exec and attach is one).
const CLIENTS_MAX: usize = 256;

/// What a descriptor in the poll is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Listener,
    Signals,
    Client,
    Output(String, Stream),
}

/// What a client is here for.
#[derive(Debug, Default)]
pub(super) enum Purpose {
    /// Nothing said yet, or answered.
    #[default]
    None,
    /// Waits for the end of a container.
    Stop { id: String },
    /// Runs a program.
    Exec { pid: i32 },
    /// Attached to a container.
    Attach { id: String },
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: OwnedFd,
    pub(super) purpose: Purpose,
}

/// The shim.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) root: Root,
    pub(super) dir: PathBuf,
    pub(super) sandbox: SandboxFile,
    pub(super) groups: Hierarchies,
    pub(super) diagnostics: Diagnostics,
    pub(super) containers: BTreeMap<String, Container>,
    /// Programs run by exec: the client to tell, by pid.
    pub(super) programs: BTreeMap<i32, u64>,
    pub(super) clients: BTreeMap<u64, Client>,
    pub(super) epoll: Epoll,
    sources: BTreeMap<u64, Source>,
    next_key: u64,
    listener: OwnedFd,
    signals: SignalFd,
    done: bool,
}

impl Server {
    /// Makes the sandbox in `dir` and begins to listen.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().map_err(Error::path("find", dir))?;
        // Sockets are bound by short relative names: their paths have 108 bytes.
        std::env::set_current_dir(&dir).map_err(Error::path("enter", &dir))?;
        let sandbox: SandboxFile = state::read(&dir.join("sandbox.json"))?
            .ok_or_else(|| Error::sandbox(&dir.display().to_string()))?;
        let root = dir
            .parent()
            .and_then(Path::parent)
            .unwrap_or(Path::new("/"))
            .to_owned();
        let program = Path::new("/proc/self/exe");
        let groups = Hierarchies::detect()?;
        let signals = block_signals()?;
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|e| Error::io("become a subreaper", e))?;
        // What containers and their logs are made with must not depend on who started us.
        nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
        let pause = namespaces::enter(&dir, program, &groups, &sandbox.spec)?;
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| Error::io("make a poll", e))?;
        let mut server = Self {
            root: Root(root),
            listener: listen_here()?,
            dir,
            sandbox,
            groups,
            diagnostics: Diagnostics::begin()?,
            containers: BTreeMap::new(),
            programs: BTreeMap::new(),
            clients: BTreeMap::new(),
            epoll,
            sources: BTreeMap::new(),
            next_key: 0,
            signals,
            done: false,
        };
        server.poll_listener()?;
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let birth = state::birth(pid)
            .ok_or_else(|| Error::io("find own start time", std::io::ErrorKind::NotFound))?;
        state::write(
            &server.dir.join("shim.json"),
            &ShimFile { pid, birth, pause },
        )?;
        Ok(server)
    }

    fn poll_listener(&mut self) -> Result<()> {
        let listener = self.next(Source::Listener);
        let signals = self.next(Source::Signals);
        let event = |key| EpollEvent::new(EpollFlags::EPOLLIN, key);
        let fail = |e: nix::Error| Error::io("poll", e);
        self.epoll
            .add(&self.listener, event(listener))
            .map_err(fail)?;
        self.epoll.add(&self.signals, event(signals)).map_err(fail)
    }

    fn next(&mut self, source: Source) -> u64 {
        self.next_key += 1;
        self.sources.insert(self.next_key, source);
        self.next_key
    }

    /// Adds a descriptor to the poll; its key. It leaves the poll when it is closed.
    pub(super) fn poll(&mut self, fd: &impl AsFd, source: Source) -> Result<u64> {
        let key = self.next(source);
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, key))
            .map_err(|e| Error::io("poll", e))?;
        Ok(key)
    }

    /// Forgets what a key meant; the descriptor's owner closes it.
    pub(super) fn forget(&mut self, key: u64) {
        self.sources.remove(&key);
    }

    /// Serves until it is shut down.
    pub(super) fn run(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 32];
        while !self.done {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Err(nix::Error::EINTR) => 0,
                other => other.map_err(|e| Error::io("poll", e))?,
            };
            for event in events.iter().take(count) {
                self.ready(event.data());
            }
            self.kill_late();
        }
        Ok(())
    }

    fn ready(&mut self, key: u64) {
        // What has been closed while earlier events of the round were served is not there any more.
        match self.sources.get(&key).cloned() {
            None => {}
            Some(Source::Listener) => self.accept(),
            Some(Source::Signals) => self.read_signals(),
            Some(Source::Client) => self.serve(key),
            Some(Source::Output(id, stream)) => self.read_output(&id, stream),
        }
    }

    /// How long nothing has to be done unless something happens.
    fn timeout(&self) -> PollTimeout {
        let next = self.containers.values().filter_map(|c| c.kill_at).min();
        match next {
            None => PollTimeout::NONE,
            // One millisecond more, so that the time has come when the wait is over.
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + std::time::Duration::from_millis(1))
                    .unwrap_or(PollTimeout::MAX)
            }
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok();
            if signal == Some(Signal::SIGTERM as i32) {
                self.shutdown();
            }
        }
        self.reap();
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(e) => return note(&format!("accept a connection: {e}")),
        };
        if self.clients.len() >= CLIENTS_MAX {
            let message = format!("{CLIENTS_MAX} connections are open already");
            let _gone = protocol::send(&socket, &Reply::Failed { message }, &[]);
            return;
        }
        match self.poll(&socket, Source::Client) {
            Ok(key) => drop(self.clients.insert(
                key,
                Client {
                    socket,
                    purpose: Purpose::None,
                },
            )),
            Err(e) => note(&e.to_string()),
        }
    }

    /// Serves one message of a client.
    fn serve(&mut self, key: u64) {
        let Some(client) = self.clients.get(&key) else {
            return;
        };
        if matches!(client.purpose, Purpose::None | Purpose::Stop { .. }) {
            match protocol::receive::<Request>(&client.socket) {
                Ok(Some((request, _))) => self.answer(key, request),
                Err(Errno::AGAIN) => {}
                Ok(None) | Err(_) => self.hang_up(key),
            }
            return;
        }
        match protocol::receive::<SessionRequest>(&client.socket) {
            Ok(Some((SessionRequest::Kill, _))) => self.kill_program(key),
            Err(Errno::AGAIN) => {}
            Ok(None) | Err(_) => self.hang_up(key),
        }
    }

    fn answer(&mut self, key: u64, request: Request) {
        let done = match request {
            Request::Ping => Ok(()),
            Request::Create { id } => self.create(&id),
            Request::Start { id } => self.start(&id),
            Request::Signal { id, signal } => self.signal(&id, signal),
            Request::Remove { id } => self.remove(&id),
            Request::ReopenLog { id } => self.reopen_log(&id),
            Request::Stop {
                id,
                signal,
                grace_ms,
            } => match self.stop(&id, signal, grace_ms) {
                Ok(true) => Ok(()),
                Ok(false) => return self.set_purpose(key, Purpose::Stop { id }),
                Err(e) => Err(e),
            },
            Request::Exec {
                id,
                process,
                stdin,
                tty,
            } => match self.exec(key, &id, &process, stdin, tty) {
                Ok(()) => return,
                Err(e) => Err(e),
            },
            Request::Attach { id, stdin } => match self.attach(key, &id, stdin) {
                Ok(()) => return,
                Err(e) => Err(e),
            },
            Request::Shutdown => {
                self.shutdown();
                Ok(())
            }
        };
        self.reply(key, done);
    }

    /// Tells a client how its request ended.
    pub(super) fn reply(&mut self, key: u64, done: Result<()>) {
        let reply = match done {
            Ok(()) => Reply::Done,
            Err(Error::NotFound { .. }) => Reply::NotFound,
            Err(Error::State { state, .. }) => Reply::State { state },
            // The title is the client's; what remains is why.
            Err(Error::Shim { message, .. }) => Reply::Failed { message },
            Err(e) => Reply::Failed {
                message: e.to_string(),
            },
        };
        if let Some(client) = self.clients.get(&key) {
            // A client that is gone needs no answer.
            let _gone = protocol::send(&client.socket, &reply, &[]);
        }
    }

    pub(super) fn set_purpose(&mut self, key: u64, purpose: Purpose) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.purpose = purpose;
        }
    }

    /// Tells a session's client the end of its program.
    pub(super) fn tell_exit(&mut self, key: u64, code: i32) {
        if let Some(client) = self.clients.get(&key) {
            let _gone = protocol::send(&client.socket, &SessionEvent::Exited { code }, &[]);
        }
    }

    /// A client is gone. Its program stays (a terminal has hung up with it).
    pub(super) fn hang_up(&mut self, key: u64) {
        self.forget(key);
        let Some(client) = self.clients.remove(&key) else {
            return;
        };
        match client.purpose {
            Purpose::Exec { pid } => drop(self.programs.remove(&pid)),
            Purpose::Attach { id } => self.detach(&id, key),
            Purpose::None | Purpose::Stop { .. } => {}
        }
    }

    /// Records the state of a container and tells those who watch.
    pub(super) fn publish(&self, id: &str) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let path = container.dir.join("state.json");
        let written = state::write(&path, &container.state)
            .and_then(|()| state::announce(&self.root, &self.sandbox.spec.id));
        if let Err(e) = written {
            note(&e.to_string());
        }
    }

    fn shutdown(&mut self) {
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
            if let Err(e) = self.remove(&id) {
                note(&e.to_string());
            }
        }
        if let Err(e) = linux::mount::unmount(&self.dir.join("shm")) {
            note(&e.to_string());
        }
        self.done = true;
    }
}

/// The signals that the loop reads from a descriptor.
fn block_signals() -> Result<SignalFd> {
    let fail = |e: nix::Error| Error::io("read signals from a descriptor", e);
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(fail)?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(fail)
}

fn listen_here() -> Result<OwnedFd> {
    let fail = |e: Errno| Error::io(format!("listen at {SOCKET}"), e);
    // That of a shim that died may be there still.
    drop(std::fs::remove_file(SOCKET));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(fail)?;
    bind(&socket, &SocketAddrUnix::new(SOCKET).map_err(fail)?).map_err(fail)?;
    listen(&socket, BACKLOG).map_err(fail)?;
    Ok(socket)
}
