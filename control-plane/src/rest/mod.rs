//! The generic resource handlers: one for every verb, over every kind.

pub mod apply;
pub mod body;
mod budget;
pub mod create;
pub mod delete;
pub mod filter;
pub mod modify;
pub mod namespaces;
pub mod object;
pub mod patch;
pub mod pods;
pub mod query;
pub mod read;
pub mod reviews;
pub mod scale;
pub mod watch;

use std::sync::Arc;

use http::{Method, Response};

use crate::app::{App, Call};
use crate::http::body::Body;
use crate::http::error::{ApiError, Result};
use crate::streams;
use query::ListOptions;

/// Answers an authorized request for a resource.
pub async fn answer(app: &Arc<App>, call: Call) -> Result<Response<Body>> {
    let target = call.target.clone();
    match target.subresource.map(|sub| sub.name) {
        None => resource(app, call).await,
        Some("log" | "exec" | "attach" | "portforward") => streams::answer(app, call).await,
        Some("binding") => pods::bind(app, &call).await,
        Some("eviction") => pods::evict(app, &call).await,
        Some("token") => reviews::token_request(app, &call).await,
        Some("scale") => scale::answer(app, &call).await,
        Some("finalize") => namespaces::finalize(app, &call).await,
        Some(_) => subresource(app, &call).await,
    }
}

async fn resource(app: &Arc<App>, call: Call) -> Result<Response<Body>> {
    let kind = call.target.kind;
    if !kind.is_stored() {
        return match (kind.group, kind.kind) {
            ("", "Binding") => pods::bind(app, &call).await,
            _ => reviews::answer(app, &call).await,
        };
    }
    match call.verb {
        "get" => read::get(app, &call.target, &call.query, &call.head.headers).await,
        "list" | "watch" => {
            let options = ListOptions::parse(&call.query)?;
            if call.verb == "watch" {
                let headers = &call.head.headers;
                return watch::watch(app, &call.target, &options, &call.query, headers).await;
            }
            read::list(app, &call.target, &options, &call.query, &call.head.headers).await
        }
        "create" => create::create(app, &call).await,
        "update" => modify::update(app, &call).await,
        "patch" => patch::patch(app, &call).await,
        "delete" => delete::delete(app, &call).await,
        "deletecollection" => delete::delete_collection(app, &call).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// `status`, `ephemeralcontainers`, `resize`, `approval`: the same object, another part of it.
async fn subresource(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    match call.head.method {
        Method::GET | Method::HEAD => {
            read::get(app, &call.target, &call.query, &call.head.headers).await
        }
        Method::PUT => modify::update(app, call).await,
        Method::PATCH => patch::patch(app, call).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}
