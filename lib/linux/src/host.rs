//! The door through which plans reach a network namespace, for the real kernel and for a fake.
//!
//! Everything is named as a person would name it (links by name); indices stay behind the door.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::addr::Addr;
use crate::error::Result;
use crate::fdb::FdbEntry;
use crate::link::PortVlan;
use crate::link::{Link, LinkChange, NewBridge, NewVeth, NewVxlan};
use crate::mac::Mac;
use crate::neigh::Neigh;
use crate::netns::NsRef;
use crate::route::{Route, RouteFilter};
use crate::shape::TokenBucket;
use crate::wireguard;

/// What takes the place of what was there, of many of its kind.
#[derive(Debug, Clone, Copy)]
pub enum Replacement<'a> {
    /// [`Host::replace_neigh`].
    Neigh(&'a str, &'a Neigh),
    /// [`Host::replace_fdb`].
    Fdb(&'a str, &'a FdbEntry),
    /// [`Host::replace_route`].
    Route(&'a Route),
}

/// One network namespace. Every function is one request to the kernel, or one list.
pub trait Host {
    /// The namespace, for requests of another host that move or make a link in it.
    fn netns(&self) -> NsRef;

    /// All links, by index.
    ///
    /// # Errors
    /// The kernel's refusal, which names operation and object; so for every function below.
    fn links(&mut self) -> Result<Vec<Link>>;

    /// One link; `None` when there is none of this name.
    ///
    /// # Errors
    /// As [`Host::links`].
    fn link(&mut self, name: &str) -> Result<Option<Link>>;

    /// Makes a bridge, down.
    ///
    /// # Errors
    /// The name is taken (`is_exists`).
    fn add_bridge(&mut self, new: &NewBridge) -> Result<()>;

    /// Makes a veth pair, the peer right in its namespace and under its final name.
    ///
    /// # Errors
    /// A name is taken (`is_exists`), or the bridge is not there.
    fn add_veth(&mut self, new: &NewVeth) -> Result<()>;

    /// Makes a VXLAN device, down.
    ///
    /// # Errors
    /// The name or the combination of VNI and port is taken (`is_exists`).
    fn add_vxlan(&mut self, new: &NewVxlan) -> Result<()>;

    /// Makes a WireGuard device, down, without key and peers.
    ///
    /// # Errors
    /// The name is taken (`is_exists`), or the kernel has no WireGuard.
    fn add_wireguard(&mut self, name: &str, mtu: Option<u32>) -> Result<()>;

    /// Looks at a WireGuard device.
    ///
    /// # Errors
    /// No such device, or it is not WireGuard.
    fn wireguard(&mut self, link: &str) -> Result<wireguard::Device>;

    /// Sets key and port of a WireGuard device.
    ///
    /// # Errors
    /// No such device, or the port is taken.
    fn set_wireguard(&mut self, link: &str, config: &wireguard::Config) -> Result<()>;

    /// Adds or changes the far end of a WireGuard device.
    ///
    /// # Errors
    /// No such device.
    fn set_wireguard_peer(&mut self, link: &str, peer: &wireguard::Peer) -> Result<()>;

    /// Removes the far end of a WireGuard device; one that is not there is no error.
    ///
    /// # Errors
    /// No such device.
    fn del_wireguard_peer(&mut self, link: &str, key: wireguard::Key) -> Result<()>;

    /// Changes a link.
    ///
    /// # Errors
    /// No such link.
    fn set_link(&mut self, name: &str, change: &LinkChange) -> Result<()>;

    /// Gives the far ends of veths this largest packet, in whatever namespaces they are. Tells the
    /// indices of those veths whose far end was found.
    ///
    /// # Errors
    /// A far end does not take it.
    fn set_peer_mtu(&mut self, veths: &[Link], mtu: u32) -> Result<BTreeSet<u32>>;

