//! Objects through kubectl: apply, watch, create, patch, errors, namespaces, access.

use anyhow::{Context, Result, bail, ensure};
use linux::exec::Exec;
use seaway_tests::cluster::Cluster;
use seaway_tests::wait_until;

use crate::pods::POD_TIMEOUT;

const PAIR: &str = "
apiVersion: v1
kind: ConfigMap
metadata: { name: pair, labels: { app: pair } }
data: { a: \"1\", b: \"2\" }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: pair, labels: { app: pair } }
spec:
  replicas: 1
  selector: { matchLabels: { app: pair } }
  template:
    metadata: { labels: { app: pair } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - { name: a, image: 'seaway.local/sample:1', command: [/bin/rest] }
";

pub(crate) fn apply_and_delete(cluster: &Cluster) -> Result<()> {
    let first = cluster.apply(PAIR)?;
    ensure!(
        first.contains("configmap/pair created") && first.contains("deployment.apps/pair created"),
        "{first}"
    );
    let again = cluster.apply(PAIR)?;
    ensure!(again.matches("unchanged").count() == 2, "{again}");
    let changed = cluster.apply(&PAIR.replace(", b: \"2\"", ", c: \"3\""))?;
    ensure!(changed.contains("configmap/pair configured"), "{changed}");
    let data = cluster.get(&["configmap", "pair"])?["data"].clone();
    ensure!(
        data == serde_json::json!({"a": "1", "c": "3"}),
        "after apply the data is {data}"
    );
    let gone = cluster
        .kubectl_command(&["delete", "-f", "-"])
        .stdin(PAIR)
        .run()?
        .text();
    ensure!(gone.contains("configmap \"pair\" deleted"), "{gone}");
    wait_until(
        "the pods of a deleted deployment to go",
        POD_TIMEOUT,
        || {
            let left = cluster.kubectl(&["get", "pods", "-l", "app=pair", "-o", "name"])?;
            if left.is_empty() {
                Ok(())
            } else {
                bail!("left: {left}")
            }
        },
    )
}

pub(crate) fn watch(cluster: &Cluster) -> Result<()> {
    let log = cluster.dir().join("kubectl-watch.log");
    let args = ["get", "configmaps", "-l", "watched=yes", "-w"];
    let mut watching = cluster.kubectl_daemon(&args, log.clone()).spawn()?;
    // Nobody tells when the watch has begun: until it has seen one, another comes and goes.
    let seen = wait_until("the watch to show it", POD_TIMEOUT, || {
        cluster.kubectl(&["create", "configmap", "seen", "--from-literal=a=1"])?;
        cluster.kubectl(&["label", "configmap", "seen", "watched=yes"])?;
        cluster.kubectl(&["delete", "configmap", "seen"])?;
        let text = std::fs::read_to_string(&log)?;
        ensure!(text.contains("seen"), "the watch showed {text:?}");
        Ok(())
    });
    watching.kill()?;
    watching.wait()?;
    seen
}

pub(crate) fn create(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "made"])?;
    let run = |args: &[&str]| cluster.kubectl(&[&["-n", "made"], args].concat());
    run(&[
        "create",
        "deployment",
        "made",
        "--image=seaway.local/sample:1",
        "--",
        "/bin/rest",
    ])?;
    run(&[
        "create",
        "secret",
        "generic",
        "made",
        "--from-literal=password=abc",
    ])?;
    run(&["create", "serviceaccount", "made"])?;
    run(&[
        "expose",
        "deployment",
        "made",
        "--port=80",
        "--target-port=8080",
    ])?;
    run(&[
        "wait",
        "--for=condition=Available",
        "deployment/made",
        "--timeout=60s",
    ])?;
    let secret = cluster.get(&["secret", "made", "-n", "made"])?;
    ensure!(
        secret["data"]["password"] == "YWJj",
        "the secret holds {}",
        secret["data"]
    );
    cluster.kubectl(&["delete", "namespace", "made"])?;
    Ok(())
}

