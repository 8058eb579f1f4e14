//! `cargo xtask ebpf`: builds the kernel side of the eBPF mode and compares it with the object that
//! is committed, so that nobody else needs its toolchain.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use linux::exec::{Exec, which};
use sha2::{Digest, Sha256};

use crate::run::root_dir;
use crate::setup::install;

/// The committed object and what it was made from.
const OBJECT: &str = "ebpf/prebuilt/seaway.o";
const STAMP: &str = "ebpf/prebuilt/seaway.stamp";

/// What the object depends on.
const SOURCES: [&str; 6] = [
    "ebpf/Cargo.toml",
    "ebpf/Cargo.lock",
    "ebpf/programs/Cargo.toml",
    "ebpf/programs/src",
    "ebpf/common/Cargo.toml",
    "ebpf/common/src",
];

/// Debian's compiler, whose source package has `core` for another target, and the LLVM under it.
const PACKAGES: [(&str, &str); 6] = [
    ("rustc-web", "/usr/bin/rustc"),
    ("cargo-web", "/usr/bin/cargo"),
    ("rust-web-src", "/usr/lib/rustlib/src/rust"),
    ("llvm-22-dev", "/usr/lib/llvm-22/bin/llvm-config"),
    ("zlib1g-dev", "/usr/include/zlib.h"),
    ("libzstd-dev", "/usr/include/zstd.h"),
];

const LLVM: &str = "/usr/lib/llvm-22/bin";
const LINKER_VERSION: &str = "0.13.0";
const TARGET: &str = "bpfel-unknown-none";

/// Asks for copies of memory as loads and stores. By default the linker leaves many of them to functions
/// that copy byte by byte, which are slow, and each byte of which the kernel's verifier checks.
const FLAGS: &str = "-Clink-arg=--disable-expand-memcpy-in-order";

/// Building the linker takes minutes.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3600);

/// Builds, and replaces the object or, with `check`, fails when it differs.
pub(crate) fn run(check: bool) -> Result<()> {
    let root = root_dir();
    let missing = PACKAGES
        .iter()
        .filter(|(_, sign)| !Path::new(sign).exists());
    let missing: Vec<&str> = missing.map(|(package, _)| *package).collect();
    install(&missing)?;
    let linker = linker(&root)?;
    let built = build(&root, &linker)?;
    let stamp = stamp(&root, &linker, &built)?;
    let old = fs::read(root.join(OBJECT)).unwrap_or_default();
    let old_stamp = fs::read_to_string(root.join(STAMP)).unwrap_or_default();
    if old == built {
        println!(
            "ebpf: {OBJECT} is rebuilt bit for bit ({} bytes)",
            built.len()
        );
        if old_stamp == stamp {
            return Ok(());
        }
    }
    if check {
        bail!("{OBJECT} or its stamp differs from what is built here:\n{stamp}");
    }
    fs::write(root.join(OBJECT), &built).with_context(|| format!("write {OBJECT}"))?;
    fs::write(root.join(STAMP), &stamp).with_context(|| format!("write {STAMP}"))?;
    println!("ebpf: {OBJECT} and its stamp are written; commit them with the change");
    Ok(())
}

/// The linker, built when it is not there.
fn linker(root: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools/bpf");
    let bin = tools.join("bin/bpf-linker");
    if bin.is_file() {
        return Ok(bin);
    }
    let cargo = which("cargo").context("no cargo")?;
    println!("ebpf: building bpf-linker {LINKER_VERSION}, which takes minutes, once");
    let path = std::env::var("PATH").unwrap_or_default();
    Exec::new(cargo)
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
        ])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(tools)
        .env("PATH", format!("{LLVM}:{path}"))
        .timeout(BUILD_TIMEOUT)
        .run()
        .context("build bpf-linker")?;
    Ok(bin)
}

/// Builds and strips; returns the object's bytes.
fn build(root: &Path, linker: &Path) -> Result<Vec<u8>> {
    let target = root.join("target/bpf");
    let sysroot = say("/usr/bin/rustc", &["--print", "sysroot"])?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust");
    let real = fs::canonicalize(&source).with_context(|| source.display().to_string())?;
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    // No path of this machine gets into the object, so that it is the same everywhere.
    let remap = [
        (root.to_owned(), "/seaway"),
        (home.into(), "/cargo"),
        (source, "/rust"),
        (real, "/rust"),
    ];
    let remap = remap.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    let flags = format!(
        "-Clinker={} {FLAGS} -Cdebuginfo=2 {}",
        linker.display(),
        remap.join(" ")
    );
    Exec::new("/usr/bin/cargo")
        .args([
            "build",
            "--release",
            "--locked",
            "-Zbuild-std=core",
            "--target",
            TARGET,
        ])
        .dir(root.join("ebpf"))
        .env("PATH", "/usr/bin:/bin")
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", target.to_string_lossy().into_owned())
        .timeout(BUILD_TIMEOUT)
        .run()
        .context("build the eBPF programs")?;
    let stripped = target.join("seaway.o");
    Exec::new(format!("{LLVM}/llvm-strip"))
        .args(["-g", "-o"])
        .arg(&stripped)
        .arg(target.join(TARGET).join("release/seaway"))
        .run()
        .context("strip the object")?;
    fs::read(&stripped).with_context(|| stripped.display().to_string())
}

fn say(program: &str, args: &[&str]) -> Result<String> {
    let output = Exec::new(program).args(args).run()?;
    Ok(output
        .text()
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned())
}

fn stamp(root: &Path, linker: &Path, object: &[u8]) -> Result<String> {
    let compiler = say("/usr/bin/rustc", &["--version"])?;
    let llvm = say(&format!("{LLVM}/llvm-config"), &["--version"])?;
    let linker = say(&linker.to_string_lossy(), &["--version"])?;
    Ok(format!(
        "compiler {compiler}\nllvm {llvm}\nlinker {linker}\nsources {}\nobject {}\n",
        sources(root)?,
        hex::encode(Sha256::digest(object))
    ))
}

/// A hash of everything that the object is made from, and how.
fn sources(root: &Path) -> Result<String> {
    let mut files = BTreeSet::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    let mut hash = Sha256::new();
    hash.update(FLAGS);
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file);
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        hash.update(format!("{} {}\n", name.display(), bytes.len()));
        hash.update(bytes);
    }
    Ok(hex::encode(hash.finalize()))
}

fn collect(path: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.insert(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

/// For `cargo xtask tidy`: whether the committed object belongs to the sources.
pub(crate) fn findings(root: &Path) -> Result<Vec<String>> {
    let stamp = fs::read_to_string(root.join(STAMP)).unwrap_or_default();
    let says = |key: &str| stamp.lines().find_map(|line| line.strip_prefix(key));
    let mut found = Vec::new();
    if says("sources ") != Some(sources(root)?.as_str()) {
        found.push(format!(
            "{OBJECT}: its sources have changed; run cargo xtask ebpf and commit what it writes"
        ));
    }
    let object = fs::read(root.join(OBJECT)).unwrap_or_default();
    if says("object ") != Some(hex::encode(Sha256::digest(&object)).as_str()) {
        found.push(format!("{OBJECT}: it is not the one that {STAMP} tells of"));
    }
    Ok(found)
}
