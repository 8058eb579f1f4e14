//! logs, exec, attach and port-forward: requests that are answered by the kubelet of the pod's node.
//!
//! The upgraded connections (WebSocket, SPDY) are passed through byte for byte; only the two ends
//! understand what is said.

mod kubelet;

use std::sync::Arc;

use http::header::{CONNECTION, HeaderMap, HeaderName, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use schema::kinds::kind_by_resource;
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::sync::OwnedSemaphorePermit;

pub use kubelet::Kubelets;

use crate::app::{App, Call};
use crate::http::body::Body;
use crate::http::error::{ApiError, Result};
use crate::rest::object::{key, list, text};

/// Bytes of a kubelet's error text that are passed on.
const ERROR_BYTES_MAX: usize = 4 << 10;
/// Headers of an upgrade that both ends must see.
const UPGRADE_HEADERS: [&str; 8] = [
    "connection",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "sec-websocket-accept",
    "x-stream-protocol-version",
];

/// Handles `pods/NAME/{log,exec,attach,portforward}`.
pub async fn answer(app: &Arc<App>, mut call: Call) -> Result<Response<Body>> {
    let sub = call.target.subresource.map_or("", |sub| sub.name);
    let (namespace, name) = (call.target.namespace(), call.target.name());
    let kind = call.target.kind;
    let kv = app.store.get(&key(kind, namespace, name)).await?.0;
    let kv = kv.ok_or_else(|| ApiError::not_found(kind, name))?;
    let pod: Value = serde_json::from_slice(&kv.value).map_err(ApiError::internal)?;
    let path = match sub {
        "portforward" => format!("/portForward/{namespace}/{name}"),
        _ => {
            let container = container(&pod, call.query.get("container"))?;
            let verb = if sub == "log" { "containerLogs" } else { sub };
            format!("/{verb}/{namespace}/{name}/{container}")
        }
    };
    let node = text(&pod, "/spec/nodeName");
    if node.is_empty() {
        return Err(ApiError::bad_request(format!(
            "pod {name} does not have a host assigned"
        )));
    }
    let permit = app.kubelets.permit()?;
    let nodes = kind_by_resource("", "v1", "nodes").ok_or_else(ApiError::no_such_path)?;
    let kv = app.store.get(&key(nodes, "", node)).await?.0;
    let kv = kv.ok_or_else(|| ApiError::not_found(nodes, node))?;
    let found: Value = serde_json::from_slice(&kv.value).map_err(ApiError::internal)?;
    let uri = format!("{path}{}", query_string(&call));
    let upgrade = call.head.extensions.remove::<OnUpgrade>();
    let wants_upgrade = sub != "log";
    if wants_upgrade && !call.head.headers.contains_key(UPGRADE) {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let method = if wants_upgrade {
        call.head.method.clone()
    } else {
        Method::GET
    };
    let mut request = Request::builder().method(method).uri(&uri);
    if wants_upgrade && let Some(headers) = request.headers_mut() {
        copy_headers(&call.head.headers, headers);
    }
    let request = request
        .body(Empty::<bytes::Bytes>::new())
        .map_err(ApiError::internal)?;
    let response = app.kubelets.send(node, &found, request).await?;
    if wants_upgrade && response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let client =
            upgrade.ok_or_else(|| ApiError::bad_request("this connection cannot be upgraded"))?;
        return Ok(tunnel(app, response, client, permit));
    }
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    let mut answer = Response::builder().status(response.status());
    if let (Some(headers), Some(kind)) = (
        answer.headers_mut(),
        response.headers().get(http::header::CONTENT_TYPE),
    ) {
        headers.insert(http::header::CONTENT_TYPE, kind.clone());
    }
    let body = response.into_body().map_err(std::io::Error::other);
    let body = Guarded {
        body: Box::pin(body),
        _permit: permit,
    };
    answer.body(Body::relay(body)).map_err(ApiError::internal)
}

/// The container a request means: the named one, the annotated default, or the only one.
fn container<'a>(pod: &'a Value, asked: Option<&'a str>) -> Result<&'a str> {
    let names = |field: &str| -> Vec<&'a str> {
        list(pod, &format!("/spec/{field}"))
            .iter()
            .map(|c| text(c, "/name"))
            .collect()
    };
    let own = names("containers");
    let name = text(pod, "/metadata/name");
    let all = [
        own.clone(),
        names("initContainers"),
        names("ephemeralContainers"),
    ]
    .concat();
    match asked {
        Some(asked) if all.contains(&asked) => return Ok(asked),
        Some(asked) => {
            let message = format!("container {asked} is not valid for pod {name}");
            return Err(ApiError::bad_request(message));
        }
        None => {}
    }
    let annotated = pod
        .pointer("/metadata/annotations")
        .and_then(|all| all.get("kubectl.kubernetes.io/default-container"))
        .and_then(Value::as_str)
        .filter(|annotated| own.contains(annotated));
    match (annotated, &own[..]) {
        (Some(annotated), _) => Ok(annotated),
        (None, [only]) => Ok(only),
        (None, _) => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            own.join(" ")
        ))),
    }
}

