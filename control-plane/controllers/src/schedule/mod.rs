//! The scheduler: `fits` says which nodes can take a pod and why the others cannot, `score` which is best.
//!
//! Everything here is pure and deterministic: the same pods and nodes give the same bindings.

mod affinity;
pub(crate) mod controller;
mod filter;
mod labels;
mod score;
mod spread;
pub(crate) mod state;

pub(crate) use filter::tolerates;
pub(crate) use labels::matches_node;
pub(crate) use state::{PodInfo, State};

use std::collections::BTreeMap;

use filter::Cycle;
use k8s_openapi::api::core::v1::Pod;

/// Why a pod has no node: how many nodes there are, and how many of them each reason excludes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    pub(crate) nodes: usize,
    pub(crate) reasons: BTreeMap<String, usize>,
}

impl std::fmt::Display for Unfit {
    /// Upstream's text, which people and tools know.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available: ", self.nodes)?;
        let mut texts: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        texts.sort();
        write!(f, "{}.", texts.join(", "))
    }
}

/// The best node for a pod.
pub(crate) fn place(state: &State, pod: &Pod) -> Result<String, Unfit> {
    let cycle = Cycle::new(state, pod);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    for (name, node) in state.nodes() {
        match cycle.fits(name, node) {
            Ok(()) => fitting.push(name),
            Err(found) => {
                for reason in found {
                    *reasons.entry(reason).or_insert(0) += 1;
                }
            }
        }
    }
    if fitting.is_empty() {
        return Err(Unfit {
            nodes: state.nodes().count(),
            reasons,
        });
    }
    Ok(score::best(state, &cycle, &fitting))
}

#[cfg(test)]
mod tests;
