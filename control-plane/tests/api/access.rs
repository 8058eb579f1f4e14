//! Who may do what: certificates, tokens, roles, nodes, and nobody.

use control_plane::pki;
use http::Method;
use serde_json::{Value, json};

use crate::common::{Lab, anonymous, call, client, lab};

async fn with_nodes() -> Lab {
    let lab = lab().await;
    let nodes = ["n1", "n2"].map(|name| pki::Node {
        name: name.to_owned(),
        ips: vec!["127.0.0.1".parse().unwrap()],
    });
    let request = pki::Request {
        default_server: "https://127.0.0.1".to_owned(),
        nodes: nodes.to_vec(),
        ..pki::Request::default()
    };
    pki::init(lab.dir.path(), &request).unwrap();
    lab
}

async fn ask(client: &kube::Client, method: &str, path: &str, body: Value) -> (u16, Value) {
    let media = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    call(client, method.parse().unwrap(), path, media, body).await
}

#[tokio::test]
async fn nobody_gets_health_and_nothing_else() {
    let lab = lab().await;
    let nobody = anonymous(&lab.server, None);
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(
            call(&nobody, Method::GET, path, "", Value::Null).await.0,
            200,
            "{path}"
        );
    }
    for path in ["/api", "/api/v1/pods", "/metrics", "/openapi/v3", "/x"] {
        let (code, status) = call(&nobody, Method::GET, path, "", Value::Null).await;
        assert_eq!(
            (code, &status["reason"]),
            (401, &json!("Unauthorized")),
            "{path}"
        );
    }
    let liar = anonymous(&lab.server, Some("not.a.token"));
    assert_eq!(
        call(&liar, Method::GET, "/api", "", Value::Null).await.0,
        401
    );
}

#[tokio::test]
async fn a_service_account_does_what_its_roles_say() {
    let lab = lab().await;
    let token_path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let (code, made) = lab
        .post(token_path, json!({"spec": {"expirationSeconds": 900}}))
        .await;
    assert_eq!(code, 201, "{made}");
    let token = made["status"]["token"].as_str().unwrap();
    let account = anonymous(&lab.server, Some(token));
    let (code, who) = ask(
        &account,
        "POST",
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        json!({}),
    )
    .await;
    let name = "system:serviceaccount:default:default";
    assert_eq!(
        (code, &who["status"]["userInfo"]["username"]),
        (201, &json!(name))
    );
    let pods = "/api/v1/namespaces/default/pods";
    let (code, status) = ask(&account, "GET", pods, Value::Null).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        format!(
            "pods is forbidden: User {name:?} cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        ),
    );
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let (code, bound) = lab.post(bindings, binding).await;
    assert_eq!(code, 201, "{bound}");
    assert_eq!(ask(&account, "GET", pods, Value::Null).await.0, 200);
    assert_eq!(
        ask(&account, "GET", "/api/v1/pods", Value::Null).await.0,
        403
    );
    assert_eq!(
        ask(
            &account,
            "GET",
            "/api/v1/namespaces/default/secrets",
            Value::Null
        )
        .await
        .0,
        403
    );
    let (_, review) = lab
        .post(
            "/apis/authentication.k8s.io/v1/tokenreviews",
            json!({"spec": {"token": token}}),
        )
        .await;
    assert_eq!(review["status"]["authenticated"], true);
    lab.delete(
        "/api/v1/namespaces/default/serviceaccounts/default",
        Value::Null,
    )
    .await;
    assert_eq!(
        ask(&account, "GET", pods, Value::Null).await.0,
        401,
        "the account is gone"
    );
}

