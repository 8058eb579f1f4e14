//! A few figures in Prometheus' text format.

use crate::context::Context;

/// All of them.
pub(super) fn render(ctx: &Context) -> String {
    let pods = ctx.board.all();
    let running = pods
        .iter()
        .flat_map(|p| &p.observed.containers)
        .filter(|c| c.is_running())
        .count();
    let mut out = String::new();
    let figures = [
        (
            "kubelet_running_pods",
            "Pods of this node that have a sandbox.",
            { pods.iter().filter(|p| p.observed.sandbox.is_some()).count() },
        ),
        (
            "kubelet_running_containers",
            "Containers that run.",
            running,
        ),
        (
            "process_resident_memory_bytes",
            "Resident memory.",
            status_kib("VmRSS:") << 10,
        ),
        ("process_threads", "Threads.", status_kib("Threads:")),
        ("process_open_fds", "Open descriptors.", open_fds()),
    ];
    for (name, help, value) in figures {
        out.push_str(&format!(
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
        ));
    }
    out
}

/// The number on a line of /proc/self/status.
fn status_kib(key: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let word = line.and_then(|l| l.split_whitespace().next());
    word.and_then(|w| w.parse().ok()).unwrap_or(0)
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}
