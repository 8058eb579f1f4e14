//! What a plan is made of: one change of the node or of the pod, each with what takes it back.

use std::fmt;

use ipnetwork::IpNetwork;

pub use linux::Mac;
pub use linux::addr::Addr;
pub use linux::link::{LinkChange, NewBridge, NewVeth, PortVlan};
pub use linux::route::{PROTOCOL_BOOT, Route, Scope};
pub use linux::shape::TokenBucket;

use crate::firewall::{Entries, Whose};

/// Which network namespace a step changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The node's.
    Node,
    /// The pod's.
    Pod,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Makes the bridge unless someone else has just made it.
    EnsureBridge(NewBridge),
    /// Makes the pair of veths, the pod's end in its namespace (`peer_netns` is filled in when it
    /// is applied).
    AddVeth(NewVeth),
    /// Makes a pair of veths with both ends on the node: a gateway in a VLAN of the bridge.
    EnsureGatewayVeth(NewVeth),
    /// Changes a link.
    SetLink(Side, String, LinkChange),
    /// Adds an address unless it is there.
    EnsureAddr(Side, String, Addr),
    /// Removes an address if it is there.
    RemoveAddr(Side, String, IpNetwork),
    /// Adds a route.
    AddRoute(Side, Route),
    /// Sets a kernel setting unless it has the value.
    EnsureSysctl(Side, String, String),
    /// Puts a bridge port into VLANs.
    AddPortVlan(String, PortVlan),
    /// Takes a bridge port out of VLANs.
    RemovePortVlan(String, PortVlan),
    /// Makes an `ifb` device with this hardware address and MTU.
    AddIfb(String, Mac, u32),
    /// Limits what leaves a link of the node.
    Limit(String, TokenBucket),
    /// Sends what comes in by the first link of the node through the second one.
    Detour(String, String),
    /// Makes entries of the firewall.
    PutEntries(Box<Entries>),
    /// Removes entries of the firewall.
    RemoveEntries(Whose),
    /// Forgets old connections of the UDP ports among these entries.
    ForgetUdp(Box<Entries>),
    /// Waits until the addresses of a link of the pod are probed.
    AwaitAddrs(String),
    /// Waits until packets flow through this port of the bridge.
    AwaitPort(String),
    /// Sets a link of the node down if it is there.
    StopLink(String),
    /// Removes a link if it is there.
    RemoveLink(Side, String),
}

