//! Starting daemons inside a network namespace and control groups, and looking after processes.

#![expect(
    clippy::disallowed_methods,
    reason = "this module starts long-running programs"
)]

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// A program that goes on running on its own: its own session, standard input from `/dev/null`,
/// output appended to a log file.
#[derive(Debug, Clone, Default)]
pub struct Daemon {
    /// The program file.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// Variables besides the inherited ones.
    pub env: Vec<(OsString, OsString)>,
    /// The network namespace to run in (a path such as `/run/netns/x`); ours when absent.
    pub netns: Option<PathBuf>,
    /// `cgroup.procs` files of the control groups to be born in (see [`crate::cgroup`]).
    pub cgroup_procs: Vec<PathBuf>,
    /// Where standard output and error go; `/dev/null` when absent.
    pub log: Option<PathBuf>,
}

impl Daemon {
    /// Starts it.
    ///
    /// # Errors
    /// The namespace, a control group, the log or the program cannot be opened, or exec fails.
    pub fn spawn(&self) -> Result<Child> {
        let fail = |what: String| move |e: io::Error| Error::new(what, e);
        let netns = match &self.netns {
            Some(path) => {
                let what = format!("open network namespace {}", path.display());
                Some(OwnedFd::from(File::open(path).map_err(fail(what))?))
            }
            None => None,
        };
        let mut groups = Vec::new();
        for path in &self.cgroup_procs {
            let file = OpenOptions::new().write(true).open(path);
            groups.push(file.map_err(fail(format!("open {}", path.display())))?);
        }
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null());
        match &self.log {
            Some(path) => {
                let log = OpenOptions::new().create(true).append(true).open(path);
                let log = log.map_err(fail(format!("open {}", path.display())))?;
                let twin = log
                    .try_clone()
                    .map_err(fail(format!("open {}", path.display())))?;
                command.stdout(log).stderr(twin);
            }
            None => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        before_exec(&mut command, netns, groups);
        command
            .spawn()
            .map_err(fail(format!("start {}", self.program.display())))
    }
}

/// What the child does between fork and exec: only system calls, no allocation.
#[expect(
    unsafe_code,
    reason = "the step between fork and exec has no safe interface"
)]
fn before_exec(command: &mut Command, netns: Option<OwnedFd>, mut groups: Vec<File>) {
    let enter = move || -> io::Result<()> {
        nix::unistd::setsid()?;
        // A mask survives exec: the daemon must hear the signals that its starter waits for.
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        for group in &mut groups {
            // "0" is the writing process itself (cgroups(7)).
            group.write_all(b"0")?;
        }
        if let Some(netns) = &netns {
            nix::sched::setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
        }
        Ok(())
    };
    // SAFETY: the closure makes only async-signal-safe system calls on descriptors opened before
    // the fork; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(enter) };
}

/// True while a process with this pid exists and is not a zombie.
pub fn is_alive(pid: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the parenthesised name, which may itself hold parentheses.
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z')),
        Err(_) => false,
    }
}

/// Sends a signal; a process that is gone is fine.
pub fn signal(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(e) => Err(Error::new(format!("send {signal} to process {pid}"), e)),
    }
}

/// The process that holds a lock of flock(2) on a file; `None` when nobody does, or one that this
/// process cannot see. Source: proc_locks(5).
pub fn flock_holder(file: &File) -> Option<i32> {
    use std::os::unix::fs::MetadataExt;
    let meta = file.metadata().ok()?;
    let device = (
        nix::sys::stat::major(meta.dev()),
        nix::sys::stat::minor(meta.dev()),
    );
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    holder_in(&locks, device, meta.ino())
}

/// Lines as `1: FLOCK  ADVISORY  WRITE 708 00:1b:12 0 EOF`, where those that wait have `->` before
/// `FLOCK`.
fn holder_in(locks: &str, (major, minor): (u64, u64), inode: u64) -> Option<i32> {
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, of, ..] = words[..] else {
            return None;
        };
        (of == file).then(|| pid.parse().ok())?
    })
}

