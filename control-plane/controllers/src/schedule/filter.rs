//! Which nodes can take a pod. The reasons are upstream's texts.

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use super::affinity::PodAffinities;
use super::labels::{matches_required, matches_simple};
use super::spread::Spread;
use super::state::{NodeInfo, PodInfo, State};
use crate::node;
use crate::node::lifecycle::{NOT_READY, UNSCHEDULABLE};

/// All that is computed once for a pod and not for every node.
pub(super) struct Cycle<'a> {
    pub(super) pod: &'a Pod,
    pub(super) info: PodInfo,
    affinities: PodAffinities<'a>,
    spread: Spread,
}

impl<'a> Cycle<'a> {
    pub(super) fn new(state: &'a State, pod: &'a Pod) -> Self {
        Self {
            info: PodInfo::new(&std::sync::Arc::new(pod.clone())),
            affinities: PodAffinities::new(state, pod),
            spread: Spread::new(state, pod),
            pod,
        }
    }

    pub(super) fn affinities(&self) -> &PodAffinities<'a> {
        &self.affinities
    }

    pub(super) fn spread(&self) -> &Spread {
        &self.spread
    }

    /// Whether the pod fits on the node; else why not. As upstream, the first kind of reason is told.
    pub(super) fn fits(&self, name: &str, info: &NodeInfo) -> Result<(), Vec<String>> {
        let one = |reason: &str| Err(vec![reason.to_owned()]);
        let Some(node) = &info.node else {
            return one("node(s) are not there");
        };
        let tolerations = tolerations(self.pod);
        let unschedulable = node
            .spec
            .as_ref()
            .is_some_and(|spec| spec.unschedulable == Some(true));
        let cordon = taint(UNSCHEDULABLE, "NoSchedule");
        if unschedulable && !tolerated(tolerations, &cordon) {
            return one("node(s) were unschedulable");
        }
        // The taint follows the condition with a delay in which nothing must be placed.
        let implied =
            (node::readiness(node) != Some("True")).then(|| taint(NOT_READY, "NoSchedule"));
        let blocking = node::taints(node)
            .iter()
            .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
            .chain(
                implied
                    .iter()
                    .filter(|_| no_readiness_taint(node::taints(node))),
            )
            .find(|taint| !tolerated(tolerations, taint));
        if let Some(taint) = blocking {
            let value = taint.value.as_deref().unwrap_or_default();
            return one(&format!(
                "node(s) had untolerated taint {{{}: {value}}}",
                taint.key
            ));
        }
        let spec = self.pod.spec.as_ref();
        if !matches_simple(
            spec.and_then(|spec| spec.node_selector.as_ref()),
            info.labels(),
        ) || !matches_required(self.pod, name, info.labels())
        {
            return one("node(s) didn't match Pod's node affinity/selector");
        }
        let taken = |port| {
            info.pods
                .values()
                .flat_map(|pod| &pod.ports)
                .any(|it| it.conflicts(port))
        };
        if self.info.ports.iter().any(taken) {
            return one("node(s) didn't have free ports for the requested pod ports");
        }
        let lacking = self.lacking(info);
        if !lacking.is_empty() {
            return Err(lacking);
        }
        self.spread.fits(info).or_else(one)?;
        self.affinities.fits(info).or_else(one)
    }

    fn lacking(&self, info: &NodeInfo) -> Vec<String> {
        let mut lacking = Vec::new();
        let capacity = |resource: &str| info.allocatable.get(resource).copied().unwrap_or(0);
        let pods = i64::try_from(info.pods.len()).unwrap_or(i64::MAX);
        if pods.saturating_add(1) > capacity("pods") {
            lacking.push("Too many pods".to_owned());
        }
        for (resource, amount) in &self.info.requests {
            let used = info.requested.get(resource).copied().unwrap_or(0);
            if *amount > 0 && used.saturating_add(*amount) > capacity(resource) {
                lacking.push(format!("Insufficient {resource}"));
            }
        }
        lacking
    }
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint {
        key: key.to_owned(),
        effect: effect.to_owned(),
        ..Taint::default()
    }
}

fn no_readiness_taint(taints: &[Taint]) -> bool {
    !taints.iter().any(|taint| {
        (taint.key == NOT_READY || taint.key == node::lifecycle::UNREACHABLE)
            && taint.effect == "NoSchedule"
    })
}

pub(super) fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default()
}

pub(super) fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations
        .iter()
        .any(|toleration| tolerates(toleration, taint))
}

/// An empty key with `Exists` tolerates everything, an empty effect every effect.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    let (wanted, value) = (
        toleration.value.as_deref().unwrap_or_default(),
        taint.value.as_deref().unwrap_or_default(),
    );
    let numbers = || Some((value.parse::<i64>().ok()?, wanted.parse::<i64>().ok()?));
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && wanted == value,
        // KEP-5471: numeric comparison of the taint's value with the toleration's.
        "Gt" => numbers().is_some_and(|(value, wanted)| value > wanted),
        "Lt" => numbers().is_some_and(|(value, wanted)| value < wanted),
        _ => false,
    }
}
