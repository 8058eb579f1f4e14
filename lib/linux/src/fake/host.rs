//! The [`Host`] door of the pretended kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::FakeHost;
use super::world::{World, errno};
use crate::addr::Addr;
use crate::error::Result;
use crate::fdb::FdbEntry;
use crate::host::Host;
use crate::link::{Link, LinkChange, NewBridge, NewVeth, NewVxlan, Port, PortVlan, Vxlan};
use crate::mac::Mac;
use crate::neigh::Neigh;
use crate::netns::NsRef;
use crate::route::{Route, RouteFilter};
use crate::shape::TokenBucket;
use crate::wireguard;

impl FakeHost {
    /// Puts a route in; `replace` takes the place of one to the same destination and metric.
    fn put_route(&self, route: &Route, replace: bool) -> Result<()> {
        let verb = if replace { "replace" } else { "add" };
        let op = format!("{verb} route {route}");
        let mut world = self.lock();
        world.step(&op)?;
        check_next_hop(&mut world, self.space, route, &op)?;
        let routes = &mut world.space(self.space).routes;
        match routes.iter().position(|r| same_slot(r, route)) {
            Some(_) if !replace => return Err(errno(op, libc::EEXIST)),
            Some(at) => routes[at] = route.clone(),
            None => routes.push(route.clone()),
        }
        Ok(())
    }
}

/// Whether two routes cannot be in the table together.
fn same_slot(a: &Route, b: &Route) -> bool {
    (a.dst, a.metric, a.table) == (b.dst, b.metric, b.table)
}

/// The kernel takes a gateway only if it is on a network of the link, or the route is `onlink`.
fn check_next_hop(world: &mut World, space: usize, route: &Route, op: &str) -> Result<()> {
    let Some(dev) = &route.dev else { return Ok(()) };
    let device = world.device(space, dev, op)?;
    if !device.link.up {
        return Err(errno(op, libc::ENETDOWN));
    }
    let Some(gateway) = route.gateway else {
        return Ok(());
    };
    let on_link = device.addrs.iter().any(|a| a.net.contains(gateway));
    let routes = &world.space(space).routes;
    let by_route = routes
        .iter()
        .any(|r| r.gateway.is_none() && r.dev.as_ref() == Some(dev) && r.dst.contains(gateway));
    if on_link || by_route || route.onlink {
        Ok(())
    } else {
        Err(errno(op, libc::ENETUNREACH))
    }
}

impl Host for FakeHost {
    fn netns(&self) -> NsRef {
        self.reference()
    }

