//! The doing: one family's entries in the maps, and what both families share.

use linux::nftables::Notice;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use api::cidr::Family;
use ebpf_common::abi::{Offsets, Plain, bytes_of};
use linux::bpf::Map;

use super::desired::Desired;
use super::diff::{self, Change, Known};
use super::node::{self, NodePlan};
use super::object::{self, InUse, Maps, Object};
use super::observe::{entries, observe};
use super::vanished::Vanished;
use super::xdp::Xdp;
use super::{Place, links, stats};
use crate::backend::{Backend, MoreMetrics, Report, Settings};
use crate::model::{Decisions, PortName};
use crate::store::PortChange;

/// How often entries are copied from maps of other sizes before the programs change, and how few new
/// ones are left to the copy after that.
const COPIES: usize = 8;
const COPIES_REST: usize = 64;

/// What both families share: the programs, and the maps about the node.
pub struct Shared {
    place: Place,
    cgroup: PathBuf,
    object: Object,
    maps: Arc<Maps>,
    settings: BTreeMap<u8, Settings>,
    offsets: Option<Offsets>,
    xdp: Xdp,
    /// What the maps about the node hold; `None`: to be compared.
    node: Option<NodePlan>,
    /// Families that have synced since the start: when all have, the programs go live.
    synced: Vec<Family>,
    live: bool,
    /// Which service a number stands for.
    names: BTreeMap<u32, PortName>,
    vanished: Vanished,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // A panic elsewhere leaves nothing in here half done that the next sync does not compare.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rank(family: Family) -> u8 {
    u8::from(family == Family::V6)
}

/// Opens the mode for both families.
///
/// # Errors
/// The kernel lacks something.
pub fn open(place: &Place, all: [Settings; 2]) -> Result<Vec<(Family, Box<dyn Backend>)>> {
    let cgroup = links::cgroup(place.cgroup.as_deref())?;
    // The kernel's description is some megabytes: read beside its checking of programs.
    let reading = std::thread::spawn(node::offsets);
    let (object, maps) = object::open(place)?;
    let offsets = match reading.join() {
        Err(panic) => std::panic::resume_unwind(panic),
        Ok(_) if !object.reads_kernel => {
            let why = "this kernel lets no program at a socket do so";
            Err(linux::Error::other("read the kernel's memory", why))
        }
        Ok(offsets) => offsets,
    };
    let offsets = match offsets {
        Ok(offsets) => Some(offsets),
        Err(error) => {
            tracing::warn!(
                "{error}: pods cannot be told by address at their sockets, so session affinity does not hold for them and source ranges keep them out"
            );
            None
        }
    };
    let maps = Arc::new(maps);
    let settings = all.clone().map(|s| (rank(s.family), s));
    let shared = Shared {
        place: place.clone(),
        cgroup,
        object,
        maps: maps.clone(),
        settings: settings.into(),
        offsets,
        xdp: Xdp::new(place.xdp),
        node: None,
        synced: Vec::new(),
        live: false,
        names: BTreeMap::new(),
        vanished: Vanished::start(maps.clone()).context("start a thread")?,
    };
    let shared = Arc::new(Mutex::new(shared));
    watch(&shared)?;
    let planes = all.map(|settings| {
        let plane: Box<dyn Backend> = Box::new(Plane {
            shared: shared.clone(),
            maps: maps.clone(),
            desired: Desired::new(settings.clone()),
            known: None,
            told_left_out: BTreeSet::new(),
        });
        (settings.family, plane)
    });
    Ok(planes.into())
}

/// Takes away everything without loading anything.
///
/// # Errors
/// Pins cannot be removed, or are a live process's.
pub fn cleanup(place: &Place, in_use: InUse) -> Result<()> {
    object::remove(place, in_use)
}

/// Follows interfaces and addresses as they come and go, as long as the planes live.
fn watch(shared: &Arc<Mutex<Shared>>) -> Result<()> {
    let monitor = linux::link_monitor::LinkMonitor::open()?;
    let shared = Arc::downgrade(shared);
    std::thread::Builder::new()
        .name("interfaces".to_owned())
        .spawn(move || {
            while monitor.wait() {
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                let mut shared = lock(&shared);
                if shared.live
                    && let Err(error) = shared.look_at_node(false)
                {
                    tracing::warn!("{error:#}");
                }
            }
        })
        .context("follow interfaces")?;
    Ok(())
}

