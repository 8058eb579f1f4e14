//! Who a program runs as: from what the pod asks for, the image's USER and the image's own
//! `/etc/passwd` and `/etc/group`.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::types::User;

/// Larger files are not read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// An image's user and group files; empty where it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// `/etc/passwd`
    pub passwd: String,
    /// `/etc/group`
    pub group: String,
}

/// A user, found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one included, sorted.
    pub groups: Vec<u32>,
    /// Home directory; `/` when the image's `/etc/passwd` does not tell.
    pub home: String,
}

impl Files {
    /// Reads them from an image's layers, the topmost first.
    pub fn read(layers: &[PathBuf]) -> Self {
        Self {
            passwd: find(layers, "etc/passwd"),
            group: find(layers, "etc/group"),
        }
    }
}

/// The file in the topmost layer that says anything of it.
fn find(layers: &[PathBuf], name: &str) -> String {
    for layer in layers {
        let path = layer.join(name);
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_file() && meta.len() <= FILE_BYTES_MAX {
            return fs::read_to_string(&path).unwrap_or_default();
        }
        if meta.file_type().is_char_device() {
            // A whiteout: the image has removed the file.
            return String::new();
        }
    }
    String::new()
}

impl Resolved {
    pub(super) fn oci(&self) -> Value {
        json!({ "uid": self.uid, "gid": self.gid, "additionalGids": self.groups })
    }
}

/// Finds the user: `user` wins over the image's `USER` (`user`, `uid`, `user:group`, `uid:gid`).
///
/// # Errors
/// A name that the image's files do not have; uid 0 where that is forbidden.
pub fn resolve(user: &User, image: &str, files: &Files) -> Result<Resolved> {
    let (name, group) = match image.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|g| !g.is_empty())),
        None => (image, None),
    };
    let entry = match user.uid {
        Some(uid) => Entry::by_uid(files, uid),
        None => Entry::by_name(files, name)?,
    };
    let image_gid = match (user.uid, group) {
        (None, Some(group)) => Some(gid_of(files, group)?),
        _ => None,
    };
    let gid = user.gid.or(image_gid).unwrap_or(entry.gid);
    if user.non_root && entry.uid == 0 {
        return Err(Error::invalid(
            "user.non_root",
            "the program would run as root (uid 0), which the pod forbids (runAsNonRoot)",
        ));
    }
    let mut groups = user.groups.clone();
    groups.push(gid);
    // A group that the image names stands for the user's groups, as with other runtimes.
    if let Some(name) = entry.name.filter(|_| image_gid.is_none()) {
        groups.extend(groups_with(files, &name));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Resolved {
        uid: entry.uid,
        gid,
        groups,
        home: entry.home,
    })
}

/// A line of `/etc/passwd`.
struct Entry {
    name: Option<String>,
    uid: u32,
    gid: u32,
    home: String,
}

impl Entry {
    /// A uid need not be in the file; its group is 0 then.
    fn by_uid(files: &Files, uid: u32) -> Self {
        let known = passwd(files).find(|entry| entry.uid == uid);
        known.unwrap_or(Self {
            name: None,
            uid,
            gid: 0,
            home: "/".to_owned(),
        })
    }

    fn by_name(files: &Files, name: &str) -> Result<Self> {
        if name.is_empty() {
            return Ok(Self::by_uid(files, 0));
        }
        if let Some(entry) = passwd(files).find(|entry| entry.name.as_deref() == Some(name)) {
            return Ok(entry);
        }
        match name.parse() {
            Ok(uid) => Ok(Self::by_uid(files, uid)),
            Err(_) => Err(Error::invalid(
                "user",
                format!("the image has no user {name:?}"),
            )),
        }
    }
}

fn passwd(files: &Files) -> impl Iterator<Item = Entry> {
    files.passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|n| !n.is_empty())?.to_owned();
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields
            .nth(1)
            .filter(|home| home.starts_with('/'))
            .unwrap_or("/")
            .to_owned();
        Some(Entry {
            name: Some(name),
            uid,
            gid,
            home,
        })
    })
}

/// Names, ids and members of the groups.
fn groups(files: &Files) -> impl Iterator<Item = (&str, u32, &str)> {
    files.group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn gid_of(files: &Files, group: &str) -> Result<u32> {
    if let Some((_, gid, _)) = groups(files).find(|(name, ..)| *name == group) {
        return Ok(gid);
    }
    group.parse().map_err(|_not_a_number| {
        Error::invalid("user", format!("the image has no group {group:?}"))
    })
}

fn groups_with(files: &Files, user: &str) -> Vec<u32> {
    let has = |members: &str| members.split(',').any(|m| m.trim() == user);
    groups(files)
        .filter(|(_, _, members)| has(members))
        .map(|(_, gid, _)| gid)
        .collect()
}
