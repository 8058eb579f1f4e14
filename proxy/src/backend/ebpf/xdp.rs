//! Before the network stack (XDP), where it is asked for: one program more at interfaces to the
//! outside. It takes nothing from the programs of [`super::links`], which do all that it leaves; so
//! where it cannot be had, that is said once and they do the rest.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::programs::Program;
use ebpf_common::abi::{IFACE_PODS, is_v4};
use ebpf_common::resolve::within;
use linux::bpf;

use super::links::{self, replace};
use super::node::{Facts, Interface, NodePlan};
use super::object::{Object, program_fd};
use super::plan::addr;

/// The program in the object.
const PROGRAM: &str = "before_stack";

/// First letters of pinned links.
const XDP: &str = "xdp-";

/// Kinds of links that a node has to the outside; physical ones are of none.
const KINDS: [&str; 2] = ["bond", "veth"];

/// Where the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// At the entrance of the stack, with every driver.
    Generic,
    /// In the driver where that can do it.
    Auto,
}

impl Mode {
    /// How the kernel is asked, in order.
    fn ways(self) -> &'static [Mode] {
        match self {
            Self::Native => &[Self::Native],
            Self::Generic => &[Self::Generic],
            Self::Auto => &[Self::Native, Self::Generic],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Native | Self::Auto => "native",
            Self::Generic => "generic",
        }
    }

    fn pin(self, dir: &Path, index: u32) -> PathBuf {
        dir.join(format!("{XDP}{index}-{}", self.name()))
    }
}

/// What is wanted, and what has been found out.
#[derive(Debug)]
pub struct Xdp {
    /// `None`: switched off.
    wanted: Option<Mode>,
    /// Interfaces that refused: a driver may stop a device for a moment at each attempt.
    refused: BTreeSet<u32>,
    /// The kernel refuses the program.
    is_unusable: bool,
}

impl Xdp {
    /// Nothing is attached yet.
    pub fn new(wanted: Option<Mode>) -> Self {
        Self {
            wanted,
            refused: BTreeSet::new(),
            is_unusable: false,
        }
    }

    /// Attaches to interfaces to the outside that have no program yet; with `renew` it also replaces
    /// those of an earlier process. Detaches from all others, and from all where it is switched off.
    ///
    /// # Errors
    /// Links cannot be taken away.
    pub fn attach(
        &mut self,
        object: &mut Object,
        facts: &Facts,
        plan: &NodePlan,
        renew: bool,
    ) -> Result<()> {
        let dir = object.links_dir();
        let mut kept = Vec::new();
        self.refused
            .retain(|index| facts.interfaces.iter().any(|i| i.index == *index));
        if let Some(wanted) = self.wanted
            && let Some(program) = self.program(object)
        {
            for interface in outward(facts, plan, &held(&dir)) {
                if self.refused.contains(&interface.index) {
                    continue;
                }
                match attach_one(program, &dir, interface, wanted, renew) {
                    Ok(path) => kept.push(path),
                    Err(error) => {
                        tracing::warn!("{error:#}: {} goes without XDP", interface.name);
                        self.refused.insert(interface.index);
                    }
                }
            }
        }
        pins(&dir)
            .iter()
            .filter(|path| !kept.contains(path))
            .try_for_each(|path| detach(path))
    }

    /// The program, loaded; `None`, and said once, where the kernel refuses it.
    fn program<'a>(&mut self, object: &'a mut Object) -> Option<&'a Program> {
        if self.is_unusable {
            return None;
        }
        let program = object.ebpf().program_mut(PROGRAM)?;
        if let Program::Xdp(xdp) = program
            && xdp.fd().is_err()
            && let Err(error) = xdp.load()
        {
            let why = super::object::chain(&error);
            tracing::warn!("the kernel refuses the program for XDP, which is not used: {why}");
            self.is_unusable = true;
            return None;
        }
        Some(program)
    }
}

/// What is pinned of this module.
fn pins(dir: &Path) -> Vec<PathBuf> {
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(XDP)
    };
    links::pins(dir).filter(is_ours).collect()
}

/// Interfaces that a link is pinned for.
fn held(dir: &Path) -> BTreeSet<u32> {
    let index =
        |path: PathBuf| links::leading_index(path.file_name()?.to_str()?.strip_prefix(XDP)?);
    pins(dir).into_iter().filter_map(index).collect()
}

