//! The state of the pretended kernel.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use super::Failing;
use crate::addr::Addr;
use crate::error::{Error, Result};
use crate::fdb::FdbEntry;
use crate::link::{Link, LinkChange, PortVlan};
use crate::mac::Mac;
use crate::neigh::Neigh;
use crate::netns::NsRef;
use crate::route::Route;
use crate::shape::TokenBucket;

/// MTU of a new link that names none.
const MTU_DEFAULT: u32 = 1500;

/// A link and what hangs on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Device {
    pub(super) link: Link,
    pub(super) addrs: Vec<Addr>,
    pub(super) neighs: Vec<Neigh>,
    pub(super) fdb: Vec<FdbEntry>,
    pub(super) no_tx_checksum: bool,
    pub(super) wireguard: crate::wireguard::Device,
    /// The limit on what leaves it.
    pub(super) bucket: Option<TokenBucket>,
    /// Where what comes in goes first.
    pub(super) detour: Option<String>,
    /// VLANs of a bridge port.
    pub(super) vlans: Vec<PortVlan>,
    /// Namespace of a veth's peer.
    pub(super) peer_space: usize,
}

/// One network namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct Space {
    pub(super) devices: BTreeMap<u32, Device>,
    pub(super) routes: Vec<Route>,
    pub(super) sysctls: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
pub(super) struct World {
    spaces: BTreeMap<usize, Space>,
    spaces_made: usize,
    links_made: u32,
    failing: Failing,
    changes: usize,
}

/// An error with an errno.
pub(super) fn errno(op: impl Into<String>, code: i32) -> Error {
    Error::new(op, io::Error::from_raw_os_error(code))
}

impl World {
    pub(super) fn add_space(&mut self) -> usize {
        let number = self.spaces_made;
        self.spaces_made += 1;
        let mut space = Space::default();
        for key in [
            "net/ipv4/ip_forward",
            "net/ipv6/conf/all/forwarding",
            "net/ipv6/conf/all/disable_ipv6",
            "net/ipv6/conf/default/disable_ipv6",
        ] {
            space.sysctls.insert(key.to_owned(), "0".to_owned());
        }
        let lo = Link {
            index: 1,
            name: "lo".to_owned(),
            mtu: 65536,
            ..Link::default()
        };
        space.devices.insert(
            1,
            Device {
                link: lo,
                ..Device::default()
            },
        );
        self.spaces.insert(number, space);
        number
    }

    pub(super) fn delete_space(&mut self, number: usize) {
        let names: Vec<String> = match self.spaces.get(&number) {
            Some(space) => space
                .devices
                .values()
                .map(|d| d.link.name.clone())
                .collect(),
            None => Vec::new(),
        };
        for name in names {
            // A peer that went with an earlier one is gone already.
            drop(self.delete_link(number, &name));
        }
        self.spaces.remove(&number);
    }

    pub(super) fn fail(&mut self, failing: Failing) {
        self.failing = failing;
        self.changes = 0;
    }

    pub(super) fn changes(&self) -> usize {
        self.changes
    }

    /// Counts a change; refuses it when its turn has come.
    pub(super) fn step(&mut self, op: &str) -> Result<()> {
        self.changes += 1;
        let refuse = match self.failing {
            Failing::Never => false,
            Failing::Once(n) => self.changes == n,
            Failing::From(n) => self.changes >= n,
        };
        if refuse {
            Err(errno(op, libc::EIO).with_detail("injected failure"))
        } else {
            Ok(())
        }
    }

    /// The namespace `number`; a deleted one is empty.
    pub(super) fn space(&mut self, number: usize) -> &mut Space {
        self.spaces.entry(number).or_default()
    }

    pub(super) fn find(&self, space: usize, name: &str) -> Option<&Device> {
        self.spaces
            .get(&space)?
            .devices
            .values()
            .find(|d| d.link.name == name)
    }

