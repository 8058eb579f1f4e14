//! Affinity and anti-affinity between pods.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::{Selector, SelectorExt};

use super::state::{NodeInfo, State};
use crate::meta;

/// A place in the topology: the value of a label of nodes.
type Domain = (String, String);

/// Whether the pod repels others by requirement.
pub(super) fn has_required_anti(pod: &Pod) -> bool {
    !required_anti(pod).is_empty()
}

fn required_anti(pod: &Pod) -> &[PodAffinityTerm] {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref()?.pod_anti_affinity.as_ref())
        .and_then(|it| {
            it.required_during_scheduling_ignored_during_execution
                .as_deref()
        })
        .unwrap_or_default()
}

fn required(pod: &Pod) -> &[PodAffinityTerm] {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref()?.pod_affinity.as_ref())
        .and_then(|it| {
            it.required_during_scheduling_ignored_during_execution
                .as_deref()
        })
        .unwrap_or_default()
}

fn preferred(pod: &Pod) -> impl Iterator<Item = (&WeightedPodAffinityTerm, i64)> {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let attract = affinity
        .and_then(|it| it.pod_affinity.as_ref())
        .and_then(|it| {
            it.preferred_during_scheduling_ignored_during_execution
                .as_deref()
        });
    let repel = affinity
        .and_then(|it| it.pod_anti_affinity.as_ref())
        .and_then(|it| {
            it.preferred_during_scheduling_ignored_during_execution
                .as_deref()
        });
    let attract = attract.unwrap_or_default().iter().map(|term| (term, 1));
    attract.chain(repel.unwrap_or_default().iter().map(|term| (term, -1)))
}

/// A term of a pod, ready to be matched against other pods.
struct Term<'a> {
    topology: &'a str,
    labels: Option<Selector>,
    namespaces: Option<Selector>,
    names: &'a [String],
    own_namespace: &'a str,
}

impl<'a> Term<'a> {
    fn new(term: &'a PodAffinityTerm, pod: &'a Pod) -> Self {
        Self {
            topology: &term.topology_key,
            labels: term.label_selector.as_ref().and_then(|selector| {
                let selector = with_label_keys(
                    selector,
                    pod,
                    term.match_label_keys.as_deref().unwrap_or_default(),
                    term.mismatch_label_keys.as_deref().unwrap_or_default(),
                );
                Selector::try_from(selector).ok()
            }),
            namespaces: term
                .namespace_selector
                .as_ref()
                .and_then(|selector| Selector::try_from(selector.clone()).ok()),
            names: term.namespaces.as_deref().unwrap_or_default(),
            own_namespace: meta::namespace(&pod.metadata),
        }
    }

    fn matches(&self, state: &State, other: &Pod) -> bool {
        let namespace = meta::namespace(&other.metadata);
        let by_default =
            self.names.is_empty() && self.namespaces.is_none() && namespace == self.own_namespace;
        let selected = self.namespaces.as_ref().is_some_and(|selector| {
            state
                .namespace_labels(namespace)
                .is_some_and(|labels| selector.matches(labels))
        });
        let in_namespace =
            by_default || selected || self.names.iter().any(|name| name == namespace);
        in_namespace
            && self
                .labels
                .as_ref()
                .is_some_and(|labels| meta::matches(labels, &other.metadata))
    }
}

/// A selector narrowed to the pod's own values of some labels (`matchLabelKeys`).
pub(super) fn with_label_keys(
    selector: &LabelSelector,
    pod: &Pod,
    same: &[String],
    different: &[String],
) -> LabelSelector {
    let mut selector = selector.clone();
    let mut extra = |key: &String, operator: &str| {
        if let Some(value) = meta::label(&pod.metadata, key) {
            selector
                .match_expressions
                .get_or_insert_default()
                .push(LabelSelectorRequirement {
                    key: key.clone(),
                    operator: operator.to_owned(),
                    values: Some(vec![value.to_owned()]),
                });
        }
    };
    same.iter().for_each(|key| extra(key, "In"));
    different.iter().for_each(|key| extra(key, "NotIn"));
    selector
}

