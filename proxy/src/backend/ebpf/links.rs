//! Attaching: programs at the control group and at interfaces, by links that are pinned and
//! outlive this process. A new process puts its programs under the live links.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{CgroupAttachMode, LinkOrder, Program, TcAttachType};
use linux::bpf::{self, LinkInfo};
use linux::cgroup::Hierarchies;

use super::node::{Facts, Interface};
use super::object::{Object, program_fd};
use super::{Attach, clsact};

/// Programs at the control group.
pub const SOCKET_PROGRAMS: [&str; 10] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "bind4",
    "bind6",
];

/// Programs at interfaces. What comes in is translated only where what goes out is.
const INTERFACE_PROGRAMS: [(&str, TcAttachType); 2] = [
    ("egress", TcAttachType::Egress),
    ("ingress", TcAttachType::Ingress),
];

/// First letters of pinned links to interfaces.
const TCX: &str = "tcx-";

/// The control group to attach to: the given one, or the root of cgroup v2.
///
/// # Errors
/// There is none.
pub fn cgroup(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = given {
        if !dir.join("cgroup.procs").is_file() || !is_v2(dir) {
            bail!("{} is no directory of cgroup v2", dir.display());
        }
        return Ok(dir.to_owned());
    }
    let found = Hierarchies::detect()?.v2;
    found.context("no cgroup v2 is mounted, which programs at sockets need")
}

/// Version 1 has no `cgroup.type` nor, at its root, `cgroup.controllers`.
fn is_v2(dir: &Path) -> bool {
    dir.join("cgroup.controllers").is_file()
}

/// Attaches the programs at sockets, or replaces those under links of an earlier process.
///
/// # Errors
/// The kernel's refusal.
pub fn attach_sockets(object: &mut Object, cgroup: &Path) -> Result<()> {
    let group = File::open(cgroup).with_context(|| format!("open {}", cgroup.display()))?;
    let id = group.metadata().context("look at the control group")?.ino();
    let dir = object.links_dir();
    for name in SOCKET_PROGRAMS {
        let path = dir.join(name);
        let program = object.ebpf().program_mut(name);
        let program = program.with_context(|| format!("no program {name}"))?;
        if replace(&path, program, |info| info.cgroup_id() == id)? {
            continue;
        }
        let Program::CgroupSockAddr(program) = program else {
            bail!("{name} is no program for sockets");
        };
        let what = || format!("attach {name} to {}", cgroup.display());
        let link = program
            .attach(&group, CgroupAttachMode::Single)
            .with_context(what)?;
        let link = program.take_link(link).with_context(what)?;
        let link: FdLink = link.try_into().with_context(what)?;
        link.pin(&path).with_context(what)?;
    }
    Ok(())
}

