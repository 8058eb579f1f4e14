//! Nobody grants what he does not have: roles hold only rules their author holds, bindings refer
//! only to roles whose rules their author holds. The verbs `escalate` and `bind` lift this.
//! After upstream's pkg/registry/rbac.

use std::sync::Arc;

use schema::kinds::Kind;
use serde_json::Value;

use crate::app::App;
use crate::auth::{Attributes, MASTERS, User, decide};
use crate::http::error::{ApiError, Result};
use crate::rest::object::{list, text, texts};

/// Refuses a role or binding that gives more than the user has.
pub(super) async fn check(
    app: &Arc<App>,
    user: &User,
    kind: &'static Kind,
    object: &Value,
) -> Result<()> {
    if user.in_group(MASTERS) {
        return Ok(());
    }
    let namespace = text(object, "/metadata/namespace");
    let name = text(object, "/metadata/name");
    let binds = kind.kind.ends_with("Binding");
    let (verb, resource, on) = if binds {
        let cluster = text(object, "/roleRef/kind") == "ClusterRole";
        let resource = if cluster { "clusterroles" } else { "roles" };
        ("bind", resource, text(object, "/roleRef/name"))
    } else {
        ("escalate", kind.plural, name)
    };
    let lifted = Attributes {
        verb,
        group: kind.group,
        resource,
        subresource: "",
        namespace,
        name: on,
        path: "",
    };
    if decide(app, user, &lifted).await?.is_none() {
        return Ok(());
    }
    let rules = if binds {
        let role = text(object, "/roleRef/kind");
        app.rbac
            .rules_of_role(&*app.store, namespace, role, on)
            .await?
    } else {
        list(object, "/rules").to_vec()
    };
    let aggregates = !binds
        && object
            .pointer("/aggregationRule")
            .is_some_and(|rule| !rule.is_null());
    if aggregates {
        let text = "only users who may escalate can write roles that aggregate others";
        return Err(ApiError::forbidden(kind, name, text));
    }
    for rule in &rules {
        for asked in parts(rule, namespace) {
            if decide(app, user, &asked).await?.is_some() {
                let text = format!(
                    "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{rule}",
                    user.name, user.groups
                );
                return Err(ApiError::forbidden(kind, name, &text));
            }
        }
    }
    Ok(())
}

/// Every single permission of a rule. A `*` is asked for as such, so only a `*` covers it.
fn parts<'a>(rule: &'a Value, namespace: &'a str) -> Vec<Attributes<'a>> {
    let names = match &texts(rule, "/resourceNames")[..] {
        [] => vec![""],
        names => names.to_vec(),
    };
    let mut all = Vec::new();
    for verb in texts(rule, "/verbs") {
        for path in texts(rule, "/nonResourceURLs") {
            all.push(Attributes {
                verb,
                group: "",
                resource: "",
                subresource: "",
                namespace: "",
                name: "",
                path,
            });
        }
        for group in texts(rule, "/apiGroups") {
            for resource in texts(rule, "/resources") {
                let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                all.extend(names.iter().map(|name| Attributes {
                    verb,
                    group,
                    resource,
                    subresource,
                    namespace,
                    name,
                    path: "",
                }));
            }
        }
    }
    all
}
