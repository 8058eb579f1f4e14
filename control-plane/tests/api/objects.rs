//! create, read, update, patch and delete over TLS, with the answers Kubernetes gives.

use crate::common::lab;
use serde_json::{Value, json};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn configmap(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[track_caller]
fn refused(answer: &(u16, Value), code: u16, reason: &str, message: &str) {
    assert_eq!(
        (
            answer.0,
            answer.1["reason"].as_str().unwrap(),
            answer.1["message"].as_str().unwrap()
        ),
        (code, reason, message),
    );
    assert_eq!(answer.1["kind"], "Status");
}

#[tokio::test]
async fn the_life_of_a_configmap() {
    let lab = lab().await;
    let (code, made) = lab.post(CONFIGMAPS, configmap("x")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["metadata"]["uid"].as_str().unwrap().len(), 36);
    let path = format!("{CONFIGMAPS}/x");
    assert_eq!(lab.get(&path).await, (200, made.clone()));
    refused(
        &lab.post(CONFIGMAPS, configmap("x")).await,
        409,
        "AlreadyExists",
        "configmaps \"x\" already exists",
    );
    let mut changed = made.clone();
    changed["data"]["a"] = "2".into();
    let (code, second) = lab.put(&path, changed.clone()).await;
    assert_eq!((code, &second["data"]["a"]), (200, &json!("2")));
    assert_ne!(
        second["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    assert_eq!(second["metadata"]["uid"], made["metadata"]["uid"]);
    refused(
        &lab.put(&path, changed).await,
        409,
        "Conflict",
        "Operation cannot be fulfilled on configmaps \"x\": the object has been modified; please \
         apply your changes to the latest version and try again",
    );
    let (_, same) = lab.put(&path, second.clone()).await;
    assert_eq!(same, second, "writing what is there changes nothing");
    let (code, status) = lab.delete(&path, Value::Null).await;
    assert_eq!((code, &status["status"]), (200, &json!("Success")));
    assert_eq!(status["details"]["uid"], made["metadata"]["uid"]);
    refused(
        &lab.get(&path).await,
        404,
        "NotFound",
        "configmaps \"x\" not found",
    );
    refused(
        &lab.get("/apis/apps/v1/namespaces/default/deployments/d")
            .await,
        404,
        "NotFound",
        "deployments.apps \"d\" not found",
    );
}

#[tokio::test]
async fn patches() {
    let lab = lab().await;
    lab.post(CONFIGMAPS, configmap("x")).await;
    let path = format!("{CONFIGMAPS}/x");
    let (code, seen) = lab
        .patch(&path, "merge", json!({"data": {"a": null, "b": "2"}}))
        .await;
    assert_eq!((code, &seen["data"]), (200, &json!({"b": "2"})));
    let ops = json!([{"op": "test", "path": "/data/b", "value": "2"}, {"op": "add", "path": "/data/c", "value": "3"}]);
    let (code, seen) = lab.patch(&path, "json", ops).await;
    assert_eq!((code, &seen["data"]), (200, &json!({"b": "2", "c": "3"})));
    let stale = json!({"metadata": {"resourceVersion": "1"}, "data": {"z": "1"}});
    assert_eq!(lab.patch(&path, "merge", stale).await.0, 409);
    lab.post(PODS, pod("p")).await;
    let add = json!({"spec": {"containers": [{"name": "c", "image": "new"}]}});
    let (code, seen) = lab
        .patch(&format!("{PODS}/p"), "strategic-merge", add)
        .await;
    assert_eq!(code, 200, "{seen}");
    assert_eq!(seen["spec"]["containers"][0]["image"], "new");
    assert_eq!(seen["spec"]["containers"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn status_is_a_world_of_its_own() {
    let lab = lab().await;
    let (_, made) = lab.post(PODS, pod("p")).await;
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    let path = format!("{PODS}/p");
    let patch = json!({"status": {"phase": "Running"}, "spec": {"containers": [{"name": "c", "image": "no"}]}});
    let (code, seen) = lab
        .patch(&format!("{path}/status"), "strategic-merge", patch)
        .await;
    assert_eq!((code, &seen["status"]["phase"]), (200, &json!("Running")));
    assert_eq!(seen["spec"]["containers"][0]["image"], "i");
    assert_eq!(
        seen["metadata"]["generation"],
        made["metadata"]["generation"]
    );
    let (_, seen) = lab
        .patch(&path, "merge", json!({"status": {"phase": "Failed"}}))
        .await;
    assert_eq!(seen["status"]["phase"], "Running");
}

#[tokio::test]
async fn a_pod_on_a_node_goes_in_two_steps() {
    let lab = lab().await;
    lab.post(PODS, pod("p")).await;
    let path = format!("{PODS}/p");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(
        lab.post(&format!("{path}/binding"), binding.clone())
            .await
            .0,
        201
    );
    let again = lab.post(&format!("{path}/binding"), binding).await;
    assert_eq!(again.0, 409, "{}", again.1);
    let (_, seen) = lab.get(&path).await;
    assert_eq!(seen["spec"]["nodeName"], "n1");
    assert_eq!(seen["status"]["conditions"][0]["type"], "PodScheduled");
    let (code, marked) = lab.delete(&path, json!({"gracePeriodSeconds": 7})).await;
    assert_eq!(
        (code, &marked["metadata"]["deletionGracePeriodSeconds"]),
        (200, &json!(7))
    );
    let wrong = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}});
    assert_eq!(lab.delete(&path, wrong).await.0, 409);
    let uid = &marked["metadata"]["uid"];
    let right = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    assert_eq!(lab.delete(&path, right).await.0, 200);
    assert_eq!(lab.get(&path).await.0, 404);
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let lab = lab().await;
    let mut held = configmap("x");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    lab.post(CONFIGMAPS, held).await;
    let path = format!("{CONFIGMAPS}/x");
    let (code, marked) = lab.delete(&path, Value::Null).await;
    assert_eq!(code, 200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(lab.get(&path).await.0, 200);
    let release = json!({"metadata": {"finalizers": null}});
    assert_eq!(lab.patch(&path, "merge", release).await.0, 200);
    assert_eq!(lab.get(&path).await.0, 404);
    lab.post(CONFIGMAPS, configmap("y")).await;
    let path = format!("{CONFIGMAPS}/y");
    let (_, marked) = lab
        .delete(&path, json!({"propagationPolicy": "Foreground"}))
        .await;
    assert_eq!(
        marked["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
}

#[tokio::test]
async fn names_are_generated_and_dry_runs_leave_no_trace() {
    let lab = lab().await;
    let body = json!({"metadata": {"generateName": "g-"}});
    let (code, made) = lab.post(CONFIGMAPS, body).await;
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(
        code == 201 && name.starts_with("g-") && name.len() == 7,
        "{name}"
    );
    let (code, _) = lab
        .post(&format!("{CONFIGMAPS}?dryRun=All"), configmap("dry"))
        .await;
    assert_eq!(code, 201);
    assert_eq!(lab.get(&format!("{CONFIGMAPS}/dry")).await.0, 404);
}

#[tokio::test]
async fn unknown_fields_are_refused_or_warned_about() {
    let lab = lab().await;
    let mut wrong = configmap("x");
    wrong["dota"] = json!({});
    let answer = lab
        .post(
            &format!("{CONFIGMAPS}?fieldValidation=Strict"),
            wrong.clone(),
        )
        .await;
    refused(
        &answer,
        400,
        "BadRequest",
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: \
         unknown field \"dota\"",
    );
    assert_eq!(lab.post(CONFIGMAPS, wrong).await.0, 201);
    let (code, status) = lab
        .post(PODS, json!({"metadata": {"name": "p"}, "spec": {}}))
        .await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
    assert!(
        !status["details"]["causes"].as_array().unwrap().is_empty(),
        "{status}"
    );
}

#[tokio::test]
async fn namespaces_come_furnished_and_refuse_when_ending() {
    let lab = lab().await;
    refused(
        &lab.post("/api/v1/namespaces/none/configmaps", configmap("x"))
            .await,
        404,
        "NotFound",
        "namespaces \"none\" not found",
    );
    let body = json!({"metadata": {"name": "n"}});
    assert_eq!(lab.post("/api/v1/namespaces", body).await.0, 201);
    assert_eq!(
        lab.get("/api/v1/namespaces/n/serviceaccounts/default")
            .await
            .0,
        200
    );
    let (_, ca) = lab
        .get("/api/v1/namespaces/n/configmaps/kube-root-ca.crt")
        .await;
    assert!(
        ca["data"]["ca.crt"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN CERTIFICATE")
    );
    let (code, seen) = lab.delete("/api/v1/namespaces/n", Value::Null).await;
    assert_eq!(
        (code, &seen["status"]["phase"]),
        (200, &json!("Terminating"))
    );
    let answer = lab
        .post("/api/v1/namespaces/n/configmaps", configmap("x"))
        .await;
    assert_eq!(answer.0, 403);
    assert_eq!(
        answer.1["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    let (code, _) = lab.put("/api/v1/namespaces/n/finalize", json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "n"}, "spec": {"finalizers": []}})).await;
    assert_eq!(code, 200);
    assert_eq!(lab.get("/api/v1/namespaces/n").await.0, 404);
    assert_eq!(
        lab.delete("/api/v1/namespaces/default", Value::Null)
            .await
            .0,
        403
    );
}

#[tokio::test]
async fn scale_is_the_same_object_seen_through_a_slit() {
    let lab = lab().await;
    let base = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }});
    let (code, made) = lab.post(base, deployment).await;
    assert_eq!(
        (code, &made["spec"]["replicas"]),
        (201, &json!(1)),
        "{made}"
    );
    let (_, scale) = lab.get(&format!("{base}/d/scale")).await;
    assert_eq!(
        (&scale["kind"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!("a=b"))
    );
    let patch = json!({"spec": {"replicas": 4}});
    let (code, scale) = lab.patch(&format!("{base}/d/scale"), "merge", patch).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(4)));
    let (_, seen) = lab.get(&format!("{base}/d")).await;
    assert_eq!(
        (&seen["spec"]["replicas"], &seen["metadata"]["generation"]),
        (&json!(4), &json!(2))
    );
}

#[tokio::test]
async fn other_media_types_are_refused_clearly() {
    let lab = lab().await;
    lab.post(CONFIGMAPS, configmap("x")).await;
    let path = format!("{CONFIGMAPS}/x");
    let answer = crate::common::call(
        &lab.client,
        http::Method::PATCH,
        &path,
        "text/plain",
        json!({}),
    )
    .await;
    assert_eq!(
        (answer.0, &answer.1["reason"]),
        (415, &json!("UnsupportedMediaType"))
    );
    let large = json!({"metadata": {"name": "l"}, "data": {"a": "x".repeat(4 << 20)}});
    assert_eq!(lab.post(CONFIGMAPS, large).await.0, 413);
    assert_eq!(lab.post(&path, json!({})).await.0, 405);
    assert_eq!(lab.get("/api/v1/nothing").await.0, 404);
}

#[tokio::test]
async fn server_side_apply() {
    let lab = lab().await;
    let path = format!("{CONFIGMAPS}/x");
    let apply = async |manager: &str, more: &str, data: Value| {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data});
        let path = format!("{path}?fieldManager={manager}{more}");
        crate::common::call(
            &lab.client,
            http::Method::PATCH,
            &path,
            "application/apply-patch+yaml",
            body,
        )
        .await
    };
    let (code, made) = apply("one", "", json!({"a": "1", "b": "1"})).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "one");
    let (code, status) = apply("two", "", json!({"a": "2"})).await;
    assert_eq!(
        (code, &status["details"]["causes"][0]["reason"]),
        (409, &json!("FieldManagerConflict"))
    );
    let (code, forced) = apply("two", "&force=true", json!({"a": "2"})).await;
    assert_eq!((code, &forced["data"]), (200, &json!({"a": "2", "b": "1"})));
    let (code, less) = apply("one", "", json!({})).await;
    assert_eq!((code, &less["data"]), (200, &json!({"a": "2"})));
    assert_eq!(
        lab.patch(&path, "merge", json!({"data": {"c": "3"}}))
            .await
            .0,
        200
    );
    let (_, seen) = lab.get(&path).await;
    let managers = seen["metadata"]["managedFields"].as_array().unwrap();
    assert!(
        managers.iter().any(|entry| entry["operation"] == "Update"),
        "{seen}"
    );
}
