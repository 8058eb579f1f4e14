//! The host's side: boots the guest, shows what the command says, returns its exit code.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use linux::process::{self, Daemon};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::guest::TEMPORARY;
use super::kernel::GuestKernel;
use super::orders::{CODE, ERR, OUT, Orders};
use super::{Lane, VmArgs};
use crate::run::{own_program, target_dir};

/// Booting and halting, beside the command's own time.
const BOOT_SECONDS: u64 = 60;

/// How often the command's output is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// The daemon that serves a folder to QEMU, from the package `qemu-system-common`.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// Variables that the command gets from us.
const ENV_KEPT: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TERM",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "CARGO",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "CARGO_TARGET_DIR",
    "RUST_TEST_THREADS",
    "UPDATE_EXPECT",
];

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Boots `kernel`, runs the command in it and returns its exit code.
pub(crate) fn boot(kernel: &GuestKernel, args: &VmArgs) -> Result<i32> {
    let guest = Guest::new(kernel, args)?;
    guest.run()
}

/// One guest: its folder and its processes, which end with it.
struct Guest<'a> {
    kernel: &'a GuestKernel,
    args: &'a VmArgs,
    dir: PathBuf,
    children: Vec<Child>,
}

impl<'a> Guest<'a> {
    fn new(kernel: &'a GuestKernel, args: &'a VmArgs) -> Result<Self> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("run-{}-{number}", std::process::id());
        let dir = target_dir().join("vm").join(name);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        for file in [OUT, ERR] {
            File::create(dir.join(file))?;
        }
        let mut env: Vec<(String, String)> = ENV_KEPT
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), std::env::var(key).ok()?)))
            .collect();
        let own = [
            ("SEAWAY_VM", args.lane.name().to_owned()),
            ("SEAWAY_TIME_SCALE", args.lane.time_scale().to_string()),
            ("TMPDIR", TEMPORARY.to_owned()),
        ];
        env.extend(own.map(|(key, value)| (key.to_owned(), value)));
        let share = args.share.as_ref().map(|share| share.canonicalize());
        let orders = Orders {
            lane: args.lane,
            modules: kernel.modules.canonicalize()?,
            share: share.transpose().context("--share")?,
            cwd: std::env::current_dir()?,
            timeout: args.timeout,
            bare_bridges: args.bare_bridges,
            env,
            command: args.command.clone(),
        };
        orders.write(&dir)?;
        Ok(Self {
            kernel,
            args,
            dir,
            children: Vec::new(),
        })
    }

    fn run(mut self) -> Result<i32> {
        let deadline = Instant::now() + Duration::from_secs(self.args.timeout + BOOT_SECONDS);
        // The guest's processes are in groups of their own, so that they end in our order: it is us
        // who hear the terminal.
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGINT);
        mask.add(Signal::SIGTERM);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        match self.args.lane {
            Lane::Uml => self.start_uml()?,
            Lane::Tcg => self.start_tcg()?,
        }
        let mut outputs = [
            Tail::new(&self.dir.join(OUT), Box::new(io::stdout()))?,
            Tail::new(&self.dir.join(ERR), Box::new(io::stderr()))?,
        ];
        loop {
            for output in &mut outputs {
                output.copy()?;
            }
            let ended = match self.children.last_mut() {
                Some(machine) => machine.try_wait()?.is_some(),
                None => true,
            };
            if signals.read_signal()?.is_some() {
                bail!("ended by a signal");
            }
            let late = Instant::now() > deadline;
            if ended || late {
                for output in &mut outputs {
                    output.copy()?;
                }
                return self.code(late);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The command's exit code, or why there is none.
    fn code(&self, late: bool) -> Result<i32> {
        let text = fs::read_to_string(self.dir.join(CODE)).unwrap_or_default();
        if let Ok(code) = text.trim().parse() {
            return Ok(code);
        }
        let console = fs::read(self.dir.join("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        let why = if late {
            "did not end in time"
        } else {
            "ended without an exit code"
        };
        bail!("the guest {why}; the end of its console:\n{tail}")
    }

    /// Arguments of the kernel: the first process is this program.
    fn append(&self, root: &str) -> Result<String> {
        let (me, dir) = (own_program()?, self.dir.display());
        Ok(format!(
            "{root} ro panic=-1 quiet init={me} -- vm-first {dir}"
        ))
    }

    fn start_uml(&mut self) -> Result<()> {
        let append = self.append("rootfstype=hostfs")?;
        let mut args = vec![
            format!("mem={}M", self.args.memory),
            "con=null".to_owned(),
            "con0=null,fd:1".to_owned(),
        ];
        args.extend(append.split(' ').map(str::to_owned));
        self.start(&self.kernel.image.clone(), args, "console")
    }

    fn start_tcg(&mut self) -> Result<()> {
        let mut folders = vec![("root", PathBuf::from("/"), "always")];
        folders.push(("run", self.dir.clone(), "none"));
        if let Some(share) = &self.args.share {
            folders.push(("share", share.canonicalize()?, "none"));
        }
        let memory = self.args.memory;
        let mut args: Vec<String> = [
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            // This QEMU miscompiles cmpxchg16b as kernels from 6.5 on use it.
            "-cpu",
            "max,-cx16",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ]
        .map(str::to_owned)
        .into();
        args.extend(["-smp".to_owned(), self.args.cpus.to_string()]);
        args.extend(["-m".to_owned(), memory.to_string()]);
        args.extend([
            "-object".to_owned(),
            format!("memory-backend-memfd,id=mem,size={memory}M,share=on"),
            "-numa".to_owned(),
            "node,memdev=mem".to_owned(),
            "-serial".to_owned(),
            format!("file:{}", self.dir.join("console").display()),
        ]);
        for (tag, folder, cache) in folders {
            let socket = self.dir.join(format!("{tag}.sock"));
            let serve = vec![
                format!("--socket-path={}", socket.display()),
                "-o".to_owned(),
                format!("source={}", folder.display()),
                "-o".to_owned(),
                format!("cache={cache}"),
                "-o".to_owned(),
                "sandbox=chroot".to_owned(),
            ];
            self.start(Path::new(VIRTIOFSD), serve, &format!("{tag}.log"))?;
            let deadline = Instant::now() + Duration::from_secs(10);
            while !socket.exists() {
                if Instant::now() > deadline {
                    bail!("{VIRTIOFSD} does not serve {}", folder.display());
                }
                std::thread::sleep(LOOK);
            }
            args.extend([
                "-chardev".to_owned(),
                format!("socket,id={tag},path={}", socket.display()),
                "-device".to_owned(),
                format!("vhost-user-fs-pci,chardev={tag},tag={tag}"),
            ]);
        }
        if let Some(number) = self.args.segment {
            let mac = mac(&self.dir);
            args.extend([
                "-netdev".to_owned(),
                format!("socket,id=net,mcast=230.0.0.1:{number},localaddr=127.0.0.1"),
                "-device".to_owned(),
                format!("virtio-net-pci,netdev=net,mac={mac}"),
            ]);
        }
        let append = self.append("console=ttyS0 rootfstype=virtiofs root=root")?;
        args.extend([
            "-kernel".to_owned(),
            self.kernel.image.display().to_string(),
        ]);
        args.extend(["-append".to_owned(), append]);
        self.start(Path::new("/usr/bin/qemu-system-x86_64"), args, "qemu.log")
    }

    fn start(&mut self, program: &Path, args: Vec<String>, log: &str) -> Result<()> {
        let daemon = Daemon {
            program: program.to_owned(),
            args: args.into_iter().map(Into::into).collect(),
            log: Some(self.dir.join(log)),
            ..Daemon::default()
        };
        self.children.push(daemon.spawn()?);
        Ok(())
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        // The machine itself first, then what serves it.
        for child in self.children.iter_mut().rev() {
            if matches!(child.try_wait(), Ok(Some(_))) {
                continue;
            }
            if let Ok(pid) = i32::try_from(child.id()) {
                // Each leads a group of its own, which holds its helpers.
                let group = -pid;
                drop(process::signal(group, Signal::SIGKILL));
            }
            drop(child.wait());
        }
        if std::env::var_os("SEAWAY_VM_KEEP").is_none() {
            drop(fs::remove_dir_all(&self.dir));
        }
    }
}

/// A hardware address of the guest's own.
fn mac(dir: &Path) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    let [a, b, c, d, ..] = hasher.finish().to_be_bytes();
    format!("52:54:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// A file that grows, copied as it does.
struct Tail {
    file: File,
    to: Box<dyn Write>,
}

impl Tail {
    fn new(path: &Path, to: Box<dyn Write>) -> Result<Self> {
        let file = File::open(path)?;
        Ok(Self { file, to })
    }

    fn copy(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        if !bytes.is_empty() {
            self.to.write_all(&bytes)?;
            self.to.flush()?;
        }
        Ok(())
    }
}