/// Interfaces on which clients outside come: not those of pods, nor bridges, their ports or tunnels.
/// Those of `held` have the program: without an address for a while they keep it, since drivers may
/// stop a device for a moment when it comes or goes.
pub fn outward<'a>(facts: &'a Facts, plan: &NodePlan, held: &BTreeSet<u32>) -> Vec<&'a Interface> {
    let is_of_pods = |interface: &Interface| {
        let known = plan.ifaces.get(&interface.index);
        known.is_none_or(|iface| iface.flags & IFACE_PODS != 0)
    };
    let is_outside = |ip: &std::net::IpAddr| {
        let ip = addr(*ip);
        let family = usize::from(!is_v4(&ip));
        let bits = plan.config.pods_bits[family];
        bits == 0 || !within(&ip, &plan.config.pods[family], bits)
    };
    let outward = facts.interfaces.iter().filter(|interface| {
        let kind = interface.kind.as_deref();
        interface.is_exit()
            && kind.is_none_or(|kind| KINDS.contains(&kind))
            && !is_of_pods(interface)
            && (interface.ips.iter().any(is_outside)
                || (interface.ips.is_empty() && held.contains(&interface.index)))
    });
    outward.collect()
}

/// Attaches to one interface; returns where the link is pinned.
fn attach_one(
    program: &Program,
    dir: &Path,
    interface: &Interface,
    wanted: Mode,
    renew: bool,
) -> Result<PathBuf> {
    let index = interface.index;
    for way in wanted.ways() {
        let path = way.pin(dir, index);
        if is_there(&path, program, index, renew)? {
            return Ok(path);
        }
    }
    // The other way of an earlier process: a device has one at a time.
    for way in Mode::Auto.ways() {
        detach(&way.pin(dir, index))?;
    }
    let mut refusals = Vec::new();
    for way in wanted.ways() {
        match bpf::attach_xdp(program_fd(program)?, index, *way == Mode::Generic) {
            Ok(link) => {
                let path = way.pin(dir, index);
                bpf::pin(link.as_fd(), &path)?;
                tracing::info!("attached to {}/xdp ({})", interface.name, way.name());
                return Ok(path);
            }
            Err(error) => refusals.push(format!("{} ({})", error, way.name())),
        }
    }
    bail!("{}", refusals.join(", "))
}

/// Whether a live link is pinned at `path`; with `renew` our program is under it then.
fn is_there(path: &Path, program: &Program, index: u32, renew: bool) -> Result<bool> {
    if renew {
        return replace(path, program, |info| info.ifindex() == index);
    }
    match bpf::open_pinned(path) {
        Ok(link) => Ok(bpf::link_info(link.as_fd())?.ifindex() == index),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Takes a link away at once: without being told the kernel lets go of it a moment later.
fn detach(path: &Path) -> Result<()> {
    let link = match bpf::open_pinned(path) {
        Ok(link) => link,
        Err(e) if e.is_not_found() => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    bpf::detach(link.as_fd())?;
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::abi::{Config, Iface};

    fn interface(index: u32, name: &str, kind: Option<&str>, ips: &[&str]) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            master: None,
            is_ethernet: true,
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn pods_bridges_ports_and_tunnels_are_left_alone() {
        let port = Interface {
            master: Some(3),
            ..interface(4, "eth1", None, &["192.0.2.4"])
        };
        let facts = Facts {
            interfaces: vec![
                interface(1, "lo", None, &["127.0.0.1"]),
                interface(2, "eth0", None, &["192.0.2.2"]),
                interface(3, "br0", Some("bridge"), &["192.0.2.3"]),
                port,
                interface(5, "veth5", Some("veth"), &["10.180.0.254", "fd00:180::fe"]),
                interface(6, "pod6", Some("veth"), &["192.0.2.6"]),
                interface(7, "eth7", Some("veth"), &["10.180.0.253", "2001:db8::7"]),
                interface(8, "vxlan8", Some("vxlan"), &["192.0.2.8"]),
                interface(9, "eth9", None, &[]),
            ],
            ..Facts::default()
        };
        let mut config = Config::default();
        for (i, (net, bits)) in [("10.180.0.0", 96 + 16), ("fd00:180::", 32)]
            .into_iter()
            .enumerate()
        {
            config.pods[i] = addr(net.parse().unwrap());
            config.pods_bits[i] = bits;
        }
        let mut plan = NodePlan {
            config,
            ..NodePlan::default()
        };
        for interface in facts.interfaces.iter().filter(|i| i.is_attached()) {
            let flags = if interface.name == "pod6" {
                IFACE_PODS
            } else {
                0
            };
            let iface = Iface {
                flags,
                ..Iface::default()
            };
            plan.ifaces.insert(interface.index, iface);
        }
        let names = |held: &[u32]| -> Vec<&str> {
            let held = held.iter().copied().collect();
            let found = outward(&facts, &plan, &held);
            found.iter().map(|i| i.name.as_str()).collect()
        };
        assert_eq!(names(&[]), ["eth0", "eth7"]);
        // One that has lost its address keeps its program, one that is of pods by now does not.
        assert_eq!(names(&[2, 5, 9]), ["eth0", "eth7", "eth9"]);
    }
}
