//! A namespace is born with its default service account and the CA certificate, in one transaction:
//! the first pod never has to wait for them.

use serde_json::{Value, json};

use crate::app::App;
use crate::rest::create::identify;
use crate::rest::object::{encode, key, metadata_mut, text};
use crate::store::{Change, Expect, Op};

/// Name of the ConfigMap with the CA certificate, as upstream's root-ca-cert-publisher.
pub const ROOT_CA: &str = "kube-root-ca.crt";

/// Adds the label every namespace has, and returns the writes for its first objects.
pub fn furnish(app: &App, namespace: &mut Value) -> Vec<Op> {
    let name = text(namespace, "/metadata/name").to_owned();
    let label = "kubernetes.io/metadata.name";
    metadata_mut(namespace)
        .entry("labels")
        .or_insert_with(|| json!({}));
    namespace["metadata"]["labels"][label] = name.as_str().into();
    let account = json!({
        "kind": "ServiceAccount",
        "apiVersion": "v1",
        "metadata": {"name": "default", "namespace": name},
    });
    let ca = json!({
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": {
            "name": ROOT_CA,
            "namespace": name,
            "annotations": {
                "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc.",
            },
        },
        "data": {"ca.crt": app.settings.ca_pem},
    });
    [("serviceaccounts", account), ("configmaps", ca)]
        .into_iter()
        .filter_map(|(plural, mut object)| {
            let kind = schema::kinds::kind_by_resource("", "v1", plural)?;
            identify(&mut object);
            let key = key(kind, &name, text(&object, "/metadata/name"));
            Some(Op {
                key,
                expect: Expect::Any,
                change: Change::Put(encode(&object)),
            })
        })
        .collect()
}
