//! What the machine looks like: links, addresses, routes, rules, control groups, mounts, processes.
//! Two snapshots are equal when nothing was left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, bail};
use linux::exec::Exec;

/// Lines by the listing they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<&'static str, BTreeSet<String>>);

/// Listings by programs that are not ours. Counters and ages are cut out where they change by themselves.
const LISTINGS: &[(&str, &str)] = &[
    ("links", "ip -o link | sed -E 's/ (qlen|state) [^ ]+//g'"),
    ("addresses", "ip -o addr | sed -E 's/valid_lft.*//'"),
    (
        "routes",
        "ip route show table all; ip -6 route show table all | sed -E 's/ expires [^ ]+//'",
    ),
    ("rules", "ip rule; ip -6 rule"),
    ("neighbours", "ip neigh show nud permanent"),
    ("namespaces", "ip netns"),
    (
        "iptables",
        "iptables-save -t filter -t nat 2>/dev/null | grep -v '^#' | sed -E 's/\\[[0-9:]+\\]//'",
    ),
    ("nftables", "nft list ruleset 2>/dev/null"),
    // Other tests, which may run at the same time, have control groups and mounts named seaway-test.
    (
        "cgroups",
        "find /sys/fs/cgroup -type d -path '*/seaway*' -not -path '*/seaway-test*'",
    ),
    (
        "mounts",
        "cut -d' ' -f1-3 /proc/mounts | grep -v seaway-test",
    ),
    (
        "state",
        "ls -d /var/lib/seaway /run/seaway /var/lib/cni /etc/cni 2>/dev/null; true",
    ),
    (
        "settings",
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding",
    ),
];

/// The listing of [`processes`].
const PROCESSES: &str = "processes";

impl Snapshot {
    /// Looks at the machine; `programs` is the folder of our own programs.
    ///
    /// # Errors
    /// A listing program fails.
    pub fn take(programs: &Path) -> Result<Self> {
        let mut lists = BTreeMap::new();
        for (name, script) in LISTINGS {
            let text = Exec::new("sh").args(["-c", script]).run()?.text();
            lists.insert(*name, text.lines().map(|l| l.trim().to_owned()).collect());
        }
        lists.insert(PROCESSES, processes(programs)?);
        Ok(Self(lists))
    }

    /// Fails when the machine has more or less than in `before`.
    ///
    /// # Errors
    /// Names each line that differs.
    pub fn expect_same(&self, before: &Self) -> Result<()> {
        let mut found = Vec::new();
        for (name, now) in &self.0 {
            let was = &before.0[name];
            found.extend(
                now.difference(was)
                    .map(|line| format!("{name}: left behind: {line}")),
            );
            // What somebody else had started may end meanwhile.
            if *name != PROCESSES {
                found.extend(
                    was.difference(now)
                        .map(|line| format!("{name}: gone: {line}")),
                );
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        bail!("{}", found.join("\n"))
    }
}

/// Processes of our programs, and those in other process namespaces than ours (containers).
fn processes(programs: &Path) -> Result<BTreeSet<String>> {
    let ours = std::fs::read_link("/proc/self/ns/pid")?;
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        // A process may end while it is looked at.
        let Ok(exe) = std::fs::read_link(path.join("exe")) else {
            continue;
        };
        let Ok(namespace) = std::fs::read_link(path.join("ns/pid")) else {
            continue;
        };
        if (exe.parent() == Some(programs)) || namespace != ours {
            found.insert(format!("{name} {}", exe.display()));
        }
    }
    Ok(found)
}
