//! `cargo xtask up` and `down`: build, then hand over to the `seaway` program.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use linux::exec::Exec;

use crate::setup;

/// A clean build on a slow machine.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3600);
/// `seaway up` waits for pods with limits of its own.
const UP_TIMEOUT: Duration = Duration::from_secs(600);

/// The checkout.
pub(crate) fn root_dir() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root_dir().join("target"), PathBuf::from)
}

/// A cargo command in the checkout, its output shown.
pub(crate) fn cargo(args: &[&str]) -> Exec {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Exec::new(cargo)
        .args(args)
        .dir(root_dir())
        .timeout(BUILD_TIMEOUT)
        .inherit_output()
}

/// Builds every program; returns the folder they are in.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    let mut args = vec!["build", "--workspace", "--bins"];
    if release {
        args.push("--release");
    }
    cargo(&args).run().context("build")?;
    Ok(target_dir().join(if release { "release" } else { "debug" }))
}

/// Builds the benchmark program and these programs of these packages, optimised; returns the folder
/// they are in.
pub(crate) fn build_some(packages: &[&str], programs: &[&str]) -> Result<PathBuf> {
    let mut args = vec![
        "build",
        "--release",
        "-p",
        "seaway-tests",
        "--bin",
        "seaway-bench",
    ];
    args.extend(packages.iter().flat_map(|package| ["-p", package]));
    args.extend(programs.iter().flat_map(|program| ["--bin", program]));
    cargo(&args).run().context("build")?;
    Ok(target_dir().join("release"))
}

/// `cargo xtask up`.
pub(crate) fn up(release: bool, args: &[String]) -> Result<()> {
    setup::run(true)?;
    let bin = build(release)?;
    let seaway = Exec::new(bin.join("seaway")).arg("up").args(args);
    seaway
        .timeout(UP_TIMEOUT)
        .inherit_output()
        .run()
        .context("seaway up")?;
    Ok(())
}

/// `cargo xtask down`.
pub(crate) fn down(args: &[String]) -> Result<()> {
    let debug = target_dir().join("debug/seaway");
    let bin = if debug.is_file() {
        debug
    } else {
        target_dir().join("release/seaway")
    };
    if !bin.is_file() {
        build(false)?;
    }
    let seaway = Exec::new(bin).arg("down").args(args);
    seaway
        .timeout(UP_TIMEOUT)
        .inherit_output()
        .run()
        .context("seaway down")?;
    Ok(())
}

/// This program's file: a stage before may have built it anew, in the place of what runs.
pub(crate) fn own_program() -> Result<String> {
    let path = std::env::current_exe()?.display().to_string();
    Ok(path.trim_end_matches(" (deleted)").to_owned())
}