impl Shared {
    /// Writes the maps about the node where they differ, and attaches to new interfaces; `renew`
    /// replaces programs of an earlier process, too.
    fn look_at_node(&mut self, renew: bool) -> Result<()> {
        let facts = node::facts(&links::interfaces(&self.object.links_dir()))?;
        let settings: Vec<Settings> = self.settings.values().cloned().collect();
        let plan = node::plan(&facts, &settings, self.offsets);
        if self.node.as_ref() != Some(&plan) {
            let maps = &self.maps;
            maps.get("CONFIG").update(&[0; 4], bytes_of(&plan.config))?;
            replace_all(maps.get("NODE_ADDRS"), &plan.addrs)?;
            replace_all(maps.get("IFACES"), &plan.ifaces)?;
            self.node = Some(plan);
        }
        if self.live || renew {
            match links::attach_interfaces(&mut self.object, &facts, renew) {
                Ok(new) if new.is_empty() => {}
                Ok(new) => tracing::info!("attached to {}", new.join(", ")),
                Err(error) => {
                    tracing::error!("{error:#}: clients outside the node are not served there");
                }
            }
            let plan = self.node.as_ref().context("the node was looked at")?;
            if let Err(error) = self.xdp.attach(&mut self.object, &facts, plan, renew) {
                tracing::warn!("{error:#}");
            }
        }
        Ok(())
    }

    /// After the first sync of all families: our programs take over.
    fn go_live(&mut self) -> Result<()> {
        self.object.layouts.tell_not_understood()?;
        let mut copied = HashSet::new();
        for _ in 0..COPIES {
            if self.object.layouts.copy_new(&self.maps, &mut copied)? < COPIES_REST {
                break;
            }
        }
        self.look_at_node(true)?;
        links::attach_sockets(&mut self.object, &self.cgroup)?;
        self.object.layouts.copy_new(&self.maps, &mut copied)?;
        let taken = copied.len();
        self.live = true;
        self.object.layouts.forget_others();
        tracing::info!(
            cgroup = %self.cgroup.display(),
            pins = %object::node_dir(&self.place).display(),
            adopted = self.object.adopted,
            taken,
            "programs are attached"
        );
        Ok(())
    }
}

/// Makes a map's entries these, without a moment in which one that stays is missing.
fn replace_all<K: Plain + Ord, V: Plain + PartialEq>(
    map: &Map,
    wanted: &BTreeMap<K, V>,
) -> linux::Result<()> {
    let old: BTreeMap<K, V> = entries(map)?.into_iter().collect();
    for (key, value) in wanted {
        if old.get(key) != Some(value) {
            map.update(bytes_of(key), bytes_of(value))?;
        }
    }
    for key in old.keys().filter(|key| !wanted.contains_key(key)) {
        map.delete(bytes_of(key))?;
    }
    Ok(())
}

/// One family's services.
struct Plane {
    shared: Arc<Mutex<Shared>>,
    maps: Arc<Maps>,
    desired: Desired,
    /// `None`: to be observed, since a write failed or somebody changed the maps.
    known: Option<Known>,
    told_left_out: BTreeSet<PortName>,
}

impl Plane {
    fn family(&self) -> Family {
        self.desired.settings().family
    }

    fn write(&self, change: &Change) -> linux::Result<()> {
        for (delete, map, entries) in change.steps() {
            let map = self.maps.of(map);
            if delete {
                map.delete_many(&entries.keys)?;
            } else {
                map.update_many(&entries.keys, &entries.values)?;
            }
        }
        Ok(())
    }

    fn tell_left_out(&mut self) {
        let left_out = self.desired.left_out();
        let new = left_out.difference(&self.told_left_out);
        let new: Vec<String> = new.map(ToString::to_string).collect();
        if !new.is_empty() {
            let names = new.join(", ");
            tracing::warn!(
                "{}: SCTP is not served in mode ebpf: {names}",
                self.family()
            );
        }
        if *left_out != self.told_left_out {
            self.told_left_out.clone_from(left_out);
        }
    }

