//! The doing: one family's rules in the kernel, through `iptables-restore`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::cidr::Family;
use linux::iptables::{Iptables, Stamp};
use linux::nftables::{self, Notice};

use super::counters;
use super::desired::Desired;
use super::diff::{self, Change, Known, Seen};
use super::observe::{self, Observed};
use super::render::render;
use super::rule::{ChainRef, Rule, Table};
use crate::backend::{Backend, MoreMetrics, Report, Settings, TableRules};
use crate::conntrack::Frontends;
use crate::model::{Decision, Decisions, PortName};
use crate::store::PortChange;

/// All tables are listed when nobody seems to have changed anything for this long.
const TRUST: Duration = Duration::from_secs(3600);

/// Where rules are kept: the kernel, or a fake.
pub trait Rules {
    /// As long as it is the same, nobody has changed any rules.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn stamp(&mut self) -> linux::Result<Option<Stamp>>;

    /// All tables, as `iptables-save` prints them.
    ///
    /// # Errors
    /// The program's words.
    fn save(&mut self) -> linux::Result<String>;

    /// Applies text for `iptables-restore --noflush`. Gives the port by which notifications tell who
    /// did it; none where nothing is told.
    ///
    /// # Errors
    /// The program's words. Tables before the one that failed are changed.
    fn restore(&mut self, text: &str) -> linux::Result<Option<u32>>;

    /// Takes tables away that nothing is in.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn remove_empty(&mut self, tables: &BTreeSet<Table>) -> linux::Result<()>;

    /// Makes the counters that rules count into; false where there can be none. Adds who wrote rules for
    /// that to `writers`.
    fn ensure_counters(&mut self, writers: &mut Vec<Option<u32>>) -> bool;

    /// Takes those counters away that no rule counts into.
    fn remove_counters(&mut self);
}

impl Rules for Iptables {
    fn stamp(&mut self) -> linux::Result<Option<Stamp>> {
        Self::stamp(self, &Table::ALL.map(Table::name)).map(Some)
    }

    fn save(&mut self) -> linux::Result<String> {
        // Without a table's name only tables that exist are listed, and none is made.
        Self::save(self, None)
    }

    fn restore(&mut self, text: &str) -> linux::Result<Option<u32>> {
        self.restore_as(text)
    }

    fn remove_empty(&mut self, tables: &BTreeSet<Table>) -> linux::Result<()> {
        Self::remove_empty_tables(self, tables.iter().map(|table| table.name()))
    }

    fn ensure_counters(&mut self, writers: &mut Vec<Option<u32>>) -> bool {
        counters::ensure(self, writers)
    }

    fn remove_counters(&mut self) {
        counters::remove();
    }
}

/// One family's rules.
pub struct Plane<R> {
    rules: R,
    desired: Desired,
    /// `None`: to be observed, since a write failed or someone changed our rules.
    seen: Option<Seen>,
    /// When the kernel last had all that was written, and by which stamp one can tell.
    intact: Option<(Stamp, Instant)>,
    /// Who wrote in the last sync, for notifications of it; none of one that is not told of.
    writers: Vec<Option<u32>>,
    /// Rules written by the last sync.
    last: BTreeMap<Table, usize>,
    /// Rules count into counters; `None`: not found out yet.
    counted: Option<bool>,
}

impl<R: Rules> Plane<R> {
    /// Without any service yet; the first [`Plane::sync`] takes over what is in the kernel.
    pub fn new(rules: R, desired: Desired) -> Self {
        Self {
            rules,
            desired,
            seen: None,
            intact: None,
            writers: Vec::new(),
            last: BTreeMap::new(),
            counted: None,
        }
    }

    /// What is wanted.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Starts over with other settings; services are to be set again.
    pub fn replace(&mut self, desired: Desired) {
        self.desired = desired;
        self.seen = None;
    }

