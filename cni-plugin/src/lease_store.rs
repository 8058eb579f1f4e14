//! The files of leases, laid out as host-local's: `DATADIR/NETWORK/ADDRESS` holds
//! `CONTAINERID\r\nIFNAME`, `last_reserved_ip.N` the address that set N gave last, `lock` is locked
//! by whoever reads or writes. Beside them `boot_id` (leases of an earlier boot belong to nobody) and
//! one `owner.HASH` an owner, which lists its addresses, so that finding them does not read every
//! lease. It is written before the leases and believed only as far as they agree.
//!
//! A lease appears whole or not at all (written aside, then renamed), so a process killed at any
//! instruction leaves either nothing or a lease that names its owner.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use api::cni::Attachment;

use crate::ipam::Lease;
use crate::plan::fnv1a;
use crate::request::is_identifier;

/// Where the kernel tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which boot the leases are of.
const BOOT_FILE: &str = "boot_id";

/// What the name of a list of an owner's addresses begins with.
const OWNER: &str = "owner.";

/// A new file before it gets its name. One is enough, as the directory is locked.
const ASIDE: &str = ".new";

/// How long to wait for the lock. It is held for a fraction of a millisecond at a time.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// First pause between two tries; it doubles each time.
const LOCK_PAUSE: Duration = Duration::from_micros(100);

/// Longest pause between two tries.
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(5);

/// What stands between container and interface.
const LINE_BREAK: &str = "\r\n";

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}: {source}", path.display())]
pub struct LeaseError {
    op: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The leases of one network, locked.
#[derive(Debug)]
pub struct LeaseStore {
    dir: PathBuf,
    /// No lease was ever given here, as far as the directory shows.
    fresh: bool,
    /// How many more changes of files are made before the process is killed.
    #[cfg(test)]
    fuse: std::cell::Cell<usize>,
    /// Held until dropped.
    _lock: File,
}

fn fail(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LeaseError {
    move |source| LeaseError {
        op,
        path: path.to_owned(),
        source,
    }
}

impl LeaseError {
    /// Whether trying again may help.
    pub fn is_passing(&self) -> bool {
        self.source.kind() == io::ErrorKind::TimedOut
    }
}

impl LeaseStore {
    /// Opens and locks the leases of `network`, making the directory if need be. Waits for whoever
    /// has the lock.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn open(data_dir: &Path, network: &str) -> Result<Self, LeaseError> {
        let dir = data_dir.join(network);
        if !dir.is_dir() {
            fs::create_dir_all(&dir).map_err(fail("make directory", &dir))?;
        }
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        Self::lock(dir)?.forget_earlier_boot(boot.trim())
    }

    /// As [`LeaseStore::open`], but `None` where no lease was ever given.
    ///
    /// # Errors
    /// The directory cannot be read or locked.
    pub fn open_existing(data_dir: &Path, network: &str) -> Result<Option<Self>, LeaseError> {
        let dir = data_dir.join(network);
        if dir.is_dir() {
            Self::lock(dir).map(Some)
        } else {
            Ok(None)
        }
    }

    fn lock(dir: PathBuf) -> Result<Self, LeaseError> {
        let path = dir.join("lock");
        let open = || {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            lock_in_time(&file)?;
            Ok(file)
        };
        let lock = open().map_err(fail("lock", &path))?;
        Ok(Self {
            dir,
            fresh: false,
            #[cfg(test)]
            fuse: std::cell::Cell::new(usize::MAX),
            _lock: lock,
        })
    }

    /// Drops all leases when they were given before the machine last started: their containers
    /// are gone, and nobody will ever ask to delete them.
    fn forget_earlier_boot(mut self, boot: &str) -> Result<Self, LeaseError> {
        let before = self.read(BOOT_FILE)?;
        if boot.is_empty() || before.as_deref() == Some(boot) {
            return Ok(self);
        }
        if before.is_none() {
            // The first lease writes it down, and until then nothing was ever given here.
            self.fresh = self.taken()?.is_empty();
            return Ok(self);
        }
        for (address, owner) in self.all()? {
            self.evict(address, &owner)?;
        }
        self.write(BOOT_FILE, boot)?;
        Ok(self)
    }

    /// Whether no lease was ever given here, as far as the directory shows.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes down that the directory knows of this boot.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn know_boot(&self) -> Result<(), LeaseError> {
        if self.read(BOOT_FILE)?.is_none() {
            let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
            self.write(BOOT_FILE, boot.trim())?;
        }
        Ok(())
    }

