//! The API server as one function from request to response.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HeaderValue;
use http::{Method, Request, Response, StatusCode};
use ipnetwork::IpNetwork;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::auth::rbac::Rbac;
use crate::auth::tokens::Tokens;
use crate::auth::{Attributes, Peer, User, authenticate, authorize};
use crate::http::body::{Body, collect, compress, failure, json as json_response, text};
use crate::http::error::{ApiError, Result};
use crate::http::path::{self, Target};
use crate::http::{discovery, negotiate};
use crate::metrics::Metrics;
use crate::rest;
use crate::rest::query::Query;
use crate::store::Store;
use crate::streams::Kubelets;

/// Requests served at one time, watches and streams aside; kube-apiserver's defaults add up to 600.
const IN_FLIGHT_MAX: usize = 600;
/// Time a request other than a watch or stream may take, as kube-apiserver's --request-timeout.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The version kubectl shows.
pub const KUBERNETES_VERSION: (&str, &str, &str) = ("1", "36", "v1.36.0");

/// What the handlers need to know of the cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Service address ranges; the first one's family is the default.
    pub service_cidrs: Vec<IpNetwork>,
    /// Ports for NodePort services.
    pub node_ports: RangeInclusive<u16>,
    /// Addresses under which pods and nodes reach this server.
    pub advertise: Vec<IpAddr>,
    /// Port of this server.
    pub port: u16,
    /// The CA certificate, for kube-root-ca.crt.
    pub ca_pem: String,
}

/// Everything a request may need.
pub struct App {
    /// The objects.
    pub store: Arc<dyn Store>,
    /// Facts of the cluster.
    pub settings: Settings,
    /// Service account tokens.
    pub tokens: Tokens,
    /// Role evaluation.
    pub rbac: Rbac,
    /// Counters.
    pub metrics: Metrics,
    /// The way to the nodes.
    pub kubelets: Kubelets,
    /// Ends all watches and streams.
    pub shutdown: CancellationToken,
    in_flight: Semaphore,
}

/// One request with its body read.
pub struct Call {
    /// Who asks.
    pub user: User,
    /// What about.
    pub target: Target,
    /// RBAC's verb.
    pub verb: &'static str,
    /// Parameters.
    pub query: Query,
    /// Method, headers, URI and, for upgrades, the handle of the connection.
    pub head: http::request::Parts,
    /// The body.
    pub body: Bytes,
}

impl App {
    /// Puts the parts together.
    pub fn new(
        store: Arc<dyn Store>,
        settings: Settings,
        tokens: Tokens,
        kubelets: Kubelets,
    ) -> Self {
        Self {
            store,
            settings,
            tokens,
            kubelets,
            rbac: Rbac::default(),
            metrics: Metrics::default(),
            shutdown: CancellationToken::new(),
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
        }
    }

    /// Answers one request. Never fails: errors are answers.
    pub async fn handle<B>(self: Arc<Self>, request: Request<B>, peer: &Peer) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let headers = head.headers.clone();
        let answer = match self.public(&head) {
            Some(answer) => answer,
            None => self
                .dispatch(head, body, peer)
                .await
                .unwrap_or_else(|error| failure(&error)),
        };
        compress(&headers, answer)
    }

    /// What everybody may ask.
    fn public(&self, head: &http::request::Parts) -> Option<Response<Body>> {
        match head.uri.path() {
            "/healthz" | "/livez" | "/readyz" => Some(text(StatusCode::OK, "ok")),
            "/version" => Some(json_response(StatusCode::OK, &version())),
            _ => None,
        }
    }

    async fn dispatch<B>(
        self: Arc<Self>,
        mut head: http::request::Parts,
        body: B,
        peer: &Peer,
    ) -> Result<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let started = Instant::now();
        let user = authenticate(&self, peer, &head.headers).await?;
        let Some(target) = path::parse(head.uri.path()) else {
            return self.outside_resources(&head, &user).await;
        };
        let target = target?;
        let query = Query::parse(head.uri.query());
        let verb = path::verb(&head.method, &target, query.flag("watch"))?;
        // A list or watch of a single name counts as one of that object.
        let single = query
            .get("fieldSelector")
            .and_then(|text| text.strip_prefix("metadata.name="));
        let single = single.filter(|name| matches!(verb, "list" | "watch") && !name.contains(','));
        let attributes = Attributes {
            verb,
            group: target.kind.group,
            resource: target.kind.plural,
            subresource: target.subresource.map_or("", |sub| sub.name),
            namespace: target.namespace(),
            name: single.unwrap_or(target.name()),
            path: "",
        };
        authorize(&self, &user, &attributes).await?;
        let sub = target.subresource.map_or("", |sub| sub.name);
        let streams = matches!(sub, "log" | "exec" | "attach" | "portforward" | "proxy");
        let resource = target.kind.plural;
        let answer = if verb == "watch" || streams {
            head.headers.remove(http::header::AUTHORIZATION);
            let call = Call {
                user,
                target,
                verb,
                query,
                head,
                body: Bytes::new(),
            };
            rest::answer(&self, call).await
        } else {
            let Ok(_permit) = self.in_flight.try_acquire() else {
                self.metrics.refused();
                tracing::warn!(
                    limit = IN_FLIGHT_MAX,
                    "turned a request away, too many are running"
                );
                return Err(ApiError::too_many(
                    "Too many requests, please try again later.",
                ));
            };
            let work = async {
                let body = collect(body).await?;
                let call = Call {
                    user,
                    target,
                    verb,
                    query,
                    head,
                    body,
                };
                rest::answer(&self, call).await
            };
            tokio::time::timeout(REQUEST_TIMEOUT, work)
                .await
                .unwrap_or_else(|_elapsed| {
                    let text = "Timeout: request did not complete within the allotted timeout";
                    Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", text))
                })
        };
        let code = match &answer {
            Ok(response) => response.status().as_u16(),
            Err(error) => error.code.as_u16(),
        };
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.metrics.request(verb, resource, code, micros);
        tracing::debug!(verb, resource, sub, code, micros, "request");
        answer
    }

    async fn outside_resources(
        &self,
        head: &http::request::Parts,
        user: &User,
    ) -> Result<Response<Body>> {
        let path = head.uri.path();
        let verb = head.method.as_str().to_ascii_lowercase();
        let attributes = Attributes {
            verb: &verb,
            group: "",
            resource: "",
            subresource: "",
            namespace: "",
            name: "",
            path,
        };
        authorize(self, user, &attributes).await?;
        if head.method != Method::GET && head.method != Method::HEAD {
            return Err(ApiError::method_not_allowed());
        }
        match path {
            "/metrics" => Ok(text(
                StatusCode::OK,
                self.metrics.render(self.store.current_rev()),
            )),
            _ => {
                let aggregated = negotiate::wants_aggregated_discovery(&head.headers);
                discovery::answer(path, &head.headers, aggregated, &self.settings)
                    .ok_or_else(ApiError::no_such_path)
            }
        }
    }
}

/// Adds `Warning:` headers.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}

fn version() -> serde_json::Value {
    let (major, minor, git) = KUBERNETES_VERSION;
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("{git}+seaway"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}
