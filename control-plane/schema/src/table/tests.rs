use serde_json::{Value, json};

use super::*;
use crate::{kind_of, kinds};

const NOW: &str = "2026-01-02T00:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// The cells of an object as one line, `|` between them.
#[track_caller]
fn line(object: &Value) -> String {
    let kind = kind_of(object).unwrap();
    let row = row(kind, object, IncludeObject::None, now());
    let cells = row["cells"].as_array().unwrap();
    assert_eq!(
        cells.len(),
        columns(kind).len(),
        "cells and columns of {}",
        kind.kind
    );
    let text = |cell: &Value| match cell {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    cells.iter().map(text).collect::<Vec<_>>().join("|")
}

#[track_caller]
fn check(object: Value, expected: &str) {
    assert_eq!(line(&object), expected);
}

#[test]
fn every_kind_has_as_many_cells_as_columns() {
    for kind in kinds() {
        let object = json!({"apiVersion": kind.api_version(), "kind": kind.kind});
        line(&object);
    }
}

#[test]
fn durations() {
    let rows = [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (599, "9m59s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (8 * 3600, "8h"),
        (47 * 3600, "47h"),
        (48 * 3600, "2d"),
        (49 * 3600, "2d1h"),
        (8 * 86_400, "8d"),
        (400 * 86_400, "400d"),
        (730 * 86_400, "2y"),
        (731 * 86_400, "2y1d"),
        (9 * 365 * 86_400, "9y"),
    ];
    for (seconds, expected) in rows {
        assert_eq!(human_duration(seconds), expected, "{seconds}");
    }
}

fn pod(spec: Value, status: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "status": status,
        "metadata": {"name": "p", "creationTimestamp": "2026-01-01T23:59:00Z"}})
}

fn running(ready: bool) -> Value {
    json!({"ready": ready, "restartCount": 0, "state": {"running": {}}})
}

