//! Topology spread constraints.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use kube::core::Selector;

use super::affinity::with_label_keys;
use super::filter::{tolerated, tolerations};
use super::labels::{matches_required, matches_simple};
use super::state::{NodeInfo, State};
use crate::{meta, node};

/// One constraint with the number of matching pods in each domain.
struct Constraint {
    topology: String,
    max_skew: i64,
    hard: bool,
    /// The pod itself counts where it goes.
    counts_itself: bool,
    domains: BTreeMap<String, i64>,
    least: i64,
}

/// The constraints of a pod.
pub(super) struct Spread {
    constraints: Vec<Constraint>,
}

impl Spread {
    pub(super) fn new(state: &State, pod: &Pod) -> Self {
        let constraints = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.topology_spread_constraints.as_deref())
            .unwrap_or_default();
        Self {
            constraints: constraints.iter().map(|it| count(state, pod, it)).collect(),
        }
    }

    pub(super) fn fits(&self, info: &NodeInfo) -> Result<(), &'static str> {
        for constraint in self.constraints.iter().filter(|constraint| constraint.hard) {
            let Some(value) = info.labels().get(&constraint.topology) else {
                return Err(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            };
            let here = constraint.domains.get(value).copied().unwrap_or(0);
            let skew = here + i64::from(constraint.counts_itself) - constraint.least;
            if skew > constraint.max_skew {
                return Err("node(s) didn't match pod topology spread constraints");
            }
        }
        Ok(())
    }

    /// How crowded the node's domains are by the soft constraints.
    pub(super) fn crowd(&self, info: &NodeInfo) -> i64 {
        self.constraints
            .iter()
            .filter(|constraint| !constraint.hard)
            .filter_map(|it| it.domains.get(info.labels().get(&it.topology)?))
            .sum()
    }
}

fn count(state: &State, pod: &Pod, constraint: &TopologySpreadConstraint) -> Constraint {
    let selector = constraint.label_selector.as_ref().and_then(|selector| {
        let keys = constraint.match_label_keys.as_deref().unwrap_or_default();
        Selector::try_from(with_label_keys(selector, pod, keys, &[])).ok()
    });
    let mut domains: BTreeMap<String, i64> = BTreeMap::new();
    for (name, info) in state.nodes() {
        let Some(value) = info.labels().get(&constraint.topology_key) else {
            continue;
        };
        if !takes_part(pod, constraint, name, info) {
            continue;
        }
        let matching = info.pods.values().filter(|other| {
            other.pod.metadata.namespace == pod.metadata.namespace
                && !meta::is_deleting(&other.pod.metadata)
                && selector
                    .as_ref()
                    .is_some_and(|it| meta::matches(it, &other.pod.metadata))
        });
        let matching = i64::try_from(matching.count()).unwrap_or(i64::MAX);
        *domains.entry(value.clone()).or_insert(0) += matching;
    }
    let known = i32::try_from(domains.len()).unwrap_or(i32::MAX);
    let too_few = constraint.min_domains.is_some_and(|least| known < least);
    Constraint {
        topology: constraint.topology_key.clone(),
        max_skew: i64::from(constraint.max_skew),
        hard: constraint.when_unsatisfiable == "DoNotSchedule",
        counts_itself: selector
            .as_ref()
            .is_some_and(|it| meta::matches(it, &pod.metadata)),
        least: if too_few {
            0
        } else {
            domains.values().copied().min().unwrap_or(0)
        },
        domains,
    }
}

/// Whether a node's domain counts: by default it must match the pod's node affinity, and taints are not looked at.
fn takes_part(
    pod: &Pod,
    constraint: &TopologySpreadConstraint,
    name: &str,
    info: &NodeInfo,
) -> bool {
    let selector = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_selector.as_ref());
    let by_affinity = constraint.node_affinity_policy.as_deref() == Some("Ignore")
        || (matches_simple(selector, info.labels()) && matches_required(pod, name, info.labels()));
    let by_taints = constraint.node_taints_policy.as_deref() != Some("Honor")
        || info.node.as_ref().is_none_or(|node| {
            node::taints(node)
                .iter()
                .filter(|taint| taint.effect != "PreferNoSchedule")
                .all(|taint| tolerated(tolerations(pod), taint))
        });
    by_affinity && by_taints
}
