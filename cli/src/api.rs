//! Talking to the cluster's API server: readiness, manifests, exec into pods.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ApiResource, AttachParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Config};
use linux::exec::{Exec, which};
use linux::patience::scaled;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncReadExt;

/// The name under which `seaway up` writes fields.
const FIELD_MANAGER: &str = "seaway";
/// Pause between two attempts to reach a server that is starting.
const READY_PAUSE: Duration = Duration::from_millis(10);
/// Longest run of a command in a pod.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);
/// One `kubectl apply`.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// A client for the kubeconfig at `path`.
pub(crate) async fn connect(path: &Path) -> Result<Client> {
    let kubeconfig =
        Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Waits until the API server says that it is ready.
pub(crate) async fn wait_ready(client: &Client, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let request = http_get("/readyz")?;
        match client.request_text(request).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("the API server did not become ready");
            }
            Err(_) => tokio::time::sleep(READY_PAUSE).await,
        }
    }
}

/// Waits until `count` nodes are Ready.
pub(crate) async fn wait_nodes(client: &Client, count: usize, timeout: Duration) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let deadline = Instant::now() + timeout;
    loop {
        let nodes = api.list(&ListParams::default()).await?;
        let is_ready = |node: &&Node| {
            let conditions = node
                .status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten());
            conditions
                .into_iter()
                .any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let ready = nodes.items.iter().filter(is_ready).count();
        if ready >= count {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{ready} of {count} nodes are Ready; see the logs of kubelet and overlay");
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

/// Applies YAML documents: with the kubectl on `$PATH` where there is one, otherwise ourselves.
/// Returns who did it.
pub(crate) async fn apply(
    client: &Client,
    kubeconfig: &Path,
    manifests: &[&str],
) -> Result<&'static str> {
    let text = manifests.join("\n---\n");
    if let Some(kubectl) = which("kubectl") {
        let mut exec = Exec::new(kubectl).arg("--kubeconfig").arg(kubeconfig);
        exec = exec
            .args(["apply", "-f", "-"])
            .stdin(text)
            .timeout(scaled(APPLY_TIMEOUT));
        tokio::task::spawn_blocking(move || exec.run())
            .await?
            .context("kubectl apply")?;
        return Ok("kubectl");
    }
    for object in parse(&text)? {
        apply_one(client, &object).await?;
    }
    Ok("the API")
}

/// The objects of a YAML text, in order.
pub(crate) fn parse(text: &str) -> Result<Vec<DynamicObject>> {
    let mut objects = Vec::new();
    for (i, document) in text.split("\n---").enumerate() {
        let bare = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
        if document.lines().all(bare) {
            continue;
        }
        let value: Value = serde_saphyr::from_str(document)
            .with_context(|| format!("document {} of the manifest", i + 1))?;
        let object = DynamicObject::deserialize(value)
            .with_context(|| format!("document {} of the manifest", i + 1))?;
        objects.push(object);
    }
    Ok(objects)
}

/// Creates an object, or merges it into the one that is there.
async fn apply_one(client: &Client, object: &DynamicObject) -> Result<()> {
    let types = object
        .types
        .clone()
        .context("a manifest without apiVersion and kind")?;
    let (group, version) = match types.api_version.split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", types.api_version.as_str()),
    };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &types.kind));
    let name = object
        .metadata
        .name
        .clone()
        .context("metadata.name is missing")?;
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let what = || format!("apply {} {name}", types.kind);
    match api.get_opt(&name).await.with_context(what)? {
        None => {
            let params = kube::api::PostParams {
                field_manager: Some(FIELD_MANAGER.into()),
                ..Default::default()
            };
            api.create(&params, object).await.with_context(what)?;
        }
        Some(_) => {
            let params = PatchParams::apply(FIELD_MANAGER);
            api.patch(&name, &params, &Patch::Merge(object))
                .await
                .with_context(what)?;
        }
    }
    Ok(())
}

/// Runs a command in a pod's first container and returns its standard output.
///
/// # Errors
/// The command cannot be started, fails, or takes too long.
pub(crate) async fn exec(
    client: &Client,
    namespace: &str,
    pod: &str,
    argv: &[&str],
) -> Result<String> {
    let what = format!("exec in pod {pod}: {}", argv.join(" "));
    let run = async {
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let params = AttachParams::default().stdout(true).stderr(true);
        let mut process = api.exec(pod, argv.to_vec(), &params).await?;
        let status = process.take_status().context("no status channel")?;
        let mut stdout = process.stdout().context("no stdout channel")?;
        let mut stderr = process.stderr().context("no stderr channel")?;
        let (mut out, mut err) = (String::new(), String::new());
        let (read_out, read_err) = tokio::join!(
            stdout.read_to_string(&mut out),
            stderr.read_to_string(&mut err)
        );
        read_out?;
        read_err?;
        match status.await {
            Some(status) if status.status.as_deref() == Some("Success") => Ok(out),
            Some(status) => {
                bail!(
                    "{}: {}{}",
                    status.message.unwrap_or_default(),
                    out.trim(),
                    err.trim()
                )
            }
            None => bail!("the connection broke"),
        }
    };
    match tokio::time::timeout(scaled(EXEC_TIMEOUT), run).await {
        Ok(result) => result.context(what),
        Err(_) => bail!("{what}: no end after {} s", scaled(EXEC_TIMEOUT).as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_parse_into_objects() {
        let kinds = |text: &str| -> Vec<String> {
            parse(text)
                .unwrap()
                .into_iter()
                .map(|o| o.types.unwrap().kind)
                .collect()
        };
        let sample = include_str!("../manifests/sample.yaml");
        assert_eq!(
            kinds(sample),
            ["Deployment", "Service", "Service", "Service", "Pod"]
        );
        assert_eq!(kinds(include_str!("../manifests/system.yaml")), ["Service"]);
    }

    #[test]
    fn a_broken_document_is_named() {
        let error = parse("kind: A\napiVersion: v1\n---\n: [").unwrap_err();
        assert!(
            format!("{error:#}").starts_with("document 2 of the manifest"),
            "{error:#}"
        );
    }
}