#[tokio::test]
async fn access_reviews_tell_beforehand() {
    let lab = lab().await;
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let review = |user: &str, verb: &str| json!({"spec": {"user": user, "resourceAttributes": {"verb": verb, "resource": "nodes"}}});
    let (code, seen) = lab.post(path, review("system:kube-proxy", "watch")).await;
    assert_eq!((code, &seen["status"]["allowed"]), (201, &json!(true)));
    let (_, seen) = lab.post(path, review("system:kube-proxy", "delete")).await;
    assert_eq!(seen["status"]["allowed"], false);
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (_, seen) = lab
        .post(
            path,
            json!({"spec": {"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}}),
        )
        .await;
    assert_eq!(seen["status"]["allowed"], true);
}

#[tokio::test]
async fn a_kubelet_touches_only_its_own() {
    let lab = with_nodes().await;
    let own = client(&lab.dir, &lab.server, "nodes/n1/kubelet.kubeconfig").await;
    let nodes = "/api/v1/nodes";
    for name in ["n1", "n2"] {
        lab.post(nodes, json!({"metadata": {"name": name}})).await;
    }
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(
        ask(&own, "PATCH", &format!("{nodes}/n1"), label.clone())
            .await
            .0,
        200
    );
    assert_eq!(
        ask(&own, "PATCH", &format!("{nodes}/n2"), label).await.0,
        403
    );
    let ready = json!({"status": {"conditions": []}});
    assert_eq!(
        ask(&own, "PATCH", &format!("{nodes}/n1/status"), ready.clone())
            .await
            .0,
        200
    );
    assert_eq!(
        ask(&own, "PATCH", &format!("{nodes}/n2/status"), ready)
            .await
            .0,
        403
    );
    let pods = "/api/v1/namespaces/default/pods";
    for (name, node) in [("p1", "n1"), ("p2", "n2")] {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
        let (code, made) = lab.post(pods, pod).await;
        assert_eq!(code, 201, "{made}");
    }
    let running = json!({"status": {"phase": "Running"}});
    assert_eq!(
        ask(&own, "PATCH", &format!("{pods}/p1/status"), running.clone())
            .await
            .0,
        200
    );
    assert_eq!(
        ask(&own, "PATCH", &format!("{pods}/p2/status"), running)
            .await
            .0,
        403
    );
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
    assert_eq!(ask(&own, "POST", leases, lease("n1")).await.0, 201);
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let bound = |pod: &str| json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod}}});
    assert_eq!(ask(&own, "POST", token, bound("p1")).await.0, 201);
    assert_eq!(ask(&own, "POST", token, bound("p2")).await.0, 403);
    assert_eq!(ask(&own, "POST", token, json!({"spec": {}})).await.0, 403);
    assert_eq!(
        ask(&own, "POST", pods, json!({"metadata": {"name": "x"}}))
            .await
            .0,
        403
    );
    let proxy = client(&lab.dir, &lab.server, "nodes/n1/proxy.kubeconfig").await;
    assert_eq!(
        ask(
            &proxy,
            "GET",
            "/apis/discovery.k8s.io/v1/endpointslices",
            Value::Null
        )
        .await
        .0,
        200
    );
    assert_eq!(
        ask(&proxy, "GET", "/api/v1/secrets", Value::Null).await.0,
        403
    );
    let overlay = client(&lab.dir, &lab.server, "nodes/n1/overlay.kubeconfig").await;
    let note =
        json!({"metadata": {"annotations": {"flannel.alpha.coreos.com/backend-type": "vxlan"}}});
    assert_eq!(
        ask(&overlay, "PATCH", &format!("{nodes}/n1"), note).await.0,
        200
    );
}

#[tokio::test]
async fn impersonation_needs_the_right_to_it() {
    let lab = lab().await;
    let request = http::Request::get("/api/v1/pods")
        .header("impersonate-user", "bob")
        .body(kube::client::Body::empty())
        .unwrap();
    assert_eq!(lab.client.send(request).await.unwrap().status(), 403);
}

#[tokio::test]
async fn nobody_grants_what_he_does_not_have() {
    let lab = lab().await;
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let bind = |name: &str, kind: &str, role: &str| {
        json!({"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]})
    };
    let (code, made) = lab
        .post(
            &format!("{base}/rolebindings"),
            bind("b", "ClusterRole", "admin"),
        )
        .await;
    assert_eq!(code, 201, "{made}");
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let (_, made) = lab.post(path, json!({"spec": {}})).await;
    let account = anonymous(&lab.server, made["status"]["token"].as_str());
    let role = |name: &str, resource: &str| json!({"metadata": {"name": name}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]});
    let roles = format!("{base}/roles");
    assert_eq!(
        ask(&account, "POST", &roles, role("mine", "pods")).await.0,
        201
    );
    let (code, status) = ask(&account, "POST", &roles, role("more", "nodes")).await;
    assert_eq!(code, 403);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("not currently held"),
        "{status}"
    );
    assert_eq!(
        ask(&account, "POST", &roles, role("most", "*")).await.0,
        403
    );
    let bindings = format!("{base}/rolebindings");
    assert_eq!(
        ask(&account, "POST", &bindings, bind("x", "Role", "mine"))
            .await
            .0,
        201
    );
    assert_eq!(
        ask(
            &account,
            "POST",
            &bindings,
            bind("y", "ClusterRole", "view")
        )
        .await
        .0,
        201
    );
    assert_eq!(
        ask(
            &account,
            "POST",
            &bindings,
            bind("z", "ClusterRole", "cluster-admin")
        )
        .await
        .0,
        403
    );
}

#[tokio::test]
async fn a_kubelet_reads_the_secrets_of_its_pods_alone() {
    let lab = with_nodes().await;
    let own = client(&lab.dir, &lab.server, "nodes/n1/kubelet.kubeconfig").await;
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["used", "other"] {
        assert_eq!(
            lab.post(secrets, json!({"metadata": {"name": name}}))
                .await
                .0,
            201
        );
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "secret": {"secretName": "used"}}]}});
    assert_eq!(
        lab.post("/api/v1/namespaces/default/pods", pod).await.0,
        201
    );
    let get = async |path: String| ask(&own, "GET", &path, Value::Null).await.0;
    assert_eq!(get(format!("{secrets}/used")).await, 200);
    assert_eq!(
        get(format!("{secrets}?fieldSelector=metadata.name%3Dused")).await,
        200
    );
    assert_eq!(get(format!("{secrets}/other")).await, 403);
    assert_eq!(
        get(format!("{secrets}?fieldSelector=metadata.name%3Dother")).await,
        403
    );
    assert_eq!(get(secrets.to_owned()).await, 403);
    assert_eq!(get("/api/v1/secrets".to_owned()).await, 403);
    assert_eq!(
        get("/api/v1/namespaces/default/configmaps/kube-root-ca.crt".to_owned()).await,
        200
    );
}
