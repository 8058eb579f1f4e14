//! Limits of a pod's cgroup. (Those of containers are written by libcontainer.)

use std::fs;
use std::path::Path;

use linux::cgroup::Hierarchies;

use crate::error::{Error, Result};
use crate::types::Limits;

/// cpu.shares of one CPU, for turning shares into a weight.
const SHARES_MIN: u64 = 2;

/// Writes the limits of group `path` where the machine has the controller.
pub(crate) fn write(groups: &Hierarchies, path: &str, limits: &Limits) -> Result<()> {
    let period = limits.cpu_period_us.unwrap_or(100_000);
    let mut values = Vec::new();
    if let Some(bytes) = limits.memory_bytes {
        values.push(("memory.limit_in_bytes", bytes.to_string()));
        values.push(("memory.max", bytes.to_string()));
    }
    if let Some(shares) = limits.cpu_shares {
        values.push(("cpu.shares", shares.to_string()));
        // The mapping of the kernel's documentation of both versions: [2, 262144] to [1, 10000].
        let weight = 1 + shares.saturating_sub(SHARES_MIN) * 9999 / 262_142;
        values.push(("cpu.weight", weight.to_string()));
    }
    if let Some(quota) = limits.cpu_quota_us {
        values.push(("cpu.cfs_period_us", period.to_string()));
        values.push(("cpu.cfs_quota_us", quota.to_string()));
        values.push(("cpu.max", format!("{quota} {period}")));
    }
    if let Some(pids) = limits.pids {
        values.push(("pids.max", pids.to_string()));
    }
    for dir in groups.dirs(path) {
        for (file, value) in &values {
            let file = dir.join(file);
            if file.exists() {
                fs::write(&file, value).map_err(Error::path("write", &file))?;
            }
        }
    }
    Ok(())
}

/// How many processes of group `path` the OOM killer has killed.
pub(crate) fn oom_kills(groups: &Hierarchies, path: &str) -> u64 {
    let count = |dir: &Path| {
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        // Version 1 has the line in memory.oom_control (since Linux 4.13), version 2 in memory.events.
        let text = read("memory.oom_control") + &read("memory.events");
        let line = text.lines().find_map(|l| l.strip_prefix("oom_kill "));
        line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    groups.dirs(path).iter().map(|dir| count(dir)).sum()
}
