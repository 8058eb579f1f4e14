//! What the client wants to read (`Accept`) and what it sent (`Content-Type`).

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use serde_json::Value;

use super::error::{ApiError, Result};

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The objects themselves.
    Object,
    /// Rows for people, `as=Table`.
    Table,
    /// Metadata only, `as=PartialObjectMetadata` or its list.
    Metadata,
}

/// The first form of the Accept header that is served here. JSON answers everything else, also a
/// client that would rather read protobuf.
pub fn form(headers: &HeaderMap) -> Form {
    for value in headers.get_all(ACCEPT) {
        let Ok(value) = value.to_str() else { continue };
        for media in value.split(',') {
            let parameter = |name: &str| {
                media
                    .split(';')
                    .skip(1)
                    .find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
            };
            if media
                .trim()
                .starts_with("application/vnd.kubernetes.protobuf")
            {
                continue;
            }
            match (parameter("as"), parameter("v")) {
                (Some("Table"), Some("v1")) => return Form::Table,
                (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1")) => {
                    return Form::Metadata;
                }
                (Some(_), _) => {}
                (None, _) => return Form::Object,
            }
        }
    }
    Form::Object
}

/// Whether the aggregated discovery document is asked for.
pub fn wants_aggregated_discovery(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value.split(',').any(|media| {
                media.contains("as=APIGroupDiscoveryList")
                    && media.contains("v=v2")
                    && !media.contains("v=v2beta1")
            })
        })
    })
}

/// The media type of the body without its parameters; JSON when the client does not say.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    match value.split(';').next().unwrap_or("").trim() {
        "" => "application/json",
        media => media,
    }
}

/// Reads an object from a request body.
pub fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Value> {
    let broken = |what: &str, error: &dyn std::fmt::Display| {
        ApiError::bad_request(format!("couldn't read the {what} body: {error}"))
    };
    match content_type(headers) {
        "application/json" => serde_json::from_slice(body).map_err(|e| broken("JSON", &e)),
        "application/yaml" => serde_saphyr::from_slice(body).map_err(|e| broken("YAML", &e)),
        "application/vnd.kubernetes.protobuf" => {
            schema::protobuf::decode(body).map_err(|e| broken("protobuf", &e))
        }
        _ => Err(ApiError::unsupported_media_type(
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, expected: Form) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        assert_eq!(form(&headers), expected, "{accept}");
    }

    #[test]
    fn accept_headers() {
        check("*/*", Form::Object);
        check("application/json", Form::Object);
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Form::Object,
        );
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Form::Table,
        );
        check(
            "application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Form::Object,
        );
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Form::Metadata,
        );
        check(
            "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,*/*",
            Form::Metadata,
        );
    }
}