impl Step {
    /// What takes this step back. What is the node's for all pods (bridge, addresses of the bridge,
    /// settings) stays, since another pod may rely on it already; what is on the pod's interface
    /// goes with it.
    pub fn undo(&self) -> Option<Self> {
        match self {
            Self::AddVeth(veth) => Some(Self::RemoveLink(Side::Node, veth.name.clone())),
            Self::SetLink(Side::Pod, link, change) if link == "lo" && change.up == Some(true) => {
                Some(Self::SetLink(Side::Pod, link.clone(), LinkChange::down()))
            }
            Self::AddIfb(name, ..) => Some(Self::RemoveLink(Side::Node, name.clone())),
            Self::PutEntries(entries) => Some(Self::RemoveEntries(Whose::One(entries.tag.clone()))),
            Self::EnsureBridge(_)
            | Self::EnsureGatewayVeth(_)
            | Self::AddPortVlan(..)
            | Self::RemovePortVlan(..)
            | Self::Limit(..)
            | Self::Detour(..)
            | Self::RemoveEntries(_)
            | Self::ForgetUdp(_)
            | Self::AwaitAddrs(_)
            | Self::SetLink(..)
            | Self::EnsureAddr(..)
            | Self::RemoveAddr(..)
            | Self::AddRoute(..)
            | Self::EnsureSysctl(..)
            | Self::AwaitPort(_)
            | Self::StopLink(_)
            | Self::RemoveLink(..) => None,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Pod => "pod",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mtu = |mtu: Option<u32>| mtu.map(|n| format!(" mtu {n}")).unwrap_or_default();
        let mac = |mac: Option<Mac>| mac.map(|m| format!(" address {m}")).unwrap_or_default();
        match self {
            Self::EnsureBridge(new) => {
                write!(
                    f,
                    "node: bridge {}{}{}",
                    new.name,
                    mac(new.mac),
                    mtu(new.mtu)
                )
            }
            Self::EnsureGatewayVeth(new) => {
                let master = new.master.as_deref().unwrap_or("none");
                write!(
                    f,
                    "node: veth {} master {master}, {}",
                    new.name, new.peer_name
                )
            }
            Self::AddVeth(new) => {
                let master = new.master.as_deref().unwrap_or("none");
                write!(f, "node: veth {}{} master {master}", new.name, mac(new.mac))?;
                write!(
                    f,
                    ", pod: {}{}{}",
                    new.peer_name,
                    mac(new.peer_mac),
                    mtu(new.mtu)
                )
            }
            Self::SetLink(side, link, change) => {
                write!(f, "{side}: {link}")?;
                let on = |on: bool| if on { "on" } else { "off" };
                if let Some(hairpin) = change.hairpin {
                    write!(f, " hairpin {}", on(hairpin))?;
                }
                if let Some(isolated) = change.isolated {
                    write!(f, " isolated {}", on(isolated))?;
                }
                if let Some(filtering) = change.vlan_filtering {
                    write!(f, " vlan filtering {}", on(filtering))?;
                }
                if let Some(promisc) = change.promisc {
                    write!(f, " promisc {}", on(promisc))?;
                }
                if let Some(alias) = &change.alias {
                    write!(f, " alias {alias}")?;
                }
                match change.up {
                    Some(true) => write!(f, " up"),
                    Some(false) => write!(f, " down"),
                    None => Ok(()),
                }
            }
            Self::EnsureAddr(side, link, addr) => {
                let nodad = if addr.nodad { " nodad" } else { "" };
                write!(f, "{side}: {link} address {}{nodad}", addr.net)
            }
            Self::RemoveAddr(side, link, net) => write!(f, "{side}: {link} no address {net}"),
            Self::AddRoute(side, route) => write!(f, "{side}: route {route}"),
            Self::EnsureSysctl(side, key, value) => write!(f, "{side}: sysctl {key} = {value}"),
            Self::AddPortVlan(link, vlan) => {
                let untagged = if vlan.untagged { " untagged" } else { "" };
                write!(
                    f,
                    "node: {link} vlan {}-{}{untagged}",
                    vlan.first, vlan.last
                )
            }
            Self::RemovePortVlan(link, vlan) => {
                write!(f, "node: {link} no vlan {}-{}", vlan.first, vlan.last)
            }
            Self::AddIfb(name, mac, mtu) => write!(f, "node: ifb {name} address {mac} mtu {mtu}"),
            Self::Limit(link, TokenBucket { rate, burst }) => {
                write!(f, "node: {link} rate {rate} burst {burst}")
            }
            Self::Detour(link, through) => write!(f, "node: {link} comes in through {through}"),
            Self::PutEntries(entries) => write!(f, "node: {entries}"),
            Self::RemoveEntries(Whose::One(tag)) => {
                write!(f, "node: no entries of {}", tag.title())
            }
            Self::RemoveEntries(Whose::AllBut { keep, .. }) => {
                write!(f, "node: entries of {} attachments only", keep.len())
            }
            Self::ForgetUdp(entries) => {
                write!(
                    f,
                    "node: forget UDP connections of {} ports",
                    entries.udp_ports().len()
                )
            }
            Self::AwaitAddrs(link) => write!(f, "pod: wait for the addresses of {link}"),
            Self::AwaitPort(link) => write!(f, "node: wait for {link}"),
            Self::StopLink(link) => write!(f, "node: {link} down"),
            Self::RemoveLink(side, link) => write!(f, "{side}: no link {link}"),
        }
    }
}
