//! Everything that should be in the kernel for one family, kept up to date port by port.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::dispatch::{Dispatch, Node, Shape};
use super::plan::{PortPlan, Tree, own_chain, plan_port};
use super::render::listing;
use super::rule::{ChainName, ChainRef, Hook, Rule, Table};
use super::{fixed, names};
use crate::backend::Settings;
use crate::model::{Decision, Decisions, PortName};

/// The wanted rules of one family.
#[derive(Debug, Clone)]
pub struct Desired {
    settings: Settings,
    hooks: Vec<Hook>,
    fixed: BTreeMap<ChainRef, Vec<Rule>>,
    /// Shared with the store: a port's rules are many times as large, and quickly planned again.
    ports: BTreeMap<PortName, Arc<Decision>>,
    trees: BTreeMap<Tree, Dispatch>,
    /// Chains that may differ from when [`Desired::take_touched`] was last called.
    touched: BTreeMap<ChainRef, Option<Vec<Rule>>>,
    touched_nodes: BTreeSet<(Tree, Node)>,
}

impl Desired {
    /// Without any service.
    pub fn new(settings: Settings) -> Self {
        let trees = Tree::ALL.map(|tree| (tree, new_tree(tree, &settings)));
        Self {
            hooks: fixed::hooks(&settings),
            fixed: fixed::chains(&settings, false),
            ports: BTreeMap::new(),
            trees: trees.into(),
            settings,
            touched: BTreeMap::new(),
            touched_nodes: BTreeSet::new(),
        }
    }

    /// With all of `decisions`.
    pub fn with(settings: Settings, decisions: &Decisions) -> Self {
        let mut desired = Self::new(settings);
        for decision in decisions.values() {
            desired.set(&decision.name, Some(decision));
            desired.forget_touched();
        }
        desired
    }

    /// Settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether rules count into the kernel's counters. To be said before everything is compared.
    pub fn set_counted(&mut self, counted: bool) {
        self.fixed = fixed::chains(&self.settings, counted);
    }

    /// Rules in built-in chains.
    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    /// Puts one service port in the place of what is there, or takes it away.
    pub fn set(&mut self, name: &PortName, decision: Option<&Arc<Decision>>) {
        let old = match decision {
            Some(new) => self.ports.insert(name.clone(), new.clone()),
            None => self.ports.remove(name),
        };
        let plan = |decision: Option<&Arc<Decision>>| {
            decision.map_or_else(PortPlan::default, |d| plan_port(d, &self.settings))
        };
        let (new, old) = (plan(decision), plan(old.as_ref()));
        for (key, rule) in &old.entries {
            if !new.entries.contains_key(key) {
                self.change_entry(*key, name, None);
            } else if new.entries.get(key) != Some(rule) {
                self.change_entry(*key, name, new.entries.get(key).cloned());
            }
        }
        for (key, rule) in &new.entries {
            if !old.entries.contains_key(key) {
                self.change_entry(*key, name, Some(rule.clone()));
            }
        }
        for chain in old.chains.keys() {
            if !new.chains.contains_key(chain) {
                self.touched.insert(own_chain(chain), None);
            }
        }
        for (chain, rules) in new.chains {
            if old.chains.get(&chain) != Some(&rules) {
                self.touched.insert(own_chain(&chain), Some(rules));
            }
        }
    }

    fn change_entry(
        &mut self,
        (tree, key): (Tree, super::dispatch::Key),
        port: &PortName,
        rule: Option<Rule>,
    ) {
        let Some(dispatch) = self.trees.get_mut(&tree) else {
            return;
        };
        let mut nodes = dispatch.affected(key);
        match rule {
            Some(rule) => dispatch.insert(key, port.clone(), rule),
            None => dispatch.remove(key, port),
        }
        nodes.append(&mut dispatch.affected(key));
        self.touched_nodes
            .extend(nodes.into_iter().map(|node| (tree, node)));
    }

    /// Forgets what changed. Where all of it is going to be compared, it is called for each port: the
    /// rules of all chains take more memory than anything else.
    pub fn forget_touched(&mut self) {
        self.touched.clear();
        self.touched_nodes.clear();
    }

    /// The chains that may have changed since the last call, with what they hold; `None` for those
    /// that are no longer wanted.
    pub fn take_touched(&mut self) -> BTreeMap<ChainRef, Option<Vec<Rule>>> {
        let mut touched = std::mem::take(&mut self.touched);
        for (tree, node) in std::mem::take(&mut self.touched_nodes) {
            if let Some(dispatch) = self.trees.get(&tree) {
                touched.insert(
                    chain_of(tree, dispatch.chain(node)),
                    self.node_rules(tree, dispatch, node),
                );
            }
        }
        touched
    }

    fn node_rules(&self, tree: Tree, dispatch: &Dispatch, node: Node) -> Option<Vec<Rule>> {
        let mut rules = dispatch.rules(node)?;
        if dispatch.is_root(node) {
            match tree {
                Tree::Services => rules.extend(fixed::services_tail(&self.settings)),
                Tree::NoExternal => rules.extend(fixed::external_tail()),
                Tree::NodePorts
                | Tree::NoCluster
                | Tree::NoNodePort
                | Tree::Firewall
                | Tree::Health => {}
            }
        }
        Some(rules)
    }

    /// All chains.
    pub fn chains(&self) -> BTreeMap<ChainRef, Vec<Rule>> {
        let mut chains = self.fixed.clone();
        for decision in self.ports.values() {
            let own = plan_port(decision, &self.settings).chains.into_iter();
            chains.extend(own.map(|(name, rules)| (own_chain(&name), rules)));
        }
        for (tree, dispatch) in &self.trees {
            for node in dispatch.nodes() {
                if let Some(rules) = self.node_rules(*tree, dispatch, node) {
                    chains.insert(chain_of(*tree, dispatch.chain(node)), rules);
                }
            }
        }
        chains
    }
}

impl fmt::Display for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chains = self.chains();
        let chains = chains
            .iter()
            .map(|(chain, rules)| (chain, rules.as_slice()));
        f.write_str(&listing(chains, &self.hooks))
    }
}

fn new_tree(tree: Tree, settings: &Settings) -> Dispatch {
    let addresses = Shape::Addresses(settings.family);
    match tree {
        Tree::Services | Tree::NoCluster => Dispatch::new(addresses, names::SERVICES, "KUBE-SVCS-"),
        Tree::NoExternal => Dispatch::new(addresses, names::EXTERNAL_SERVICES, "KUBE-EXTS-"),
        Tree::Firewall => Dispatch::new(addresses, names::PROXY_FIREWALL, "KUBE-FWS-"),
        Tree::NodePorts | Tree::Health => {
            Dispatch::new(Shape::Ports, names::NODEPORTS, "KUBE-NPS-")
        }
        Tree::NoNodePort => Dispatch::new(Shape::Ports, names::EXTERNAL_NODEPORTS, "KUBE-NPS-X-"),
    }
}

fn chain_of(tree: Tree, name: ChainName) -> ChainRef {
    let table = match tree {
        Tree::Services | Tree::NodePorts => Table::Nat,
        Tree::NoCluster | Tree::NoExternal | Tree::NoNodePort | Tree::Firewall | Tree::Health => {
            Table::Filter
        }
    };
    ChainRef { table, name }
}
