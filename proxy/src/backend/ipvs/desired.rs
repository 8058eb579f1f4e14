//! Everything that should be in the kernel for one family, kept up to date port by port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use linux::ipvs::ServerId;
use sha2::{Digest, Sha256};

use super::plan::{Context, Frontend, PortPlan, Virtual, needs_mark, plan_port};
use super::rules;
use super::sets::Entry;
use crate::model::{Decision, Decisions, PortName};

/// What may differ from the kernel since it was last asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Virtual servers.
    pub servers: BTreeSet<ServerId>,
    /// Entries of sets.
    pub entries: BTreeSet<Entry>,
    /// Addresses of the dummy device.
    pub binds: BTreeSet<IpAddr>,
}

/// The wanted objects of one family.
#[derive(Debug, Clone)]
pub struct Desired {
    context: Context,
    decisions: BTreeMap<PortName, Arc<Decision>>,
    ports: BTreeMap<PortName, PortPlan>,
    /// Who wants a virtual server. Where several do, the first by name has it.
    claims: BTreeMap<ServerId, Vec<PortName>>,
    marks: BTreeMap<u32, PortName>,
    /// How many want an entry or an address.
    entries: BTreeMap<Entry, u32>,
    binds: BTreeMap<IpAddr, u32>,
    touched: Touched,
}

impl Desired {
    /// Without any service.
    pub fn new(context: Context) -> Self {
        Self {
            context,
            decisions: BTreeMap::new(),
            ports: BTreeMap::new(),
            claims: BTreeMap::new(),
            marks: BTreeMap::new(),
            entries: BTreeMap::new(),
            binds: BTreeMap::new(),
            touched: Touched::default(),
        }
    }

    /// With all of `decisions`.
    pub fn with(context: Context, decisions: &Decisions) -> Self {
        let mut desired = Self::new(context);
        for decision in decisions.values() {
            desired.set(&decision.name, Some(decision));
        }
        desired
    }

    /// Takes other addresses of the node: node ports and what must not be bound follow.
    pub fn set_node_ips(&mut self, node_ips: BTreeSet<IpAddr>) {
        self.context.node_ips = node_ips;
        let decisions: Vec<Arc<Decision>> = self.decisions.values().cloned().collect();
        for decision in decisions {
            self.plan(&decision.name, Some(&decision));
        }
    }

    /// What it was made with.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Puts one service port in the place of what is there, or takes it away.
    pub fn set(&mut self, name: &PortName, decision: Option<&Arc<Decision>>) {
        match decision {
            Some(decision) => self.decisions.insert(name.clone(), decision.clone()),
            None => self.decisions.remove(name),
        };
        self.plan(name, decision.map(AsRef::as_ref));
    }

    fn plan(&mut self, name: &PortName, decision: Option<&Decision>) {
        let new = match decision {
            Some(decision) => {
                let mark = needs_mark(decision).then(|| self.mark_of(name));
                plan_port(decision, &self.context, mark)
            }
            None => PortPlan::default(),
        };
        let old = self.ports.remove(name).unwrap_or_default();
        let differing = |id: &ServerId| old.frontends.get(id) != new.frontends.get(id);
        let all: BTreeSet<ServerId> = old
            .frontends
            .keys()
            .chain(new.frontends.keys())
            .copied()
            .collect();
        let changed: Vec<ServerId> = all.into_iter().filter(differing).collect();
        let before: Vec<Option<Arc<Frontend>>> = changed
            .iter()
            .map(|id| self.winner_with(*id, name, &old).cloned())
            .collect();
        for entry in old.entries.difference(&new.entries) {
            self.count_entry(*entry, false);
        }
        for entry in new.entries.difference(&old.entries) {
            self.count_entry(*entry, true);
        }
        for id in &changed {
            let claims = self.claims.entry(*id).or_default();
            if new.frontends.contains_key(id) {
                if let Err(at) = claims.binary_search(name) {
                    claims.reserve_exact(1);
                    claims.insert(at, name.clone());
                }
            } else {
                claims.retain(|claim| claim != name);
            }
            if claims.is_empty() {
                self.claims.remove(id);
            }
        }
        for (id, before) in changed.into_iter().zip(before) {
            let after = self.winner_with(id, name, &new).cloned();
            if before == after {
                continue;
            }
            // First what comes, so that nothing that stays is ever counted out.
            if let Some(after) = &after {
                self.count(after, true);
            }
            if let Some(before) = &before {
                self.count(before, false);
            }
            self.touched.servers.insert(id);
        }
        if let Some(mark) = mark_in(&old).filter(|mark| mark_in(&new) != Some(*mark)) {
            self.marks.remove(&mark);
        }
        if !new.frontends.is_empty() {
            self.ports.insert(name.clone(), new);
        }
    }