#[test]
fn pods() {
    let one = json!({"containers": [{"name": "a"}], "nodeName": "n1"});
    check(
        pod(
            one.clone(),
            json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}],
            "containerStatuses": [running(true)]}),
        ),
        "p|1/1|Running|0|60s|10.0.0.1|n1|<none>|<none>",
    );
    check(
        pod(
            json!({"containers": [{"name": "a"}]}),
            json!({"phase": "Pending"}),
        ),
        "p|0/1|Pending|0|60s|<none>|<none>|<none>|<none>",
    );
    check(
        pod(
            one.clone(),
            json!({"phase": "Running", "containerStatuses": [{"ready": false,
            "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T23:59:30Z"}}}]}),
        ),
        "p|0/1|CrashLoopBackOff|3 (30s ago)|60s|<none>|n1|<none>|<none>",
    );
    check(
        pod(
            one.clone(),
            json!({"phase": "Succeeded", "containerStatuses": [
            {"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]}),
        ),
        "p|0/1|Completed|0|60s|<none>|n1|<none>|<none>",
    );
    check(
        pod(
            one.clone(),
            json!({"phase": "Failed", "containerStatuses": [
            {"state": {"terminated": {"exitCode": 3}}}]}),
        ),
        "p|0/1|ExitCode:3|0|60s|<none>|n1|<none>|<none>",
    );
    check(
        pod(one.clone(), json!({"phase": "Failed", "reason": "Evicted"})),
        "p|0/1|Evicted|0|60s|<none>|n1|<none>|<none>",
    );
    let mut terminating = pod(
        one,
        json!({"phase": "Running", "containerStatuses": [running(true)]}),
    );
    terminating["metadata"]["deletionTimestamp"] = NOW.into();
    check(
        terminating.clone(),
        "p|1/1|Terminating|0|60s|<none>|n1|<none>|<none>",
    );
    terminating["status"]["reason"] = "NodeLost".into();
    check(terminating, "p|1/1|Unknown|0|60s|<none>|n1|<none>|<none>");
}

#[test]
fn pods_with_more_than_one_container() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let completed = json!({"state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
    check(
        pod(
            two.clone(),
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [completed, running(true)]}),
        ),
        "p|1/2|Running|0|60s|<none>|<none>|<none>|<none>",
    );
    check(
        pod(
            two,
            json!({"phase": "Running", "containerStatuses": [completed, running(true)]}),
        ),
        "p|1/2|NotReady|0|60s|<none>|<none>|<none>|<none>",
    );
}

#[test]
fn pods_with_init_containers() {
    let spec =
        json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
    let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
    let state = |state: Value| json!({"phase": "Pending", "initContainerStatuses": [done, {"name": "j", "state": state}]});
    check(
        pod(spec.clone(), state(json!({"running": {}}))),
        "p|0/1|Init:1/2|0|60s|<none>|<none>|<none>|<none>",
    );
    check(
        pod(
            spec.clone(),
            state(json!({"waiting": {"reason": "ImagePullBackOff"}})),
        ),
        "p|0/1|Init:ImagePullBackOff|0|60s|<none>|<none>|<none>|<none>",
    );
    check(
        pod(
            spec.clone(),
            state(json!({"waiting": {"reason": "PodInitializing"}})),
        ),
        "p|0/1|Init:1/2|0|60s|<none>|<none>|<none>|<none>",
    );
    check(
        pod(spec.clone(), state(json!({"terminated": {"exitCode": 2}}))),
        "p|0/1|Init:ExitCode:2|0|60s|<none>|<none>|<none>|<none>",
    );
    check(
        pod(
            spec,
            state(json!({"terminated": {"exitCode": 1, "reason": "Error"}})),
        ),
        "p|0/1|Init:Error|0|60s|<none>|<none>|<none>|<none>",
    );
    let sidecar = json!({"containers": [{"name": "a"}],
        "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    check(
        pod(
            sidecar,
            json!({"phase": "Running", "initContainerStatuses": [{"name": "s",
            "started": true, "ready": true, "state": {"running": {}}}],
            "containerStatuses": [running(true)]}),
        ),
        "p|2/2|Running|0|60s|<none>|<none>|<none>|<none>",
    );
}

#[test]
fn pods_with_gates() {
    check(
        pod(
            json!({"containers": [{}], "readinessGates": [{"conditionType": "x"}, {"conditionType": "y"}]}),
            json!({"phase": "Pending", "conditions": [{"type": "x", "status": "True"},
                {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
        ),
        "p|0/1|SchedulingGated|0|60s|<none>|<none>|<none>|1/2",
    );
}

fn object(api_version: &str, kind: &str, rest: Value) -> Value {
    let mut out = json!({"apiVersion": api_version, "kind": kind,
        "metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}});
    for (name, value) in rest.as_object().unwrap() {
        if name == "metadata" {
            for (name, value) in value.as_object().unwrap() {
                out["metadata"][name] = value.clone();
            }
        } else {
            out[name] = value.clone();
        }
    }
    out
}

#[test]
fn services_and_endpoints() {
    check(
        object(
            "v1",
            "Service",
            json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.5",
            "selector": {"b": "2", "a": "1"}, "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"},
            {"port": 53, "protocol": "UDP"}]}}),
        ),
        "x|NodePort|10.96.0.5|<none>|80:30080/TCP,53/UDP|24h|a=1,b=2",
    );
    check(
        object(
            "v1",
            "Service",
            json!({"spec": {"type": "ExternalName", "externalName": "e.com"}}),
        ),
        "x|ExternalName|<none>|e.com|<none>|24h|<none>",
    );
    check(
        object(
            "v1",
            "Service",
            json!({"spec": {"type": "LoadBalancer", "clusterIP": "c"}}),
        ),
        "x|LoadBalancer|c|<pending>|<none>|24h|<none>",
    );
    check(
        object(
            "v1",
            "Service",
            json!({"spec": {"type": "LoadBalancer", "clusterIP": "c", "externalIPs": ["2"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "1"}, {"hostname": "h"}]}}}),
        ),
        "x|LoadBalancer|c|1,h,2|<none>|24h|<none>",
    );
    check(
        object(
            "v1",
            "Endpoints",
            json!({"subsets": [{"ports": [{"port": 80}],
            "addresses": [{"ip": "1"}, {"ip": "2"}, {"ip": "3"}, {"ip": "::4"}]}]}),
        ),
        "x|1:80,2:80,3:80 + 1 more...|24h",
    );
    check(
        object(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"addressType": "IPv4",
            "ports": [{"port": 80}, {"name": "n"}], "endpoints": [{"addresses": ["1"]}, {"addresses": ["2"]}]}),
        ),
        "x|IPv4|80,n|1,2|24h",
    );
    check(
        object(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"addressType": "IPv4"}),
        ),
        "x|IPv4|<unset>|<unset>|24h",
    );
    check(
        object(
            "networking.k8s.io/v1",
            "Ingress",
            json!({"spec": {"ingressClassName": "nginx", "tls": [{}],
            "rules": [{"host": "a"}, {"host": "b"}]}}),
        ),
        "x|nginx|a,b||80, 443|24h",
    );
}

