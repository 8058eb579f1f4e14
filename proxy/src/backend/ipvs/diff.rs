//! From what is known of the kernel to what is wanted: the steps between, in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use linux::ipvs::{Command, Server, ServerId};

use super::desired::{Desired, Touched};
use super::plan::Virtual;
use super::sets::{Element, Entry, Key, SetId};
use crate::model::Protocol;

/// The weight of a destination that gets connections.
pub const WEIGHT: u32 = 1;

/// A virtual server as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownServer {
    /// Properties.
    pub server: Server,
    /// Destinations with their weights; 0: it drains.
    pub destinations: BTreeMap<SocketAddr, u32>,
}

/// What of the kernel is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Virtual servers.
    pub servers: BTreeMap<ServerId, KnownServer>,
    /// Entries of sets.
    pub entries: BTreeSet<Entry>,
    /// Addresses of the dummy device.
    pub binds: BTreeSet<IpAddr>,
    /// Virtual servers that are not wanted any more and stay until their last connection ends.
    pub retiring: BTreeSet<ServerId>,
    /// Destinations that drain.
    pub draining: BTreeSet<(ServerId, SocketAddr)>,
}

impl Known {
    /// After everything was compared: what drains, whoever let it, and what only stays for that.
    pub fn settle(&mut self, desired: &Desired) {
        self.draining.clear();
        for (id, server) in &self.servers {
            let zero = server
                .destinations
                .iter()
                .filter(|(_, weight)| **weight == 0);
            self.draining.extend(zero.map(|(to, _)| (*id, *to)));
        }
        let ids = self.servers.keys().copied();
        self.retiring = ids.filter(|id| desired.server(*id).is_none()).collect();
    }
}

/// Steps, in this order: what lets packets in comes before what sends them away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Entries to replace by some of `add`, in the same step.
    pub replace: Vec<Entry>,
    /// Entries to add.
    pub add: Vec<Entry>,
    /// Servers and destinations that come.
    pub raise: Vec<Command>,
    /// Denials to delete: from here on what was raised is reached.
    pub permit: Vec<Entry>,
    /// Servers and destinations that go.
    pub lower: Vec<Command>,
    /// Addresses that come.
    pub bind: Vec<IpAddr>,
    /// Addresses that go.
    pub unbind: Vec<IpAddr>,
    /// Entries to delete.
    pub delete: Vec<Entry>,
}

impl Change {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Objects written.
    pub fn written(&self) -> usize {
        self.add.len() + self.raise.len() + self.bind.len()
    }

    /// Objects taken away.
    pub fn deleted(&self) -> usize {
        self.permit.len() + self.delete.len() + self.lower.len() + self.unbind.len()
    }
}

/// Everything compared.
pub fn full(desired: &Desired, known: &Known) -> Change {
    let touched = Touched {
        servers: desired
            .servers()
            .map(|(id, _)| id)
            .chain(known.servers.keys().copied())
            .collect(),
        entries: desired.entries().chain(&known.entries).copied().collect(),
        binds: desired.binds().chain(known.binds.iter().copied()).collect(),
    };
    touched_only(desired, known, &touched, &BTreeSet::new())
}

/// Only what was touched is compared. `drained` have lost their last connection.
pub fn touched_only(
    desired: &Desired,
    known: &Known,
    touched: &Touched,
    drained: &BTreeSet<(ServerId, SocketAddr)>,
) -> Change {
    let mut change = Change::default();
    // Virtual servers that stay for their connections keep what leads to them.
    let mut staying: BTreeSet<ServerId> = known.retiring.clone();
    for id in &touched.servers {
        let stays = server(
            *id,
            desired.server(*id),
            known.servers.get(id),
            drained,
            &mut change,
        );
        if stays {
            staying.insert(*id);
        } else {
            staying.remove(id);
        }
    }
    let ips: BTreeSet<IpAddr> = staying
        .iter()
        .filter_map(|id| Some(Key::of(*id)?.ip))
        .collect();
    let is_held = |entry: &Entry| match entry {
        (SetId::Frontends, Element::Key(key)) => staying.contains(&key.server()),
        (SetId::Addresses, Element::Ip(ip)) => ips.contains(ip),
        _ => false,
    };
    for entry in &touched.entries {
        match (desired.has_entry(entry), known.entries.contains(entry)) {
            (true, false) => change.add.push(*entry),
            (false, true) if !is_held(entry) => change.delete.push(*entry),
            _ => {}
        }
    }
    // A map has one value for each key.
    let keys: BTreeSet<Key> = change
        .add
        .iter()
        .filter_map(|(_, element)| mapped(element))
        .collect();
    let replaced = |(_, element): &Entry| mapped(element).is_some_and(|key| keys.contains(&key));
    (change.replace, change.delete) = change.delete.into_iter().partition(replaced);
    let denies = |(set, _): &Entry| set.denies();
    (change.permit, change.delete) = change.delete.into_iter().partition(denies);
    for ip in &touched.binds {
        match (desired.has_bind(*ip), known.binds.contains(ip)) {
            (true, false) => change.bind.push(*ip),
            (false, true) if !ips.contains(ip) => change.unbind.push(*ip),
            _ => {}
        }
    }
    change
}

