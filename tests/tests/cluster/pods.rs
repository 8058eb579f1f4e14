//! Pods through kubectl: what is shown, logs, exec, volumes, errors.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use seaway_tests::cluster::Cluster;
use seaway_tests::wait_until;

/// How long a pod may take to come.
pub(crate) const POD_TIMEOUT: Duration = Duration::from_secs(120);

/// Name of one running replica of the sample.
pub(crate) fn a_web_pod(cluster: &Cluster) -> Result<String> {
    let list = cluster.get(&[
        "pods",
        "-l",
        "app=web",
        "--field-selector",
        "status.phase=Running",
    ])?;
    let items = list["items"].as_array().context("items")?;
    let alive = items
        .iter()
        .find(|p| p["metadata"]["deletionTimestamp"].is_null());
    let name = alive.and_then(|p| p["metadata"]["name"].as_str());
    Ok(name.context("no running replica")?.to_owned())
}

pub(crate) fn up_proves_the_sample(cluster: &Cluster) -> Result<()> {
    let facts = cluster
        .said
        .lines()
        .filter(|l| l.trim_start().starts_with("ok "))
        .count();
    ensure!(
        facts >= 14,
        "only {facts} facts were proven:\n{}",
        cluster.said
    );
    ensure!(
        cluster.said.contains("export KUBECONFIG="),
        "no hint how to go on"
    );
    Ok(())
}

pub(crate) fn get_wide(cluster: &Cluster) -> Result<()> {
    // Those on their way out since the proofs of `up` go first.
    let text = wait_until("the replicas to settle", POD_TIMEOUT, || {
        let text = cluster.kubectl(&["get", "pods", "-o", "wide", "-l", "app=web"])?;
        let ready = |line: &&str| line.contains(" 1/1 ") && line.contains(" Running ");
        let rows = text.lines().skip(1);
        ensure!(
            rows.clone().count() == 3 && rows.filter(ready).count() == 3,
            "{text}"
        );
        Ok(text)
    })?;
    let mut lines = text.lines();
    let head: Vec<_> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let expect = ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"];
    ensure!(head.starts_with(&expect), "the header is {head:?}");
    let rows: Vec<Vec<_>> = lines.map(|l| l.split_whitespace().collect()).collect();
    ensure!(
        rows.iter().all(|r| r[1] == "1/1" && r[2] == "Running"),
        "{text}"
    );
    let nodes = cluster.kubectl(&["get", "nodes"])?;
    let ready = nodes
        .lines()
        .filter(|l| l.split_whitespace().nth(1) == Some("Ready"))
        .count();
    ensure!(ready == 3, "{nodes}");
    let ips: BTreeSet<_> = rows
        .iter()
        .map(|r| r.iter().find(|w| w.starts_with("10.244.")))
        .collect();
    ensure!(ips.len() == 3, "{text}");
    Ok(())
}

pub(crate) fn describe(cluster: &Cluster) -> Result<()> {
    let expect = |args: &[&str], words: &[&str]| -> Result<()> {
        let text = cluster.kubectl(args)?;
        for word in words {
            ensure!(
                text.contains(word),
                "{args:?} does not say {word:?}:\n{text}"
            );
        }
        Ok(())
    };
    let pod = a_web_pod(cluster)?;
    expect(
        &["describe", "pod", &pod],
        &[
            "Container ID:",
            "seaway://",
            "Controlled By:  ReplicaSet/web-",
            "Ready",
            "Started",
            "64Mi",
        ],
    )?;
    expect(
        &["describe", "svc", "web"],
        &["10.96.", "30080/TCP", "Endpoints:", ":8080"],
    )?;
    expect(
        &["describe", "node", "node-1"],
        &["Ready", "PodCIDR", "InternalIP", "Non-terminated Pods"],
    )?;
    expect(
        &["describe", "deployment", "web"],
        &["3 desired", "3 available", "RollingUpdate"],
    )
}

pub(crate) fn logs(cluster: &Cluster) -> Result<()> {
    let pod = "talker";
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}}}, spec: {{restartPolicy: Never, containers: [\
         {{name: a, image: 'seaway.local/sample:1', command: [sh, -c, 'for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2']}}]}}}}"
    ))?;
    cluster.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "pod/talker",
        "--timeout=60s",
    ])?;
    let text = cluster.kubectl(&["logs", pod])?;
    ensure!(
        text.contains("line 1\nline 2\nline 3\nline 4\nline 5\n") && text.contains("oops"),
        "{text}"
    );
    let tail = cluster.kubectl(&["logs", pod, "--tail=2"])?;
    ensure!(tail.lines().count() == 2, "--tail=2 gave {tail:?}");
    let stamped = cluster.kubectl(&["logs", pod, "--timestamps", "--tail=1"])?;
    ensure!(stamped.starts_with("20"), "--timestamps gave {stamped:?}");
    // Follows until the pod's end, which is past.
    let followed = cluster.kubectl(&["logs", "-f", pod])?;
    ensure!(followed.contains("line 5"), "-f gave {followed:?}");
    let wrong = cluster.kubectl_output(&["logs", "nobody"], "")?;
    let error = String::from_utf8_lossy(&wrong.stderr).into_owned();
    ensure!(error.contains("pods \"nobody\" not found"), "{error}");
    cluster.kubectl(&["delete", "pod", pod, "--now"])?;
    Ok(())
}

