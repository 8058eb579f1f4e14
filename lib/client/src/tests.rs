//! Lists, watches and writes against a server of a few lines that answers from a script.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::watch::Event;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::{Client, Error, Patch, Resource, Selection};

/// What the server says to one request.
struct Answer {
    status: u16,
    body: String,
    /// Keeps the connection open after the body.
    hold: bool,
}

fn ok(body: impl Into<String>) -> Answer {
    Answer {
        status: 200,
        body: body.into(),
        hold: false,
    }
}

fn hold(body: impl Into<String>) -> Answer {
    Answer {
        hold: true,
        ..ok(body)
    }
}

fn refuse(status: u16, reason: &str) -> Answer {
    Answer {
        status,
        body: format!(
            r#"{{"kind":"Status","code":{status},"reason":"{reason}","message":"so it is"}}"#
        ),
        hold: false,
    }
}

type Seen = Arc<Mutex<Vec<String>>>;

/// A client of a server that gives `answers` in turn, and what was asked.
async fn fake(answers: Vec<Answer>) -> (Client, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let request = read_request(&mut socket).await;
            log.lock().unwrap().push(request);
            tokio::spawn(async move {
                let Answer { status, body, hold } = answer;
                let text = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{body}"
                );
                socket.write_all(text.as_bytes()).await.unwrap();
                if hold {
                    let _end = socket.read(&mut [0; 1]).await;
                }
            });
        }
        // Whoever comes after the script finds the connection closed.
        while listener.accept().await.is_ok() {}
    });
    let mut config = kube::Config::new(format!("http://127.0.0.1:{port}").parse().unwrap());
    config.root_cert = Some(Vec::new());
    config.default_retry = false;
    crate::config::install_crypto();
    (Client::new(kube::Client::try_from(config).unwrap()), seen)
}

