//! A server in this process on a free port of the loopback, and a client for it.

use std::time::Duration;

use bytes::Bytes;
use control_plane::auth::{MASTERS, Peer, User};
use control_plane::server::{Options, Server};
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; its folder goes with it.
pub(crate) struct Lab {
    pub(crate) server: Server,
    pub(crate) client: kube::Client,
    pub(crate) dir: TempDir,
}

/// Options for a server in `dir`.
pub(crate) fn options(dir: &TempDir, store: &str) -> Options {
    Options {
        data_dir: dir.path().to_owned(),
        bind: vec!["127.0.0.1:0".parse().unwrap()],
        advertise: vec!["127.0.0.1".parse().unwrap()],
        service_cidrs: vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:10:96::/112".parse().unwrap(),
        ],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        node_masks: (24, 64),
        node_ports: 30_000..=32_767,
        store: store.to_owned(),
        controllers: false,
    }
}

/// Starts a server without controllers.
pub(crate) async fn lab() -> Lab {
    start(tempfile::tempdir().unwrap(), "memory").await
}

/// Starts a server in a folder.
pub(crate) async fn start(dir: TempDir, store: &str) -> Lab {
    start_with(options(&dir, store), dir).await
}

/// Starts a server with any options.
pub(crate) async fn start_with(options: Options, dir: TempDir) -> Lab {
    let server = Server::start(options).await.unwrap();
    let client = client(&dir, &server, "admin.kubeconfig").await;
    Lab {
        server,
        client,
        dir,
    }
}

/// A client that speaks TLS with the kubeconfig `name`.
pub(crate) async fn client(dir: &TempDir, server: &Server, name: &str) -> kube::Client {
    let config = kube::config::Kubeconfig::read_from(dir.path().join(name)).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(config, &options)
        .await
        .unwrap();
    let port = server.addresses[0].port();
    config.cluster_url = format!("https://127.0.0.1:{port}").parse().unwrap();
    kube::Client::try_from(config).unwrap()
}

/// A client without certificate, with a token if there is one.
pub(crate) fn anonymous(server: &Server, token: Option<&str>) -> kube::Client {
    let port = server.addresses[0].port();
    let mut config = kube::Config::new(format!("https://127.0.0.1:{port}").parse().unwrap());
    config.accept_invalid_certs = true;
    config.auth_info.token = token.map(|token| token.to_owned().into());
    kube::Client::try_from(config).unwrap()
}

impl Lab {
    /// Asks the handlers directly: no socket, no repetition by a client library.
    pub(crate) async fn server_call(
        &self,
        method: &str,
        path: impl AsRef<str>,
        body: Value,
    ) -> (u16, Value) {
        let media = match method {
            "PATCH" => "application/strategic-merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(path.as_ref())
            .header("content-type", media);
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = request
            .body(http_body_util::Full::new(Bytes::from(body)))
            .unwrap();
        let user = User::new("test", vec![MASTERS.to_owned()]);
        let app = std::sync::Arc::clone(&self.server.app);
        let response = app.handle(request, &Peer::Internal(user)).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap())
    }

    /// Stops the server and keeps its folder.
    pub(crate) async fn stop(self) -> TempDir {
        self.server.stop().await;
        self.dir
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        call(&self.client, Method::GET, path, "", Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        call(&self.client, Method::POST, path, "application/json", body).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        call(&self.client, Method::PUT, path, "application/json", body).await
    }

    pub(crate) async fn delete(&self, path: &str, body: Value) -> (u16, Value) {
        call(&self.client, Method::DELETE, path, "application/json", body).await
    }

    /// `form` is `merge`, `strategic-merge` or `json`.
    pub(crate) async fn patch(&self, path: &str, form: &str, body: Value) -> (u16, Value) {
        let media = format!("application/{form}-patch+json");
        call(&self.client, Method::PATCH, path, &media, body).await
    }

    /// Begins a watch.
    pub(crate) async fn watch(&self, path: &str) -> Lines {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = self.client.send(request).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        Lines {
            body: response.into_body(),
            rest: Vec::new(),
        }
    }
}

/// Sends one request and reads the answer as JSON (or as a string).
pub(crate) async fn call(
    client: &kube::Client,
    method: Method,
    path: &str,
    media: &str,
    body: Value,
) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path);
    let body = if body.is_null() {
        Bytes::new()
    } else {
        Bytes::from(body.to_string())
    };
    if !media.is_empty() {
        request = request.header("content-type", media);
    }
    let response = client
        .send(request.body(Body::from(body.to_vec())).unwrap())
        .await
        .unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (
        code,
        serde_json::from_slice(&bytes).unwrap_or(Value::String(text)),
    )
}

/// The lines of a watch.
pub(crate) struct Lines {
    body: Body,
    rest: Vec<u8>,
}

impl Lines {
    /// The next event; none when the stream ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=at).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame())
                .await
                .unwrap()?;
            self.rest
                .extend(frame.unwrap().into_data().unwrap_or_default());
        }
    }

    /// The next event as `TYPE name`.
    pub(crate) async fn brief(&mut self) -> String {
        let event = self.next().await.unwrap();
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-");
        format!("{} {name}", event["type"].as_str().unwrap())
    }
}
