//! One node's policies, kept in the kernel. Synchronous; of the network namespace of the thread
//! that made it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::cidr::parse_cidr;
use api::core::Node;
use api::networking::NetworkPolicy;
use api::pod::{Namespace, Pod};
use api::watch::Event;
use linux::conntrack::Conntrack;
use linux::nftables::Nftables;
use linux::{Kernel, Result};

use crate::bridge::{self, Bridge, Bridged};
use crate::cut::{self, Suspects};
use crate::model::Model;
use crate::objects::{Changes, Desired, Elements, Seen};
use crate::plan::Asked;
use crate::store::{Change, Listed};
use crate::{apply, diff, observe, parse, plan};

/// What an operator chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// How packets between pods of one node come before the rules.
    pub bridged: Bridged,
    /// Addresses of this node's networks are closed until their pods are known, also while no daemon
    /// runs.
    pub deny_unknown: bool,
}

/// An event of one of the kinds we watch.
#[derive(Debug, Clone)]
pub enum Input {
    /// Of network policies.
    Policy(Event<NetworkPolicy>),
    /// Of namespaces.
    Namespace(Event<Namespace>),
    /// Of pods.
    Pod(Event<Pod>),
    /// Of this node.
    Node(Event<Node>),
}

/// What a sync did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Objects of the table that were made, changed or deleted.
    pub objects: usize,
    /// In words.
    pub summary: String,
    /// Nothing but elements changed.
    pub elements_only: bool,
    /// Connections that were cut.
    pub cut: usize,
}

/// Keeps the table.
pub struct Enforcer {
    node: String,
    model: Model,
    policies: Listed,
    namespaces: Listed,
    pods: Listed,
    nodes: Listed,
    nft: Nftables,
    conntrack: Conntrack,
    kernel: Kernel,
    /// What is in the kernel; `None`: it has to be looked at.
    there: Option<Desired>,
    asked: Asked,
    /// Rules may have been changed by others: all are written anew.
    distrust: bool,
    /// Whose connections are still to be judged.
    suspects: Suspects,
    bridge: Bridge,
    /// Policies that select a pod of this node.
    at_work: usize,
}

impl Enforcer {
    /// For the node of this name. Touches nothing.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or refuses a socket.
    pub fn open(node: &str, options: Options) -> Result<Self> {
        let mut model = Model::new(node);
        model.close_unknown(options.deny_unknown);
        Ok(Self {
            node: node.to_owned(),
            model,
            policies: Listed::default(),
            namespaces: Listed::default(),
            pods: Listed::default(),
            nodes: Listed::default(),
            nft: Nftables::open()?,
            conntrack: Conntrack::open()?,
            kernel: Kernel::open()?,
            there: None,
            asked: Asked::default(),
            distrust: false,
            suspects: Suspects::Of(BTreeSet::new()),
            bridge: Bridge::new(options.bridged),
            at_work: 0,
        })
    }

    /// By this the kernel's notifications name our own changes.
    pub fn port(&self) -> u32 {
        self.nft.port()
    }

    /// Takes an event; tells what of it cannot be honoured.
    pub fn take(&mut self, input: Input) -> Vec<String> {
        let mut problems = Vec::new();
        match input {
            Input::Policy(event) => {
                for change in self.policies.take(event) {
                    match change {
                        Change::Set(key, object) => {
                            let (policy, found) = parse::policy(&object);
                            let told = found.iter().map(|p| format!("NetworkPolicy {key}: {p}"));
                            problems.extend(told);
                            self.model.set_policy(&key, Some(policy));
                        }
                        Change::Gone(key) => self.model.set_policy(&key, None),
                    }
                }
            }
            Input::Namespace(event) => {
                for change in self.namespaces.take(event) {
                    match change {
                        Change::Set(key, object) => {
                            self.model
                                .set_namespace(&key.name, Some(object.metadata.labels));
                        }
                        Change::Gone(key) => self.model.set_namespace(&key.name, None),
                    }
                }
            }
            Input::Pod(event) => {
                for change in self.pods.take(event) {
                    match change {
                        Change::Set(key, object) => self.model.set_pod(&key, parse::pod(object)),
                        Change::Gone(key) => self.model.set_pod(&key, None),
                    }
                }
            }
            Input::Node(event) => {
                for change in self.nodes.take(event) {
                    let Change::Set(key, object) = change else {
                        continue;
                    };
                    if key.name == self.node {
                        let nets = object.spec.pod_networks();
                        let nets = nets.into_iter().filter_map(|net| parse_cidr(net).ok());
                        self.model.set_nets(nets.collect());
                    }
                }
            }
        }
        problems
    }

