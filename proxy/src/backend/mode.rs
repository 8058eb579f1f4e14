//! The modes, and how each is opened.

use anyhow::{Context, Result, anyhow};
use api::cidr::Family;
use linux::iptables::{self, Iptables};
use linux::nftables::Nftables;

use super::ebpf::object::InUse;
use super::ebpf::{Place, probe};
use super::iptables::apply::Plane;
use super::iptables::desired::Desired;
use super::nftables;
use super::{Backend, Settings, ipvs};
use crate::conntrack::{Changed, FlowTable, KernelFlows};

/// How services are programmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Rules of `iptables-restore`.
    Iptables,
    /// Maps and sets of nf_tables.
    Nftables,
    /// Virtual servers of the kernel's IPVS.
    Ipvs,
    /// Programs and maps of eBPF.
    Ebpf,
}

impl Mode {
    /// All, in order.
    pub const ALL: [Self; 4] = [Self::Iptables, Self::Nftables, Self::Ipvs, Self::Ebpf];

    /// As flags, files and pages write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
            Self::Ebpf => "ebpf",
        }
    }
}

/// Takes away what any mode left in the kernel, whichever was used last, and the UDP flows that it
/// translated. A mode that this node cannot have has left nothing.
///
/// # Errors
/// The last of what could not be done; all else was done.
pub fn cleanup(
    of_ipvs: &ipvs::Options,
    ebpf: &Place,
    settings: impl Fn(Family) -> Settings,
) -> Result<()> {
    let ebpf = (ebpf, InUse::Refuse);
    clean(&Mode::ALL, clean_plane, of_ipvs, ebpf, settings)
}

/// Takes away what a process in another mode left behind; called when `mode` serves, which the flows
/// go on with. What cannot be taken away is told, and is no reason to stop. Pins of a process that
/// serves in mode ebpf are waited for, so call it on a thread of its own.
pub fn remove_others(
    mode: Mode,
    of_ipvs: &ipvs::Options,
    ebpf: &Place,
    settings: impl Fn(Family) -> Settings,
) {
    let others: Vec<Mode> = Mode::ALL.into_iter().filter(|m| *m != mode).collect();
    let each = |_, plane: &mut dyn Backend| Ok(plane.cleanup()?);
    // What failed was told already.
    let ebpf = (ebpf, InUse::Wait);
    drop(clean(&others, each, of_ipvs, ebpf, settings));
}

/// Cleans up after `modes`, each plane by `each`. What cannot be done is told.
fn clean(
    modes: &[Mode],
    each: impl Fn(Family, &mut dyn Backend) -> Result<()>,
    of_ipvs: &ipvs::Options,
    (ebpf, in_use): (&Place, InUse),
    settings: impl Fn(Family) -> Settings,
) -> Result<()> {
    let mut result = Ok(());
    let mut done = |mode: Mode, cleaned: Result<()>| {
        let left = || format!("what mode {} left behind stays", mode.name());
        if let Err(error) = cleaned.with_context(left) {
            tracing::warn!("{error:#}");
            result = Err(error);
        }
    };
    for mode in modes.iter().copied() {
        match mode {
            // Removing pins needs nothing loaded.
            Mode::Ebpf => {
                done(mode, super::ebpf::apply::cleanup(ebpf, in_use));
                continue;
            }
            Mode::Ipvs if !ipvs::is_there() => continue,
            _ => {}
        }
        match open_with(mode, of_ipvs, ebpf, &settings) {
            Ok(planes) => {
                for (family, mut plane) in planes {
                    let cleaned = each(family, plane.as_mut());
                    done(mode, cleaned.with_context(|| family.to_string()));
                }
            }
            Err(error) => tracing::debug!("mode {}: {error:#}", mode.name()),
        }
    }
    result
}

fn clean_plane(family: Family, plane: &mut dyn Backend) -> Result<()> {
    let gone = Changed::gone(&plane.frontends().context("read what is served")?);
    plane.cleanup().context("take away what is ours")?;
    if !gone.is_empty() {
        KernelFlows
            .clean(family, &gone)
            .context("delete flows of services")?;
    }
    Ok(())
}

