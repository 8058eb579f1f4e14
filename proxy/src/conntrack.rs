//! Which tracked UDP flows must go after a change, since they lead to where nobody serves any more.
//!
//! A UDP client that keeps its source port stays in one conntrack entry for ever, so without this
//! it would go on talking to an endpoint that is gone (or to no endpoint, when there was none at
//! first). TCP clients notice by themselves, and SCTP ones too: their entries are left alone.

mod busiest;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::cidr::Family;
use linux::conntrack::{Conntrack, Flow, UDP};
use linux::{Kernel, sysctl};

pub use self::busiest::{Counts, Owners, words};

use crate::model::{Decision, PortName, Protocol, ServiceName};

/// Where UDP services are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontends {
    /// Addresses.
    pub addresses: BTreeSet<SocketAddr>,
    /// Ports of the node's own addresses.
    pub node_ports: BTreeSet<u16>,
}

/// Who serves an address, and on whose behalf.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Served {
    by: BTreeSet<SocketAddr>,
    port: PortName,
}

/// For each address (or node port) of a changed port: the endpoints that serve it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    addresses: BTreeMap<SocketAddr, Served>,
    node_ports: BTreeMap<u16, Served>,
}

impl Changed {
    /// All that is served at `frontends` is gone.
    pub fn gone(frontends: &Frontends) -> Self {
        let nobody = || Served {
            by: BTreeSet::new(),
            port: PortName::first(&ServiceName::new("", "all")),
        };
        let Frontends {
            addresses,
            node_ports,
        } = frontends;
        Self {
            addresses: addresses.iter().map(|at| (*at, nobody())).collect(),
            node_ports: node_ports.iter().map(|port| (*port, nobody())).collect(),
        }
    }

    /// Takes a port's change in: what it was, and what it is now.
    pub fn add(&mut self, old: Option<&Arc<Decision>>, new: Option<&Arc<Decision>>) {
        // What is not there any more serves nobody, unless another port has taken its address.
        for (decision, serves) in [(old, false), (new, true)] {
            let Some(decision) = decision.filter(|d| d.name.protocol == Protocol::Udp) else {
                continue;
            };
            let empty = || Served {
                by: BTreeSet::new(),
                port: decision.name.clone(),
            };
            let serving = decision.serving.iter().filter(|_| serves);
            for address in addresses(decision) {
                let served = self.addresses.entry(address).or_insert_with(empty);
                served.by.extend(serving.clone());
            }
            if let Some(port) = decision.node_port {
                let served = self.node_ports.entry(port).or_insert_with(empty);
                served.by.extend(serving.clone());
            }
        }
    }

    /// Nothing with UDP has changed.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.node_ports.is_empty()
    }

    /// The service port of a UDP flow that leads elsewhere than to a serving endpoint of it. A node
    /// port counts on the node's own addresses only: to others, the same number is not ours.
    pub fn stale(&self, flow: &Flow, is_local: impl Fn(IpAddr) -> bool) -> Option<&PortName> {
        if flow.protocol != UDP {
            return None;
        }
        let to = flow.original.destination;
        let served = match self.addresses.get(&to) {
            Some(served) => served,
            None => {
                let served = self.node_ports.get(&to.port())?;
                is_local(to.ip()).then_some(served)?
            }
        };
        (!served.by.contains(&flow.reply.source)).then_some(&served.port)
    }
}

/// Flows deleted, by service port.
pub type Deleted = BTreeMap<PortName, u64>;

/// How full the table is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Entries.
    pub entries: u64,
    /// The most there may be.
    pub limit: u64,
    /// Connections that could not be tracked since another one had the same addresses.
    pub insert_failed: u64,
    /// Packets dropped since the table was full.
    pub dropped: u64,
}

/// Part of the limit, in percent, from which on somebody should look.
const FULL_PERCENT: u64 = 90;

/// The part at which it is over.
const RELIEF_PERCENT: u64 = 80;

/// Tells when the table gets full, once each time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alarm {
    raised: bool,
    dropped: u64,
}

impl Alarm {
    /// A warning, when there is one that was not given yet.
    pub fn look(&mut self, pressure: Pressure) -> Option<String> {
        let Pressure { entries, limit, .. } = pressure;
        let lost = pressure.dropped.saturating_sub(self.dropped);
        self.dropped = pressure.dropped;
        let percent = (entries * 100).checked_div(limit)?;
        if percent < RELIEF_PERCENT && lost == 0 {
            self.raised = false;
        }
        if self.raised || (percent < FULL_PERCENT && lost == 0) {
            return None;
        }
        self.raised = true;
        Some(format!(
            "connection tracking has {entries} of {limit} entries ({percent} %), {lost} packets were dropped for want of room; raise --conntrack-max-per-core or --conntrack-min"
        ))
    }
}

/// Tracked flows: the kernel's, or a fake.
pub trait FlowTable {
    /// Deletes the stale flows of one family.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn clean(&mut self, family: Family, changed: &Changed) -> linux::Result<Deleted>;

    /// How full it is.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn pressure(&mut self) -> linux::Result<Pressure>;

    /// How many entries each service port has. Costs a walk through all of them.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn count(&mut self, owners: &Owners) -> linux::Result<Counts>;
}

/// The kernel's flows, in the calling thread's network namespace.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelFlows;

impl FlowTable for KernelFlows {
    fn clean(&mut self, family: Family, changed: &Changed) -> linux::Result<Deleted> {
        let local = if changed.node_ports.is_empty() {
            Vec::new()
        } else {
            crate::node::own_ips(&mut Kernel::open()?)?
        };
        let mut table = Conntrack::open()?;
        let mut deleted = Deleted::new();
        for flow in table.list(family == Family::V6, UDP)? {
            if let Some(port) = changed.stale(&flow, |ip| local.contains(&ip))
                && table.delete(&flow)?
            {
                *deleted.entry(port.clone()).or_default() += 1;
            }
        }
        Ok(deleted)
    }

    fn pressure(&mut self) -> linux::Result<Pressure> {
        let number = |key| -> linux::Result<u64> {
            let text = sysctl::read(&format!("net/netfilter/{key}"))?;
            Ok(text.parse().unwrap_or_default())
        };
        let stats = Conntrack::open()?.stats()?;
        Ok(Pressure {
            entries: number("nf_conntrack_count")?,
            limit: number("nf_conntrack_max")?,
            insert_failed: stats.insert_failed,
            dropped: stats.dropped,
        })
    }

    fn count(&mut self, owners: &Owners) -> linux::Result<Counts> {
        let local = crate::node::own_ips(&mut Kernel::open()?)?;
        let flows = Conntrack::open()?.list_all()?;
        Ok(owners.count(&flows, &local))
    }
}

/// Where a port is reached, but for node ports.
fn addresses(decision: &Decision) -> impl Iterator<Item = SocketAddr> {
    let ips = decision.cluster_ip.iter();
    let ips = ips
        .chain(&decision.external_ips)
        .chain(&decision.balancer_ips);
    ips.map(|ip| SocketAddr::new(*ip, decision.port))
}

#[cfg(test)]
mod tests;