/// Method, path and body of a request.
async fn read_request(socket: &mut tokio::net::TcpStream) -> String {
    let mut bytes = Vec::new();
    let head = loop {
        bytes.push(socket.read_u8().await.unwrap());
        if bytes.ends_with(b"\r\n\r\n") {
            break String::from_utf8(std::mem::take(&mut bytes)).unwrap();
        }
    };
    let value = |name: &str| {
        let line = head.lines().find(|l| l.to_lowercase().starts_with(name));
        line.and_then(|l| l.split_once(": ")).map(|(_, v)| v)
    };
    let mut text = head.lines().next().unwrap().replace(" HTTP/1.1", "");
    if let Some(content_type) = value("content-type") {
        write!(text, " {content_type}").unwrap();
    }
    if let Some(length) = value("content-length") {
        let mut body = vec![0; length.parse().unwrap()];
        socket.read_exact(&mut body).await.unwrap();
        write!(text, " {}", String::from_utf8(body).unwrap()).unwrap();
    }
    text
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Thing {
    metadata: Meta,
    #[serde(default)]
    size: u8,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Meta {
    name: String,
}

fn thing(name: &str, version: u32, size: i32) -> String {
    format!(r#"{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}},"size":{size}}}"#)
}

fn list(version: u32, next: &str, things: &[String]) -> Answer {
    let items = things.join(",");
    ok(format!(
        r#"{{"metadata":{{"resourceVersion":"{version}","continue":"{next}"}},"items":[{items}]}}"#
    ))
}

fn line(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn words(event: &Event<Thing>) -> String {
    let name = event
        .object()
        .map(|o| format!(" {}{}", o.metadata.name, o.size));
    let kind = match event {
        Event::Init => "init",
        Event::InitApply(_) => "listed",
        Event::InitDone => "done",
        Event::Apply(_) => "apply",
        Event::Delete(_) => "delete",
    };
    format!("{kind}{}", name.unwrap_or_default())
}

/// Takes events until `last` has come.
async fn until(stream: &mut BoxStream<'static, Event<Thing>>, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    let collect = async {
        while all.last().map(String::as_str) != Some(last) {
            all.push(words(&stream.next().await.unwrap()));
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(60), collect).await;
    assert!(done.is_ok(), "{last} did not come after {all:?}");
    all
}

const THINGS: Resource = Resource::new("x.io", "v1", "things");

#[tokio::test]
async fn pages_then_changes_then_a_new_watch_from_the_last_version() {
    let changes = line("MODIFIED", &thing("a", 11, 2))
        + &line("BOOKMARK", r#"{"metadata":{"resourceVersion":"15"}}"#)
        + "\n"
        + &line("DELETED", &thing("b", 16, 1));
    let (client, seen) = fake(vec![
        list(10, "more", &[thing("a", 3, 1)]),
        list(10, "", &[thing("b", 4, 1)]),
        ok(changes),
        hold(line("ADDED", &thing("c", 17, 3))),
    ])
    .await;
    let selection = Selection::labels("!x,y in (1,2)").in_namespace("n");
    let mut stream = client.watch(THINGS, selection);
    assert_eq!(
        until(&mut stream, "apply c3").await,
        [
            "init",
            "listed a1",
            "listed b1",
            "done",
            "apply a2",
            "delete b1",
            "apply c3"
        ]
    );
    let seen = seen.lock().unwrap();
    let base = "GET /apis/x.io/v1/namespaces/n/things?";
    let labels = "labelSelector=%21x%2Cy+in+%281%2C2%29";
    assert_eq!(seen[0], format!("{base}limit=500&{labels}"));
    assert_eq!(seen[1], format!("{base}limit=500&continue=more&{labels}"));
    for (request, version) in [(&seen[2], "10"), (&seen[3], "16")] {
        let start = format!(
            "{base}watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds="
        );
        assert!(request.starts_with(&start), "{request}");
        assert!(request.ends_with(labels), "{request}");
    }
}

#[tokio::test]
async fn a_compacted_history_means_a_new_list() {
    let gone = r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#;
    let (client, _) = fake(vec![
        list(10, "", &[thing("a", 3, 1)]),
        // Told in the watch.
        ok(line("ERROR", gone)),
        list(20, "", &[thing("b", 13, 1)]),
        // Told before it.
        refuse(410, "Expired"),
        list(30, "", &[thing("c", 23, 1)]),
        hold(""),
    ])
    .await;
    let mut stream = client.watch(THINGS, Selection::default());
    assert_eq!(
        until(&mut stream, "listed c1").await,
        [
            "init",
            "listed a1",
            "done",
            "init",
            "listed b1",
            "done",
            "init",
            "listed c1"
        ]
    );
}

#[tokio::test]
async fn refusals_and_broken_connections_are_tried_again() {
    let (client, seen) = fake(vec![
        refuse(503, "ServiceUnavailable"),
        ok("not JSON"),
        list(10, "", &[]),
        refuse(500, "InternalError"),
        // Ends in the midst of a line.
        ok(line("ADDED", &thing("a", 11, 1)) + r#"{"type":"ADDED","obj"#),
        hold(line("ADDED", &thing("b", 12, 1))),
    ])
    .await;
    let mut stream = client.watch(THINGS, Selection::default());
    assert_eq!(
        until(&mut stream, "apply b1").await,
        ["init", "init", "init", "done", "apply a1", "apply b1"]
    );
    assert!(seen.lock().unwrap()[5].contains("resourceVersion=11&"));
}

#[tokio::test]
async fn a_server_that_lost_its_data_means_a_new_list() {
    let (client, seen) = fake(vec![
        list(100, "", &[thing("a", 3, 1)]),
        // It does not know that version, whatever it calls that.
        refuse(504, "Timeout"),
        refuse(504, "Timeout"),
        list(5, "", &[thing("b", 4, 1)]),
        // Lost once more, told by a smaller version.
        ok(line("BOOKMARK", r#"{"metadata":{"resourceVersion":"2"}}"#)),
        list(2, "", &[thing("c", 1, 1)]),
        hold(""),
    ])
    .await;
    let mut stream = client.watch(THINGS, Selection::default());
    assert_eq!(
        until(&mut stream, "listed c1").await,
        [
            "init",
            "listed a1",
            "done",
            "init",
            "listed b1",
            "done",
            "init",
            "listed c1"
        ]
    );
    assert_eq!(seen.lock().unwrap().len(), 6);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_stops_no_other() {
    let (client, _) = fake(vec![
        list(
            10,
            "",
            &[thing("bad", 3, 1000), thing("a", 4, 1), "7".into()],
        ),
        hold(
            line("ADDED", &thing("bad", 11, -1))
                + &line("NEWKIND", "{}")
                + &line("ADDED", &thing("b", 12, 2)),
        ),
    ])
    .await;
    let mut stream = client.watch(THINGS, Selection::default());
    assert_eq!(
        until(&mut stream, "apply b2").await,
        ["init", "listed a1", "done", "apply b2"]
    );
}

#[tokio::test]
async fn single_requests() {
    let (client, seen) = fake(vec![
        ok(thing("a", 1, 1)),
        ok(thing("a", 2, 2)),
        refuse(404, "NotFound"),
        refuse(409, "AlreadyExists"),
        list(5, "", &[thing("a", 1, 1), thing("bad", 1, 999)]),
        ok("{}"),
    ])
    .await;
    let a: Thing = client.get(THINGS, Some("n"), "a").await.unwrap();
    assert_eq!(a.size, 1);
    let patch = serde_json::json!({"size": 2});
    let a: Thing = client
        .patch_status(THINGS, None, "a", Patch::Merge, &patch)
        .await
        .unwrap();
    assert_eq!(a.size, 2);
    let error = client.get::<Thing>(THINGS, None, "b").await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        "GET /apis/x.io/v1/things/b: so it is (404 NotFound)"
    );
    let error = client
        .create::<_, Thing>(THINGS, None, &patch)
        .await
        .unwrap_err();
    assert!(error.is_exists() && error.is_conflict());
    let all: Vec<Thing> = client.list(THINGS, &Selection::default()).await.unwrap();
    assert_eq!(all.len(), 1);
    client
        .delete(THINGS, Some("n"), "a", Some(0), Some("u"))
        .await
        .unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(
        seen[1],
        r#"PATCH /apis/x.io/v1/things/a/status application/merge-patch+json {"size":2}"#
    );
    assert_eq!(
        seen[5],
        concat!(
            "DELETE /apis/x.io/v1/namespaces/n/things/a application/json ",
            r#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0,"preconditions":{"uid":"u"}}"#
        )
    );
    let error = client.get::<Thing>(THINGS, None, "b").await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "{error}");
}

/// A kubeconfig with one thing changed, and what is said of it after the file's name.
async fn kubeconfig(from: &str, to: &str) -> String {
    let good = r#"
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: "https://127.0.0.1:6443"}}]
users: [{name: u, user: {token: t}}]
"#;
    assert!(good.contains(from), "{from}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, good.replace(from, to)).unwrap();
    let result = Client::connect(Some(&path)).await;
    let text = result.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(!text.contains('\n'), "{text}");
    text.replace(&format!("kubeconfig {}: ", path.display()), "")
}

#[tokio::test]
async fn a_broken_kubeconfig_names_the_field() {
    let server = r#"server: "https://127.0.0.1:6443""#;
    let ca = |value: &str| format!("{server}, certificate-authority-data: {value}");
    for (from, to, expect) in [
        (
            "current-context: c",
            "current-context: d",
            r#"current-context: no context named "d" in contexts"#,
        ),
        ("current-context: c", "", "current-context: not set"),
        (
            "cluster: k,",
            "cluster: z,",
            r#"contexts[c].context.cluster: no cluster named "z" in clusters"#,
        ),
        (
            "user: u}",
            "user: z}",
            r#"contexts[c].context.user: no user named "z" in users"#,
        ),
        (server, "x: y", "clusters[k].cluster.server: not set"),
        (
            "https://127.0.0.1:6443",
            "https://a b",
            "clusters[k].cluster.server: invalid uri character",
        ),
        (
            server,
            &ca("'*'"),
            "clusters[k].cluster.certificate-authority(-data): not base64: Invalid symbol 42, offset 0.",
        ),
        (
            "token: t",
            "client-certificate: /nowhere/crt, client-key: /nowhere/key",
            "users[u].user.client-certificate(-data): /nowhere/crt: No such file or directory (os error 2)",
        ),
        (
            "token: t",
            "client-certificate-data: QUJD, client-key-data: QUJD",
            "users[u].user.client-certificate(-data): identity PEM is missing",
        ),
    ] {
        let said = kubeconfig(from, to).await;
        assert!(said.starts_with(expect), "{said:?}\n{expect:?}");
    }
    let said = kubeconfig("contexts: [", "contexts: {").await;
    assert!(!said.is_empty());
    assert_eq!(kubeconfig("token: t", "token: s").await, "");
    let error = Client::connect(Some("/nowhere/kubeconfig".as_ref())).await;
    assert_eq!(
        error.err().unwrap().to_string(),
        "kubeconfig /nowhere/kubeconfig: No such file or directory (os error 2)"
    );
}

/// The server for other crates' tests does what ours are tested with.
#[tokio::test]
async fn the_fake_lists_watches_and_merges() {
    let api = crate::fake::FakeApi::default();
    let nodes = "/api/v1/nodes";
    let node = |name: &str| serde_json::json!({"metadata": {"name": name}, "size": 1});
    api.put(nodes, node("a"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = api.serve(listener).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    std::fs::write(&path, crate::fake::kubeconfig(address)).unwrap();
    let client = Client::connect(Some(&path)).await.unwrap();
    let mut events = client
        .watch::<serde_json::Value>(Resource::NODES, Selection::default())
        .boxed();
    let mut next = async || match events.next().await.unwrap() {
        Event::Init => "init".to_owned(),
        Event::InitDone => "done".to_owned(),
        Event::InitApply(o) => format!("+ {} {}", o["metadata"]["name"], o["size"]),
        Event::Apply(o) => format!("= {} {}", o["metadata"]["name"], o["size"]),
        Event::Delete(o) => format!("- {} {}", o["metadata"]["name"], o["size"]),
    };
    for expect in ["init", "+ \"a\" 1", "done"] {
        assert_eq!(next().await, expect);
    }
    api.put(nodes, node("b"));
    assert_eq!(next().await, "= \"b\" 1");
    let patch = serde_json::json!({"size": 2, "gone": null});
    let merged: serde_json::Value = client
        .patch_status(Resource::NODES, None, "a", Patch::Merge, &patch)
        .await
        .unwrap();
    assert_eq!(merged["size"], 2);
    assert_eq!(next().await, "= \"a\" 2");
    api.delete(nodes, "b");
    assert_eq!(next().await, "- \"b\" 1");
    assert_eq!(api.get(nodes, "a").unwrap()["size"], 2);
    let absent = client.get::<serde_json::Value>(Resource::NODES, None, "b");
    assert!(absent.await.unwrap_err().is_not_found());
}
