//! From a request body to an object that may be stored: types, unknown fields, canonical form.

use http::HeaderMap;
use schema::kinds::{Gvk, Kind};
use serde_json::Value;

use super::query::{FieldValidation, WriteOptions};
use crate::http::error::{ApiError, Result};
use crate::http::negotiate::{content_type, parse};

/// Reads the body as an object of `kind`. Warnings are for `Warning:` headers.
pub fn object(
    kind: &'static Kind,
    headers: &HeaderMap,
    body: &[u8],
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let mut object = parse(headers, body)?;
    expect_gvk(&mut object, &kind.gvk())?;
    let mut complaints = Vec::new();
    if content_type(headers) == "application/json" {
        complaints.extend(schema::fields::duplicates(body));
    }
    settle(kind, &mut object, options, complaints, warnings)?;
    Ok(object)
}

/// Checks types and unknown fields, then brings the object into the form that is stored.
pub fn settle(
    kind: &'static Kind,
    object: &mut Value,
    options: &WriteOptions,
    mut complaints: Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let refuse = |text: String| {
        ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {text}",
            kind.kind, kind.version, kind.kind
        ))
    };
    schema::fields::check_types(kind, object).map_err(refuse)?;
    complaints.extend(schema::fields::unknown(kind, object));
    match options.validation {
        FieldValidation::Strict if !complaints.is_empty() => {
            return Err(refuse(format!(
                "strict decoding error: {}",
                complaints.join(", ")
            )));
        }
        FieldValidation::Warn => warnings.extend(complaints),
        FieldValidation::Strict | FieldValidation::Ignore => {}
    }
    schema::fields::normalize(kind, object);
    Ok(())
}

/// Refuses an object that says it is something else; fills in what it leaves out.
pub fn expect_gvk(object: &mut Value, expected: &Gvk) -> Result<()> {
    let version = expected.api_version();
    let map = object
        .as_object_mut()
        .ok_or_else(|| ApiError::bad_request("the body is not an object"))?;
    match map.get("apiVersion").and_then(Value::as_str).unwrap_or("") {
        "" => drop(map.insert("apiVersion".to_owned(), version.into())),
        given if given == version => {}
        given => {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({given}) does not match the expected API version ({version})"
            )));
        }
    }
    match map.get("kind").and_then(Value::as_str).unwrap_or("") {
        "" => drop(map.insert("kind".to_owned(), expected.kind.into())),
        given if given == expected.kind => {}
        given => {
            return Err(ApiError::bad_request(format!(
                "the kind in the data ({given}) does not match the expected kind ({})",
                expected.kind
            )));
        }
    }
    Ok(())
}
