//! Empties a terminating namespace and lets it go.

use std::collections::BTreeMap;

use http::Method;
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::brain::Answer;
use super::super::call::{Call, CallError, call};
use crate::resources::ResourceInfo;
use crate::view::Remaining;

#[derive(Deserialize)]
struct MetaList {
    #[serde(default)]
    items: Vec<MetaItem>,
}

#[derive(Deserialize)]
struct MetaItem {
    metadata: Meta,
}

#[derive(Deserialize)]
struct Meta {
    name: String,
    #[serde(default)]
    finalizers: Vec<String>,
}

/// Deletes everything in the namespace: pods first, the rest when no pod is left (KEP-5080: what protects pods, as a
/// NetworkPolicy does, must outlive them).
pub(super) async fn empty(client: &Client, resources: &[ResourceInfo], name: &str) -> Remaining {
    let mut remaining = Remaining::default();
    if resources.is_empty() {
        remaining
            .failures
            .push("the resources of the API server are not known".to_owned());
        return remaining;
    }
    let (pods, others): (Vec<_>, Vec<_>) = resources
        .iter()
        .filter(|resource| resource.namespaced && resource.can("list") && resource.can("delete"))
        .partition(|resource| resource.api_version == "v1" && resource.plural == "pods");
    for resource in pods {
        empty_resource(client, resource, name, &mut remaining).await;
    }
    if !remaining.is_empty() {
        return remaining;
    }
    for resource in others {
        empty_resource(client, resource, name, &mut remaining).await;
    }
    remaining
}

async fn empty_resource(
    client: &Client,
    resource: &ResourceInfo,
    namespace: &str,
    remaining: &mut Remaining,
) {
    match try_empty(client, resource, namespace).await {
        Ok(left) if left.is_empty() => {}
        Ok(left) => {
            remaining.objects.insert(resource.qualified(), left.len());
            for finalizer in left.into_iter().flat_map(|item| item.metadata.finalizers) {
                *remaining.finalizers.entry(finalizer).or_insert(0) += 1;
            }
        }
        Err(error) => remaining.failures.push(error.to_string()),
    }
}

async fn try_empty(
    client: &Client,
    resource: &ResourceInfo,
    namespace: &str,
) -> Result<Vec<MetaItem>, CallError> {
    let path = format!(
        "{}/namespaces/{namespace}/{}",
        resource.prefix(),
        resource.plural
    );
    let items = list(client, &path).await?;
    if items.is_empty() {
        return Ok(items);
    }
    let options =
        json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
    if resource.can("deletecollection") {
        call(
            client,
            Call::new(Method::DELETE, &path).body("application/json", &options),
        )
        .await?;
    } else {
        for item in &items {
            let path = format!("{path}/{}", item.metadata.name);
            let deleted = call(
                client,
                Call::new(Method::DELETE, &path).body("application/json", &options),
            )
            .await;
            if let Err(error) = deleted
                && error.code != 404
            {
                return Err(error);
            }
        }
    }
    list(client, &path).await
}

async fn list(client: &Client, path: &str) -> Result<Vec<MetaItem>, CallError> {
    let text = call(client, Call::new(Method::GET, path).metadata_only()).await?;
    let list: MetaList = serde_json::from_str(&text).map_err(|error| CallError {
        method: Method::GET,
        path: path.to_owned(),
        code: 0,
        message: format!("read the list: {error}"),
    })?;
    Ok(list.items)
}

/// Takes the finalizer `kubernetes` out of spec.finalizers; the API server then removes the namespace.
pub(super) async fn finalize(client: &Client, name: &str) -> Result<Answer, CallError> {
    let path = format!("/api/v1/namespaces/{name}");
    let text = match call(client, Call::new(Method::GET, &path)).await {
        Ok(text) => text,
        Err(error) if error.code == 404 => return Ok(Answer::Nothing),
        Err(error) => return Err(error),
    };
    let mut namespace: Value = serde_json::from_str(&text).map_err(|error| CallError {
        method: Method::GET,
        path: path.clone(),
        code: 0,
        message: format!("read the namespace: {error}"),
    })?;
    let kept: Vec<Value> = namespace["spec"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|finalizer| *finalizer != "kubernetes")
        .cloned()
        .collect();
    namespace["spec"]["finalizers"] = Value::Array(kept);
    let uid = namespace["metadata"]["uid"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let finalize = format!("{path}/finalize");
    match call(
        client,
        Call::new(Method::PUT, &finalize).body("application/json", &namespace),
    )
    .await
    {
        Err(error) if error.code != 404 => Err(error),
        // Metadata finalizers may keep it: only the watch tells when it is gone.
        _ => {
            tracing::debug!(namespace = name, uid, "namespace is empty and finalized");
            Ok(Answer::Nothing)
        }
    }
}

/// What is left, as upstream's namespace conditions say it: `pods. has 2 resource instances`.
pub(crate) fn describe(counts: &BTreeMap<String, usize>, verb: &str, what: &str) -> String {
    counts
        .iter()
        .map(|(name, count)| format!("{name} {verb} {count} {what}"))
        .collect::<Vec<_>>()
        .join(", ")
}
