//! The guest's side: the first process of a kernel whose root is the host's file system, read-only.
//!
//! It lays a file system in memory over it, so that every path is the same as outside and can be
//! written, and makes that the root. The command's exit code goes into a file; then the machine halts.

use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use linux::exec::Exec;
use linux::link::LinkChange;
use linux::mount::{mount, overlay};
use linux::process::{Daemon, power_off};
use linux::{Host, Kernel};
use nix::mount::MsFlags;
use nix::sys::wait::waitpid;

use super::Lane;
use super::orders::{CODE, ERR, OUT, Orders};

/// Exit code when the command could not even be tried.
const NOT_RUN: i32 = 125;

/// What `TMPDIR` names: a place of its own, since `/tmp` has this machine's files.
pub(super) const TEMPORARY: &str = "/run/tmp";

/// What pid 1 does. It comes back only when the machine cannot be halted.
pub(crate) fn first_process(dir: &Path) -> Result<()> {
    let code = match set_up(dir).and_then(|()| run_second(dir)) {
        Ok(code) => code,
        Err(error) => {
            complain(dir, &format!("guest: {error:#}\n"));
            NOT_RUN
        }
    };
    let file = dir.join(CODE);
    fs::write(&file, format!("{code}\n")).with_context(|| format!("write {}", file.display()))?;
    nix::unistd::sync();
    power_off().context("halt the guest")
}

/// To the command's standard error and, where that is not there yet, to the console.
fn complain(dir: &Path, text: &str) {
    let file = OpenOptions::new().append(true).open(dir.join(ERR));
    let wrote = file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    if wrote.is_err() {
        print!("{text}");
    }
}

fn plain(fstype: &str, target: &str) -> Result<()> {
    Ok(mount(
        fstype,
        Path::new(target),
        fstype,
        MsFlags::empty(),
        None,
    )?)
}

fn set_up(dir: &Path) -> Result<()> {
    plain("proc", "/proc")?;
    let orders = Orders::read(dir)?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let release = release.trim();
    mount(
        "tmpfs",
        Path::new("/mnt"),
        "tmpfs",
        MsFlags::empty(),
        Some("size=75%"),
    )?;
    let [upper, work, root] = ["/mnt/upper", "/mnt/work", "/mnt/root"].map(PathBuf::from);
    for folder in [&upper, &work, &root] {
        fs::create_dir(folder)?;
    }
    let modules = orders.modules.join(release);
    if !fs::read_to_string("/proc/filesystems")?.contains("\toverlay\n") {
        let module = modules.join("kernel/fs/overlayfs/overlay.ko");
        Exec::new("/sbin/insmod").arg(module).run()?;
    }
    overlay(&[PathBuf::from("/")], &upper, &work, &root)?;
    std::env::set_current_dir(&root)?;
    fs::create_dir_all("mnt/old")?;
    // Not chroot: the kernel's own helper that loads modules runs in the root of the mount tree.
    nix::unistd::pivot_root(".", "mnt/old").context("change the root")?;
    std::env::set_current_dir("/")?;
    plain("devtmpfs", "/dev")?;
    for folder in ["/dev/pts", "/dev/shm", "/usr/lib/modules"] {
        fs::create_dir_all(folder)?;
    }
    for (fstype, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
        // The root is an overlay already, and containers' roots are overlays on what is here.
        ("tmpfs", "/var/lib/seaway"),
        ("tmpfs", TEMPORARY),
    ] {
        fs::create_dir_all(target)?;
        plain(fstype, target)?;
    }
    // A kernel may lack it, and few commands miss it.
    drop(plain("tracefs", "/sys/kernel/tracing"));
    let link = Path::new("/usr/lib/modules").join(release);
    if !link.exists() {
        symlink(&modules, link)?;
    }
    share(orders.lane, "run", dir)?;
    if let Some(folder) = &orders.share {
        share(orders.lane, "share", folder)?;
    }
    Kernel::open()?.set_link("lo", &LinkChange::up())?;
    if !Path::new("/proc/sys/net/ipv6").exists() {
        // A module in the lane `uml`; tests write its settings before anything uses it.
        Exec::new("/sbin/modprobe").arg("ipv6").run()?;
    }
    if !orders.bare_bridges {
        // As every node of Kubernetes has it: replies between two pods of one bridge pass the rules.
        Exec::new("/sbin/modprobe").arg("br_netfilter").run()?;
    }
    Ok(())
}

/// Mounts a folder of the host so that writes go through, at once.
fn share(lane: Lane, tag: &str, folder: &Path) -> Result<()> {
    // Folders below those that became new file systems.
    fs::create_dir_all(folder)?;
    match lane {
        Lane::Tcg => mount(tag, folder, "virtiofs", MsFlags::empty(), None)?,
        Lane::Uml => {
            let path = folder.to_string_lossy();
            mount(
                "none",
                folder,
                "hostfs",
                MsFlags::MS_SYNCHRONOUS,
                Some(&path),
            )?;
        }
    }
    Ok(())
}

/// Starts the process that runs the command, and buries whatever dies until that one does.
fn run_second(dir: &Path) -> Result<i32> {
    let daemon = Daemon {
        program: std::env::current_exe()?,
        args: vec!["vm-second".into(), dir.into()],
        log: Some(dir.join(ERR)),
        ..Daemon::default()
    };
    let second = i32::try_from(daemon.spawn()?.id())?;
    loop {
        use nix::sys::wait::WaitStatus::{Exited, Signaled};
        match waitpid(None, None)? {
            Exited(pid, code) if pid.as_raw() == second => return Ok(code),
            Signaled(pid, signal, _) if pid.as_raw() == second => return Ok(128 + signal as i32),
            _ => {}
        }
    }
}

/// Runs the command with its output in the files that the host copies.
pub(crate) fn second_process(dir: &Path) -> Result<i32> {
    let orders = Orders::read(dir)?;
    let append = |name: &str| OpenOptions::new().append(true).open(dir.join(name));
    nix::unistd::dup2_stdout(append(OUT)?.as_fd())?;
    nix::unistd::dup2_stderr(append(ERR)?.as_fd())?;
    let (program, args) = orders.command.split_first().context("no command")?;
    let exec = Exec::new(program)
        .args(args)
        .env_only(orders.env)
        .dir(orders.cwd)
        .timeout(Duration::from_secs(orders.timeout))
        .inherit_output();
    let status = exec.output()?.status;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    Ok(status.code().unwrap_or(128 + signal.unwrap_or(0)))
}
