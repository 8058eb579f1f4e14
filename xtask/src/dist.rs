//! `cargo xtask dist`: what is given away, in one archive. The daemons are linked with the C library of
//! Debian. The CNI plugin is copied from its image onto nodes of any distribution, whose C library may
//! be older or another one, so it is linked statically, with musl; that also makes it smaller and its
//! start faster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use linux::exec::{Exec, which};
use sha2::{Digest, Sha256};

use crate::run::{cargo, root_dir, target_dir};
use crate::setup;

/// The profile that optimises the whole program at once.
const PROFILE: &str = "dist";

/// The daemons and tools, with the packages that they come from.
const PROGRAMS: &[(&str, &str)] = &[
    ("proxy", "proxy"),
    ("cni-plugin", "overlay"),
    ("control-plane", "control-plane"),
    ("kubelet", "kubelet"),
    ("seaway-runtime", "seaway-shim"),
    ("cli", "seaway"),
];

/// The plugin's package and name.
const PLUGIN: (&str, &str) = ("cni-plugin", "seaway-cni");

/// What lies beside the programs in the archive, from the checkout.
const FILES: &[&str] = &["dist/Containerfile", "LICENSE", "README.md", "CHANGELOG.md"];
const FOLDERS: &[&str] = &["dist/systemd", "dist/kubernetes", "dist/helm", "docs"];

/// Fetching a target's standard library.
const FETCH_TIMEOUT: Duration = Duration::from_secs(600);

/// Builds everything and packs `target/package/seaway-VERSION-linux-ARCH.tar.gz`, beside it
/// `SHA256SUMS` and the folder that was packed.
///
/// # Errors
/// A build fails, or the target for the plugin cannot be had.
pub(crate) fn run() -> Result<()> {
    let plugin = plugin()?;
    let mut args = vec!["build", "--profile", PROFILE];
    for (package, program) in PROGRAMS {
        args.extend(["-p", package, "--bin", program]);
    }
    cargo(&args).run().context("build")?;
    let built = target_dir().join(PROFILE);
    let name = format!(
        "seaway-{}-linux-{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    );
    let package = target_dir().join("package");
    let folder = package.join(&name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin)?;
    let programs = PROGRAMS.iter().map(|(_, program)| built.join(program));
    for program in programs.chain([plugin]) {
        copy(&program, &bin)?;
    }
    for file in FILES {
        copy(&root_dir().join(file), &folder)?;
    }
    for from in FOLDERS {
        copy(&root_dir().join(from), &folder)?;
    }
    let archive = pack(&package, &name)?;
    println!("{}", archive.display());
    Ok(())
}

/// Builds the plugin as it is given away; returns its file.
///
/// # Errors
/// The build fails, or its target cannot be had.
pub(crate) fn plugin() -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    setup::ensure(&[("musl-tools", "musl-gcc")])?;
    have_target(&target)?;
    let (package, program) = PLUGIN;
    let what = ["-p", package, "--bin", program, "--target", &target];
    cargo(&[&["build", "--profile", PROFILE], &what[..]].concat())
        .run()
        .context("build the plugin")?;
    Ok(target_dir().join(target).join(PROFILE).join(program))
}

/// The standard library of a target.
fn have_target(target: &str) -> Result<()> {
    let root = Exec::new("rustc").args(["--print", "sysroot"]).run()?;
    let library = Path::new(root.text().trim())
        .join("lib/rustlib")
        .join(target);
    if library.is_dir() {
        return Ok(());
    }
    if which("rustup").is_none() {
        bail!("the standard library for {target} is not there; please install it");
    }
    println!("dist: rustup target add {target}");
    Exec::new("rustup")
        .args(["target", "add", target])
        .timeout(FETCH_TIMEOUT)
        .run()
        .with_context(|| format!("rustup target add {target}"))?;
    Ok(())
}

/// A file or a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let exec = Exec::new("cp").arg("-R").arg(from).arg(to);
    exec.run()
        .with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

/// Packs folder `name` of `dir`: the same files make the same archive.
fn pack(dir: &Path, name: &str) -> Result<PathBuf> {
    let archive = dir.join(format!("{name}.tar.gz"));
    let tar = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0"];
    Exec::new("tar")
        .args(tar)
        .args(["--numeric-owner", "--use-compress-program=gzip -9n", "-cf"])
        .arg(&archive)
        .arg("-C")
        .arg(dir)
        .arg(name)
        .timeout(FETCH_TIMEOUT)
        .run()
        .context("pack the archive")?;
    let sum = hex::encode(Sha256::digest(std::fs::read(&archive)?));
    std::fs::write(dir.join("SHA256SUMS"), format!("{sum}  {name}.tar.gz\n"))?;
    Ok(archive)
}
