//! Keeping what nodes say, from a watch of them.

use std::collections::BTreeMap;

use api::core::Node;
use api::watch::Event;

use super::model::{Own, Peer, Settings};
use super::node;

/// What nodes have said so far.
#[derive(Debug, Default)]
pub struct Nodes {
    own: Option<Own>,
    peers: BTreeMap<String, Peer>,
    /// The list that is coming in.
    next: Option<Box<Nodes>>,
    complete: bool,
    problems: BTreeMap<String, Vec<String>>,
}

impl Nodes {
    /// Takes an event; true when something changed that matters.
    pub fn take(&mut self, settings: &Settings, event: Event<Node>) -> bool {
        match event {
            Event::Init => {
                self.next = Some(Box::default());
                false
            }
            Event::InitApply(node) => {
                if let Some(next) = &mut self.next {
                    next.put(settings, &node);
                }
                false
            }
            Event::InitDone => match self.next.take() {
                Some(next) => {
                    let changed = !self.complete
                        || next.own != self.own
                        || next.peers != self.peers
                        || next.problems != self.problems;
                    *self = Self {
                        complete: true,
                        ..*next
                    };
                    changed
                }
                None => false,
            },
            Event::Apply(node) => self.put(settings, &node),
            Event::Delete(node) => self.forget(settings, &node.metadata.name),
        }
    }

    fn put(&mut self, settings: &Settings, node: &Node) -> bool {
        let name = node.metadata.name.clone();
        let mut problems = Vec::new();
        let changed = if name == settings.node_name {
            match node::own(node) {
                Ok(own) => {
                    let changed = self.own.as_ref() != Some(&own);
                    self.own = Some(own);
                    changed
                }
                Err(why) => {
                    problems.push(format!("node {name}: {why}"));
                    false
                }
            }
        } else {
            let peer = node::peer(node, settings.vni, &mut problems);
            self.peers.insert(name.clone(), peer.clone()) != Some(peer)
        };
        let before = self.problems.get(&name).map(Vec::as_slice);
        let problems_changed = before.unwrap_or_default() != problems.as_slice();
        self.problems.remove(&name);
        if !problems.is_empty() {
            self.problems.insert(name, problems);
        }
        changed || problems_changed
    }

    /// This node's own deletion changes nothing: whoever deletes it may make it anew, and its pods
    /// are still there.
    fn forget(&mut self, settings: &Settings, name: &str) -> bool {
        self.problems.remove(name);
        name != settings.node_name && self.peers.remove(name).is_some()
    }

    /// This node and the others, once the list is complete and this node has networks for pods.
    /// Without this node in it, a list is not believed: an API server that lost its data must not
    /// cut running pods off.
    pub fn known(&self) -> Option<(&Own, &BTreeMap<String, Peer>)> {
        let own = self.own.as_ref()?;
        (self.complete && !own.subnets.is_empty()).then_some((own, &self.peers))
    }

    /// How many other nodes there are.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether this node is alone.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// What is wrong with what nodes say.
    pub fn problems(&self) -> impl Iterator<Item = String> + '_ {
        self.problems.values().flatten().cloned()
    }
}
