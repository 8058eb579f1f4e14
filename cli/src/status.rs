//! `seaway status`: who runs, how much memory it takes, where its log is.

use anyhow::Result;
use linux::process;

use crate::layout::Layout;
use crate::say;
use crate::supervise::read_pids;

/// Prints a line for each daemon.
pub(crate) fn run(layout: &Layout) -> Result<()> {
    let pids = read_pids(layout)?;
    say(&format!(
        "cluster {}: {} nodes, API server {}",
        layout.args.name,
        layout.args.nodes,
        layout.server()
    ));
    say(&format!(
        "{:<18} {:>8} {:>9}  log",
        "daemon", "pid", "memory"
    ));
    for (name, pid) in &pids {
        let pid = i32::try_from(*pid)?;
        let memory = match process::resident_bytes(pid) {
            Ok(bytes) if process::is_alive(pid) => format!("{:.1} MB", mb(bytes)),
            _ => "gone".to_owned(),
        };
        let log = match name.split_once('/') {
            Some((node, daemon)) => {
                let node = layout.nodes().into_iter().find(|n| n.name == node);
                node.map(|n| n.log(daemon).display().to_string())
                    .unwrap_or_default()
            }
            None => layout.log(name).display().to_string(),
        };
        say(&format!("{name:<18} {pid:>8} {memory:>9}  {log}"));
    }
    Ok(())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "one digit after the point is shown"
)]
fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
