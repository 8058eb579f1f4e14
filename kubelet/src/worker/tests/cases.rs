use super::*;

const ONE: &str = "p: {containers: [{name: c, IMAGE}]}";

#[tokio::test]
async fn a_pod_comes_up_reports_and_goes_without_a_trace() {
    let mut lab = Lab::new(ONE).await;
    lab.wait("Running c+up(0)").await;
    assert_eq!(lab.status().pod_ip.as_deref(), Some("10.244.1.9"));
    let spec = lab.rt.spec("uidp-c-0");
    assert_eq!(spec.cgroup, "/test/kubepods/poduid-p/c-0");
    assert!(spec.env.contains(&("HOSTNAME".into(), "p".into())));
    let hosts = std::fs::read_to_string(lab.ctx.node.pod_dir("uid-p").join("etc-hosts")).unwrap();
    assert!(hosts.contains("10.244.1.9\tp\n"));
    let api = lab.api.clone();
    let told = || last_phase(&api.patches.lock().unwrap()).as_deref() == Some("Running");
    assert!(until(told).await);
    assert_eq!(lab.reasons(), ["Pulled", "Created", "Started"]);
    lab.delete().await;
    assert!(until(|| !api.deleted.lock().unwrap().is_empty()).await);
    assert_eq!(
        last_phase(&api.patches.lock().unwrap()).as_deref(),
        Some("Failed")
    );
    assert!(lab.rt.calls().contains(&"signal uidp-c-0 Term".to_owned()));
    lab.gone().await;
}

#[tokio::test]
async fn the_first_restart_is_at_once_and_the_second_waits() {
    let mut lab = Lab::new(ONE).await;
    lab.wait("Running c+up(0)").await;
    lab.rt.end("uidp-c-0", 1);
    lab.wait("Running c+up(1)").await;
    lab.rt.end("uidp-c-1", 1);
    lab.wait("Running c-CrashLoopBackOff(1)").await;
    let status = lab.status();
    let last = status.container_statuses.unwrap()[0].last_state.clone();
    assert_eq!(last.unwrap().terminated.unwrap().exit_code, 1);
    // Of the dead runs only the newest is kept.
    let rt = lab.rt.clone();
    assert!(until(|| rt.calls().contains(&"remove_container uidp-c-0".to_owned())).await);
    lab.gone().await;
}

#[tokio::test]
async fn failures_at_every_step_are_told_and_overcome() {
    let steps = [
        ("create_sandbox", "FailedCreatePodSandBox"),
        ("create_container", "Failed"),
        ("start_container", "Failed"),
    ];
    for (step, reason) in steps {
        let mut lab = Lab::with(ONE, |rt, _| rt.fail(step, 1)).await;
        if step == "create_container" {
            lab.wait("Pending c-CreateContainerError(0)").await;
            lab.handle.tell(Msg::Retry).await;
        }
        let rt = lab.rt.clone();
        let up = || rt.pods().unwrap().iter().any(|p| p.observed.any_running());
        assert!(until(up).await, "{step}: {}", lab.show());
        assert!(lab.reasons().contains(&reason), "{step}");
        lab.gone().await;
    }
    let mut lab = Lab::with(ONE, |_, net| *net.failures.lock().unwrap() = 1).await;
    lab.wait("Running c+up(0)").await;
    assert!(lab.reasons().contains(&"FailedCreatePodSandBox"));
    lab.gone().await;
}

#[tokio::test]
async fn teardown_that_fails_is_tried_again() {
    let mut lab = Lab::new(ONE).await;
    lab.wait("Running c+up(0)").await;
    lab.rt.fail("remove_sandbox", 1);
    lab.delete().await;
    let api = lab.api.clone();
    assert!(until(|| !api.deleted.lock().unwrap().is_empty()).await);
    assert!(lab.reasons().contains(&"FailedKillPod"));
    lab.gone().await;
}

#[tokio::test]
async fn a_kubelet_that_comes_back_finds_its_pod_and_restarts_nothing() {
    let mut lab = Lab::new(ONE).await;
    lab.wait("Running c+up(0)").await;
    let before = lab.rt.calls().len();
    lab.restart();
    lab.wait("Running c+up(0)").await;
    assert_eq!(lab.status().pod_ip.as_deref(), Some("10.244.1.9"));
    assert_eq!(lab.rt.calls().len(), before, "{:?}", lab.rt.calls());
    lab.gone().await;
}

