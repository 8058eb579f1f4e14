use std::path::PathBuf;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http_body_util::Empty;
use k8s_openapi::api::core::v1::PodStatus;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::context::{Board, Node, Shown};
use crate::events::Recorder;
use crate::kube_api::fake::FakeApi;
use crate::observed::State;
use crate::rt::fake::FakeRuntime;
use crate::testing::{at, observed, pod};

/// A server with one pod `default/p` whose container `c` runs, and certificates to call it with.
struct Lab {
    dir: tempfile::TempDir,
    address: SocketAddr,
    ctx: Context,
    _events: tokio::sync::mpsc::Receiver<crate::events::Happened>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// Certificate and key of `name`.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }
}

impl Lab {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let ca = write("ca.crt", &authority.pem);
        let (cert, key) = authority.issue("node");
        let config =
            tls::server_config(&write("s.crt", &cert), &write("s.key", &key), &ca).unwrap();
        for name in ["kube-apiserver-kubelet-client", "system:node:other"] {
            let (cert, key) = authority.issue(name);
            write(&format!("{name}.crt"), &cert);
            write(&format!("{name}.key"), &key);
        }
        let (events, _events) = Recorder::new();
        let (_, services) = tokio::sync::watch::channel(None);
        let node = Node {
            logs_dir: dir.path().join("logs"),
            ..Node::default()
        };
        let ctx = Context {
            node: Arc::new(node),
            rt: Arc::new(FakeRuntime::default()),
            net: Arc::new(crate::cni::Plugins {
                conf_dir: PathBuf::new(),
                bin_dir: PathBuf::new(),
            }),
            api: Arc::new(FakeApi::default()),
            events,
            services,
            board: Arc::new(Board::default()),
        };
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(run(listener, config, ctx.clone()));
        let lab = Self {
            dir,
            address,
            ctx,
            _events,
        };
        lab.show("c#0=1 c#1=up");
        lab
    }

    fn show(&self, containers: &str) {
        let shown = Shown {
            pod: Arc::new(pod("p: {}")),
            observed: Arc::new(observed(containers)),
            status: Arc::new(PodStatus::default()),
        };
        self.ctx.board.show("uid-p", shown);
    }

    fn log(&self, attempt: u32) -> PathBuf {
        let file = self
            .dir
            .path()
            .join(format!("logs/default_p_uid-p/c/{attempt}.log"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        file
    }

    async fn connect(&self, who: Option<&str>) -> TlsStream<TcpStream> {
        let read = |name: &str| std::fs::read(self.dir.path().join(name)).unwrap();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&read("ca.crt")).unwrap())
            .unwrap();
        let builder =
            rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots);
        let config = match who {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let cert = CertificateDer::from_pem_slice(&read(&format!("{name}.crt"))).unwrap();
                let key = PrivateKeyDer::from_pem_slice(&read(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::from(self.address.ip());
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .unwrap()
    }

    async fn request(&self, who: Option<&str>, path: &str) -> Response<Incoming> {
        let io = TokioIo::new(self.connect(who).await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::get(path).header("host", "kubelet");
        if path.starts_with("/exec") {
            request = request
                .header("connection", "Upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                .header(
                    "sec-websocket-protocol",
                    "v5.channel.k8s.io, v4.channel.k8s.io",
                );
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        // The connection ends with its sender; an answer may still be coming.
        tokio::spawn(async move {
            let _keep = sender;
            std::future::pending::<()>().await;
        });
        response
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = self
            .request(Some("kube-apiserver-kubelet-client"), path)
            .await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Everything a session says, as (channel, text).
    async fn session(&self, query: &str, send: &[&[u8]]) -> Vec<(u8, String)> {
        let path = format!("/exec/default/p/c?{query}");
        let response = self
            .request(Some("kube-apiserver-kubelet-client"), &path)
            .await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(
            response.headers()["sec-websocket-protocol"],
            "v5.channel.k8s.io"
        );
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
        for bytes in send {
            let message = Message::Binary(Bytes::copy_from_slice(bytes));
            socket.send(message).await.unwrap();
        }
        let mut heard: Vec<(u8, String)> = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(bytes) => {
                    let text = String::from_utf8(bytes[1..].to_vec()).unwrap();
                    heard.push((bytes[0], text));
                }
                Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 1000),
                other => panic!("{other:?}"),
            }
        }
        heard
    }
}

fn line(second: i64, text: &str) -> String {
    format!("{} stdout F {text}\n", at(second))
}

#[tokio::test]
async fn only_the_api_server_gets_past_health() {
    let lab = Lab::new().await;
    let status = async |who, path| lab.request(who, path).await.status().as_u16();
    assert_eq!(status(None, "/healthz").await, 200);
    assert_eq!(status(None, "/pods").await, 401);
    assert_eq!(status(Some("system:node:other"), "/pods").await, 401);
    let (code, list) = lab.get("/pods").await;
    assert_eq!(code, 200);
    assert!(list.contains("\"name\":\"p\""));
    assert_eq!(lab.get("/nothing").await.0, 404);
    assert!(
        lab.get("/metrics")
            .await
            .1
            .contains("kubelet_running_containers 1\n")
    );
    assert_eq!(lab.get("/portForward/default/p").await.0, 501);
}

#[tokio::test]
async fn logs_of_this_run_and_the_one_before() {
    let lab = Lab::new().await;
    std::fs::write(lab.log(0), line(1, "before")).unwrap();
    std::fs::write(
        lab.log(1),
        line(5, "one") + &line(6, "two") + &line(7, "three"),
    )
    .unwrap();
    for (query, expect) in [
        ("", "one\ntwo\nthree\n"),
        ("previous=true", "before\n"),
        ("tailLines=1", "three\n"),
        ("tailLines=2&limitBytes=5", "two\nt"),
        ("sinceTime=2023-11-14T22:13:26Z", "two\nthree\n"),
    ] {
        let answer = lab
            .get(&format!("/containerLogs/default/p/c?{query}"))
            .await;
        assert_eq!(answer, (200, expect.to_owned()), "{query}");
    }
    for (path, code, word) in [
        ("default/p/x", 400, "container x is not valid for pod p"),
        ("default/q/c", 404, "pod \"q\" not found"),
        ("default/p/c?tailLines=x", 400, "tailLines"),
        ("default/p/c?sinceTime=x", 400, "sinceTime"),
    ] {
        let (status, text) = lab.get(&format!("/containerLogs/{path}")).await;
        assert_eq!(status, code, "{path}");
        assert!(text.contains(word), "{text}");
    }
    lab.show("");
    let (status, text) = lab.get("/containerLogs/default/p/c").await;
    assert_eq!((status, text.contains("waiting to start")), (400, true));
}

#[tokio::test]
async fn in_back_off_the_previous_run_is_the_newest() {
    let lab = Lab::new().await;
    std::fs::write(lab.log(2), line(1, "boom")).unwrap();
    let status = r#"{"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
        "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1}}}]}"#;
    let shown = Shown {
        pod: Arc::new(pod("p: {}")),
        observed: Arc::new(observed("c#2=1")),
        status: Arc::new(serde_json::from_str(status).unwrap()),
    };
    lab.ctx.board.show("uid-p", shown);
    for query in ["", "?previous=true"] {
        let answer = lab.get(&format!("/containerLogs/default/p/c{query}")).await;
        assert_eq!(answer, (200, "boom\n".to_owned()), "{query}");
    }
}

#[tokio::test]
async fn a_follower_sees_new_lines_a_rotated_file_and_the_end() {
    use std::io::Write;
    let lab = Lab::new().await;
    let path = lab.log(1);
    std::fs::write(&path, line(1, "old") + &line(2, "one")).unwrap();
    let who = Some("kube-apiserver-kubelet-client");
    let query = "/containerLogs/default/p/c?follow=true&tailLines=1";
    let mut body = lab.request(who, query).await.into_body();
    let mut heard = String::new();
    let mut hear = async |expect: &str| {
        while !heard.ends_with(expect) {
            let next = tokio::time::timeout(Duration::from_secs(60), body.frame()).await;
            let Some(frame) = next.unwrap() else { break };
            heard.push_str(std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap());
        }
        heard.clone()
    };
    assert_eq!(hear("one\n").await, "one\n");
    let append = |text: String| {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append(line(3, "two"));
    hear("two\n").await;
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    append(line(4, "three"));
    hear("three\n").await;
    append(line(5, "last"));
    let mut ended = observed("c#1=0");
    assert!(matches!(ended.containers[0].state, State::Exited(_)));
    ended.containers[0].attempt = 1;
    lab.show("c#1=0");
    assert_eq!(hear("never").await, "one\ntwo\nthree\nlast\n");
}

#[tokio::test]
async fn sessions_carry_streams_and_end_with_a_status() {
    let lab = Lab::new().await;
    let heard = lab
        .session(
            "command=cat&stdin=true&stdout=true&stderr=true",
            &[b"\x00hello", b"\x04{\"Width\":9,\"Height\":9}", b"\xff\x00"],
        )
        .await;
    assert_eq!(heard[0], (channel::STDOUT, "hello".to_owned()));
    assert_eq!(heard[1].0, channel::ERROR);
    assert!(heard[1].1.contains("Success"));
    let heard = lab
        .session("command=fail&stdout=true&stderr=true", &[])
        .await;
    assert_eq!(heard[0], (channel::STDERR, "sorry".to_owned()));
    assert!(heard[1].1.contains("\"ExitCode\"") && heard[1].1.contains("\"7\""));
}

#[tokio::test]
async fn a_session_needs_a_running_container_and_a_command() {
    let lab = Lab::new().await;
    assert_eq!(lab.get("/exec/default/p/c?stdout=true").await.0, 400);
    assert_eq!(lab.get("/exec/default/p/x?command=cat").await.0, 404);
    assert_eq!(lab.get("/attach/default/p/c?stdout=true").await.0, 400);
}
