//! list and watch: pages, selectors, revisions, bookmarks, tables.

use crate::common::{Lab, lab};
use serde_json::{Value, json};

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn add(lab: &Lab, name: &str, label: &str) -> Value {
    let body = json!({"metadata": {"name": name, "labels": {"l": label}}});
    let (code, made) = lab.post(CONFIGMAPS, body).await;
    assert_eq!(code, 201, "{made}");
    made
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}

fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}

#[tokio::test]
async fn pages_and_selectors() {
    let lab = lab().await;
    for (name, label) in [("a", "1"), ("b", "2"), ("c", "1"), ("d", "3")] {
        add(&lab, name, label).await;
    }
    let own = "labelSelector=l";
    let (_, page) = lab.get(&format!("{CONFIGMAPS}?{own}&limit=3")).await;
    assert_eq!(names(&page), ["a", "b", "c"]);
    let (_, full) = lab.get(&format!("{CONFIGMAPS}?limit=2")).await;
    assert_eq!(
        (names(&full), &full["metadata"]["remainingItemCount"]),
        (vec!["a", "b"], &json!(3))
    );
    lab.delete(&format!("{CONFIGMAPS}/c"), Value::Null).await;
    let token = full["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = lab
        .get(&format!("{CONFIGMAPS}?limit=9&continue={token}"))
        .await;
    assert_eq!(
        names(&rest),
        ["c", "d", "kube-root-ca.crt"],
        "as of the first page"
    );
    assert_eq!(version(&rest), version(&full));
    let (_, found) = lab
        .get(&format!("{CONFIGMAPS}?labelSelector=l%20in%20(1,2)"))
        .await;
    assert_eq!(names(&found), ["a", "b"]);
    let (_, found) = lab.get(&format!("{CONFIGMAPS}?labelSelector=l,l!=1")).await;
    assert_eq!(names(&found), ["b", "d"]);
    let (_, found) = lab
        .get(&format!("{CONFIGMAPS}?fieldSelector=metadata.name%3Dd"))
        .await;
    assert_eq!(names(&found), ["d"]);
    let (code, status) = lab
        .get(&format!("{CONFIGMAPS}?fieldSelector=data.x%3D1"))
        .await;
    assert_eq!(
        (code, &status["reason"]),
        (400, &json!("BadRequest")),
        "{status}"
    );
    assert_eq!(
        lab.get(&format!("{CONFIGMAPS}?labelSelector=%3D%3D"))
            .await
            .0,
        400
    );
    let (code, status) = lab.get(&format!("{CONFIGMAPS}?continue=x")).await;
    assert_eq!(code, 400, "{status}");
}

#[tokio::test]
async fn a_watch_tells_every_change_once_and_resumes() {
    let lab = lab().await;
    let (_, list) = lab.get(CONFIGMAPS).await;
    let path = |rev: &str| format!("{CONFIGMAPS}?watch=true&resourceVersion={rev}");
    let mut watch = lab.watch(&path(version(&list))).await;
    let made = add(&lab, "a", "1").await;
    assert_eq!(watch.brief().await, "ADDED a");
    lab.patch(
        &format!("{CONFIGMAPS}/a"),
        "merge",
        json!({"data": {"k": "v"}}),
    )
    .await;
    assert_eq!(watch.brief().await, "MODIFIED a");
    lab.delete(&format!("{CONFIGMAPS}/a"), Value::Null).await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["data"]),
        (&json!("DELETED"), &json!({"k": "v"}))
    );
    let deleted: u64 = version(&event["object"]).parse().unwrap();
    assert_eq!(deleted, version(&made).parse::<u64>().unwrap() + 2);
    let mut again = lab.watch(&path(version(&made))).await;
    assert_eq!(again.brief().await, "MODIFIED a");
    assert_eq!(again.brief().await, "DELETED a");
}

