//! Discovery and OpenAPI: what the server offers. The documents are built by `schema` and kept.

use std::sync::OnceLock;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Response, StatusCode};
use schema::discovery as documents;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::body::{Body, json as json_response, json_bytes};
use crate::app::Settings;

struct Cached {
    body: Bytes,
    etag: String,
}

fn cached(cell: &'static OnceLock<Cached>, build: impl FnOnce() -> Value) -> &'static Cached {
    cell.get_or_init(|| {
        let body = build().to_string();
        let etag = format!("\"{}\"", hex::encode_upper(Sha256::digest(body.as_bytes())));
        Cached {
            body: body.into(),
            etag,
        }
    })
}

/// The document at a path outside the resources, if there is one.
pub fn answer(
    path: &str,
    headers: &HeaderMap,
    aggregated: bool,
    settings: &Settings,
) -> Option<Response<Body>> {
    static CORE: OnceLock<Cached> = OnceLock::new();
    static GROUPS: OnceLock<Cached> = OnceLock::new();
    let path = path
        .strip_suffix('/')
        .filter(|path| !path.is_empty())
        .unwrap_or(path);
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let value = match &segments[..] {
        ["api"] if aggregated => {
            return Some(aggregate(cached(&CORE, documents::aggregated_api), headers));
        }
        ["apis"] if aggregated => {
            return Some(aggregate(
                cached(&GROUPS, documents::aggregated_apis),
                headers,
            ));
        }
        ["api"] => {
            let host = settings.advertise.first().map_or_else(String::new, |ip| {
                std::net::SocketAddr::new(*ip, settings.port).to_string()
            });
            documents::legacy_api_versions(&host)
        }
        ["apis"] => documents::legacy_groups(),
        ["api", version] => documents::legacy_resources("", version)?,
        ["apis", group] => documents::legacy_group(group)?,
        ["apis", group, version] => documents::legacy_resources(group, version)?,
        ["openapi", "v3"] => schema::openapi::index(),
        ["openapi", "v2"] => {
            let mut response = json_bytes(StatusCode::OK, schema::openapi::v2_document());
            let kind = HeaderValue::from_static(schema::openapi::V2_CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            return Some(response);
        }
        ["openapi", "v3", rest @ ..] => return openapi(&rest.join("/"), headers),
        [""] => json!({"paths": [
            "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v3", "/readyz", "/version",
        ]}),
        _ => return None,
    };
    Some(json_response(StatusCode::OK, &value))
}

fn aggregate(document: &Cached, headers: &HeaderMap) -> Response<Body> {
    let mut response = with_etag(&document.body, &document.etag, headers);
    let kind = HeaderValue::from_static(documents::AGGREGATED_CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
        .headers_mut()
        .insert(VARY, HeaderValue::from_static("Accept"));
    response
}

fn openapi(path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let document = schema::openapi::document(path)?;
    let mut response = with_etag(
        &document.body.into(),
        &format!("\"{}\"", document.hash),
        headers,
    );
    // The URL carries the hash, so what it names never changes.
    let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
    response.headers_mut().insert(CACHE_CONTROL, forever);
    if let Ok(when) = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(24 * 365))
    {
        let text = when.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(http::header::EXPIRES, value);
        }
    }
    Some(response)
}

fn with_etag(body: &Bytes, etag: &str, headers: &HeaderMap) -> Response<Body> {
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        == Some(etag);
    let mut response = if known {
        let mut response = Response::new(Body::full(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        json_bytes(StatusCode::OK, body.clone())
    };
    if let Ok(value) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(ETAG, value);
    }
    response
}