    fn links(&mut self) -> Result<Vec<Link>> {
        Ok(self
            .lock()
            .space(self.space)
            .devices
            .values()
            .map(|d| d.link.clone())
            .collect())
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>> {
        Ok(self.lock().find(self.space, name).map(|d| d.link.clone()))
    }

    fn add_bridge(&mut self, new: &NewBridge) -> Result<()> {
        let op = format!("make bridge {}", new.name);
        let mut world = self.lock();
        world.step(&op)?;
        let link = Link {
            name: new.name.clone(),
            kind: Some("bridge".to_owned()),
            mac: new.mac,
            mtu: new.mtu.unwrap_or(0),
            ..Link::default()
        };
        world.insert(self.space, link, &op).map(drop)
    }

    fn add_veth(&mut self, new: &NewVeth) -> Result<()> {
        let op = format!("make veth {} with peer {}", new.name, new.peer_name);
        let mut world = self.lock();
        world.step(&op)?;
        let master = match &new.master {
            Some(master) => Some(world.device(self.space, master, &op)?.link.index),
            None => None,
        };
        let NsRef(peer_space) = new.peer_netns.unwrap_or(self.reference());
        let peer_space = usize::try_from(peer_space).unwrap_or(usize::MAX);
        let mtu = new.mtu.unwrap_or(0);
        let kind = Some("veth".to_owned());
        let peer = Link {
            name: new.peer_name.clone(),
            kind: kind.clone(),
            mac: new.peer_mac,
            mtu,
            ..Link::default()
        };
        let link = Link {
            name: new.name.clone(),
            kind,
            mac: new.mac,
            mtu,
            master,
            port: master.map(|_| Port::default()),
            ..Link::default()
        };
        let taken = world.find(peer_space, &new.peer_name).is_some();
        if taken || world.find(self.space, &new.name).is_some() {
            return Err(errno(op, libc::EEXIST));
        }
        let peer = world.insert(peer_space, peer, &op)?;
        let index = world.insert(self.space, link, &op)?;
        world.pair((self.space, index), (peer_space, peer));
        Ok(())
    }

    fn add_vxlan(&mut self, new: &NewVxlan) -> Result<()> {
        let op = format!(
            "make vxlan {} (vni {}, port {})",
            new.name, new.vni, new.port
        );
        let mut world = self.lock();
        world.step(&op)?;
        let underlay = match &new.underlay {
            Some(dev) => Some(world.device(self.space, dev, &op)?.link.index),
            None => None,
        };
        let vxlan = Vxlan {
            vni: new.vni,
            port: new.port,
            local: new.local,
            underlay,
            learning: new.learning,
            gbp: new.gbp,
        };
        let v6 = |v: &Vxlan| v.local.is_some_and(|l| l.is_ipv6());
        let same = |v: &Vxlan| (v.vni, v.port, v6(v)) == (vxlan.vni, vxlan.port, v6(&vxlan));
        let space = world.space(self.space);
        if space
            .devices
            .values()
            .any(|d| d.link.vxlan.as_ref().is_some_and(same))
        {
            return Err(errno(op, libc::EEXIST));
        }
        let link = Link {
            name: new.name.clone(),
            kind: Some("vxlan".to_owned()),
            mac: new.mac,
            mtu: new.mtu.unwrap_or(0),
            vxlan: Some(vxlan),
            ..Link::default()
        };
        world.insert(self.space, link, &op).map(drop)
    }

    fn add_wireguard(&mut self, name: &str, mtu: Option<u32>) -> Result<()> {
        let op = format!("make wireguard {name}");
        let mut world = self.lock();
        world.step(&op)?;
        let link = Link {
            name: name.to_owned(),
            kind: Some("wireguard".to_owned()),
            mtu: mtu.unwrap_or(0),
            ..Link::default()
        };
        world.insert(self.space, link, &op).map(drop)
    }

    fn wireguard(&mut self, link: &str) -> Result<wireguard::Device> {
        let op = format!("list the peers of {link}");
        let mut world = self.lock();
        Ok(world.device(self.space, link, &op)?.wireguard.clone())
    }

    fn set_wireguard(&mut self, link: &str, config: &wireguard::Config) -> Result<()> {
        let op = format!("set key and port of {link}");
        let mut world = self.lock();
        world.step(&op)?;
        world.device(self.space, link, &op)?.wireguard.config = config.clone();
        Ok(())
    }

    fn set_wireguard_peer(&mut self, link: &str, peer: &wireguard::Peer) -> Result<()> {
        let op = format!("set peer {} of {link}", peer.key);
        let mut world = self.lock();
        world.step(&op)?;
        let peers = &mut world.device(self.space, link, &op)?.wireguard.peers;
        peers.retain(|there| there.key != peer.key);
        peers.push(peer.clone());
        peers.sort();
        Ok(())
    }

    fn del_wireguard_peer(&mut self, link: &str, key: wireguard::Key) -> Result<()> {
        let op = format!("remove peer {key} of {link}");
        let mut world = self.lock();
        world.step(&op)?;
        let peers = &mut world.device(self.space, link, &op)?.wireguard.peers;
        peers.retain(|there| there.key != key);
        Ok(())
    }

    fn set_link(&mut self, name: &str, change: &LinkChange) -> Result<()> {
        let mut world = self.lock();
        world.step(&change.title(name))?;
        world.set_link(self.space, name, change)
    }

    fn set_peer_mtu(&mut self, veths: &[Link], mtu: u32) -> Result<BTreeSet<u32>> {
        let op = format!("set the mtu of far ends to {mtu}");
        let mut world = self.lock();
        world.step(&op)?;
        let mut done = BTreeSet::new();
        for veth in veths {
            let near = world.device(self.space, &veth.name, &op)?;
            let (space, peer) = (near.peer_space, near.link.peer.unwrap_or_default());
            if let Some(far) = world.space(space).devices.get_mut(&peer) {
                far.link.mtu = mtu;
                done.insert(veth.index);
            }
        }
        Ok(done)
    }

    fn add_ifb(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<()> {
        let op = format!("make ifb {name}");
        let mut world = self.lock();
        world.step(&op)?;
        let link = Link {
            name: name.to_owned(),
            kind: Some("ifb".to_owned()),
            mac: Some(mac),
            mtu,
            ..Link::default()
        };
        world.insert(self.space, link, &op).map(drop)
    }

    fn set_token_bucket(&mut self, link: &str, bucket: TokenBucket) -> Result<()> {
        let op = format!("limit {link} to {} bytes a second", bucket.rate);
        let mut world = self.lock();
        world.step(&op)?;
        world.device(self.space, link, &op)?.bucket = Some(bucket);
        Ok(())
    }

    fn token_bucket(&mut self, link: &str) -> Result<Option<TokenBucket>> {
        let op = format!("list queueing disciplines of {link}");
        Ok(self.lock().device(self.space, link, &op)?.bucket)
    }

    fn add_detour(&mut self, link: &str, through: &str) -> Result<()> {
        let op = format!("send what comes in by {link} through {through}");
        let mut world = self.lock();
        world.step(&op)?;
        world.device(self.space, through, &op)?;
        let detour = &mut world.device(self.space, link, &op)?.detour;
        if detour.is_some() {
            return Err(errno(op, libc::EEXIST));
        }
        *detour = Some(through.to_owned());
        Ok(())
    }

    fn add_port_vlan(&mut self, link: &str, vlan: PortVlan) -> Result<()> {
        let op = format!("put {link} into VLANs {} to {}", vlan.first, vlan.last);
        let mut world = self.lock();
        world.step(&op)?;
        world.device(self.space, link, &op)?.vlans.push(vlan);
        Ok(())
    }

    fn del_port_vlan(&mut self, link: &str, vlan: PortVlan) -> Result<()> {
        let op = format!("take {link} out of VLANs {} to {}", vlan.first, vlan.last);
        let mut world = self.lock();
        world.step(&op)?;
        let vlans = &mut world.device(self.space, link, &op)?.vlans;
        vlans.retain(|v| (v.first, v.last) != (vlan.first, vlan.last));
        Ok(())
    }

    fn delete_link(&mut self, name: &str) -> Result<()> {
        let mut world = self.lock();
        world.step(&format!("delete link {name}"))?;
        world.delete_link(self.space, name)
    }

    fn addrs(&mut self, link: &str) -> Result<Vec<Addr>> {
        let op = format!("list addresses of {link}");
        Ok(self.lock().device(self.space, link, &op)?.addrs.clone())
    }

    fn add_addr(&mut self, link: &str, addr: &Addr) -> Result<()> {
        let op = format!("add address {} to {link}", addr.net);
        let mut world = self.lock();
        world.step(&op)?;
        let addrs = &mut world.device(self.space, link, &op)?.addrs;
        if addrs.iter().any(|a| a.net == addr.net) {
            return Err(errno(op, libc::EEXIST));
        }
        addrs.push(addr.clone());
        Ok(())
    }

    fn del_addr(&mut self, link: &str, net: IpNetwork) -> Result<()> {
        let op = format!("delete address {net} of {link}");
        let mut world = self.lock();
        world.step(&op)?;
        let addrs = &mut world.device(self.space, link, &op)?.addrs;
        let at = addrs.iter().position(|a| a.net == net);
        addrs.remove(at.ok_or_else(|| errno(op, libc::EADDRNOTAVAIL))?);
        Ok(())
    }

    fn routes(&mut self, filter: &RouteFilter<'_>) -> Result<Vec<Route>> {
        let mut world = self.lock();
        let routes = &world.space(self.space).routes;
        Ok(routes.iter().filter(|r| filter.wants(r)).cloned().collect())
    }

    fn add_route(&mut self, route: &Route) -> Result<()> {
        self.put_route(route, false)
    }

    fn replace_route(&mut self, route: &Route) -> Result<()> {
        self.put_route(route, true)
    }

    fn del_route(&mut self, route: &Route) -> Result<()> {
        let op = format!("delete route {route}");
        let mut world = self.lock();
        world.step(&op)?;
        let routes = &mut world.space(self.space).routes;
        let at = routes.iter().position(|r| {
            same_slot(r, route) && (route.gateway.is_none() || r.gateway == route.gateway)
        });
        routes.remove(at.ok_or_else(|| errno(op, libc::ESRCH))?);
        Ok(())
    }

    fn route_to(&mut self, ip: IpAddr) -> Result<Option<Route>> {
        let mut world = self.lock();
        let space = world.space(self.space);
        // The kernel makes a route for the network of each address.
        let connected = space.devices.values().flat_map(|device| {
            device.addrs.iter().filter_map(|addr| {
                let net = IpNetwork::new(addr.net.network(), addr.net.prefix()).ok()?;
                let mut route = Route::to(net).dev(&device.link.name);
                route.src = Some(addr.net.ip());
                Some(route)
            })
        });
        let all = space.routes.iter().cloned().chain(connected);
        let fitting = all.filter(|route| route.dst.contains(ip));
        Ok(fitting.max_by_key(|route| route.dst.prefix()))
    }

    fn neighs(&mut self, link: &str) -> Result<Vec<Neigh>> {
        let op = format!("list neighbours of {link}");
        Ok(self.lock().device(self.space, link, &op)?.neighs.clone())
    }

    fn replace_neigh(&mut self, link: &str, neigh: &Neigh) -> Result<()> {
        let op = format!("set neighbour {} on {link}", neigh.dst);
        let mut world = self.lock();
        world.step(&op)?;
        let neighs = &mut world.device(self.space, link, &op)?.neighs;
        neighs.retain(|n| n.dst != neigh.dst);
        neighs.push(neigh.clone());
        Ok(())
    }

    fn del_neigh(&mut self, link: &str, neigh: &Neigh) -> Result<()> {
        let op = format!("delete neighbour {} of {link}", neigh.dst);
        let mut world = self.lock();
        world.step(&op)?;
        let neighs = &mut world.device(self.space, link, &op)?.neighs;
        let at = neighs.iter().position(|n| n.dst == neigh.dst);
        neighs.remove(at.ok_or_else(|| errno(op, libc::ENOENT))?);
        Ok(())
    }

    fn fdb(&mut self, link: &str) -> Result<Vec<FdbEntry>> {
        let op = format!("list forwarding entries of {link}");
        Ok(self.lock().device(self.space, link, &op)?.fdb.clone())
    }

    fn replace_fdb(&mut self, link: &str, entry: &FdbEntry) -> Result<()> {
        let op = format!("set forwarding entry {} on {link}", entry.mac);
        let mut world = self.lock();
        world.step(&op)?;
        let fdb = &mut world.device(self.space, link, &op)?.fdb;
        fdb.retain(|e| e.mac != entry.mac);
        fdb.push(entry.clone());
        Ok(())
    }

    fn append_fdb(&mut self, link: &str, entry: &FdbEntry) -> Result<()> {
        let op = format!("append forwarding entry {} on {link}", entry.mac);
        let mut world = self.lock();
        world.step(&op)?;
        let fdb = &mut world.device(self.space, link, &op)?.fdb;
        if fdb.contains(entry) {
            return Err(errno(op, libc::EEXIST));
        }
        fdb.push(entry.clone());
        Ok(())
    }

    fn del_fdb(&mut self, link: &str, entry: &FdbEntry) -> Result<()> {
        let op = format!("delete forwarding entry {} of {link}", entry.mac);
        let mut world = self.lock();
        world.step(&op)?;
        let fdb = &mut world.device(self.space, link, &op)?.fdb;
        let at = fdb.iter().position(|e| e == entry);
        fdb.remove(at.ok_or_else(|| errno(op, libc::ENOENT))?);
        Ok(())
    }

    fn tx_checksum(&mut self, link: &str) -> Result<bool> {
        let op = format!("read the checksum offload of {link}");
        Ok(!self.lock().device(self.space, link, &op)?.no_tx_checksum)
    }

    fn set_tx_checksum(&mut self, link: &str, on: bool) -> Result<()> {
        let op = format!("set the checksum offload of {link}");
        let mut world = self.lock();
        world.step(&op)?;
        world.device(self.space, link, &op)?.no_tx_checksum = !on;
        Ok(())
    }

    fn sysctl(&mut self, key: &str) -> Result<String> {
        let mut world = self.lock();
        let op = format!("read sysctl {key}");
        known_sysctl(&mut world, self.space, key, &op)
    }

    fn set_sysctl(&mut self, key: &str, value: &str) -> Result<()> {
        let op = format!("set sysctl {key} to {value}");
        let mut world = self.lock();
        world.step(&op)?;
        known_sysctl(&mut world, self.space, key, &op)?;
        world
            .space(self.space)
            .sysctls
            .insert(key.to_owned(), value.to_owned());
        Ok(())
    }
}

/// The value of a setting: one that was set, or 0 for any setting of a link that is there.
fn known_sysctl(world: &mut World, space: usize, key: &str, op: &str) -> Result<String> {
    if let Some(value) = world.space(space).sysctls.get(key) {
        return Ok(value.clone());
    }
    let mut parts = key
        .split('/')
        .skip_while(|part| *part != "conf" && *part != "neigh")
        .skip(1);
    let link = parts.next().unwrap_or_default();
    if matches!(link, "all" | "default") || world.find(space, link).is_some() {
        return Ok("0".to_owned());
    }
    Err(errno(op, libc::ENOENT))
}
