//! Maps as bytes, read and written many entries at a time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::{Attr, address, address_mut, bpf, info_by_fd, owned, pair, pin, possible_cpus, raw};
use crate::error::{Error, Result};

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const MAP_DELETE_BATCH: u32 = 27;

/// `BPF_NOEXIST`: only a new entry.
const NO_EXIST: u64 = 1;

/// Entries written by one call.
const BATCH_MAX: usize = 16_384;

/// Entries read by one call, as long as each bucket of the map has fewer.
const READ_BATCH: usize = 4096;

/// The leading fields of `struct bpf_map_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MapInfo {
    /// Type, of `enum bpf_map_type`.
    pub kind: u32,
    /// Number by which the kernel knows it.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries that fit.
    pub max_entries: u32,
    /// Flags of its creation.
    pub flags: u32,
}

/// A map, as bytes.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    name: String,
    info: MapInfo,
}

impl Map {
    /// Of a descriptor; `name` is for errors.
    ///
    /// # Errors
    /// It is no map.
    pub fn new(fd: OwnedFd, name: &str) -> Result<Self> {
        let mut info = [MapInfo::default()];
        info_by_fd(fd.as_fd(), &mut info)
            .map_err(|e| Error::new(format!("read about map {name}"), e))?;
        Ok(Self {
            fd,
            name: name.to_owned(),
            info: info[0],
        })
    }

