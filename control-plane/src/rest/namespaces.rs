//! What is special about namespaces: finalize, and those that may not go.

use std::sync::Arc;

use http::{Response, StatusCode};
use schema::kinds::Kind;

use super::modify::{Part, modify, subject};
use super::object::child_mut;
use super::query::WriteOptions;
use super::read::present;
use crate::app::{App, Call};
use crate::http::body::Body;
use crate::http::error::{ApiError, Result};
use crate::http::negotiate::parse;

/// Namespaces that every cluster has.
pub const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Refuses to delete a namespace the cluster needs.
pub fn may_delete(kind: &'static Kind, name: &str) -> Result<()> {
    if kind.kind == "Namespace" && kind.group.is_empty() && IMMORTAL.contains(&name) {
        return Err(ApiError::forbidden(
            kind,
            name,
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}

/// Handles PUT of `namespaces/NAME/finalize`: sets `spec.finalizers`, and removes the namespace when
/// that was the last thing it waited for.
pub async fn finalize(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let options = WriteOptions::parse(&call.query)?;
    let asked = parse(&call.head.headers, &call.body)?;
    let finalizers = asked.pointer("/spec/finalizers").cloned();
    let version = asked.pointer("/metadata/resourceVersion").cloned();
    let object = modify(app, subject(call), Part::Whole, options.dry_run, |old| {
        let mut new = old.clone();
        if let Some(version) = &version {
            new["metadata"]["resourceVersion"] = version.clone();
        }
        let spec = child_mut(&mut new, "spec");
        match &finalizers {
            Some(list) if !list.is_null() => {
                drop(spec.insert("finalizers".to_owned(), list.clone()))
            }
            _ => drop(spec.shift_remove("finalizers")),
        }
        Ok(new)
    })
    .await?;
    present(
        call.target.kind,
        &object,
        StatusCode::OK,
        &call.query,
        &call.head.headers,
    )
}
