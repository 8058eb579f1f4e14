//! Single requests to the API server.

use std::time::Duration;

use http::{Method, Request};
use kube::Client;
use serde_json::Value;

use super::brain::Failure;

/// How long one request may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// One request to the API server.
pub(crate) struct Call<'a> {
    method: Method,
    path: &'a str,
    content_type: &'static str,
    accept: &'static str,
    body: Vec<u8>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            content_type: "",
            accept: "application/json",
            body: Vec::new(),
        }
    }

    pub(crate) fn body(mut self, content_type: &'static str, body: &Value) -> Self {
        self.content_type = content_type;
        self.body = body.to_string().into_bytes();
        self
    }

    /// Asks for metadata only; a server that cannot answers with whole objects, which read the same.
    pub(crate) fn metadata_only(mut self) -> Self {
        self.accept =
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        self
    }
}

/// A request that failed: the method, the path and what the server (or the way to it) said.
#[derive(Debug, thiserror::Error)]
#[error("{method} {path}: {message}")]
pub(crate) struct CallError {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// The HTTP status, 0 when there was no answer.
    pub(crate) code: u16,
    pub(crate) message: String,
}

/// Sends one request and gives the body of a successful answer.
pub(crate) async fn call(client: &Client, call: Call<'_>) -> Result<String, CallError> {
    let fail = |code: u16, message: String| CallError {
        method: call.method.clone(),
        path: call.path.to_owned(),
        code,
        message,
    };
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(call.path)
        .header(http::header::ACCEPT, call.accept);
    if !call.content_type.is_empty() {
        request = request.header(http::header::CONTENT_TYPE, call.content_type);
    }
    let request = request
        .body(call.body)
        .map_err(|error| fail(0, error.to_string()))?;
    match tokio::time::timeout(CALL_TIMEOUT, client.request_text(request)).await {
        Err(_elapsed) => Err(fail(
            0,
            format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
        )),
        Ok(Ok(text)) => Ok(text),
        Ok(Err(kube::Error::Api(status))) => Err(fail(status.code, status.message)),
        Ok(Err(error)) => Err(fail(0, error.to_string())),
    }
}

impl CallError {
    /// The namespace is on its way out: what cannot be made in it need not be.
    pub(super) fn in_terminating_namespace(&self) -> bool {
        self.code == 403 && self.message.contains("because it is being terminated")
    }

    pub(super) fn failure(self) -> Failure {
        Failure {
            benign: self.code == 409 || self.in_terminating_namespace(),
            refused: (400..500).contains(&self.code),
            message: self.to_string(),
        }
    }
}