    /// Whether everything was listed once. Before that nothing is written: what a daemon before us
    /// left goes on.
    pub fn is_complete(&self) -> bool {
        self.policies.is_complete()
            && self.namespaces.is_complete()
            && self.pods.is_complete()
            && self.nodes.is_complete()
    }

    /// Whether [`Enforcer::sync`] has something to do.
    pub fn is_due(&self) -> bool {
        let suspects = self.suspects != Suspects::Of(BTreeSet::new());
        let due = self.there.is_none() || self.model.is_dirty() || suspects;
        let due = due || self.bridge.is_due();
        self.is_complete() && due
    }

    /// The table may not be what we wrote: the next sync looks at it. `rules`: someone changed more
    /// than elements, and rules tell only by whom they were meant to be.
    pub fn doubt(&mut self, rules: bool) {
        self.there = None;
        self.distrust |= rules;
        self.bridge.doubt(true);
    }

    /// The bridge of this node's pods may have come or changed.
    pub fn doubt_bridge(&mut self) {
        self.bridge.doubt(false);
    }

    /// How packets between pods of this node come before the rules.
    pub fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    /// Policies that select a pod of this node, as of the last sync.
    pub fn at_work(&self) -> usize {
        self.at_work
    }

    /// Brings the kernel up to date: what changed, or all of it if that is not known.
    ///
    /// # Errors
    /// The kernel's refusal; the next sync looks at everything.
    pub fn sync(&mut self) -> Result<Report> {
        if !self.is_complete() {
            return Ok(Report::default());
        }
        let dirty = self.model.take_dirty();
        if self.there.is_none() {
            self.bridge.look();
        } else if dirty.whole {
            self.bridge.doubt(false);
        }
        let result = match self.there.take() {
            Some(there) if dirty.whole => self.replan(there),
            Some(there) => self.touch(there, &dirty.ips),
            None => self.look(),
        };
        let mut report = result?;
        let nets = self.model.nets();
        report.objects += self.bridge.sync(&mut self.nft, &mut self.kernel, nets);
        let node: BTreeSet<IpAddr> = match self.suspects {
            Suspects::Of(ref ips) if ips.is_empty() => return Ok(report),
            _ => self
                .kernel
                .all_addrs()?
                .into_iter()
                .map(|(_, a)| a.net.ip())
                .collect(),
        };
        report.cut = cut::cut(&mut self.conntrack, &self.model, &self.suspects, &node)?;
        self.suspects = Suspects::Of(BTreeSet::new());
        Ok(report)
    }

    /// Compares all with what the kernel has.
    fn look(&mut self) -> Result<Report> {
        let want = self.plan();
        let mut seen = observe::observe(&mut self.nft, &want)?;
        if self.distrust {
            seen.chains
                .values_mut()
                .for_each(|rules| rules.push("not to be trusted".to_owned()));
        }
        let changes = diff::diff(&seen, &want);
        self.suspects = Suspects::All;
        let written = apply::apply(&mut self.nft, &changes, &want.sets);
        if let Err(error) = written {
            // Something of ours is there in a way that cannot be mended piece by piece.
            let all = Changes {
                rebuild: true,
                ..diff::diff(&Seen::default(), &want)
            };
            apply::apply(&mut self.nft, &all, &want.sets)?;
            tracing::warn!("{error}; the table was made anew");
        }
        self.distrust = false;
        self.there = Some(want);
        Ok(report(&changes))
    }

