//! status.conditions: the five of the kubelet, with transition times; those of others are left alone.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

use super::containers::{self, Status};
use super::seconds;
use crate::plan::View;
use crate::pod::{self, Role};

/// Type, true or false, and why not.
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn new(kind: &'static str, why_not: Option<(&'static str, Option<String>)>) -> Self {
        let holds = why_not.is_none();
        let (reason, message) = why_not.map_or((None, None), |(r, m)| (Some(r), m));
        Self {
            kind,
            holds,
            reason,
            message,
        }
    }
}

pub(super) fn conditions(
    view: View<'_>,
    phase: &str,
    init: &[Status],
    apps: &[Status],
    before: &PodStatus,
) -> Vec<PodCondition> {
    let sandbox = view.observed.sandbox.as_ref().is_some_and(|s| s.ready);
    let network = sandbox && view.soft.sandbox != crate::soft::Step::Running;
    let containers_ready = containers_ready(view, phase, init, apps);
    let ready = match &containers_ready {
        Some(why) => Some(why.clone()),
        None => readiness_gates(view, before),
    };
    let own = [
        Verdict::new(
            "PodReadyToStartContainers",
            (!network).then_some(("", None)),
        ),
        Verdict::new("Initialized", initialized(view, phase, init)),
        Verdict::new("Ready", ready),
        Verdict::new("ContainersReady", containers_ready),
        Verdict::new("PodScheduled", None),
    ];
    let old = before.conditions.as_deref().unwrap_or_default();
    let mut all: Vec<_> = own.into_iter().map(|v| render(view, v, old)).collect();
    let others = old.iter().filter(|c| !OWN.contains(&c.type_.as_str()));
    all.extend(others.cloned());
    all
}

/// The conditions the kubelet decides.
pub(super) const OWN: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

fn render(view: View<'_>, verdict: Verdict, old: &[PodCondition]) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = old.iter().find(|c| c.type_ == verdict.kind);
    let same = before.filter(|b| b.status == status);
    PodCondition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.filter(|r| !r.is_empty()).map(str::to_owned),
        message: verdict.message,
        last_transition_time: same
            .and_then(|b| b.last_transition_time.clone())
            .or(Some(seconds(view.now))),
        observed_generation: view.pod.metadata.generation,
        last_probe_time: None,
    }
}

type Why = (&'static str, Option<String>);

fn initialized(view: View<'_>, phase: &str, init: &[Status]) -> Option<Why> {
    if phase == "Succeeded" {
        return None;
    }
    let state = containers::init_state(view, init);
    state.pending.then(|| {
        let names = state.incomplete.join(" ");
        let text = format!("containers with incomplete status: [{names}]");
        ("ContainersNotInitialized", Some(text))
    })
}

fn containers_ready(view: View<'_>, phase: &str, init: &[Status], apps: &[Status]) -> Option<Why> {
    match phase {
        "Succeeded" => return Some(("PodCompleted", None)),
        "Failed" => return Some(("PodFailed", None)),
        _ => {}
    }
    let sidecars = pod::init_containers(view.pod)
        .zip(init)
        .filter(|((_, role), _)| *role == Role::Sidecar)
        .map(|(_, status)| status);
    let unready: Vec<_> = sidecars
        .chain(apps)
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    (!unready.is_empty()).then(|| {
        let text = format!("containers with unready status: [{}]", unready.join(" "));
        ("ContainersNotReady", Some(text))
    })
}

/// spec.readinessGates: conditions others set.
fn readiness_gates(view: View<'_>, before: &PodStatus) -> Option<Why> {
    let gates = pod::spec(view.pod).readiness_gates.iter().flatten();
    let holds = |kind: &str| {
        let mut all = before.conditions.iter().flatten();
        all.any(|c| c.type_ == kind && c.status == "True")
    };
    let missing: Vec<_> = gates
        .filter(|g| !holds(&g.condition_type))
        .map(|g| format!("corresponding condition of pod readiness gate \"{}\" does not exist or is not True.", g.condition_type))
        .collect();
    (!missing.is_empty()).then(|| ("ReadinessGatesNotReady", Some(missing.join(", "))))
}
