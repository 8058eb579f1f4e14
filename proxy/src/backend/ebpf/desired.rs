//! Everything that should be in the maps for one family, kept up to date port by port. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ebpf_common::abi::FrontendKey;

use super::plan::{PortPlan, plan_port};
use crate::backend::Settings;
use crate::model::{Decision, Decisions, PortName};

/// The wanted entries of one family.
#[derive(Debug, Clone)]
pub struct Desired {
    settings: Settings,
    /// Shared with the store: a port's entries take more memory, and are quickly planned again.
    ports: BTreeMap<PortName, Arc<Decision>>,
    /// Who has an address and with which `KIND_*`, by name: the first serves it.
    owners: BTreeMap<FrontendKey, Vec<(PortName, u8)>>,
    touched: BTreeSet<PortName>,
    touched_frontends: BTreeSet<FrontendKey>,
    left_out: BTreeSet<PortName>,
}

impl Desired {
    /// Without any service.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            ports: BTreeMap::new(),
            owners: BTreeMap::new(),
            touched: BTreeSet::new(),
            touched_frontends: BTreeSet::new(),
            left_out: BTreeSet::new(),
        }
    }

    /// With all of `decisions`.
    pub fn with(settings: Settings, decisions: &Decisions) -> Self {
        let mut desired = Self::new(settings);
        for decision in decisions.values() {
            desired.set(&decision.name, Some(decision));
        }
        desired
    }

    /// Settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Puts one service port in the place of what is there, or takes it away.
    pub fn set(&mut self, name: &PortName, decision: Option<&Arc<Decision>>) {
        let new = decision.and_then(|decision| plan_port(decision));
        if decision.is_some() && new.is_none() {
            self.left_out.insert(name.clone());
        } else {
            self.left_out.remove(name);
        }
        let old = self.port(name);
        match decision.filter(|_| new.is_some()) {
            Some(decision) => self.ports.insert(name.clone(), decision.clone()),
            None => self.ports.remove(name),
        };
        if old == new {
            return;
        }
        let fronts = |plan: Option<PortPlan>| plan.unwrap_or_default().frontends;
        for key in fronts(old).into_keys() {
            self.touched_frontends.insert(key);
            if let Some(owners) = self.owners.get_mut(&key) {
                owners.retain(|(owner, _)| owner != name);
                if owners.is_empty() {
                    self.owners.remove(&key);
                }
            }
        }
        for (key, kind) in fronts(new) {
            self.touched_frontends.insert(key);
            let owners = self.owners.entry(key).or_default();
            if let Err(at) = owners.binary_search_by(|(owner, _)| owner.cmp(name)) {
                owners.reserve_exact(1);
                owners.insert(at, (name.clone(), kind));
            }
        }
        self.touched.insert(name.clone());
    }

    /// A port.
    pub fn port(&self, name: &PortName) -> Option<PortPlan> {
        plan_port(self.ports.get(name)?)
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = (&PortName, PortPlan)> {
        let each = self.ports.iter();
        each.filter_map(|(name, decision)| Some((name, plan_port(decision)?)))
    }

    /// Names of all ports.
    pub fn names(&self) -> impl Iterator<Item = &PortName> {
        self.ports.keys()
    }

    /// Whether there is such a port.
    pub fn has(&self, name: &PortName) -> bool {
        self.ports.contains_key(name)
    }

    /// Who serves an address, and its `KIND_*`.
    pub fn owner(&self, key: &FrontendKey) -> Option<(&PortName, u8)> {
        let (name, kind) = self.owners.get(key)?.first()?;
        Some((name, *kind))
    }

    /// All addresses.
    pub fn frontends(&self) -> impl Iterator<Item = &FrontendKey> {
        self.owners.keys()
    }

    /// Ports and addresses that may have changed since the last call.
    pub fn take_touched(&mut self) -> (BTreeSet<PortName>, BTreeSet<FrontendKey>) {
        (
            std::mem::take(&mut self.touched),
            std::mem::take(&mut self.touched_frontends),
        )
    }

    /// Ports that this mode does not serve (SCTP).
    pub fn left_out(&self) -> &BTreeSet<PortName> {
        &self.left_out
    }
}
