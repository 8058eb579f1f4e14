//! From what is there to what should be: the changes, in an order in which no packet is lost that
//! need not be. What leaves goes route first; what comes gets its route last. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::model::{
    Addr, Desired, Device, FdbEntry, LinkChange, Mac, Neigh, NewVxlan, PROTOCOL_SEAWAY, Route,
    Settings,
};
use super::observe::{Observed, SeenDevice};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Removes a route of ours.
    DelRoute(Route),
    /// Removes a neighbour.
    DelNeigh(String, Neigh),
    /// Removes a forwarding entry.
    DelFdb(String, FdbEntry),
    /// Removes a device of ours.
    DelLink(String),
    /// Makes a device.
    AddVxlan(NewVxlan),
    /// Changes a device.
    SetLink(String, LinkChange),
    /// Removes an address of our device.
    DelAddr(String, IpNetwork),
    /// Gives our device its address.
    AddAddr(String, Addr),
    /// Changes a kernel setting.
    Sysctl(String, &'static str),
    /// Sets a neighbour.
    SetNeigh(String, Neigh),
    /// Sets a forwarding entry.
    SetFdb(String, FdbEntry),
    /// Sets a route.
    SetRoute(Route),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = |neigh: &Neigh| neigh.mac.map(|m| m.to_string()).unwrap_or_default();
        let dst = |entry: &FdbEntry| entry.dst.map(|ip| ip.to_string()).unwrap_or_default();
        match self {
            Self::DelRoute(route) => write!(f, "- route {route}"),
            Self::DelNeigh(dev, neigh) => write!(f, "- neigh {} dev {dev}", neigh.dst),
            Self::DelFdb(dev, entry) => {
                write!(f, "- fdb {} dst {} dev {dev}", entry.mac, dst(entry))
            }
            Self::DelLink(name) => write!(f, "- link {name}"),
            Self::AddVxlan(new) => write!(
                f,
                "+ link {} vni {} port {} local {} mtu {}",
                new.name,
                new.vni,
                new.port,
                new.local.map(|ip| ip.to_string()).unwrap_or_default(),
                new.mtu.unwrap_or_default(),
            ),
            Self::SetLink(name, change) => {
                write!(f, "= link {name}")?;
                if let Some(mtu) = change.mtu {
                    write!(f, " mtu {mtu}")?;
                }
                if let Some(mac) = change.mac {
                    write!(f, " address {mac}")?;
                }
                if change.link_local == Some(false) {
                    write!(f, " no link-local")?;
                }
                match change.up {
                    Some(true) => write!(f, " up"),
                    Some(false) => write!(f, " down"),
                    None => Ok(()),
                }
            }
            Self::DelAddr(dev, net) => write!(f, "- addr {net} dev {dev}"),
            Self::AddAddr(dev, addr) => write!(f, "+ addr {} dev {dev}", addr.net),
            Self::Sysctl(key, value) => write!(f, "= sysctl {key} {value}"),
            Self::SetNeigh(dev, neigh) => {
                write!(f, "+ neigh {} lladdr {} dev {dev}", neigh.dst, mac(neigh))
            }
            Self::SetFdb(dev, entry) => {
                write!(f, "+ fdb {} dst {} dev {dev}", entry.mac, dst(entry))
            }
            Self::SetRoute(route) => write!(f, "+ route {route}"),
        }
    }
}

/// The changes that make `seen` into `want`.
pub fn diff(settings: &Settings, want: &Desired, seen: &Observed) -> Vec<Change> {
    let mut changes = Changes::default();
    for name in settings.devices() {
        let there = seen.devices.get(&name);
        match (want.devices.get(&name), there) {
            (None, None) => {}
            (None, Some(_)) => changes.links.push(Change::DelLink(name)),
            (Some(device), None) => changes.add(&name, device),
            (Some(device), Some(there)) if !fits(device, there) => {
                changes.links.push(Change::DelLink(name.clone()));
                changes.add(&name, device);
            }
            (Some(device), Some(there)) => {
                changes.mend(&name, device, there);
                changes.contents(&name, device, there);
            }
        }
    }
    for sysctl in &want.sysctls {
        let there = seen.sysctls.get(&sysctl.key).map(String::as_str);
        let due = match sysctl.only_from {
            Some(from) => there == Some(from),
            None => there != Some(sysctl.value),
        };
        if due {
            let change = Change::Sysctl(sysctl.key.clone(), sysctl.value);
            changes.sysctls.push(change);
        }
    }
    changes.in_order()
}

/// Whether a device can be made what it should be without making it anew.
fn fits(want: &Device, seen: &SeenDevice) -> bool {
    seen.link.vxlan.as_ref().is_some_and(|vxlan| {
        vxlan.vni == want.vxlan.vni
            && vxlan.port == want.vxlan.port
            && vxlan.local == want.vxlan.local
            && vxlan.learning == want.vxlan.learning
            && vxlan.underlay.is_none_or(|index| index == want.underlay)
    })
}

/// Changes by when they are due.
#[derive(Default)]
struct Changes {
    leaving_routes: Vec<Change>,
    leaving: Vec<Change>,
    links: Vec<Change>,
    sysctls: Vec<Change>,
    coming: Vec<Change>,
    coming_routes: Vec<Change>,
}