pub(crate) fn patch_and_select(cluster: &Cluster) -> Result<()> {
    for (name, tier) in [("one", "front"), ("two", "back")] {
        cluster.kubectl(&["create", "configmap", name])?;
        cluster.kubectl(&["label", "configmap", name, &format!("tier={tier}")])?;
    }
    let select =
        |selector: &str| cluster.kubectl(&["get", "configmaps", "-o", "name", "-l", selector]);
    ensure!(
        select("tier in (front)")? == "configmap/one\n",
        "{}",
        select("tier in (front)")?
    );
    ensure!(
        select("tier,tier!=front")? == "configmap/two\n",
        "{}",
        select("tier,tier!=front")?
    );
    let field = cluster.kubectl(&[
        "get",
        "configmaps",
        "-o",
        "name",
        "--field-selector",
        "metadata.name=two",
    ])?;
    ensure!(field == "configmap/two\n", "{field}");
    cluster.kubectl(&["annotate", "configmap", "one", "note=x"])?;
    for (kind, patch) in [
        ("merge", r#"{"data":{"m":"1"}}"#),
        ("json", r#"[{"op":"add","path":"/data/j","value":"2"}]"#),
        ("strategic", r#"{"data":{"s":"3"}}"#),
    ] {
        cluster.kubectl(&["patch", "configmap", "one", "--type", kind, "-p", patch])?;
    }
    let data = cluster.get(&["configmap", "one"])?["data"].clone();
    ensure!(
        data == serde_json::json!({"m": "1", "j": "2", "s": "3"}),
        "patched to {data}"
    );
    cluster.kubectl(&["delete", "configmap", "one", "two"])?;
    Ok(())
}

pub(crate) fn bad_manifests(cluster: &Cluster) -> Result<()> {
    let refused = |manifest: &str, word: &str| -> Result<()> {
        let output = cluster.kubectl_output(&["apply", "-f", "-"], manifest)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && error.contains(word),
            "no {word:?} in {error:?}"
        );
        Ok(())
    };
    refused(
        "{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {ports: [{port: 99999}]}}",
        "spec.ports[0].port",
    )?;
    refused(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: Bad_Name}}",
        "metadata.name",
    )?;
    refused(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: bad}, dat: {a: b}}",
        "unknown field \"dat\"",
    )?;
    refused(
        "{apiVersion: v1, kind: Nothing, metadata: {name: bad}}",
        "no matches for kind",
    )?;
    refused(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: bad}, spec: {selector: {matchLabels: {a: b}}, \
         template: {metadata: {labels: {a: c}}, spec: {containers: [{name: a, image: i}]}}}}",
        "selector",
    )
}

pub(crate) fn namespace(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "gone"])?;
    cluster.apply(&PAIR.replace(
        "metadata: { name: pair,",
        "metadata: { name: pair, namespace: gone,",
    ))?;
    cluster.kubectl(&[
        "wait",
        "-n",
        "gone",
        "--for=condition=Available",
        "deployment/pair",
        "--timeout=60s",
    ])?;
    cluster.kubectl(&["delete", "namespace", "gone"])?;
    let output = cluster.kubectl_output(&["get", "namespace", "gone"], "")?;
    ensure!(!output.status.success(), "the namespace is still there");
    let pods = cluster.kubectl(&["get", "pods", "-A", "-l", "app=pair", "-o", "name"])?;
    ensure!(pods.is_empty(), "pods outlived their namespace: {pods}");
    Ok(())
}

