use super::*;
use crate::backoff::Backoff;
use crate::observed::Observed;
use crate::soft::{Failure, Health, Soft, Step};
use crate::testing::{at, observed, pod};

fn compute(pod: &Pod, observed: &Observed, soft: &Soft, now: i64) -> PodStatus {
    let view = View {
        pod,
        observed,
        soft,
        now: at(now),
    };
    let host = ["172.31.250.11".parse().unwrap()];
    status(view, &host, &shown(pod))
}

fn ready(ids: &[&str]) -> Soft {
    let health = Health {
        started: true,
        ready: true,
        ..Health::default()
    };
    Soft {
        volumes: Step::Done,
        sandbox: Step::Done,
        health: ids
            .iter()
            .map(|id| ((*id).to_owned(), health.clone()))
            .collect(),
        ..Soft::default()
    }
}

/// `Phase; conditions that hold; container states`.
fn show(s: &PodStatus) -> String {
    let holds = s.conditions.iter().flatten().filter(|c| c.status == "True");
    let holds: Vec<_> = holds.map(|c| c.type_.as_str()).collect();
    let state = |c: &containers::Status| {
        let state = c.state.clone().unwrap();
        let text = if state.running.is_some() {
            "up".to_owned()
        } else if let Some(t) = state.terminated {
            format!("{}:{}", t.reason.unwrap(), t.exit_code)
        } else {
            state.waiting.unwrap().reason.unwrap()
        };
        let ready = if c.ready { "+" } else { "-" };
        format!("{}{ready}{text}({})", c.name, c.restart_count)
    };
    let all = s
        .init_container_statuses
        .iter()
        .chain(&s.container_statuses);
    let states: Vec<_> = all.flatten().map(state).collect();
    format!(
        "{}; {}; {}",
        s.phase.as_deref().unwrap(),
        holds.join(" "),
        states.join(" ")
    )
}

#[track_caller]
fn check(pod: &Pod, observed: &Observed, soft: &Soft, expect: &str) {
    assert_eq!(show(&compute(pod, observed, soft, 12)), expect);
}

#[test]
fn life_of_a_pod() {
    let p = pod("p: {}");
    let none = Observed::default();
    check(
        &p,
        &none,
        &Soft::default(),
        "Pending; Initialized PodScheduled; c-ContainerCreating(0)",
    );
    check(
        &p,
        &observed("c=up"),
        &ready(&["c-0"]),
        "Running; PodReadyToStartContainers Initialized Ready ContainersReady PodScheduled; c+up(0)",
    );
    check(
        &p,
        &observed("c=up"),
        &ready(&[]),
        "Running; PodReadyToStartContainers Initialized PodScheduled; c-up(0)",
    );
    check(
        &p,
        &observed("c#3=2"),
        &ready(&[]),
        "Running; PodReadyToStartContainers Initialized PodScheduled; c-Error:2(3)",
    );
}

#[test]
fn ends_by_policy() {
    let of = |policy: &str| {
        pod(&format!(
            "p: {{restartPolicy: {policy}, containers: [{{name: a, image: i}}, {{name: b, image: i}}]}}"
        ))
    };
    for (policy, containers, phase) in [
        ("Never", "a=0 b=0", "Succeeded"),
        ("Never", "a=0 b=1", "Failed"),
        ("Never", "a=0 b=up", "Running"),
        ("OnFailure", "a=0 b=1", "Running"),
        ("OnFailure", "a=0 b=0", "Succeeded"),
        ("Always", "a=0 b=0", "Running"),
        ("Always", "a=0", "Pending"),
    ] {
        let status = compute(&of(policy), &observed(containers), &ready(&[]), 12);
        assert_eq!(
            status.phase.as_deref(),
            Some(phase),
            "{policy} {containers}"
        );
    }
}

#[test]
fn a_deleted_pod_ends_in_a_final_phase() {
    let mut p = pod("p: {}");
    p.metadata.deletion_timestamp = Some(seconds(at(40)));
    for (containers, phase) in [
        ("c=up", "Running"),
        ("c=0", "Succeeded"),
        ("c=143", "Failed"),
    ] {
        let status = compute(&p, &observed(containers), &ready(&["c-0"]), 12);
        assert_eq!(status.phase.as_deref(), Some(phase), "{containers}");
    }
}

#[test]
fn init_containers_hold_the_pod_pending() {
    let p = pod("p: {initContainers: [{name: i, image: x}, {name: j, image: x}]}");
    check(
        &p,
        &observed("i=0 j=up"),
        &ready(&[]),
        "Pending; PodReadyToStartContainers PodScheduled; i+Completed:0(0) j-up(0) c-PodInitializing(0)",
    );
    let status = compute(&p, &observed("i=0 j=up"), &ready(&[]), 12);
    let initialized = status
        .conditions
        .as_ref()
        .unwrap()
        .iter()
        .find(|c| c.type_ == "Initialized");
    assert_eq!(
        initialized.unwrap().message.as_deref(),
        Some("containers with incomplete status: [j]")
    );
}

#[test]
fn waiting_reasons() {
    let p = pod("p: {}");
    let mut soft = ready(&[]);
    soft.backoff
        .insert("c".into(), Backoff::next(None, at(10), at(5)));
    let status = compute(&p, &observed("c#1=1"), &soft, 12);
    assert!(show(&status).ends_with("c-CrashLoopBackOff(1)"));
    let c = &status.container_statuses.unwrap()[0];
    let waiting = c.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 10s restarting failed container=c pod=p_default(uid-p)")
    );
    assert_eq!(
        c.last_state
            .as_ref()
            .unwrap()
            .terminated
            .as_ref()
            .unwrap()
            .exit_code,
        1
    );
    soft = ready(&[]);
    let failure = Failure {
        reason: "ErrImagePull",
        message: "m".into(),
        retry_at: at(50),
        tries: 1,
    };
    soft.starts.insert("c".into(), Step::Failed(failure));
    check(
        &p,
        &observed(""),
        &soft,
        "Pending; PodReadyToStartContainers Initialized PodScheduled; c-ErrImagePull(0)",
    );
}

#[test]
fn transition_times_stay_and_foreign_conditions_too() {
    let mut p = pod("p: {readinessGates: [{conditionType: x/gate}]}");
    let first = compute(&p, &observed("c=up"), &ready(&[]), 20);
    let mut shown = first;
    let foreign = k8s_openapi::api::core::v1::PodCondition {
        type_: "x/gate".into(),
        status: "True".into(),
        ..Default::default()
    };
    shown.conditions.as_mut().unwrap().push(foreign);
    p.status = Some(shown);
    let second = compute(&p, &observed("c=up"), &ready(&["c-0"]), 30);
    let time = |kind: &str| {
        let all = second.conditions.as_ref().unwrap();
        let found = all.iter().find(|c| c.type_ == kind).unwrap();
        found.last_transition_time.clone().map(|t| t.0)
    };
    assert_eq!(time("Ready"), Some(at(30)));
    assert_eq!(time("Initialized"), Some(at(20)));
    assert!(
        second
            .conditions
            .as_ref()
            .unwrap()
            .iter()
            .any(|c| c.type_ == "x/gate")
    );
    assert_eq!(second.pod_ip.as_deref(), Some("10.244.1.7"));
    assert_eq!(second.pod_ips.unwrap().len(), 2);
}

#[test]
fn go_durations() {
    for (s, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s")] {
        assert_eq!(containers::go_duration(s), text);
    }
}
