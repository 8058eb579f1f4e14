//! logs and exec through the server to a kubelet: here a TLS server of the test.

use std::sync::Arc;

use control_plane::pki;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::common::{Lab, lab};

/// Answers each connection with what a kubelet would say, and then repeats what it hears.
async fn fake_kubelet(lab: &Lab) -> u16 {
    let node = pki::Node {
        name: "n1".to_owned(),
        ips: vec!["127.0.0.1".parse().unwrap()],
    };
    let request = pki::Request {
        nodes: vec![node],
        ..pki::Request::default()
    };
    pki::init(lab.dir.path(), &request).unwrap();
    let file = |name: &str| lab.dir.path().join("nodes/n1").join(name);
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(file("ca.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    )
    .build()
    .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_file(file("kubelet.crt")).unwrap()],
            PrivateKeyDer::from_pem_file(file("kubelet.key")).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(acceptor.accept(stream).await.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                stream.read_line(&mut head).await.unwrap();
            }
            let line = head.lines().next().unwrap().to_owned();
            let answer = if line.starts_with("GET /exec/default/p/c?command=ls&stdin=true") {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\nhello ".to_owned()
            } else if line.starts_with("GET /containerLogs/default/p/c?tailLines=2 ") {
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n4\r\ntwo\n\r\n0\r\n\r\n".to_owned()
            } else {
                let text = format!("no such thing: {line}");
                format!(
                    "HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{text}",
                    text.len()
                )
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(stream);
                drop(tokio::io::copy(&mut from, &mut to).await);
            });
        }
    });
    port
}

async fn with_pod() -> Lab {
    let lab = lab().await;
    let port = fake_kubelet(&lab).await;
    lab.post("/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await;
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    lab.patch("/api/v1/nodes/n1/status", "merge", status).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    lab.post("/api/v1/namespaces/default/pods", pod).await;
    lab
}

const POD: &str = "/api/v1/namespaces/default/pods/p";

#[tokio::test]
async fn logs_come_from_the_node() {
    let lab = with_pod().await;
    assert_eq!(
        lab.get(&format!("{POD}/log?container=c&tailLines=2")).await,
        (200, json!("one\ntwo\n"))
    );
    let (code, status) = lab.get(&format!("{POD}/log?container=x")).await;
    assert_eq!(
        (code, &status["message"]),
        (400, &json!("container x is not valid for pod p"))
    );
    let (code, status) = lab.get(&format!("{POD}/log?previous=true")).await;
    assert_eq!(code, 404);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .starts_with("no such thing: GET /containerLogs/default/p/c?previous=true")
    );
    assert_eq!(lab.get(&format!("{POD}/exec?command=ls")).await.0, 400);
}

#[tokio::test]
async fn an_upgraded_connection_is_passed_through() {
    let lab = with_pod().await;
    let file = |name: &str| lab.dir.path().join("pki").join(name);
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(file("ca.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = lab.server.addresses[0];
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector
        .connect("127.0.0.1".try_into().unwrap(), stream)
        .await
        .unwrap();
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]});
    lab.post(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        binding,
    )
    .await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let (_, made) = lab.post(path, json!({"spec": {}})).await;
    let token = made["status"]["token"].as_str().unwrap();
    let head = format!(
        "GET {POD}/exec?command=ls&container=c&stdin=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut answer).await.unwrap(), 0, "{answer}");
    }
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(
        answer.contains("sec-websocket-protocol: v5.channel.k8s.io"),
        "{answer}"
    );
    stream.write_all(b"echo").await.unwrap();
    let mut heard = [0; 10];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello echo");
}