/// Replaces the program under the link at `path` where that is a live link to the same place;
/// removes one that is not.
pub(super) fn replace(
    path: &Path,
    program: &Program,
    same: impl Fn(&LinkInfo) -> bool,
) -> Result<bool> {
    let link = match bpf::open_pinned(path) {
        Ok(link) => link,
        Err(e) if e.is_not_found() => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    if same(&bpf::link_info(link.as_fd())?) {
        match bpf::replace_program(link.as_fd(), program_fd(program)?) {
            Ok(()) => return Ok(true),
            // The control group or the interface is gone, and the link is dead.
            Err(e) if e.errno() == Some(nix::errno::Errno::ENOLINK as i32) => {}
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        }
    }
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    Ok(false)
}

/// Attaches the programs at interfaces that have none yet; with `renew` it also replaces those under
/// links of an earlier process. Removes the links of interfaces that are gone. Returns the names of
/// interfaces newly attached to.
///
/// # Errors
/// The kernel's refusal for all of them; one that refuses alone is logged.
pub fn attach_interfaces(object: &mut Object, facts: &Facts, renew: bool) -> Result<Vec<String>> {
    let dir = object.links_dir();
    let mut new = Vec::new();
    let mut wanted = Vec::new();
    let mut failed = None;
    for (name, at) in INTERFACE_PROGRAMS {
        let is_wanted = |interface: &&Interface| match at {
            TcAttachType::Egress => interface.is_exit(),
            _ => interface.is_attached(),
        };
        for interface in facts.interfaces.iter().filter(is_wanted) {
            let (path, result) = match object.attach {
                Attach::Tcx => {
                    let path = dir.join(format!("{TCX}{}-{name}", interface.index));
                    let result = attach_tcx(object, &path, (name, at), interface, renew);
                    (path, result)
                }
                Attach::Clsact => {
                    wanted.push(clsact::discipline_pin(&dir, interface.index));
                    let program = object.ebpf().program(name);
                    let program = program.with_context(|| format!("no program {name}"))?;
                    let result = clsact::attach(&dir, program, (name, at), interface, renew);
                    (clsact::pin(&dir, interface.index, name), result)
                }
            };
            match result {
                Ok(true) => new.push(format!("{}/{name}", interface.name)),
                Ok(false) => {}
                Err(error) => failed = Some(error),
            }
            wanted.push(path);
        }
    }
    forget_others(&dir, &wanted)?;
    match failed {
        Some(error) if new.is_empty() => Err(error),
        Some(error) => {
            tracing::warn!("{error:#}");
            Ok(new)
        }
        None => Ok(new),
    }
}

/// Detaches from interfaces that are gone or no longer to be attached to, and what was attached in
/// the other way.
fn forget_others(dir: &Path, wanted: &[PathBuf]) -> Result<()> {
    for path in pins(dir).filter(|path| !wanted.contains(path)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if interface_of(&name).is_none() {
            continue;
        }
        tracing::debug!(%name, "detached");
        if clsact::is_ours(&name) {
            clsact::detach(&path)?;
        } else {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Pins of a directory, in order.
pub(super) fn pins(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    all.sort_unstable();
    all.into_iter()
}

/// The interface that a pin of this name is about.
fn interface_of(name: &str) -> Option<u32> {
    let rest = name
        .strip_prefix(TCX)
        .or_else(|| clsact::without_prefix(name))?;
    leading_index(rest)
}

/// The index that stands first in what follows the first letters of a pin's name.
pub(super) fn leading_index(rest: &str) -> Option<u32> {
    rest.split('-').next()?.parse().ok()
}

/// Interfaces that something of ours is attached to, by what is pinned.
pub fn interfaces(dir: &Path) -> BTreeSet<u32> {
    let name = |path: PathBuf| path.file_name()?.to_str().and_then(interface_of);
    pins(dir).filter_map(name).collect()
}

fn attach_tcx(
    object: &mut Object,
    path: &Path,
    (name, at): (&str, TcAttachType),
    interface: &Interface,
    renew: bool,
) -> Result<bool> {
    let (index, interface) = (interface.index, interface.name.as_str());
    if !renew && let Ok(link) = bpf::open_pinned(path) {
        if bpf::link_info(link.as_fd())?.ifindex() == index {
            return Ok(false);
        }
        fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    let program = object.ebpf().program_mut(name);
    let program = program.with_context(|| format!("no program {name}"))?;
    if renew && replace(path, program, |info| info.ifindex() == index)? {
        return Ok(false);
    }
    let Program::SchedClassifier(program) = program else {
        bail!("{name} is no classifier");
    };
    let what = || format!("attach {name} to interface {interface} (TCX, Linux 6.6)");
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let link = program
        .attach_with_options(interface, at, order)
        .with_context(what)?;
    let link = program.take_link(link).with_context(what)?;
    let link: FdLink = link.try_into().with_context(what)?;
    link.pin(path).with_context(what)?;
    Ok(true)
}

/// Whether all programs at sockets are where they were attached.
pub fn sockets_are_attached(object: &Object, cgroup: &Path) -> bool {
    let Ok(id) = fs::metadata(cgroup).map(|meta| meta.ino()) else {
        return false;
    };
    SOCKET_PROGRAMS.iter().all(|name| {
        bpf::open_pinned(&object.links_dir().join(name))
            .and_then(|link| bpf::link_info(link.as_fd()))
            .is_ok_and(|info| info.cgroup_id() == id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_tell_their_interface() {
        for (name, expect) in [
            ("tcx-7-egress", Some(7)),
            ("clsact-12-ingress", Some(12)),
            ("qdisc-12", Some(12)),
            ("connect4", None),
            ("tcx-x-egress", None),
        ] {
            assert_eq!(interface_of(name), expect, "{name}");
        }
    }
}
