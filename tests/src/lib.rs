//! What the black-box tests share: a cluster of their own, the real kubectl, snapshots of the machine.

#![expect(
    clippy::print_stdout,
    reason = "a test runner speaks on standard output"
)]

pub mod bench;
pub mod cluster;
pub mod runner;
pub mod snapshot;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Prints a line for whoever runs the tests.
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// The folder of the programs under test.
///
/// # Errors
/// The programs are not built.
pub fn bin_dir() -> Result<PathBuf> {
    let seaway = program("seaway")?;
    Ok(seaway.parent().map(PathBuf::from).unwrap_or_default())
}

/// A program under test, in our own folder, or in the one above a test program's `deps`.
///
/// # Errors
/// It is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let dirs = me.ancestors().skip(1).take(2);
    match dirs.map(|dir| dir.join(name)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("{name} is not built; run `cargo build --workspace --bins`"),
    }
}

/// The checkout's kubectl, fetched by `cargo xtask setup`.
pub fn kubectl() -> Result<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    // The tools belong to the checkout; they are in its own target folder whatever is configured.
    let candidates = [root.join("target"), target];
    let found = candidates
        .iter()
        .map(|t| t.join("tools/kubectl-v1.35/kubectl"))
        .find(|p| p.is_file());
    found.ok_or_else(|| anyhow::anyhow!("kubectl 1.35 is missing; run `cargo xtask setup`"))
}

/// Asks until the answer is there; the last error says what was missing.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut ask: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waited {} s for {what}", timeout.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
