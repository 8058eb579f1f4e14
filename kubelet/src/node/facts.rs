//! What this machine is and how it fares.

use std::fs;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::object::{Conditions, Shape};
use crate::context::Node;

/// Memory that must be available (upstream: memory.available<100Mi).
const MEMORY_MIN_BYTES: u64 = 100 << 20;
/// The disk is under pressure when less than this share and less than this much of it are free. (Upstream looks
/// at 10 % alone, which on a large disk of a development machine means nothing.)
const DISK_MIN_PERCENT: u64 = 5;
const DISK_MIN_BYTES: u64 = 5 << 30;
/// Process ids that must be free.
const PIDS_MIN: u64 = 500;
/// Pods a node takes, as upstream.
const PODS_MAX: u32 = 110;
/// Kubernetes' version we behave as.
pub const VERSION: &str = concat!("v1.36.0-seaway.", env!("CARGO_PKG_VERSION"));

/// The parts of the Node object that do not change while we run.
pub fn shape(node: &Node, port: u16) -> Shape {
    let file = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    Shape {
        name: node.name.clone(),
        ips: node.ips.clone(),
        port,
        cpu_milli: node.cpu_milli,
        memory_bytes: node.memory_bytes,
        disk_bytes: statvfs(&node.root_dir).map_or(0, |s| s.blocks() * s.fragment_size()),
        pods: PODS_MAX,
        machine_id: file("/etc/machine-id"),
        boot_id: file("/proc/sys/kernel/random/boot_id"),
        system_uuid: file("/sys/class/dmi/id/product_uuid"),
        kernel: file("/proc/sys/kernel/osrelease"),
        os_image: os_image(&file("/etc/os-release")),
        version: VERSION.to_owned(),
        runtime: concat!("seaway://", env!("CARGO_PKG_VERSION")).to_owned(),
        architecture: architecture().to_owned(),
    }
}

/// CPUs in thousandths and memory in bytes.
pub fn capacity() -> (i64, i64) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let cpus = i64::try_from(cpus).unwrap_or(1);
    let memory = meminfo("MemTotal").unwrap_or(0);
    (cpus * 1000, i64::try_from(memory).unwrap_or(i64::MAX))
}

/// How memory, disk and process ids fare.
pub fn pressure(dir: &Path) -> Conditions {
    let memory = meminfo("MemAvailable").is_some_and(|m| m < MEMORY_MIN_BYTES);
    let disk = statvfs(dir).is_ok_and(|s| {
        let free = s.blocks_available() * s.fragment_size();
        let all = s.blocks() * s.fragment_size();
        free < DISK_MIN_BYTES && free * 100 < all * DISK_MIN_PERCENT
    });
    Conditions {
        memory,
        disk,
        pids: pids_left().is_some_and(|left| left < PIDS_MIN),
        network: Ok(()),
    }
}

fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// The fourth word of loadavg is running/all threads.
fn pids_left() -> Option<u64> {
    let max: u64 = fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let used: u64 = load
        .split_whitespace()
        .nth(3)?
        .split('/')
        .nth(1)?
        .parse()
        .ok()?;
    Some(max.saturating_sub(used))
}

fn os_image(release: &str) -> String {
    let line = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// Go's name of this processor.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_some_of_everything() {
        let (cpu, memory) = capacity();
        assert!(cpu >= 1000 && memory > 1 << 20);
        assert!(pids_left().unwrap() > 0);
        assert_eq!(os_image("ID=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }
}
