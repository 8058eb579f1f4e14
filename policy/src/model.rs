//! What is known of the cluster, as far as one node's policies need it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::parse::{Direction, Key, Labels, Pod, Policy};

/// The policies that isolate a pod in one direction, in order. Pods with the same ones share a
/// chain.
pub type Group = Vec<Key>;

/// What a change touches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Anything may have changed.
    pub whole: bool,
    /// What belongs to these addresses may have changed.
    pub ips: BTreeSet<IpAddr>,
}

/// Namespaces, pods and policies of the cluster, and which of them matter on this node.
#[derive(Debug, Clone, Default)]
pub struct Model {
    node: String,
    nets: Vec<IpNetwork>,
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<Key, Pod>,
    owners: BTreeMap<IpAddr, BTreeSet<Key>>,
    policies: BTreeMap<Key, Policy>,
    /// Of each pod of this node: the groups it is in.
    selected: BTreeMap<Key, [Group; 2]>,
    /// How many pods of this node are in each group that isolates.
    groups: BTreeMap<(Direction, Group), usize>,
    /// Pods of this node that have no address yet and will be isolated.
    waiting: [BTreeSet<Key>; 2],
    /// Addresses that nobody knows are closed, whether a pod waits or not.
    closed: bool,
    dirty: Dirty,
}

impl Model {
    /// Empty, for the node of this name.
    pub fn new(node: impl Into<String>) -> Self {
        let dirty = Dirty {
            whole: true,
            ..Dirty::default()
        };
        Self {
            node: node.into(),
            dirty,
            ..Self::default()
        }
    }

    /// What changed since this was asked last.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Whether something changed since [`Model::take_dirty`].
    pub fn is_dirty(&self) -> bool {
        self.dirty.whole || !self.dirty.ips.is_empty()
    }

    /// The networks of this node's pods.
    pub fn set_nets(&mut self, nets: Vec<IpNetwork>) {
        self.dirty.whole |= self.nets != nets;
        self.nets = nets;
    }

    /// Whether addresses of this node's networks that belong to no known pod are closed at all times.
    pub fn close_unknown(&mut self, closed: bool) {
        self.dirty.whole |= self.closed != closed;
        self.closed = closed;
    }