pub(crate) fn exec(cluster: &Cluster) -> Result<()> {
    let pod = a_web_pod(cluster)?;
    let text = cluster.kubectl(&["exec", &pod, "--", "hostname"])?;
    ensure!(text.trim() == pod, "hostname in {pod} is {text:?}");
    let echoed = cluster.kubectl_output(&["exec", "-i", &pod, "--", "cat"], "through stdin\n")?;
    ensure!(
        echoed.text() == "through stdin\n",
        "cat gave {:?}",
        echoed.text()
    );
    let failed = cluster.kubectl_output(
        &["exec", &pod, "--", "sh", "-c", "echo bad >&2; exit 7"],
        "",
    )?;
    ensure!(
        failed.status.code() == Some(7),
        "the exit code is {}",
        failed.status
    );
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    ensure!(error.contains("bad"), "standard error was {error:?}");
    let missing = cluster.kubectl_output(&["exec", &pod, "--", "/no/such/program"], "")?;
    ensure!(!missing.status.success(), "a missing program succeeded");
    Ok(())
}

const FULL_POD: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: settings }
data: { color: blue, "app.conf": "from a config map" }
---
apiVersion: v1
kind: Secret
metadata: { name: hidden }
stringData: { token: "s3cret" }
---
apiVersion: v1
kind: Pod
metadata: { name: full, labels: { app: full } }
spec:
  restartPolicy: Never
  initContainers:
    - name: first
      image: seaway.local/sample:1
      command: [sh, -c, "echo one > /work/order"]
      volumeMounts: [{ name: work, mountPath: /work }]
    - name: second
      image: seaway.local/sample:1
      command: [sh, -c, "echo two >> /work/order"]
      volumeMounts: [{ name: work, mountPath: /work }]
  containers:
    - name: main
      image: seaway.local/sample:1
      command: [sh, -c]
      args:
        - |
          echo order=$(cat /work/order | tr '\n' ' ')
          echo color=$COLOR greeting="$GREETING" pod=$POD_NAME ip=$POD_IP
          echo conf=$(cat /etc/conf/app.conf)
          echo secret=$(cat /etc/hidden/token)
          echo token=$(wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token)
          echo service=$WEB_SERVICE_HOST
      env:
        - name: COLOR
          valueFrom: { configMapKeyRef: { name: settings, key: color } }
        - name: GREETING
          value: "hello $(COLOR) $$(COLOR)"
        - name: POD_NAME
          valueFrom: { fieldRef: { fieldPath: metadata.name } }
        - name: POD_IP
          valueFrom: { fieldRef: { fieldPath: status.podIP } }
      volumeMounts:
        - { name: work, mountPath: /work }
        - { name: conf, mountPath: /etc/conf }
        - { name: hidden, mountPath: /etc/hidden, readOnly: true }
  volumes:
    - { name: work, emptyDir: {} }
    - { name: conf, configMap: { name: settings } }
    - { name: hidden, secret: { secretName: hidden } }
"#;

pub(crate) fn volumes_and_environment(cluster: &Cluster) -> Result<()> {
    cluster.apply(FULL_POD)?;
    cluster.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "pod/full",
        "--timeout=60s",
    ])?;
    let text = cluster.kubectl(&["logs", "full", "-c", "main"])?;
    let status = cluster.get(&["pod", "full"])?;
    let ip = status["status"]["podIP"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    for line in [
        "order=one two",
        &format!("color=blue greeting=hello blue $(COLOR) pod=full ip={ip}"),
        "conf=from a config map",
        "secret=s3cret",
        "service=10.96.",
    ] {
        ensure!(text.contains(line), "no {line:?} in:\n{text}");
    }
    let token = text
        .lines()
        .find_map(|l| l.strip_prefix("token="))
        .context("no token line")?;
    ensure!(
        token.trim().parse::<u32>()? > 100,
        "the service account token has {token} bytes"
    );
    cluster
        .kubectl_command(&["delete", "-f", "-", "--now"])
        .stdin(FULL_POD)
        .run()?;
    Ok(())
}

pub(crate) fn broken_pods(cluster: &Cluster) -> Result<()> {
    let pod = |name: &str, image: &str, command: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [\
             {{name: a, image: '{image}', command: [{command}]}}]}}}}"
        )
    };
    cluster.apply(&pod("no-image", "nowhere.local/none:1", "x"))?;
    cluster.apply(&pod(
        "no-program",
        "seaway.local/sample:1",
        "/no/such/program",
    ))?;
    cluster.apply(&pod("crashes", "seaway.local/sample:1", "sh, -c, 'exit 3'"))?;
    let shows = |name: &str, words: &[&str]| {
        wait_until(&format!("{name} to show {words:?}"), POD_TIMEOUT, || {
            let text = cluster.kubectl(&["get", "pod", name, "--no-headers"])?;
            if words.iter().any(|w| text.contains(w)) {
                return Ok(());
            }
            bail!("it shows {text}")
        })
    };
    shows("no-image", &["ErrImagePull", "ImagePullBackOff"])?;
    shows(
        "no-program",
        &["RunContainerError", "CrashLoopBackOff", "StartError"],
    )?;
    shows("crashes", &["CrashLoopBackOff"])?;
    let code = cluster.get(&["pod", "crashes"])?;
    let last = &code["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"];
    ensure!(last == 3, "the last exit code is {last}");
    cluster.kubectl(&[
        "delete",
        "pod",
        "no-image",
        "no-program",
        "crashes",
        "--now",
    ])?;
    Ok(())
}