/// Opens `mode` for each family that the node has. `settings` are those of a family, `ebpf` says
/// where that mode attaches.
///
/// # Errors
/// What the mode needs is not there.
pub fn open(
    mode: Mode,
    ebpf: &Place,
    settings: impl Fn(Family) -> Settings,
) -> Result<Vec<(Family, Box<dyn Backend>)>> {
    open_with(mode, &ipvs::Options::default(), ebpf, settings)
}

/// Opens `mode` with the settings that only one mode has.
///
/// # Errors
/// As [`open`].
pub fn open_with(
    mode: Mode,
    of_ipvs: &ipvs::Options,
    ebpf: &Place,
    settings: impl Fn(Family) -> Settings,
) -> Result<Vec<(Family, Box<dyn Backend>)>> {
    match mode {
        Mode::Iptables => open_iptables(settings),
        Mode::Ipvs => ipvs::open(of_ipvs, settings).with_context(|| missing(mode)),
        Mode::Nftables => open_nftables(settings),
        Mode::Ebpf => {
            let support = probe::probe(ebpf);
            if !support.missing.is_empty() {
                return Err(anyhow!(support.lacks())).with_context(|| missing(mode));
            }
            super::ebpf::apply::open(ebpf, Family::BOTH.map(settings))
        }
    }
}

/// The mode for who names none: the default, nftables, where the kernel has it, else iptables; and why
/// it is not the default. Mode ebpf attaches to the whole node's sockets and interfaces, and is only
/// had by who asks for it.
pub fn choose() -> (Mode, Option<String>) {
    let probe =
        || Nftables::open().and_then(|mut nft| nftables::apply::probe(&mut nft, Family::V4));
    match probe() {
        Ok(()) => (Mode::Nftables, None),
        Err(error) => (Mode::Iptables, Some(error.to_string())),
    }
}

fn open_nftables(settings: impl Fn(Family) -> Settings) -> Result<Vec<(Family, Box<dyn Backend>)>> {
    let mut all: Vec<(Family, Box<dyn Backend>)> = Vec::new();
    for family in Family::BOTH {
        let mut tables = Nftables::open().context("tables of the kernel")?;
        match nftables::apply::probe(&mut tables, family) {
            Ok(()) => {}
            Err(error) if family == Family::V6 => {
                tracing::warn!("no IPv6 services: {error}");
                continue;
            }
            Err(error) => return Err(error).context("mode nftables"),
        }
        let plane = nftables::apply::Plane::new(tables, settings(family));
        all.push((family, Box::new(plane)));
    }
    Ok(all)
}

fn open_iptables(settings: impl Fn(Family) -> Settings) -> Result<Vec<(Family, Box<dyn Backend>)>> {
    let plane = |rules, family| -> Box<dyn Backend> {
        Box::new(Plane::new(rules, Desired::new(settings(family))))
    };
    let v4 = Iptables::detect(iptables::Family::V4).context("IPv4 rules")?;
    let mut all = vec![(Family::V4, plane(v4, Family::V4))];
    match Iptables::detect(iptables::Family::V6) {
        Ok(v6) => all.push((Family::V6, plane(v6, Family::V6))),
        Err(error) => tracing::warn!("no IPv6 services: {error}"),
    }
    Ok(all)
}

/// What to say of a mode that does not work here.
fn missing(mode: Mode) -> String {
    let mut works = Vec::new();
    if mode != Mode::Nftables && choose().0 == Mode::Nftables {
        works.push(Mode::Nftables.name());
    }
    if Iptables::detect(iptables::Family::V4).is_ok() {
        works.push(Mode::Iptables.name());
    }
    let others = if works.is_empty() {
        "no other mode works here, either".to_owned()
    } else {
        format!("modes that work here: {}", works.join(", "))
    };
    format!(
        "--mode {} does not work on this machine ({others})",
        mode.name()
    )
}
