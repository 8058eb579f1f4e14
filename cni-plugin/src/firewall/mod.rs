//! What pods have in the node's firewall: host ports, masquerading, and the hardware address that a
//! pod must send from. [`Entries`] says what one attachment has; [`Firewall`] is who puts it there.
//! Every entry carries its owner's [`Tag`], so that it is found again when nothing else is left.

mod iptables;
mod nft;
mod node;

use std::fmt;
use std::net::IpAddr;

use api::cni::Attachment;
use linux::Result;

use crate::plan::fnv1a;
use crate::request::{Backend, PortMapping, Protocol};
use crate::step::Mac;

pub use iptables::Rules;
pub use node::NodeFirewall;

/// nft shows comments of up to 128 bytes.
const COMMENT_BYTES_MAX: usize = 120;

/// Digits of a hash.
const HASH_DIGITS: usize = 16;

/// Whose an entry is: two hashes, of the network and of the attachment, and the same as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    /// Of the network.
    pub network: u64,
    /// Of network, container and interface.
    pub owner: u64,
    text: String,
}

impl Tag {
    /// The tag of `owner` in `network`.
    pub fn of(network: &str, owner: &Attachment) -> Self {
        let (container, ifname) = (&owner.container_id, &owner.ifname);
        Self {
            network: fnv1a(&[network]),
            owner: fnv1a(&[network, container, ifname]),
            text: format!("{network}/{container}/{ifname}"),
        }
    }

    /// Reads an entry's comment; `None` when it is not one of ours.
    pub fn parse(comment: &str) -> Option<Self> {
        let hash = |at: usize| {
            let digits = comment.get(at..at + HASH_DIGITS)?;
            u64::from_str_radix(digits, 16).ok()
        };
        let rest = comment.get(2 * HASH_DIGITS + 2..)?;
        Some(Self {
            network: hash(0)?,
            owner: hash(HASH_DIGITS + 1)?,
            text: rest.to_owned(),
        })
    }

    /// For a person.
    pub fn title(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comment = format!("{:016x} {:016x} {}", self.network, self.owner, self.text);
        // Names are ASCII, so any length is a border between characters.
        comment.truncate(COMMENT_BYTES_MAX);
        f.write_str(&comment)
    }
}

/// Which entries are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// Those of one attachment.
    One(Tag),
    /// Those of a network, but for some attachments.
    AllBut {
        /// Hash of the network.
        network: u64,
        /// Hashes of attachments that keep theirs.
        keep: Vec<u64>,
    },
}

impl Whose {
    /// Whether an entry with this tag is meant.
    pub fn holds(&self, tag: &Tag) -> bool {
        match self {
            Self::One(one) => tag.owner == one.owner,
            Self::AllBut { network, keep } => tag.network == *network && !keep.contains(&tag.owner),
        }
    }
}

/// A host port that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    /// The protocol.
    pub protocol: Protocol,
    /// The node's address; none: any of the family of `to`.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's address.
    pub to: IpAddr,
    /// The pod's port.
    pub to_port: u16,
}

/// How forwards are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForwardOptions {
    /// The pod itself and the node's 127.0.0.1 may use them: they are masqueraded.
    pub snat: bool,
    /// Everyone is masqueraded.
    pub masq_all: bool,
    /// iptables only: see [`crate::request::Ports`].
    pub mark_chain: Option<String>,
    /// iptables only: more conditions of IPv4 and of IPv6.
    pub conditions: [Vec<String>; 2],
    /// Who does it; none: whoever can, nftables first.
    pub backend: Option<Backend>,
}

/// A pod's address whose packets get the node's address when they leave by another link than this.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Masquerade {
    /// The pod's address.
    pub pod: IpAddr,
    /// The link of the pod's own network.
    pub bridge: String,
    /// The network that counts as its own (iptables, which knows no better).
    pub network: ipnetwork::IpNetwork,
}