fn mapped(element: &Element) -> Option<Key> {
    match element {
        Element::Mark(key, _) => Some(*key),
        Element::Ip(_) | Element::Key(_) | Element::From(..) | Element::Port(_) => None,
    }
}

/// One virtual server. True when it is not wanted and stays for its connections.
fn server(
    id: ServerId,
    wanted: Option<&Virtual>,
    known: Option<&KnownServer>,
    drained: &BTreeSet<(ServerId, SocketAddr)>,
    change: &mut Change,
) -> bool {
    let empty = BTreeMap::new();
    let (destinations, protocol) = match (wanted, known) {
        (None, None) => return false,
        (Some(wanted), None) => {
            change.raise.push(Command::AddServer(wanted.server.clone()));
            (&empty, wanted.protocol)
        }
        (Some(wanted), Some(known)) => {
            if wanted.server != known.server {
                change.raise.push(Command::SetServer(wanted.server.clone()));
            }
            (&known.destinations, wanted.protocol)
        }
        // A mark does not tell its protocol: the careful way is right for each.
        (None, Some(known)) => {
            let protocol = Key::of(id).map_or(Protocol::Tcp, |key| key.protocol);
            (&known.destinations, protocol)
        }
    };
    let targets: &[SocketAddr] = wanted.map_or(&[], |wanted| &wanted.destinations);
    for to in targets {
        match destinations.get(to) {
            None => change.raise.push(Command::AddDestination(id, *to, WEIGHT)),
            // Also what drained and came back, and what another process left at zero.
            Some(weight) if *weight != WEIGHT => {
                change.raise.push(Command::SetDestination(id, *to, WEIGHT));
            }
            Some(_) => {}
        }
    }
    let mut left = 0;
    for (to, weight) in destinations {
        if targets.binary_search(to).is_ok() {
            continue;
        }
        // Without a connection's end to wait for, what stays would only swallow packets.
        if protocol != Protocol::Tcp || drained.contains(&(id, *to)) {
            change.lower.push(Command::DeleteDestination(id, *to));
            continue;
        }
        left += 1;
        if *weight != 0 {
            change.lower.push(Command::SetDestination(id, *to, 0));
        }
    }
    if wanted.is_none() && left == 0 {
        change.lower.push(Command::DeleteServer(id));
    }
    wanted.is_none() && left > 0
}

/// Takes a done change into account.
pub fn applied(known: &mut Known, desired: &Desired, change: &Change) {
    for entry in &change.replace {
        known.entries.remove(entry);
    }
    known.entries.extend(&change.add);
    known.binds.extend(&change.bind);
    for command in change.raise.iter().chain(&change.lower) {
        done(known, command);
    }
    for ip in &change.unbind {
        known.binds.remove(ip);
    }
    for entry in change.permit.iter().chain(&change.delete) {
        known.entries.remove(entry);
    }
    for command in change.raise.iter().chain(&change.lower) {
        let id = id_of(command);
        if desired.server(id).is_none() && known.servers.contains_key(&id) {
            known.retiring.insert(id);
        } else {
            known.retiring.remove(&id);
        }
    }
}

fn id_of(command: &Command) -> ServerId {
    match command {
        Command::AddServer(server) | Command::SetServer(server) => server.id,
        Command::DeleteServer(id)
        | Command::AddDestination(id, ..)
        | Command::SetDestination(id, ..)
        | Command::DeleteDestination(id, _) => *id,
    }
}

fn done(known: &mut Known, command: &Command) {
    match command {
        Command::AddServer(server) | Command::SetServer(server) => {
            let entry = known.servers.entry(server.id);
            entry
                .or_insert_with(|| KnownServer {
                    server: server.clone(),
                    destinations: BTreeMap::new(),
                })
                .server = server.clone();
        }
        Command::DeleteServer(id) => {
            known.servers.remove(id);
        }
        Command::AddDestination(id, to, weight) | Command::SetDestination(id, to, weight) => {
            if let Some(server) = known.servers.get_mut(id) {
                server.destinations.insert(*to, *weight);
            }
            if *weight == 0 {
                known.draining.insert((*id, *to));
            } else {
                known.draining.remove(&(*id, *to));
            }
        }
        Command::DeleteDestination(id, to) => {
            if let Some(server) = known.servers.get_mut(id) {
                server.destinations.remove(to);
            }
            known.draining.remove(&(*id, *to));
        }
    }
}

/// What may be finished once `drained` are: their servers, and what leads there.
pub fn touched_by(drained: &BTreeSet<(ServerId, SocketAddr)>) -> Touched {
    let mut touched = Touched::default();
    for (id, _) in drained {
        touched.servers.insert(*id);
        if let Some(key) = Key::of(*id) {
            touched
                .entries
                .insert((SetId::Frontends, Element::Key(key)));
            touched
                .entries
                .insert((SetId::Addresses, Element::Ip(key.ip)));
            touched.binds.insert(key.ip);
        }
    }
    touched
}
