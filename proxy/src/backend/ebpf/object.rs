//! The programs and maps in the kernel: loading, and adopting what an earlier process pinned.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aya::programs::{Program, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader};
use linux::bpf::{self, Map};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::diff::MapName;
use super::layouts::Layouts;
use super::migrate::{MAPS, Numbers};
use super::sizes::{Sizes, memory};
use super::{Attach, Place, clsact};

/// The kernel side, built by `cargo xtask ebpf`.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/prebuilt/seaway.o");

/// Directory below the node's, with the links.
const LINKS: &str = "links";

/// Programs that the kernel checks at a time.
const LOADERS: usize = 2;

/// How long a process that was told to end may take until the next one gives up, and how often that
/// one looks.
const LOCK_WAIT: Duration = Duration::from_secs(3);
const LOCK_REST: Duration = Duration::from_millis(20);

/// How often it is looked whether a process has ended whose pins are to go.
const IN_USE_REST: Duration = Duration::from_millis(500);

/// Every map that user space reads or writes.
pub(super) const ALL: [&str; 16] = [
    "CONFIG",
    "FRONTENDS",
    "SERVICES",
    "SLOTS",
    "MEMBERS",
    "RANGES",
    "TABLES",
    "NODE_ADDRS",
    "IFACES",
    "AFFINITIES",
    "SOCKETS",
    "FLOWS",
    "FRAGMENTS",
    "COUNTERS",
    "EVENTS",
    "XDP_EVENTS",
];

/// The maps, by name.
#[derive(Debug)]
pub struct Maps(Vec<(&'static str, Map)>);

impl Maps {
    /// A map by its name in the object. Every name in there is opened at the start.
    ///
    /// # Panics
    /// For a name that the object does not have, which a test would show.
    pub fn get(&self, name: &str) -> &Map {
        let found = self.0.iter().find(|(known, _)| *known == name);
        #[expect(
            clippy::expect_used,
            reason = "names are constants, and every one is opened by `open`"
        )]
        &found.expect("a map of the object").1
    }

    /// A map that services are written to.
    pub fn of(&self, map: MapName) -> &Map {
        self.get(map.name())
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &(&'static str, Map)> {
        self.0.iter()
    }
}

/// Loaded programs with their maps.
pub struct Object {
    ebpf: Ebpf,
    dir: PathBuf,
    /// Ours and others.
    pub layouts: Layouts,
    /// Programs at sockets may read the kernel's memory.
    pub reads_kernel: bool,
    /// How programs are attached to interfaces.
    pub attach: Attach,
    /// Maps of an earlier process were found and are used on.
    pub adopted: bool,
    /// Numbers that services have in maps of other layouts.
    pub numbers: Numbers,
    /// Held as long as this process serves.
    _lock: Flock<File>,
}

/// Directory of a node below the directory for pins.
pub fn node_dir(place: &Place) -> PathBuf {
    place.pin_dir.join(&place.node)
}

/// Opens programs and maps.
///
/// # Errors
/// The kernel lacks something, or refuses a program; all of it is named.
pub fn open(place: &Place) -> Result<(Object, Maps)> {
    ensure_bpffs(&place.pin_dir)?;
    let dir = node_dir(place);
    let sizes = Sizes::of(memory(), place.flows_max);
    let maps_dir = dir.join(format!("{MAPS}{}", sizes.tag()));
    let lock = lock(&dir)?;
    for dir in [&dir.join(LINKS), &maps_dir] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let adopted = maps_dir.join("SERVICES").exists();
    let layouts = Layouts::new(dir.clone(), maps_dir.clone());
    let numbers = layouts.adopt(&sizes)?;
    let mut loader = EbpfLoader::new();
    // Nothing in the programs is relocated by the kernel's types, which take a second to read.
    loader.btf(None).default_map_pin_directory(&maps_dir);
    let reads_kernel = reads_kernel();
    let as_programs_see_it = u32::from(reads_kernel);
    loader.override_global("READS_KERNEL", &as_programs_see_it, true);
    for (name, size) in &sizes.0 {
        loader.map_max_entries(name, *size);
    }
    let mut ebpf = loader.load(OBJECT).context("make the maps")?;
    load(&mut ebpf)?;
    let mut maps = Vec::new();
    for name in ALL {
        let fd = bpf::open_pinned(&maps_dir.join(name))?;
        maps.push((name, Map::new(fd, name)?));
    }
    let object = Object {
        ebpf,
        dir,
        layouts,
        reads_kernel,
        attach: place.attach.unwrap_or_else(|| {
            if bpf::has_tcx() {
                Attach::Tcx
            } else {
                Attach::Clsact
            }
        }),
        adopted,
        numbers,
        _lock: lock,
    };
    Ok((object, Maps(maps)))
}

/// Whether programs at sockets may read the kernel's memory, as they do to find a pod's address.
fn reads_kernel() -> bool {
    let at_sockets = ProgramType::CgroupSockAddr;
    let may = is_helper_supported(at_sockets, BpfHelper::BPF_FUNC_probe_read_kernel);
    // A kernel without tracing knows the helper's name only, and aya then writes an older one there.
    may.unwrap_or(false) && aya::features().bpf_probe_read_kernel()
}

/// Sees to it that one process alone writes the maps of a node: two would undo each other's work.
/// The kernel lets go of the lock with the process, and with programs that it was about to start.
fn lock(dir: &Path) -> Result<Flock<File>> {
    let give_up = Instant::now() + LOCK_WAIT;
    loop {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        match try_lock(dir)? {
            Locked::Ours(lock) => return Ok(lock),
            Locked::Gone => {}
            Locked::Others(_) if Instant::now() < give_up => std::thread::park_timeout(LOCK_REST),
            Locked::Others(who) => bail!(
                "{} is in use by {who}: two cannot serve one node; give each node its own --ebpf-pin-dir or --hostname-override",
                dir.display()
            ),
        }
    }
}

/// Whose the lock on a node's directory is.
enum Locked {
    Ours(Flock<File>),
    /// Another process's, as people are told.
    Others(String),
    /// Nobody's: the directory is not there (any more).
    Gone,
}

fn try_lock(dir: &Path) -> Result<Locked> {
    let file = match File::open(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Locked::Gone),
        file => file.with_context(|| format!("open {}", dir.display()))?,
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        // Whoever had it may have taken the directory away, and somebody may have made it anew.
        Ok(lock) => match (fs::metadata(dir), lock.metadata()) {
            (Ok(there), Ok(ours)) if there.ino() == ours.ino() => Ok(Locked::Ours(lock)),
            _ => Ok(Locked::Gone),
        },
        Err((file, Errno::EWOULDBLOCK)) => {
            Ok(Locked::Others(match linux::process::flock_holder(&file) {
                Some(pid) => format!("another process ({pid})"),
                None => "another process".to_owned(),
            }))
        }
        Err((_, error)) => bail!("lock {}: {}", dir.display(), error.desc()),
    }
}

