//! Programs at interfaces of kernels before TCX (Linux 6.6): filters of `clsact`, which stay when
//! this process ends. Beside the links a pinned program stands for each, so that `--cleanup` and
//! later processes know which filters are ours.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::programs::{Program, TcAttachType};
use linux::bpf;
use linux::netlink::Netlink;
use linux::tc_bpf::{self, Direction, Filter};

use super::node::Interface;
use super::object::program_fd;

/// First letters of the pins that stand for filters.
pub const FILTER: &str = "clsact-";

/// First letters of the pins that say that the discipline is ours, too.
const DISCIPLINE: &str = "qdisc-";

/// Before what others add without a wish of their own (49152).
const PRIORITY: u16 = 5;
/// Tells ours from others of that priority.
const HANDLE: u16 = 0x5ea;

/// The direction of a program, and its filter.
fn filter(name: &str) -> (Direction, Filter<'static>) {
    let (direction, name) = match name {
        "egress" => (Direction::Egress, "seaway_egress"),
        _ => (Direction::Ingress, "seaway_ingress"),
    };
    let filter = Filter {
        priority: PRIORITY,
        handle: HANDLE,
        name,
    };
    (direction, filter)
}

/// The pin that stands for a filter.
pub fn pin(dir: &Path, index: u32, name: &str) -> PathBuf {
    dir.join(format!("{FILTER}{index}-{name}"))
}

/// The pin that says that the discipline of an interface is ours.
pub fn discipline_pin(dir: &Path, index: u32) -> PathBuf {
    dir.join(format!("{DISCIPLINE}{index}"))
}

/// What follows the first letters of a pin of this module's: the interface's index, and more.
pub fn without_prefix(file_name: &str) -> Option<&str> {
    let filter = file_name.strip_prefix(FILTER);
    filter.or_else(|| file_name.strip_prefix(DISCIPLINE))
}

/// Whether a pin is one of this module's.
pub fn is_ours(file_name: &str) -> bool {
    without_prefix(file_name).is_some()
}

/// Attaches a program, or with `renew` puts it in the place of an earlier process's; whether the
/// interface is new.
///
/// # Errors
/// The kernel's refusal.
pub fn attach(
    dir: &Path,
    program: &Program,
    (name, at): (&str, TcAttachType),
    interface: &Interface,
    renew: bool,
) -> Result<bool> {
    debug_assert_eq!(
        matches!(at, TcAttachType::Egress),
        filter(name).0 == Direction::Egress
    );
    let (index, link) = (interface.index, interface.name.as_str());
    let (direction, filter) = filter(name);
    let mut netlink = Netlink::open()?;
    let path = pin(dir, index, name);
    let there = path.exists()
        && tc_bpf::has_filter(&mut netlink, link, index, direction, &filter).unwrap_or(false);
    if there && !renew {
        return Ok(false);
    }
    let fd = program_fd(program)?;
    if tc_bpf::ensure_clsact(&mut netlink, link, index)? {
        replace_pin(fd, &discipline_pin(dir, index))?;
    }
    // The pin first: a filter without one would be nobody's.
    replace_pin(fd, &path)?;
    tc_bpf::set_filter(&mut netlink, link, index, direction, &filter, fd)?;
    Ok(!there)
}

fn replace_pin(program: std::os::fd::BorrowedFd<'_>, path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    Ok(bpf::pin(program, path)?)
}

/// Takes away what a pin stands for, and the pin. Filters go before disciplines: the caller gives
/// the pins in order of their names.
///
/// # Errors
/// The kernel's refusal.
pub fn detach(path: &Path) -> Result<()> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let mut netlink = Netlink::open()?;
    if let Some(rest) = file.strip_prefix(FILTER)
        && let Some((index, name)) = rest.split_once('-')
        && let Ok(index) = index.parse()
    {
        let (direction, filter) = filter(name);
        let link = format!("interface {index}");
        tc_bpf::remove_filter(&mut netlink, &link, index, direction, &filter)?;
    } else if let Some(index) = file.strip_prefix(DISCIPLINE)
        && let Ok(index) = index.parse()
    {
        let link = format!("interface {index}");
        tc_bpf::remove_empty_clsact(&mut netlink, &link, index)?;
    }
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))
}

/// Takes away all of a directory's.
///
/// # Errors
/// The kernel's refusal.
pub fn detach_all(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| is_ours(&path.file_name().unwrap_or_default().to_string_lossy()));
    paths.sort_unstable();
    paths.iter().try_for_each(|path| detach(path))
}
