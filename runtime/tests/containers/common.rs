//! A runtime of its own for each test: directories, cgroup and a busybox image, all taken away again.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use linux::cgroup::Hierarchies;
use runtime::image::build::Archive;
use runtime::{
    ContainerSpec, ContainerState, ExecSpec, Exit, ImageConfig, Runtime, RuntimeConfig, SandboxSpec,
};

/// The static busybox of Debian's busybox-static.
const BUSYBOX: &str = "/bin/busybox";
/// Name of the image of the tests.
pub(crate) const IMAGE: &str = "test.local/busybox:1";
/// Longest wait for something that takes milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A runtime of its own.
pub(crate) struct Bench {
    /// Everything of it, removed with it.
    temp: Option<tempfile::TempDir>,
    pub(crate) dir: PathBuf,
    pub(crate) runtime: Runtime,
    pub(crate) cgroup: String,
}

/// A bench, or why the test cannot run here.
pub(crate) fn bench(test: &str) -> Option<Bench> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {test}: needs root");
        return None;
    }
    if !Path::new(BUSYBOX).exists() {
        println!("SKIPPED {test}: needs {BUSYBOX} (busybox-static)");
        return None;
    }
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let cgroup = format!("/seaway-test-{}-{n}", std::process::id());
    let temp = tempfile::tempdir().unwrap();
    let mut bench = Bench::again(temp.path(), &cgroup);
    let archive = bench.dir.join("busybox.tar");
    image().write(&archive).unwrap();
    bench.runtime.images().load(&archive).unwrap();
    bench.temp = Some(temp);
    Some(bench)
}

pub(crate) fn open(dir: &Path, cgroup: &str) -> Runtime {
    Runtime::open(RuntimeConfig {
        root: dir.join("runtime"),
        images: dir.join("images"),
        shim: Some(env!("CARGO_BIN_EXE_seaway-shim").into()),
        cgroup_root: cgroup.to_owned(),
    })
    .unwrap()
}

/// Busybox with a user and a group.
pub(crate) fn image() -> Archive {
    let mut archive = Archive::new(IMAGE)
        .copy("/bin/busybox", BUSYBOX, 0o755)
        .dir("/tmp", 0o1777)
        .dir("/proc", 0o755)
        .file(
            "/etc/passwd",
            "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
            0o644,
        )
        .file(
            "/etc/group",
            "root:x:0:\nwww:x:34:\nextra:x:40:web\n",
            0o644,
        )
        .config(ImageConfig {
            cmd: vec!["/bin/sh".to_owned()],
            env: vec![("FROM_IMAGE".to_owned(), "yes".to_owned())],
            ..ImageConfig::default()
        });
    for name in [
        "sh", "sleep", "cat", "echo", "id", "stty", "dd", "hostname", "ls", "env", "ps", "true",
        "mount", "wc", "kill", "seq", "pwd", "touch", "grep", "ip",
    ] {
        archive = archive.link(&format!("/bin/{name}"), "busybox");
    }
    archive
}

impl Bench {
    /// The bench of another process.
    pub(crate) fn again(dir: &Path, cgroup: &str) -> Self {
        let (runtime, cgroup) = (open(dir, cgroup), cgroup.to_owned());
        Self {
            temp: None,
            dir: dir.canonicalize().unwrap(),
            runtime,
            cgroup,
        }
    }

    /// A sandbox with this id.
    pub(crate) fn sandbox(&self, id: &str) -> SandboxSpec {
        let spec = SandboxSpec {
            id: id.to_owned(),
            name: format!("pod-{id}"),
            namespace: "default".to_owned(),
            hostname: "testpod".to_owned(),
            host_network: false,
            cgroup_parent: format!("{}/kubepods/pod{id}", self.cgroup),
            ..SandboxSpec::default()
        };
        self.runtime.create_sandbox(&spec).unwrap();
        spec
    }

    /// A container that runs a script of the shell; made and started.
    pub(crate) fn run(&self, sandbox: &str, id: &str, script: &str) {
        self.start(sandbox, &self.container(id, script));
    }