    /// Whose virtual server this is, when `name` has `plan`.
    fn winner_with<'a>(
        &'a self,
        id: ServerId,
        name: &PortName,
        plan: &'a PortPlan,
    ) -> Option<&'a Arc<Frontend>> {
        let first = self.claims.get(&id)?.first()?;
        if first == name {
            plan.frontends.get(&id)
        } else {
            self.ports.get(first)?.frontends.get(&id)
        }
    }

    /// The virtual server wanted under this identity.
    pub fn server(&self, id: ServerId) -> Option<&Virtual> {
        let first = self.claims.get(&id)?.first()?;
        self.ports.get(first)?.frontends.get(&id)?.of.as_ref()
    }

    /// All virtual servers.
    pub fn servers(&self) -> impl Iterator<Item = (ServerId, &Virtual)> {
        let ids = self.claims.keys();
        ids.filter_map(|id| Some((*id, self.server(*id)?)))
    }

    /// All entries of sets.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.keys()
    }

    /// Whether an entry is wanted.
    pub fn has_entry(&self, entry: &Entry) -> bool {
        self.entries.contains_key(entry)
    }

    /// All addresses of the dummy device.
    pub fn binds(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.binds.keys().copied()
    }

    /// Whether an address is wanted on the dummy device.
    pub fn has_bind(&self, ip: IpAddr) -> bool {
        self.binds.contains_key(&ip)
    }

    /// What may have changed since the last call.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// The mark of a port: the same after each start, unless two names meet.
    fn mark_of(&mut self, name: &PortName) -> u32 {
        let bit = self.context.settings.mark;
        let text = format!("{name} {}", name.protocol);
        let digest = Sha256::digest(text.as_bytes());
        let start = digest
            .iter()
            .take(4)
            .fold(0_u32, |n, byte| n << 8 | u32::from(*byte));
        let mut n = start;
        loop {
            let mark = rules::mark(n, bit);
            match self.marks.get(&mark) {
                Some(owner) if owner != name => n = n.wrapping_add(1),
                _ => {
                    self.marks.insert(mark, name.clone());
                    return mark;
                }
            }
        }
    }

    fn count(&mut self, frontend: &Frontend, more: bool) {
        for entry in &frontend.entries {
            self.count_entry(*entry, more);
        }
        if let Some(ip) = frontend.bind
            && count(&mut self.binds, ip, more)
        {
            self.touched.binds.insert(ip);
        }
    }

    fn count_entry(&mut self, entry: Entry, more: bool) {
        if count(&mut self.entries, entry, more) {
            self.touched.entries.insert(entry);
        }
    }
}

/// The mark in a plan: marks are sorted behind addresses.
fn mark_in(plan: &PortPlan) -> Option<u32> {
    match plan.frontends.keys().next_back()? {
        ServerId::Mark { mark, .. } => Some(*mark),
        ServerId::Address { .. } => None,
    }
}

/// Counts one more or less; true when it came or went.
fn count<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K, more: bool) -> bool {
    if more {
        let n = counts.entry(key).or_insert(0);
        *n += 1;
        return *n == 1;
    }
    match counts.get_mut(&key) {
        Some(n) if *n > 1 => {
            *n -= 1;
            false
        }
        Some(_) => counts.remove(&key).is_some(),
        None => false,
    }
}
