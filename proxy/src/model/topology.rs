//! Which endpoints this node uses for a service port: hints, local ones, terminating ones when
//! nothing better is left.

use super::NodeView;
use super::endpoint::{Endpoint, NodeHint};

/// The usable endpoints, as indices into the list they were chosen from, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usable {
    /// For traffic that may go anywhere; `None` when the port has no such traffic.
    pub cluster: Option<Vec<usize>>,
    /// For traffic that must stay on the node; `None` when the port has no such traffic.
    pub local: Option<Vec<usize>>,
    /// Whether any endpoint, on any node, could serve: without one traffic is refused, with one
    /// but none in the set asked for it is dropped.
    pub any: bool,
}

impl Usable {
    /// Indices in either set, sorted.
    pub fn all(&self) -> Vec<usize> {
        let both = self.cluster.iter().chain(&self.local).flatten();
        let mut all: Vec<usize> = both.copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Chooses. `cluster` and `local` say which sets the port has traffic for.
///
/// The cluster set is the ready endpoints that hints leave for this node, and when there is none,
/// those that still serve while terminating (without regard to hints). The local set is the same of
/// this node's endpoints, without hints.
pub fn usable(endpoints: &[Endpoint], node: &NodeView, cluster: bool, local: bool) -> Usable {
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<usize> {
        let chosen = endpoints.iter().enumerate().filter(|(_, e)| wanted(e));
        chosen.map(|(i, _)| i).collect()
    };
    let draining = |e: &Endpoint| e.serving && e.terminating;
    let or_draining = |first: Vec<usize>, among: &dyn Fn(&Endpoint) -> bool| {
        if first.is_empty() {
            pick(&|e| draining(e) && among(e))
        } else {
            first
        }
    };
    Usable {
        cluster: cluster.then(|| {
            let hint = hint(endpoints, node);
            or_draining(pick(&|e| e.ready && hint.allows(e, node)), &|_| true)
        }),
        local: local.then(|| or_draining(pick(&|e| e.ready && e.local), &|e| e.local)),
        any: endpoints.iter().any(|e| e.ready || draining(e)),
    }
}

/// Which hints are obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    Ignored,
    Node,
    Zone,
}

impl Hint {
    fn allows(self, endpoint: &Endpoint, node: &NodeView) -> bool {
        match self {
            Self::Ignored => true,
            Self::Node => endpoint.node_hint == NodeHint::Me,
            Self::Zone => in_zone(endpoint, node),
        }
    }
}

fn in_zone(endpoint: &Endpoint, node: &NodeView) -> bool {
    let zone = node.zone.as_ref().filter(|zone| !zone.is_empty());
    zone.is_some_and(|zone| endpoint.zones.contains(zone))
}

/// Hints count when every ready endpoint has them and one names this node (or its zone): a node
/// never loses a service because hints are incomplete.
fn hint(endpoints: &[Endpoint], node: &NodeView) -> Hint {
    let ready = || endpoints.iter().filter(|e| e.ready);
    if ready().all(|e| e.node_hint != NodeHint::Nobody)
        && ready().any(|e| e.node_hint == NodeHint::Me)
    {
        return Hint::Node;
    }
    if ready().all(|e| !e.zones.is_empty()) && ready().any(|e| in_zone(e, node)) {
        return Hint::Zone;
    }
    Hint::Ignored
}
