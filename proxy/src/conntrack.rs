//! Which tracked UDP flows must go after a change, since they lead to where nobody serves any more.
//!
//! A UDP client that keeps its source port stays in one conntrack entry for ever, so without this
//! it would go on talking to an endpoint that is gone (or to no endpoint, when there was none at
//! first). TCP clients notice by themselves, and SCTP ones too: their entries are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::cidr::Family;
use linux::Kernel;
use linux::conntrack::{Conntrack, Flow, UDP};

use crate::model::{Decision, Protocol};

/// For each address (or node port) of a changed port: the endpoints that serve it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    addresses: BTreeMap<SocketAddr, BTreeSet<SocketAddr>>,
    node_ports: BTreeMap<u16, BTreeSet<SocketAddr>>,
}

impl Changed {
    /// Takes a port's change in: what it was, and what it is now.
    pub fn add(&mut self, old: Option<&Arc<Decision>>, new: Option<&Arc<Decision>>) {
        // What is not there any more serves nobody, unless another port has taken its address.
        if let Some(old) = old.filter(|old| old.name.protocol == Protocol::Udp) {
            for address in addresses(old) {
                self.addresses.entry(address).or_default();
            }
            if let Some(port) = old.node_port {
                self.node_ports.entry(port).or_default();
            }
        }
        let Some(new) = new.filter(|new| new.name.protocol == Protocol::Udp) else {
            return;
        };
        for address in addresses(new) {
            let serving = self.addresses.entry(address).or_default();
            serving.extend(new.serving.iter().copied());
        }
        if let Some(port) = new.node_port {
            let serving = self.node_ports.entry(port).or_default();
            serving.extend(new.serving.iter().copied());
        }
    }

    /// Nothing with UDP has changed.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.node_ports.is_empty()
    }

    /// Whether a UDP flow leads elsewhere than to a serving endpoint of its port. A node port
    /// counts on the node's own addresses only: to others, the same number is not ours.
    pub fn is_stale(&self, flow: &Flow, is_local: impl Fn(IpAddr) -> bool) -> bool {
        let to = flow.original.destination;
        let serving = match self.addresses.get(&to) {
            Some(serving) => serving,
            None => match self.node_ports.get(&to.port()) {
                Some(serving) if is_local(to.ip()) => serving,
                _ => return false,
            },
        };
        !serving.contains(&flow.reply.source)
    }
}

/// Tracked flows: the kernel's, or a fake.
pub trait FlowTable {
    /// Deletes the stale flows of one family; returns how many.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn clean(&mut self, family: Family, changed: &Changed) -> linux::Result<u64>;
}

/// The kernel's flows, in the calling thread's network namespace.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelFlows;

impl FlowTable for KernelFlows {
    fn clean(&mut self, family: Family, changed: &Changed) -> linux::Result<u64> {
        let local = if changed.node_ports.is_empty() {
            Vec::new()
        } else {
            crate::node::addresses(&mut Kernel::open()?)?
        };
        let mut table = Conntrack::open()?;
        let mut deleted = 0;
        for flow in table.list(family == Family::V6, UDP)? {
            if changed.is_stale(&flow, |ip| local.contains(&ip)) {
                deleted += u64::from(table.delete(&flow)?);
            }
        }
        Ok(deleted)
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
