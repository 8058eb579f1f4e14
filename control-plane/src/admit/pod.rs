//! Pod admission: priority, service account with its token volume, and the usual tolerations.
//! After upstream's plugins Priority, ServiceAccount and DefaultTolerationSeconds.

use std::sync::Arc;

use schema::kinds::{Kind, kind_by_resource};
use serde_json::{Value, json};

use super::namespace::ROOT_CA;
use crate::app::App;
use crate::auth::User;
use crate::auth::nodes::node_of;
use crate::http::error::{ApiError, Result};
use crate::rest::create::random_suffix;
use crate::rest::object::{child_mut, key, list, prefix, text};
use crate::store::Range;

/// Where containers find their token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Life of the token in the volume: an hour and seven seconds, so that it can be recognised.
const TOKEN_SECONDS: u64 = 3_607;
/// Seconds a pod stays on a node that is not ready.
const TOLERATION_SECONDS: u64 = 300;

/// Completes a new pod.
pub async fn admit(
    app: &Arc<App>,
    user: &User,
    kind: &'static Kind,
    pod: &mut Value,
) -> Result<()> {
    if let Some(node) = node_of(user) {
        let text =
            format!("node {node:?} may not create pods: only mirror pods, which are not served");
        return Err(ApiError::forbidden(kind, text_name(pod), &text));
    }
    priority(app, kind, pod).await?;
    service_account(app, kind, pod).await?;
    tolerate(pod);
    Ok(())
}

fn text_name(pod: &Value) -> &str {
    text(pod, "/metadata/name")
}

async fn priority(app: &App, kind: &'static Kind, pod: &mut Value) -> Result<()> {
    let Some(classes) = kind_by_resource("scheduling.k8s.io", "v1", "priorityclasses") else {
        return Ok(());
    };
    let wanted = text(pod, "/spec/priorityClassName").to_owned();
    let class: Option<Value> = if wanted.is_empty() {
        let prefix = prefix(classes, "");
        let page = app
            .store
            .list(Range {
                prefix: &prefix,
                ..Range::default()
            })
            .await?;
        let all = page
            .items
            .iter()
            .filter_map(|kv| serde_json::from_slice::<Value>(&kv.value).ok());
        all.filter(|class| class["globalDefault"] == true)
            .min_by_key(|class| class["value"].as_i64())
    } else {
        let kv = app.store.get(&key(classes, "", &wanted)).await?.0;
        let missing = || {
            let text = format!("no PriorityClass with name {wanted} was found");
            ApiError::forbidden(kind, text_name(pod), &text)
        };
        let kv = kv.ok_or_else(missing)?;
        Some(serde_json::from_slice(&kv.value).map_err(ApiError::internal)?)
    };
    let spec = child_mut(pod, "spec");
    let (mut value, mut policy) = (0, "PreemptLowerPriority".to_owned());
    if let Some(class) = class {
        value = class["value"].as_i64().unwrap_or(0);
        if let Some(own) = class["preemptionPolicy"].as_str() {
            own.clone_into(&mut policy);
        }
        let name = text(&class, "/metadata/name");
        spec.insert("priorityClassName".to_owned(), name.into());
    }
    spec.insert("priority".to_owned(), value.into());
    spec.insert("preemptionPolicy".to_owned(), policy.into());
    Ok(())
}

async fn service_account(app: &App, kind: &'static Kind, pod: &mut Value) -> Result<()> {
    let Some(accounts) = kind_by_resource("", "v1", "serviceaccounts") else {
        return Ok(());
    };
    let namespace = text(pod, "/metadata/namespace").to_owned();
    let spec = child_mut(pod, "spec");
    let name = match spec
        .get("serviceAccountName")
        .and_then(Value::as_str)
        .unwrap_or("")
    {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    spec.insert("serviceAccountName".to_owned(), name.as_str().into());
    spec.insert("serviceAccount".to_owned(), name.as_str().into());
    let Some(kv) = app.store.get(&key(accounts, &namespace, &name)).await?.0 else {
        let text = format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        );
        return Err(ApiError::forbidden(kind, text_name(pod), &text));
    };
    let account: Value = serde_json::from_slice(&kv.value).map_err(ApiError::internal)?;
    let secrets = list(&account, "/imagePullSecrets");
    if list(pod, "/spec/imagePullSecrets").is_empty() && !secrets.is_empty() {
        pod["spec"]["imagePullSecrets"] = secrets.into();
    }
    let wanted = |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_bool);
    let automount = wanted(pod, "/spec/automountServiceAccountToken")
        .or_else(|| wanted(&account, "/automountServiceAccountToken"))
        .unwrap_or(true);
    if automount {
        mount_token(pod);
    }
    Ok(())
}

/// Adds the token volume to every container that has nothing at its place.
fn mount_token(pod: &mut Value) {
    let name = format!("kube-api-access-{}", random_suffix());
    let mut used = false;
    for field in ["containers", "initContainers"] {
        let containers = pod["spec"].get_mut(field).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mounts = list(container, "/volumeMounts");
            if mounts.iter().any(|mount| mount["mountPath"] == TOKEN_PATH) {
                continue;
            }
            let mut mounts = mounts.to_vec();
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
            container["volumeMounts"] = mounts.into();
            used = true;
        }
    }
    if !used {
        return;
    }
    let mut volumes = list(pod, "/spec/volumes").to_vec();
    volumes.push(json!({
        "name": name,
        "projected": {
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
            "defaultMode": 420,
        },
    }));
    pod["spec"]["volumes"] = volumes.into();
}

/// Lets the pod outlive a short outage of its node.
fn tolerate(pod: &mut Value) {
    let mut tolerations = list(pod, "/spec/tolerations").to_vec();
    for taint in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let covered = tolerations.iter().any(|own| {
            let effect = text(own, "/effect");
            matches!(text(own, "/key"), "") && text(own, "/operator") == "Exists"
                || text(own, "/key") == taint && matches!(effect, "" | "NoExecute")
        });
        if !covered {
            tolerations.push(json!({
                "key": taint,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
    child_mut(pod, "spec").insert("tolerations".to_owned(), tolerations.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_volume_and_tolerations() {
        let mut pod = json!({"spec": {
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"mountPath": TOKEN_PATH, "name": "own"}]}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
        }});
        mount_token(&mut pod);
        tolerate(&mut pod);
        let name = text(&pod, "/spec/volumes/0/name").to_owned();
        assert!(name.starts_with("kube-api-access-"));
        assert_eq!(text(&pod, "/spec/containers/0/volumeMounts/0/name"), name);
        assert_eq!(list(&pod, "/spec/containers/1/volumeMounts").len(), 1);
        assert_eq!(list(&pod, "/spec/tolerations").len(), 2);
        let before = pod.clone();
        tolerate(&mut pod);
        assert_eq!(before, pod);
    }
}
