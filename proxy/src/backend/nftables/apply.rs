//! The doing: one family's table, through netlink transactions.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use api::cidr::Family;
use linux::nftables::{Batch, Element, Nftables, Notice, TableRef};

use super::desired::Desired;
use super::diff::{self, Change, Named};
use super::fixed::{self, ChainPlan};
use super::item::{Front, Key, Pick, Value};
use super::observe::{self, Chains, LookedUp, Observed};
use super::sets::SetName;
use super::suspects::Suspects;
use super::{kernel_family, table};
use crate::backend::{Backend, NodePortScope, Report, Settings};
use crate::conntrack::Frontends;
use crate::model::{Decisions, Protocol};
use crate::store::PortChange;

/// Elements of one transaction, about. The kernel holds a lock for all tables meanwhile, and others
/// wait: this is about two milliseconds.
pub const PART_ELEMENTS: usize = 1000;

/// What is written at once.
#[derive(Debug, Default)]
pub struct Transaction {
    /// The table is there and of no use: it goes first.
    pub replaces_table: bool,
    /// Table and sets are made where they are not there.
    pub makes_table: bool,
    /// Chains that get these rules in the place of what they have.
    pub chains: Vec<ChainPlan>,
    /// Chains that go.
    pub delete_chains: Vec<String>,
    /// Elements that nobody of ours has made.
    pub strange: Vec<(SetName, Element)>,
    /// Elements.
    pub change: Change,
}

impl Transaction {
    /// Whether there is nothing to do but make what is there already.
    fn is_empty(&self) -> bool {
        !self.replaces_table
            && self.chains.is_empty()
            && self.delete_chains.is_empty()
            && self.strange.is_empty()
            && self.change.is_empty()
    }
}

/// Where the table is: the kernel, or a fake.
pub trait Tables {
    /// What is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn observe(&mut self, family: Family) -> linux::Result<Observed>;

    /// What elements lead to there, none of them a range. `None`: to something that is not ours.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn look_up(&mut self, family: Family, keys: &BTreeSet<Key>) -> linux::Result<Option<LookedUp>>;

    /// Chains with the comments of their rules.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn chains(&mut self, family: Family) -> linux::Result<Chains>;

    /// Writes all or nothing.
    ///
    /// # Errors
    /// The kernel's refusal, with the operation and its object.
    fn commit(&mut self, transaction: &Transaction, desired: &Desired) -> linux::Result<()>;

    /// Takes the table away.
    ///
    /// # Errors
    /// The kernel's refusal.
    fn remove(&mut self, family: Family) -> linux::Result<()>;

    /// By this the kernel names us as the maker of a change.
    fn port(&self) -> Option<u32>;
}

impl Tables for Nftables {
    fn observe(&mut self, family: Family) -> linux::Result<Observed> {
        observe::observe(self, family)
    }

    fn look_up(&mut self, family: Family, keys: &BTreeSet<Key>) -> linux::Result<Option<LookedUp>> {
        observe::look_up(self, family, keys)
    }

    fn chains(&mut self, family: Family) -> linux::Result<Chains> {
        observe::chains(self, &table(family))
    }

    fn commit(&mut self, transaction: &Transaction, desired: &Desired) -> linux::Result<()> {
        let settings = desired.settings();
        let table = table(settings.family);
        Self::commit(self, &render(&table, transaction, desired, settings))
    }

    fn remove(&mut self, family: Family) -> linux::Result<()> {
        self.ensure_no_table(&table(family)).map(drop)
    }

    fn port(&self) -> Option<u32> {
        Some(Self::port(self))
    }
}