/// What other pods mean for where this pod may and should go.
pub(super) struct PodAffinities<'a> {
    /// For each required term: the domains with a pod that matches.
    wanted: Vec<(&'a str, BTreeSet<Domain>)>,
    /// The pod is the first of a group that wants to be together.
    first_of_group: bool,
    /// Domains with a pod that this one keeps away from.
    avoided: BTreeSet<Domain>,
    /// Domains with a pod that keeps this one away.
    repelled: BTreeSet<Domain>,
    preferences: BTreeMap<Domain, i64>,
}

impl<'a> PodAffinities<'a> {
    pub(super) fn new(state: &'a State, pod: &'a Pod) -> Self {
        let required: Vec<Term<'a>> = required(pod).iter().map(|it| Term::new(it, pod)).collect();
        let anti: Vec<Term<'a>> = required_anti(pod)
            .iter()
            .map(|it| Term::new(it, pod))
            .collect();
        let preferred: Vec<(Term<'a>, i64)> = preferred(pod)
            .map(|(it, sign)| {
                (
                    Term::new(&it.pod_affinity_term, pod),
                    sign * i64::from(it.weight),
                )
            })
            .collect();
        let mut this = Self {
            wanted: required
                .iter()
                .map(|term| (term.topology, BTreeSet::new()))
                .collect(),
            first_of_group: false,
            avoided: BTreeSet::new(),
            repelled: BTreeSet::new(),
            preferences: BTreeMap::new(),
        };
        if !(required.is_empty() && anti.is_empty() && preferred.is_empty()) {
            this.look_at_pods(state, &required, &anti, &preferred);
        }
        this.first_of_group = !required.is_empty()
            && this.wanted.iter().all(|(_, domains)| domains.is_empty())
            && required.iter().all(|term| term.matches(state, pod));
        for (info, other) in state.repelling() {
            for term in required_anti(&other.pod) {
                if Term::new(term, &other.pod).matches(state, pod) {
                    this.repelled.extend(domain(info, &term.topology_key));
                }
            }
        }
        this
    }

    fn look_at_pods(
        &mut self,
        state: &State,
        required: &[Term<'_>],
        anti: &[Term<'_>],
        preferred: &[(Term<'_>, i64)],
    ) {
        for (_, info) in state.nodes() {
            for other in info.pods.values().map(|info| &info.pod) {
                for (term, (_, domains)) in required.iter().zip(&mut self.wanted) {
                    if term.matches(state, other) {
                        domains.extend(domain(info, term.topology));
                    }
                }
                for term in anti.iter().filter(|term| term.matches(state, other)) {
                    self.avoided.extend(domain(info, term.topology));
                }
                for (term, weight) in preferred.iter().filter(|it| it.0.matches(state, other)) {
                    if let Some(domain) = domain(info, term.topology) {
                        *self.preferences.entry(domain).or_insert(0) += weight;
                    }
                }
            }
        }
    }

    pub(super) fn fits(&self, info: &NodeInfo) -> Result<(), &'static str> {
        let together = self.wanted.iter().all(|(topology, domains)| {
            domain(info, topology)
                .is_some_and(|domain| self.first_of_group || domains.contains(&domain))
        });
        if !together {
            return Err("node(s) didn't match pod affinity rules");
        }
        let in_any = |domains: &BTreeSet<Domain>| {
            domains
                .iter()
                .any(|(key, value)| info.labels().get(key) == Some(value))
        };
        if in_any(&self.avoided) {
            return Err("node(s) didn't match pod anti-affinity rules");
        }
        if in_any(&self.repelled) {
            return Err("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Ok(())
    }

    /// How much the pod would like to be on the node.
    pub(super) fn preference(&self, info: &NodeInfo) -> i64 {
        self.preferences
            .iter()
            .filter(|((key, value), _)| info.labels().get(key) == Some(value))
            .map(|(_, weight)| weight)
            .sum()
    }
}

fn domain(info: &NodeInfo, topology: &str) -> Option<Domain> {
    info.labels()
        .get(topology)
        .map(|value| (topology.to_owned(), value.clone()))
}
