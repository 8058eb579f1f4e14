//! Questions that are posted and answered at once: access reviews, token reviews, token requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use schema::kinds::{Kind, kind_by_resource};
use serde_json::{Value, json};

use super::create::timestamp;
use super::object::{key, text, texts};
use crate::app::{App, Call};
use crate::auth::nodes::node_of;
use crate::auth::tokens::{Bound, Reference};
use crate::auth::{Attributes, User, decide};
use crate::http::body::{Body, json as json_response};
use crate::http::error::{ApiError, Result};
use crate::http::negotiate::parse;

/// Shortest and longest life of a token in seconds, as kube-apiserver's.
const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=(1 << 32);
/// Life of a token that does not say.
const TOKEN_SECONDS_DEFAULT: i64 = 3_600;

/// Handles POST of a review.
pub async fn answer(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let kind = call.target.kind;
    let mut review = parse(&call.head.headers, &call.body)?;
    super::body::expect_gvk(&mut review, &kind.gvk())?;
    let status = match kind.kind {
        "SelfSubjectAccessReview" => access(app, &call.user, &review, "").await?,
        "SubjectAccessReview" => access(app, &named_user(&review), &review, "").await?,
        "LocalSubjectAccessReview" => {
            access(app, &named_user(&review), &review, call.target.namespace()).await?
        }
        "SelfSubjectReview" => json!({"userInfo": user_info(&call.user)}),
        "SelfSubjectRulesReview" => rules(app, &call.user, &review).await?,
        "TokenReview" => token_review(app, &review).await,
        _ => return Err(ApiError::method_not_allowed()),
    };
    review["status"] = status;
    review["metadata"]["creationTimestamp"] = Value::Null;
    Ok(json_response(StatusCode::CREATED, &review))
}

fn named_user(review: &Value) -> User {
    let groups = texts(review, "/spec/groups")
        .into_iter()
        .map(str::to_owned)
        .collect();
    let mut user = User::new(text(review, "/spec/user"), Vec::new());
    // The question says which groups count; none is added to it.
    user.groups = groups;
    user
}

async fn access(app: &App, user: &User, review: &Value, namespace: &str) -> Result<Value> {
    let of = |name: &str| text(review, &format!("/spec/resourceAttributes/{name}"));
    let attributes = if review.pointer("/spec/resourceAttributes").is_some() {
        Attributes {
            verb: of("verb"),
            group: of("group"),
            resource: of("resource"),
            subresource: of("subresource"),
            namespace: if namespace.is_empty() {
                of("namespace")
            } else {
                namespace
            },
            name: of("name"),
            path: "",
        }
    } else if review.pointer("/spec/nonResourceAttributes").is_some() {
        Attributes {
            verb: text(review, "/spec/nonResourceAttributes/verb"),
            group: "",
            resource: "",
            subresource: "",
            namespace: "",
            name: "",
            path: text(review, "/spec/nonResourceAttributes/path"),
        }
    } else {
        return Err(ApiError::bad_request(
            "spec: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    };
    Ok(match decide(app, user, &attributes).await? {
        None => json!({"allowed": true}),
        Some(reason) if reason.is_empty() => json!({"allowed": false}),
        Some(reason) => json!({"allowed": false, "reason": reason}),
    })
}

async fn rules(app: &App, user: &User, review: &Value) -> Result<Value> {
    let namespace = text(review, "/spec/namespace");
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let mut rules = app.rbac.rules(&*app.store, user, namespace).await?;
    if user.in_group(crate::auth::MASTERS) {
        rules.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "nonResourceURLs": ["*"]}));
    }
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules {
        let given = |name: &str| rule[name].as_array().is_some_and(|list| !list.is_empty());
        if given("resources") {
            resources.push(json!({
                "verbs": rule["verbs"],
                "apiGroups": rule["apiGroups"],
                "resources": rule["resources"],
                "resourceNames": rule["resourceNames"],
            }));
        }
        if given("nonResourceURLs") {
            paths.push(json!({"verbs": rule["verbs"], "nonResourceURLs": rule["nonResourceURLs"]}));
        }
    }
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        let extra: &BTreeMap<String, Vec<String>> = &user.extra;
        info["extra"] = json!(extra);
    }
    info
}

async fn token_review(app: &App, review: &Value) -> Value {
    let audiences: Vec<String> = texts(review, "/spec/audiences")
        .into_iter()
        .map(str::to_owned)
        .collect();
    let token = text(review, "/spec/token");
    match app
        .tokens
        .authenticate(&*app.store, token, &audiences)
        .await
    {
        Some(user) => {
            json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
        }
        None => json!({"authenticated": false, "error": "invalid bearer token"}),
    }
}