    pub(crate) fn start(&self, sandbox: &str, spec: &ContainerSpec) {
        self.runtime.create_container(sandbox, spec).unwrap();
        self.runtime.start_container(&spec.id).unwrap();
    }

    pub(crate) fn container(&self, id: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: id.to_owned(),
            name: id.to_owned(),
            image: IMAGE.to_owned(),
            argv: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
            log_path: Some(self.log_path(id)),
            ..ContainerSpec::default()
        }
    }

    pub(crate) fn log_path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("logs/{id}/0.log"))
    }

    /// The logged messages of a container, `stdout: text` by line.
    pub(crate) fn log(&self, id: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log_path(id)).unwrap_or_default();
        let message = |line: &str| {
            let mut parts = line.splitn(4, ' ');
            let stream = parts.nth(1).unwrap().to_owned();
            format!("{stream}: {}", parts.nth(1).unwrap())
        };
        text.lines().map(message).collect()
    }

    pub(crate) fn state(&self, id: &str) -> ContainerState {
        self.runtime.container_status(id).unwrap().state
    }

    /// Waits for the end of a container.
    #[track_caller]
    pub(crate) fn exit(&self, id: &str) -> Exit {
        wait_for(&format!("the end of {id}"), || match self.state(id) {
            ContainerState::Exited(exit) => Some(exit),
            ContainerState::Created | ContainerState::Running { .. } => None,
        })
    }

    /// Pid on the host of a container that runs.
    pub(crate) fn pid(&self, id: &str) -> i32 {
        match self.state(id) {
            ContainerState::Running { pid, .. } => pid,
            other => panic!("{id} does not run: {other:?}"),
        }
    }

    /// Nothing of it may be left: processes, mounts, cgroups, files.
    pub(crate) fn check_clean(&self) {
        let dir = self.dir.clone();
        let mounts = linux::mount::mounts().unwrap();
        let left: Vec<_> = mounts
            .iter()
            .filter(|m| m.target.starts_with(&dir))
            .collect();
        assert!(left.is_empty(), "mounts are left: {left:?}");
        let groups = Hierarchies::detect().unwrap();
        let pods = format!("{}/kubepods", self.cgroup);
        for group in groups.dirs(&pods) {
            let left = fs::read_dir(&group).into_iter().flatten().flatten();
            let left: Vec<_> = left
                .filter(|e| e.file_type().unwrap().is_dir())
                .map(|e| e.path())
                .collect();
            assert!(left.is_empty(), "cgroups are left: {left:?}");
        }
        assert!(groups.pids(&self.cgroup).is_empty(), "processes are left");
        for sub in ["sandboxes", "events"] {
            let left: Vec<_> = fs::read_dir(dir.join("runtime").join(sub))
                .unwrap()
                .collect();
            assert!(left.is_empty(), "files are left: {left:?}");
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let destroyed = runtime::destroy_all(&self.dir.join("runtime"));
        let groups = Hierarchies::detect().unwrap();
        let removed = groups
            .kill_all(&self.cgroup)
            .and_then(|()| groups.remove(&self.cgroup));
        if !std::thread::panicking() {
            destroyed.unwrap();
            removed.unwrap();
        }
    }
}

/// Looks until there is something; fails after [`PATIENCE`].
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reads a stream to its end; a terminal's end is an error.
pub(crate) fn read_all(fd: Option<OwnedFd>) -> String {
    let mut text = Vec::new();
    let mut file = fs::File::from(fd.unwrap());
    let mut part = [0; 4096];
    while let Ok(len @ 1..) = file.read(&mut part) {
        text.extend_from_slice(&part[..len]);
    }
    String::from_utf8(text).unwrap()
}

/// A script of the shell, to run in a container.
pub(crate) fn exec_spec(script: &str) -> ExecSpec {
    ExecSpec {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecSpec::default()
    }
}

/// Runs a script in a container: exit code and standard output.
pub(crate) fn exec(bench: &Bench, id: &str, script: &str) -> (i32, String) {
    let mut session = bench.runtime.exec(id, &exec_spec(script)).unwrap();
    let out = read_all(session.stdout.take());
    (session.wait().unwrap(), out)
}
