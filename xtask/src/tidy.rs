//! `cargo xtask tidy`: what the compiler does not check. Every finding names file and line.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::run::root_dir;

/// A file longer than this is split along its data, unless it is listed below.
const LINES_MAX: usize = 600;

/// Files that may be longer, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[(
    "control-plane/schema/src/kinds/rows.rs",
    "a table, a row for each kind",
)];

/// Crates and the workspace crates they may use (`docs/architecture.md`, "Dependency direction").
const MAY_USE: &[(&str, &[&str])] = &[
    ("lib/api", &[]),
    ("lib/linux", &[]),
    ("lib/client", &["api"]),
    ("policy", &["api", "client", "linux"]),
    ("cni-plugin", &["api", "client", "linux", "policy"]),
    ("proxy/dns", &["api"]),
    ("ebpf/common", &[]),
    ("proxy", &["api", "client", "linux", "dns", "ebpf-common"]),
    ("control-plane/schema", &["api"]),
    ("control-plane/controllers", &["api"]),
    ("control-plane", &["api", "schema", "controllers", "linux"]),
    ("runtime", &["linux"]),
    ("kubelet", &["api", "client", "linux", "runtime"]),
    ("cli", &["api", "client", "linux", "runtime"]),
    ("xtask", &["linux"]),
];

/// Every crate of the workspace by the name its users write.
const OURS: &[&str] = &[
    "api",
    "client",
    "linux",
    "policy",
    "cni-plugin",
    "dns",
    "ebpf-common",
    "proxy",
    "schema",
    "controllers",
    "control-plane",
    "runtime",
    "kubelet",
];

/// Files and folders whose code decides and never acts: no clock, files, processes or kernel.
const PURE: &[&str] = &[
    "cni-plugin/src/plan.rs",
    "cni-plugin/src/ipam.rs",
    "cni-plugin/src/request.rs",
    "cni-plugin/src/overlay/plan.rs",
    "cni-plugin/src/overlay/path.rs",
    "cni-plugin/src/overlay/path",
    "policy/src/decide.rs",
    "policy/src/diff.rs",
    "policy/src/model.rs",
    "policy/src/objects.rs",
    "policy/src/parse.rs",
    "policy/src/plan.rs",
    "policy/src/plan",
    "policy/src/ranges.rs",
    "policy/src/store.rs",
    "policy/src/trace.rs",
    "proxy/src/model",
    "proxy/src/trace",
    "proxy/src/trace.rs",
    "proxy/src/backend/ebpf/plan.rs",
    "proxy/src/backend/ebpf/desired.rs",
    "proxy/src/backend/ebpf/diff.rs",
    "ebpf/common/src",
    "proxy/src/backend/iptables/plan.rs",
    "proxy/src/backend/iptables/rule.rs",
    "proxy/src/backend/iptables/render.rs",
    "proxy/src/backend/ipvs/rules.rs",
    "control-plane/schema/src",
    "lib/api/src",
];

/// What pure code does not say.
const IMPURE_WORDS: &[&str] = &[
    "linux::",
    "std::fs",
    "std::process",
    "Instant::now",
    "SystemTime::now",
    "tokio::",
];

/// Runs every check.
pub(crate) fn run() -> Result<()> {
    let root = root_dir();
    let files = rust_files(&root);
    let mut findings = Vec::new();
    for file in &files {
        let text = fs::read_to_string(root.join(file))?;
        check_file(file, &text, &mut findings);
    }
    findings.extend(orphans(&root, &files));
    findings.extend(dependencies(&root)?);
    findings.extend(decisions(&root)?);
    findings.extend(crate::ebpf::findings(&root)?);
    if findings.is_empty() {
        println!("tidy: {} files, nothing to say", files.len());
        return Ok(());
    }
    bail!("{} findings:\n{}", findings.len(), findings.join("\n"))
}

/// All Rust files of the checkout, relative, sorted.
fn rust_files(root: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() {
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.extend(path.strip_prefix(root).map(Path::to_owned));
            }
        }
    }
    files
}

fn check_file(file: &Path, text: &str, findings: &mut Vec<String>) {
    let name = file.display().to_string();
    let lines = text.lines().count();
    let is_test = name.contains("/tests/") || name.ends_with("tests.rs");
    if lines > LINES_MAX && !is_test && !LONG_FILES.iter().any(|(long, _)| *long == name) {
        findings.push(format!(
            "{name}: {lines} lines; split it (limit {LINES_MAX})"
        ));
    }
    if !text.starts_with("//!") && !text.starts_with("#!") && !is_test {
        findings.push(format!(
            "{name}:1: the file does not say what it is (`//!`)"
        ));
    }
    // Spelt apart, so that this file does not find itself.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    for (i, line) in text.lines().enumerate() {
        let bare = |mark: &str| {
            line.split(|c: char| !c.is_alphanumeric())
                .any(|w| w == mark)
        };
        if marks.iter().any(|mark| bare(mark)) && !line.contains("#1") && line.contains("//") {
            findings.push(format!(
                "{name}:{}: an unfinished mark; do it or file it",
                i + 1
            ));
        }
        if line.contains(concat!("#[ig", "nore")) {
            findings.push(format!(
                "{name}:{}: no ignored tests; skip with a reason",
                i + 1
            ));
        }
    }
    if PURE.iter().any(|pure| file.starts_with(pure)) && !is_test {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (i, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            if let Some(word) = IMPURE_WORDS.iter().find(|word| line.contains(**word)) {
                findings.push(format!("{name}:{}: `{word}` in pure code", i + 1));
            }
        }
    }
}

