//! patch: JSON, merge and strategic merge, applied to the newest object.

use std::sync::Arc;

use http::{Response, StatusCode};
use schema::kinds::Kind;
use serde_json::Value;

use super::body::{expect_gvk, settle};
use super::modify::{modify, part, subject};
use super::object::text;
use super::query::WriteOptions;
use super::read::present;
use crate::app::{App, Call, warn};
use crate::http::body::Body;
use crate::http::error::{ApiError, Result};
use crate::http::negotiate::content_type;

/// Media types of the patches served.
const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, \
                        application/strategic-merge-patch+json, application/apply-patch+yaml";

/// A patch as sent.
pub struct Patch {
    form: Form,
    value: Value,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Merge,
    Strategic,
}

impl Patch {
    /// Reads it from a request.
    pub fn parse(call: &Call) -> Result<Self> {
        let form = match content_type(&call.head.headers) {
            "application/json-patch+json" => Form::Json,
            "application/merge-patch+json" => Form::Merge,
            "application/strategic-merge-patch+json" => Form::Strategic,
            _ => return Err(ApiError::unsupported_media_type(ACCEPTED)),
        };
        let value = serde_json::from_slice(&call.body)
            .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
        Ok(Self { form, value })
    }

    /// What the patch makes of `old`.
    pub fn apply(&self, kind: &'static Kind, name: &str, old: &Value) -> Result<Value> {
        let patched = match self.form {
            Form::Json => schema::patch::json_patch(old, &self.value),
            Form::Merge => schema::patch::json_merge(old, &self.value),
            Form::Strategic => schema::patch::strategic_merge(kind, old, &self.value),
        };
        patched.map_err(|error| match error {
            schema::patch::Error::Malformed(text) => ApiError::bad_request(text),
            schema::patch::Error::Rejected(text) => {
                let mut refusal = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", text);
                refusal.details = crate::http::error::details(kind.group, kind.kind, name);
                refusal
            }
        })
    }
}

/// Handles PATCH of an object, or of its status.
pub async fn patch(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let kind = call.target.kind;
    if content_type(&call.head.headers) == "application/apply-patch+yaml" {
        return super::apply::apply(app, call).await;
    }
    let options = WriteOptions::parse(&call.query)?;
    let patch = Patch::parse(call)?;
    let name = call.target.name();
    let mut warnings = Vec::new();
    let object = modify(app, subject(call), part(call), options.dry_run, |old| {
        let mut new = patch.apply(kind, name, old)?;
        expect_gvk(&mut new, &kind.gvk())?;
        if text(&new, "/metadata/name") != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                text(&new, "/metadata/name")
            )));
        }
        warnings.clear();
        settle(kind, &mut new, &options, Vec::new(), &mut warnings)?;
        Ok(new)
    })
    .await?;
    let mut response = present(
        kind,
        &object,
        StatusCode::OK,
        &call.query,
        &call.head.headers,
    )?;
    warn(&mut response, &warnings);
    Ok(response)
}
