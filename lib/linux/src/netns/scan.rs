//! Every network namespace of this machine that can be found: of processes, mounted somewhere, or
//! held open by a process.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::NetNs;

/// Where mounts of namespaces show their names in `/proc/self/mountinfo`.
const MOUNT_ROOT: usize = 3;
/// Where mounts show their mount points.
const MOUNT_POINT: usize = 4;

/// All that can be found and opened, each once. Without the right to look at other processes it is
/// fewer.
pub fn namespaces() -> Vec<NetNs> {
    let mut found: BTreeMap<(u64, u64), NetNs> = BTreeMap::new();
    // Opening costs more than reading the link, whose text names the namespace.
    let mut known = std::collections::BTreeSet::new();
    let mut add = |path: PathBuf, name: Option<String>| {
        if name.is_some_and(|name| !known.insert(name)) {
            return;
        }
        if let Ok(netns) = NetNs::open(&path) {
            found.insert(netns.identity(), netns);
        }
    };
    let link = |path: &PathBuf| {
        let target = fs::read_link(path).ok()?;
        let text = target.to_str()?.to_owned();
        text.starts_with("net:[").then_some(text)
    };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let dir = entry.path();
        let numeric = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
        if !entry.file_name().to_str().is_some_and(numeric) {
            continue;
        }
        let own = dir.join("ns/net");
        if let Some(name) = link(&own) {
            add(own, Some(name));
        }
        for fd in fs::read_dir(dir.join("fd")).into_iter().flatten().flatten() {
            let path = fd.path();
            if let Some(name) = link(&path) {
                add(path, Some(name));
            }
        }
    }
    for line in fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
    {
        let words: Vec<&str> = line.split(' ').collect();
        if let (Some(root), Some(point)) = (words.get(MOUNT_ROOT), words.get(MOUNT_POINT))
            && root.starts_with("net:[")
        {
            add(PathBuf::from(point), Some((*root).to_owned()));
        }
    }
    found.into_values().collect()
}