/// Files that no `mod` reaches are never compiled.
fn orphans(root: &Path, files: &BTreeSet<PathBuf>) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        let (Some(dir), Some(stem)) = (file.parent(), file.file_stem()) else {
            continue;
        };
        let stem = stem.to_string_lossy();
        let in_src = file.components().any(|c| c.as_os_str() == "src");
        let top = dir.ends_with("src") && (stem == "lib" || stem == "main");
        if !in_src || top || dir.ends_with("bin") || stem == "build" {
            continue;
        }
        let (owner_dir, module) = if stem == "mod" {
            let name = dir
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            (dir.parent().unwrap_or(dir), name)
        } else {
            (dir, stem.into_owned())
        };
        let owners = [
            owner_dir.join("lib.rs"),
            owner_dir.join("main.rs"),
            owner_dir.join("mod.rs"),
            owner_dir.with_extension("rs"),
        ];
        let siblings = files
            .iter()
            .filter(|f| f.parent() == Some(owner_dir))
            .cloned();
        let declares = |owner: &PathBuf| {
            let text = fs::read_to_string(root.join(owner)).unwrap_or_default();
            text.lines().map(str::trim).any(|line| {
                line.ends_with(&format!("mod {module};"))
                    || line.contains(&format!("/{module}.rs\"]"))
                    || line.contains(&format!("\"{module}.rs\"]"))
            })
        };
        if !owners
            .iter()
            .cloned()
            .chain(siblings)
            .any(|owner| declares(&owner))
        {
            found.push(format!(
                "{}: no `mod {module};` reaches this file",
                file.display()
            ));
        }
    }
    found
}

/// Dependency direction, and a reason for every dependency.
fn dependencies(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (krate, allowed) in MAY_USE {
        let manifest = fs::read_to_string(root.join(krate).join("Cargo.toml"))?;
        let section = |title: &str| {
            let from = manifest.split_once(&format!("\n[{title}]\n"));
            from.map(|(_, rest)| rest.split("\n[").next().unwrap_or_default())
                .unwrap_or_default()
        };
        for line in section("dependencies").lines() {
            let Some(name) = line.split(['.', ' ', '=']).next().filter(|n| !n.is_empty()) else {
                continue;
            };
            if OURS.contains(&name) && !allowed.contains(&name) {
                found.push(format!("{krate}/Cargo.toml: must not depend on {name}"));
            }
        }
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let reasons = fs::read_to_string(root.join("docs/dependencies.md")).unwrap_or_default();
    let section = manifest
        .split_once("[workspace.dependencies]")
        .map_or("", |(_, rest)| rest);
    let section = section.split("\n[").next().unwrap_or_default();
    for line in section
        .lines()
        .filter(|l| !l.starts_with('#') && !l.contains("path ="))
    {
        let Some((name, _)) = line.split_once(" = ") else {
            continue;
        };
        if !reasons.contains(&format!("`{name}`")) {
            found.push(format!("docs/dependencies.md: no reason for `{name}`"));
        }
    }
    found.extend(unused_dependencies(root, section)?);
    Ok(found)
}

/// A dependency that no crate of the workspace names.
fn unused_dependencies(root: &Path, section: &str) -> Result<Vec<String>> {
    let mut manifests = fs::read_to_string(root.join("tests/Cargo.toml"))?;
    for (krate, _) in MAY_USE {
        manifests.push_str(&fs::read_to_string(root.join(krate).join("Cargo.toml"))?);
    }
    let names = section
        .lines()
        .filter_map(|line| line.split_once(" = ").map(|(name, _)| name));
    let unused = names.filter(|name| {
        !manifests.contains(&format!("\n{name}.workspace"))
            && !manifests.contains(&format!("\n{name} = {{ workspace"))
    });
    Ok(unused
        .map(|name| format!("Cargo.toml: no crate uses {name}"))
        .collect())
}

/// Every decision page is linked from the architecture page.
fn decisions(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let architecture = fs::read_to_string(root.join("docs/architecture.md")).unwrap_or_default();
    for entry in fs::read_dir(root.join("docs/decisions"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") && !architecture.contains(&name) {
            found.push(format!(
                "docs/decisions/{name}: not linked from docs/architecture.md"
            ));
        }
    }
    Ok(found)
}
