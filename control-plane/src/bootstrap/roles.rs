//! The roles and bindings every cluster has, cut down from upstream's bootstrap policy to the users
//! this cluster has.

use serde_json::{Value, json};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const ALL: &[&str] = &["*"];
/// Every verb but `bind` and `escalate`, with which roles could be given that their giver lacks.
const EVERY: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// All cluster roles and their bindings.
pub(super) fn objects() -> Vec<Value> {
    let mut all = vec![
        role(
            "cluster-admin",
            vec![
                rule(ALL, ALL, ALL),
                json!({"nonResourceURLs": ["*"], "verbs": ["*"]}),
            ],
        ),
        role(
            "system:discovery",
            vec![json!({
                "nonResourceURLs": [
                    "/", "/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi",
                    "/openapi/*", "/readyz", "/version", "/version/",
                ],
                "verbs": ["get"],
            })],
        ),
        role(
            "system:basic-user",
            vec![
                rule(
                    &["authorization.k8s.io"],
                    &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                    &["create"],
                ),
                rule(
                    &["authentication.k8s.io"],
                    &["selfsubjectreviews"],
                    &["create"],
                ),
            ],
        ),
        role(
            "system:auth-delegator",
            vec![
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(
                    &["authorization.k8s.io"],
                    &["subjectaccessreviews"],
                    &["create"],
                ),
            ],
        ),
        role(
            "system:monitoring",
            vec![json!({
                "nonResourceURLs": ["/healthz", "/livez", "/metrics", "/readyz"],
                "verbs": ["get"],
            })],
        ),
        role("system:node", node()),
        role("system:node-proxier", proxy()),
        role("system:seaway-overlay", overlay()),
        aggregate("admin", "edit", user_admin()),
        aggregate("edit", "view", user_edit()),
        aggregate("view", "", user_view()),
    ];
    all.extend([
        binding("cluster-admin", "cluster-admin", "Group", "system:masters"),
        binding(
            "system:discovery",
            "system:discovery",
            "Group",
            "system:authenticated",
        ),
        binding(
            "system:basic-user",
            "system:basic-user",
            "Group",
            "system:authenticated",
        ),
        binding(
            "system:monitoring",
            "system:monitoring",
            "Group",
            "system:monitoring",
        ),
        binding("system:node", "system:node", "Group", "system:nodes"),
        binding(
            "system:node-proxier",
            "system:node-proxier",
            "User",
            "system:kube-proxy",
        ),
        binding(
            "system:seaway-overlay",
            "system:seaway-overlay",
            "User",
            "system:seaway-overlay",
        ),
    ]);
    all
}

fn node() -> Vec<Value> {
    vec![
        rule(
            &[""],
            &["nodes"],
            &["create", "get", "list", "patch", "update", "watch"],
        ),
        rule(
            &[""],
            &["nodes/status", "pods/status"],
            &["patch", "update"],
        ),
        rule(&[""], &["pods"], &["delete", "get", "list", "watch"]),
        rule(
            &[""],
            &["pods/eviction", "serviceaccounts/token"],
            &["create"],
        ),
        rule(
            &[""],
            &[
                "configmaps",
                "endpoints",
                "namespaces",
                "persistentvolumeclaims",
                "persistentvolumes",
                "secrets",
                "serviceaccounts",
                "services",
            ],
            READ,
        ),
        rule(
            &["", "events.k8s.io"],
            &["events"],
            &["create", "patch", "update"],
        ),
        rule(
            &["coordination.k8s.io"],
            &["leases"],
            &[
                "create", "delete", "get", "list", "patch", "update", "watch",
            ],
        ),
        rule(&["discovery.k8s.io"], &["endpointslices"], READ),
        rule(&["node.k8s.io"], &["runtimeclasses"], READ),
        rule(
            &["storage.k8s.io"],
            &["csidrivers", "csinodes", "volumeattachments"],
            READ,
        ),
        rule(
            &["certificates.k8s.io"],
            &["certificatesigningrequests"],
            &["create", "get", "list", "watch"],
        ),
        rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        rule(
            &["authorization.k8s.io"],
            &["localsubjectaccessreviews", "subjectaccessreviews"],
            &["create"],
        ),
    ]
}

