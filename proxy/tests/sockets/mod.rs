//! A control group for the threads of one lab: in mode ebpf it is by these that a node and its pods
//! are told from everybody else on the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use linux::cgroup::Hierarchies;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A threaded group below this process's own one (version 2).
pub(crate) struct Sockets {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Where the proxy pins.
    pub(crate) pins: PathBuf,
}

impl Sockets {
    /// Makes it; `None` where no cgroup v2 is mounted.
    pub(crate) fn new() -> Option<Self> {
        let root = Hierarchies::detect().unwrap().v2?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::"));
        let parent = root.join(own.unwrap_or("/").trim_start_matches('/'));
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("seaway-test-{}-{number}", std::process::id());
        let dir = parent.join(&name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cgroup.type"), "threaded").unwrap();
        Some(Self {
            dir,
            pins: Path::new("/sys/fs/bpf").join(name),
        })
    }

    /// Flags of the proxy.
    pub(crate) fn args(&self) -> Vec<String> {
        vec![
            format!("--ebpf-cgroup={}", self.dir.display()),
            format!("--ebpf-pin-dir={}", self.pins.display()),
            "--ebpf-flows-max=16384".to_owned(),
        ]
    }
}

/// Moves the calling thread into a group.
pub(crate) fn enter(dir: &Path) {
    let thread = nix::unistd::gettid().to_string();
    fs::write(dir.join("cgroup.threads"), thread).unwrap();
}

impl Drop for Sockets {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.pins));
        drop(fs::remove_dir(&self.dir));
    }
}