    pub(super) fn device(&mut self, space: usize, name: &str, op: &str) -> Result<&mut Device> {
        self.space(space)
            .devices
            .values_mut()
            .find(|d| d.link.name == name)
            .ok_or_else(|| errno(op, libc::ENODEV))
    }

    /// Adds a link; gives its index.
    pub(super) fn insert(&mut self, space: usize, mut link: Link, op: &str) -> Result<u32> {
        if self.find(space, &link.name).is_some() {
            return Err(errno(op, libc::EEXIST));
        }
        self.links_made += 1;
        link.index = self.links_made + 1;
        if link.mtu == 0 {
            link.mtu = MTU_DEFAULT;
        }
        if link.mac.is_none() {
            let [a, b, c, d] = link.index.to_be_bytes();
            link.mac = Some(Mac::local([0, a, b, c, d]));
        }
        let index = link.index;
        self.space(space).devices.insert(
            index,
            Device {
                link,
                ..Device::default()
            },
        );
        Ok(index)
    }

    /// Makes two links each other's peer.
    pub(super) fn pair(&mut self, one: (usize, u32), other: (usize, u32)) {
        for (a, b) in [(one, other), (other, one)] {
            if let Some(device) = self.space(a.0).devices.get_mut(&a.1) {
                device.link.peer = Some(b.1);
                device.peer_space = b.0;
            }
        }
    }

    pub(super) fn delete_link(&mut self, space: usize, name: &str) -> Result<()> {
        let op = format!("delete link {name}");
        let device = self.device(space, name, &op)?.clone();
        if device.link.index == 1 {
            return Err(errno(op, libc::EOPNOTSUPP));
        }
        self.remove(space, device.link.index);
        if let (Some("veth"), Some(peer)) = (device.link.kind.as_deref(), device.link.peer) {
            self.remove(device.peer_space, peer);
        }
        Ok(())
    }

    fn remove(&mut self, space: usize, index: u32) {
        let space = self.space(space);
        let Some(device) = space.devices.remove(&index) else {
            return;
        };
        space
            .routes
            .retain(|r| r.dev.as_deref() != Some(device.link.name.as_str()));
        for other in space.devices.values_mut() {
            if other.link.master == Some(index) {
                other.link.master = None;
                other.link.port = None;
            }
        }
    }

    pub(super) fn set_link(&mut self, space: usize, name: &str, change: &LinkChange) -> Result<()> {
        let op = change.title(name);
        let master = match change.master.as_deref() {
            None => None,
            Some("") => Some(None),
            Some(master) => Some(Some(self.device(space, master, &op)?.link.index)),
        };
        if let Some(new) = &change.name
            && self.find(space, new).is_some()
        {
            return Err(errno(op, libc::EEXIST));
        }
        let link = &mut self.device(space, name, &op)?.link;
        if let Some(master) = master {
            link.master = master;
            link.port = master.map(|_| crate::link::Port::default());
        }
        if change.hairpin.is_some() || change.isolated.is_some() {
            let port = link
                .port
                .as_mut()
                .ok_or_else(|| errno(op.clone(), libc::EOPNOTSUPP))?;
            port.hairpin = change.hairpin.unwrap_or(port.hairpin);
            port.isolated = change.isolated.unwrap_or(port.isolated);
        }
        link.up = change.up.unwrap_or(link.up);
        link.running = link.up;
        if let Some(port) = &mut link.port {
            port.forwarding = link.up;
        }
        link.promisc = change.promisc.unwrap_or(link.promisc);
        link.vlan_filtering = change.vlan_filtering.unwrap_or(link.vlan_filtering);
        link.mtu = change.mtu.unwrap_or(link.mtu);
        link.mac = change.mac.or(link.mac);
        link.alias = change.alias.clone().or(link.alias.take());
        let old = link.name.clone();
        if let Some(new) = &change.name {
            link.name.clone_from(new);
            for route in &mut self.space(space).routes {
                if route.dev.as_deref() == Some(old.as_str()) {
                    route.dev = Some(new.clone());
                }
            }
        }
        if let Some(NsRef(target)) = change.netns {
            let target = usize::try_from(target).unwrap_or(usize::MAX);
            let name = change.name.clone().unwrap_or(old);
            self.relocate(space, &name, target, &op)?;
        }
        Ok(())
    }

