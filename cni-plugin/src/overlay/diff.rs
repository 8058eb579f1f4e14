//! From what is there to what should be: the changes, in an order in which no packet is lost that
//! need not be. First comes what is new, its route last; then goes what is old, its route first.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnetwork::IpNetwork;

use super::model::{
    Addr, Desired, Device, DeviceKind, Entries, Entry, LinkChange, Mac, NewVxlan, PROTOCOL_SEAWAY,
    Settings, WgConfig,
};
use super::observe::{Observed, SeenDevice};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Removes a device of ours.
    DelLink(String),
    /// Makes a VXLAN device.
    AddVxlan(NewVxlan),
    /// Makes a WireGuard device with this largest packet.
    AddWireGuard(String, u32),
    /// Sets key and port of a WireGuard device.
    SetWireGuard(String, WgConfig),
    /// Changes a device.
    SetLink(String, LinkChange),
    /// Has checksums filled in before a packet comes to the device.
    NoTxChecksum(String),
    /// Removes an address of our device.
    DelAddr(String, IpNetwork),
    /// Gives our device its address.
    AddAddr(String, Addr),
    /// Changes a kernel setting.
    Sysctl(String, &'static str),
    /// Sets what another node brings.
    Set(Entry),
    /// Removes what another node brought.
    Del(Entry),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DelLink(name) => write!(f, "- link {name}"),
            Self::AddVxlan(new) => {
                let local = new.local.map(|ip| ip.to_string()).unwrap_or_default();
                write!(
                    f,
                    "+ link {} vni {} port {} local {local} mtu {}",
                    new.name,
                    new.vni,
                    new.port,
                    new.mtu.unwrap_or_default(),
                )?;
                let words = [(new.learning, " learning"), (new.gbp, " gbp")];
                for (_, word) in words.into_iter().filter(|(on, _)| *on) {
                    f.write_str(word)?;
                }
                Ok(())
            }
            Self::AddWireGuard(name, mtu) => write!(f, "+ link {name} wireguard mtu {mtu}"),
            Self::SetWireGuard(name, config) => write!(f, "= link {name} key port {}", config.port),
            Self::SetLink(name, change) => write_link_change(f, name, change),
            Self::NoTxChecksum(name) => write!(f, "= link {name} no tx-checksum"),
            Self::DelAddr(dev, net) => write!(f, "- addr {net} dev {dev}"),
            Self::AddAddr(dev, addr) => write!(f, "+ addr {} dev {dev}", addr.net),
            Self::Sysctl(key, value) => write!(f, "= sysctl {key} {value}"),
            Self::Set(entry) => write!(f, "+ {entry}"),
            Self::Del(entry) => write!(f, "- {entry}"),
        }
    }
}

fn write_link_change(f: &mut fmt::Formatter<'_>, name: &str, change: &LinkChange) -> fmt::Result {
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

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = |mac: Option<Mac>| mac.map(|m| m.to_string()).unwrap_or_default();
        match self {
            Self::Fdb(dev, entry) => {
                let dst = entry.dst.map(|ip| ip.to_string()).unwrap_or_default();
                write!(f, "fdb {} dst {dst} dev {dev}", entry.mac)
            }
            Self::Neigh(dev, neigh) => {
                write!(f, "neigh {} lladdr {} dev {dev}", neigh.dst, mac(neigh.mac))
            }
            Self::WgPeer(dev, peer) => {
                write!(f, "peer {} dev {dev}", peer.key)?;
                if let Some(endpoint) = peer.endpoint {
                    write!(f, " endpoint {endpoint}")?;
                }
                for net in &peer.allowed {
                    write!(f, " allowed {net}")?;
                }
                Ok(())
            }
            Self::Route(route) => write!(f, "route {route}"),
        }
    }
}

