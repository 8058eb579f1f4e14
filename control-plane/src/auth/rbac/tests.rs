//! Rows of who may do what under a small set of roles.

use serde_json::json;

use super::*;
use crate::store::{Memory, Op};

fn store() -> Memory {
    let store = Memory::new();
    let rows = [
        (
            "clusterroles/view",
            json!({"rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]}),
        ),
        (
            "clusterroles/health",
            json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/metrics", "/debug/*"]}]}),
        ),
        (
            "clusterroles/sum",
            json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "sum"}}]}}),
        ),
        (
            "clusterroles/part",
            json!({"metadata": {"labels": {"to": "sum"}}, "rules": [{"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"]}]}),
        ),
        (
            "roles/ns/one",
            json!({"rules": [{"verbs": ["update"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"]}]}),
        ),
        (
            "clusterrolebindings/view",
            json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "Group", "name": "viewers"}]}),
        ),
        (
            "clusterrolebindings/health",
            json!({"roleRef": {"kind": "ClusterRole", "name": "health"}, "subjects": [{"kind": "User", "name": "eve"}]}),
        ),
        (
            "rolebindings/ns/one",
            json!({"roleRef": {"kind": "Role", "name": "one"}, "subjects": [{"kind": "ServiceAccount", "namespace": "ns", "name": "sa"}]}),
        ),
        (
            "rolebindings/ns/sum",
            json!({"roleRef": {"kind": "ClusterRole", "name": "sum"}, "subjects": [{"kind": "User", "name": "eve"}]}),
        ),
    ];
    let ops = rows.map(|(key, value)| Op::create(format!("{PREFIX}{key}"), value.to_string()));
    futures::executor::block_on(store.txn(ops.to_vec())).unwrap();
    store
}

/// `asked` is `verb group|resource|sub namespace|name` or `verb /path`.
#[track_caller]
fn check(user: &str, group: &str, asked: &str, allowed: bool) {
    let parts: Vec<&str> = asked.split(' ').collect();
    let mut attributes = Attributes {
        verb: parts[0],
        group: "",
        resource: "",
        subresource: "",
        namespace: "",
        name: "",
        path: "",
    };
    if parts[1].starts_with('/') {
        attributes.path = parts[1];
    } else {
        let what: Vec<&str> = parts[1].split('|').collect();
        (attributes.group, attributes.resource) = (what[0], what[1]);
        attributes.subresource = what.get(2).unwrap_or(&"");
        (attributes.namespace, attributes.name) = parts[2].split_once('|').unwrap();
    }
    let (rbac, store) = (Rbac::default(), store());
    let user = User::new(user, vec![group.to_owned()]);
    let seen = futures::executor::block_on(rbac.allows(&store, &user, &attributes));
    assert_eq!(seen.unwrap(), allowed, "{user:?} {asked}");
}

#[test]
fn rows() {
    check("x", "viewers", "list |pods ns|", true);
    check("x", "viewers", "list |pods |", true);
    check("x", "viewers", "get |pods|log ns|p", true);
    check("x", "viewers", "get |pods|exec ns|p", false);
    check("x", "viewers", "watch |pods ns|", false);
    check("x", "viewers", "get apps|pods ns|p", false);
    check("x", "others", "list |pods ns|", false);
    check("eve", "-", "get /metrics", true);
    check("eve", "-", "get /debug/x", true);
    check("eve", "-", "get /other", false);
    check("eve", "-", "post /metrics", false);
    check("eve", "-", "patch apps|deployments|scale ns|d", true);
    check("eve", "-", "patch apps|deployments other|d", false);
    check(
        "system:serviceaccount:ns:sa",
        "-",
        "update |configmaps ns|mine",
        true,
    );
    check(
        "system:serviceaccount:ns:sa",
        "-",
        "update |configmaps ns|yours",
        false,
    );
    check(
        "system:serviceaccount:other:sa",
        "-",
        "update |configmaps ns|mine",
        false,
    );
}

#[test]
fn a_binding_counts_for_the_next_request() {
    let (rbac, store) = (Rbac::default(), store());
    let user = User::new("late", vec![]);
    let asked = Attributes {
        verb: "get",
        group: "",
        resource: "pods",
        subresource: "",
        namespace: "ns",
        name: "p",
        path: "",
    };
    let allowed = || futures::executor::block_on(rbac.allows(&store, &user, &asked)).unwrap();
    assert!(!allowed());
    let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "late"}]});
    let key = format!("{PREFIX}rolebindings/ns/late");
    futures::executor::block_on(store.txn(vec![Op::create(key.clone(), binding.to_string())]))
        .unwrap();
    assert!(allowed());
    futures::executor::block_on(store.txn(vec![Op::remove(key)])).unwrap();
    assert!(!allowed());
}
