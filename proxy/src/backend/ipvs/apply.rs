//! The doing: one family's virtual servers, addresses, rules and sets in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use linux::ipvs::{Command, Server, ServerId};
use linux::{Error, Result};

use super::desired::{Desired, Touched};
use super::diff::{self, Change, Known, KnownServer};
use super::kernel::Machine;
use super::plan::Context;
use super::sets::{Entry, Key, SetId};
use super::{DEVICE, Options, rules};
use crate::backend::{Backend, Report, Settings};
use crate::conntrack::Frontends;
use crate::model::{Decisions, Protocol};
use crate::store::PortChange;

/// How often destinations that drain are asked for their connections.
const DRAIN_POLL: Duration = Duration::from_secs(1);

/// A destination that is not reached by translation: never what is wanted.
const NOT_OURS: u32 = u32::MAX;

/// One family's services.
pub struct Plane<M> {
    machine: M,
    desired: Desired,
    /// `None`: to be observed, since a write failed or someone changed our objects.
    known: Option<Known>,
    /// Virtual servers that we had when we last knew.
    remembered: BTreeSet<ServerId>,
    /// When destinations that drain are to be asked.
    poll_at: Option<Instant>,
}

impl<M: Machine> Plane<M> {
    /// Without any service yet; the first [`Backend::sync`] takes over what is in the kernel.
    ///
    /// # Errors
    /// The machine's addresses cannot be listed.
    pub fn new(mut machine: M, settings: Settings, options: Options) -> Result<Self> {
        let context = Context {
            settings,
            options,
            node_ips: machine.addresses()?.node,
        };
        Ok(Self {
            machine,
            desired: Desired::new(context),
            known: None,
            remembered: BTreeSet::new(),
            poll_at: None,
        })
    }

    /// What is wanted.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// What is known of the kernel.
    pub fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// The machine.
    pub fn machine(&mut self) -> &mut M {
        &mut self.machine
    }

    /// The next sync asks destinations that drain, however short ago they were asked.
    #[cfg(test)]
    pub(super) fn poll_now(&mut self) {
        self.poll_at = Some(Instant::now());
    }

    fn full_sync(&mut self) -> Result<Report> {
        self.machine.prepare(&self.desired.context().options)?;
        let addresses = self.machine.addresses()?;
        if addresses.node != self.desired.context().node_ips {
            self.desired.set_node_ips(addresses.node);
        }
        self.desired.take_touched();
        let settings = self.desired.context().settings.clone();
        // The rules come first: without a service in their sets they do nothing.
        let entries = self.machine.filter().install(&settings)?;
        let mut known = self.observe(addresses.device, entries)?;
        let change = diff::full(&self.desired, &known);
        let report = report(&change, true);
        self.write(&change, &mut known)?;
        known.settle(&self.desired);
        self.finish(known);
        Ok(report)
    }

    fn finish(&mut self, known: Known) {
        let drains = !known.draining.is_empty();
        self.poll_at = drains.then(|| self.poll_at.unwrap_or_else(|| Instant::now() + DRAIN_POLL));
        self.known = Some(known);
    }

    /// Which of the kernel's objects are ours: virtual servers that are wanted, that stand in our
    /// sets or have an address of our device, or a mark of ours.
    fn observe(&mut self, device: BTreeSet<IpAddr>, entries: BTreeSet<Entry>) -> Result<Known> {
        let mut known = Known {
            entries,
            ..Known::default()
        };
        for server in self.machine.servers()? {
            if !self.is_ours(&server, &device, &known.entries) {
                continue;
            }
            let destinations = self.machine.destinations(server.id)?;
            let destinations = destinations.iter().map(|to| {
                let weight = if to.translated { to.weight } else { NOT_OURS };
                (to.address, weight)
            });
            let destinations: BTreeMap<SocketAddr, u32> = destinations.collect();
            let id = server.id;
            let server = KnownServer {
                server,
                destinations,
            };
            known.servers.insert(id, server);
        }
        let options = &self.desired.context().options;
        let ours = device.into_iter().filter(|ip| !options.excludes(*ip));
        known.binds = ours.collect();
        Ok(known)
    }

    fn is_ours(
        &self,
        server: &Server,
        device: &BTreeSet<IpAddr>,
        entries: &BTreeSet<Entry>,
    ) -> bool {
        let id = server.id;
        let context = self.desired.context();
        match id {
            ServerId::Mark { mark, .. } => rules::is_ours(mark, context.settings.mark),
            ServerId::Address { ip, .. } => {
                let entry =
                    Key::of(id).map(|key| (SetId::Frontends, super::sets::Element::Key(key)));
                !context.options.excludes(ip)
                    && (self.desired.server(id).is_some()
                        || self.remembered.contains(&id)
                        || device.contains(&ip)
                        || entry.is_some_and(|entry| entries.contains(&entry)))
            }
        }
    }

