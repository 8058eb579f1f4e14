//! Admission: what the server adds to objects, or holds against them, beyond their own fields.
//!
//! Each function may return further steps for the transaction that writes the object, so that an
//! address is taken, or a namespace furnished, in the very moment the object appears.

pub mod allocate;
mod families;
mod grants;
pub mod namespace;
pub mod pod;
pub mod service;

use std::sync::Arc;

use schema::kinds::Kind;
use serde_json::Value;

use crate::app::App;
use crate::auth::User;
use crate::http::error::Result;
use crate::store::Op;

/// Completes a new object.
pub async fn create(
    app: &Arc<App>,
    user: &User,
    kind: &'static Kind,
    object: &mut Value,
) -> Result<Vec<Op>> {
    match (kind.group, kind.kind) {
        ("", "Pod") => pod::admit(app, user, kind, object)
            .await
            .map(|()| Vec::new()),
        ("", "Service") => service::admit(app, kind, None, object).await,
        ("", "Namespace") => Ok(namespace::furnish(app, object)),
        ("rbac.authorization.k8s.io", _) => grants::check(app, user, kind, object)
            .await
            .map(|()| Vec::new()),
        _ => Ok(Vec::new()),
    }
}

/// Completes a changed object.
pub async fn update(
    app: &Arc<App>,
    user: &User,
    kind: &'static Kind,
    old: &Value,
    new: &mut Value,
) -> Result<Vec<Op>> {
    match (kind.group, kind.kind) {
        ("", "Service") => service::admit(app, kind, Some(old), new).await,
        ("rbac.authorization.k8s.io", _) => grants::check(app, user, kind, new)
            .await
            .map(|()| Vec::new()),
        _ => Ok(Vec::new()),
    }
}

/// What goes with a deleted object.
pub fn delete(kind: &Kind, object: &Value) -> Vec<Op> {
    match (kind.group, kind.kind) {
        ("", "Service") => service::release(object),
        _ => Vec::new(),
    }
}
