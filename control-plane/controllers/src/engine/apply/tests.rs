use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::engine::brain::{Brain, Change};
use crate::engine::events;
use crate::fake::{at, replica_set};
use crate::write::{PatchKind, Propagation};

/// What the server was asked, and what it answers by `METHOD path`; creations are answered with their object.
#[derive(Clone, Default)]
struct Server {
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    answers: Arc<Mutex<BTreeMap<String, (u16, Value)>>>,
}

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { server.answer(request).await }
        });
        Client::new(service, "default")
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let what = format!("{} {}", head.method, head.uri.path());
        let known = self.answers.lock().unwrap().get(&what).cloned();
        let count = {
            let mut asked = self.asked.lock().unwrap();
            asked.push((what, body.clone()));
            asked.len()
        };
        let (code, answer) = known.unwrap_or_else(|| {
            let mut object = body;
            object["metadata"]["name"] = json!(format!("made-{count}"));
            object["metadata"]["uid"] = json!(count.to_string());
            (200, object)
        });
        Ok(Response::builder()
            .status(code)
            .body(Full::from(answer.to_string()))
            .unwrap())
    }

    fn will(&self, what: &str, code: u16, answer: Value) {
        self.answers
            .lock()
            .unwrap()
            .insert(what.to_owned(), (code, answer));
    }

    fn refuse(&self, what: &str, code: u16, message: &str) {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": code, "message": message, "reason": "x",
        });
        self.will(what, code, status);
    }

    fn asked(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .map(|(what, _)| what.clone())
            .collect()
    }

    fn applier(&self) -> Arc<Applier> {
        // Notes wait in the channel: its task does not run here.
        let (notes, _task) = events::channel(self.client());
        Arc::new(Applier::new(self.client(), notes))
    }
}

/// A job of the ReplicaSet controller that creates pods.
fn creation(replicas: i32) -> Job {
    let mut brain = Brain::new(Config::default());
    let mut set = replica_set("web", replicas);
    set["metadata"]["uid"] = json!("u");
    brain.observe(
        Change::Seen(Kind::ReplicaSet.decode(&set.to_string()).unwrap()),
        at(0),
    );
    for kind in Kind::ALL {
        brain.observe(Change::InitDone(*kind), at(0));
    }
    let mut job = brain.next_job(at(0)).unwrap();
    job.writes
        .retain(|write| matches!(write, Write::Create { .. }));
    job
}

const PODS: &str = "POST /api/v1/namespaces/default/pods";

#[tokio::test]
async fn creations_are_answered_with_objects() {
    let server = Server::default();
    let done = server.applier().run(creation(5)).await;
    assert!(done.error.is_none());
    assert_eq!(done.answers.len(), 5);
    assert!(
        done.answers
            .iter()
            .all(|answer| matches!(answer, Answer::Created(_)))
    );
    assert_eq!(server.asked(), vec![PODS; 5]);
}

#[tokio::test]
async fn a_refused_creation_stops_the_others_early() {
    let server = Server::default();
    server.refuse(PODS, 403, "exceeded quota");
    let done = server.applier().run(creation(50)).await;
    let failure = done.error.unwrap();
    assert_eq!(
        failure.message,
        "POST /api/v1/namespaces/default/pods: exceeded quota"
    );
    assert!(!failure.benign && failure.refused);
    assert_eq!(server.asked().len(), 1, "slow start");
}

#[tokio::test]
async fn failure_rows() {
    for (code, message, benign, refused) in [
        (409, "the object has been modified", true, true),
        (422, "invalid", false, true),
        (500, "broken", false, false),
        (
            403,
            "unable to create new content in namespace x because it is being terminated",
            true,
            true,
        ),
    ] {
        let server = Server::default();
        server.refuse(PODS, code, message);
        let failure = server.applier().run(creation(1)).await.error.unwrap();
        assert_eq!(
            (failure.benign, failure.refused),
            (benign, refused),
            "{code}"
        );
    }
}

fn target() -> Target {
    Target::new(Kind::Pod, "ns", "p")
}

fn job(write: Write) -> Job {
    let mut job = creation(1);
    job.writes = vec![write];
    job
}

fn deletion() -> Job {
    job(Write::Delete {
        target: target(),
        uid: "u".to_owned(),
        grace_seconds: Some(0),
        propagation: Some(Propagation::Foreground),
        announce: None,
    })
}

