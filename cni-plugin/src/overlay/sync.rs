//! Making it so: all of it, or only what one node or one notification changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use linux::Host;

use super::events::Interest;
use super::model::{Entries, Entry, Key, Own, Plan, Settings};
use super::path::{self, Target, Verdict};
use super::peers::Peers;
use super::underlay::{self, NoUnderlay};
use super::{apply, diff, files, observe, plan, pods};

/// What this node should have, as far as it was worked out.
#[derive(Debug)]
pub struct Overlay {
    settings: Settings,
    /// The files that let the runtime start pods are written.
    admits_pods: bool,
    plan: Plan,
    /// What all other nodes bring.
    entries: Entries,
    /// Which of it each node brings.
    of: BTreeMap<String, Vec<Key>>,
    /// What is wrong with each node.
    problems: BTreeMap<String, Vec<String>>,
}

/// What became of a sync.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Changes made.
    pub changes: usize,
    /// What failed.
    pub failures: Vec<String>,
}

impl Overlay {
    /// Nothing worked out yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            admits_pods: true,
            plan: Plan::default(),
            entries: Entries::default(),
            of: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether the runtime is let start pods, by the files it waits for: not while what must hold for
    /// them does not yet. Files that are there stay.
    pub fn admit_pods(&mut self, admits: bool) {
        self.admits_pods = admits;
    }

    /// Whether it is.
    pub fn admits_pods(&self) -> bool {
        self.admits_pods
    }

    /// The paths to a node that are to be probed.
    pub fn targets(&self, peers: &Peers, name: &str) -> Vec<Target> {
        let peer = peers.entitled(name, drop);
        path::targets(&self.settings, &self.plan.ground, &peer)
    }

    /// Notes what the path to an address carries; tells whether routes have to follow. None: nobody
    /// is there any more.
    pub fn set_path(&mut self, to: IpAddr, verdict: Option<Verdict>) -> bool {
        let narrow = match verdict {
            Some(Verdict::Narrow(mtu)) => Some(mtu),
            // Nothing was learned.
            Some(Verdict::Silent) => return false,
            Some(Verdict::Whole) | None => None,
        };
        let all = &mut self.plan.ground.narrow;
        let before = match narrow {
            Some(mtu) => all.insert(to, mtu),
            None => all.remove(&to),
        };
        before != narrow
    }

    /// What this node should tell the others; `None` takes an annotation away.
    pub fn annotations(&self) -> &BTreeMap<String, Option<String>> {
        &self.plan.annotations
    }

    /// What could not be honoured.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        let nodes = self.problems.values().flatten();
        self.plan.problems.iter().chain(nodes)
    }

    /// Compares everything and mends what differs; at last writes the CNI configuration. Costs what
    /// listing costs.
    ///
    /// # Errors
    /// There is no underlay, or the kernel cannot be asked.
    pub fn all(
        &mut self,
        host: &mut dyn Host,
        own: &Own,
        peers: &Peers,
    ) -> Result<Synced, NoUnderlay> {
        let underlay = underlay::find(host, &self.settings, own)?;
        let narrow = std::mem::take(&mut self.plan.ground.narrow);
        self.plan = plan::plan(&self.settings, own, &underlay);
        self.plan.ground.narrow = narrow;
        self.entries.clear();
        self.of.clear();
        self.problems.clear();
        for name in peers.names() {
            for entry in self.plan_node(name, peers) {
                self.entries.insert(entry.key(), entry);
            }
        }
        let seen = observe::observe(host, &self.settings, &self.plan.desired)?;
        let changes = diff::diff(&self.settings, &self.plan.desired, &self.entries, &seen);
        let mut synced = make(host, &changes);
        if let (true, Some(wanted)) = (synced.failures.is_empty(), &self.plan.pods) {
            let followed = pods::follow(host, files::BRIDGE, wanted.mtu);
            synced.changes += followed.changes;
            synced.failures.extend(followed.failures);
            let files = match self.admits_pods {
                true => files::all(&self.settings, wanted),
                false => Vec::new(),
            };
            for (path, text) in files {
                match files::write(&path, &text) {
                    Ok(true) => tracing::info!("wrote {}", path.display()),
                    Ok(false) => {}
                    Err(error) => synced.failures.push(error.to_string()),
                }
            }
        }
        Ok(synced)
    }

    /// Works out again what these nodes bring, and changes what is different. Costs what they do,
    /// however many others there are. [`Overlay::all`] must have been before.
    pub fn nodes(
        &mut self,
        host: &mut dyn Host,
        peers: &Peers,
        names: &BTreeSet<String>,
    ) -> Synced {
        let mut before = Entries::new();
        let mut after = Entries::new();
        for name in names {
            for key in self.of.remove(name).unwrap_or_default() {
                before.extend(self.entries.remove(&key).map(|entry| (key, entry)));
            }
        }
        for name in names {
            for entry in self.plan_node(name, peers) {
                after.insert(entry.key(), entry);
            }
        }
        let changes = diff::diff_entries(&before, &after);
        self.entries.extend(after);
        make(host, &changes)
    }

    /// Mends what the kernel told: `there` is what it has under `key`, perhaps beside what it had.
    pub fn told(&mut self, host: &mut dyn Host, key: &Key, there: Option<&Entry>) -> Synced {
        make(host, &diff::diff_told(self.entries.get(key), there))
    }

    /// What one node brings, noted as its own.
    fn plan_node(&mut self, name: &str, peers: &Peers) -> Vec<Entry> {
        let mut problems = Vec::new();
        let peer = peers.entitled(name, |why| problems.push(why));
        let told = |why| problems.push(why);
        let entries = plan::entries(&self.settings, &self.plan.ground, name, &peer, told);
        if problems.is_empty() {
            self.problems.remove(name);
        } else {
            self.problems.insert(name.to_owned(), problems);
        }
        let keys = entries.iter().map(Entry::key).collect();
        self.of.insert(name.to_owned(), keys);
        entries
    }

    /// What to listen for.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn interest(&self, host: &mut dyn Host) -> linux::Result<Interest> {
        let mut interest = Interest {
            names: self.settings.devices().into_iter().collect(),
            foreign_routes: self.settings.backend.asks_for_neighbours(),
            ..Interest::default()
        };
        for name in self.plan.desired.devices.keys() {
            let link = host.link(name)?;
            interest
                .ours
                .extend(link.map(|link| (link.index, name.clone())));
        }
        if let Some(underlay) = &self.plan.ground.underlay {
            interest.underlay = Some((underlay.index, underlay.dev.clone()));
            interest.names.insert(underlay.dev.clone());
        }
        Ok(interest)
    }
}

fn make(host: &mut dyn Host, changes: &[diff::Change]) -> Synced {
    let failures = apply::apply(host, changes);
    Synced {
        changes: changes.len(),
        failures: failures.iter().map(ToString::to_string).collect(),
    }
}
