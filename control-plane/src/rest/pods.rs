//! What is special about pods: binding to a node and eviction.

use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use schema::kinds::{Kind, kind_by_resource};
use serde_json::{Value, json};

use super::budget;
use super::create::timestamp;
use super::delete::{Outcome, remove};
use super::modify::{Part, Subject, modify};
use super::object::{key, list, text};
use super::query::{DeleteOptions, WriteOptions};
use crate::app::{App, Call};
use crate::http::body::{Body, json as json_response};
use crate::http::error::{ApiError, Result};
use crate::http::negotiate::parse;

fn pods() -> Result<&'static Kind> {
    kind_by_resource("", "v1", "pods").ok_or_else(ApiError::no_such_path)
}

fn done(code: StatusCode) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16()});
    json_response(code, &status)
}

/// Handles POST of `pods/NAME/binding` and of a Binding: the scheduler's word.
pub async fn bind(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let options = WriteOptions::parse(&call.query)?;
    let binding = parse(&call.head.headers, &call.body)?;
    let kind = pods()?;
    let name = match call.target.name.as_deref() {
        Some(name) => name,
        None => text(&binding, "/metadata/name"),
    };
    let node = text(&binding, "/target/name");
    if node.is_empty() || !matches!(text(&binding, "/target/kind"), "" | "Node") {
        return Err(ApiError::bad_request(
            "a binding needs a target of kind Node with a name",
        ));
    }
    let uid = text(&binding, "/metadata/uid");
    let pod = Subject {
        kind,
        namespace: call.target.namespace(),
        name,
        user: &call.user,
        manager: None,
    };
    modify(app, pod, Part::Whole, options.dry_run, |old| {
        let refuse = |text: String| Err(ApiError::conflict(kind, name, &text));
        if !text(old, "/metadata/deletionTimestamp").is_empty() {
            return refuse(format!(
                "pod {name} is being deleted, cannot be assigned to a host"
            ));
        }
        let current = text(old, "/spec/nodeName");
        if !current.is_empty() {
            return refuse(format!(
                "pod {name} is already assigned to node {current:?}"
            ));
        }
        if !list(old, "/spec/schedulingGates").is_empty() {
            return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        let mut new = old.clone();
        if !uid.is_empty() {
            new["metadata"]["uid"] = uid.into();
        }
        new["spec"]["nodeName"] = node.into();
        let mut conditions = list(old, "/status/conditions").to_vec();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(json!({
            "type": "PodScheduled",
            "status": "True",
            "lastProbeTime": null,
            "lastTransitionTime": timestamp(Timestamp::now()),
        }));
        new["status"]["conditions"] = conditions.into();
        if let Some(annotations) = binding
            .pointer("/metadata/annotations")
            .and_then(Value::as_object)
        {
            for (key, value) in annotations {
                new["metadata"]["annotations"][key] = value.clone();
            }
        }
        Ok(new)
    })
    .await?;
    Ok(done(StatusCode::CREATED))
}

/// Handles POST of `pods/NAME/eviction`: a delete that respects disruption budgets.
pub async fn evict(app: &Arc<App>, call: &Call) -> Result<Response<Body>> {
    let eviction = parse(&call.head.headers, &call.body)?;
    let kind = pods()?;
    let (namespace, name) = (call.target.namespace(), call.target.name());
    let options = eviction.get("deleteOptions").cloned().unwrap_or_default();
    let mut options = DeleteOptions::parse(&call.query, &options)?;
    options.dry_run |= WriteOptions::parse(&call.query)?.dry_run;
    let kv = app.store.get(&key(kind, namespace, name)).await?.0;
    let kv = kv.ok_or_else(|| ApiError::not_found(kind, name))?;
    let pod: Value = serde_json::from_slice(&kv.value).map_err(ApiError::internal)?;
    let pending =
        text(&pod, "/spec/nodeName").is_empty() || text(&pod, "/status/phase") == "Pending";
    if !pending && matches!(text(&pod, "/status/phase"), "Running") {
        budget::take(app, call, &pod, options.dry_run).await?;
    }
    let subject = Subject {
        kind,
        namespace,
        name,
        user: &call.user,
        manager: None,
    };
    match remove(app, subject, &options).await? {
        Outcome::Gone(_) | Outcome::Marked(_) => Ok(done(StatusCode::CREATED)),
    }
}