/// Says how willingly the kernel kills this process when memory is short (`proc(5)`): from -1000,
/// never, to 1000. True when it was changed.
///
/// # Errors
/// Lowering needs `CAP_SYS_RESOURCE`.
pub fn set_oom_score_adj(score: i32) -> Result<bool> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let fail = |e: io::Error| Error::new(format!("set {FILE} to {score}"), e);
    let wanted = score.to_string();
    if std::fs::read_to_string(FILE).map_err(fail)?.trim() == wanted {
        return Ok(false);
    }
    std::fs::write(FILE, wanted).map_err(fail)?;
    Ok(true)
}

/// Resident memory in bytes (`VmRSS` of `/proc/PID/status`).
pub fn resident_bytes(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::new(format!("read {path}"), e))?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|l| l.trim().strip_suffix(" kB"))
        .and_then(|n| n.trim().parse().ok());
    kib.map(|kib: u64| kib * 1024)
        .ok_or_else(|| Error::other(format!("read {path}"), "no VmRSS line"))
}

/// Time that a process has used of processors, its threads' and the kernel's for it (`utime` and
/// `stime` of `/proc/PID/stat`; in steps of 10 ms).
pub fn cpu_time(pid: i32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::new(format!("read {path}"), e))?;
    // The name, in parentheses, may hold anything; the third field follows it.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: Vec<u64> = ticks.filter_map(|field| field.parse().ok()).collect();
    let [user, system] = ticks[..] else {
        return Err(Error::other(format!("read {path}"), "no times"));
    };
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let per_second = per_second.ok().flatten().unwrap_or(100).unsigned_abs();
    Ok(Duration::from_millis(
        (user + system) * 1000 / per_second.max(1),
    ))
}

/// Halts the machine at once, without asking anybody: for the first process of a guest.
///
/// # Errors
/// Not allowed (`CAP_SYS_BOOT`). With success it does not come back.
#[expect(unsafe_code, reason = "reboot(2) has no safe interface here")]
pub fn power_off() -> Result<()> {
    // SAFETY: the call takes no pointers.
    let result = unsafe { libc::reboot(libc::RB_POWER_OFF) };
    nix::errno::Errno::result(result)
        .map(drop)
        .map_err(|e| Error::new("power off", e))
}

/// The program's own directory: where its sibling programs are installed.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().map_err(|e| Error::new("find own program file", e))?;
    let dir = me.parent().unwrap_or(Path::new("/"));
    Ok(dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_a_lock_is_found() {
        use nix::fcntl::{Flock, FlockArg};
        let dir = std::env::temp_dir().join(format!("seaway-flock-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let open = || File::open(&dir).unwrap();
        assert_eq!(flock_holder(&open()), None);
        let lock = Flock::lock(open(), FlockArg::LockExclusiveNonblock).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(flock_holder(&open()), Some(own));
        drop(lock);
        std::fs::remove_dir(&dir).unwrap();

        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1b:12 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 8 00:1b:12 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 9 00:1b:13 0 EOF\n";
        assert_eq!(holder_in(locks, (0, 0x1b), 12), Some(8));
        assert_eq!(holder_in(locks, (0, 0x1b), 13), None);
        assert_eq!(holder_in(locks, (8, 0x1b), 12), None);
    }

    #[test]
    fn a_daemon_has_its_own_session_and_log() {
        let dir = std::env::temp_dir().join(format!("seaway-process-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let log = dir.join("log");
        let args = ["-c", "cut -d' ' -f1,6 /proc/$$/stat; echo $WORD"]
            .map(OsString::from)
            .to_vec();
        let env = vec![("WORD".into(), "hello".into())];
        let program = "/bin/sh".into();
        let daemon = Daemon {
            program,
            args,
            env,
            log: Some(log.clone()),
            ..Daemon::default()
        };
        let mut child = daemon.spawn().unwrap();
        assert!(child.wait().unwrap().success());
        let text = std::fs::read_to_string(log).unwrap();
        let pid = child.id();
        assert_eq!(text, format!("{pid} {pid}\nhello\n"));
        assert!(!is_alive(i32::try_from(pid).unwrap()));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn our_own_memory_is_known() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(is_alive(me));
        assert!(resident_bytes(me).unwrap() > 100_000);
    }

    #[test]
    fn our_own_time_grows() {
        let me = i32::try_from(std::process::id()).unwrap();
        let before = cpu_time(me).unwrap();
        while cpu_time(me).unwrap() == before {
            std::hint::black_box(std::fs::read("/proc/self/stat").unwrap());
        }
        assert!(cpu_time(i32::MAX).is_err());
    }
}
