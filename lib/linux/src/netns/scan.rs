//! Every network namespace of this machine that can be found: of processes, mounted somewhere, or
//! held open by a process.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::NetNs;

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
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for (name, point) in mounts.lines().filter_map(mounted) {
        add(PathBuf::from(point), Some(name));
    }
    found.into_values().collect()
}

/// Where a line of `mountinfo` has a network namespace (`proc(5)`): its root is `net:[4026532000]`,
/// and blanks in paths are written in octal.
fn mounted(line: &str) -> Option<(String, String)> {
    let mut fields = line.split(' ').skip(3);
    let root = fields.next()?;
    let point = fields.next()?;
    let point = point.replace("\\040", " ");
    root.starts_with("net:[").then(|| (root.to_owned(), point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = "1147 28 0:4 net:[4026532208] /run/netns/cni\\0401 rw shared:622 - nsfs nsfs rw";
        let found = ("net:[4026532208]".to_owned(), "/run/netns/cni 1".to_owned());
        assert_eq!(mounted(line), Some(found));
        assert_eq!(mounted("28 1 0:26 / /run rw - tmpfs tmpfs rw"), None);
        assert_eq!(mounted(""), None);
    }
}