    /// A namespace's labels; `None`: it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        self.dirty.whole |= self.namespaces.get(name) != labels.as_ref();
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
    }

    /// A policy; `None`: it is gone.
    pub fn set_policy(&mut self, key: &Key, policy: Option<Policy>) {
        if self.policies.get(key) == policy.as_ref() {
            return;
        }
        let mine = |(pod, _): &(&Key, &[Group; 2])| pod.namespace == key.namespace;
        let pods: Vec<Key> = self
            .selected
            .iter()
            .filter(mine)
            .map(|(pod, _)| pod.clone())
            .collect();
        let was_used = self.is_used(key);
        match policy {
            Some(policy) => drop(self.policies.insert(key.clone(), policy)),
            None => drop(self.policies.remove(key)),
        }
        for pod in pods {
            self.select(&pod);
        }
        // One that selects nobody here is nothing to the kernel.
        self.dirty.whole |= was_used || self.is_used(key);
    }

    fn is_used(&self, policy: &Key) -> bool {
        self.groups.keys().any(|(_, group)| group.contains(policy))
    }

    /// A pod; `None`: it is gone, or policies are not about it.
    pub fn set_pod(&mut self, key: &Key, pod: Option<Pod>) {
        let old = self.pods.get(key);
        if old == pod.as_ref() {
            return;
        }
        let old_ips = old.map(|pod| pod.ips.clone()).unwrap_or_default();
        for ip in &old_ips {
            if let Some(owners) = self.owners.get_mut(ip) {
                owners.remove(key);
                if owners.is_empty() {
                    self.owners.remove(ip);
                }
            }
        }
        self.dirty.ips.extend(old_ips);
        match pod {
            Some(pod) => {
                for ip in &pod.ips {
                    self.owners.entry(*ip).or_default().insert(key.clone());
                    self.dirty.ips.insert(*ip);
                }
                self.pods.insert(key.clone(), pod);
            }
            None => drop(self.pods.remove(key)),
        }
        self.select(key);
    }

    /// Finds the groups of a pod anew.
    fn select(&mut self, key: &Key) {
        let pod = self.pods.get(key).filter(|pod| pod.node == self.node);
        let groups = pod.map(|pod| Direction::BOTH.map(|d| self.group_of(key, pod, d)));
        let has_ips = pod.is_some_and(|pod| !pod.ips.is_empty());
        if let Some(pod) = pod {
            self.dirty.ips.extend(pod.ips.iter().copied());
        }
        let old = match &groups {
            Some(groups) => self.selected.insert(key.clone(), groups.clone()),
            None => self.selected.remove(key),
        };
        for (i, direction) in Direction::BOTH.into_iter().enumerate() {
            let new = groups.as_ref().map_or(&[][..], |groups| &groups[i]);
            if let Some(old) = old.as_ref().filter(|old| !old[i].is_empty()) {
                let entry = (direction, old[i].clone());
                if let Some(count) = self.groups.get_mut(&entry) {
                    *count -= 1;
                }
            }
            if !new.is_empty() {
                let count = self.groups.entry((direction, new.to_vec())).or_default();
                *count += 1;
                self.dirty.whole |= *count == 1;
            }
            // Open or closed to addresses nobody knows: a few elements, planned each time.
            if !new.is_empty() && !has_ips {
                self.waiting[i].insert(key.clone());
            } else {
                self.waiting[i].remove(key);
            }
        }
        let before = self.groups.len();
        self.groups.retain(|_, count| *count > 0);
        self.dirty.whole |= self.groups.len() < before;
    }

    fn group_of(&self, key: &Key, pod: &Pod, direction: Direction) -> Group {
        let isolates = |(at, policy): (&Key, &Policy)| {
            let selects = policy
                .selects
                .as_ref()
                .is_some_and(|s| s.matches(&pod.labels));
            (selects && policy.rules(direction).is_some()).then(|| at.clone())
        };
        let first = Key::new(&key.namespace, "");
        let rest = self.policies.range(first..);
        let same = rest.take_while(|(at, _)| at.namespace == key.namespace);
        same.filter_map(isolates).collect()
    }

    /// The networks of this node's pods.
    pub fn nets(&self) -> &[IpNetwork] {
        &self.nets
    }

    /// All groups that a pod of this node is in.
    pub fn groups(&self) -> impl Iterator<Item = &(Direction, Group)> {
        self.groups.keys()
    }

    /// A policy.
    pub fn policy(&self, key: &Key) -> Option<&Policy> {
        self.policies.get(key)
    }

    /// Whether addresses that nobody knows are closed in this direction: a pod of this node without
    /// an address will be isolated, or all that are not known are closed.
    pub fn is_waiting(&self, direction: Direction) -> bool {
        self.closed || !self.waiting[direction as usize].is_empty()
    }

    /// How many pods of this node are isolated in this direction.
    pub fn count_isolated(&self, direction: Direction) -> usize {
        let groups = self.groups.iter().filter(|((d, _), _)| *d == direction);
        groups.map(|(_, count)| count).sum()
    }

    /// All addresses of pods.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.owners.keys().copied()
    }

    /// The pod that has an address. Of several (one on its way out, another in its place) it is the
    /// one that stays, else the newest.
    pub fn owner(&self, ip: IpAddr) -> Option<(&Key, &Pod)> {
        let owners = self.owners.get(&ip)?;
        let pods = owners.iter().filter_map(|key| self.pods.get_key_value(key));
        pods.max_by_key(|(key, pod)| (!pod.leaves, &pod.made, *key))
    }

    /// The group of a pod of this node; none: it is not isolated, or not of this node.
    pub fn group(&self, pod: &Key, direction: Direction) -> Option<&[Key]> {
        let groups = self.selected.get(pod)?;
        let group = &groups[direction as usize];
        (!group.is_empty()).then_some(group)
    }

    /// Whether a pod is of this node.
    pub fn is_here(&self, pod: &Key) -> bool {
        self.selected.contains_key(pod)
    }

    /// The labels of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// Addresses of pods of this node that are isolated in some direction.
    pub fn isolated(&self) -> BTreeSet<IpAddr> {
        let pods = self
            .selected
            .iter()
            .filter(|(_, groups)| groups.iter().any(|g| !g.is_empty()));
        let pods = pods.filter_map(|(key, _)| self.pods.get(key));
        pods.flat_map(|pod| pod.ips.iter().copied()).collect()
    }
}