pub(crate) fn anonymous(cluster: &Cluster) -> Result<()> {
    let config = std::fs::read_to_string(cluster.kubeconfig())?;
    let server = config
        .lines()
        .find_map(|l| l.trim().strip_prefix("server:"));
    let server = server
        .context("no server in the kubeconfig")?
        .trim()
        .trim_matches('"')
        .to_owned();
    let status = |path: &str| -> Result<String> {
        let format = ["-sk", "-o", "/dev/null", "-w", "%{http_code}"];
        Ok(Exec::new("curl")
            .args(format)
            .arg(format!("{server}{path}"))
            .run()?
            .text())
    };
    for (path, expect) in [
        ("/readyz", "200"),
        ("/healthz", "200"),
        ("/api/v1/namespaces/default/secrets", "401"),
        ("/api/v1/pods", "401"),
    ] {
        let code = status(path)?;
        ensure!(
            code == expect,
            "{path} without credentials answered {code}, not {expect}"
        );
    }
    Ok(())
}

/// What `dist/kubernetes/seaway-proxy.yaml` is made with: its user writes the API server's address there.
const MANIFEST_VALUES: &str = "proxy.enabled=true,proxy.apiServer.host=192.0.2.10";

/// The chart of the network's programs, and the manifest made of it, as helm and the API server see them.
pub(crate) fn network_chart(cluster: &Cluster) -> Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist");
    let chart = root.join("helm/seaway-network");
    let manifest = std::fs::read_to_string(root.join("kubernetes/seaway-network.yaml"))?;
    let helm = seaway_tests::kubectl()?.with_file_name("helm");
    if !helm.is_file() {
        println!("SKIPPED network_chart: helm is missing; run `cargo xtask setup`");
        return Ok(());
    }
    let helm = |args: &[&str]| Exec::new(&helm).args(args).arg(&chart).run();
    let lint = helm(&["lint", "--strict"])?.text();
    ensure!(lint.contains("0 chart(s) failed"), "{lint}");
    let template = ["template", "seaway-network", "--namespace", "kube-system"];
    let made = helm(&template)?.text();
    ensure!(
        made == manifest,
        "dist/kubernetes/seaway-network.yaml is not the chart's"
    );
    let alone = [
        "--set",
        MANIFEST_VALUES,
        "--show-only",
        "templates/proxy.yaml",
    ];
    ensure!(
        helm(&[&template[..], &alone].concat())?.text()
            == std::fs::read_to_string(root.join("kubernetes/seaway-proxy.yaml"))?,
        "dist/kubernetes/seaway-proxy.yaml is not the chart's"
    );
    let more = "networkPolicy=true,cni.names={loopback},extraArgs={--vni=7}";
    let proxy = "proxy.enabled=true,proxy.apiServer.host=192.0.2.10,proxy.mode=ipvs";
    let with = |values: &str| {
        Ok::<_, anyhow::Error>(helm(&[&template[..], &["--set", values]].concat())?.text())
    };
    let network = [
        "serviceaccount/seaway-network",
        "clusterrole.rbac.authorization.k8s.io/seaway-network",
        "clusterrolebinding.rbac.authorization.k8s.io/seaway-network",
        "daemonset.apps/seaway-network",
    ];
    let both = [
        &network[..],
        &[
            "serviceaccount/seaway-proxy",
            "clusterrolebinding.rbac.authorization.k8s.io/seaway-proxy",
            "daemonset.apps/seaway-proxy",
        ],
    ]
    .concat();
    for (text, objects) in [
        (made, &network[..]),
        (with(more)?, &network[..]),
        (with(proxy)?, &both),
    ] {
        for dry_run in ["--dry-run=server", "--dry-run=client"] {
            let apply = ["apply", dry_run, "-f", "-"];
            let command = cluster.kubectl_command(&apply).stdin(text.as_str());
            let said = command.run()?.text();
            for object in objects {
                ensure!(
                    said.contains(&format!("{object} created")),
                    "{object} is not in {said}"
                );
            }
            ensure!(said.matches("dry run").count() == objects.len(), "{said}");
        }
    }
    let Err(without) = with("proxy.enabled=true") else {
        bail!("a proxy without the API server's address");
    };
    let said = format!("{without:#}");
    ensure!(said.contains("proxy.apiServer.host"), "{said}");
    Ok(())
}