/// Writes a transaction as the kernel reads it.
pub fn render(
    table: &TableRef,
    transaction: &Transaction,
    names: &impl Named,
    settings: &Settings,
) -> Batch {
    let family = settings.family;
    let mut batch = Batch::new();
    if transaction.replaces_table {
        batch.delete_table(table);
    }
    if transaction.makes_table {
        batch.add_table(table, Some("rules for services; do not change"));
        for name in SetName::ALL {
            batch.add_set(table, &name.set(family));
        }
    }
    for plan in &transaction.chains {
        batch.add_chain(table, &plan.chain);
        batch.flush_chain(table, &plan.chain.name);
    }
    for (set, element) in &transaction.strange {
        batch.delete_elements(table, &set.set(family), [element]);
    }
    for (set, elements) in elements(&transaction.change.delete, names, family) {
        batch.delete_elements(table, &set.set(family), &elements);
    }
    for (_, value) in &transaction.change.delete {
        if let Value::Pick(pick) = value {
            batch.flush_chain(table, &pick.chain());
            batch.delete_chain(table, &pick.chain());
        }
    }
    for chain in &transaction.delete_chains {
        batch.flush_chain(table, chain);
    }
    for chain in &transaction.delete_chains {
        batch.delete_chain(table, chain);
    }
    let mut picks: Vec<ChainPlan> = Vec::new();
    for (_, value) in &transaction.change.add {
        if let Value::Pick(pick) = value {
            picks.push(fixed::pick(settings, *pick));
        }
    }
    for plan in &picks {
        batch.add_chain(table, &plan.chain);
        batch.flush_chain(table, &plan.chain.name);
    }
    for plan in picks.iter().chain(&transaction.chains) {
        for rule in &plan.rules {
            batch.add_rule(table, &plan.chain.name, rule);
        }
    }
    for (set, elements) in elements(&transaction.change.add, names, family) {
        batch.add_elements(table, &set.set(family), &elements);
    }
    batch
}

/// Whether the kernel takes all that the table needs: a transaction that makes one of every kind,
/// and deletes it again, so that nobody ever sees it.
///
/// # Errors
/// What the kernel does not take.
pub fn probe(nft: &mut Nftables, family: Family) -> linux::Result<()> {
    let settings = Settings {
        family,
        mark: 1 << 14,
        detect_local: None,
        node_ports: NodePortScope::All,
        localhost_node_ports: false,
        random_fully: true,
        drop_invalid: true,
        dns_ips: Vec::new(),
        service_cidrs: Vec::new(),
    };
    let mut change = Change::default();
    for (number, affinity_seconds) in [(1, 0), (2, 60)] {
        let pick = Pick {
            count: 2,
            affinity_seconds,
        };
        change.push(Key::Pick(number), None, Some(Value::Pick(pick)));
    }
    let desired = Desired::new(settings);
    let transaction = Transaction {
        makes_table: true,
        chains: desired.chains(),
        change,
        ..Transaction::default()
    };
    let name = format!("{}-probe-{}", super::TABLE, std::process::id());
    let table = TableRef::new(kernel_family(family), name);
    let mut batch = render(&table, &transaction, &desired, desired.settings());
    batch.delete_table(&table);
    nft.commit(&batch)
}

/// Elements by set, in order.
fn elements(
    items: &[(Key, Value)],
    names: &impl Named,
    family: Family,
) -> Vec<(SetName, Vec<Element>)> {
    let groups = items.chunk_by(|(a, _), (b, _)| a.set() == b.set());
    groups
        .filter_map(|group| {
            let (first, _) = group.first()?;
            let elements = group.iter().map(|(key, value)| {
                let element = key.element(family, value);
                let Value::Service(service) = value else {
                    return element;
                };
                match names.name(service.port) {
                    Some(name) => element.comment(name),
                    None => element,
                }
            });
            Some((first.set(), elements.collect()))
        })
        .collect()
}

/// One family's table.
pub struct Plane<T> {
    tables: T,
    desired: Desired,
    /// The kernel has what `desired` had when it was last asked for its change.
    trusted: bool,
    /// Numbers and slots of an earlier process have been taken over.
    adopted: bool,
    /// What somebody else may have changed.
    suspects: Suspects,
    /// Since when that is to be looked at.
    doubted: Option<Instant>,
    /// Elements of one transaction, about.
    part: usize,
}

impl<T: Tables> Plane<T> {
    /// Without any service yet; the first [`Plane::sync`] takes over what is in the kernel.
    pub fn new(tables: T, settings: Settings) -> Self {
        Self {
            tables,
            desired: Desired::new(settings),
            trusted: false,
            adopted: false,
            suspects: Suspects::default(),
            doubted: None,
            part: PART_ELEMENTS,
        }
    }

