//! Which of the nodes that can take a pod is the best.
//!
//! Each aspect gives 0 to 100 over the candidates. Spreading outweighs how full nodes are, so replicas are apart even
//! on an unevenly filled cluster; what a pod asks for outweighs spreading.

use super::filter::{Cycle, tolerated, tolerations};
use super::labels::matches_term;
use super::state::{NodeInfo, State};
use crate::{meta, node};

/// The label that names a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

const WEIGHT_NODE_AFFINITY: i64 = 12;
const WEIGHT_POD_AFFINITY: i64 = 12;
const WEIGHT_SOFT_SPREAD: i64 = 12;
const WEIGHT_TAINTS: i64 = 12;
const WEIGHT_SIBLINGS: i64 = 6;
const WEIGHT_ZONE: i64 = 3;
const WEIGHT_FREE: i64 = 1;

/// The best of the candidates; of equals the first by name.
pub(super) fn best(state: &State, cycle: &Cycle<'_>, candidates: &[&String]) -> String {
    let infos: Vec<(&String, &NodeInfo)> = candidates
        .iter()
        .filter_map(|name| state.node(name).map(|info| (*name, info)))
        .collect();
    let siblings: Vec<i64> = infos
        .iter()
        .map(|(_, info)| siblings(info, cycle))
        .collect();
    let zones: Vec<i64> = infos
        .iter()
        .map(|(_, info)| zone_siblings(state, info, cycle))
        .collect();
    let aspects: [(i64, Vec<i64>); 7] = [
        (
            WEIGHT_NODE_AFFINITY,
            infos
                .iter()
                .map(|(name, it)| node_affinity(cycle, name, it))
                .collect(),
        ),
        (
            WEIGHT_POD_AFFINITY,
            infos
                .iter()
                .map(|(_, it)| cycle.affinities().preference(it))
                .collect(),
        ),
        (
            WEIGHT_SOFT_SPREAD,
            infos
                .iter()
                .map(|(_, it)| -cycle.spread().crowd(it))
                .collect(),
        ),
        (
            WEIGHT_TAINTS,
            infos
                .iter()
                .map(|(_, it)| -soft_taints(cycle, it))
                .collect(),
        ),
        (
            WEIGHT_SIBLINGS,
            siblings.iter().map(|count| -count).collect(),
        ),
        (WEIGHT_ZONE, zones.iter().map(|count| -count).collect()),
        (
            WEIGHT_FREE,
            infos.iter().map(|(_, it)| free(cycle, it)).collect(),
        ),
    ];
    let mut totals = vec![0_i64; infos.len()];
    for (weight, values) in &aspects {
        let (least, most) = (
            values.iter().min().copied().unwrap_or(0),
            values.iter().max().copied().unwrap_or(0),
        );
        if least == most {
            continue;
        }
        for (total, value) in totals.iter_mut().zip(values) {
            *total += weight * ((value - least) * 100 / (most - least));
        }
    }
    let best = totals.iter().max().copied().unwrap_or(0);
    infos
        .iter()
        .zip(&totals)
        .find(|(_, total)| **total == best)
        .map(|((name, _), _)| (*name).clone())
        .unwrap_or_default()
}

/// Pods on the node that do the same work: of the same controller, or (without one) with the same labels.
fn siblings(info: &NodeInfo, cycle: &Cycle<'_>) -> i64 {
    let own = &cycle.pod.metadata;
    let owner = meta::controller_of(own).map(|owner| owner.uid.as_str());
    let count = info
        .pods
        .values()
        .map(|other| &other.pod.metadata)
        .filter(|other| other.namespace == own.namespace && !meta::is_deleting(other))
        .filter(|other| match owner {
            Some(uid) => meta::controlled_by(other, uid),
            None => {
                own.labels.as_ref().is_some_and(|it| !it.is_empty()) && other.labels == own.labels
            }
        })
        .count();
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn zone_siblings(state: &State, info: &NodeInfo, cycle: &Cycle<'_>) -> i64 {
    let Some(zone) = info.labels().get(ZONE) else {
        return 0;
    };
    state
        .nodes()
        .filter(|(_, other)| other.labels().get(ZONE) == Some(zone))
        .map(|(_, other)| siblings(other, cycle))
        .sum()
}

fn node_affinity(cycle: &Cycle<'_>, name: &str, info: &NodeInfo) -> i64 {
    let preferred = cycle
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref())
        .and_then(|it| {
            it.preferred_during_scheduling_ignored_during_execution
                .as_deref()
        })
        .unwrap_or_default();
    preferred
        .iter()
        .filter(|term| matches_term(&term.preference, name, info.labels()))
        .map(|term| i64::from(term.weight))
        .sum()
}

fn soft_taints(cycle: &Cycle<'_>, info: &NodeInfo) -> i64 {
    let taints = info
        .node
        .as_ref()
        .map(|node| node::taints(node))
        .unwrap_or_default();
    let count = taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule")
        .filter(|taint| !tolerated(tolerations(cycle.pod), taint))
        .count();
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The free part of cpu and memory with the pod there, in thousandths.
fn free(cycle: &Cycle<'_>, info: &NodeInfo) -> i64 {
    ["cpu", "memory"]
        .iter()
        .map(|resource| {
            let capacity = info.allocatable.get(*resource).copied().unwrap_or(0);
            if capacity <= 0 {
                return 0;
            }
            let used = info.weighed.get(*resource).copied().unwrap_or(0);
            let left = capacity - used - cycle.info.weight(resource);
            i64::try_from(i128::from(left.max(0)) * 1000 / i128::from(capacity)).unwrap_or(0)
        })
        .sum()
}
