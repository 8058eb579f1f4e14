//! The real kernel behind the [`Host`] door: one netlink socket in one network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as M;

use crate::addr::{self, Addr};
use crate::error::{Error, Result};
use crate::ethtool;
use crate::far_end;
use crate::fdb::{self, FdbEntry};
use crate::host::{Host, Replacement};
use crate::link::{self, Link, LinkChange, NewBridge, NewVeth, NewVxlan, PortVlan};
use crate::mac::Mac;
use crate::neigh::{self, Neigh};
use crate::netlink::Netlink;
use crate::netns::{NetNs, NsRef};
use crate::route::{self, Kind, Route, RouteFilter};
use crate::shape::{self, TokenBucket};
use crate::sysctl;
use crate::wireguard::{self, WireGuard};

mod many;

/// The release of the running kernel (`uname -r`); empty if it does not tell.
pub fn release() -> String {
    let name = nix::sys::utsname::uname();
    let release = name.map(|name| name.release().to_string_lossy().into_owned());
    release.unwrap_or_default()
}

/// One network namespace of the real kernel. May be used from any thread, wherever it was opened.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) netlink: Netlink,
    netns: NetNs,
    /// Settings can only be reached from a thread inside.
    inside: bool,
    /// Names of links by index, as last seen. An entry that turns out to be old is dropped and
    /// looked up again.
    names: BTreeMap<u32, String>,
    /// Opened when it is first needed.
    wireguard: Option<WireGuard>,
}

