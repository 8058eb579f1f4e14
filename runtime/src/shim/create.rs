//! Making a container: from the files that the runtime has written to a process that waits to start.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use libcontainer::container::Container as Oci;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use linux::cgroup::Hierarchies;

use super::container::Container;
use super::payload::Payload;
use super::server::{Server, Source};
use super::streams::{Console, Pipe, null, set_nonblocking};
use super::{note, rootfs};
use crate::error::{Error, Result};
use crate::log::{LogFile, Rotation, Stream};
use crate::state::{self, ContainerFile};
use crate::types::ContainerState;

/// The streams of a new container, on the shim's side.
#[derive(Default)]
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Server {
    /// Makes the container whose files lie in its directory; nothing of it is left when that fails.
    pub(super) fn create(&mut self, id: &str) -> Result<()> {
        state::check_id("id", id)?;
        if self.containers.contains_key(id) {
            return Ok(());
        }
        let dir = state::container_dir(&self.dir, id);
        let file: ContainerFile =
            state::read(&dir.join("container.json"))?.ok_or_else(|| Error::container(id))?;
        if dir.join("state.json").exists() {
            let op = format!("create container {id}");
            return Err(Error::State {
                op,
                state: "lost with an earlier shim".to_owned(),
            });
        }
        let made = self.make(id, &dir, &file);
        if made.is_err()
            && let Err(e) = rootfs::unmount(&dir).and_then(|()| remove_cgroup(&self.groups, &file))
        {
            note(&e.to_string());
        }
        let container = made?;
        self.containers.insert(id.to_owned(), container);
        self.publish(id);
        Ok(())
    }

    fn make(&mut self, id: &str, dir: &Path, file: &ContainerFile) -> Result<Container> {
        rootfs::mount(dir, file)?;
        let oci: serde_json::Value =
            state::read(&dir.join("config.json"))?.ok_or_else(|| Error::container(id))?;
        let cwd = oci
            .pointer("/process/cwd")
            .and_then(|cwd| cwd.as_str())
            .unwrap_or("/");
        rootfs::ensure_dir(&dir.join("rootfs"), cwd)?;
        self.groups.create(&file.cgroup)?;
        let log = match &file.spec.log_path {
            Some(path) => Some(
                LogFile::open(path, Rotation::default()).map_err(Error::path("open log", path))?,
            ),
            None => None,
        };
        let error = Pipe::new()?;
        let payload = Payload {
            error: Arc::new(error.write.into()),
            procs: unified_procs(&self.groups, &file.cgroup)?,
        };
        self.diagnostics.take();
        let (oci, ends) = match build(id, dir, file, payload) {
            Ok(built) => built,
            Err(e) => return Err(self.explain(e)),
        };
        let pid = oci.pid().map(|pid| pid.as_raw());
        if let (Some(pid), Some(score)) = (pid, file.spec.oom_score_adj) {
            set_oom_score(pid, score, id);
        }
        let mut container = Container {
            dir: dir.to_owned(),
            file: file.clone(),
            state: ContainerState::Created,
            pid,
            stdout: None,
            stderr: None,
            stdin: ends.stdin,
            log,
            log_failed: false,
            exec_error: Some(error.read),
            start_error: None,
            kill_at: None,
            attached: Vec::new(),
        };
        container.stdout = self.poll_output(id, Stream::Stdout, ends.stdout)?;
        container.stderr = self.poll_output(id, Stream::Stderr, ends.stderr)?;
        Ok(container)
    }

    /// Adds what libcontainer told on the way to a failure.
    fn explain(&self, error: Error) -> Error {
        match (error, self.diagnostics.take()) {
            (Error::Shim { op, message }, Some(why)) => Error::Shim {
                op,
                message: format!("{message}: {why}"),
            },
            (error, _) => error,
        }
    }

    fn poll_output(
        &mut self,
        id: &str,
        stream: Stream,
        end: Option<OwnedFd>,
    ) -> Result<Option<(File, u64)>> {
        let Some(end) = end else { return Ok(None) };
        set_nonblocking(&end)?;
        let key = self.poll(&end, Source::Output(id.to_owned(), stream))?;
        Ok(Some((end.into(), key)))
    }
}

/// Has libcontainer make the container.
fn build(id: &str, dir: &Path, file: &ContainerFile, payload: Payload) -> Result<(Oci, Ends)> {
    let op = format!("create container {id}");
    let fail = |e: libcontainer::error::LibcontainerError| Error::shim(&op, text(&e));
    let builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_executor(payload)
        .with_root_path(dir.join("oci"))
        .map_err(fail)?;
    if file.spec.tty {
        let console = Console::listen(&Path::new("containers").join(id))?;
        let builder = builder.with_console_socket(Some(console.path()));
        let oci = builder
            .as_init(dir)
            .with_systemd(false)
            .build()
            .map_err(fail)?;
        let terminal = console.receive()?;
        let twin = terminal.try_clone().map_err(|e| Error::io(&op, e))?;
        let stdin = file.spec.stdin.then_some(twin);
        return Ok((
            oci,
            Ends {
                stdin,
                stdout: Some(terminal),
                stderr: None,
            },
        ));
    }
    let (out, err) = (Pipe::new()?, Pipe::new()?);
    let (input, stdin) = if file.spec.stdin {
        let pipe = Pipe::new()?;
        (pipe.read, Some(pipe.write))
    } else {
        (null()?, None)
    };
    let builder = builder
        .with_stdin(input)
        .with_stdout(out.write)
        .with_stderr(err.write);
    let oci = builder
        .as_init(dir)
        .with_systemd(false)
        .build()
        .map_err(fail)?;
    Ok((
        oci,
        Ends {
            stdin,
            stdout: Some(out.read),
            stderr: Some(err.read),
        },
    ))
}

/// libcontainer's own record of a container.
pub(super) fn load(container: &Container) -> Result<Oci> {
    let id = &container.file.spec.id;
    Oci::load(container.dir.join("oci").join(id))
        .map_err(|e| Error::shim(format!("load container {id}"), text(&e)))
}

/// An error with its causes, which libcontainer's messages leave out.
pub(super) fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// `cgroup.procs` of a group in the unified hierarchy, where that is not libcontainer's business.
pub(super) fn unified_procs(groups: &Hierarchies, cgroup: &str) -> Result<Option<Arc<File>>> {
    let (Some(root), false) = (&groups.v2, groups.v1.is_empty()) else {
        return Ok(None);
    };
    let path = root
        .join(cgroup.trim_start_matches('/'))
        .join("cgroup.procs");
    let file = File::options()
        .write(true)
        .open(&path)
        .map_err(Error::path("open", &path))?;
    Ok(Some(Arc::new(file)))
}

/// Not by libcontainer, which would change the shim's own score first.
pub(super) fn set_oom_score(pid: i32, score: i32, id: &str) {
    if let Err(e) = fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        // Lowering it needs CAP_SYS_RESOURCE, which not every machine has.
        note(&format!(
            "set oom_score_adj of container {id} to {score}: {e}"
        ));
    }
}

fn remove_cgroup(groups: &Hierarchies, file: &ContainerFile) -> Result<()> {
    groups.kill_all(&file.cgroup)?;
    Ok(groups.remove(&file.cgroup)?)
}
