//! Whose connections fill the table. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use linux::conntrack::{Flow, SCTP, TCP, UDP};

use super::addresses;
use crate::model::{Decision, PortName, Protocol};

/// How many service ports are named.
const NAMED_MAX: usize = 3;

/// Entries by service port.
pub type Counts = BTreeMap<PortName, u64>;

/// Which service port an entry belongs to.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    addresses: HashMap<(u8, SocketAddr), PortName>,
    node_ports: HashMap<(u8, u16), PortName>,
}

impl Owners {
    /// Of these service ports.
    pub fn new<'a>(decisions: impl IntoIterator<Item = &'a Arc<Decision>>) -> Self {
        let mut owners = Self::default();
        for decision in decisions {
            let protocol = match decision.name.protocol {
                Protocol::Tcp => TCP,
                Protocol::Udp => UDP,
                Protocol::Sctp => SCTP,
            };
            let name = || decision.name.clone();
            let all = addresses(decision).map(|at| ((protocol, at), name()));
            owners.addresses.extend(all);
            let port = decision.node_port.map(|port| ((protocol, port), name()));
            owners.node_ports.extend(port);
        }
        owners
    }

    /// How many of these entries are for each service port; `local` are the node's own addresses, the
    /// only ones with node ports.
    pub fn count(&self, flows: &[Flow], local: &[IpAddr]) -> Counts {
        let mut counts = Counts::new();
        for flow in flows {
            let (protocol, to) = (flow.protocol, flow.original.destination);
            let by_port = || {
                let owner = self.node_ports.get(&(protocol, to.port()))?;
                local.contains(&to.ip()).then_some(owner)
            };
            let owner = self.addresses.get(&(protocol, to)).or_else(by_port);
            if let Some(owner) = owner {
                *counts.entry(owner.clone()).or_default() += 1;
            }
        }
        counts
    }
}

/// Those with the most entries, in words; none when no service has any.
pub fn words(counts: &Counts) -> Option<String> {
    let mut all: Vec<_> = counts.iter().collect();
    all.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
    let all: Vec<String> = all
        .into_iter()
        .take(NAMED_MAX)
        .map(|(name, count)| format!("{name} ({count})"))
        .collect();
    (!all.is_empty()).then(|| format!("most are for {}", all.join(", ")))
}
