//! From a pod and the facts to the PodStatus the API shows. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::plan::View;
use crate::pod::{self, RestartPolicy, Role};
use crate::qos;

mod conditions;
mod containers;
pub mod patch;
#[cfg(test)]
mod tests;

pub use containers::{Tally, container_id};

/// The status of the pod in `view`, on a node with the addresses `host_ips` (the main one first).
/// What the kubelet does not decide is taken over from `before`, the last status known.
pub fn status(view: View<'_>, host_ips: &[IpAddr], before: &PodStatus) -> PodStatus {
    let init: Vec<_> = pod::init_containers(view.pod)
        .map(|(c, role)| containers::status(view, c, role, before))
        .collect();
    let apps: Vec<_> = pod::app_containers(view.pod)
        .iter()
        .map(|c| containers::status(view, c, Role::App, before))
        .collect();
    let phase = phase(view, before, &init, &apps);
    let conditions = conditions::conditions(view, phase, &init, &apps, before);
    let ips = ips(view, host_ips, before);
    let (reason, message) = match &view.soft.failed {
        Some((reason, message)) => (Some((*reason).to_owned()), Some(message.clone())),
        None => (before.reason.clone(), before.message.clone()),
    };
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        container_statuses: (!apps.is_empty()).then_some(apps),
        init_container_statuses: (!init.is_empty()).then_some(init),
        host_ip: host_ips.first().map(ToString::to_string),
        host_ips: (!host_ips.is_empty()).then(|| {
            host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.to_string() })
                .collect()
        }),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        qos_class: Some(qos::class(view.pod).to_string()),
        start_time: before.start_time.clone().or(Some(seconds(view.now))),
        observed_generation: view.pod.metadata.generation,
        reason,
        message,
        ..before.clone()
    }
}

/// The pod has run to its end: nothing of it will be started again.
pub fn is_finished(view: View<'_>) -> bool {
    let shown = view.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(shown, Some("Succeeded" | "Failed")) || {
        let before = view.pod.status.clone().unwrap_or_default();
        let all = |role: Role| {
            pod::all_containers(view.pod)
                .filter(move |(_, r)| (*r == Role::App) == (role == Role::App))
                .map(|(c, r)| containers::status(view, c, r, &before))
                .collect::<Vec<_>>()
        };
        let (init, apps) = (all(Role::Init), all(Role::App));
        matches!(phase(view, &before, &init, &apps), "Succeeded" | "Failed")
    }
}

/// status.phase, by the rules of upstream's `getPhase`.
fn phase(
    view: View<'_>,
    before: &PodStatus,
    init: &[containers::Status],
    apps: &[containers::Status],
) -> &'static str {
    match before.phase.as_deref() {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    if view.soft.failed.is_some() {
        return "Failed";
    }
    let policy = pod::restart_policy(view.pod);
    let init_state = containers::init_state(view, init);
    if init_state.failed && policy == RestartPolicy::Never {
        return "Failed";
    }
    let tally = Tally::of(apps);
    let ending = pod::is_deleting(view.pod) && !view.observed.any_running();
    if ending && tally.stopped > 0 {
        return if tally.stopped == tally.succeeded && tally.waiting == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    if init_state.pending || tally.waiting > 0 {
        "Pending"
    } else if tally.running > 0 || policy == RestartPolicy::Always {
        if tally.running + tally.stopped > 0 {
            "Running"
        } else {
            "Pending"
        }
    } else if tally.stopped == 0 {
        "Pending"
    } else if tally.stopped == tally.succeeded {
        "Succeeded"
    } else if policy == RestartPolicy::Never {
        "Failed"
    } else {
        "Running"
    }
}

fn ips(view: View<'_>, host_ips: &[IpAddr], before: &PodStatus) -> Vec<String> {
    if pod::host_network(view.pod) {
        return host_ips.iter().map(ToString::to_string).collect();
    }
    if let Some(sandbox) = view.observed.sandbox.as_ref().filter(|s| !s.ips.is_empty()) {
        // The family of the node's main address comes first.
        let v4_first = host_ips.first().is_none_or(IpAddr::is_ipv4);
        let mut ips = sandbox.ips.clone();
        ips.sort_by_key(|ip| ip.is_ipv4() != v4_first);
        return ips.iter().map(ToString::to_string).collect();
    }
    // An ended pod keeps the addresses it had.
    let kept = before.pod_ips.iter().flatten().map(|ip| ip.ip.clone());
    kept.collect()
}

/// Times in the API have whole seconds.
pub(crate) fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The last status known of `pod`.
pub fn shown(pod: &Pod) -> PodStatus {
    pod.status.clone().unwrap_or_default()
}