fn proxy() -> Vec<Value> {
    vec![
        rule(
            &[""],
            &["endpoints", "namespaces", "nodes", "pods", "services"],
            READ,
        ),
        rule(&["discovery.k8s.io"], &["endpointslices"], READ),
        rule(
            &["networking.k8s.io"],
            &["networkpolicies", "servicecidrs"],
            READ,
        ),
        rule(
            &["", "events.k8s.io"],
            &["events"],
            &["create", "patch", "update"],
        ),
    ]
}

fn overlay() -> Vec<Value> {
    vec![
        rule(
            &[""],
            &["nodes"],
            &["get", "list", "patch", "update", "watch"],
        ),
        rule(&[""], &["nodes/status"], &["patch", "update"]),
        rule(&[""], &["configmaps", "namespaces", "pods"], READ),
        rule(&["networking.k8s.io"], &["networkpolicies"], READ),
        rule(
            &["", "events.k8s.io"],
            &["events"],
            &["create", "patch", "update"],
        ),
    ]
}

fn user_view() -> Vec<Value> {
    let core = &[
        "bindings",
        "configmaps",
        "endpoints",
        "events",
        "limitranges",
        "namespaces",
        "namespaces/status",
        "persistentvolumeclaims",
        "persistentvolumeclaims/status",
        "pods",
        "pods/log",
        "pods/status",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "replicationcontrollers/status",
        "resourcequotas",
        "resourcequotas/status",
        "serviceaccounts",
        "services",
        "services/status",
    ];
    vec![
        rule(&[""], core, READ),
        rule(
            &[
                "apps",
                "autoscaling",
                "batch",
                "discovery.k8s.io",
                "networking.k8s.io",
                "policy",
            ],
            ALL,
            READ,
        ),
        rule(&["events.k8s.io"], &["events"], READ),
    ]
}

fn user_edit() -> Vec<Value> {
    let core = &[
        "configmaps",
        "endpoints",
        "events",
        "persistentvolumeclaims",
        "pods",
        "pods/attach",
        "pods/eviction",
        "pods/exec",
        "pods/portforward",
        "pods/proxy",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "secrets",
        "serviceaccounts",
        "services",
        "services/proxy",
    ];
    vec![
        rule(&[""], core, WRITE),
        rule(
            &[""],
            &[
                "pods/attach",
                "pods/exec",
                "pods/portforward",
                "pods/proxy",
                "secrets",
                "services/proxy",
            ],
            READ,
        ),
        rule(&[""], &["serviceaccounts"], &["impersonate"]),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
        rule(
            &[
                "apps",
                "autoscaling",
                "batch",
                "networking.k8s.io",
                "policy",
            ],
            ALL,
            WRITE,
        ),
    ]
}

fn user_admin() -> Vec<Value> {
    vec![
        rule(
            &["rbac.authorization.k8s.io"],
            &["rolebindings", "roles"],
            EVERY,
        ),
        rule(
            &["authorization.k8s.io"],
            &["localsubjectaccessreviews"],
            &["create"],
        ),
    ]
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({
        "kind": "ClusterRole",
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "metadata": metadata(name),
        "rules": rules,
    })
}

/// A role people are given: it gathers every role labelled for it, and so contains the lesser one.
fn aggregate(name: &str, lesser: &str, rules: Vec<Value>) -> Value {
    let mut role = role(name, rules);
    let label = |name: &str| format!("rbac.authorization.k8s.io/aggregate-to-{name}");
    role["aggregationRule"] =
        json!({"clusterRoleSelectors": [{"matchLabels": {label(name): "true"}}]});
    let greater = match name {
        "view" => Some("edit"),
        "edit" => Some("admin"),
        _ => None,
    };
    if let Some(greater) = greater {
        role["metadata"]["labels"][label(greater)] = "true".into();
    }
    debug_assert!(lesser != name);
    role
}

fn binding(name: &str, role: &str, kind: &str, subject: &str) -> Value {
    json!({
        "kind": "ClusterRoleBinding",
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "metadata": metadata(name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": subject}],
    })
}
