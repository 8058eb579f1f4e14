//! The guests' kernels: Debian packages, installed or unpacked below the target folder.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use linux::exec::{Exec, Output, which};

use super::Lane;
use crate::run::target_dir;
use crate::setup;

/// Fetching and unpacking a kernel on a slow mirror.
const FETCH_TIMEOUT: Duration = Duration::from_secs(900);

/// Packages of both lanes, with the program that shows that one is there.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox-static", "busybox"),
    ("kmod", "modprobe"),
    ("iproute2", "ip"),
    ("nftables", "nft"),
    ("iptables", "iptables-restore"),
    ("ipvsadm", "ipvsadm"),
    ("ipset", "ipset"),
];

/// A kernel that can be booted.
#[derive(Debug, Clone)]
pub(crate) struct GuestKernel {
    /// The kernel image (`tcg`) or program (`uml`).
    pub(super) image: PathBuf,
    /// Folder with a folder of modules for each kernel.
    pub(super) modules: PathBuf,
}

/// What a guest needs cannot be had here: no rights, no Debian, or no way to its packages.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl Missing {
    fn because(error: anyhow::Error) -> anyhow::Error {
        Self(format!("{error:#}")).into()
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Installs what the lane needs, and finds its kernel.
///
/// # Errors
/// [`Missing`] when that is not to be had on this machine.
pub(crate) fn prepare(lane: Lane) -> Result<GuestKernel> {
    let mut packages = PACKAGES.to_vec();
    packages.push(match lane {
        Lane::Tcg => ("qemu-system-x86", "qemu-system-x86_64"),
        Lane::Uml => ("user-mode-linux", "linux.uml"),
    });
    setup::ensure(&packages).map_err(Missing::because)?;
    match lane {
        Lane::Uml => Ok(GuestKernel {
            image: which("linux.uml").context("find linux.uml")?,
            modules: "/usr/lib/uml/modules".into(),
        }),
        Lane::Tcg => {
            let dir = target_dir().join("vm");
            let kernel = dir.join("kernel");
            if !kernel.exists() {
                fetch(&dir, &kernel).context("fetch the guest's kernel")?;
            }
            Ok(GuestKernel {
                image: kernel.join("vmlinuz"),
                modules: kernel.join("lib/modules"),
            })
        }
    }
}

/// The newest cloud kernel of Debian backports, unpacked and never installed: the machine's own
/// kernel and boot loader are left alone. It lies in a folder named after the package's checksum,
/// which apt-get has verified; `kernel` is a link to it.
fn fetch(dir: &Path, kernel: &Path) -> Result<()> {
    let apt = Apt::new(&dir.join("apt")).map_err(Missing::because)?;
    let package = newest(&apt).map_err(Missing::because)?;
    let shown = apt.run("apt-cache", &["show", &package])?.text();
    let checksum = shown
        .lines()
        .find_map(|line| line.strip_prefix("SHA256: "))
        .context("the package has no checksum")?
        .trim()
        .to_owned();
    let home = dir.join(format!("kernel-{checksum}"));
    if !home.exists() {
        println!("vm: fetching {package}");
        unpack(&apt, &package, &dir.join("new"))?;
        fs::rename(dir.join("new"), &home)?;
    }
    match fs::remove_file(kernel) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => bail!("{}: {e}", kernel.display()),
        _ => {}
    }
    std::os::unix::fs::symlink(&home, kernel)?;
    fs::remove_dir_all(&apt.dir)?;
    Ok(())
}

/// The name of the newest cloud kernel's package.
fn newest(apt: &Apt) -> Result<String> {
    apt.run("apt-get", &["update"])?;
    let depends = apt
        .run("apt-cache", &["depends", "linux-image-cloud-amd64"])?
        .text();
    let mut names = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    let name = names.find(|name| name.starts_with("linux-image"));
    Ok(name.context("backports name no cloud kernel")?.to_owned())
}

fn unpack(apt: &Apt, package: &str, to: &Path) -> Result<()> {
    match fs::remove_dir_all(to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => bail!("{}: {e}", to.display()),
        _ => {}
    }
    let download = apt.run("apt-get", &["download", package]);
    download.map_err(Missing::because)?;
    let archive = fs::read_dir(&apt.dir)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .context("apt-get left no package")?;
    let run = |exec: Exec| exec.timeout(FETCH_TIMEOUT).run();
    run(Exec::new("dpkg-deb").arg("-x").arg(&archive).arg(to))?;
    let modules = to.join("lib/modules");
    let version = fs::read_dir(&modules)?
        .flatten()
        .next()
        .context("the package has no modules")?
        .file_name();
    // Inside, every byte that is decompressed costs twenty times as much.
    let find = "find \"$0\" -name '*.ko.xz' -print0 | xargs -0 -r -P\"$(nproc)\" -n50 unxz";
    run(Exec::new("sh").args(["-c", find]).arg(&modules))?;
    run(Exec::new("depmod").arg("-b").arg(to).arg(&version))?;
    let image = format!("vmlinuz-{}", version.to_string_lossy());
    fs::rename(to.join("boot").join(image), to.join("vmlinuz"))?;
    Ok(())
}

/// `apt-get` with lists of its own, so that the machine's package choices stay as they are.
struct Apt {
    dir: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(dir: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let (mirror, release) = mirror()?;
        let list = dir.join("backports.list");
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        fs::write(
            &list,
            format!("deb [signed-by={keyring}] {mirror} {release}-backports main\n"),
        )?;
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", dir.join("lists").display()),
            format!("Dir::Cache={}", dir.join("cache").display()),
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self {
            dir: dir.to_owned(),
            options: options
                .into_iter()
                .flat_map(|option| ["-o".to_owned(), option])
                .chain(["-q".to_owned()])
                .collect(),
        })
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let exec = Exec::new(program).args(&self.options).args(args);
        Ok(exec.dir(&self.dir).timeout(FETCH_TIMEOUT).run()?)
    }
}

/// Where this machine gets its packages from, and the name of its release.
fn mirror() -> Result<(String, String)> {
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let release = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no release: this is not Debian")?
        .to_owned();
    let sources = fs::read_to_string("/etc/apt/sources.list.d/debian.sources")
        .or_else(|_| fs::read_to_string("/etc/apt/sources.list"))
        .context("read apt's sources")?;
    let mirror = sources.lines().find_map(|line| {
        let line = line.trim();
        let mut words = line
            .strip_prefix("URIs:")
            .or(line.strip_prefix("deb "))?
            .split_whitespace();
        words.find(|word| word.contains("://")).map(str::to_owned)
    });
    Ok((mirror.context("apt's sources name no mirror")?, release))
}
