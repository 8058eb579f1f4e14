//! A kernel in memory: virtual servers, the device's addresses, sets; it writes down each change, and
//! refuses one when asked to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use linux::ipvs::{Command, Destination, Server, ServerId};
use linux::{Error, Result};

use crate::backend::Settings;
use crate::backend::ipvs::Options;
use crate::backend::ipvs::filter::Filter;
use crate::backend::ipvs::kernel::{Addresses, Machine};
use crate::backend::ipvs::sets::Entry;

/// A kernel in memory.
#[derive(Debug, Default)]
pub(super) struct Fake {
    pub(super) servers: BTreeMap<ServerId, (Server, BTreeMap<SocketAddr, Destination>)>,
    pub(super) device: BTreeSet<IpAddr>,
    pub(super) node: BTreeSet<IpAddr>,
    pub(super) sets: Sets,
    /// Every change, in order.
    pub(super) log: Vec<String>,
    /// Changes until one is refused.
    pub(super) fails_in: Option<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Sets {
    pub(super) rules: bool,
    pub(super) entries: BTreeSet<Entry>,
    pub(super) log: Vec<String>,
}

fn refusal(errno: nix::errno::Errno) -> Error {
    Error::new("fake", io::Error::from(errno))
}

impl Fake {
    fn count(&mut self, what: String) -> Result<()> {
        let earlier = std::mem::take(&mut self.sets.log);
        self.log.extend(earlier);
        self.log.push(what);
        match &mut self.fails_in {
            Some(0) => Err(refusal(nix::errno::Errno::ENOBUFS)),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn one(&mut self, command: &Command) -> Result<()> {
        self.count(command.to_string())?;
        let missing = || refusal(nix::errno::Errno::ENOENT);
        let there = || refusal(nix::errno::Errno::EEXIST);
        let new = |to: &SocketAddr, weight: u32| Destination {
            address: *to,
            weight,
            translated: true,
            active: 0,
            inactive: 0,
        };
        match command {
            Command::AddServer(server) => {
                if self.servers.contains_key(&server.id) {
                    return Err(there());
                }
                self.servers
                    .insert(server.id, (server.clone(), BTreeMap::new()));
            }
            Command::SetServer(server) => {
                self.servers.get_mut(&server.id).ok_or_else(missing)?.0 = server.clone();
            }
            Command::DeleteServer(id) => {
                self.servers.remove(id).ok_or_else(missing)?;
            }
            Command::AddDestination(id, to, weight) => {
                let all = &mut self.servers.get_mut(id).ok_or_else(missing)?.1;
                if all.insert(*to, new(to, *weight)).is_some() {
                    return Err(there());
                }
            }
            Command::SetDestination(id, to, weight) => {
                let all = &mut self.servers.get_mut(id).ok_or_else(missing)?.1;
                all.get_mut(to).ok_or_else(missing)?.weight = *weight;
            }
            Command::DeleteDestination(id, to) => {
                let all = &mut self.servers.get_mut(id).ok_or_else(missing)?.1;
                all.remove(to).ok_or_else(missing)?;
            }
        }
        Ok(())
    }

    pub(super) fn weights(&self, id: ServerId) -> BTreeMap<SocketAddr, u32> {
        let all = self.servers.get(&id).map(|(_, all)| all);
        let each = all.into_iter().flatten();
        each.map(|(to, d)| (*to, d.weight)).collect()
    }

    pub(super) fn connections(&mut self, id: ServerId, to: &str, active: u32, inactive: u32) {
        let to: SocketAddr = to.parse().unwrap();
        let found = self.servers.get_mut(&id).unwrap().1.get_mut(&to).unwrap();
        (found.active, found.inactive) = (active, inactive);
    }

    pub(super) fn take_log(&mut self) -> Vec<String> {
        let mut log = std::mem::take(&mut self.log);
        log.append(&mut self.sets.log);
        log
    }
}

impl Filter for Sets {
    fn install(&mut self, _: &Settings) -> Result<BTreeSet<Entry>> {
        self.rules = true;
        Ok(self.entries.clone())
    }

    fn installed(&mut self, _: &Settings) -> Result<Option<BTreeSet<Entry>>> {
        Ok(self.rules.then(|| self.entries.clone()))
    }

    fn entries(&mut self) -> Result<BTreeSet<Entry>> {
        Ok(self.entries.clone())
    }

    fn change(&mut self, add: &[Entry], delete: &[Entry]) -> Result<()> {
        self.log
            .push(format!("sets +{} -{}", add.len(), delete.len()));
        for entry in delete {
            assert!(self.entries.remove(entry), "{entry:?} is not there");
        }
        for entry in add {
            assert!(self.entries.insert(*entry), "{entry:?} is there");
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        *self = Self::default();
        Ok(())
    }
}

impl Machine for Fake {
    fn prepare(&mut self, _: &Options) -> Result<()> {
        Ok(())
    }

    fn servers(&mut self) -> Result<Vec<Server>> {
        Ok(self
            .servers
            .values()
            .map(|(server, _)| server.clone())
            .collect())
    }

    fn destinations(&mut self, id: ServerId) -> Result<Vec<Destination>> {
        let all = self.servers.get(&id).map(|(_, all)| all);
        Ok(all.into_iter().flatten().map(|(_, to)| *to).collect())
    }

    fn apply(&mut self, commands: &[Command]) -> Result<Vec<(usize, Error)>> {
        let mut refused = Vec::new();
        for (i, command) in commands.iter().enumerate() {
            if let Err(error) = self.one(command) {
                refused.push((i, error));
            }
        }
        Ok(refused)
    }

    fn addresses(&mut self) -> Result<Addresses> {
        Ok(Addresses {
            device: self.device.clone(),
            node: self.node.clone(),
        })
    }

    fn bind(&mut self, changes: &[(IpAddr, bool)]) -> Result<()> {
        for (ip, wanted) in changes {
            self.count(format!("{} {ip}", if *wanted { "bind" } else { "unbind" }))?;
            if *wanted {
                self.device.insert(*ip);
            } else {
                self.device.remove(ip);
            }
        }
        Ok(())
    }

    fn remove_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn filter(&mut self) -> &mut dyn Filter {
        &mut self.sets
    }
}
