//! get and list.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::{BufMut, BytesMut};
use http::{HeaderMap, Response, StatusCode};
use schema::kinds::Kind;
use serde_json::{Map, Value, json};

use super::filter::Filter;
use super::object::{decode, key, prefix, with_revision, write_with_revision};
use super::query::{ListOptions, Query, RevMatch, revision};
use crate::app::App;
use crate::http::body::{Body, json as json_response, json_bytes};
use crate::http::error::{ApiError, Result};
use crate::http::negotiate::{Form, form};
use crate::http::path::Target;
use crate::store::{Kv, Range, Rev};

/// One object.
pub async fn get(
    app: &App,
    target: &Target,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>> {
    let (kind, name) = (target.kind, target.name());
    let (kv, newest) = app.store.get(&key(kind, target.namespace(), name)).await?;
    if let Some(asked) = revision(query.get("resourceVersion"))?
        && asked > newest
    {
        return Err(ApiError::future_version(asked, newest));
    }
    let kv = kv.ok_or_else(|| ApiError::not_found(kind, name))?;
    if form(headers) == Form::Object && kind.stored_as.is_none() {
        return Ok(json_bytes(
            StatusCode::OK,
            with_revision(&kv.value, kv.mod_rev),
        ));
    }
    let object = decode(kind, &kv.value, kv.mod_rev)?;
    present(kind, &object, StatusCode::OK, query, headers)
}

/// Answers with one object in the form the client wants.
pub fn present(
    kind: &'static Kind,
    object: &Value,
    code: StatusCode,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>> {
    let value = match form(headers) {
        Form::Object => return Ok(json_response(code, object)),
        Form::Metadata => metadata_only(object),
        Form::Table => {
            let mut table = table(kind, std::slice::from_ref(object), query)?;
            table["metadata"] = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            table
        }
    };
    Ok(json_response(code, &value))
}

/// A Table of objects, by the `includeObject` parameter.
pub fn table(kind: &'static Kind, objects: &[Value], query: &Query) -> Result<Value> {
    let include = match query.get("includeObject") {
        None | Some("Metadata") => schema::table::IncludeObject::Metadata,
        Some("None") => schema::table::IncludeObject::None,
        Some("Object") => schema::table::IncludeObject::Object,
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "unrecognized includeObject value: {other:?}"
            )));
        }
    };
    Ok(schema::table::render(
        kind,
        objects,
        include,
        jiff::Timestamp::now(),
    ))
}

/// The PartialObjectMetadata of an object.
pub fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata"),
    })
}

/// What a list found.
pub struct Found {
    /// The objects, sorted by key.
    pub items: Vec<Kv>,
    /// The revision the list shows.
    pub rev: Rev,
    /// Where the next page begins, when there is one.
    pub next: Option<String>,
    /// How many objects follow, when that is known.
    pub remaining: Option<usize>,
}

/// Reads a page of a collection.
pub async fn find(app: &App, target: &Target, options: &ListOptions) -> Result<Found> {
    let filter = Filter::parse(target.kind, options)?;
    let prefix = prefix(target.kind, target.namespace());
    let (after, at) = match &options.continue_token {
        Some(token) => {
            let (after, rev) = read_token(token)?;
            (Some(format!("{prefix}{after}")), Some(rev))
        }
        None => match (options.rev_match, options.rev) {
            (RevMatch::Exact, Some(rev)) if rev > 0 => (None, Some(rev)),
            (_, Some(rev)) if rev > app.store.current_rev() => {
                return Err(ApiError::future_version(rev, app.store.current_rev()));
            }
            _ => (None, None),
        },
    };
    // With a selector the store cannot count, so the whole rest is read and the page cut here.
    let limit = if filter.is_empty() { options.limit } else { 0 };
    let range = Range {
        prefix: &prefix,
        after: after.as_deref(),
        limit,
        at,
    };
    let page = app.store.list(range).await.map_err(|error| {
        let expired = matches!(error, crate::store::Error::Compacted { .. });
        if expired && options.continue_token.is_some() {
            ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. \
                 You must start a new list without the continue parameter.",
            )
        } else {
            error.into()
        }
    })?;
    let mut items = page.items;
    let mut left = page.remaining;
    if !filter.is_empty() {
        items.retain(|kv| filter.matches(&kv.key, &kv.value));
        if options.limit > 0 && items.len() > options.limit {
            left = items.len() - options.limit;
            items.truncate(options.limit);
        }
    }
    let last = items.last().filter(|_| left > 0);
    let next = last.map(|kv| write_token(kv.key.strip_prefix(&prefix).unwrap_or(""), page.rev));
    let remaining = (left > 0 && filter.is_empty()).then_some(left);
    Ok(Found {
        items,
        rev: page.rev,
        next,
        remaining,
    })
}

/// A collection.
pub async fn list(
    app: &App,
    target: &Target,
    options: &ListOptions,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>> {
    let kind = target.kind;
    let found = find(app, target, options).await?;
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), found.rev.to_string().into());
    if let Some(next) = &found.next {
        metadata.insert("continue".to_owned(), next.as_str().into());
    }
    if let Some(remaining) = found.remaining {
        metadata.insert("remainingItemCount".to_owned(), remaining.into());
    }
    if form(headers) == Form::Object && kind.stored_as.is_none() {
        return Ok(json_bytes(
            StatusCode::OK,
            splice(kind, &Value::Object(metadata), &found.items),
        ));
    }
    let mut objects = Vec::with_capacity(found.items.len());
    for kv in &found.items {
        objects.push(decode(kind, &kv.value, kv.mod_rev)?);
    }
    let answer = match form(headers) {
        Form::Table => {
            let mut table = table(kind, &objects, query)?;
            table["metadata"] = Value::Object(metadata);
            table
        }
        Form::Metadata => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": objects.iter().map(metadata_only).collect::<Vec<_>>(),
        }),
        Form::Object => json!({
            "kind": kind.list_kind,
            "apiVersion": kind.api_version(),
            "metadata": metadata,
            "items": objects,
        }),
    };
    Ok(json_response(StatusCode::OK, &answer))
}

fn splice(kind: &Kind, metadata: &Value, items: &[Kv]) -> bytes::Bytes {
    let size: usize = items.iter().map(|kv| kv.value.len() + 48).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        kind.list_kind,
        kind.api_version()
    );
    out.put_slice(head.as_bytes());
    for (index, kv) in items.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        write_with_revision(&mut out, &kv.value, kv.mod_rev);
    }
    out.put_slice(b"]}");
    out.freeze()
}

fn write_token(after: &str, rev: Rev) -> String {
    BASE64.encode(json!({"v": "meta.k8s.io/v1", "rv": rev, "start": after}).to_string())
}

fn read_token(token: &str) -> Result<(String, Rev)> {
    let broken =
        || ApiError::bad_request("continue key is not valid: it was not given by this server");
    let bytes = BASE64.decode(token).ok().ok_or_else(broken)?;
    let token: Value = serde_json::from_slice(&bytes).ok().ok_or_else(broken)?;
    let rev = token["rv"].as_u64().ok_or_else(broken)?;
    Ok((token["start"].as_str().ok_or_else(broken)?.to_owned(), rev))
}