    /// Names of the networks that have a directory in `data_dir`, sorted.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn networks(data_dir: &Path) -> Result<Vec<String>, LeaseError> {
        let entries = match fs::read_dir(data_dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(fail("list", data_dir))?,
        };
        let dirs = entries.flatten().filter(|entry| entry.path().is_dir());
        let mut names: Vec<String> = dirs
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// How long ago a lease was written; `None` where that cannot be told.
    pub fn age(&self, address: IpAddr) -> Option<Duration> {
        let meta = fs::metadata(self.dir.join(address.to_string())).ok()?;
        meta.modified().ok()?.elapsed().ok()
    }

    /// Gives a lease to `owner`, whoever had it.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn assign(&self, address: IpAddr, owner: &Attachment) -> Result<(), LeaseError> {
        let mut addresses = self.of(owner)?;
        addresses.retain(|other| *other != address);
        addresses.push(address);
        // Something that is no file may stand in the way.
        let path = self.dir.join(address.to_string());
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(fail("remove", &path))?;
        }
        let text = format!("{}{LINE_BREAK}{}", owner.container_id, owner.ifname);
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let list = format!("{text}{LINE_BREAK}{}", list.join(LINE_BREAK));
        self.write(&owner_file(owner), &list)?;
        self.write(&address.to_string(), &text)
    }

    /// All addresses that are leased.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn taken(&self) -> Result<BTreeSet<IpAddr>, LeaseError> {
        let mut taken = BTreeSet::new();
        for entry in fs::read_dir(&self.dir).map_err(fail("list", &self.dir))? {
            let entry = entry.map_err(fail("list", &self.dir))?;
            taken.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<IpAddr>().ok()),
            );
        }
        Ok(taken)
    }

    /// The address that set number `set` gave last.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn last(&self, set: usize) -> Result<Option<IpAddr>, LeaseError> {
        let text = self.read(&format!("last_reserved_ip.{set}"))?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// All leases with their owners.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> Result<BTreeMap<IpAddr, Attachment>, LeaseError> {
        let mut all = BTreeMap::new();
        for address in self.taken()? {
            // One that cannot be read names nobody, and does not hide the others.
            let text = self.read(&address.to_string()).ok().flatten();
            all.insert(address, parse_owner(&text.unwrap_or_default()));
        }
        Ok(all)
    }

    /// The addresses of one owner that we have leased to it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn of(&self, owner: &Attachment) -> Result<Vec<IpAddr>, LeaseError> {
        let list = self.read(&owner_file(owner))?.unwrap_or_default();
        let mut owned = Vec::new();
        for address in list
            .lines()
            .filter_map(|line| line.trim().parse::<IpAddr>().ok())
        {
            let lease = self.read(&address.to_string())?;
            if lease.is_some_and(|text| belongs(&parse_owner(&text), owner)) {
                owned.push(address);
            }
        }
        Ok(owned)
    }

    /// The addresses of one owner, whoever has leased them: reads every lease where there is no
    /// list of the owner's.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn of_anyone(&self, owner: &Attachment) -> Result<Vec<IpAddr>, LeaseError> {
        if self.dir.join(owner_file(owner)).exists() {
            return self.of(owner);
        }
        let all = self.all()?;
        let owned = all.into_iter().filter(|(_, other)| belongs(other, owner));
        Ok(owned.map(|(address, _)| address).collect())
    }

    /// Writes down that `owner` has `leases`, of the sets in their order.
    ///
    /// # Errors
    /// A file cannot be written; leases written before it stay and name their owner.
    pub fn acquire(&self, owner: &Attachment, leases: &[Lease]) -> Result<(), LeaseError> {
        let text = format!("{}{LINE_BREAK}{}", owner.container_id, owner.ifname);
        let addresses: Vec<String> = leases.iter().map(|l| l.address.ip().to_string()).collect();
        let list = format!("{text}{LINE_BREAK}{}", addresses.join(LINE_BREAK));
        self.know_boot()?;
        self.write(&owner_file(owner), &list)?;
        for (set, lease) in leases.iter().enumerate() {
            let address = lease.address.ip().to_string();
            self.write(&address, &text)?;
            self.write(&format!("last_reserved_ip.{set}"), &address)?;
        }
        Ok(())
    }

    /// Gives the addresses of `owner` back; tells which they were. None is no error.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn release(&self, owner: &Attachment) -> Result<Vec<IpAddr>, LeaseError> {
        let owned = self.of_anyone(owner)?;
        for address in &owned {
            self.remove(*address)?;
        }
        // Last, so that a process killed before it finds the rest again.
        self.remove_file(&owner_file(owner))?;
        Ok(owned)
    }

    /// Gives an address back, with what lists it.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn evict(&self, address: IpAddr, owner: &Attachment) -> Result<(), LeaseError> {
        self.remove(address)?;
        if self.of(owner)?.is_empty() {
            self.remove_file(&owner_file(owner))
        } else {
            Ok(())
        }
    }

    /// Removes lists of owners without a lease: a process killed in between left them.
    ///
    /// # Errors
    /// The directory cannot be read, a file cannot be removed.
    pub fn sweep(&self) -> Result<(), LeaseError> {
        let owners: BTreeSet<String> = self.all()?.values().map(owner_file).collect();
        for entry in fs::read_dir(&self.dir).map_err(fail("list", &self.dir))? {
            let entry = entry.map_err(fail("list", &self.dir))?;
            if let Ok(name) = entry.file_name().into_string()
                && name.starts_with(OWNER)
                && !owners.contains(&name)
            {
                self.remove_file(&name)?;
            }
        }
        Ok(())
    }

    fn remove(&self, address: IpAddr) -> Result<(), LeaseError> {
        self.remove_file(&address.to_string())
    }

    /// Stands before each change of a file: a process can be killed there.
    fn step(&self) -> io::Result<()> {
        #[cfg(test)]
        match self.fuse.get().checked_sub(1) {
            Some(left) => self.fuse.set(left),
            None => return Err(io::Error::other("killed")),
        }
        Ok(())
    }

    fn remove_file(&self, name: &str) -> Result<(), LeaseError> {
        let path = self.dir.join(name);
        self.step().map_err(fail("remove", &path))?;
        if path.is_dir() {
            return fs::remove_dir_all(&path).map_err(fail("remove", &path));
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fail("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> Result<Option<String>, LeaseError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(fail("read", &path)(e)),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), LeaseError> {
        let (aside, path) = (self.dir.join(ASIDE), self.dir.join(name));
        let write = || {
            self.step()?;
            let mut file = File::create(&aside)?;
            self.step()?;
            file.write_all(text.as_bytes())?;
            self.step()?;
            fs::rename(&aside, &path)
        };
        write().map_err(fail("write", &path))
    }
}

/// Locks the file, waiting for whoever has it, but not for ever.
fn lock_in_time(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_WAIT;
    let mut pause = LOCK_PAUSE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                let why = format!("another process has held it for {} s", LOCK_WAIT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(pause),
        }
        pause = (pause * 2).min(LOCK_PAUSE_MAX);
    }
}

/// The file that lists the addresses of `owner`.
fn owner_file(owner: &Attachment) -> String {
    format!(
        "{OWNER}{:016x}",
        fnv1a(&[&owner.container_id, &owner.ifname])
    )
}

/// The owner that a lease names; nobody if it says something that is no name.
fn parse_owner(text: &str) -> Attachment {
    let (container, ifname) = text
        .trim()
        .split_once(LINE_BREAK)
        .unwrap_or((text.trim(), ""));
    if !is_identifier(container) {
        return Attachment::default();
    }
    Attachment {
        container_id: container.into(),
        ifname: ifname.into(),
    }
}

/// Whether a lease is `owner`'s. Old files name the container only.
fn belongs(lease: &Attachment, owner: &Attachment) -> bool {
    lease.container_id == owner.container_id
        && (lease.ifname.is_empty() || lease.ifname == owner.ifname)
}

#[cfg(test)]
mod killed;
#[cfg(test)]
mod tests;
