//! The scale subresource: replicas of whatever has them.

use std::sync::Arc;

use http::{Method, Response, StatusCode};
use serde_json::Value;

use super::body::expect_gvk;
use super::modify::{Part, modify, subject};
use super::object::{decode, key, text};
use super::patch::Patch;
use super::query::WriteOptions;
use crate::app::{App, Call};
use crate::http::body::{Body, json as json_response};
use crate::http::error::{ApiError, Result};
use crate::http::negotiate::parse;

/// Handles GET, PUT and PATCH of `NAME/scale`.
pub async fn answer(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let kind = call.target.kind;
    let (namespace, name) = (call.target.namespace(), call.target.name());
    let object = match call.head.method {
        Method::GET | Method::HEAD => {
            let kv = app.store.get(&key(kind, namespace, name)).await?.0;
            let kv = kv.ok_or_else(|| ApiError::not_found(kind, name))?;
            decode(kind, &kv.value, kv.mod_rev)?
        }
        Method::PUT => {
            let scale = parse(&call.head.headers, &call.body)?;
            write(app, call, |_| Ok(scale.clone())).await?
        }
        Method::PATCH => {
            let patch = Patch::parse(call)?;
            write(app, call, |old| patch.apply(kind, name, old)).await?
        }
        _ => return Err(ApiError::method_not_allowed()),
    };
    Ok(json_response(
        StatusCode::OK,
        &schema::scale::get(kind, &object),
    ))
}

async fn write(
    app: &Arc<App>,
    call: &Call,
    change: impl Fn(&Value) -> Result<Value>,
) -> Result<Value> {
    let kind = call.target.kind;
    let name = call.target.name();
    let options = WriteOptions::parse(&call.query)?;
    let gvk = call.target.subresource.map(|sub| sub.gvk);
    modify(app, subject(call), Part::Main, options.dry_run, |old| {
        let mut scale = change(&schema::scale::get(kind, old))?;
        if let Some(gvk) = &gvk {
            expect_gvk(&mut scale, gvk)?;
        }
        let mut new = old.clone();
        schema::scale::put(&mut new, &scale)
            .map_err(|error| ApiError::invalid(kind, name, &[error]))?;
        let version = text(&scale, "/metadata/resourceVersion");
        if !version.is_empty() {
            new["metadata"]["resourceVersion"] = version.into();
        }
        Ok(new)
    })
    .await
}
