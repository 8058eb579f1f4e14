//! What this mode reaches of the machine, behind one door; the real one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::cidr::Family;
use ipnetwork::IpNetwork;
use linux::ipvs::{Command, Destination, Ipvs, Server, ServerId, Timeouts};
use linux::link::LinkChange;
use linux::{Error, Host, Kernel, Result};

use super::filter::Filter;
use super::{DEVICE, Options, sysctls};

/// The free text on the device that we made. What has another was made by somebody else, e.g.
/// kube-proxy, and is taken over.
const ALIAS: &str = "seaway:ipvs";

/// Whether the kernel has dummy devices: there is ours, or one can be made.
///
/// # Errors
/// It has none.
pub fn probe_device() -> Result<()> {
    let mut kernel = Kernel::open()?;
    if kernel.link(DEVICE)?.is_some() {
        return Ok(());
    }
    let name = format!("sw-probe{}", std::process::id() % 1_000_000);
    match kernel.add_dummy(&name) {
        Err(e) if !e.is_exists() => Err(e),
        _ => kernel.ensure_no_link(&name).map(drop),
    }
}

/// The machine's addresses of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// On the dummy device.
    pub device: BTreeSet<IpAddr>,
    /// On all others, loopback addresses and link-local ones left out.
    pub node: BTreeSet<IpAddr>,
}

/// One family's share of a machine.
pub trait Machine: Send {
    /// Makes the device, and sets what the kernel must be told.
    ///
    /// # Errors
    /// The kernel's refusal; so for every function below.
    fn prepare(&mut self, options: &Options) -> Result<()>;

    /// All virtual servers of the family, also those of others.
    ///
    /// # Errors
    /// As [`Machine::prepare`].
    fn servers(&mut self) -> Result<Vec<Server>>;

    /// The destinations of one.
    ///
    /// # Errors
    /// As [`Machine::prepare`].
    fn destinations(&mut self, id: ServerId) -> Result<Vec<Destination>>;

    /// Makes changes in order; gives back those that were refused.
    ///
    /// # Errors
    /// As [`Machine::prepare`].
    fn apply(&mut self, commands: &[Command]) -> Result<Vec<(usize, Error)>>;

    /// The machine's addresses.
    ///
    /// # Errors
    /// As [`Machine::prepare`].
    fn addresses(&mut self) -> Result<Addresses>;

    /// Puts addresses on the device (true), or takes them away.
    ///
    /// # Errors
    /// As [`Machine::prepare`].
    fn bind(&mut self, changes: &[(IpAddr, bool)]) -> Result<()>;

    /// Takes the device away once no address is left on it.
    ///
    /// # Errors
    /// As [`Machine::prepare`].
    fn remove_device(&mut self) -> Result<()>;

    /// The rules and sets.
    fn filter(&mut self) -> &mut dyn Filter;
}

/// The real machine.
pub struct Real {
    family: Family,
    ipvs: Ipvs,
    kernel: Kernel,
    filter: Box<dyn Filter>,
}

impl Real {
    /// One family of this network namespace.
    ///
    /// # Errors
    /// The kernel has no IPVS.
    pub fn open(family: Family, filter: Box<dyn Filter>) -> Result<Self> {
        Ok(Self {
            family,
            ipvs: Ipvs::open()?,
            kernel: Kernel::open()?,
            filter,
        })
    }

    fn is_ours(&self, ip: IpAddr) -> bool {
        Family::of(ip) == self.family
    }
}

impl Machine for Real {
    fn prepare(&mut self, options: &Options) -> Result<()> {
        match self.kernel.add_dummy(DEVICE) {
            Ok(()) => {
                let alias = LinkChange {
                    alias: Some(ALIAS.to_owned()),
                    ..LinkChange::default()
                };
                self.kernel.set_link(DEVICE, &alias)?;
            }
            Err(e) if e.is_exists() => {}
            Err(e) => return Err(e),
        }
        sysctls::ensure(&mut self.kernel, self.family, options)?;
        if options.timeouts != Timeouts::default() {
            self.ipvs.set_timeouts(&options.timeouts)?;
        }
        Ok(())
    }

    fn servers(&mut self) -> Result<Vec<Server>> {
        let ipv6 = self.family == Family::V6;
        let mut all = self.ipvs.servers()?;
        all.retain(|server| server.id.is_ipv6() == ipv6);
        Ok(all)
    }

    fn destinations(&mut self, id: ServerId) -> Result<Vec<Destination>> {
        self.ipvs.destinations(id)
    }

    fn apply(&mut self, commands: &[Command]) -> Result<Vec<(usize, Error)>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        self.ipvs.apply(commands)
    }

    fn addresses(&mut self) -> Result<Addresses> {
        let mut addresses = Addresses::default();
        for (link, addr) in self.kernel.all_addrs()? {
            let ip = addr.net.ip();
            let link_local = match ip {
                IpAddr::V4(_) => false,
                IpAddr::V6(ip) => ip.is_unicast_link_local(),
            };
            if !self.is_ours(ip) || ip.is_loopback() || link_local {
                continue;
            }
            if link == DEVICE {
                addresses.device.insert(ip);
            } else {
                addresses.node.insert(ip);
            }
        }
        Ok(addresses)
    }

    fn bind(&mut self, changes: &[(IpAddr, bool)]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let nets: Vec<(IpNetwork, bool)> = changes
            .iter()
            .map(|(ip, wanted)| (IpNetwork::from(*ip), *wanted))
            .collect();
        match self.kernel.change_addrs(DEVICE, &nets)?.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn remove_device(&mut self) -> Result<()> {
        let all = self.kernel.all_addrs()?;
        if all.iter().any(|(link, _)| link == DEVICE) {
            return Ok(());
        }
        self.kernel.ensure_no_link(DEVICE).map(drop)
    }

    fn filter(&mut self) -> &mut dyn Filter {
        self.filter.as_mut()
    }
}
