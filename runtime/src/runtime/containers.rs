//! What is done with containers.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::Signal;

use super::Runtime;
use crate::client::{ANSWER_TIMEOUT, ask};
use crate::destroy;
use crate::error::{Error, Result};
use crate::plan;
use crate::protocol::{Reply, Request};
use crate::session::ExecSession;
use crate::state::{self, ContainerFile, SandboxFile};
use crate::types::{ContainerSpec, ContainerState, ContainerStatus, ExecSpec};

impl Runtime {
    /// Makes a container: root file system, namespaces, cgroup, first process waiting to start. One
    /// with this id that is there stays as it is.
    ///
    /// # Errors
    /// The sandbox or image is not there, a field cannot be used, or the kernel refuses something;
    /// nothing of the container is left then.
    pub fn create_container(&self, sandbox_id: &str, spec: &ContainerSpec) -> Result<()> {
        state::check_id("id", &spec.id)?;
        state::check_id("sandbox_id", sandbox_id)?;
        let title = format!("create container {}", spec.id);
        let sandbox_dir = self.inner.root.sandbox(sandbox_id);
        let sandbox: SandboxFile = state::read(&sandbox_dir.join("sandbox.json"))?
            .ok_or_else(|| Error::sandbox(sandbox_id))?;
        let dir = state::container_dir(&sandbox_dir, &spec.id);
        if dir.join("state.json").exists() {
            return Ok(());
        }
        self.prepare(&sandbox, spec, &dir)?;
        let request = Request::Create {
            id: spec.id.clone(),
        };
        let made = ask(&sandbox_dir, &title, &spec.id, &request, ANSWER_TIMEOUT);
        if let Err(e) = made {
            self.clear(sandbox_id, &dir)?;
            return Err(e);
        }
        Ok(())
    }

    /// Takes away what is left of a container.
    fn clear(&self, sandbox_id: &str, dir: &Path) -> Result<()> {
        // Where the shim died, what it has left comes first.
        destroy::settle(&self.inner.root, sandbox_id)?;
        destroy::container(&self.inner.groups, dir)
    }

