//! Files that change all at once: `..data` is a symbolic link to a directory named by time, and every
//! visible name is a link through it. The layout of upstream's `AtomicWriter`, which programs rely on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

/// The link all visible names go through.
const DATA: &str = "..data";
/// The new link before it takes the old one's place.
const DATA_NEW: &str = "..data_tmp";

/// One file's contents and permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileData {
    /// Contents.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, FileData>;

/// True when `path` may name a file of a volume: relative, without `..`, not beginning with `..`.
pub fn is_valid_path(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty() && !path.starts_with("..") && parts.all(|c| matches!(c, Component::Normal(_)))
}

/// Makes the volume at `dir` show exactly `payload`. Nothing is touched when it does already.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> io::Result<()> {
    let old = fs::read_link(dir.join(DATA)).ok();
    if old
        .as_ref()
        .is_some_and(|old| shows(&dir.join(old), payload))
    {
        return link_names(dir, payload);
    }
    let fresh = fresh_name(dir, now);
    let base = dir.join(&fresh);
    fs::create_dir(&base)?;
    fs::set_permissions(&base, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        write_file(&base, path, file)?;
    }
    if let Some(group) = group {
        super::owner::give_to_group(&base, group, true)?;
    }
    let link = dir.join(DATA_NEW);
    match fs::remove_file(&link) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    symlink(&fresh, &link)?;
    fs::rename(&link, dir.join(DATA))?;
    link_names(dir, payload)?;
    remove_stale_names(dir, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(())
}

fn fresh_name(dir: &Path, now: Timestamp) -> PathBuf {
    let base = format!("..{}", now.strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let mut n = 0u32;
    loop {
        let name = PathBuf::from(format!("{base}{n}"));
        if !dir.join(&name).exists() {
            return name;
        }
        n += 1;
    }
}

fn write_file(base: &Path, path: &str, file: &FileData) -> io::Result<()> {
    let full = base.join(path);
    if let Some(parent) = full.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&full, &file.bytes)?;
    fs::set_permissions(&full, fs::Permissions::from_mode(file.mode))
}

/// True when the directory holds exactly these files.
fn shows(base: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    let listed = list(base, Path::new(""), &mut found).is_ok();
    let wanted: BTreeSet<_> = payload.keys().cloned().collect();
    let same = |(path, file): (&String, &FileData)| {
        fs::read(base.join(path)).is_ok_and(|bytes| bytes == file.bytes)
    };
    listed && found == wanted && payload.iter().all(same)
}

fn list(base: &Path, below: &Path, found: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(base.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(base, &path, found)?;
        } else {
            found.insert(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// The first part of each path: what is visible in the volume itself.
fn top_names(payload: &Payload) -> BTreeSet<&str> {
    payload
        .keys()
        .filter_map(|path| path.split('/').next())
        .collect()
}

fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in top_names(payload) {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    Ok(())
}

fn remove_stale_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted = top_names(payload);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| FileData {
            bytes: text.into(),
            mode: 0o644,
        };
        files
            .iter()
            .map(|(p, t)| ((*p).to_owned(), file(t)))
            .collect()
    }

    fn seen(dir: &Path) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("..") {
                continue;
            }
            let path = entry.path();
            if path.is_dir() {
                for (k, v) in seen(&path) {
                    all.insert(format!("{name}/{k}"), v);
                }
            } else {
                all.insert(name, fs::read_to_string(path).unwrap());
            }
        }
        all
    }

    #[test]
    fn files_change_all_at_once_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for files in [
            &[("a", "1"), ("b/c", "2")][..],
            &[("a", "1"), ("b/c", "2")],
            &[("a", "3"), ("b/d", "4"), ("e", "5")],
            &[("e", "5")],
            &[],
        ] {
            write(dir, &payload(files), None, Timestamp::now()).unwrap();
            let expect: BTreeMap<_, _> = files
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            assert_eq!(seen(dir), expect);
            let hidden = fs::read_dir(dir)
                .unwrap()
                .flatten()
                .filter(|e| e.file_name().to_string_lossy().starts_with(".."))
                .count();
            assert_eq!(hidden, 2, "..data and one directory");
        }
    }

    #[test]
    fn nothing_is_touched_without_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let p = payload(&[("a", "1")]);
        write(dir.path(), &p, None, Timestamp::now()).unwrap();
        let before = fs::read_link(dir.path().join(DATA)).unwrap();
        write(dir.path(), &p, None, Timestamp::now()).unwrap();
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), before);
    }

    #[test]
    fn paths_stay_inside() {
        for (path, ok) in [
            ("a", true),
            ("a/b", true),
            ("", false),
            ("../a", false),
            ("a/../b", false),
            ("/a", false),
            ("..a", false),
        ] {
            assert_eq!(is_valid_path(path), ok, "{path}");
        }
    }
}