    /// Plans all.
    fn plan(&mut self) -> Desired {
        self.asked = plan::asked(&self.model);
        let keys: BTreeSet<_> = self.asked.policies.iter().map(|(_, key)| key).collect();
        self.at_work = keys.len();
        plan::plan(&self.model)
    }

    /// Plans all, and writes the difference to what was planned before.
    fn replan(&mut self, there: Desired) -> Result<Report> {
        let want = self.plan();
        let changes = diff::between(&there, &want);
        if changes.is_empty() {
            self.there = Some(want);
            return Ok(Report::default());
        }
        self.suspects = Suspects::All;
        apply::apply(&mut self.nft, &changes, &both(&there, &want))?;
        self.there = Some(want);
        Ok(report(&changes))
    }

    /// Plans only what belongs to some addresses.
    fn touch(&mut self, mut there: Desired, ips: &BTreeSet<IpAddr>) -> Result<Report> {
        let mut changes = Changes::default();
        let mut touched = Vec::new();
        for ip in ips {
            let new = plan::address(&self.model, &self.asked, *ip);
            let old = there
                .addresses
                .get(ip)
                .map_or(&[][..], Vec::as_slice)
                .to_vec();
            diff::elements(&old, &new, &mut changes);
            touched.push((*ip, may_lose(&old, &new)));
            if new.is_empty() {
                there.addresses.remove(ip);
            } else {
                there.addresses.insert(*ip, new);
            }
        }
        let closed = plan::closed(&self.model);
        let is_closed = |(set, _): &(std::sync::Arc<str>, _)| set.contains("-closed");
        let (old, mut fixed): (Elements, Elements) = there.fixed.into_iter().partition(is_closed);
        diff::elements(&old, &closed, &mut changes);
        fixed.extend(closed);
        crate::objects::sort(&mut fixed);
        there.fixed = fixed;
        crate::objects::sort(&mut changes.delete_elements);
        crate::objects::sort(&mut changes.add_elements);
        let Suspects::Of(lost) = cut::suspects(&changes, touched) else {
            return Ok(Report::default());
        };
        if let Suspects::Of(ips) = &mut self.suspects {
            ips.extend(lost);
        }
        apply::apply(&mut self.nft, &changes, &there.sets)?;
        self.there = Some(there);
        Ok(report(&changes))
    }

    /// What is known of the cluster.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Whether the kernel has exactly what is planned.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn is_true(&mut self) -> Result<bool> {
        let want = plan::plan(&self.model);
        let seen = observe::observe(&mut self.nft, &want)?;
        let (nft, nets) = (&mut self.nft, self.model.nets());
        let crosses = self.bridge.is_true(nft, &mut self.kernel, nets)?;
        Ok(crosses && diff::diff(&seen, &want).is_empty())
    }

    /// Whether the table is there, from this run or an earlier one since the machine started.
    ///
    /// # Errors
    /// The kernel has no nf_tables.
    pub fn is_there() -> Result<bool> {
        Nftables::open()?.has_table(&observe::table())
    }

    /// Removes the tables: every pod is open.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove() -> Result<bool> {
        let mut nft = Nftables::open()?;
        let bridge = bridge::ensure(&mut nft, &[])?;
        Ok(nft.ensure_no_table(&observe::table())? || bridge)
    }
}

/// Whether connections of an address may be forbidden since: it is in a set no more, or its group
/// is another.
fn may_lose(old: &Elements, new: &Elements) -> bool {
    let is_group = |(set, _): &&(std::sync::Arc<str>, _)| set.contains("gress-pods");
    old.iter().any(|element| !new.contains(element))
        || new
            .iter()
            .filter(is_group)
            .any(|element| !old.contains(element))
}

/// Definitions of the sets of both plans: elements go from one, and come to the other.
fn both(
    there: &Desired,
    want: &Desired,
) -> std::collections::BTreeMap<String, linux::nftables::Set> {
    let mut sets = there.sets.clone();
    sets.extend(want.sets.clone());
    sets
}

fn report(changes: &Changes) -> Report {
    Report {
        objects: changes.count(),
        summary: changes.to_string(),
        elements_only: changes.is_elements_only(),
        cut: 0,
    }
}