#[test]
fn core_kinds() {
    check(
        object(
            "v1",
            "Node",
            json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "",
            "node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "172.31.250.11"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1",
            "containerRuntimeVersion": "seaway://0.1"}}}),
        ),
        "x|Ready,SchedulingDisabled|control-plane,worker|24h|v1.36.0|172.31.250.11|<none>|Debian|6.1|seaway://0.1",
    );
    check(
        object(
            "v1",
            "Event",
            json!({"type": "Warning", "reason": "Failed", "message": "no\n", "count": 2,
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"},
            "source": {"component": "kubelet", "host": "n1"},
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T23:59:00Z"}),
        ),
        "60s|Warning|Failed|pod/p|spec|kubelet, n1|no|24h|2|x",
    );
    check(
        object(
            "events.k8s.io/v1",
            "Event",
            json!({"type": "Normal", "reason": "R", "note": "n",
            "regarding": {"kind": "Node", "name": "n1"}, "eventTime": "2026-01-01T23:59:00.000000Z",
            "reportingController": "c"}),
        ),
        "60s|Normal|R|node/n1||c|n|60s|1|x",
    );
    check(
        object("v1", "Namespace", json!({"status": {"phase": "Active"}})),
        "x|Active|24h",
    );
    check(
        object(
            "v1",
            "ConfigMap",
            json!({"data": {"a": "1"}, "binaryData": {"b": ""}}),
        ),
        "x|2|24h",
    );
    check(
        object(
            "v1",
            "Secret",
            json!({"type": "Opaque", "data": {"a": "1"}}),
        ),
        "x|Opaque|1|24h",
    );
    check(object("v1", "ServiceAccount", json!({})), "x|0|24h");
    check(
        object(
            "v1",
            "PersistentVolumeClaim",
            json!({"spec": {"volumeName": "v", "storageClassName": "s",
            "volumeMode": "Filesystem"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"]}}),
        ),
        "x|Bound|v|1Gi|RWO|s|<unset>|24h|Filesystem",
    );
    check(
        object(
            "v1",
            "PersistentVolume",
            json!({"spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": "n", "name": "c"}}, "status": {"phase": "Bound"}}),
        ),
        "x|1Gi|RWO,RWX|Retain|Bound|n/c||<unset>||24h|<unset>",
    );
    check(
        object(
            "v1",
            "ResourceQuota",
            json!({"status": {"hard": {"pods": "5", "limits.cpu": "2"},
            "used": {"pods": "1"}}}),
        ),
        "x|pods: 1/5|limits.cpu: 0/2|24h",
    );
    check(
        object("v1", "LimitRange", json!({})),
        "x|2026-01-01T00:00:00Z",
    );
}

#[test]
fn workload_kinds() {
    let spec = json!({"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {"spec":
        {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j"}]}}});
    check(
        object(
            "apps/v1",
            "Deployment",
            json!({"spec": spec, "status": {"readyReplicas": 2,
            "updatedReplicas": 3, "availableReplicas": 1}}),
        ),
        "x|2/3|3|1|24h|a,b|i:1,j|app=web",
    );
    check(
        object(
            "apps/v1",
            "ReplicaSet",
            json!({"spec": spec, "status": {"replicas": 3, "readyReplicas": 2}}),
        ),
        "x|3|3|2|24h|a,b|i:1,j|app=web",
    );
    check(
        object("apps/v1", "StatefulSet", json!({"spec": spec})),
        "x|0/3|24h|a,b|i:1,j",
    );
    check(
        object(
            "apps/v1",
            "DaemonSet",
            json!({"spec": spec, "status": {"desiredNumberScheduled": 3,
            "currentNumberScheduled": 3, "numberReady": 2, "updatedNumberScheduled": 3, "numberAvailable": 1}}),
        ),
        "x|3|3|2|3|1|<none>|24h|a,b|i:1,j|app=web",
    );
    check(
        object(
            "v1",
            "ReplicationController",
            json!({"spec": {"replicas": 1, "selector": {"a": "b"}}}),
        ),
        "x|1|0|0|24h|||a=b",
    );
    check(
        object(
            "batch/v1",
            "Job",
            json!({"spec": {"completions": 2, "parallelism": 1},
            "status": {"succeeded": 1, "startTime": "2026-01-01T23:59:00Z"}}),
        ),
        "x|Running|1/2|60s|24h|||<none>",
    );
    check(
        object(
            "batch/v1",
            "CronJob",
            json!({"spec": {"schedule": "* * * * *", "suspend": false},
            "status": {"lastScheduleTime": "2026-01-01T23:59:00Z"}}),
        ),
        "x|* * * * *|<none>|False|0|60s|24h|||<none>",
    );
    check(
        object(
            "policy/v1",
            "PodDisruptionBudget",
            json!({"spec": {"minAvailable": "50%"},
            "status": {"disruptionsAllowed": 1}}),
        ),
        "x|50%|N/A|1|24h",
    );
    check(
        object(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            json!({"spec": {"minReplicas": 1, "maxReplicas": 5,
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "metrics": [{"type": "Resource",
            "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]}}),
        ),
        "x|Deployment/web|cpu: <unknown>/80%|1|5|0|24h",
    );
}

#[test]
fn other_kinds() {
    check(
        object(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}),
        ),
        "x|Role/r|24h|u||n/s",
    );
    check(
        object(
            "storage.k8s.io/v1",
            "StorageClass",
            json!({"provisioner": "p", "metadata": {"annotations":
            {"storageclass.kubernetes.io/is-default-class": "true"}}}),
        ),
        "x (default)|p|Delete|Immediate|false|24h",
    );
    check(
        object(
            "coordination.k8s.io/v1",
            "Lease",
            json!({"spec": {"holderIdentity": "n1"}}),
        ),
        "x|n1|24h",
    );
    check(
        object(
            "certificates.k8s.io/v1",
            "CertificateSigningRequest",
            json!({"spec": {"signerName": "s",
            "username": "u", "expirationSeconds": 3600}, "status": {"conditions": [{"type": "Approved"}],
            "certificate": "Zm9v"}}),
        ),
        "x|24h|s|u|60m|Approved,Issued",
    );
    check(
        object(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            json!({"spec": {"podSelector": {}}}),
        ),
        "x|<none>|24h",
    );
    check(
        object(
            "networking.k8s.io/v1",
            "IPAddress",
            json!({"spec": {"parentRef": {"resource": "services",
            "namespace": "default", "name": "k"}}}),
        ),
        "x|services/default/k|24h",
    );
}

#[test]
fn a_table_as_a_whole() {
    let namespace = object("v1", "Namespace", json!({"status": {"phase": "Active"}}));
    let kind = kind_of(&namespace).unwrap();
    let table = render(kind, &[&namespace], IncludeObject::Metadata, now());
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["columnDefinitions"][0]["format"], "name");
    assert_eq!(
        table["rows"][0],
        json!({"cells": ["x", "Active", "24h"], "object": {"kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1", "metadata": namespace["metadata"]}})
    );
    let whole = render(kind, &[&namespace], IncludeObject::Object, now());
    assert_eq!(whole["rows"][0]["object"], namespace);
    assert_eq!(IncludeObject::parse(""), Some(IncludeObject::Metadata));
    assert_eq!(IncludeObject::parse("x"), None);
}