/// Everything that one attachment has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries {
    /// Whose.
    pub tag: Tag,
    /// Host ports.
    pub forwards: Vec<Forward>,
    /// How those are made.
    pub options: ForwardOptions,
    /// Masquerading.
    pub masquerades: Vec<Masquerade>,
    /// Who does that; none: whoever can, nftables first.
    pub masquerade_backend: Option<Backend>,
    /// The bridge port, and the only hardware address that may send there.
    pub guard: Option<(String, Mac)>,
}

impl Entries {
    /// Nothing yet.
    pub fn none(tag: Tag) -> Self {
        Self {
            tag,
            forwards: Vec::new(),
            options: ForwardOptions::default(),
            masquerades: Vec::new(),
            masquerade_backend: None,
            guard: None,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.forwards.is_empty() && self.masquerades.is_empty() && self.guard.is_none()
    }

    /// The part that nftables is for, and the part that iptables is for; `usual` is who does what
    /// nobody is named for.
    pub fn split(&self, usual: Backend) -> (Self, Self) {
        let mut nft = Self::none(self.tag.clone());
        let mut iptables = nft.clone();
        let chosen = |backend: Option<Backend>| backend.unwrap_or(usual) == Backend::Nftables;
        let ports = if chosen(self.options.backend) {
            &mut nft
        } else {
            &mut iptables
        };
        ports.forwards.clone_from(&self.forwards);
        ports.options.clone_from(&self.options);
        let leave = if chosen(self.masquerade_backend) {
            &mut nft
        } else {
            &mut iptables
        };
        leave.masquerades.clone_from(&self.masquerades);
        // Bridged frames are only seen by nftables.
        nft.guard.clone_from(&self.guard);
        (nft, iptables)
    }

    /// The UDP ports whose old connections have to go: they lead to whoever had the port before.
    pub fn udp_ports(&self) -> Vec<Forward> {
        let udp = |f: &&Forward| f.protocol == Protocol::Udp;
        self.forwards.iter().filter(udp).copied().collect()
    }
}

impl fmt::Display for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entries of {}:", self.tag.title())?;
        for Forward {
            protocol,
            host_ip,
            host_port,
            to,
            to_port,
        } in &self.forwards
        {
            let host = host_ip.map_or("*".to_owned(), |ip| ip.to_string());
            write!(f, " {}/{host}:{host_port}->{to}:{to_port}", protocol.name())?;
        }
        for Masquerade { pod, bridge, .. } in &self.masquerades {
            write!(f, " masquerade {pod} unless by {bridge}")?;
        }
        if let Some((port, mac)) = &self.guard {
            write!(f, " only {mac} by {port}")?;
        }
        Ok(())
    }
}

/// The forwards of `mappings` for a pod with these addresses, of which the first of each family
/// counts. A mapping of an address of the other family leads nowhere and is passed over, as in the
/// reference plugin.
pub fn forwards(mappings: &[PortMapping], addresses: &[IpAddr]) -> Vec<Forward> {
    let first = |ipv4: bool| addresses.iter().find(|a| a.is_ipv4() == ipv4).copied();
    let mut forwards = Vec::new();
    for mapping in mappings {
        for to in [first(true), first(false)].into_iter().flatten() {
            if mapping
                .host_ip
                .is_some_and(|ip| ip.is_ipv4() != to.is_ipv4())
            {
                continue;
            }
            forwards.push(Forward {
                protocol: mapping.protocol,
                host_ip: mapping.host_ip.filter(|ip| !ip.is_unspecified()),
                host_port: mapping.host_port,
                to,
                to_port: mapping.container_port,
            });
        }
    }
    forwards
}

/// Who keeps entries.
pub trait Firewall {
    /// Makes entries, all or none. What is there already in the same words stays.
    ///
    /// # Errors
    /// The kernel's refusal; a host port that another attachment has, by its name.
    fn put(&mut self, entries: &Entries) -> Result<()>;

    /// Removes entries, whoever made them. None is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn remove(&mut self, whose: &Whose) -> Result<()>;

    /// What of `entries` is not there, in words.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn missing(&mut self, entries: &Entries) -> Result<Vec<String>>;

    /// Forgets connections of these UDP ports that lead elsewhere than to where the ports lead.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn forget_udp(&mut self, ports: &[Forward]) -> Result<()>;
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests;
