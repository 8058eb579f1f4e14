//! create: name, identity, defaults, admission, validation, and one transaction.

use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use rand::seq::IndexedRandom;
use schema::kinds::{Kind, kind_by_resource};
use serde_json::Value;

use super::body;
use super::object::{decode, encode, from_storage, key, metadata_mut, text, to_storage};
use super::query::WriteOptions;
use super::read::present;
use crate::admit;
use crate::app::{App, Call, warn};
use crate::auth::User;
use crate::http::body::Body;
use crate::http::error::{ApiError, Result};
use crate::store::{Change, Error, Expect, Op, Rev};

/// Times a create is tried anew because a name, address or port was taken in between.
const ATTEMPTS_MAX: usize = 16;
/// Letters of generated names, as k8s.io/apimachinery/pkg/util/rand.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of the generated part.
const NAME_RANDOM: usize = 5;
/// Longest prefix that is kept of a generateName.
const NAME_PREFIX_MAX: usize = 63 - NAME_RANDOM;

/// Handles a POST to a collection.
pub async fn create(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let kind = call.target.kind;
    let options = WriteOptions::parse(&call.query)?;
    let mut warnings: Vec<String> = kind.warning.iter().map(|text| (*text).to_owned()).collect();
    let mut object = body::object(
        kind,
        &call.head.headers,
        &call.body,
        &options,
        &mut warnings,
    )?;
    place(kind, call.target.namespace.as_deref(), &mut object)?;
    metadata_mut(&mut object).shift_remove("managedFields");
    let object = to_storage(kind, object);
    let (object, _) = insert(app, &call.user, kind.storage(), object, options.dry_run).await?;
    let object = from_storage(kind, object);
    let mut response = present(
        kind,
        &object,
        StatusCode::CREATED,
        &call.query,
        &call.head.headers,
    )?;
    warn(&mut response, &warnings);
    Ok(response)
}

/// Puts the object into the namespace of the path.
pub fn place(kind: &'static Kind, namespace: Option<&str>, object: &mut Value) -> Result<()> {
    let metadata = metadata_mut(object);
    if !kind.namespaced {
        metadata.shift_remove("namespace");
        return Ok(());
    }
    let namespace = namespace.ok_or_else(ApiError::method_not_allowed)?;
    match metadata
        .get("namespace")
        .and_then(Value::as_str)
        .unwrap_or("")
    {
        "" => drop(metadata.insert("namespace".to_owned(), namespace.into())),
        given if given == namespace => {}
        _ => {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    Ok(())
}

/// Admits, checks and stores a new object of a stored kind; returns it with its revision.
pub async fn insert(
    app: &Arc<App>,
    user: &User,
    kind: &'static Kind,
    object: Value,
    dry_run: bool,
) -> Result<(Value, Rev)> {
    if !text(&object, "/metadata/resourceVersion").is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let generated = text(&object, "/metadata/name").is_empty()
        && !text(&object, "/metadata/generateName").is_empty();
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        let mut object = object.clone();
        if generated {
            let prefix = text(&object, "/metadata/generateName").to_owned();
            metadata_mut(&mut object).insert("name".to_owned(), generate_name(&prefix).into());
        }
        identify(&mut object);
        schema::defaults::apply(kind, &mut object);
        schema::strategy::prepare_create(kind, &mut object);
        let mut ops = namespace_check(app, kind, &object).await?;
        ops.extend(admit::create(app, user, kind, &mut object).await?);
        let name = text(&object, "/metadata/name").to_owned();
        let errors = schema::validate::create(kind, &object);
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind, &name, &errors));
        }
        let key = key(kind, text(&object, "/metadata/namespace"), &name);
        let stored = encode(&object);
        ops.insert(0, Op::create(key.clone(), stored.clone()));
        if dry_run {
            return match app.store.get(&key).await?.0 {
                Some(_) => Err(ApiError::already_exists(kind, &name)),
                None => Ok((decode_plain(&stored)?, 0)),
            };
        }
        match app.store.txn(ops).await {
            Ok(rev) => return Ok((decode(kind, &stored, rev)?, rev)),
            Err(Error::Conflict { index: 0, .. }) => {
                last = Some(ApiError::already_exists(kind, &name));
                if !generated {
                    break;
                }
            }
            // The namespace changed, or an address or port was taken: look again.
            Err(Error::Conflict { key, .. }) => {
                last = Some(ApiError::internal(format!("{key} keeps changing")));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.unwrap_or_else(|| ApiError::internal("create was not tried")))
}

fn decode_plain(stored: &[u8]) -> Result<Value> {
    serde_json::from_slice(stored).map_err(ApiError::internal)
}

/// Gives an object its uid and time of birth; takes what only the server may set.
pub fn identify(object: &mut Value) {
    let metadata = metadata_mut(object);
    for name in [
        "selfLink",
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        metadata.shift_remove(name);
    }
    metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert(
        "creationTimestamp".to_owned(),
        timestamp(Timestamp::now()).into(),
    );
}

/// Kubernetes' text of a time: whole seconds, UTC.
pub fn timestamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A name from its beginning.
pub fn generate_name(prefix: &str) -> String {
    let kept: String = prefix.chars().take(NAME_PREFIX_MAX).collect();
    format!("{kept}{}", random_suffix())
}

/// Five random letters.
pub fn random_suffix() -> String {
    let mut rng = rand::rng();
    let letters = (0..NAME_RANDOM).filter_map(|_| NAME_LETTERS.choose(&mut rng));
    letters.map(|letter| char::from(*letter)).collect()
}

/// The namespace must be there and stay until the write is done.
async fn namespace_check(app: &App, kind: &'static Kind, object: &Value) -> Result<Vec<Op>> {
    let namespace = text(object, "/metadata/namespace");
    let Some(namespaces) = kind_by_resource("", "v1", "namespaces").filter(|_| kind.namespaced)
    else {
        return Ok(Vec::new());
    };
    let key = key(namespaces, "", namespace);
    let Some(kv) = app.store.get(&key).await?.0 else {
        return Err(ApiError::not_found(namespaces, namespace));
    };
    let found: Value = serde_json::from_slice(&kv.value).map_err(ApiError::internal)?;
    if !text(&found, "/metadata/deletionTimestamp").is_empty() {
        let name = text(object, "/metadata/name");
        let reason = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut error = ApiError::forbidden(kind, name, &reason);
        let cause = serde_json::json!({
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        });
        error
            .details
            .insert("causes".to_owned(), Value::Array(vec![cause]));
        return Err(error);
    }
    Ok(vec![Op {
        key,
        expect: Expect::ModRev(kv.mod_rev),
        change: Change::Check,
    }])
}