    /// Writes the files of a container from which the shim makes it.
    fn prepare(&self, sandbox: &SandboxFile, spec: &ContainerSpec, dir: &Path) -> Result<()> {
        let images = &self.inner.images;
        let image = images
            .resolve(&spec.image)?
            .ok_or_else(|| Error::NotFound {
                kind: "image",
                id: spec.image.clone(),
            })?;
        let lower = images.layer_dirs(&image);
        let users = plan::users::Files::read(&lower);
        let rootfs = dir.join("rootfs");
        let host = self.observe(sandbox, spec)?;
        let planned = plan::container(&sandbox.spec, spec, &image.config, &users, &host, &rootfs)?;
        for sub in ["rootfs", "upper", "work", "oci"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).map_err(Error::path("make directory", &sub))?;
        }
        if let Some(path) = spec.termination_log.as_ref().filter(|p| !p.exists()) {
            fs::write(path, b"").map_err(Error::path("make", path))?;
        }
        state::write(&dir.join("config.json"), &planned.oci)?;
        let file = ContainerFile {
            spec: spec.clone(),
            sandbox_id: sandbox.spec.id.clone(),
            image_id: image.id,
            created_at: Timestamp::now(),
            cgroup: planned.cgroup,
            lower,
        };
        state::write(&dir.join("container.json"), &file)
    }

    fn observe(&self, sandbox: &SandboxFile, spec: &ContainerSpec) -> Result<plan::Host> {
        let dir = self.inner.root.sandbox(&sandbox.spec.id);
        let shm = if sandbox.spec.host_ipc {
            "/dev/shm".into()
        } else {
            dir.join("shm")
        };
        let pause = state::living_shim(&dir)?.and_then(|shim| shim.pause);
        let shared_pid = pause.map(|pid| format!("/proc/{pid}/ns/pid").into());
        plan::Host::observe(
            &self.inner.groups,
            shm,
            shared_pid,
            spec.security.privileged,
        )
    }

    /// Starts a container's program.
    ///
    /// # Errors
    /// Not there, running or ended; or the program cannot be executed, which leaves the container
    /// ended with reason `StartError`.
    pub fn start_container(&self, id: &str) -> Result<()> {
        self.ask(
            id,
            "start",
            Request::Start { id: id.to_owned() },
            ANSWER_TIMEOUT,
        )
        .map(drop)
    }

    /// Asks a container's program to end with `signal` (the image's stop signal, or SIGTERM, when
    /// absent) and kills it after `grace`. Returns when it has ended. Ended, never started or not
    /// there is fine. When the caller dies meanwhile, the grace period goes on.
    pub fn stop_container(&self, id: &str, grace: Duration, signal: Option<Signal>) -> Result<()> {
        let signal = match signal {
            Some(signal) => signal,
            None => self.stop_signal(id)?,
        };
        let request = Request::Stop {
            id: id.to_owned(),
            signal: signal as i32,
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        };
        self.ask_living(id, "stop", request, grace.saturating_add(ANSWER_TIMEOUT))
    }

    /// The signal that a container's image wants for its end; SIGTERM by default.
    pub fn stop_signal(&self, id: &str) -> Result<Signal> {
        let wanted = match self.find(id)? {
            Some((_, file)) => self.inner.images.resolve(&file.image_id)?,
            None => None,
        };
        let name = wanted.and_then(|image| image.config.stop_signal);
        Ok(name
            .and_then(|name| plan::signal(&name))
            .unwrap_or(Signal::SIGTERM))
    }

    /// Sends a signal to a container's first process and returns at once. Ended or not there is
    /// fine.
    pub fn signal_container(&self, id: &str, signal: Signal) -> Result<()> {
        let request = Request::Signal {
            id: id.to_owned(),
            signal: signal as i32,
        };
        self.ask_living(id, "signal", request, ANSWER_TIMEOUT)
    }

    /// Kills a container (SIGKILL) and returns when it has ended. Ended or not there is fine.
    pub fn kill_container(&self, id: &str) -> Result<()> {
        self.stop_container(id, Duration::ZERO, Some(Signal::SIGKILL))
    }

    /// Removes a container with its root file system and cgroup; kills it when it runs. Its log
    /// stays. Not there is fine.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        let Some((dir, file)) = self.find(id)? else {
            return Ok(());
        };
        let request = Request::Remove { id: id.to_owned() };
        // Taken down from here where the shim is gone or has not managed to.
        drop(self.ask(id, "remove", request, ANSWER_TIMEOUT));
        self.clear(&file.sandbox_id, &dir)?;
        if self.inner.root.sandbox(&file.sandbox_id).exists() {
            state::announce(&self.inner.root, &file.sandbox_id)?;
        }
        Ok(())
    }

    /// Makes a container's shim open its log file anew, after somebody has moved it away.
    pub fn reopen_log(&self, id: &str) -> Result<()> {
        self.ask_living(
            id,
            "reopen log of",
            Request::ReopenLog { id: id.to_owned() },
            ANSWER_TIMEOUT,
        )
    }

    /// Runs a program in a running container.
    ///
    /// # Errors
    /// Not there or not running; the program cannot be executed.
    pub fn exec(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession> {
        let (dir, file) = self.find(id)?.ok_or_else(|| Error::container(id))?;
        let users = plan::users::Files::read(&[vec![dir.join("upper")], file.lower].concat());
        let oci = state::read(&dir.join("config.json"))?.ok_or_else(|| Error::container(id))?;
        let process = plan::exec(&oci, spec, &users)?;
        let name = format!("exec-{}.json", unique());
        state::write(&dir.join(&name), &process)?;
        let (stdin, tty) = (spec.stdin, spec.tty);
        let request = Request::Exec {
            id: id.to_owned(),
            process: name.clone(),
            stdin,
            tty,
        };
        let asked = self.ask(id, "exec in", request, ANSWER_TIMEOUT);
        // Gone already when the shim got so far as to read it.
        drop(fs::remove_file(dir.join(&name)));
        asked
    }

    /// Connects to the streams of a container's own program. Standard input is connected when it is
    /// asked for and the container was made with it. Output from before is in the log only.
    ///
    /// # Errors
    /// Not there or not running.
    pub fn attach(&self, id: &str, stdin: bool) -> Result<ExecSession> {
        self.ask(
            id,
            "attach to",
            Request::Attach {
                id: id.to_owned(),
                stdin,
            },
            ANSWER_TIMEOUT,
        )
    }

    /// The facts of one container.
    ///
    /// # Errors
    /// Not there; a state file cannot be read.
    pub fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let (dir, file) = self.find(id)?.ok_or_else(|| Error::container(id))?;
        if let Some(ContainerState::Running { .. }) = state::container_state(&dir)? {
            destroy::settle(&self.inner.root, &file.sandbox_id)?;
        }
        status(&dir, file)?.ok_or_else(|| Error::container(id))
    }

    /// Every container, in the order of sandbox and container ids.
    pub fn containers(&self) -> Result<Vec<ContainerStatus>> {
        let mut all = Vec::new();
        for sandbox in state::subdirs(&self.inner.root.sandboxes()) {
            all.extend(self.containers_of(&sandbox)?);
        }
        Ok(all)
    }

    /// Every container of one sandbox; none when it is not there.
    pub fn containers_of(&self, sandbox_id: &str) -> Result<Vec<ContainerStatus>> {
        state::check_id("sandbox_id", sandbox_id)?;
        let dir = self.inner.root.sandbox(sandbox_id);
        destroy::settle(&self.inner.root, sandbox_id)?;
        let mut all = Vec::new();
        for id in state::subdirs(&dir.join("containers")) {
            let dir = state::container_dir(&dir, &id);
            if let Some(file) = state::read(&dir.join("container.json"))? {
                all.extend(status(&dir, file)?);
            }
        }
        Ok(all)
    }

    /// Directory and file of a container.
    fn find(&self, id: &str) -> Result<Option<(PathBuf, ContainerFile)>> {
        state::check_id("id", id)?;
        for sandbox in state::subdirs(&self.inner.root.sandboxes()) {
            let dir = state::container_dir(&self.inner.root.sandbox(&sandbox), id);
            if let Some(file) = state::read(&dir.join("container.json"))? {
                return Ok(Some((dir, file)));
            }
        }
        Ok(None)
    }

    fn ask(
        &self,
        id: &str,
        verb: &str,
        request: Request,
        timeout: Duration,
    ) -> Result<ExecSession> {
        let (_, file) = self.find(id)?.ok_or_else(|| Error::container(id))?;
        let dir = self.inner.root.sandbox(&file.sandbox_id);
        let title = format!("{verb} container {id}");
        let (control, reply, fds) = ask(&dir, &title, id, &request, timeout)?;
        let mut fds = fds.into_iter();
        let mut take = |there: bool| -> Option<OwnedFd> { if there { fds.next() } else { None } };
        let Reply::Session {
            stdin,
            stdout,
            stderr,
            terminal,
        } = reply
        else {
            return Ok(ExecSession {
                stdin: None,
                stdout: None,
                stderr: None,
                terminal: None,
                control,
            });
        };
        let (stdin, stdout, stderr) = (take(stdin), take(stdout), take(stderr));
        Ok(ExecSession {
            stdin,
            stdout,
            stderr,
            terminal: take(terminal),
            control,
        })
    }

    /// Asks for something that has no point once the container has ended.
    fn ask_living(&self, id: &str, verb: &str, request: Request, timeout: Duration) -> Result<()> {
        match self.ask(id, verb, request, timeout) {
            Ok(_) | Err(Error::NotFound { .. } | Error::State { .. }) => Ok(()),
            Err(e) => match self.container_status(id) {
                Ok(ContainerStatus {
                    state: ContainerState::Exited(_),
                    ..
                }) => Ok(()),
                Err(gone) if gone.is_not_found() => Ok(()),
                Ok(_) | Err(_) => Err(e),
            },
        }
    }
}

/// The facts of a container; `None` until it is made.
fn status(dir: &Path, file: ContainerFile) -> Result<Option<ContainerStatus>> {
    let state = state::container_state(dir)?;
    Ok(state.map(|state| ContainerStatus {
        state,
        id: file.spec.id,
        sandbox_id: file.sandbox_id,
        name: file.spec.name,
        attempt: file.spec.attempt,
        image: file.spec.image,
        image_id: file.image_id,
        created_at: file.created_at,
        log_path: file.spec.log_path,
        labels: file.spec.labels,
        annotations: file.spec.annotations,
    }))
}

/// A number that no other call of this machine gets.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}
