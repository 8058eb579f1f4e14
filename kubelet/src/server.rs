//! The kubelet's HTTPS server: logs, exec, attach, the list of pods, health and metrics, on the paths the real
//! kubelet has. Everything but /healthz wants the API server's client certificate.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::context::Context;
use crate::tls;

mod channel;
mod exec;
mod logs;
mod metrics;
#[cfg(test)]
mod tests;

/// A caller has this long for the TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Wait after a failed accept (out of descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Any answer's body.
type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Opens the port, so that a port that is taken is told at the start.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until it is dropped.
pub async fn run(listener: TcpListener, config: ServerConfig, ctx: Context) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                tokio::spawn(serve(tcp, acceptor.clone(), ctx.clone()));
            }
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, ctx: Context) {
    let peer = tcp.peer_addr().map(|a| a.to_string()).unwrap_or_default();
    // Small frames of an interactive session must not wait for each other.
    if let Err(e) = tcp.set_nodelay(true) {
        tracing::debug!(peer, error = %e, "TCP_NODELAY");
    }
    let tls = match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(e)) => return tracing::debug!(peer, error = %e, "TLS handshake"),
        Err(_) => return tracing::debug!(peer, "TLS handshake takes too long"),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let allowed = certificate.is_some_and(tls::may_call);
    let service = service_fn(move |request| {
        let ctx = ctx.clone();
        async move { Ok::<_, Infallible>(answer(request, ctx, allowed).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(tls), service)
        .with_upgrades();
    if let Err(e) = connection.await {
        tracing::debug!(peer, error = %e, "connection");
    }
}

async fn answer(request: Request<Incoming>, ctx: Context, allowed: bool) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    if let ["healthz"] = parts[..] {
        return text(StatusCode::OK, "ok");
    }
    if !allowed {
        let why = "Unauthorized: a client certificate of the API server is needed\n";
        return text(StatusCode::UNAUTHORIZED, why);
    }
    let get = *request.method() == Method::GET;
    match parts[..] {
        ["pods" | "pods/"] if get => pods(&ctx),
        ["metrics"] if get => text(StatusCode::OK, metrics::render(&ctx)),
        ["containerLogs", namespace, pod, container] if get => {
            let query = Query::of(&request);
            logs::answer(&ctx, namespace, pod, container, &query).await
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            exec::answer(request, &ctx, namespace, pod, container, exec::Verb::Exec).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            exec::answer(request, &ctx, namespace, pod, container, exec::Verb::Attach).await
        }
        ["portForward", ..] => {
            let why = "port-forward is not available yet\n";
            text(StatusCode::NOT_IMPLEMENTED, why)
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn pods(ctx: &Context) -> Response<Body> {
    let items: Vec<_> = ctx
        .board
        .all()
        .into_iter()
        .map(|shown| {
            let mut pod = (*shown.pod).clone();
            pod.status = Some((*shown.status).clone());
            pod
        })
        .collect();
    let list =
        serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    let mut response = text(StatusCode::OK, list.to_string());
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

/// A short answer.
fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, plain);
    response
}

/// The query of a request.
#[derive(Debug, Default)]
struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    fn of<B>(request: &Request<B>) -> Self {
        Self::parse(request.uri().query().unwrap_or_default())
    }

    fn parse(query: &str) -> Self {
        let pairs = form_urlencoded::parse(query.as_bytes());
        Self {
            pairs: pairs.into_owned().collect(),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    fn all(&self, name: &str) -> Vec<String> {
        let found = self.pairs.iter().filter(|(n, _)| n == name);
        found.map(|(_, v)| v.clone()).collect()
    }

    /// `true`, `1` and the like; a name without a value counts too.
    fn is_set(&self, name: &str) -> bool {
        let mut found = self.pairs.iter().filter(|(n, _)| n == name);
        found.any(|(_, v)| matches!(v.as_str(), "" | "1" | "t" | "true" | "True" | "TRUE"))
    }

    /// A number; an error names the parameter.
    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let parse = |v: &str| {
            v.parse()
                .map_err(|_not_a_number| format!("{name}: \"{v}\" is not a number of 0 or more\n"))
        };
        self.get(name).map(parse).transpose()
    }
}
