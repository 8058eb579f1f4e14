//! Sessions: programs run in a container, and clients attached to its own.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::container::Attached;
use super::create::{set_oom_score, text, unified_procs};
use super::payload::Payload;
use super::server::{Purpose, Server};
use super::streams::{Console, Got, Pipe, null, read, set_nonblocking};
use crate::error::{Error, Result};
use crate::protocol::{self, Reply};
use crate::types::ContainerState;

/// The streams of a program, on the client's side.
#[derive(Default)]
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

impl Server {
    /// Runs a program in a container, for client `key`.
    pub(super) fn exec(
        &mut self,
        key: u64,
        id: &str,
        process: &str,
        stdin: bool,
        tty: bool,
    ) -> Result<()> {
        let op = format!("exec in container {id}");
        let unified_of = self.get(id)?.file.cgroup.clone();
        let procs = unified_procs(&self.groups, &unified_of)?;
        let container = self.get(id)?;
        if !matches!(container.state, ContainerState::Running { .. }) {
            return Err(Error::State {
                op,
                state: container.state_name(),
            });
        }
        let dir = container.dir.clone();
        let score = container.file.spec.oom_score_adj;
        let error = Pipe::new()?;
        let payload = Payload {
            error: Arc::new(error.write.into()),
            procs,
        };
        let built = build(id, &dir, &dir.join(process), payload, stdin, tty);
        tidy(&dir.join("oci").join(id), &dir.join(process));
        let (pid, ends) = match built {
            Ok(built) => built,
            Err(e) => {
                // The program's own process knows best.
                set_nonblocking(&error.read)?;
                let mut why = [0; 1024];
                return Err(match read(&error.read.into(), &mut why) {
                    Got::Bytes(len) => {
                        let why = why.get(..len).unwrap_or_default();
                        Error::shim(op, String::from_utf8_lossy(why))
                    }
                    Got::Nothing | Got::End => e,
                });
            }
        };
        if let Some(score) = score {
            set_oom_score(pid, score, id);
        }
        self.programs.insert(pid, key);
        self.begin(key, &ends)?;
        self.set_purpose(key, Purpose::Exec { pid });
        Ok(())
    }

    /// Connects client `key` to the streams of a container's own program.
    pub(super) fn attach(&mut self, key: u64, id: &str, stdin: bool) -> Result<()> {
        let op = format!("attach to container {id}");
        let container = self.get(id)?;
        if matches!(container.state, ContainerState::Exited(_)) {
            return Err(Error::State {
                op,
                state: container.state_name(),
            });
        }
        let mut ends = Ends::default();
        if stdin && let Some(input) = &container.stdin {
            ends.stdin = Some(input.try_clone().map_err(|e| Error::io(&op, e))?);
        }
        if container.file.spec.stdin_once && ends.stdin.is_some() && !container.file.spec.tty {
            // The client's is the last hold on the program's input.
            container.stdin = None;
        }
        let mut attached = Attached {
            client: key,
            stdout: None,
            stderr: None,
        };
        if let Some((stdout, _)) = &container.stdout {
            if container.file.spec.tty {
                let terminal = stdout.try_clone().map_err(|e| Error::io(&op, e))?;
                ends.terminal = Some(terminal.into());
            }
            let pipe = Pipe::to_client()?;
            ends.stdout = Some(pipe.read);
            attached.stdout = Some(pipe.write.into());
        }
        if container.stderr.is_some() {
            let pipe = Pipe::to_client()?;
            ends.stderr = Some(pipe.read);
            attached.stderr = Some(pipe.write.into());
        }
        container.attached.push(attached);
        self.set_purpose(key, Purpose::Attach { id: id.to_owned() });
        self.begin(key, &ends)
    }

    /// Hands the streams of a session to its client.
    fn begin(&self, key: u64, ends: &Ends) -> Result<()> {
        let Some(client) = self.clients.get(&key) else {
            return Ok(());
        };
        let reply = Reply::Session {
            stdin: ends.stdin.is_some(),
            stdout: ends.stdout.is_some(),
            stderr: ends.stderr.is_some(),
            terminal: ends.terminal.is_some(),
        };
        let all = [&ends.stdin, &ends.stdout, &ends.stderr, &ends.terminal];
        let fds: Vec<_> = all.into_iter().flatten().map(OwnedFd::as_fd).collect();
        protocol::send(&client.socket, &reply, &fds)
            .map_err(|e| Error::io("hand over the streams", e))
    }

    /// Kills the program of an exec session.
    pub(super) fn kill_program(&self, key: u64) {
        if let Some(Purpose::Exec { pid }) = self.clients.get(&key).map(|c| &c.purpose)
            // Once it is reaped its number may be somebody else's.
            && self.programs.contains_key(pid)
        {
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }

    /// Client `key` is not attached any more.
    pub(super) fn detach(&mut self, id: &str, key: u64) {
        if let Some(container) = self.containers.get_mut(id) {
            container.attached.retain(|attached| attached.client != key);
        }
    }
}

/// Has libcontainer run the program; returns when it is executed.
fn build(
    id: &str,
    dir: &Path,
    process: &Path,
    payload: Payload,
    stdin: bool,
    tty: bool,
) -> Result<(i32, Ends)> {
    let op = format!("exec in container {id}");
    let fail = |e: libcontainer::error::LibcontainerError| Error::shim(&op, text(&e));
    let builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_executor(payload)
        .with_root_path(dir.join("oci"))
        .map_err(fail)?;
    if tty {
        let console = Console::listen(&Path::new("containers").join(id))?;
        let builder = builder.with_console_socket(Some(console.path()));
        let pid = builder
            .as_tenant()
            .with_detach(true)
            .with_process(Some(process))
            .build();
        let pid = pid.map_err(fail)?.as_raw();
        let terminal = console.receive()?;
        let twin = || terminal.try_clone().map_err(|e| Error::io(&op, e));
        let stdin = if stdin { Some(twin()?) } else { None };
        let ends = Ends {
            stdin,
            stdout: Some(twin()?),
            stderr: None,
            terminal: Some(terminal),
        };
        return Ok((pid, ends));
    }
    let (out, err) = (Pipe::new()?, Pipe::new()?);
    let (input, input_end) = if stdin {
        let pipe = Pipe::new()?;
        (pipe.read, Some(pipe.write))
    } else {
        (null()?, None)
    };
    let builder = builder
        .with_stdin(input)
        .with_stdout(out.write)
        .with_stderr(err.write);
    let pid = builder
        .as_tenant()
        .with_detach(true)
        .with_process(Some(process))
        .build();
    let pid = pid.map_err(fail)?.as_raw();
    let ends = Ends {
        stdin: input_end,
        stdout: Some(out.read),
        stderr: Some(err.read),
        terminal: None,
    };
    Ok((pid, ends))
}

/// Removes the files of a start by exec, which libcontainer leaves.
fn tidy(oci: &Path, process: &Path) {
    drop(fs::remove_file(process));
    for entry in fs::read_dir(oci).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("tenant-") {
            drop(fs::remove_file(entry.path()));
        }
    }
}