    /// With other sizes of transactions.
    #[must_use]
    pub fn with_parts(mut self, elements: usize) -> Self {
        self.part = elements;
        self
    }

    /// What is wanted.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// What is wanted, to change.
    pub fn desired_mut(&mut self) -> &mut Desired {
        &mut self.desired
    }

    /// The next sync looks at the kernel and compares everything.
    pub fn distrust_all(&mut self) {
        self.trusted = false;
    }

    /// The next sync looks at what somebody else may have changed.
    #[cfg(test)]
    pub(super) fn suspect(&mut self, suspects: Suspects) {
        self.suspects = suspects;
    }

    /// Where the table is.
    pub fn tables(&mut self) -> &mut T {
        &mut self.tables
    }

    /// Makes the kernel's table what is wanted.
    ///
    /// # Errors
    /// The kernel's refusal; the next call compares everything.
    pub fn sync(&mut self) -> linux::Result<Report> {
        let suspects = std::mem::take(&mut self.suspects);
        self.doubted = None;
        if !self.trusted || suspects.everything {
            return self.full_sync();
        }
        self.trusted = false;
        let family = self.desired.settings().family;
        let Some(seen) = self.tables.look_up(family, &suspects.keys)? else {
            return self.full_sync();
        };
        for (key, value) in seen {
            self.desired.correct(key, value);
        }
        let change = self.desired.take_change();
        let mut first = Transaction::default();
        if suspects.chains {
            let observed = self.tables.chains(family)?;
            (first.chains, first.delete_chains) = self.differing_chains(&observed, &change);
        }
        let mut report = report(&change, false);
        report.objects += first.chains.len();
        report.rules = first.chains.iter().map(|plan| plan.rules.len()).sum();
        report.deleted += first.delete_chains.len();
        self.write(first, change, self.part)?;
        self.trusted = true;
        Ok(report)
    }

    /// Chains to write and chains to delete, where elements are as they were written but for
    /// `change`, which brings chains of its own.
    fn differing_chains(
        &self,
        observed: &Chains,
        change: &Change,
    ) -> (Vec<ChainPlan>, Vec<String>) {
        let made = |pick: &Pick| {
            let is_it = |(_, value): &(Key, Value)| *value == Value::Pick(*pick);
            change.add.iter().any(is_it)
        };
        let led_to: Vec<Pick> = self.desired.picks().filter(|pick| !made(pick)).collect();
        let (wanted, mut unwanted) = chains(&self.desired, observed, &led_to);
        let new: Vec<String> = self.desired.picks().map(Pick::chain).collect();
        unwanted.retain(|chain| !new.contains(chain));
        (wanted, unwanted)
    }

    /// Writes a change in parts, and `first` with the first of them.
    fn write(&mut self, mut first: Transaction, change: Change, size: usize) -> linux::Result<()> {
        let mut parts = change.split(size).peekable();
        if parts.peek().is_none() && !first.is_empty() {
            return self.tables.commit(&first, &self.desired);
        }
        for change in parts {
            let transaction = Transaction {
                change,
                ..std::mem::take(&mut first)
            };
            self.tables.commit(&transaction, &self.desired)?;
        }
        Ok(())
    }

    fn full_sync(&mut self) -> linux::Result<Report> {
        let mut observed = self.tables.observe(self.desired.settings().family)?;
        if !self.adopted && observed.exists {
            self.desired.adopt(&observed.numbers, &observed.items);
        }
        self.adopted = true;
        self.desired.start_over();
        let replaces_table = observed.exists && !observed.usable;
        if replaces_table {
            tracing::warn!("the table was made by another version; it is replaced at once");
            observed = Observed::default();
        }
        let change = diff::full(&self.desired, &observed.items);
        let led_to: Vec<Pick> = observed
            .items
            .iter()
            .filter_map(|(_, value)| match value {
                Value::Pick(pick) => Some(*pick),
                _ => None,
            })
            .collect();
        let (chains, delete_chains) = chains(&self.desired, &observed.chains, &led_to);
        let mut report = report(&change, true);
        report.objects += chains.len();
        report.rules = chains.iter().map(|plan| plan.rules.len()).sum();
        report.deleted += delete_chains.len() + observed.strange.len();
        let first = Transaction {
            replaces_table,
            makes_table: true,
            chains,
            delete_chains,
            strange: observed.strange,
            change: Change::default(),
        };
        drop(observed.items);
        // One that replaces a table must leave no moment without services.
        let size = if replaces_table {
            usize::MAX
        } else {
            self.part
        };
        if !first.is_empty() || !change.is_empty() {
            self.write(first, change, size)?;
        }
        self.trusted = true;
        Ok(report)
    }
}

