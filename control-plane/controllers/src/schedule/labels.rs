//! Node selectors: by labels and by the field metadata.name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec};

type Labels = BTreeMap<String, String>;

/// `spec.nodeSelector`.
pub(super) fn matches_simple(selector: Option<&Labels>, labels: &Labels) -> bool {
    selector
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// Both kinds of node selector of a pod.
pub(crate) fn matches_node(spec: &PodSpec, node: &Node) -> bool {
    static NONE: Labels = Labels::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&NONE);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    matches_simple(spec.node_selector.as_ref(), labels) && matches_affinity(spec, name, labels)
}

/// `requiredDuringSchedulingIgnoredDuringExecution` of the node affinity: one of its terms.
pub(super) fn matches_required(pod: &Pod, node: &str, labels: &Labels) -> bool {
    pod.spec
        .as_ref()
        .is_none_or(|spec| matches_affinity(spec, node, labels))
}

fn matches_affinity(spec: &PodSpec, node: &str, labels: &Labels) -> bool {
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|it| {
        it.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    required.is_none_or(|selector| {
        selector
            .node_selector_terms
            .iter()
            .any(|term| matches_term(term, node, labels))
    })
}

/// All requirements of a term; an empty term matches nothing.
pub(super) fn matches_term(term: &NodeSelectorTerm, node: &str, labels: &Labels) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions
        .iter()
        .all(|it| matches(it, labels.get(&it.key).map(String::as_str)))
        && fields
            .iter()
            .all(|it| it.key == "metadata.name" && matches(it, Some(node)))
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: Option<&str>| text?.parse::<i64>().ok();
    let compare = |than: fn(i64, i64) -> bool| {
        let (value, wanted) = (number(value), number(values.first().map(String::as_str)));
        value
            .zip(wanted)
            .is_some_and(|(value, wanted)| than(value, wanted))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.iter().any(|it| it == value)),
        "NotIn" => value.is_none_or(|value| values.iter().all(|it| it != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, wanted| value > wanted),
        "Lt" => compare(|value, wanted| value < wanted),
        _ => false,
    }
}