impl Changes {
    fn in_order(self) -> Vec<Change> {
        let parts = [
            self.leaving_routes,
            self.leaving,
            self.links,
            self.sysctls,
            self.coming,
            self.coming_routes,
        ];
        parts.into_iter().flatten().collect()
    }

    /// A device made from nothing.
    fn add(&mut self, name: &str, device: &Device) {
        self.links.push(Change::AddVxlan(device.vxlan.clone()));
        // The device needs no address of its own making, and asks nobody whether one is taken.
        let quiet = LinkChange {
            link_local: Some(false),
            ..LinkChange::default()
        };
        self.links.push(Change::SetLink(name.to_owned(), quiet));
        let up = Change::SetLink(name.to_owned(), LinkChange::up());
        self.links.push(up);
        self.contents(name, device, &SeenDevice::default());
    }

    /// Puts right what can be changed on a device in use.
    fn mend(&mut self, name: &str, device: &Device, seen: &SeenDevice) {
        let change = LinkChange {
            mtu: device.vxlan.mtu.filter(|mtu| *mtu != seen.link.mtu),
            mac: device.vxlan.mac.filter(|mac| Some(*mac) != seen.link.mac),
            up: (!seen.link.up).then_some(true),
            ..LinkChange::default()
        };
        if change != LinkChange::default() {
            self.links.push(Change::SetLink(name.to_owned(), change));
        }
    }

    /// Addresses, neighbours, forwarding entries and routes.
    fn contents(&mut self, name: &str, device: &Device, seen: &SeenDevice) {
        self.addrs(name, device, seen);
        self.neighs(name, &device.neighs, seen);
        self.fdb(name, &device.fdb, seen);
        self.routes(device, seen);
    }

    fn addrs(&mut self, name: &str, device: &Device, seen: &SeenDevice) {
        let is_link_local = |net: &IpNetwork| match net {
            IpNetwork::V4(_) => false,
            IpNetwork::V6(net) => net.ip().is_unicast_link_local(),
        };
        let nets = seen.addrs.iter().map(|addr| addr.net);
        for net in nets.filter(|net| *net != device.addr && !is_link_local(net)) {
            self.links.push(Change::DelAddr(name.to_owned(), net));
        }
        if !seen.addrs.iter().any(|addr| addr.net == device.addr) {
            let addr = Addr::new(device.addr).protocol(PROTOCOL_SEAWAY);
            self.links.push(Change::AddAddr(name.to_owned(), addr));
        }
    }

    fn neighs(&mut self, name: &str, want: &BTreeMap<IpAddr, Mac>, seen: &SeenDevice) {
        let there: BTreeMap<IpAddr, &Neigh> = seen.neighs.iter().map(|n| (n.dst, n)).collect();
        for (dst, neigh) in &there {
            if neigh.permanent && !want.contains_key(dst) {
                let change = Change::DelNeigh(name.to_owned(), (*neigh).clone());
                self.leaving.push(change);
            }
        }
        for (dst, mac) in want {
            let good = |neigh: &&&Neigh| neigh.permanent && neigh.mac == Some(*mac);
            if there.get(dst).filter(good).is_none() {
                let neigh = Neigh::permanent(*dst, *mac);
                self.coming.push(Change::SetNeigh(name.to_owned(), neigh));
            }
        }
    }

    fn fdb(&mut self, name: &str, want: &BTreeMap<Mac, IpAddr>, seen: &SeenDevice) {
        let mut there: BTreeMap<Mac, Vec<&FdbEntry>> = BTreeMap::new();
        for entry in &seen.fdb {
            there.entry(entry.mac).or_default().push(entry);
        }
        let is_good =
            |entry: &&FdbEntry| entry.dst.is_some() && entry.dst.as_ref() == want.get(&entry.mac);
        for entries in there.values() {
            // One of each wanted hardware address stays or is replaced; all others go.
            let wanted = entries.first().filter(|e| want.contains_key(&e.mac));
            let kept = entries.iter().copied().find(is_good).or(wanted.copied());
            for entry in entries.iter().filter(|entry| Some(**entry) != kept) {
                let change = Change::DelFdb(name.to_owned(), (*entry).clone());
                self.leaving.push(change);
            }
        }
        for (mac, dst) in want {
            let entries = there.get(mac).map(Vec::as_slice).unwrap_or_default();
            if !entries.iter().any(is_good) {
                let entry = FdbEntry {
                    mac: *mac,
                    dst: Some(*dst),
                };
                self.coming.push(Change::SetFdb(name.to_owned(), entry));
            }
        }
    }

    fn routes(&mut self, device: &Device, seen: &SeenDevice) {
        let want: BTreeMap<IpNetwork, Route> = device
            .routes
            .iter()
            .map(|(subnet, gateway)| (*subnet, device.route(*subnet, *gateway)))
            .collect();
        for route in &seen.routes {
            // One to the same destination with the same metric is replaced.
            let replaced = want
                .get(&route.dst)
                .is_some_and(|wanted| wanted.metric == route.metric);
            if !replaced {
                self.leaving_routes.push(Change::DelRoute(route.clone()));
            }
        }
        let there: BTreeSet<&Route> = seen.routes.iter().collect();
        for route in want.into_values() {
            if !there.contains(&route) {
                self.coming_routes.push(Change::SetRoute(route));
            }
        }
    }
}