/// Loads all programs but that for XDP, which not everybody wants: several at a time, as the kernel
/// takes long to check each. Says of each that it refuses why.
fn load(ebpf: &mut Ebpf) -> Result<()> {
    let waiting = Mutex::new(ebpf.programs_mut());
    let next = || {
        waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next()
    };
    let work = || {
        let mut refused = Vec::new();
        while let Some((name, program)) = next() {
            let result = match program {
                Program::CgroupSockAddr(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => continue,
            };
            if let Err(error) = result {
                refused.push(format!("{name}: {}", chain(&error)));
            }
        }
        refused
    };
    let mut refused = std::thread::scope(|scope| {
        let others: Vec<_> = (1..LOADERS).map(|_| scope.spawn(work)).collect();
        let mut refused = work();
        for other in others {
            match other.join() {
                Ok(more) => refused.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        refused
    });
    if refused.is_empty() {
        return Ok(());
    }
    refused.sort_unstable();
    bail!("the kernel refuses programs: {}", refused.join("; "))
}

/// An error with its causes, the last lines of the verifier's log among them.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.len().saturating_sub(12);
    if tail > 0 {
        let first = lines.first().copied().unwrap_or_default();
        return format!("{first} .. {}", lines[tail..].join(" / "));
    }
    lines.join(" / ")
}

/// Mounts a BPF file system where none is.
fn ensure_bpffs(dir: &Path) -> Result<()> {
    let mounts = linux::mount::mounts()?;
    let covers = |m: &&linux::mount::Mount| dir.starts_with(&m.target);
    let last = mounts
        .iter()
        .filter(covers)
        .max_by_key(|m| m.target.as_os_str().len());
    if last.is_none_or(|m| m.fstype != "bpf") {
        let root = Path::new("/sys/fs/bpf");
        let at = if dir.starts_with(root) { root } else { dir };
        fs::create_dir_all(at).with_context(|| format!("make {}", at.display()))?;
        linux::mount::mount("bpf", at, "bpf", nix::mount::MsFlags::empty(), None)?;
    }
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))
}

impl Object {
    /// Directory with the links.
    pub fn links_dir(&self) -> PathBuf {
        self.dir.join(LINKS)
    }

    /// The programs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// What to do when a live process serves with the pins that are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InUse {
    /// Give up soon, and say who it is.
    Refuse,
    /// Say so, and wait until that process has ended, however long.
    Wait,
}

/// Takes away all pins of a node: with the last reference the kernel lets go of everything. Those of a
/// live process are left to it: its services would be gone without its noticing.
///
/// # Errors
/// They cannot be removed; a live process serves with them.
pub fn remove(place: &Place, in_use: InUse) -> Result<()> {
    let dir = node_dir(place);
    let give_up = Instant::now() + LOCK_WAIT;
    let mut told = false;
    let _lock = loop {
        let who = match try_lock(&dir)? {
            Locked::Ours(lock) => break lock,
            Locked::Gone => return Ok(()),
            Locked::Others(who) => who,
        };
        if Instant::now() < give_up {
            std::thread::park_timeout(LOCK_REST);
            continue;
        }
        if in_use == InUse::Refuse {
            bail!(
                "{} is in use by {who}, which serves in mode ebpf: end it first",
                dir.display()
            );
        }
        if !told {
            tracing::warn!(
                "{} is in use by {who}, which serves in mode ebpf: it is taken away when that has ended",
                dir.display()
            );
            told = true;
        }
        std::thread::park_timeout(IN_USE_REST);
    };
    remove_pins(place)
}

/// As [`remove`], for the process that has the lock.
///
/// # Errors
/// They cannot be removed.
pub fn remove_pins(place: &Place) -> Result<()> {
    let dir = node_dir(place);
    clsact::detach_all(&dir.join(LINKS))?;
    match fs::remove_dir_all(&dir) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("remove {}", dir.display())),
    }
    // The directory of all nodes, when this was the last.
    match fs::remove_dir(&place.pin_dir) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(Errno::ENOTEMPTY as i32) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("remove {}", place.pin_dir.display())),
    }
}

/// The program's descriptor.
///
/// # Errors
/// It is not loaded.
pub fn program_fd(program: &Program) -> Result<std::os::fd::BorrowedFd<'_>> {
    let fd = match program {
        Program::CgroupSockAddr(program) => program.fd(),
        Program::SchedClassifier(program) => program.fd(),
        Program::Xdp(program) => program.fd(),
        _ => bail!("a program of another type"),
    };
    Ok(fd.context("use a program")?.as_fd())
}
