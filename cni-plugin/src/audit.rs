//! `seaway-cni ipam audit`: leases beside what is really there. [`findings`] is pure; [`scan`] looks
//! at every network namespace of the machine, [`repair`] writes.
//!
//! A lease is kept while anything speaks for it: an interface that has the address, wherever it is, or
//! the node's end of its owner's link.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use api::cni::Attachment;
use linux::netns::scan::namespaces;
use linux::{Host, Kernel};

use crate::lease_store::{LeaseError, LeaseStore};
use crate::plan::{alias_prefix, host_link_name};

/// A lease younger than this may be of a pod that is being added right now.
const YOUNG: Duration = Duration::from_secs(60);

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scan {
    /// Addresses that interfaces of pods have.
    pub used: BTreeSet<IpAddr>,
    /// Names of the node's ends of links.
    pub host_links: BTreeSet<String>,
    /// Attachments whose link is there, with the addresses of its other end.
    pub attached: BTreeMap<Attachment, Vec<IpAddr>>,
}

/// A lease as its file shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose; without a container id the file says nothing that can be read.
    pub owner: Attachment,
    /// Too young to be judged.
    pub young: bool,
}

/// Something that is wrong, and what is done about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// The container is gone: the lease is given back.
    Gone(IpAddr, Attachment),
    /// The file names nobody, and nobody has the address: it is given back.
    Nameless(IpAddr),
    /// The file names nobody, but the address is used by something that is not ours: it stays.
    Foreign(IpAddr),
    /// A pod has the address, but the lease is another's or nobody's: it is given to the pod.
    NotNoted {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: Attachment,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = |a: &Attachment| format!("{} {}", a.container_id, a.ifname);
        match self {
            Self::Gone(ip, owner) => {
                write!(
                    f,
                    "{ip}: leased to {}, which no longer exists",
                    title(owner).trim()
                )
            }
            Self::Nameless(ip) => write!(f, "{ip}: the lease names no container"),
            Self::Foreign(ip) => {
                write!(
                    f,
                    "{ip}: the lease names no container, but an interface has the address"
                )
            }
            Self::NotNoted { address, owner } => {
                write!(
                    f,
                    "{address}: in use by {}, but not leased to it",
                    title(owner)
                )
            }
        }
    }
}

/// Compares leases with what is there. Pure.
pub fn findings(network: &str, leases: &BTreeMap<IpAddr, Record>, seen: &Scan) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut having: BTreeMap<IpAddr, &Attachment> = BTreeMap::new();
    for (owner, addresses) in &seen.attached {
        having.extend(addresses.iter().map(|address| (*address, owner)));
    }
    for (address, record) in leases {
        let named = !record.owner.container_id.is_empty();
        let linked = named
            && seen
                .host_links
                .contains(&host_link_name(network, &record.owner));
        // Old files name the container only.
        let is = |owner: &Attachment| {
            owner.container_id == record.owner.container_id
                && (record.owner.ifname.is_empty() || record.owner.ifname == owner.ifname)
        };
        match having.get(address) {
            Some(owner) if is(owner) => {}
            Some(owner) => found.push(Finding::NotNoted {
                address: *address,
                owner: (*owner).clone(),
            }),
            None if record.young || linked => {}
            None if seen.used.contains(address) => {
                found.extend((!named).then_some(Finding::Foreign(*address)));
            }
            None if named => found.push(Finding::Gone(*address, record.owner.clone())),
            None => found.push(Finding::Nameless(*address)),
        }
    }
    for (address, owner) in having {
        if !leases.contains_key(&address) {
            let owner = owner.clone();
            found.push(Finding::NotNoted { address, owner });
        }
    }
    found
}

/// Looks at the node and at every namespace.
///
/// # Errors
/// The node cannot be looked at.
pub fn scan(network: &str) -> linux::Result<Scan> {
    let mut node = Kernel::open()?;
    let own = node.namespace().identity();
    let mut seen = Scan::default();
    // By where the node's ends say that their other ends are: namespace and number of the link.
    let mut owners: BTreeMap<(i32, u32), Attachment> = BTreeMap::new();
    let prefix = alias_prefix(network);
    for link in node.links()? {
        let owner = link
            .alias
            .as_deref()
            .and_then(|a| a.strip_prefix(&prefix)?.split_once(':'));
        if let (Some((container, ifname)), Some("veth")) = (owner, link.kind.as_deref()) {
            let owner = Attachment {
                container_id: container.to_owned(),
                ifname: ifname.to_owned(),
            };
            if link.name == host_link_name(network, &owner) {
                if let (Some(netns), Some(peer)) = (link.peer_netns, link.peer) {
                    owners.insert((netns, peer), owner.clone());
                }
                seen.attached.insert(owner, Vec::new());
            }
        }
        seen.host_links.insert(link.name);
    }
    for netns in namespaces() {
        if netns.identity() == own {
            continue;
        }
        let number = node.number_of(&netns).unwrap_or_default();
        // One that goes away in this moment has no addresses any more.
        let Ok(mut pod) = Kernel::open_in(netns) else {
            continue;
        };
        for link in pod.links().unwrap_or_default() {
            let addrs = pod.addrs(&link.name).unwrap_or_default();
            let ips: Vec<IpAddr> = addrs.iter().map(|addr| addr.net.ip()).collect();
            seen.used.extend(ips.iter().copied());
            let owner = number.and_then(|number| owners.get(&(number, link.index)));
            if let Some(owner) = owner.filter(|owner| owner.ifname == link.name)
                && link.kind.as_deref() == Some("veth")
            {
                let usable = ips.iter().filter(|ip| !is_link_local(**ip));
                seen.attached
                    .entry(owner.clone())
                    .or_default()
                    .extend(usable);
            }
        }
    }
    Ok(seen)
}

/// `fe80::/10`, which every interface gives itself.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn records(store: &LeaseStore) -> Result<BTreeMap<IpAddr, Record>, LeaseError> {
    let record = |(address, owner)| {
        let young = store.age(address).is_none_or(|age| age < YOUNG);
        (address, Record { owner, young })
    };
    Ok(store.all()?.into_iter().map(record).collect())
}

/// The leased addresses whose containers no longer exist; `None` when that cannot be told.
pub fn gone(network: &str, store: &LeaseStore) -> Option<Vec<IpAddr>> {
    let leases = records(store).ok()?;
    let found = findings(network, &leases, &scan(network).ok()?);
    let gone = |finding: &Finding| match finding {
        Finding::Gone(ip, _) | Finding::Nameless(ip) => Some(*ip),
        Finding::Foreign(_) | Finding::NotNoted { .. } => None,
    };
    Some(found.iter().filter_map(gone).collect())
}

/// What is wrong with the leases of a network.
///
/// # Errors
/// The files, or the node, cannot be read.
pub fn audit(network: &str, store: &LeaseStore) -> Result<Vec<Finding>, AuditError> {
    Ok(findings(network, &records(store)?, &scan(network)?))
}

/// An audit that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The leases.
    #[error("{0}")]
    Leases(#[from] LeaseError),
    /// The node.
    #[error("{0}")]
    Node(#[from] linux::Error),
}

/// Mends one finding; false for one that is left to a person.
///
/// # Errors
/// A file cannot be written.
pub fn repair(store: &LeaseStore, finding: &Finding) -> Result<bool, LeaseError> {
    match finding {
        Finding::Gone(address, owner) => store.evict(*address, owner)?,
        Finding::Nameless(address) => store.evict(*address, &Attachment::default())?,
        Finding::NotNoted { address, owner } => store.assign(*address, owner)?,
        Finding::Foreign(_) => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
