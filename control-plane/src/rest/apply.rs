//! Server-side apply: the client says what it wants, the server knows who wants what.

use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use schema::apply::{Error, Writer, conflict_status};
use schema::kinds::Kind;
use serde_json::Value;

use super::body::{expect_gvk, settle};
use super::create::{insert, place};
use super::modify::{Part, Subject, modify, part, subject};
use super::object::{from_storage, metadata_mut, text, to_storage};
use super::query::WriteOptions;
use super::read::present;
use crate::app::{App, Call, warn};
use crate::http::body::Body;
use crate::http::error::{ApiError, Result};

/// Handles PATCH with an apply configuration (YAML, of which JSON is a part).
pub async fn apply(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let kind = call.target.kind;
    let options = WriteOptions::parse(&call.query)?;
    let Some(manager) = options.manager.as_deref() else {
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    };
    let mut config: Value = serde_saphyr::from_slice(&call.body)
        .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
    expect_gvk(&mut config, &kind.gvk())?;
    let name = call.target.name();
    let given = text(&config, "/metadata/name");
    if !given.is_empty() && given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    metadata_mut(&mut config).insert("name".to_owned(), name.into());
    let mut warnings: Vec<String> = kind.warning.iter().map(|text| (*text).to_owned()).collect();
    settle(kind, &mut config, &options, Vec::new(), &mut warnings)?;
    let part = part(call);
    let writer = Writer {
        manager,
        subresource: if part == Part::Status { "status" } else { "" },
        now: Timestamp::now(),
    };
    // The fields' owners are worked out here, so the change must not be tracked once more.
    let target = Subject {
        manager: None,
        ..subject(call)
    };
    let change = |old: &Value| {
        schema::apply::apply(kind, Some(old), &config, &writer, options.force)
            .map_err(|error| refusal(kind, name, &error))
    };
    let (object, code) = match modify(app, target, part, options.dry_run, change).await {
        Err(error) if error.code == StatusCode::NOT_FOUND && part == Part::Main => {
            let mut object = schema::apply::apply(kind, None, &config, &writer, options.force)
                .map_err(|error| refusal(kind, name, &error))?;
            place(kind, call.target.namespace.as_deref(), &mut object)?;
            let object = to_storage(kind, object);
            let (object, _) =
                insert(app, &call.user, kind.storage(), object, options.dry_run).await?;
            (from_storage(kind, object), StatusCode::CREATED)
        }
        other => (other?, StatusCode::OK),
    };
    let mut response = present(kind, &object, code, &call.query, &call.head.headers)?;
    warn(&mut response, &warnings);
    Ok(response)
}

fn refusal(kind: &'static Kind, name: &str, error: &Error) -> ApiError {
    match error {
        Error::Malformed(text) => ApiError::bad_request(text.as_str()),
        Error::Conflicts(conflicts) => {
            let status = conflict_status(kind, name, conflicts);
            let message = text(&status, "/message").to_owned();
            let mut refusal = ApiError::new(StatusCode::CONFLICT, "Conflict", message);
            refusal.details = status["details"].as_object().cloned().unwrap_or_default();
            refusal
        }
    }
}
