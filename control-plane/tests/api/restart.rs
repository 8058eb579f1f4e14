//! What survives the end of the process: everything that was acknowledged.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::common::start;

#[tokio::test]
async fn objects_addresses_and_keys_survive() {
    let lab = start(tempfile::tempdir().unwrap(), "embedded").await;
    let services = "/api/v1/namespaces/default/services";
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
    for n in 0..5 {
        let body = json!({"metadata": {"name": format!("s{n}")}, "spec": spec});
        assert_eq!(lab.post(services, body).await.0, 201);
    }
    let (_, before) = lab.get(services).await;
    let ca = std::fs::read(lab.dir.path().join("pki/ca.crt")).unwrap();
    let dir = lab.stop().await;

    let lab = start(dir, "embedded").await;
    assert_eq!(
        std::fs::read(lab.dir.path().join("pki/ca.crt")).unwrap(),
        ca
    );
    let (_, after) = lab.get(services).await;
    // The server's own endpoints follow its new port; everything else is as it was.
    assert_eq!(before["items"], after["items"]);
    for n in 5..40 {
        let body = json!({"metadata": {"name": format!("s{n}")}, "spec": spec});
        assert_eq!(lab.post(services, body).await.0, 201);
    }
    let (_, all) = lab.get(services).await;
    let items = all["items"].as_array().unwrap();
    let text = |value: &Value| value.to_string();
    let ips: BTreeSet<String> = items
        .iter()
        .map(|s| text(&s["spec"]["clusterIP"]))
        .collect();
    let ports: BTreeSet<String> = items
        .iter()
        .map(|s| text(&s["spec"]["ports"][0]["nodePort"]))
        .collect();
    assert_eq!((items.len(), ips.len(), ports.len()), (41, 41, 41));
    let old = before["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = lab
        .watch(&format!("{services}?watch=true&resourceVersion={old}"))
        .await;
    let first = watch.next().await.unwrap();
    // Nothing of the history is kept over a restart: either nothing happened, or it is said to be gone.
    assert!(
        first["type"] == "ADDED" || first["object"]["code"] == 410,
        "{first}"
    );
}
