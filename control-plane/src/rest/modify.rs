//! update, and what patch shares with it: read, change, check, write if nobody else did.

use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use schema::apply::Writer;
use schema::kinds::Kind;
use serde_json::Value;

use super::body;
use super::object::{decode, encode, from_storage, key, list, text, to_storage};
use super::query::{WriteOptions, revision};
use super::read::present;
use crate::admit;
use crate::app::{App, Call, warn};
use crate::auth::User;
use crate::http::body::Body;
use crate::http::error::{ApiError, Result};
use crate::store::{Error, Op};

/// Times a change is tried anew because the object changed in between.
const ATTEMPTS_MAX: usize = 64;

/// Which part of the object a request may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The status alone.
    Status,
    /// Everything: the server's own changes, e.g. a binding.
    Whole,
}

/// The object a change is about.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its namespace or an empty string.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Who changes it.
    pub user: &'a User,
    /// Whose fields the changed ones become, for objects under server-side apply.
    pub manager: Option<&'a str>,
}

/// Handles PUT of an object, or of its status.
pub async fn update(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let kind = call.target.kind;
    let options = WriteOptions::parse(&call.query)?;
    let mut warnings = Vec::new();
    let new = body::object(
        kind,
        &call.head.headers,
        &call.body,
        &options,
        &mut warnings,
    )?;
    let (name, given) = (call.target.name(), text(&new, "/metadata/name"));
    if !given.is_empty() && given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let namespace = text(&new, "/metadata/namespace");
    if kind.namespaced && !namespace.is_empty() && namespace != call.target.namespace() {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let object = modify(app, subject(call), part(call), options.dry_run, |_| {
        Ok(new.clone())
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

/// The object a request names.
pub fn subject(call: &Call) -> Subject<'_> {
    Subject {
        kind: call.target.kind,
        namespace: call.target.namespace(),
        name: call.target.name(),
        user: &call.user,
        manager: Some(manager(call)),
    }
}

/// The name under which a client's fields are kept: what it says, or the program it is.
fn manager(call: &Call) -> &str {
    call.query.get("fieldManager").unwrap_or_else(|| {
        let agent = call.head.headers.get(http::header::USER_AGENT);
        let agent = agent.and_then(|agent| agent.to_str().ok()).unwrap_or("");
        match agent.split('/').next().unwrap_or("") {
            "" => "unknown",
            program => program,
        }
    })
}

/// The part a request may change.
pub fn part(call: &Call) -> Part {
    match call.target.subresource.map(|sub| sub.name) {
        Some("status") => Part::Status,
        _ => Part::Main,
    }
}

/// Replaces an object by what `change` makes of it, as often as needed until nobody else wrote in
/// between. A resourceVersion in the result must be the current one. Returns the object as stored.
pub async fn modify(
    app: &Arc<App>,
    subject: Subject<'_>,
    part: Part,
    dry_run: bool,
    mut change: impl FnMut(&Value) -> Result<Value>,
) -> Result<Value> {
    let Subject {
        kind: asked,
        namespace,
        name,
        user,
        manager,
    } = subject;
    let kind = asked.storage();
    let key = key(kind, namespace, name);
    for _ in 0..ATTEMPTS_MAX {
        let kv = app
            .store
            .get(&key)
            .await?
            .0
            .ok_or_else(|| ApiError::not_found(asked, name))?;
        let old = decode(kind, &kv.value, kv.mod_rev)?;
        let mut new = to_storage(asked, change(&from_storage(asked, old.clone()))?);
        check_preconditions(kind, name, &old, &new)?;
        match part {
            Part::Main => {
                schema::defaults::apply(kind, &mut new);
                schema::strategy::prepare_update(kind, &old, &mut new);
            }
            Part::Status => schema::strategy::prepare_status_update(kind, &old, &mut new),
            Part::Whole => {}
        }
        if let Some(manager) = manager {
            let subresource = if part == Part::Status { "status" } else { "" };
            let writer = Writer {
                manager,
                subresource,
                now: Timestamp::now(),
            };
            schema::apply::track_update(kind, &old, &mut new, &writer);
        }
        let mut ops = match part {
            Part::Main => admit::update(app, user, kind, &old, &mut new).await?,
            Part::Status | Part::Whole => Vec::new(),
        };
        if part != Part::Whole {
            let errors = schema::validate::update(kind, &old, &new);
            if !errors.is_empty() {
                return Err(ApiError::invalid(kind, name, &errors));
            }
        }
        let stored = encode(&new);
        let gone = is_done_with(&new);
        if stored == kv.value && !gone {
            return Ok(from_storage(asked, old));
        }
        if gone {
            ops.extend(admit::delete(kind, &new));
            ops.insert(0, Op::delete(key.clone(), kv.mod_rev));
        } else {
            ops.insert(0, Op::replace(key.clone(), kv.mod_rev, stored.clone()));
        }
        if dry_run {
            return Ok(from_storage(asked, new));
        }
        match app.store.txn(ops).await {
            Ok(rev) => return decode(asked, &stored, rev),
            Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::modified(kind, name))
}

fn check_preconditions(kind: &Kind, name: &str, old: &Value, new: &Value) -> Result<()> {
    let given = revision(
        new.pointer("/metadata/resourceVersion")
            .and_then(Value::as_str),
    )?;
    let current = text(old, "/metadata/resourceVersion");
    if given.is_some_and(|given| given > 0 && given.to_string() != current) {
        return Err(ApiError::modified(kind, name));
    }
    let (uid, own) = (text(new, "/metadata/uid"), text(old, "/metadata/uid"));
    if !uid.is_empty() && uid != own {
        let text =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {own}");
        return Err(ApiError::conflict(kind, name, &text));
    }
    Ok(())
}

/// Whether an object that is being deleted waits for nothing any more.
pub fn is_done_with(object: &Value) -> bool {
    let grace = object
        .pointer("/metadata/deletionGracePeriodSeconds")
        .and_then(Value::as_u64);
    let namespace_pending = text(object, "/kind") == "Namespace"
        && text(object, "/apiVersion") == "v1"
        && !list(object, "/spec/finalizers").is_empty();
    !text(object, "/metadata/deletionTimestamp").is_empty()
        && list(object, "/metadata/finalizers").is_empty()
        && grace.unwrap_or(0) == 0
        && !namespace_pending
}