/// The client's parameters without the container, which is in the path.
fn query_string(call: &Call) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    let mut any = false;
    for (name, value) in call.query.pairs().filter(|(name, _)| *name != "container") {
        out.append_pair(name, value);
        any = true;
    }
    if any {
        format!("?{}", out.finish())
    } else {
        String::new()
    }
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for name in UPGRADE_HEADERS {
        let name = HeaderName::from_static(name);
        for value in from.get_all(&name) {
            to.append(&name, value.clone());
        }
    }
}

/// Joins the client's connection and the kubelet's.
fn tunnel(
    app: &Arc<App>,
    response: Response<Incoming>,
    client: OnUpgrade,
    permit: OwnedSemaphorePermit,
) -> Response<Body> {
    let mut answer = Response::new(Body::full(bytes::Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    copy_headers(response.headers(), answer.headers_mut());
    debug_assert!(answer.headers().contains_key(CONNECTION));
    let shutdown = app.shutdown.clone();
    tokio::spawn(async move {
        let _permit = permit;
        let ends = async {
            let node = hyper::upgrade::on(response).await?;
            let client = client.await?;
            Ok::<_, hyper::Error>((TokioIo::new(client), TokioIo::new(node)))
        };
        match ends.await {
            Ok((mut client, mut node)) => {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    ended = copy_bidirectional(&mut client, &mut node) => {
                        if let Err(error) = ended {
                            tracing::debug!("stream ended: {error}");
                        }
                    }
                }
            }
            Err(error) => tracing::debug!("upgrade: {error}"),
        }
    });
    answer
}

/// A kubelet's no, as a Status.
async fn refusal(response: Response<Incoming>) -> ApiError {
    let code = response.status();
    let body = http_body_util::Limited::new(response.into_body(), ERROR_BYTES_MAX);
    let text = match body.collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    if let Ok(status) = serde_json::from_str::<Value>(&text)
        && status["kind"] == "Status"
    {
        return ApiError::new(code, "", status["message"].as_str().unwrap_or(""));
    }
    let reason = match code {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::BAD_REQUEST => "BadRequest",
        _ => "InternalError",
    };
    ApiError::new(code, reason, text)
}

/// A body that holds its place among the streams until it ends.
struct Guarded<B> {
    body: std::pin::Pin<Box<B>>,
    _permit: OwnedSemaphorePermit,
}

impl<B: http_body::Body> http_body::Body for Guarded<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::result::Result<http_body::Frame<B::Data>, B::Error>>> {
        self.body.as_mut().poll_frame(context)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(pod: &Value, asked: Option<&str>, expected: &str) {
        let seen = container(pod, asked).map_or_else(|e| e.message, str::to_owned);
        assert_eq!(seen, expected);
    }

    #[test]
    fn which_container() {
        let one = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        check(&one, None, "a");
        check(&one, Some("i"), "i");
        check(&one, Some("x"), "container x is not valid for pod p");
        let mut two = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}]}});
        check(
            &two,
            None,
            "a container name must be specified for pod p, choose one of: [a b]",
        );
        two["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] = "b".into();
        check(&two, None, "b");
    }
}
