//! Opening the mode: what it needs is looked for before anything is changed.

use anyhow::{Context, Result, bail};
use api::cidr::Family;
use linux::ipvs::{Command, Ipvs, Protocol, Server, ServerId};
use linux::{Host, Kernel};

use super::apply::Plane;
use super::kernel::{Real, probe_device};
use super::{DEVICE, Options, filter};
use crate::backend::{Backend, Settings};

/// What the kernel says of a kind of link that it does not know.
const EOPNOTSUPP: i32 = nix::errno::Errno::EOPNOTSUPP as i32;

/// A virtual server that nobody has (an address for documentation, RFC 5737): whether the kernel
/// takes it says whether it has the scheduler.
const PROBE: ServerId = ServerId::Address {
    protocol: Protocol::Tcp,
    ip: std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 0)),
    port: 20_000,
};

/// Whether a process in this mode was here and did not clean up. It loads no module.
pub fn is_there() -> bool {
    let device = Kernel::open().and_then(|mut kernel| kernel.link(DEVICE));
    matches!(device, Ok(Some(_)))
}

/// Opens both families.
///
/// # Errors
/// Names what the kernel lacks.
pub fn open(
    options: &Options,
    settings: impl Fn(Family) -> Settings,
) -> Result<Vec<(Family, Box<dyn Backend>)>> {
    let mut ipvs = match Ipvs::open() {
        Err(e) if e.is_not_found() => bail!("this kernel has no IPVS (module ip_vs)"),
        opened => opened?,
    };
    match probe_device() {
        Err(e) if e.errno() == Some(EOPNOTSUPP) => {
            bail!("this kernel has no dummy devices (module dummy)")
        }
        probed => probed?,
    }
    probe_scheduler(&mut ipvs, options)?;
    let mut planes: Vec<(Family, Box<dyn Backend>)> = Vec::new();
    for family in Family::BOTH {
        let opened = filter::open(family)
            .and_then(|filter| Real::open(family, filter))
            .and_then(|machine| Plane::new(machine, settings(family), options.clone()));
        match (opened, family) {
            (Ok(plane), _) => planes.push((family, Box::new(plane))),
            (Err(error), Family::V6) => tracing::warn!("no IPv6 services: {error}"),
            (Err(error), Family::V4) => return Err(error).context("IPv4 rules"),
        }
    }
    Ok(planes)
}

fn probe_scheduler(ipvs: &mut Ipvs, options: &Options) -> Result<()> {
    let server = Server {
        id: PROBE,
        scheduler: Some(options.scheduler),
        options: options.of_servers(),
        persistence: None,
    };
    let refused = ipvs.apply(&[Command::AddServer(server)])?;
    match refused.into_iter().next() {
        None => {
            ipvs.apply(&[Command::DeleteServer(PROBE)])?;
            Ok(())
        }
        // Another process is probing.
        Some((_, error)) if error.is_exists() => Ok(()),
        Some((_, error)) => {
            let name = options.scheduler.name();
            Err(error).with_context(|| {
                format!("this kernel has no scheduler {name} (module ip_vs_{name})")
            })
        }
    }
}
