//! Maps of other layouts (versions or sizes) that earlier processes have left: using them on, copying
//! what running connections need, taking them away. What [`migrate`] says of them is done here.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use linux::bpf::{self, Map};

use super::migrate::{self, MAPS, Numbers, TAKEN_OVER};
use super::object::Maps;
use super::observe::entries;
use super::sizes::Sizes;

/// Directories with pinned maps of a node.
#[derive(Debug)]
pub struct Layouts {
    /// The node's directory.
    dir: PathBuf,
    /// The one of ours in there.
    ours: PathBuf,
}

impl Layouts {
    /// Of a node's directory, with the one of ours in there.
    pub fn new(dir: PathBuf, ours: PathBuf) -> Self {
        Self { dir, ours }
    }

    /// Directories with maps of other layouts.
    fn others(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let is_other = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(MAPS) && *path != self.ours
        };
        entries.map(|entry| entry.path()).filter(is_other).collect()
    }

    /// Uses maps of other layouts on that are as ours would be, and reads under which numbers services are
    /// known there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn adopt(&self, sizes: &Sizes) -> linux::Result<Numbers> {
        let mut numbers = Numbers::new();
        for old in self.others() {
            if !migrate::is_understood(version(&old)) {
                continue;
            }
            let mut theirs = BTreeMap::new();
            for name in migrate::names().filter(|name| !self.ours.join(name).exists()) {
                if let Some(map) = open_map(&old, name)? {
                    theirs.insert(name, map);
                }
            }
            let infos = theirs.iter().map(|(name, map)| (*name, *map.info()));
            for name in migrate::shared(&infos.collect(), sizes) {
                if let Some(map) = theirs.get(name) {
                    map.pin(&self.ours.join(name))?;
                }
            }
            if let Some(map) = open_map(&old, "FRONTENDS")? {
                numbers.append(&mut migrate::numbers(entries(&map)?));
            }
        }
        Ok(numbers)
    }

    /// Copies what running connections need from maps of other sizes. What was copied already, as `copied`
    /// says, is not copied again: called before the links are led to our programs until nearly nothing
    /// is new, and once when they are. Returns how many entries were new.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn copy_new(&self, maps: &Maps, copied: &mut HashSet<u64>) -> linux::Result<usize> {
        let mut new = 0;
        for old in self.others() {
            if !migrate::is_understood(version(&old)) {
                continue;
            }
            for name in TAKEN_OVER {
                if let Some(from) = open_map(&old, name)? {
                    new += copy(&from, name, maps.get(name), copied)?;
                }
            }
        }
        Ok(new)
    }

    /// Tells of maps whose layout is not understood. Connections that only they know are not served.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn tell_not_understood(&self) -> linux::Result<()> {
        for old in self.others() {
            if migrate::is_understood(version(&old)) {
                continue;
            }
            let mut lost = Vec::new();
            for name in TAKEN_OVER {
                if let Some(map) = open_map(&old, name)? {
                    lost.push(format!("{name} {}", map.count()?));
                }
            }
            tracing::warn!(
                "{}: of a layout that this version does not know, perhaps of a newer one: what it remembers of running connections is lost ({})",
                old.display(),
                lost.join(", ")
            );
        }
        Ok(())
    }

    /// Takes away maps of other layouts, which no program uses any more.
    pub fn forget_others(&self) {
        for dir in self.others() {
            if let Err(error) = fs::remove_dir_all(&dir) {
                tracing::warn!("remove {}: {error}", dir.display());
            }
        }
    }
}

/// The version of a directory's layout.
fn version(dir: &Path) -> Option<u32> {
    migrate::version(&dir.file_name()?.to_string_lossy())
}

/// A pinned map; `None`: there is none of that name.
fn open_map(dir: &Path, name: &str) -> linux::Result<Option<Map>> {
    match bpf::open_pinned(&dir.join(name)) {
        Ok(fd) => Map::new(fd, name).map(Some),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

fn copy(from: &Map, name: &str, to: &Map, copied: &mut HashSet<u64>) -> linux::Result<usize> {
    let (old, new) = (from.info(), to.info());
    if old.id == new.id {
        return Ok(0);
    }
    if (old.key_size, old.value_size) != (new.key_size, new.value_size) {
        tracing::warn!("{name}: entries of another length are not taken over");
        return Ok(0);
    }
    let mut fresh = Vec::new();
    from.read_many(|key, value| {
        if copied.insert(hash(name, key)) {
            fresh.push((key.to_vec(), value.to_vec()));
        }
    })?;
    for (key, value) in &fresh {
        to.add(key, value)?;
    }
    Ok(fresh.len())
}

/// Stands for an entry: a set of keys would take as much memory as the map.
fn hash(name: &str, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, key).hash(&mut hasher);
    hasher.finish()
}
