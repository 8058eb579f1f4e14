//! Keeping what nodes say, from a watch of them.

use std::collections::{BTreeMap, BTreeSet};

use api::core::Node;
use api::watch::Event;

use super::model::{Own, Settings};
use super::node;
use super::peers::Peers;

/// What nodes have said so far.
#[derive(Debug, Default)]
pub struct Nodes {
    own: Option<Own>,
    peers: Peers,
    /// The list that is coming in.
    next: Option<Box<Nodes>>,
    complete: bool,
    problems: BTreeMap<String, Vec<String>>,
}

/// What an event changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// Everything may be different.
    pub all: bool,
    /// These other nodes are.
    pub names: BTreeSet<String>,
}

impl News {
    fn all(all: bool) -> Self {
        Self {
            all,
            names: BTreeSet::new(),
        }
    }

    /// Whether nothing changed that matters.
    pub fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty()
    }

    /// Adds what came later.
    pub fn extend(&mut self, later: Self) {
        self.all |= later.all;
        self.names.extend(later.names);
    }
}

impl Nodes {
    /// Takes an event; tells what it changed.
    pub fn take(&mut self, settings: &Settings, event: Event<Node>) -> News {
        match event {
            Event::Init => {
                self.next = Some(Box::default());
                News::default()
            }
            Event::InitApply(node) => {
                if let Some(next) = &mut self.next {
                    next.put(settings, &node);
                }
                News::default()
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
                    News::all(changed)
                }
                None => News::default(),
            },
            Event::Apply(node) => self.put(settings, &node),
            Event::Delete(node) => self.forget(settings, &node.metadata.name),
        }
    }

    fn put(&mut self, settings: &Settings, node: &Node) -> News {
        let name = node.metadata.name.as_str();
        let mut problems = Vec::new();
        let mut news = News::default();
        if name == settings.node_name {
            match node::own(node) {
                Ok(own) => {
                    news.all = self.own.as_ref() != Some(&own);
                    self.own = Some(own);
                }
                Err(why) => problems.push(format!("node {name}: {why}")),
            }
        } else {
            let peer = node::peer(node, &settings.backend, &mut problems);
            news.names = self.peers.set(name, Some(peer));
        }
        let before = self.problems.get(name).map(Vec::as_slice);
        if before.unwrap_or_default() != problems.as_slice() {
            news.names.insert(name.to_owned());
        }
        self.problems.remove(name);
        if !problems.is_empty() {
            self.problems.insert(name.to_owned(), problems);
        }
        news
    }

    /// This node's own deletion changes nothing: whoever deletes it may make it anew, and its pods
    /// are still there.
    fn forget(&mut self, settings: &Settings, name: &str) -> News {
        self.problems.remove(name);
        let mut news = News::default();
        if name != settings.node_name {
            news.names = self.peers.set(name, None);
        }
        news
    }

    /// This node and the others, once the list is complete and this node has networks for pods.
    /// Without this node in it, a list is not believed: an API server that lost its data must not
    /// cut running pods off.
    pub fn known(&self) -> Option<(&Own, &Peers)> {
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