/// The changes that make `seen` into `want` with `entries`.
pub fn diff(
    settings: &Settings,
    want: &Desired,
    entries: &Entries,
    seen: &Observed,
) -> Vec<Change> {
    let mut changes = Changes::default();
    let mut gone = BTreeSet::new();
    for name in settings.devices() {
        let there = seen.devices.get(&name);
        match (want.devices.get(&name), there) {
            (None, None) => {}
            (None, Some(_)) => {
                changes.links.push(Change::DelLink(name.clone()));
                gone.insert(name);
            }
            (Some(device), None) => changes.add(&name, device),
            (Some(device), Some(there)) if !fits(device, there) => {
                changes.links.push(Change::DelLink(name.clone()));
                changes.add(&name, device);
                gone.insert(name);
            }
            (Some(device), Some(there)) => changes.mend(&name, device, there),
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
    // What was on a device that goes has gone with it.
    let stays = |entry: &&Entry| !dev_of(entry).is_some_and(|dev| gone.contains(dev));
    for (key, there) in &seen.entries {
        let there: Vec<&Entry> = there.iter().filter(stays).collect();
        changes.entry(entries.get(key), &there);
    }
    for (key, entry) in entries {
        if !seen.entries.contains_key(key) {
            changes.entry(Some(entry), &[]);
        }
    }
    changes.in_order()
}

fn dev_of(entry: &Entry) -> Option<&str> {
    match entry {
        Entry::Fdb(dev, _) | Entry::Neigh(dev, _) | Entry::WgPeer(dev, _) => Some(dev),
        Entry::Route(route) => route.dev.as_deref(),
    }
}

/// The changes from the entries of some nodes to others of the same nodes.
pub fn diff_entries(before: &Entries, after: &Entries) -> Vec<Change> {
    let mut changes = Changes::default();
    for (key, entry) in before {
        changes.entry(after.get(key), &[entry]);
    }
    for (key, entry) in after {
        if !before.contains_key(key) {
            changes.entry(Some(entry), &[]);
        }
    }
    changes.in_order()
}

/// The changes after the kernel told that `there` is what it has under one key, perhaps beside
/// what it had.
pub fn diff_told(want: Option<&Entry>, there: Option<&Entry>) -> Vec<Change> {
    match (want, there) {
        (Some(want), Some(there)) if is_as_wanted(want, there) => Vec::new(),
        (Some(want), Some(there @ Entry::Fdb(..))) => {
            // One hardware address may be behind several outer addresses.
            vec![Change::Del(there.clone()), Change::Set(want.clone())]
        }
        (Some(want), _) => vec![Change::Set(want.clone())],
        (None, Some(there)) => vec![Change::Del(there.clone())],
        (None, None) => Vec::new(),
    }
}

/// Whether what is there does what is wanted. A WireGuard far end may have moved, which its packets
/// prove; a neighbour is the same whoever made it.
fn is_as_wanted(want: &Entry, there: &Entry) -> bool {
    match (want, there) {
        (Entry::Neigh(dev, want), Entry::Neigh(on, there)) => {
            dev == on
                && (want.dst, want.mac, want.permanent) == (there.dst, there.mac, there.permanent)
        }
        (Entry::WgPeer(dev, want), Entry::WgPeer(on, there)) => {
            dev == on
                && there.endpoint.is_some()
                && (want.key, want.psk, want.keepalive, &want.allowed)
                    == (there.key, there.psk, there.keepalive, &there.allowed)
        }
        _ => want == there,
    }
}

/// Whether a device can be made what it should be without making it anew.
fn fits(want: &Device, seen: &SeenDevice) -> bool {
    match &want.kind {
        DeviceKind::Vxlan { new, underlay } => seen.link.vxlan.as_ref().is_some_and(|vxlan| {
            vxlan.vni == new.vni
                && vxlan.port == new.port
                && vxlan.local == new.local
                && vxlan.learning == new.learning
                && vxlan.gbp == new.gbp
                && vxlan.underlay.is_none_or(|index| index == *underlay)
        }),
        DeviceKind::WireGuard(_) => seen.link.kind.as_deref() == Some("wireguard"),
    }
}

/// Changes by when they are due.
#[derive(Default)]
struct Changes {
    links: Vec<Change>,
    sysctls: Vec<Change>,
    coming: Vec<Change>,
    coming_routes: Vec<Change>,
    leaving_routes: Vec<Change>,
    leaving: Vec<Change>,
}

impl Changes {
    fn in_order(self) -> Vec<Change> {
        let parts = [
            self.links,
            self.sysctls,
            self.coming,
            self.coming_routes,
            self.leaving_routes,
            self.leaving,
        ];
        parts.into_iter().flatten().collect()
    }

    /// A device made from nothing.
    fn add(&mut self, name: &str, device: &Device) {
        match &device.kind {
            DeviceKind::Vxlan { new, .. } => {
                self.links.push(Change::AddVxlan(new.clone()));
                // The device needs no address of its own making, and asks nobody whether one is
                // taken.
                let quiet = LinkChange {
                    link_local: Some(false),
                    ..LinkChange::default()
                };
                self.links.push(Change::SetLink(name.to_owned(), quiet));
            }
            DeviceKind::WireGuard(config) => {
                let add = Change::AddWireGuard(name.to_owned(), device.mtu);
                self.links.push(add);
                let set = Change::SetWireGuard(name.to_owned(), config.clone());
                self.links.push(set);
            }
        }
        if device.no_tx_checksum {
            self.links.push(Change::NoTxChecksum(name.to_owned()));
        }
        let up = Change::SetLink(name.to_owned(), LinkChange::up());
        self.links.push(up);
        self.addrs(name, device, &[]);
    }

    /// Puts right what can be changed on a device in use.
    fn mend(&mut self, name: &str, device: &Device, seen: &SeenDevice) {
        let mac = match &device.kind {
            DeviceKind::Vxlan { new, .. } => new.mac,
            DeviceKind::WireGuard(_) => None,
        };
        let change = LinkChange {
            mtu: Some(device.mtu).filter(|mtu| *mtu != seen.link.mtu),
            mac: mac.filter(|mac| Some(*mac) != seen.link.mac),
            up: (!seen.link.up).then_some(true),
            ..LinkChange::default()
        };
        if let DeviceKind::WireGuard(config) = &device.kind
            && seen.wireguard.as_ref() != Some(config)
        {
            let set = Change::SetWireGuard(name.to_owned(), config.clone());
            self.links.push(set);
        }
        if change != LinkChange::default() {
            self.links.push(Change::SetLink(name.to_owned(), change));
        }
        if device.no_tx_checksum && !seen.no_tx_checksum {
            self.links.push(Change::NoTxChecksum(name.to_owned()));
        }
        self.addrs(name, device, &seen.addrs);
    }

    fn addrs(&mut self, name: &str, device: &Device, seen: &[Addr]) {
        let is_link_local = |net: &IpNetwork| match net {
            IpNetwork::V4(_) => false,
            IpNetwork::V6(net) => net.ip().is_unicast_link_local(),
        };
        let nets: BTreeMap<IpNetwork, &Addr> = seen.iter().map(|addr| (addr.net, addr)).collect();
        let foreign = |net: &&IpNetwork| !device.addrs.contains(net) && !is_link_local(net);
        for net in nets.keys().filter(foreign) {
            self.links.push(Change::DelAddr(name.to_owned(), *net));
        }
        for net in device.addrs.iter().filter(|net| !nets.contains_key(net)) {
            let addr = Addr::new(*net).protocol(PROTOCOL_SEAWAY);
            self.links.push(Change::AddAddr(name.to_owned(), addr));
        }
    }

    /// What is under one key: one stays or is replaced, all others go.
    fn entry(&mut self, want: Option<&Entry>, there: &[&Entry]) {
        let good = want.and_then(|want| there.iter().find(|there| is_as_wanted(want, there)));
        let kept = good.or_else(|| want.and(there.first()));
        for entry in there {
            if kept.is_none_or(|kept| kept != entry) {
                let change = Change::Del((*entry).clone());
                match entry {
                    Entry::Route(_) => self.leaving_routes.push(change),
                    _ => self.leaving.push(change),
                }
            }
        }
        if let (Some(want), None) = (want, good) {
            let change = Change::Set(want.clone());
            match want {
                Entry::Route(_) => self.coming_routes.push(change),
                _ => self.coming.push(change),
            }
        }
    }
}