#[tokio::test]
async fn a_selector_makes_objects_come_and_go() {
    let lab = lab().await;
    let mut watch = lab
        .watch(&format!("{CONFIGMAPS}?watch=true&labelSelector=l%3D1"))
        .await;
    add(&lab, "x", "2").await;
    let relabel = |label: &str| json!({"metadata": {"labels": {"l": label}}});
    lab.patch(&format!("{CONFIGMAPS}/x"), "merge", relabel("1"))
        .await;
    assert_eq!(watch.brief().await, "ADDED x");
    lab.patch(&format!("{CONFIGMAPS}/x"), "merge", relabel("2"))
        .await;
    assert_eq!(watch.brief().await, "DELETED x");
}

#[tokio::test]
async fn the_initial_state_ends_with_a_bookmark() {
    let lab = lab().await;
    add(&lab, "a", "1").await;
    let query = "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&labelSelector=l";
    let mut watch = lab.watch(&format!("{CONFIGMAPS}?{query}")).await;
    assert_eq!(watch.brief().await, "ADDED a");
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    let annotations = &bookmark["object"]["metadata"]["annotations"];
    assert_eq!(annotations["k8s.io/initial-events-end"], "true");
    add(&lab, "b", "1").await;
    assert_eq!(watch.brief().await, "ADDED b");
    let wrong = format!("{CONFIGMAPS}?watch=true&sendInitialEvents=true");
    assert_eq!(lab.get(&wrong).await.0, 422);
}

#[tokio::test]
async fn a_forgotten_revision_is_said_to_be_gone() {
    let lab = lab().await;
    let made = add(&lab, "a", "1").await;
    add(&lab, "b", "1").await;
    lab.server
        .app
        .store
        .compact(lab.server.app.store.current_rev())
        .unwrap();
    let path = format!("{CONFIGMAPS}?watch=true&resourceVersion={}", version(&made));
    let event = lab.watch(&path).await.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(event["object"]["reason"], "Expired");
    let exact = format!(
        "{CONFIGMAPS}?resourceVersionMatch=Exact&resourceVersion={}",
        version(&made)
    );
    assert_eq!(lab.get(&exact).await.0, 410);
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_over() {
    let lab = lab().await;
    let mut watch = lab
        .watch(&format!(
            "{CONFIGMAPS}?watch=true&resourceVersion=1&timeoutSeconds=1"
        ))
        .await;
    while watch.next().await.is_some() {}
}

#[tokio::test]
async fn tables_and_metadata() {
    let lab = lab().await;
    add(&lab, "a", "1").await;
    let ask = async |accept: &str| {
        let request = http::Request::get(format!("{CONFIGMAPS}?labelSelector=l"))
            .header("accept", accept)
            .body(Vec::new())
            .unwrap();
        let text = lab.client.request_text(request).await.unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await;
    assert_eq!(
        (&table["kind"], &table["apiVersion"]),
        (&json!("Table"), &json!("meta.k8s.io/v1"))
    );
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    let list = ask("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0]["metadata"]["name"], "a");
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let lab = lab().await;
    for (name, label) in [("a", "1"), ("b", "2"), ("c", "1")] {
        add(&lab, name, label).await;
    }
    let (code, gone) = lab
        .delete(&format!("{CONFIGMAPS}?labelSelector=l%3D1"), Value::Null)
        .await;
    assert_eq!((code, names(&gone)), (200, vec!["a", "c"]));
    let (_, left) = lab.get(CONFIGMAPS).await;
    assert_eq!(names(&left), ["b", "kube-root-ca.crt"]);
}

#[tokio::test]
async fn discovery_documents() {
    let lab = lab().await;
    for path in [
        "/api",
        "/apis",
        "/api/v1",
        "/apis/apps",
        "/apis/apps/v1",
        "/openapi/v3",
        "/version",
    ] {
        let (code, body) = lab.get(path).await;
        assert_eq!(code, 200, "{path}: {body}");
    }
    let (_, index) = lab.get("/openapi/v3").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap();
    assert_eq!(lab.get(url).await.0, 200);
    assert_eq!(lab.get("/apis/nothing.example/v1").await.0, 404);
}
