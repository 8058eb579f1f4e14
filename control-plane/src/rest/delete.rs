//! delete: at once, or by a mark that finalizers and kubelets act upon.

use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use schema::kinds::Kind;
use serde_json::{Map, Value, json};

use super::create::timestamp;
use super::modify::{Subject, is_done_with, subject};
use super::namespaces;
use super::object::{
    decode, encode, from_storage, key, list, metadata_mut, name_of, set_revision, text,
};
use super::query::{DeleteOptions, ListOptions, Propagation};
use super::read::{find, present};
use crate::admit;
use crate::app::{App, Call};
use crate::http::body::{Body, json as json_response};
use crate::http::error::{ApiError, Result};
use crate::http::negotiate::parse;
use crate::store::{Error, Op, Rev};

/// Times a delete is tried anew because the object changed in between.
const ATTEMPTS_MAX: usize = 64;
/// Seconds a pod gets when it does not say, as the default of terminationGracePeriodSeconds.
const POD_GRACE_SECONDS: u64 = 30;
/// Finalizer that makes the garbage collector remove owned objects first.
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer that makes the garbage collector release owned objects.
const ORPHAN: &str = "orphan";

/// What became of an object.
pub enum Outcome {
    /// It is gone; the last state.
    Gone(Value),
    /// It is marked and waits for somebody.
    Marked(Value),
}

/// Handles DELETE of one object.
pub async fn delete(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let kind = call.target.kind;
    let options = options(call)?;
    match remove(app, subject(call), &options).await? {
        Outcome::Gone(object) => Ok(json_response(StatusCode::OK, &success(kind, &object))),
        Outcome::Marked(object) => {
            let object = from_storage(kind, object);
            present(
                kind,
                &object,
                StatusCode::OK,
                &call.query,
                &call.head.headers,
            )
        }
    }
}

/// Handles DELETE of a collection.
pub async fn delete_collection(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let kind = call.target.kind;
    let options = options(call)?;
    let found = find(app, &call.target, &ListOptions::parse(&call.query)?).await?;
    let mut items = Vec::new();
    for kv in &found.items {
        let object = decode(kind.storage(), &kv.value, kv.mod_rev)?;
        let one = Subject {
            kind,
            namespace: text(&object, "/metadata/namespace"),
            name: name_of(&kv.key),
            user: &call.user,
            manager: None,
        };
        match remove(app, one, &options).await {
            Ok(Outcome::Gone(object) | Outcome::Marked(object)) => {
                items.push(from_storage(kind, object));
            }
            Err(error) if error.code == StatusCode::NOT_FOUND => {}
            Err(error) => return Err(error),
        }
    }
    let answer = json!({
        "kind": kind.list_kind,
        "apiVersion": kind.api_version(),
        "metadata": {"resourceVersion": app.store.current_rev().to_string()},
        "items": items,
    });
    Ok(json_response(StatusCode::OK, &answer))
}

fn options(call: &Call) -> Result<DeleteOptions> {
    let body = if call.body.is_empty() {
        Value::Null
    } else {
        parse(&call.head.headers, &call.body)?
    };
    DeleteOptions::parse(&call.query, &body)
}