    /// Sets service ports; nothing is written yet.
    pub fn set<'a>(
        &mut self,
        ports: impl IntoIterator<Item = (&'a PortName, Option<&'a Arc<Decision>>)>,
    ) {
        for (name, decision) in ports {
            self.desired.set(name, decision);
            if self.seen.is_none() {
                self.desired.forget_touched();
            }
        }
    }

    /// The next sync looks at the kernel and compares everything.
    pub fn distrust(&mut self) {
        self.seen = None;
    }

    /// Makes the kernel's rules what is wanted.
    ///
    /// # Errors
    /// The program's words; the next call compares everything.
    pub fn sync(&mut self) -> linux::Result<Report> {
        self.writers.clear();
        let (change, mut seen, full) = match self.seen.take() {
            Some(seen) => (
                diff::touched(self.desired.take_touched(), &seen),
                seen,
                false,
            ),
            None => {
                let (rules, writers) = (&mut self.rules, &mut self.writers);
                let ensure = || rules.ensure_counters(writers);
                let counted = *self.counted.get_or_insert_with(ensure);
                self.desired.set_counted(counted);
                self.intact = self.stamp().zip(Some(Instant::now()));
                let seen = self.observe()?;
                self.desired.forget_touched();
                (diff::full(&self.desired, &seen), seen, true)
            }
        };
        let report = report(&change, full);
        let since = if full {
            Some(Instant::now())
        } else {
            self.unchanged()
        };
        self.last.clear();
        for (chain, rules) in &change.write {
            *self.last.entry(chain.table).or_default() += rules.len();
        }
        self.write(change, &mut seen)?;
        self.seen = Some(seen);
        // What somebody else did since the write is in this stamp too: it is worth something only where
        // notifications tell of that.
        if self.writers.iter().any(Option::is_none) {
            self.intact = None;
        } else if !self.writers.is_empty() {
            self.intact = self.stamp().zip(since);
        }
        Ok(report)
    }

    fn write(&mut self, change: Change, seen: &mut Seen) -> linux::Result<()> {
        if change.is_empty() {
            return Ok(());
        }
        let failed = match self.restore(&change) {
            Ok(()) => {
                diff::applied(seen, &change);
                return Ok(());
            }
            Err(error) => error,
        };
        if change.delete.is_empty() {
            return Err(failed);
        }
        // A rule of someone else's may refer to a chain that goes. That must not keep the rest out.
        let (writes, deletes) = change.split_deletes();
        self.restore(&writes)?;
        diff::applied(seen, &writes);
        for chain in deletes.delete {
            let one = Change {
                delete: [chain.clone()].into(),
                ..Change::default()
            };
            match self.restore(&one) {
                Ok(()) => diff::applied(seen, &one),
                Err(error) => {
                    let name = &chain.name;
                    tracing::warn!(%error, "chain {name} stays, empty, until the next full sync");
                }
            }
        }
        Ok(())
    }

    fn restore(&mut self, change: &Change) -> linux::Result<()> {
        let writer = self.rules.restore(&render(change))?;
        self.writers.push(writer);
        Ok(())
    }

    fn observe(&mut self) -> linux::Result<Seen> {
        let observed = observe::parse(&self.rules.save()?);
        let chains = observed.chains.into_keys();
        Ok(Seen {
            chains: chains.map(|chain| (chain, Known::Something)).collect(),
            hooks: observed.hooks,
            rules: BTreeMap::new(),
        })
    }

    /// Whether the kernel's rules are thought to be known.
    pub fn is_trusted(&self) -> bool {
        self.seen.is_some()
    }

    /// Whether the kernel still has all our chains with as many rules as we wrote, and all hooks.
    /// Looks only when somebody has changed rules, or when that is long ago.
    ///
    /// # Errors
    /// The program's words.
    pub fn is_intact(&mut self) -> linux::Result<bool> {
        if self.seen.is_none() {
            return Ok(false);
        }
        if self
            .unchanged()
            .is_some_and(|since| since.elapsed() < TRUST)
        {
            return Ok(true);
        }
        let stamp = self.stamp();
        let observed = observe::parse(&self.rules.save()?);
        let wanted: BTreeMap<ChainRef, Vec<Rule>> = self.desired.chains();
        let intact = intact(&wanted, &self.desired, &observed);
        self.intact = stamp.filter(|_| intact).zip(Some(Instant::now()));
        Ok(intact)
    }

    /// When all was found there, if nobody has changed rules since.
    fn unchanged(&mut self) -> Option<Instant> {
        let (known, since) = self.intact.take()?;
        if self.stamp()? != known {
            return None;
        }
        self.intact = Some((known, since));
        Some(since)
    }

    /// A kernel that does not tell is listed each time.
    fn stamp(&mut self) -> Option<Stamp> {
        self.rules.stamp().unwrap_or_else(|error| {
            tracing::debug!("{error}");
            None
        })
    }

    /// Takes away all that is ours, also of an earlier process or of kube-proxy.
    ///
    /// # Errors
    /// The program's words.
    pub fn cleanup(&mut self) -> linux::Result<()> {
        self.seen = None;
        let seen = self.observe()?;
        let change = diff::cleanup(&seen);
        if change.is_empty() {
            self.rules.remove_counters();
            return Ok(());
        }
        self.restore(&change)?;
        let used = seen.hooks.keys().map(|(chain, _)| chain.clone());
        self.drop_idle(&used.collect())?;
        let ours = seen.chains.keys().map(|chain| chain.table);
        self.rules.remove_empty(&ours.collect())?;
        self.rules.remove_counters();
        Ok(())
    }

    /// Deletes built-in chains that are not needed any more: in nf_tables, the first rule makes them.
    /// The legacy kind has them for ever, and says so.
    fn drop_idle(&mut self, used: &BTreeSet<ChainRef>) -> linux::Result<()> {
        let idle = observe::idle_chains(&self.rules.save()?);
        for chain in idle.intersection(used) {
            let one = Change {
                delete: [chain.clone()].into(),
                ..Change::default()
            };
            if let Err(error) = self.restore(&one) {
                tracing::debug!(%error, "chain {} stays, empty", chain.name);
            }
        }
        Ok(())
    }
}