    /// Writes in the order of the steps.
    fn write(&mut self, change: &Change, known: &mut Known) -> Result<()> {
        if change.is_empty() {
            return Ok(());
        }
        let machine = &mut self.machine;
        if !change.add.is_empty() {
            machine.filter().change(&change.add, &change.replace)?;
        }
        command(machine, &change.raise)?;
        if !change.permit.is_empty() {
            machine.filter().change(&[], &change.permit)?;
        }
        command(machine, &change.lower)?;
        // Last of what lets in: an address is reached when all behind it is ready.
        bind(machine, &change.bind, true)?;
        bind(machine, &change.unbind, false)?;
        if !change.delete.is_empty() {
            machine.filter().change(&[], &change.delete)?;
        }
        diff::applied(known, &self.desired, change);
        Ok(())
    }

    /// Only what was touched.
    fn small_sync(&mut self, known: &mut Known) -> Result<Report> {
        let touched = self.desired.take_touched();
        let before = known.retiring.clone();
        let mut total = self.step(known, &touched, &BTreeSet::new())?;
        // A service that is gone is not worth a wait unless somebody uses it.
        let mut ask: BTreeSet<ServerId> = known.retiring.difference(&before).copied().collect();
        if self.poll_at.is_some_and(|at| at <= Instant::now()) {
            self.poll_at = None;
            ask = known.draining.iter().map(|(id, _)| *id).collect();
        }
        let drained = self.drained(known, &ask)?;
        if !drained.is_empty() {
            let touched = diff::touched_by(&drained);
            let more = self.step(known, &touched, &drained)?;
            total.objects += more.objects;
            total.deleted += more.deleted;
        }
        Ok(total)
    }

    fn step(
        &mut self,
        known: &mut Known,
        touched: &Touched,
        drained: &BTreeSet<(ServerId, SocketAddr)>,
    ) -> Result<Report> {
        let change = diff::touched_only(&self.desired, known, touched, drained);
        self.write(&change, known)?;
        Ok(report(&change, false))
    }

    /// Which of the draining destinations of `ask` have no connection left. One that has ended a
    /// short while ago still counts, except where the whole service is gone.
    fn drained(
        &mut self,
        known: &Known,
        ask: &BTreeSet<ServerId>,
    ) -> Result<BTreeSet<(ServerId, SocketAddr)>> {
        let mut drained = BTreeSet::new();
        for id in ask {
            let gone = known.retiring.contains(id);
            let mut busy = BTreeSet::new();
            for to in self.machine.destinations(*id)? {
                if to.active > 0 || (to.inactive > 0 && !gone) {
                    busy.insert(to.address);
                }
            }
            // What somebody else took away has no connection, either.
            let start = (*id, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
            let all = known.draining.range(start..).take_while(|(of, _)| of == id);
            drained.extend(all.filter(|(_, to)| !busy.contains(to)).copied());
        }
        Ok(drained)
    }

    /// What in the kernel is not as it was left, if anything.
    fn lost(&mut self) -> Result<Option<String>> {
        let Some(known) = &self.known else {
            return Ok(Some("everything".to_owned()));
        };
        let addresses = self.machine.addresses()?;
        if let Some(ip) = known.binds.difference(&addresses.device).next() {
            return Ok(Some(format!("address {ip} of {DEVICE}")));
        }
        let settings = self.desired.context().settings.clone();
        let Some(entries) = self.machine.filter().installed(&settings)? else {
            return Ok(Some("rules".to_owned()));
        };
        if let Some((set, _)) = known.entries.symmetric_difference(&entries).next() {
            return Ok(Some(format!("set {}", set.name())));
        }
        let found: BTreeMap<ServerId, Server> = self
            .machine
            .servers()?
            .into_iter()
            .map(|server| (server.id, server))
            .collect();
        for (id, server) in &known.servers {
            if found.get(id) != Some(&server.server) {
                return Ok(Some(format!("virtual server {id}")));
            }
            let weights: BTreeMap<SocketAddr, u32> = self
                .machine
                .destinations(*id)?
                .iter()
                .map(|to| (to.address, to.weight))
                .collect();
            if weights != server.destinations {
                return Ok(Some(format!("destinations of {id}")));
            }
        }
        Ok(None)
    }

    fn clean_up(&mut self) -> Result<()> {
        let addresses = self.machine.addresses()?;
        let entries = self.machine.filter().entries()?;
        let known = self.observe(addresses.device, entries)?;
        let servers: Vec<Command> = known
            .servers
            .keys()
            .copied()
            .map(Command::DeleteServer)
            .collect();
        command(&mut self.machine, &servers)?;
        let binds: Vec<IpAddr> = known.binds.into_iter().collect();
        bind(&mut self.machine, &binds, false)?;
        self.machine.filter().remove()?;
        self.machine.remove_device()
    }
}

fn bind<M: Machine>(machine: &mut M, ips: &[IpAddr], wanted: bool) -> Result<()> {
    let changes: Vec<(IpAddr, bool)> = ips.iter().map(|ip| (*ip, wanted)).collect();
    machine.bind(&changes)
}

/// Gives commands; one that finds its work done is fine.
fn command<M: Machine>(machine: &mut M, commands: &[Command]) -> Result<()> {
    let mut first: Option<Error> = None;
    for (i, error) in machine.apply(commands)? {
        let done = match commands[i] {
            Command::DeleteServer(_) | Command::DeleteDestination(..) => error.is_not_found(),
            Command::AddServer(_)
            | Command::SetServer(_)
            | Command::AddDestination(..)
            | Command::SetDestination(..) => false,
        };
        if !done {
            first.get_or_insert(error);
        }
    }
    first.map_or(Ok(()), Err)
}

fn report(change: &Change, full: bool) -> Report {
    Report {
        objects: change.written(),
        rules: 0,
        deleted: change.deleted(),
        full,
    }
}

impl<M: Machine> Backend for Plane<M> {
    fn settings(&self) -> &Settings {
        &self.desired.context().settings
    }

