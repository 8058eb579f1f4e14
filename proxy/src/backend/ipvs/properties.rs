//! Properties over random services, on virtual servers, sets and addresses in memory that refuse what
//! the kernel refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use api::cidr::Family;
use linux::ipvs::{Command, Server, ServerId};
use proptest::prelude::*;

use super::Options;
use super::desired::{Desired, Touched};
use super::diff::{Change, Known, WEIGHT, applied, full, touched_by, touched_only};
use super::plan::Context;
use super::sets::Entry;
use crate::backend::nftables::tests::{decisions, settings, shorts};
use crate::model::Decisions;

/// What a fake kernel has.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct World {
    servers: BTreeMap<ServerId, (Server, BTreeMap<SocketAddr, u32>)>,
    entries: BTreeSet<Entry>,
    device: BTreeSet<IpAddr>,
}

impl World {
    /// In the order in which [`super::apply`] writes.
    fn apply(&mut self, change: &Change) {
        self.remove(&change.replace);
        for entry in &change.add {
            assert!(self.entries.insert(*entry), "{entry:?} is there");
        }
        change
            .raise
            .iter()
            .for_each(|command| self.command(command));
        self.remove(&change.permit);
        change
            .lower
            .iter()
            .for_each(|command| self.command(command));
        for ip in &change.bind {
            assert!(self.device.insert(*ip), "{ip} is there");
        }
        for ip in &change.unbind {
            assert!(self.device.remove(ip), "{ip} is not there");
        }
        self.remove(&change.delete);
    }

    fn remove(&mut self, entries: &[Entry]) {
        for entry in entries {
            assert!(self.entries.remove(entry), "{entry:?} is not there");
        }
    }

    fn command(&mut self, command: &Command) {
        let done = match command {
            Command::AddServer(server) => {
                let new = (server.clone(), BTreeMap::new());
                self.servers.insert(server.id, new).is_none()
            }
            Command::SetServer(server) => {
                let known = self.servers.get_mut(&server.id);
                known.map(|known| known.0 = server.clone()).is_some()
            }
            Command::DeleteServer(id) => self.servers.remove(id).is_some(),
            Command::AddDestination(id, to, weight) => self.of(*id).insert(*to, *weight).is_none(),
            Command::SetDestination(id, to, weight) => self.of(*id).insert(*to, *weight).is_some(),
            Command::DeleteDestination(id, to) => self.of(*id).remove(to).is_some(),
        };
        assert!(done, "{command}");
    }

    fn of(&mut self, id: ServerId) -> &mut BTreeMap<SocketAddr, u32> {
        &mut self.servers.get_mut(&id).unwrap().1
    }

    fn known(known: &Known) -> Self {
        let servers = known.servers.iter();
        let servers = servers.map(|(id, s)| (*id, (s.server.clone(), s.destinations.clone())));
        Self {
            servers: servers.collect(),
            entries: known.entries.clone(),
            device: known.binds.clone(),
        }
    }

    /// What should be there once nothing drains.
    fn wanted(desired: &Desired) -> Self {
        let servers = desired.servers().map(|(id, of)| {
            let destinations = of.destinations.iter().map(|to| (*to, WEIGHT));
            (id, (of.server.clone(), destinations.collect()))
        });
        Self {
            servers: servers.collect(),
            entries: desired.entries().copied().collect(),
            device: desired.binds().collect(),
        }
    }
}

fn context() -> Context {
    Context {
        settings: settings(Family::V4),
        options: Options::default(),
        node_ips: [[192, 168, 0, 2].into(), [192, 168, 1, 2].into()].into(),
    }
}

fn change(desired: &mut Desired, before: &Decisions, after: &Decisions) -> Touched {
    for name in before.keys().filter(|name| !after.contains_key(name)) {
        desired.set(name, None);
    }
    for (name, decision) in after {
        if before.get(name) != Some(decision) {
            desired.set(name, Some(decision));
        }
    }
    desired.take_touched()
}

/// Writes one change; all that drains has then lost its last connection if `ended`.
fn write(desired: &Desired, known: &mut Known, world: &mut World, touched: &Touched, ended: bool) {
    let step = touched_only(desired, known, touched, &BTreeSet::new());
    world.apply(&step);
    applied(known, desired, &step);
    assert_eq!(&World::known(known), world);
    if ended {
        end(desired, known, world);
    }
}

fn end(desired: &Desired, known: &mut Known, world: &mut World) {
    let drained = known.draining.clone();
    let step = touched_only(desired, known, &touched_by(&drained), &drained);
    world.apply(&step);
    applied(known, desired, &step);
    assert_eq!(world, &World::wanted(desired));
    assert!(full(desired, known).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changes_lead_where_a_new_start_leads(
        steps in prop::collection::vec((shorts(30), any::<bool>()), 1..5),
    ) {
        let mut desired = Desired::new(context());
        let (mut known, mut world) = (Known::default(), World::default());
        let mut before = Decisions::new();
        for (step, ended) in &steps {
            let after = decisions(step);
            let touched = change(&mut desired, &before, &after);
            write(&desired, &mut known, &mut world, &touched, *ended);
            before = after;
        }
        end(&desired, &mut known, &mut world);
        let touched = change(&mut desired, &before, &Decisions::new());
        write(&desired, &mut known, &mut world, &touched, true);
        prop_assert_eq!(world, World::default());
    }

    #[test]
    fn a_new_process_takes_over(old in shorts(30), new in shorts(30)) {
        let (mut known, mut world) = (Known::default(), World::default());
        for shorts in [&old, &new, &old] {
            let desired = Desired::with(context(), &decisions(shorts));
            let step = full(&desired, &known);
            world.apply(&step);
            applied(&mut known, &desired, &step);
            known.settle(&desired);
            prop_assert_eq!(&World::known(&known), &world);
            end(&desired, &mut known, &mut world);
        }
    }
}