impl<R: Rules + Send> Backend for Plane<R> {
    fn settings(&self) -> &Settings {
        self.desired.settings()
    }

    fn reconfigure(&mut self, settings: Settings, decisions: &Decisions) {
        self.replace(Desired::with(settings, decisions));
    }

    fn set(&mut self, changes: &[PortChange]) {
        Self::set(self, changes.iter().map(|c| (&c.name, c.new.as_ref())));
    }

    fn sync(&mut self) -> linux::Result<Report> {
        Self::sync(self)
    }

    fn distrust(&mut self) {
        Self::distrust(self);
    }

    fn is_trusted(&self) -> bool {
        Self::is_trusted(self)
    }

    fn is_intact(&mut self) -> linux::Result<bool> {
        Self::is_intact(self)
    }

    fn cleanup(&mut self) -> linux::Result<()> {
        Self::cleanup(self)
    }

    fn frontends(&mut self) -> linux::Result<Frontends> {
        Ok(observe::frontends(&self.rules.save()?))
    }

    fn rules(&self) -> Vec<TableRules> {
        let number = |of: &BTreeMap<Table, usize>, table| of.get(&table).copied().unwrap_or(0);
        let tables = [Table::Filter, Table::Nat].map(|table| TableRules {
            table: table.name(),
            total: self
                .seen
                .as_ref()
                .map_or(0, |seen| number(&seen.rules, table)),
            last: number(&self.last, table),
        });
        tables.into()
    }

    /// Others' deletions count.
    fn see(&mut self, seen: &Notice<'_>) -> bool {
        let is_theirs = match seen {
            Notice::Edit(edit) => {
                let family = match self.settings().family {
                    Family::V4 => nftables::Family::Ipv4,
                    Family::V6 => nftables::Family::Ipv6,
                };
                let tables = ["filter", "nat", "mangle"];
                edit.deletes
                    && !edit.of_elements()
                    && edit.family == family
                    && tables.contains(&edit.table)
                    && !self.writers.contains(&Some(edit.port))
            }
            Notice::Lost => true,
            Notice::Done(_) => false,
        };
        if is_theirs {
            self.intact = None;
        }
        is_theirs
    }

    /// Numbers of processes are given away again.
    fn seen_all(&mut self) {
        self.writers.clear();
    }

    fn own_port(&self) -> Option<u32> {
        None
    }

    fn metrics(&self) -> Option<MoreMetrics> {
        // Both families count into the same counters, and IPv4's plane is always there.
        let ours = self.settings().family == Family::V4;
        ours.then(|| Box::new(counters::metrics) as MoreMetrics)
    }
}

fn intact(wanted: &BTreeMap<ChainRef, Vec<Rule>>, desired: &Desired, observed: &Observed) -> bool {
    let chains = wanted
        .iter()
        .all(|(chain, rules)| observed.chains.get(chain) == Some(&rules.len()));
    let hooks = desired.hooks().iter().all(|hook| {
        hook.target().is_some_and(|target| {
            observed
                .hooks
                .contains_key(&(hook.chain.clone(), target.clone()))
        })
    });
    chains && hooks
}

fn report(change: &Change, full: bool) -> Report {
    Report {
        objects: change.write.len(),
        rules: change.write.values().map(Vec::len).sum(),
        deleted: change.delete.len(),
        full,
    }
}