#[tokio::test]
async fn deletion_rows() {
    const DELETE: &str = "DELETE /api/v1/namespaces/ns/pods/p";
    let pod = |deleting: bool| {
        let stamp = deleting.then_some("2026-01-01T00:00:00Z");
        json!({"kind": "Pod", "metadata": {"name": "p", "namespace": "ns", "uid": "u", "deletionTimestamp": stamp}})
    };
    for (code, answer, want) in [
        (200, json!({"kind": "Status", "status": "Success"}), "gone"),
        (200, pod(true), "going"),
        (200, pod(false), "nothing"),
        (
            404,
            json!({"kind": "Status", "code": 404, "message": "not found", "reason": "NotFound", "status": "Failure"}),
            "gone",
        ),
    ] {
        let server = Server::default();
        server.will(DELETE, code, answer);
        let done = server.applier().run(deletion()).await;
        assert!(done.error.is_none());
        let got = match &done.answers[0] {
            Answer::Deleted { uid, .. } if uid == "u" => "gone",
            Answer::Changed(_) => "going",
            _ => "nothing",
        };
        assert_eq!(got, want);
        let body = server.asked.lock().unwrap()[0].1.clone();
        assert_eq!(body["preconditions"]["uid"], "u");
        assert_eq!(body["propagationPolicy"], "Foreground");
        assert_eq!(body["gracePeriodSeconds"], 0);
    }
}

#[tokio::test]
async fn a_patch_of_something_gone_is_done() {
    let server = Server::default();
    server.refuse(
        "PATCH /api/v1/namespaces/ns/pods/p/status",
        404,
        "not found",
    );
    let patch = Write::Patch {
        target: target(),
        subresource: Some("status"),
        how: PatchKind::Strategic,
        body: json!({}),
    };
    let done = server.applier().run(job(patch)).await;
    assert!(done.error.is_none());
    assert!(matches!(done.answers[0], Answer::Nothing));
}

#[tokio::test]
async fn an_owner_of_another_uid_is_absent() {
    for (uid, want) in [("u", true), ("other", false)] {
        let server = Server::default();
        server.will(
            "GET /api/v1/namespaces/ns/pods/p",
            200,
            json!({"metadata": {"uid": "u"}}),
        );
        let probe = Write::ProbeOwner {
            target: target(),
            uid: uid.to_owned(),
        };
        let done = server.applier().run(job(probe)).await;
        assert!(matches!(done.answers[0], Answer::Owner { present, .. } if present == want));
    }
}

#[tokio::test]
async fn a_namespace_is_emptied_pods_first() {
    let server = Server::default();
    let resource = |plural: &str, verbs: &[&str]| ResourceInfo {
        api_version: "v1".to_owned(),
        kind: plural.to_owned(),
        plural: plural.to_owned(),
        namespaced: true,
        verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
    };
    let all = ["list", "delete", "deletecollection"];
    let resources = vec![
        resource("secrets", &all),
        resource("pods", &all),
        resource("bindings", &["create"]),
    ];
    let applier = server.applier();
    applier.resources().send_replace(Arc::new(resources));
    let list = |items: Value| json!({"kind": "List", "items": items});
    server.will(
        "GET /api/v1/namespaces/ns/pods",
        200,
        list(json!([{"metadata": {"name": "p", "finalizers": ["f"]}}])),
    );
    server.will("GET /api/v1/namespaces/ns/secrets", 200, list(json!([])));
    server.will("DELETE /api/v1/namespaces/ns/pods", 200, json!({}));
    let empty = || {
        job(Write::EmptyNamespace {
            name: "ns".to_owned(),
            uid: "n".to_owned(),
        })
    };
    let done = Arc::clone(&applier).run(empty()).await;
    let Answer::Emptied { remaining, .. } = &done.answers[0] else {
        panic!("{done:?}")
    };
    assert_eq!(remaining.objects, [("pods".to_owned(), 1)].into());
    assert_eq!(remaining.finalizers, [("f".to_owned(), 1)].into());
    assert!(
        server.asked().iter().all(|what| !what.contains("secrets")),
        "pods are left"
    );
    server.will("GET /api/v1/namespaces/ns/pods", 200, list(json!([])));
    let done = applier.run(empty()).await;
    assert!(matches!(&done.answers[0], Answer::Emptied { remaining, .. } if remaining.is_empty()));
}

#[tokio::test]
async fn a_namespace_loses_only_the_finalizer_kubernetes() {
    let server = Server::default();
    let namespace = json!({
        "kind": "Namespace", "metadata": {"name": "ns", "uid": "n"},
        "spec": {"finalizers": ["kubernetes", "mine"]},
    });
    server.will("GET /api/v1/namespaces/ns", 200, namespace);
    server.will("PUT /api/v1/namespaces/ns/finalize", 200, json!({}));
    let done = server
        .applier()
        .run(job(Write::FinalizeNamespace {
            name: "ns".to_owned(),
        }))
        .await;
    assert!(done.error.is_none());
    let put = server.asked.lock().unwrap()[1].1.clone();
    assert_eq!(put["spec"]["finalizers"], json!(["mine"]));
}
