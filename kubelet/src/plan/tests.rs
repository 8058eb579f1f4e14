use super::*;
use crate::soft::{Failure, Health, Kill, Unhealthy};
use crate::testing::{at, observed, pod};

fn ready_soft() -> Soft {
    Soft {
        volumes: Step::Done,
        sandbox: Step::Done,
        ..Soft::default()
    }
}

/// The plan's actions, shortest form.
fn show(plan: &Plan) -> String {
    let one = |a: &Action| match a {
        Action::MountVolumes => "volumes".to_owned(),
        Action::CreateSandbox => "sandbox".to_owned(),
        Action::RemoveSandbox => "-sandbox".to_owned(),
        Action::StartContainer { name, attempt } => format!("start {name}#{attempt}"),
        Action::BeginKill { id, grace, .. } => format!("kill {id} {}s", grace.as_secs()),
        Action::Hasten { id, .. } => format!("hasten {id}"),
        Action::SignalTerm { id } => format!("TERM {id}"),
        Action::SignalKill { id } => format!("KILL {id}"),
        Action::RemoveContainer { id } => format!("-{id}"),
        Action::FailPod { reason, .. } => format!("fail {reason}"),
        Action::Cleanup => "cleanup".to_owned(),
        Action::DeletePod => "delete".to_owned(),
    };
    plan.actions.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[track_caller]
fn check(pod: &Pod, observed: &Observed, soft: &Soft, now: i64, expect: &str) -> Option<i64> {
    let view = View {
        pod,
        observed,
        soft,
        now: at(now),
    };
    let plan = plan(view);
    assert_eq!(show(&plan), expect);
    plan.wake.map(|w| w.as_second() - at(0).as_second())
}

#[test]
fn a_new_pod_gets_volumes_and_sandbox_at_once_then_its_containers() {
    let p = pod("p: {containers: [{name: a, image: sample}, {name: b, image: sample}]}");
    let none = Observed::default();
    check(&p, &none, &Soft::default(), 0, "volumes, sandbox");
    let both = Soft {
        volumes: Step::Running,
        sandbox: Step::Running,
        ..Soft::default()
    };
    check(&p, &none, &both, 0, "");
    check(&p, &observed(""), &ready_soft(), 0, "start a#0, start b#0");
    let mut soft = ready_soft();
    soft.starts.insert("a".into(), Step::Running);
    check(&p, &observed("b=up"), &soft, 0, "");
}

#[test]
fn failed_steps_wait_for_their_time() {
    let p = pod("p: {}");
    let failed = |at_second| {
        Step::Failed(Failure {
            reason: "X",
            message: String::new(),
            retry_at: at(at_second),
            tries: 1,
        })
    };
    let mut soft = Soft {
        volumes: failed(5),
        sandbox: failed(7),
        ..Soft::default()
    };
    assert_eq!(check(&p, &Observed::default(), &soft, 4, ""), Some(5));
    assert_eq!(
        check(&p, &Observed::default(), &soft, 5, "volumes"),
        Some(7)
    );
    soft = ready_soft();
    soft.starts.insert("c".into(), failed(9));
    assert_eq!(check(&p, &observed(""), &soft, 8, ""), Some(9));
    check(&p, &observed(""), &soft, 9, "start c#0");
}

#[test]
fn init_containers_run_in_order() {
    let p = pod(
        "p: {initContainers: [{name: i, image: sample}, {name: s, image: sample, restartPolicy: Always}, {name: j, image: sample}]}",
    );
    let soft = ready_soft();
    check(&p, &observed(""), &soft, 0, "start i#0");
    check(&p, &observed("i=up"), &soft, 0, "");
    check(&p, &observed("i=0"), &soft, 0, "start s#0");
    check(&p, &observed("i=0 s=up"), &soft, 0, "");
    let mut started = ready_soft();
    let health = Health {
        started: true,
        ready: true,
        ..Health::default()
    };
    started.health.insert("s-0".into(), health);
    check(&p, &observed("i=0 s=up"), &started, 0, "start j#0");
    check(&p, &observed("i=0 s=up j=1"), &started, 20, "start j#1");
    check(&p, &observed("i=0 s=up j=0"), &started, 0, "start c#0");
    // Once the app container exists a sidecar's restart holds nothing back.
    check(
        &p,
        &observed("i=0 s=1 j=0 c=1"),
        &soft,
        20,
        "start s#1, start c#1",
    );
}

#[test]
fn restarts_follow_policy_and_back_off() {
    let of = |policy: &str| pod(&format!("p: {{restartPolicy: {policy}}}"));
    let mut soft = ready_soft();
    check(&of("Always"), &observed("c=0"), &soft, 11, "start c#1");
    check(&of("OnFailure"), &observed("c=1"), &soft, 11, "start c#1");
    let next = Backoff::next(None, at(10), at(10));
    soft.backoff.insert("c".into(), next);
    assert_eq!(
        check(&of("Always"), &observed("c#1=1"), &soft, 15, ""),
        Some(20)
    );
    check(&of("Always"), &observed("c#1=1"), &soft, 20, "start c#2");
    let done = ready_soft();
    check(&of("OnFailure"), &observed("c=0"), &done, 11, "-sandbox");
    check(&of("Never"), &observed("c=3"), &done, 11, "-sandbox");
    let mut o = observed("c=3");
    o.sandbox = None;
    check(&of("Never"), &o, &done, 11, "cleanup");
}

#[test]
fn only_the_newest_dead_run_is_kept() {
    let p = pod("p: {}");
    check(
        &p,
        &observed("c#0=1 c#1=1 c#2=up"),
        &ready_soft(),
        0,
        "-c-0",
    );
    check(&p, &observed("c#1=1 c#2=up"), &ready_soft(), 0, "");
    check(&p, &observed("c#0=new"), &ready_soft(), 0, "-c-0");
}

#[test]
fn an_unhealthy_container_is_killed_and_comes_back() {
    let p = pod("p: {}");
    let mut soft = ready_soft();
    let bad = Unhealthy {
        message: "Container c failed liveness probe, will be restarted".into(),
        grace_seconds: Some(3),
    };
    let health = Health {
        unhealthy: Some(bad),
        ..Health::default()
    };
    soft.health.insert("c-0".into(), health);
    check(&p, &observed("c=up"), &soft, 0, "kill c-0 3s");
    let kill = |hook_running, term_sent, kill_sent| Kill {
        deadline: at(5),
        hook_running,
        term_sent,
        kill_sent,
    };
    for (state, now, expect, wake) in [
        (kill(true, false, false), 0, "", Some(5)),
        (kill(false, false, false), 0, "TERM c-0", None),
        (kill(true, false, false), 5, "TERM c-0", None),
        (kill(false, true, false), 4, "", Some(5)),
        (kill(false, true, false), 5, "KILL c-0", None),
        (kill(false, true, true), 6, "", None),
    ] {
        soft.kills.insert("c-0".into(), state);
        assert_eq!(check(&p, &observed("c=up"), &soft, now, expect), wake);
    }
}

#[test]
fn a_dead_sandbox_is_replaced_and_everything_in_it() {
    let p = pod("p: {initContainers: [{name: i, image: sample}]}");
    let mut o = observed("i=0 c=up");
    o.sandbox.as_mut().unwrap().ready = false;
    check(&p, &o, &ready_soft(), 0, "kill c-0 30s");
    let mut o = observed("i=0 c=1");
    o.sandbox.as_mut().unwrap().ready = false;
    check(&p, &o, &ready_soft(), 0, "-sandbox");
    o.sandbox = None;
    check(&p, &o, &ready_soft(), 0, "sandbox");
    let mut o = observed("i=0 c=1");
    o.sandbox.as_mut().unwrap().id = "new".into();
    check(&p, &o, &ready_soft(), 0, "start i#1");
}

#[test]
fn deletion_goes_from_containers_to_the_api_object() {
    let mut p = pod("p: {initContainers: [{name: s, image: sample, restartPolicy: Always}]}");
    p.metadata.deletion_timestamp = Some(status::seconds(at(30)));
    let mut soft = Soft {
        end_by: Some(at(30)),
        ..ready_soft()
    };
    check(&p, &observed("s=up c=up"), &soft, 0, "kill c-0 30s");
    check(&p, &observed("s=up c=0"), &soft, 10, "kill s-0 20s");
    check(&p, &observed("s=0 c=0"), &soft, 10, "-sandbox");
    let mut o = observed("s=0 c=0");
    o.sandbox = None;
    check(&p, &o, &soft, 10, "cleanup");
    soft.cleanup = Step::Done;
    check(&p, &o, &soft, 10, "delete");
    soft.delete = Step::Done;
    check(&p, &o, &soft, 10, "");
    soft.gone = true;
    check(&p, &o, &soft, 10, "-s-0, -c-0");
    o.containers.clear();
    check(&p, &o, &soft, 10, "");
}

#[test]
fn a_shorter_grace_hastens_a_kill_once() {
    let mut p = pod("p: {}");
    p.metadata.deletion_timestamp = Some(status::seconds(at(30)));
    let mut soft = Soft {
        end_by: Some(at(1)),
        ..ready_soft()
    };
    let mut kill = Kill {
        deadline: at(30),
        hook_running: false,
        term_sent: true,
        kill_sent: false,
    };
    soft.kills.insert("c-0".into(), kill.clone());
    check(&p, &observed("c=up"), &soft, 0, "hasten c-0");
    kill.deadline = at(2);
    soft.kills.insert("c-0".into(), kill);
    assert_eq!(check(&p, &observed("c=up"), &soft, 1, ""), Some(2));
}

#[test]
fn an_active_deadline_fails_the_pod() {
    let mut p = pod("p: {activeDeadlineSeconds: 60}");
    p.status = Some(k8s_openapi::api::core::v1::PodStatus {
        start_time: Some(status::seconds(at(0))),
        ..Default::default()
    });
    assert_eq!(
        check(&p, &observed("c=up"), &ready_soft(), 59, ""),
        Some(60)
    );
    check(
        &p,
        &observed("c=up"),
        &ready_soft(),
        60,
        "fail DeadlineExceeded",
    );
    let mut soft = ready_soft();
    soft.failed = Some(("DeadlineExceeded", String::new()));
    check(&p, &observed("c=up"), &soft, 60, "kill c-0 30s");
}

mod fixpoint;