impl Kernel {
    /// The calling thread's network namespace. Settings (`sysctl`) are then those of whichever
    /// thread asks, which is the same for a process that never leaves its namespace.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Self> {
        let netlink = Netlink::open()?;
        Ok(Self {
            netlink,
            netns: NetNs::current()?,
            inside: true,
            names: BTreeMap::new(),
            wireguard: None,
        })
    }

    /// The network namespace `netns`.
    ///
    /// # Errors
    /// It cannot be entered, or the socket is refused.
    pub fn open_in(netns: NetNs) -> Result<Self> {
        let netlink = Netlink::open_in(&netns)?;
        Ok(Self {
            netlink,
            netns,
            inside: false,
            names: BTreeMap::new(),
            wireguard: None,
        })
    }

    /// The namespace this door leads to.
    pub fn namespace(&self) -> &NetNs {
        &self.netns
    }

    /// The link with this index.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.get_link(Some(index), None)
    }

    /// Makes a dummy device, down: a place for addresses, from which nothing is ever sent.
    ///
    /// # Errors
    /// The name is taken (`is_exists`), or the kernel has no such devices (`EOPNOTSUPP`).
    pub fn add_dummy(&mut self, name: &str) -> Result<()> {
        let message = M::NewLink(link::create_dummy(name));
        let op = format_args!("make dummy device {name}");
        self.netlink.change(op, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds or deletes many addresses of one link in order; gives back the errors.
    ///
    /// # Errors
    /// No such link.
    pub fn change_addrs(
        &mut self,
        link: &str,
        changes: &[(IpNetwork, bool)],
    ) -> Result<Vec<(IpNetwork, Error)>> {
        self.index(link)?;
        let mut failed = Vec::new();
        for (net, wanted) in changes {
            let result = if *wanted {
                self.ensure_addr(link, &Addr::new(*net))
            } else {
                self.ensure_no_addr(link, *net)
            };
            failed.extend(result.err().map(|e| (*net, e)));
        }
        Ok(failed)
    }

    /// All addresses of the namespace, with the names of their links.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn all_addrs(&mut self) -> Result<Vec<(String, Addr)>> {
        let op = format_args!("list addresses");
        let messages = self.netlink.dump(op, &M::GetAddress(addr::list(None)))?;
        let mut all = Vec::new();
        for message in &messages {
            let M::NewAddress(message) = message else {
                continue;
            };
            let Some((index, addr)) = addr::parse(message) else {
                continue;
            };
            if let Some(name) = self.name(index)? {
                all.push((name, addr));
            }
        }
        Ok(all)
    }

    fn get_link(&mut self, index: Option<u32>, name: Option<&str>) -> Result<Option<Link>> {
        let message = M::GetLink(link::get(index, name));
        let answer = match name {
            Some(name) => self.netlink.get(format_args!("get link {name}"), message),
            None => {
                let number = index.unwrap_or(0);
                self.netlink
                    .get(format_args!("get link number {number}"), message)
            }
        };
        match answer {
            Ok(message) => {
                let found = as_link(&message);
                if let Some(link) = &found {
                    self.remember(link);
                }
                Ok(found)
            }
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn remember(&mut self, link: &Link) {
        self.names.retain(|_, name| *name != link.name);
        self.names.insert(link.index, link.name.clone());
    }

    /// The index of link `name`, from memory where it is known.
    fn index(&mut self, name: &str) -> Result<u32> {
        if let Some((index, _)) = self.names.iter().find(|(_, known)| *known == name) {
            return Ok(*index);
        }
        match self.link(name)? {
            Some(link) => Ok(link.index),
            None => {
                let gone = io::Error::from_raw_os_error(libc::ENODEV);
                Err(Error::new(format!("get link {name}"), gone))
            }
        }
    }

    /// Runs `work` with the index of link `name`. If that came from memory and the link is gone,
    /// looks again: it may have been made anew by someone else.
    fn with_index<T>(
        &mut self,
        name: &str,
        work: impl Fn(&mut Netlink, u32) -> Result<T>,
    ) -> Result<T> {
        let index = self.index(name)?;
        match work(&mut self.netlink, index) {
            Err(e) if e.errno() == Some(libc::ENODEV) => {
                self.names.remove(&index);
                let fresh = self.index(name)?;
                if fresh == index {
                    Err(e)
                } else {
                    work(&mut self.netlink, fresh)
                }
            }
            result => result,
        }
    }

    fn name(&mut self, index: u32) -> Result<Option<String>> {
        if let Some(name) = self.names.get(&index) {
            return Ok(Some(name.clone()));
        }
        Ok(self.link_by_index(index)?.map(|link| link.name))
    }

    /// Runs `work` where settings of this namespace can be reached.
    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if self.inside {
            work()
        } else {
            self.netns.run(work)?
        }
    }

    fn wireguard_door(&mut self) -> Result<&mut WireGuard> {
        let door = match self.wireguard.take() {
            Some(door) => door,
            None => self.inside(WireGuard::open)?,
        };
        Ok(self.wireguard.insert(door))
    }

    fn change_route(&mut self, verb: &str, route: &Route, flags: u16) -> Result<()> {
        let send = |netlink: &mut Netlink, oif: Option<u32>| {
            let message = M::NewRoute(route::message(route, oif));
            netlink.change(
                format_args!("{verb} route {route}"),
                message,
                NLM_F_CREATE | flags,
            )
        };
        match &route.dev {
            Some(dev) => self.with_index(dev, |netlink, oif| send(netlink, Some(oif))),
            None => send(&mut self.netlink, None),
        }
    }

    fn change_port_vlan(&mut self, link: &str, vlan: PortVlan, add: bool) -> Result<()> {
        let seen = self.link(link)?;
        let on_bridge = seen.is_some_and(|l| l.kind.as_deref() == Some("bridge"));
        self.with_index(link, |netlink, index| {
            let (title, message) = link::port_vlan_change(link, index, vlan, on_bridge, add);
            netlink.change(format_args!("{title}"), message, 0)
        })
    }

    fn change_fdb(&mut self, verb: &str, link: &str, entry: &FdbEntry, flags: u16) -> Result<()> {
        self.with_index(link, |netlink, index| {
            let message = M::NewNeighbour(fdb::message(index, entry));
            let op = format_args!("{verb} forwarding entry {} on {link}", entry.mac);
            netlink.change(op, message, NLM_F_CREATE | flags)
        })
    }
}

fn as_link(message: &M) -> Option<Link> {
    match message {
        M::NewLink(message) => Some(link::parse(message)),
        _ => None,
    }
}

impl Host for Kernel {
    fn netns(&self) -> NsRef {
        self.netns.reference()
    }

    fn links(&mut self) -> Result<Vec<Link>> {
        let message = M::GetLink(link::get(None, None));
        let messages = self.netlink.dump(format_args!("list links"), &message)?;
        let links: Vec<_> = messages.iter().filter_map(as_link).collect();
        let known = links.iter().map(|link| (link.index, link.name.clone()));
        self.names = known.collect();
        Ok(links)
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>> {
        self.get_link(None, Some(name))
    }

    fn replace_many(&mut self, entries: &[Replacement<'_>]) -> Vec<usize> {
        self.make_many(entries)
    }

    fn add_bridge(&mut self, new: &NewBridge) -> Result<()> {
        let message = M::NewLink(link::create_bridge(new));
        let op = format_args!("make bridge {}", new.name);
        self.netlink.change(op, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn add_veth(&mut self, new: &NewVeth) -> Result<()> {
        let send = |netlink: &mut Netlink, master: Option<u32>| {
            let message = M::NewLink(link::create_veth(new, master));
            let op = format_args!("make veth {} with peer {}", new.name, new.peer_name);
            netlink.change(op, message, NLM_F_CREATE | NLM_F_EXCL)
        };
        match &new.master {
            Some(master) => self.with_index(master, |netlink, index| send(netlink, Some(index))),
            None => send(&mut self.netlink, None),
        }
    }

    fn add_vxlan(&mut self, new: &NewVxlan) -> Result<()> {
        let underlay = new
            .underlay
            .as_ref()
            .map(|name| self.index(name))
            .transpose()?;
        let message = M::NewLink(link::create_vxlan(new, underlay));
        let op = format_args!(
            "make vxlan {} (vni {}, port {})",
            new.name, new.vni, new.port
        );
        self.netlink.change(op, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn add_wireguard(&mut self, name: &str, mtu: Option<u32>) -> Result<()> {
        let message = M::NewLink(link::create_wireguard(name, mtu));
        let op = format_args!("make wireguard {name}");
        self.netlink.change(op, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn wireguard(&mut self, link: &str) -> Result<wireguard::Device> {
        self.wireguard_door()?.device(link)
    }

    fn set_wireguard(&mut self, link: &str, config: &wireguard::Config) -> Result<()> {
        self.wireguard_door()?.configure(link, config)
    }

    fn set_wireguard_peer(&mut self, link: &str, peer: &wireguard::Peer) -> Result<()> {
        self.wireguard_door()?.set_peer(link, peer)
    }

    fn del_wireguard_peer(&mut self, link: &str, key: wireguard::Key) -> Result<()> {
        self.wireguard_door()?.del_peer(link, key)
    }

    fn set_link(&mut self, name: &str, change: &LinkChange) -> Result<()> {
        let master = match change.master.as_deref() {
            Some("") => Some(0),
            Some(master) => Some(self.index(master)?),
            None => None,
        };
        self.with_index(name, |netlink, index| {
            // Options of a bridge port are taken by RTM_NEWLINK only.
            let message = M::NewLink(link::set(index, change, master));
            netlink.change(format_args!("{}", change.title(name)), message, 0)
        })?;
        if change.name.is_some() || change.netns.is_some() {
            self.names.retain(|_, known| known != name);
        }
        Ok(())
    }

    fn set_peer_mtu(&mut self, veths: &[Link], mtu: u32) -> Result<BTreeSet<u32>> {
        far_end::set_mtu(&mut self.netlink, veths, mtu)
    }

    fn add_ifb(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<()> {
        let message = M::NewLink(shape::create_ifb(name, mac, mtu));
        let op = format_args!("make ifb {name}");
        self.netlink.change(op, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn set_token_bucket(&mut self, link: &str, bucket: TokenBucket) -> Result<()> {
        self.with_index(link, |netlink, index| {
            shape::set_token_bucket(netlink, link, index, bucket)
        })
    }

    fn token_bucket(&mut self, link: &str) -> Result<Option<TokenBucket>> {
        self.with_index(link, |netlink, index| {
            shape::find_token_bucket(netlink, link, index)
        })
    }

    fn add_detour(&mut self, link: &str, through: &str) -> Result<()> {
        let to = self.index(through)?;
        let title = format!("send what comes in by {link} through {through}");
        self.with_index(link, |netlink, index| {
            shape::add_detour(netlink, &title, index, to)
        })
    }

    fn add_port_vlan(&mut self, link: &str, vlan: PortVlan) -> Result<()> {
        self.change_port_vlan(link, vlan, true)
    }

    fn del_port_vlan(&mut self, link: &str, vlan: PortVlan) -> Result<()> {
        self.change_port_vlan(link, vlan, false)
    }

    fn delete_link(&mut self, name: &str) -> Result<()> {
        // By name: no look-up, and never another link that got an old index.
        let message = M::DelLink(link::get(None, Some(name)));
        self.netlink
            .change(format_args!("delete link {name}"), message, 0)?;
        self.names.retain(|_, known| known != name);
        Ok(())
    }

    fn addrs(&mut self, link: &str) -> Result<Vec<Addr>> {
        self.with_index(link, |netlink, index| {
            let op = format_args!("list addresses of {link}");
            let messages = netlink.dump(op, &M::GetAddress(addr::list(Some(index))))?;
            let all = messages.iter().filter_map(|m| match m {
                M::NewAddress(message) => addr::parse(message),
                _ => None,
            });
            Ok(all
                .filter(|(on, _)| *on == index)
                .map(|(_, addr)| addr)
                .collect())
        })
    }

    fn add_addr(&mut self, link: &str, addr: &Addr) -> Result<()> {
        self.with_index(link, |netlink, index| {
            let message = M::NewAddress(addr::message(index, addr));
            let op = format_args!("add address {} to {link}", addr.net);
            netlink.change(op, message, NLM_F_CREATE | NLM_F_EXCL)
        })
    }

    fn del_addr(&mut self, link: &str, net: IpNetwork) -> Result<()> {
        self.with_index(link, |netlink, index| {
            let message = M::DelAddress(addr::message(index, &Addr::new(net)));
            netlink.change(format_args!("delete address {net} of {link}"), message, 0)
        })
    }

    fn routes(&mut self, filter: &RouteFilter<'_>) -> Result<Vec<Route>> {
        let oif = filter.dev.map(|dev| self.index(dev)).transpose()?;
        let mut routes = Vec::new();
        for ipv6 in [false, true] {
            if filter.ipv6.is_some_and(|only| only != ipv6) {
                continue;
            }
            let message = M::GetRoute(route::list(ipv6, filter, oif));
            let found = match self.netlink.dump(format_args!("list routes"), &message) {
                // A table that no route was ever put in does not exist.
                Err(e) if e.is_not_found() => Vec::new(),
                found => found?,
            };
            for message in found {
                let M::NewRoute(message) = message else {
                    continue;
                };
                let Some((index, mut route)) = route::parse(&message) else {
                    continue;
                };
                if let Some(index) = index {
                    route.dev = self.name(index)?;
                }
                if filter.wants(&route) {
                    routes.push(route);
                }
            }
        }
        Ok(routes)
    }

    fn add_route(&mut self, route: &Route) -> Result<()> {
        self.change_route("add", route, NLM_F_EXCL)
    }

    fn replace_route(&mut self, route: &Route) -> Result<()> {
        self.change_route("replace", route, NLM_F_REPLACE)
    }

    fn del_route(&mut self, route: &Route) -> Result<()> {
        let oif = route.dev.as_ref().map(|dev| self.index(dev)).transpose()?;
        let message = M::DelRoute(route::message(route, oif));
        self.netlink
            .change(format_args!("delete route {route}"), message, 0)
    }

    fn route_to(&mut self, ip: IpAddr) -> Result<Option<Route>> {
        let message = M::GetRoute(route::lookup(ip));
        let op = format_args!("look up the route to {ip}");
        let answer = match self.netlink.get(op, message) {
            Ok(M::NewRoute(message)) => route::parse(&message),
            Ok(_) => None,
            Err(e) if matches!(e.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => None,
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e),
        };
        let Some((index, mut route)) = answer else {
            return Ok(None);
        };
        if let Some(index) = index {
            route.dev = self.name(index)?;
        }
        Ok(Some(route).filter(|route| matches!(route.kind, Kind::Unicast | Kind::Local)))
    }

    fn neighs(&mut self, link: &str) -> Result<Vec<Neigh>> {
        self.with_index(link, |netlink, index| {
            let mut neighs = Vec::new();
            for ipv6 in [false, true] {
                let message = M::GetNeighbour(neigh::list(ipv6, Some(index)));
                let found = netlink.dump(format_args!("list neighbours of {link}"), &message)?;
                let all = found.iter().filter_map(|m| match m {
                    M::NewNeighbour(message) => neigh::parse(message),
                    _ => None,
                });
                neighs.extend(all.filter(|(on, _)| *on == index).map(|(_, neigh)| neigh));
            }
            Ok(neighs)
        })
    }

    fn replace_neigh(&mut self, link: &str, neigh: &Neigh) -> Result<()> {
        self.with_index(link, |netlink, index| {
            let message = M::NewNeighbour(neigh::message(index, neigh));
            let op = format_args!("set neighbour {} on {link}", neigh.dst);
            netlink.change(op, message, NLM_F_CREATE | NLM_F_REPLACE)
        })
    }

    fn del_neigh(&mut self, link: &str, neigh: &Neigh) -> Result<()> {
        self.with_index(link, |netlink, index| {
            let message = M::DelNeighbour(neigh::message(index, neigh));
            netlink.change(
                format_args!("delete neighbour {} of {link}", neigh.dst),
                message,
                0,
            )
        })
    }

    fn fdb(&mut self, link: &str) -> Result<Vec<FdbEntry>> {
        self.with_index(link, |netlink, index| {
            let op = format_args!("list forwarding entries of {link}");
            let messages = netlink.dump(op, &M::GetNeighbour(fdb::list(index)))?;
            let all = messages.iter().filter_map(|m| match m {
                M::NewNeighbour(message) => fdb::parse(message),
                _ => None,
            });
            Ok(all
                .filter(|(on, _)| *on == index)
                .map(|(_, entry)| entry)
                .collect())
        })
    }

    fn replace_fdb(&mut self, link: &str, entry: &FdbEntry) -> Result<()> {
        self.change_fdb("set", link, entry, NLM_F_REPLACE)
    }

    fn append_fdb(&mut self, link: &str, entry: &FdbEntry) -> Result<()> {
        self.change_fdb("append", link, entry, NLM_F_APPEND)
    }

    fn del_fdb(&mut self, link: &str, entry: &FdbEntry) -> Result<()> {
        self.with_index(link, |netlink, index| {
            let message = M::DelNeighbour(fdb::message(index, entry));
            let op = format_args!("delete forwarding entry {} of {link}", entry.mac);
            netlink.change(op, message, 0)
        })
    }

    fn tx_checksum(&mut self, link: &str) -> Result<bool> {
        self.inside(|| ethtool::tx_checksum(link))
    }

    fn set_tx_checksum(&mut self, link: &str, on: bool) -> Result<()> {
        self.inside(|| ethtool::set_tx_checksum(link, on))
    }

    fn sysctl(&mut self, key: &str) -> Result<String> {
        self.inside(|| sysctl::read(key))
    }

    fn set_sysctl(&mut self, key: &str, value: &str) -> Result<()> {
        self.inside(|| sysctl::write(key, value))
    }

    fn ensure_sysctl(&mut self, key: &str, value: &str) -> Result<bool> {
        self.inside(|| sysctl::ensure(key, value))
    }
}
