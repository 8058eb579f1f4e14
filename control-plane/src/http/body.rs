//! Bodies in and out: limits on the way in, JSON and gzip on the way out.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::Stream;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use serde_json::Value;

use super::error::{ApiError, Result};

/// Largest request body, as kube-apiserver's limit for resource requests.
pub const REQUEST_BYTES_MAX: usize = 3 << 20;
/// Answers below this are not worth compressing, as kube-apiserver's.
const GZIP_BYTES_MIN: usize = 128 << 10;

/// A response body.
pub struct Body(Inner);

enum Inner {
    Full(Full<Bytes>),
    Stream(Pin<Box<dyn http_body::Body<Data = Bytes, Error = std::io::Error> + Send>>),
}

impl Body {
    /// A body that is all there.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self(Inner::Full(Full::new(bytes.into())))
    }

    /// Chunks as they come.
    pub fn stream(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        let frames = futures::StreamExt::map(chunks, |chunk| Ok(Frame::data(chunk)));
        Self(Inner::Stream(Box::pin(StreamBody::new(frames))))
    }

    /// Another body, passed on.
    pub fn relay(
        body: impl http_body::Body<Data = Bytes, Error = std::io::Error> + Send + 'static,
    ) -> Self {
        Self(Inner::Stream(Box::pin(body)))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match &mut self.0 {
            Inner::Full(full) => Pin::new(full)
                .poll_frame(context)
                .map(|frame| frame.map(|result| result.map_err(|never| match never {}))),
            Inner::Stream(stream) => stream.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Full(full) => full.is_end_stream(),
            Inner::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Full(full) => full.size_hint(),
            Inner::Stream(stream) => stream.size_hint(),
        }
    }
}

/// Reads a whole request body.
pub async fn collect<B>(body: B) -> Result<Bytes>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, REQUEST_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {REQUEST_BYTES_MAX}"),
        )),
        Err(error) => Err(ApiError::bad_request(format!(
            "reading the request body: {error}"
        ))),
    }
}

/// Bytes that are JSON already.
pub fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(bytes));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON value.
pub fn json(code: StatusCode, value: &Value) -> Response<Body> {
    json_bytes(code, value.to_string())
}

/// Plain text.
pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = code;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// A refusal.
pub fn failure(error: &ApiError) -> Response<Body> {
    let mut response = json(error.code, &error.to_status());
    if error.details.contains_key("retryAfterSeconds") {
        response
            .headers_mut()
            .insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Compresses a large answer when the client can read that.
pub fn compress(request: &HeaderMap, response: Response<Body>) -> Response<Body> {
    let accepted = request
        .get_all(http::header::ACCEPT_ENCODING)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains("gzip")));
    let (mut parts, body) = response.into_parts();
    let Inner::Full(full) = body.0 else {
        return Response::from_parts(parts, body);
    };
    let size = full.size_hint().exact().unwrap_or(0);
    if !accepted
        || usize::try_from(size).unwrap_or(usize::MAX) < GZIP_BYTES_MIN
        || parts.headers.contains_key(CONTENT_ENCODING)
    {
        return Response::from_parts(parts, Body(Inner::Full(full)));
    }
    let bytes = futures::FutureExt::now_or_never(full.collect())
        .and_then(std::result::Result::ok)
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    let packed = encoder.write_all(&bytes).and_then(|()| encoder.finish());
    match packed {
        Ok(packed) => {
            parts
                .headers
                .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts
                .headers
                .insert(VARY, HeaderValue::from_static("Accept-Encoding"));
            Response::from_parts(parts, Body::full(packed))
        }
        Err(_unlikely) => Response::from_parts(parts, Body::full(bytes)),
    }
}