#[tokio::test]
async fn a_sandbox_that_dies_is_replaced_and_runs_are_counted_on() {
    let mut lab = Lab::new(ONE).await;
    lab.wait("Running c+up(0)").await;
    lab.rt.kill_sandbox("uid-p");
    lab.wait("Running c+up(1)").await;
    assert_eq!(*lab.net.up.lock().unwrap(), 1);
    lab.gone().await;
}

#[tokio::test]
async fn a_job_that_ends_keeps_its_result_when_the_sandbox_is_gone() {
    let mut lab = Lab::new("p: {restartPolicy: Never, containers: [{name: c, IMAGE}]}").await;
    lab.wait("Running c+up(0)").await;
    lab.rt.end("uidp-c-0", 0);
    lab.wait("Succeeded c-Completed(0)").await;
    let rt = lab.rt.clone();
    assert!(until(|| rt.pods().unwrap().is_empty()).await);
    assert_eq!(lab.show(), "Succeeded c-Completed(0)");
    assert!(until(|| *lab.net.up.lock().unwrap() == 0).await);
    lab.gone().await;
}

#[tokio::test]
async fn images_that_are_not_there_say_what_to_do() {
    let missing = |policy: &str| {
        format!("p: {{containers: [{{name: c, image: \"none:1\", imagePullPolicy: {policy}}}]}}")
    };
    let lab = Lab::new(&missing("Never")).await;
    lab.wait("Pending c-ErrImageNeverPull(0)").await;
    let mut lab = Lab::new(&missing("IfNotPresent")).await;
    lab.wait("Pending c-ErrImagePull(0)").await;
    let status = lab.status().container_statuses.unwrap()[0].state.clone();
    let message = status.unwrap().waiting.unwrap().message.unwrap();
    assert!(message.contains("seaway image load"), "{message}");
    lab.handle.tell(Msg::Retry).await;
    lab.wait("Pending c-ImagePullBackOff(0)").await;
    lab.rt.load("none:1");
    lab.handle.tell(Msg::Retry).await;
    lab.wait("Running c+up(0)").await;
    lab.gone().await;
}

#[tokio::test]
async fn a_container_that_ignores_sigterm_is_killed() {
    let mut lab = Lab::with(ONE, |rt, _| rt.ignore_term()).await;
    lab.wait("Running c+up(0)").await;
    lab.pod.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
    lab.pod.metadata.deletion_grace_period_seconds = Some(1);
    lab.update().await;
    let api = lab.api.clone();
    assert!(until(|| !api.deleted.lock().unwrap().is_empty()).await);
    assert!(lab.rt.calls().contains(&"signal uidp-c-0 Kill".to_owned()));
    lab.gone().await;
}

#[tokio::test]
async fn an_api_server_that_is_away_hears_it_later() {
    let lab = Lab::new(ONE).await;
    *lab.api.failures.lock().unwrap() = 3;
    lab.wait("Running c+up(0)").await;
    let api = lab.api.clone();
    let told = || last_phase(&api.patches.lock().unwrap()).as_deref() == Some("Running");
    assert!(until(told).await);
}

#[tokio::test]
async fn missing_configuration_is_told_and_found_later() {
    let spec = "p: {containers: [{name: c, IMAGE, env: [{name: A, valueFrom: {configMapKeyRef: {name: cm, key: k}}}]}]}";
    let mut lab = Lab::new(spec).await;
    lab.wait("Pending c-CreateContainerConfigError(0)").await;
    let data = BTreeMap::from([("k".to_owned(), b"v".to_vec())]);
    let kind = crate::volumes::payload::Kind::ConfigMap;
    lab.api.set(kind, "cm", Some(Arc::new(data)));
    lab.handle.tell(Msg::Object).await;
    lab.wait("Running c+up(0)").await;
    let env = lab.rt.spec("uidp-c-0").env;
    assert!(env.contains(&("A".into(), "v".into())));
    lab.gone().await;
}

#[tokio::test]
async fn a_pod_gone_from_the_api_is_taken_down() {
    let mut lab = Lab::new(ONE).await;
    lab.wait("Running c+up(0)").await;
    lab.gone().await;
    assert!(lab.api.deleted.lock().unwrap().is_empty());
}