    /// The first sync of a family, or one after other settings.
    fn settle(&self) -> linux::Result<()> {
        let mut shared = lock(&self.shared);
        let family = self.family();
        if !shared.synced.contains(&family) {
            shared.synced.push(family);
        }
        let work = if !shared.live && shared.synced.len() == shared.settings.len() {
            shared.go_live()
        } else if shared.live {
            shared.look_at_node(false)
        } else {
            Ok(())
        };
        work.map_err(|error| linux::Error::other("attach programs", format!("{error:#}")))
    }
}

impl Backend for Plane {
    fn settings(&self) -> &Settings {
        self.desired.settings()
    }

    fn reconfigure(&mut self, settings: Settings, decisions: &Decisions) {
        let mut shared = lock(&self.shared);
        shared
            .settings
            .insert(rank(settings.family), settings.clone());
        drop(shared);
        self.desired = Desired::with(settings, decisions);
        self.known = None;
    }

    fn set(&mut self, changes: &[PortChange]) {
        for change in changes {
            self.desired.set(&change.name, change.new.as_ref());
        }
    }

    fn sync(&mut self) -> linux::Result<Report> {
        let (names, keys) = self.desired.take_touched();
        let (change, known, full) = match self.known.take() {
            Some(mut known) => {
                let change = diff::touched(&self.desired, &mut known, &names, &keys);
                (change, known, false)
            }
            None => {
                let mut known = observe(&self.maps, self.family() == Family::V4)?;
                let shared = lock(&self.shared);
                if !shared.live {
                    known.keep_numbers(&shared.object.numbers);
                }
                drop(shared);
                (diff::full(&self.desired, &mut known), known, true)
            }
        };
        self.write(&change)?;
        let report = Report {
            objects: change.puts(),
            rules: 0,
            deleted: change.deletes(),
            full,
        };
        if full {
            self.settle()?;
        }
        let mut shared = lock(&self.shared);
        shared.vanished.add(change.gone());
        if full {
            let all = known.ids.iter().map(|(name, id)| (*id, name.clone()));
            shared.names.extend(all);
        }
        for name in &names {
            if let Some(id) = known.ids.get(name) {
                shared.names.insert(*id, name.clone());
            }
        }
        drop(shared);
        self.known = Some(known);
        self.tell_left_out();
        Ok(report)
    }

    fn distrust(&mut self) {
        self.known = None;
    }

    fn is_trusted(&self) -> bool {
        self.known.is_some()
    }

    fn is_intact(&mut self) -> linux::Result<bool> {
        let Some(known) = &self.known else {
            return Ok(false);
        };
        let seen = observe(&self.maps, self.family() == Family::V4)?;
        let mut shared = lock(&self.shared);
        let attached = links::sockets_are_attached(&shared.object, &shared.cgroup);
        if !attached {
            shared.live = false;
        }
        if let Err(error) = shared.look_at_node(false) {
            tracing::warn!("{error:#}");
        }
        Ok(attached && seen.frontends == known.frontends && seen.services == known.services)
    }

    fn cleanup(&mut self) -> linux::Result<()> {
        let place = lock(&self.shared).place.clone();
        self.known = None;
        object::remove_pins(&place)
            .map_err(|error| linux::Error::other("take pins away", format!("{error:#}")))
    }

    fn see(&mut self, _seen: &Notice<'_>) -> bool {
        false
    }

    fn own_port(&self) -> Option<u32> {
        None
    }

    fn metrics(&self) -> Option<MoreMetrics> {
        if self.family() == Family::V6 {
            // The maps are shared: IPv4's plane tells of both.
            return None;
        }
        let (maps, shared) = (self.maps.clone(), self.shared.clone());
        Some(Box::new(move || {
            let shared = lock(&shared);
            let (names, ended) = (shared.names.clone(), shared.vanished.ended());
            drop(shared);
            stats::render(&maps, &names, ended).unwrap_or_else(|error| format!("# {error}\n"))
        }))
    }
}