    /// Makes a map that is like `info` in type, sizes and flags.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn create(info: &MapInfo, name: &str) -> Result<Self> {
        let mut attr = Attr::new(&[
            pair(info.kind, info.key_size),
            pair(info.value_size, info.max_entries),
            pair(info.flags, 0),
        ]);
        let fd =
            bpf(MAP_CREATE, &mut attr).map_err(|e| Error::new(format!("make map {name}"), e))?;
        Self::new(owned(fd), name)
    }

    /// Pins it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn pin(&self, path: &Path) -> Result<()> {
        pin(self.fd.as_fd(), path)
    }

    /// What the kernel says of it.
    pub fn info(&self) -> &MapInfo {
        &self.info
    }

    fn error(&self, op: &str, error: io::Error) -> Error {
        Error::new(format!("{op} map {}", self.name), error)
    }

    fn check(&self, key: &[u8], value: usize) -> io::Result<()> {
        let fits = key.len() == self.info.key_size as usize && value == self.value_len();
        if fits {
            return Ok(());
        }
        let text = format!(
            "keys and values of {} and {value} bytes do not fit",
            key.len()
        );
        Err(io::Error::other(text))
    }

    /// Bytes of a value as user space sees it: for maps with one for each CPU, all of them.
    pub fn value_len(&self) -> usize {
        let one = self.info.value_size as usize;
        if is_per_cpu(self.info.kind) {
            one.next_multiple_of(8) * possible_cpus()
        } else {
            one
        }
    }

    /// Adds or replaces an entry.
    ///
    /// # Errors
    /// The kernel's refusal; `E2BIG` or `ENOSPC` when the map is full.
    pub fn update(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(key, value, 0)
            .map_err(|e| self.error("write", e))
    }

    /// Adds an entry; false when there is one of that key, which stays as it is.
    ///
    /// # Errors
    /// As [`Map::update`].
    pub fn add(&self, key: &[u8], value: &[u8]) -> Result<bool> {
        match self.write(key, value, NO_EXIST) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(self.error("write", e)),
        }
    }

    fn write(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        self.check(key, value.len())?;
        let fd = u64::from(raw(self.fd.as_fd()));
        let mut patience = Patience::default();
        loop {
            let mut attr = Attr::new(&[fd, address(key), address(value), flags]);
            match bpf(MAP_UPDATE_ELEM, &mut attr) {
                Ok(_) => return Ok(()),
                Err(e) if patience.has_waited(&e) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes an entry away; whether there was one.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete(&self, key: &[u8]) -> Result<bool> {
        self.check(key, self.value_len())
            .map_err(|e| self.error("delete from", e))?;
        let mut attr = Attr::new(&[u64::from(raw(self.fd.as_fd())), address(key)]);
        match bpf(MAP_DELETE_ELEM, &mut attr) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(self.error("delete from", e)),
        }
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.check(key, self.value_len())
            .map_err(|e| self.error("read", e))?;
        let mut value = vec![0; self.value_len()];
        let fd = u64::from(raw(self.fd.as_fd()));
        let mut attr = Attr::new(&[fd, address(key), address_mut(&mut value)]);
        match bpf(MAP_LOOKUP_ELEM, &mut attr) {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(self.error("read", e)),
        }
    }

    /// All keys, in the kernel's order. Keys that come or go meanwhile may be there or not.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn keys(&self) -> Result<Vec<Vec<u8>>> {
        let size = self.info.key_size as usize;
        let mut keys: Vec<Vec<u8>> = Vec::new();
        // A key that is deleted between two calls starts the walk again: the bound ends that.
        let limit = self.info.max_entries as usize * 2;
        while keys.len() < limit {
            let mut next = vec![0; size];
            let from = keys.last().map_or(0, |key| address(key));
            let fd = u64::from(raw(self.fd.as_fd()));
            let mut attr = Attr::new(&[fd, from, address_mut(&mut next)]);
            match bpf(MAP_GET_NEXT_KEY, &mut attr) {
                Ok(_) => keys.push(next),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => break,
                Err(e) => return Err(self.error("list", e)),
            }
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    /// How many entries there are.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn count(&self) -> Result<usize> {
        if !is_by_hash(self.info.kind) {
            return Ok(self.keys()?.len());
        }
        let mut count = 0;
        self.read_many(|_, _| count += 1)?;
        Ok(count)
    }

    /// All entries, in no order.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn entries(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut entries = Vec::new();
        if is_by_hash(self.info.kind) {
            self.read_many(|key, value| entries.push((key.to_vec(), value.to_vec())))?;
            return Ok(entries);
        }
        for key in self.keys()? {
            if let Some(value) = self.lookup(&key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }

    /// Calls `each` with every entry, many read at a time. Entries that come or go meanwhile may be
    /// there or not. Only for maps by hash; it does not count as use of an entry.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn read_many(&self, mut each: impl FnMut(&[u8], &[u8])) -> Result<()> {
        let (key, value) = (self.info.key_size as usize, self.value_len());
        let mut room = READ_BATCH;
        let mut from: Option<[u64; 1]> = None;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.resize(room * key, 0);
            values.resize(room * value, 0);
            let mut next = [0_u64];
            let count = u32::try_from(room).unwrap_or(u32::MAX);
            let mut attr = Attr::new(&[
                from.as_ref().map_or(0, |from| address(from)),
                address_mut(&mut next),
                address_mut(&mut keys),
                address_mut(&mut values),
                pair(count, raw(self.fd.as_fd())),
                0,
                0,
            ]);
            let end = match bpf(MAP_LOOKUP_BATCH, &mut attr) {
                Ok(_) => false,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                    room *= 2;
                    continue;
                }
                Err(e) => return Err(self.error("read", e)),
            };
            let found = (attr.low(4) as usize).min(room);
            let entries = keys.chunks_exact(key).zip(values.chunks_exact(value));
            for (key, value) in entries.take(found) {
                each(key, value);
            }
            if end {
                return Ok(());
            }
            from = Some(next);
        }
    }

    /// Adds or replaces entries, in order, many at a time. `keys` and `values` hold them end to end.
    ///
    /// # Errors
    /// The kernel's refusal; those before the one that it is about are written.
    pub fn update_many(&self, keys: &[u8], values: &[u8]) -> Result<()> {
        self.batch(MAP_UPDATE_BATCH, "write", keys, Some(values))
    }

    /// Takes entries away that are there, many at a time.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_many(&self, keys: &[u8]) -> Result<()> {
        match self.batch(MAP_DELETE_BATCH, "delete from", keys, None) {
            // One was gone: the rest goes one by one.
            Err(e) if e.is_not_found() => keys
                .chunks(self.info.key_size as usize)
                .try_for_each(|key| self.delete(key).map(drop)),
            result => result,
        }
    }

    fn batch(&self, command: u32, op: &str, keys: &[u8], values: Option<&[u8]>) -> Result<()> {
        let (key, value) = (self.info.key_size as usize, self.value_len());
        let count = keys.len() / key;
        if keys.len() != count * key || values.is_some_and(|v| v.len() != count * value) {
            return Err(self.error(op, io::Error::other("a batch with half an entry")));
        }
        let mut patience = Patience::default();
        let mut from = 0;
        while from < count {
            let n = BATCH_MAX.min(count - from);
            let keys = &keys[from * key..(from + n) * key];
            let values = values.map(|v| &v[from * value..(from + n) * value]);
            let many = u32::try_from(n).unwrap_or_default();
            let mut attr = Attr::new(&[
                0,
                0,
                address(keys),
                values.map_or(0, address),
                pair(many, raw(self.fd.as_fd())),
                0,
                0,
            ]);
            match bpf(command, &mut attr) {
                Ok(_) => from += n,
                Err(e) => {
                    let done = (attr.low(4) as usize).min(n);
                    if done > 0 && done < n {
                        patience = Patience::default();
                    }
                    if !patience.has_waited(&e) {
                        return Err(self.error(op, e));
                    }
                    from += if done < n { done } else { 0 };
                }
            }
        }
        Ok(())
    }
}

/// Elements of maps by hash are taken from a small store that the kernel refills a moment later: it
/// may be empty for a moment when many are written (`kernel/bpf/memalloc.c`).
#[derive(Debug, Default)]
struct Patience(u32);

impl Patience {
    /// How often in a row the kernel may have no memory, and how long it is left alone each time.
    const TRIES: u32 = 250;
    const REST: Duration = Duration::from_millis(4);

    /// Waits where that may help.
    fn has_waited(&mut self, error: &io::Error) -> bool {
        if error.raw_os_error() != Some(libc::ENOMEM) || self.0 == Self::TRIES {
            return false;
        }
        self.0 += 1;
        std::thread::park_timeout(Self::REST);
        true
    }
}

/// `BPF_MAP_TYPE_PERCPU_HASH`, `PERCPU_ARRAY` and `LRU_PERCPU_HASH`.
fn is_per_cpu(kind: u32) -> bool {
    matches!(kind, 5 | 6 | 10)
}

/// `BPF_MAP_TYPE_HASH`, `PERCPU_HASH`, `LRU_HASH` and `LRU_PERCPU_HASH`.
fn is_by_hash(kind: u32) -> bool {
    matches!(kind, 1 | 5 | 9 | 10)
}