    /// Makes an `ifb` device, down: what is sent into it comes in by it.
    ///
    /// # Errors
    /// The name is taken (`is_exists`).
    fn add_ifb(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<()>;

    /// Limits what leaves a link, replacing what was there.
    ///
    /// # Errors
    /// No such link.
    fn set_token_bucket(&mut self, link: &str, bucket: TokenBucket) -> Result<()>;

    /// The limit on what leaves a link.
    ///
    /// # Errors
    /// No such link.
    fn token_bucket(&mut self, link: &str) -> Result<Option<TokenBucket>>;

    /// Sends all that comes in by a link through another one first.
    ///
    /// # Errors
    /// No such link, or what comes in by it is sent elsewhere already (`is_exists`).
    fn add_detour(&mut self, link: &str, through: &str) -> Result<()>;

    /// Lets a bridge port, or the bridge itself, take part in VLANs.
    ///
    /// # Errors
    /// No such port, or bridges of this kernel know no VLANs (EOPNOTSUPP).
    fn add_port_vlan(&mut self, link: &str, vlan: PortVlan) -> Result<()>;

    /// Takes a bridge port out of VLANs.
    ///
    /// # Errors
    /// As [`Host::add_port_vlan`].
    fn del_port_vlan(&mut self, link: &str, vlan: PortVlan) -> Result<()>;

    /// Deletes a link; a veth takes its peer with it.
    ///
    /// # Errors
    /// No such link (`is_not_found`).
    fn delete_link(&mut self, name: &str) -> Result<()>;

    /// The addresses of one link.
    ///
    /// # Errors
    /// No such link.
    fn addrs(&mut self, link: &str) -> Result<Vec<Addr>>;

    /// Adds an address.
    ///
    /// # Errors
    /// It is there already (`is_exists`).
    fn add_addr(&mut self, link: &str, addr: &Addr) -> Result<()>;

    /// Deletes an address.
    ///
    /// # Errors
    /// It is not there (`is_not_found`).
    fn del_addr(&mut self, link: &str, net: IpNetwork) -> Result<()>;

    /// The routes asked for.
    ///
    /// # Errors
    /// As [`Host::links`].
    fn routes(&mut self, filter: &RouteFilter<'_>) -> Result<Vec<Route>>;

    /// Adds a route.
    ///
    /// # Errors
    /// There is one to this destination with this metric (`is_exists`).
    fn add_route(&mut self, route: &Route) -> Result<()>;

    /// Adds a route or replaces the one to the same destination with the same metric.
    ///
    /// # Errors
    /// The next hop cannot be reached.
    fn replace_route(&mut self, route: &Route) -> Result<()>;

    /// Deletes a route.
    ///
    /// # Errors
    /// It is not there (`is_not_found`).
    fn del_route(&mut self, route: &Route) -> Result<()>;

    /// By which route this host would send to `ip`; `None` when there is none. The source address
    /// is always given.
    ///
    /// # Errors
    /// As [`Host::links`].
    fn route_to(&mut self, ip: IpAddr) -> Result<Option<Route>>;

    /// The neighbours of one link, both families.
    ///
    /// # Errors
    /// No such link.
    fn neighs(&mut self, link: &str) -> Result<Vec<Neigh>>;

    /// Sets a neighbour, replacing what was there.
    ///
    /// # Errors
    /// No such link.
    fn replace_neigh(&mut self, link: &str, neigh: &Neigh) -> Result<()>;

    /// Deletes a neighbour.
    ///
    /// # Errors
    /// It is not there (`is_not_found`).
    fn del_neigh(&mut self, link: &str, neigh: &Neigh) -> Result<()>;

    /// The forwarding entries of a VXLAN device.
    ///
    /// # Errors
    /// No such link.
    fn fdb(&mut self, link: &str) -> Result<Vec<FdbEntry>>;

    /// Sets a forwarding entry, replacing the one for the same hardware address.
    ///
    /// # Errors
    /// No such link.
    fn replace_fdb(&mut self, link: &str, entry: &FdbEntry) -> Result<()>;

    /// Adds a forwarding entry beside those for the same hardware address (for the all-zero one).
    ///
    /// # Errors
    /// It is there already (`is_exists`).
    fn append_fdb(&mut self, link: &str, entry: &FdbEntry) -> Result<()>;

    /// Deletes a forwarding entry.
    ///
    /// # Errors
    /// It is not there (`is_not_found`).
    fn del_fdb(&mut self, link: &str, entry: &FdbEntry) -> Result<()>;

    /// Reads a setting, e.g. `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// No such setting.
    fn sysctl(&mut self, key: &str) -> Result<String>;

    /// Sets a setting.
    ///
    /// # Errors
    /// No such setting, or a value it does not take.
    fn set_sysctl(&mut self, key: &str, value: &str) -> Result<()>;

    /// Whether the link claims to fill in the checksums of TCP and UDP itself.
    ///
    /// # Errors
    /// No such link, or a kind that has no such notion.
    fn tx_checksum(&mut self, link: &str) -> Result<bool>;

    /// Lets the link fill in the checksums of TCP and UDP, or has the kernel do it before.
    ///
    /// # Errors
    /// As [`Host::tx_checksum`].
    fn set_tx_checksum(&mut self, link: &str, on: bool) -> Result<()>;

    /// Makes many replacements in order, with few requests. Gives the positions of those that are not
    /// made: all, for a host that makes them one by one only. Why, the single function tells.
    fn replace_many(&mut self, entries: &[Replacement<'_>]) -> Vec<usize> {
        (0..entries.len()).collect()
    }

    /// Adds an address unless it is there; true when it was added.
    ///
    /// # Errors
    /// As [`Host::add_addr`], but for an address that is there.
    fn ensure_addr(&mut self, link: &str, addr: &Addr) -> Result<bool> {
        added(self.add_addr(link, addr))
    }

    /// Sets a setting unless it has the value; true when it was changed.
    ///
    /// # Errors
    /// As [`Host::set_sysctl`].
    fn ensure_sysctl(&mut self, key: &str, value: &str) -> Result<bool> {
        if self.sysctl(key)? == value {
            return Ok(false);
        }
        self.set_sysctl(key, value)?;
        Ok(true)
    }

    /// Deletes a link if it is there; true when it was.
    ///
    /// # Errors
    /// As [`Host::delete_link`], but for a link that is not there.
    fn ensure_no_link(&mut self, name: &str) -> Result<bool> {
        removed(self.delete_link(name))
    }

    /// Deletes an address if it is there; true when it was.
    ///
    /// # Errors
    /// As [`Host::del_addr`], but for an address that is not there.
    fn ensure_no_addr(&mut self, link: &str, net: IpNetwork) -> Result<bool> {
        removed(self.del_addr(link, net))
    }

    /// Deletes a route if it is there; true when it was.
    ///
    /// # Errors
    /// As [`Host::del_route`], but for a route that is not there.
    fn ensure_no_route(&mut self, route: &Route) -> Result<bool> {
        removed(self.del_route(route))
    }
}

fn added(result: Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.is_exists() => Ok(false),
        Err(e) => Err(e),
    }
}

fn removed(result: Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}