/// Chains to write, and chains to delete. Elements that are there lead to the chains `led_to`.
fn chains(desired: &Desired, observed: &Chains, led_to: &[Pick]) -> (Vec<ChainPlan>, Vec<String>) {
    let led_to: Vec<String> = led_to.iter().map(|pick| pick.chain()).collect();
    let mut wanted = desired.chains();
    // One that is not there is made with its element, and goes with it.
    let picks = desired
        .picks()
        .filter(|pick| led_to.contains(&pick.chain()));
    wanted.extend(picks.map(|pick| fixed::pick(desired.settings(), pick)));
    let unwanted = observed.keys().filter(|name| {
        !wanted.iter().any(|plan| plan.chain.name == **name) && !led_to.contains(name)
    });
    let unwanted = unwanted.cloned().collect();
    wanted.retain(|plan| {
        let found = observed.get(&plan.chain.name);
        found.is_none_or(|found| !plan.comments().eq(found.iter().map(String::as_str)))
    });
    (wanted, unwanted)
}

fn report(change: &Change, full: bool) -> Report {
    Report {
        objects: change.add.len(),
        rules: 0,
        deleted: change.delete.len(),
        full,
    }
}

impl<T: Tables + Send> Backend for Plane<T> {
    fn settings(&self) -> &Settings {
        self.desired.settings()
    }

    fn reconfigure(&mut self, settings: Settings, decisions: &Decisions) {
        self.desired.reconfigure(settings, decisions);
        self.trusted = false;
    }

    fn set(&mut self, changes: &[PortChange]) {
        for change in changes {
            self.desired.set(&change.name, change.new.as_deref());
            if !self.trusted {
                self.desired.forget_changes();
            }
        }
    }

    fn sync(&mut self) -> linux::Result<Report> {
        Self::sync(self)
    }

    fn distrust(&mut self) {
        self.trusted = false;
    }

    fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// What others do to the table is told to [`Backend::see`]; nothing is listed to find out.
    fn is_intact(&mut self) -> linux::Result<bool> {
        Ok(self.suspects.is_empty())
    }

    /// Only what others changed is looked at.
    fn doubt(&mut self) {
        self.trusted &= !self.suspects.everything;
        self.doubted = Some(Instant::now());
    }

    fn due(&self) -> Option<Instant> {
        self.doubted
    }

    fn cleanup(&mut self) -> linux::Result<()> {
        self.trusted = false;
        self.tables.remove(self.desired.settings().family)
    }

    fn frontends(&mut self) -> linux::Result<Frontends> {
        let observed = self.tables.observe(self.desired.settings().family)?;
        let mut found = Frontends::default();
        for (key, _) in observed.items {
            match key {
                Key::Front(front) if front.protocol != Protocol::Udp => {}
                Key::Front(Front {
                    ip: Some(ip), port, ..
                }) => {
                    found.addresses.insert(SocketAddr::new(ip, port));
                }
                Key::Front(front) => {
                    found.node_ports.insert(front.port);
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn see(&mut self, seen: &Notice<'_>) -> bool {
        let family = kernel_family(self.desired.settings().family);
        let ours = self.tables.port();
        match seen {
            Notice::Edit(edit) => {
                let is_ours = edit.family == family && edit.table == super::TABLE;
                if !is_ours || Some(edit.port) == ours {
                    return false;
                }
                self.suspects.add(self.desired.settings().family, edit);
            }
            Notice::Lost => self.suspects = Suspects::everything(),
            Notice::Done(_) => return false,
        }
        !self.suspects.is_empty()
    }

    fn own_port(&self) -> Option<u32> {
        self.tables.port()
    }
}
