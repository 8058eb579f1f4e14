//! Running a program and waiting for it, with a time limit: the only place of the project that does.

#![expect(
    clippy::disallowed_methods,
    reason = "this module is the home of the banned constructor"
)]

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::wait::{Id, WaitPidFlag};

use crate::error::{Error, Result};

/// Time limit of a program when the caller names none.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// A program that somebody is writing at this moment (`ETXTBSY`: a plugin that is being installed, or
/// whose writer's descriptor a child just forked still holds) is asked for again for so long.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// Between two attempts at a program that is being written.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// At most this much of each output stream is kept, so that a program cannot fill our memory.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;

/// At most this much of standard error is quoted in an error.
const STDERR_QUOTED_MAX: usize = 400;

/// A program to run: arguments, environment, standard input, time limit.
#[derive(Debug, Clone)]
pub struct Exec {
    program: OsString,
    args: Vec<OsString>,
    env: Option<Vec<(OsString, OsString)>>,
    env_added: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    stdin: Vec<u8>,
    timeout: Duration,
    inherit: bool,
}

/// What a program left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Its number, by which the kernel may name it elsewhere; it has ended.
    pub pid: u32,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Exec {
    /// Program `program`, looked up on `$PATH` unless it has a slash.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: None,
            env_added: Vec::new(),
            dir: None,
            stdin: Vec::new(),
            timeout: TIMEOUT_DEFAULT,
            inherit: false,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets one variable besides the inherited ones.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env_added
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Replaces the whole environment.
    #[must_use]
    pub fn env_only<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        mut self,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let owned = |(k, v): (K, V)| (k.as_ref().to_owned(), v.as_ref().to_owned());
        self.env = Some(env.into_iter().map(owned).collect());
        self
    }

    /// Working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Bytes for standard input (empty: `/dev/null`).
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Time limit; the program is killed (SIGKILL) when it is over.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Lets the program write to our own standard output and error instead of capturing them.
    #[must_use]
    pub fn inherit_output(mut self) -> Self {
        self.inherit = true;
        self
    }

    /// The program and its first arguments, for messages.
    fn title(&self) -> String {
        let mut title = format!("run {}", self.program.to_string_lossy());
        for arg in self.args.iter().take(6) {
            title.push(' ');
            title.push_str(&arg.to_string_lossy());
        }
        title
    }

    fn command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args);
        if let Some(env) = &self.env {
            command.env_clear().envs(env.iter().map(|(k, v)| (k, v)));
        }
        command.envs(self.env_added.iter().map(|(k, v)| (k, v)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    /// Runs to the end. A non-zero exit is an `Ok` here; see [`Exec::run`].
    ///
    /// # Errors
    /// The program cannot be started, or does not end in time (`ETIMEDOUT`).
    pub fn output(&self) -> Result<Output> {
        let fail = |e: io::Error| Error::new(self.title(), e);
        let mut command = self.command();
        command.stdin(if self.stdin.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        });
        if !self.inherit {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child = spawn(&mut command, BUSY_MAX.min(self.timeout)).map_err(fail)?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            let feed = scope.spawn(|| feed(stdin, &self.stdin));
            let out = scope.spawn(|| drain(stdout));
            let err = scope.spawn(|| drain(stderr));
            let watch = Watchdog::start(pid, self.timeout);
            // Waits without reaping, so that the watchdog can never hit a pid that is somebody else's.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while nix::sys::wait::waitid(Id::Pid(pid), flags) == Err(nix::errno::Errno::EINTR) {}
            let timed_out = watch.stop();
            let status = child.wait();
            // A broken pipe on standard input means that the program did not want it all.
            drop(feed.join());
            let stdout = out.join().unwrap_or_default();
            let stderr = err.join().unwrap_or_default();
            if timed_out {
                let limit = format!("no end after {:.1} s", self.timeout.as_secs_f32());
                return Err(fail(io::Error::from_raw_os_error(libc::ETIMEDOUT)).with_detail(limit));
            }
            Ok(Output {
                status: status.map_err(fail)?,
                stdout,
                stderr,
                pid: child.id(),
            })
        })
    }

    /// Runs to the end and wants exit code 0.
    ///
    /// # Errors
    /// As [`Exec::output`]; also any other exit, with the end of standard error as its detail.
    pub fn run(&self) -> Result<Output> {
        let output = self.output()?;
        if output.status.success() {
            return Ok(output);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stderr = stderr.trim();
        let mut from = stderr.len().saturating_sub(STDERR_QUOTED_MAX);
        while !stderr.is_char_boundary(from) {
            from += 1;
        }
        Err(Error::other(self.title(), output.status.to_string()).with_detail(&stderr[from..]))
    }
}

/// Starts a program, and waits up to `busy` for who writes it to be done.
fn spawn(command: &mut std::process::Command, busy: Duration) -> io::Result<Child> {
    let deadline = Instant::now() + busy;
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy
                    && Instant::now() < deadline =>
            {
                thread::sleep(BUSY_PAUSE);
            }
            done => return done,
        }
    }
}

fn feed(pipe: Option<ChildStdin>, bytes: &[u8]) -> io::Result<()> {
    match pipe {
        Some(mut pipe) => pipe.write_all(bytes),
        None => Ok(()),
    }
}

fn drain(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What could be read before an error is still worth having.
        drop(pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes));
    }
    bytes
}

/// Kills a process that is not done in time.
struct Watchdog {
    done: std::sync::mpsc::Sender<()>,
    thread: thread::JoinHandle<bool>,
}

impl Watchdog {
    fn start(pid: nix::unistd::Pid, timeout: Duration) -> Self {
        let (done, wait) = std::sync::mpsc::channel();
        let deadline = Instant::now() + timeout;
        let thread = thread::spawn(move || {
            let left = deadline.saturating_duration_since(Instant::now());
            let late = wait.recv_timeout(left) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
            late && nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).is_ok()
        });
        Self { done, thread }
    }

    /// Stops watching; true when the process had to be killed.
    fn stop(self) -> bool {
        drop(self.done);
        self.thread.join().unwrap_or(false)
    }
}

/// Finds `program` on `$PATH`.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).chain(usual).collect();
    dirs.into_iter()
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn output_and_input_pass_through() {
        let output = Exec::new("cat").stdin("hello").run().unwrap();
        assert_eq!(output.text(), "hello");
    }

    #[test]
    fn a_failure_quotes_standard_error() {
        let error = Exec::new("sh")
            .args(["-c", "echo broken >&2; exit 3"])
            .run()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "run sh -c echo broken >&2; exit 3: exit status: 3 (broken)"
        );
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let exec = Exec::new("sleep")
            .arg("600")
            .timeout(Duration::from_millis(50));
        assert_eq!(exec.run().unwrap_err().errno(), Some(libc::ETIMEDOUT));
    }

    /// Written to until the first attempt has failed for it; started after that.
    #[test]
    fn a_program_that_is_being_written_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("program");
        let writer = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o755)
            .open(&file)
            .unwrap();
        std::fs::write(&file, "#!/bin/sh\necho done\n").unwrap();
        let busy = Exec::new(&file).timeout(Duration::from_millis(20)).run();
        assert_eq!(busy.unwrap_err().errno(), Some(libc::ETXTBSY));
        thread::scope(|scope| {
            let run = scope.spawn(|| Exec::new(&file).run());
            drop(writer);
            assert_eq!(run.join().unwrap().unwrap().text(), "done\n");
        });
    }

    #[test]
    fn a_missing_program_is_not_found() {
        assert!(
            Exec::new("/nowhere/at-all")
                .run()
                .unwrap_err()
                .is_not_found()
        );
    }
}
