use serde_json::json;

use super::*;
use crate::kind_by_gvk;

#[test]
fn create_drops_status_and_starts_at_generation_1() {
    let pod = kind_by_gvk("", "v1", "Pod").unwrap();
    let mut object = json!({"metadata": {"name": "a", "generation": 7}, "spec": {"containers": []},
        "status": {"phase": "Running"}});
    prepare_create(pod, &mut object);
    assert_eq!(
        object,
        json!({"metadata": {"name": "a", "generation": 1}, "spec": {"containers": []},
            "status": {"phase": "Pending", "qosClass": "BestEffort"}})
    );
    let namespace = kind_by_gvk("", "v1", "Namespace").unwrap();
    let mut object = json!({"metadata": {"name": "a"}});
    prepare_create(namespace, &mut object);
    assert_eq!(object["spec"], json!({"finalizers": ["kubernetes"]}));
    assert_eq!(object["status"], json!({"phase": "Active"}));
}

#[test]
fn generation_follows_the_spec_alone() {
    let kind = kind_by_gvk("apps", "v1", "Deployment").unwrap();
    let old = json!({"metadata": {"name": "a", "uid": "u", "generation": 3}, "spec": {"replicas": 1},
        "status": {"replicas": 1}});
    let mut new = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"replicas": 1},
        "status": {"replicas": 9}});
    prepare_update(kind, &old, &mut new);
    assert_eq!(new["metadata"]["generation"], 3);
    assert_eq!(new["metadata"]["uid"], "u");
    assert_eq!(new["status"], json!({"replicas": 1}));
    new["spec"]["replicas"] = 2.into();
    prepare_update(kind, &old, &mut new);
    assert_eq!(new["metadata"]["generation"], 4);
}

#[test]
fn status_update_keeps_the_spec() {
    let kind = kind_by_gvk("apps", "v1", "Deployment").unwrap();
    let old = json!({"metadata": {"name": "a", "labels": {"l": "1"}}, "spec": {"replicas": 1}});
    let mut new = json!({"metadata": {"name": "a", "resourceVersion": "5"}, "spec": {"replicas": 7},
        "status": {"replicas": 1}});
    prepare_status_update(kind, &old, &mut new);
    assert_eq!(
        new,
        json!({"metadata": {"name": "a", "labels": {"l": "1"}, "resourceVersion": "5"},
            "spec": {"replicas": 1}, "status": {"replicas": 1}})
    );
}

#[test]
fn qos() {
    let class = |resources: Value| qos_class(&json!({"containers": [{"resources": resources}]}));
    assert_eq!(class(json!({})), "BestEffort");
    assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
    let both = json!({"cpu": "1", "memory": "1Gi"});
    assert_eq!(class(json!({"limits": both})), "Guaranteed");
    assert_eq!(
        class(json!({"limits": both, "requests": {"cpu": "500m"}})),
        "Burstable"
    );
}

#[test]
fn a_replaced_service_keeps_what_was_allocated() {
    let kind = kind_by_gvk("", "v1", "Service").unwrap();
    let old = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.5",
        "clusterIPs": ["10.96.0.5", "fd00::5"], "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "PreferDualStack",
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 81, "protocol": "TCP", "nodePort": 30081}]}});
    let mut new = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort",
        "ports": [{"port": 81, "protocol": "TCP"}, {"port": 82, "protocol": "TCP"}]}});
    prepare_update(kind, &old, &mut new);
    assert_eq!(
        new["spec"],
        json!({"type": "NodePort", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd00::5"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"port": 81, "protocol": "TCP", "nodePort": 30081}, {"port": 82, "protocol": "TCP"}]})
    );
    let mut external = json!({"metadata": {"name": "s"}, "spec": {"type": "ExternalName",
        "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "externalName": "e.com",
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
    prepare_update(kind, &old, &mut external);
    assert_eq!(
        external["spec"],
        json!({"type": "ExternalName", "externalName": "e.com", "ports": [{"port": 80, "protocol": "TCP"}]})
    );
}

#[test]
fn a_job_selects_its_own_pods() {
    let kind = kind_by_gvk("batch", "v1", "Job").unwrap();
    let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"manualSelector": false,
        "template": {"metadata": {}, "spec": {}}}});
    prepare_create(kind, &mut job);
    assert_eq!(
        job["spec"]["selector"],
        json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
    );
    assert_eq!(
        job["spec"]["template"]["metadata"]["labels"],
        json!({"batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "j",
            "controller-uid": "u", "job-name": "j"})
    );
    let mut manual =
        json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"manualSelector": true}});
    prepare_create(kind, &mut manual);
    assert!(manual["spec"].get("selector").is_none());
}

#[test]
fn a_pod_status_update_keeps_the_quality_of_service() {
    let kind = kind_by_gvk("", "v1", "Pod").unwrap();
    let old = json!({"metadata": {"name": "a", "uid": "u"}, "spec": {}, "status": {"qosClass": "Burstable"}});
    let mut new = json!({"metadata": {"name": "a", "annotations": {"x": "y"}}, "spec": {"z": 1},
        "status": {"phase": "Running"}});
    prepare_status_update(kind, &old, &mut new);
    assert_eq!(
        new,
        json!({"metadata": {"name": "a", "annotations": {"x": "y"}, "uid": "u"}, "spec": {},
            "status": {"phase": "Running", "qosClass": "Burstable"}})
    );
}

#[test]
fn a_service_that_changes_its_type_drops_what_the_type_does_not_have() {
    let kind = kind_by_gvk("", "v1", "Service").unwrap();
    let old = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.5",
        "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
    let mut new = old.clone();
    new["spec"]["type"] = "ClusterIP".into();
    prepare_update(kind, &old, &mut new);
    assert_eq!(
        new["spec"],
        json!({"type": "ClusterIP", "clusterIP": "10.96.0.5", "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP"}]})
    );
}

#[test]
fn a_node_is_registered_with_its_status() {
    let kind = kind_by_gvk("", "v1", "Node").unwrap();
    let mut node = json!({"metadata": {"name": "n"}, "status": {"capacity": {"cpu": "2"}}});
    prepare_create(kind, &mut node);
    assert_eq!(node["status"], json!({"capacity": {"cpu": "2"}}));
}