    fn reconfigure(&mut self, settings: Settings, decisions: &Decisions) {
        self.distrust();
        let context = Context {
            settings,
            ..self.desired.context().clone()
        };
        self.desired = Desired::with(context, decisions);
    }

    fn set(&mut self, changes: &[PortChange]) {
        for change in changes {
            self.desired.set(&change.name, change.new.as_ref());
        }
    }

    fn sync(&mut self) -> Result<Report> {
        match self.known.take() {
            Some(mut known) => {
                let result = self.small_sync(&mut known);
                match result {
                    Ok(_) => self.finish(known),
                    // What was ours is still known by name.
                    Err(_) => self.remembered.extend(known.servers.into_keys()),
                }
                result
            }
            None => {
                let result = self.full_sync();
                if result.is_ok() {
                    self.remembered.clear();
                }
                result
            }
        }
    }

    fn distrust(&mut self) {
        if let Some(known) = self.known.take() {
            self.remembered.extend(known.servers.into_keys());
        }
    }

    fn is_trusted(&self) -> bool {
        self.known.is_some()
    }

    fn see_addresses(&mut self) -> bool {
        match self.machine.addresses() {
            Ok(addresses) if addresses.node == self.desired.context().node_ips => return false,
            Ok(addresses) => self.desired.set_node_ips(addresses.node),
            Err(error) => {
                tracing::warn!("list the node's addresses: {error}");
                self.distrust();
            }
        }
        self.poll_at = Some(Instant::now());
        true
    }

    fn is_intact(&mut self) -> Result<bool> {
        let Some(lost) = self.lost()? else {
            return Ok(true);
        };
        tracing::info!("not as it was left: {lost}");
        Ok(false)
    }

    fn cleanup(&mut self) -> Result<()> {
        self.distrust();
        self.clean_up()
    }

    fn frontends(&mut self) -> Result<Frontends> {
        let addresses = self.machine.addresses()?;
        let entries = self.machine.filter().entries()?;
        let known = self.observe(addresses.device, entries)?;
        let keys = known.servers.into_keys().filter_map(Key::of);
        let udp = keys.filter(|key| key.protocol == Protocol::Udp);
        Ok(Frontends {
            addresses: udp.map(|key| SocketAddr::new(key.ip, key.port)).collect(),
            // Those of node ports are among the addresses.
            node_ports: BTreeSet::new(),
        })
    }

    fn see(&mut self, _notice: &linux::nftables::Notice<'_>) -> bool {
        false
    }

    fn own_port(&self) -> Option<u32> {
        None
    }

    fn due(&self) -> Option<Instant> {
        self.poll_at
    }
}
