//! Whether the proxy keeps up, and the HTTP servers that tell: `/healthz`, `/livez`, `/metrics`,
//! `/proxyMode`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::cidr::Family;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// A request must be over by then.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections served at a time; more wait.
const CONNECTIONS_MAX: usize = 64;

#[derive(Debug, Default, Clone, Copy)]
struct PerFamily {
    /// The oldest change that is not in the kernel yet.
    queued: Option<Instant>,
    synced: bool,
}

#[derive(Debug, Default)]
struct State {
    families: BTreeMap<Family, PerFamily>,
    node_goes: bool,
}

/// Whether the proxy keeps up.
#[derive(Debug)]
pub struct Health {
    /// A change that waits longer means trouble: twice the sync period.
    patience: Duration,
    state: Mutex<State>,
}

impl Health {
    /// Healthy until a change waits for longer than `patience`.
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            state: Mutex::default(),
        }
    }

    /// A change came in.
    pub fn queued(&self, family: Family) {
        if let Ok(mut state) = self.state.lock() {
            let of = state.families.entry(family).or_default();
            of.queued.get_or_insert_with(Instant::now);
        }
    }

    /// All changes are in the kernel.
    pub fn synced(&self, family: Family) {
        if let Ok(mut state) = self.state.lock() {
            let of = state.families.entry(family).or_default();
            of.queued = None;
            of.synced = true;
        }
    }

    /// The node is being taken away: balancers should look elsewhere.
    pub fn node_goes(&self, goes: bool) {
        if let Ok(mut state) = self.state.lock() {
            state.node_goes = goes;
        }
    }

    /// Status code and body; `live` does not ask for the node.
    fn answer(&self, live: bool) -> (StatusCode, String) {
        let Ok(state) = self.state.lock() else {
            return (StatusCode::INTERNAL_SERVER_ERROR, String::new());
        };
        let keeps_up = |of: &PerFamily| of.queued.is_none_or(|at| at.elapsed() < self.patience);
        let eligible = !state.node_goes;
        let healthy = state.families.values().all(keeps_up) && (live || eligible);
        let families: serde_json::Map<String, serde_json::Value> = state
            .families
            .iter()
            .map(|(family, of)| {
                let value = serde_json::json!({ "healthy": keeps_up(of), "synced": of.synced });
                (family.to_string(), value)
            })
            .collect();
        let body = serde_json::json!({
            "healthy": healthy,
            "nodeEligible": eligible,
            "status": families,
        });
        let code = if healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        (code, body.to_string())
    }
}

/// What the servers answer from.
#[derive(Debug, Clone)]
pub struct Pages {
    /// For `/healthz` and `/livez`.
    pub health: Arc<Health>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/metrics`, where cluster DNS is served.
    pub dns: Option<Arc<dns::Counters>>,
    /// For `/proxyMode`.
    pub mode: &'static str,
}

impl Pages {
    fn metrics_page(&self) -> String {
        let mut text = self.metrics.render();
        if let Some(counters) = &self.dns {
            text.push_str(&crate::cluster_dns::metrics(counters));
        }
        text
    }

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let (code, kind, body) = match path {
            "/healthz" | "/livez" => {
                let (code, body) = self.health.answer(path == "/livez");
                (code, "application/json", body)
            }
            "/metrics" => (
                StatusCode::OK,
                "text/plain; version=0.0.4",
                self.metrics_page(),
            ),
            "/proxyMode" => (StatusCode::OK, "text/plain", self.mode.to_owned()),
            _ => (
                StatusCode::NOT_FOUND,
                "text/plain",
                "not found\n".to_owned(),
            ),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = code;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            header::HeaderValue::from_static("nosniff"),
        );
        response
    }
}

/// Binds.
///
/// # Errors
/// The address is taken.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves the pages, for ever.
pub async fn serve(listener: TcpListener, pages: Pages) {
    let limit = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = limit.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = pages.answer(request.uri().path());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(REQUEST_TIMEOUT, connection).await {
                tracing::debug!(%error, "health connection");
            }
            drop(permit);
        });
    }
}