/// Handles POST of `serviceaccounts/NAME/token`.
pub async fn token_request(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let mut request = parse(&call.head.headers, &call.body)?;
    if let Some(sub) = call.target.subresource {
        super::body::expect_gvk(&mut request, &sub.gvk)?;
    }
    let (namespace, name) = (call.target.namespace(), call.target.name());
    let account = read(app, call.target.kind, namespace, name).await?;
    let mut bound = Bound {
        namespace: namespace.to_owned(),
        serviceaccount: reference(&account),
        ..Bound::default()
    };
    let to = request
        .pointer("/spec/boundObjectRef")
        .filter(|to| !to.is_null());
    if let Some(to) = to {
        bind_token(app, call, to, namespace, name, &mut bound).await?;
    } else if let Some(node) = node_of(&call.user) {
        return Err(ApiError::forbidden(
            call.target.kind,
            name,
            &format!("node {node:?} may only request tokens bound to its pods"),
        ));
    }
    let asked = request
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64);
    let seconds = asked.unwrap_or(TOKEN_SECONDS_DEFAULT);
    if !TOKEN_SECONDS.contains(&seconds) {
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!(
                "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: {seconds}: may not specify a duration less than 10 minutes or larger than 2^32 seconds"
            ),
        ));
    }
    let audiences: Vec<String> = texts(&request, "/spec/audiences")
        .into_iter()
        .map(str::to_owned)
        .collect();
    let now = Timestamp::now().as_second();
    let expires = now.saturating_add(seconds);
    let number = |seconds: i64| u64::try_from(seconds).unwrap_or(0);
    let token = app
        .tokens
        .sign(bound, &audiences, number(now), number(expires))?;
    let when = Timestamp::from_second(expires).unwrap_or(Timestamp::MAX);
    request["spec"]["expirationSeconds"] = seconds.into();
    if audiences.is_empty() {
        request["spec"]["audiences"] = json!([crate::auth::tokens::ISSUER]);
    }
    request["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": timestamp(Timestamp::now())});
    request["status"] = json!({"token": token, "expirationTimestamp": timestamp(when)});
    Ok(json_response(StatusCode::CREATED, &request))
}

async fn bind_token(
    app: &App,
    call: &Call,
    to: &Value,
    namespace: &str,
    account: &str,
    bound: &mut Bound,
) -> Result<()> {
    let (plural, name) = match text(to, "/kind") {
        "Pod" => ("pods", text(to, "/name")),
        "Secret" => ("secrets", text(to, "/name")),
        other => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of kind {other:?}"
            )));
        }
    };
    let kind = kind_by_resource("", "v1", plural).ok_or_else(ApiError::no_such_path)?;
    let object = read(app, kind, namespace, name).await?;
    let (asked, own) = (text(to, "/uid"), text(&object, "/metadata/uid"));
    if !asked.is_empty() && asked != own {
        let text = format!(
            "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(kind, name, &text));
    }
    if plural == "secrets" {
        bound.secret = Some(reference(&object));
        return Ok(());
    }
    if text(&object, "/spec/serviceAccountName") != account {
        return Err(ApiError::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        )));
    }
    let node = text(&object, "/spec/nodeName");
    if let Some(own) = node_of(&call.user).filter(|own| *own != node) {
        let text =
            format!("node requested token bound to a pod scheduled on a different node ({own})");
        return Err(ApiError::forbidden(call.target.kind, account, &text));
    }
    bound.pod = Some(reference(&object));
    if let Some(nodes) = kind_by_resource("", "v1", "nodes").filter(|_| !node.is_empty()) {
        bound.node = read(app, nodes, "", node)
            .await
            .ok()
            .map(|node| reference(&node));
    }
    Ok(())
}

async fn read(app: &App, kind: &'static Kind, namespace: &str, name: &str) -> Result<Value> {
    let kv = app.store.get(&key(kind, namespace, name)).await?.0;
    let kv = kv.ok_or_else(|| ApiError::not_found(kind, name))?;
    serde_json::from_slice(&kv.value).map_err(ApiError::internal)
}

fn reference(object: &Value) -> Reference {
    Reference {
        name: text(object, "/metadata/name").to_owned(),
        uid: text(object, "/metadata/uid").to_owned(),
    }
}