    /// Moves a link to another namespace: it arrives down and without addresses.
    fn relocate(&mut self, from: usize, name: &str, to: usize, op: &str) -> Result<()> {
        if self.find(to, name).is_some() {
            return Err(errno(op, libc::EEXIST));
        }
        let mut device = self.device(from, name, op)?.clone();
        let index = device.link.index;
        self.remove(from, index);
        device.link.up = false;
        device.link.running = false;
        device.link.master = None;
        device.link.port = None;
        device.addrs.clear();
        device.neighs.clear();
        if let Some(peer) = device.link.peer
            && let Some(other) = self.space(device.peer_space).devices.get_mut(&peer)
        {
            other.peer_space = to;
        }
        self.space(to).devices.insert(index, device);
        Ok(())
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, space) in &self.spaces {
            writeln!(f, "netns {number}")?;
            let name_of = |i: u32| space.devices.get(&i).map_or("?", |d| d.link.name.as_str());
            let mut devices: Vec<_> = space.devices.values().collect();
            devices.sort_by(|a, b| a.link.name.cmp(&b.link.name));
            for device in devices {
                let Link {
                    name,
                    kind,
                    mtu,
                    up,
                    alias,
                    port,
                    ..
                } = &device.link;
                write!(f, "  link {name}")?;
                if let Some(kind) = kind {
                    write!(f, " {kind}")?;
                }
                write!(f, " mtu {mtu} {}", if *up { "up" } else { "down" })?;
                if let Some(master) = device.link.master {
                    write!(f, " master {}", name_of(master))?;
                }
                if port.is_some_and(|p| p.hairpin) {
                    write!(f, " hairpin")?;
                }
                if port.is_some_and(|p| p.isolated) {
                    write!(f, " isolated")?;
                }
                if let Some(alias) = alias {
                    write!(f, " alias {alias:?}")?;
                }
                writeln!(f)?;
                for addr in &device.addrs {
                    writeln!(f, "    address {}", addr.net)?;
                }
                for peer in &device.wireguard.peers {
                    writeln!(
                        f,
                        "    peer {} {:?} {:?}",
                        peer.key, peer.endpoint, peer.allowed
                    )?;
                }
                if let Some(bucket) = device.bucket {
                    writeln!(f, "    rate {} burst {}", bucket.rate, bucket.burst)?;
                }
                if let Some(through) = &device.detour {
                    writeln!(f, "    comes in through {through}")?;
                }
                for vlan in &device.vlans {
                    let untagged = if vlan.untagged { " untagged" } else { "" };
                    writeln!(f, "    vlan {}-{}{untagged}", vlan.first, vlan.last)?;
                }
                for neigh in &device.neighs {
                    writeln!(
                        f,
                        "    neighbour {} {}",
                        neigh.dst,
                        neigh.mac.unwrap_or_default()
                    )?;
                }
                for entry in &device.fdb {
                    let dst = entry.dst.map(|ip| ip.to_string()).unwrap_or_default();
                    writeln!(f, "    forward {} {dst}", entry.mac)?;
                }
            }
            let mut routes: Vec<String> = space.routes.iter().map(ToString::to_string).collect();
            routes.sort();
            for route in routes {
                writeln!(f, "  route {route}")?;
            }
            for (key, value) in space.sysctls.iter().filter(|(_, value)| *value != "0") {
                writeln!(f, "  sysctl {key} = {value}")?;
            }
        }
        Ok(())
    }
}