/// The Status that says an object is gone. kubectl waits for the uid in it.
pub fn success(kind: &Kind, object: &Value) -> Value {
    let mut details = Map::new();
    details.insert("name".to_owned(), text(object, "/metadata/name").into());
    if !kind.group.is_empty() {
        details.insert("group".to_owned(), kind.group.into());
    }
    details.insert("kind".to_owned(), kind.plural.into());
    details.insert("uid".to_owned(), text(object, "/metadata/uid").into());
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// Deletes one object or marks it.
pub async fn remove(
    app: &Arc<App>,
    subject: Subject<'_>,
    options: &DeleteOptions,
) -> Result<Outcome> {
    let Subject {
        kind: asked,
        namespace,
        name,
        ..
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
        check_preconditions(kind, name, &old, kv.mod_rev, options)?;
        namespaces::may_delete(kind, name)?;
        let new = marked(kind, &old, options);
        if is_done_with(&new) {
            let mut ops = admit::delete(kind, &old);
            ops.insert(0, Op::delete(key.clone(), kv.mod_rev));
            match finish(app, ops, options.dry_run).await? {
                Some(rev) => {
                    let mut gone = old;
                    if rev > 0 {
                        set_revision(&mut gone, rev);
                    }
                    return Ok(Outcome::Gone(gone));
                }
                None => continue,
            }
        }
        let stored = encode(&new);
        if stored == kv.value {
            return Ok(Outcome::Marked(old));
        }
        let op = Op::replace(key.clone(), kv.mod_rev, stored.clone());
        match finish(app, vec![op], options.dry_run).await? {
            Some(0) => return Ok(Outcome::Marked(new)),
            Some(rev) => return Ok(Outcome::Marked(decode(kind, &stored, rev)?)),
            None => {}
        }
    }
    Err(ApiError::modified(kind, name))
}

/// Writes; none when somebody else wrote in between, zero when nothing was to be written.
async fn finish(app: &App, ops: Vec<Op>, dry_run: bool) -> Result<Option<Rev>> {
    if dry_run {
        return Ok(Some(0));
    }
    match app.store.txn(ops).await {
        Ok(rev) => Ok(Some(rev)),
        Err(Error::Conflict { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn check_preconditions(
    kind: &Kind,
    name: &str,
    old: &Value,
    rev: Rev,
    options: &DeleteOptions,
) -> Result<()> {
    let own = text(old, "/metadata/uid");
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != own) {
        let text = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({own}). \
             The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(kind, name, &text));
    }
    if let Some(asked) = options.rev.filter(|asked| *asked != rev) {
        let text = format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion \
             in record ({rev}). The object might have been modified"
        );
        return Err(ApiError::conflict(kind, name, &text));
    }
    Ok(())
}

/// The object with the marks of deletion: time, grace and the finalizers of the propagation policy.
fn marked(kind: &Kind, old: &Value, options: &DeleteOptions) -> Value {
    let grace = grace_seconds(kind, old, options);
    let mut new = old.clone();
    let mut finalizers: Vec<Value> = list(old, "/metadata/finalizers").to_vec();
    let set = |finalizers: &mut Vec<Value>, name: &str, wanted: bool| {
        finalizers.retain(|own| own != name);
        if wanted {
            finalizers.push(name.into());
        }
    };
    if let Some(policy) = options.propagation {
        set(
            &mut finalizers,
            FOREGROUND,
            policy == Propagation::Foreground,
        );
        set(&mut finalizers, ORPHAN, policy == Propagation::Orphan);
    }
    let running = text(old, "/metadata/deletionTimestamp");
    let left = old
        .pointer("/metadata/deletionGracePeriodSeconds")
        .and_then(Value::as_u64);
    let metadata = metadata_mut(&mut new);
    if finalizers.is_empty() {
        metadata.shift_remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
    // A second delete may only shorten the time that is left.
    if running.is_empty() || left.is_some_and(|left| grace < left) {
        let seconds = i64::try_from(grace).unwrap_or(i64::MAX);
        let when = Timestamp::now()
            .checked_add(SignedDuration::from_secs(seconds))
            .unwrap_or(Timestamp::MAX);
        metadata.insert("deletionTimestamp".to_owned(), timestamp(when).into());
        metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        if let Some(generation) = metadata.get("generation").and_then(Value::as_u64) {
            metadata.insert("generation".to_owned(), (generation + 1).into());
        }
    }
    if kind.kind == "Namespace" && kind.group.is_empty() {
        new["status"]["phase"] = "Terminating".into();
    }
    new
}

/// How long the object may still live. Only pods on a node that are not finished get any time.
fn grace_seconds(kind: &Kind, old: &Value, options: &DeleteOptions) -> u64 {
    let pod = kind.kind == "Pod" && kind.group.is_empty();
    let finished = matches!(text(old, "/status/phase"), "Succeeded" | "Failed");
    if !pod || finished || text(old, "/spec/nodeName").is_empty() {
        return 0;
    }
    let own = old
        .pointer("/spec/terminationGracePeriodSeconds")
        .and_then(Value::as_u64);
    options.grace_seconds.or(own).unwrap_or(POD_GRACE_SECONDS)
}
