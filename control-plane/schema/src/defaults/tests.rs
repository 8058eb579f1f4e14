use expect_test::expect;
use serde_json::{Value, json};

use crate::kind_of;

#[track_caller]
fn defaulted(mut object: Value) -> Value {
    let kind = kind_of(&object).unwrap();
    super::apply(kind, &mut object);
    let once = object.clone();
    super::apply(kind, &mut object);
    assert_eq!(object, once, "defaults applied twice change something");
    object
}

fn check(object: Value, expected: &expect_test::Expect) {
    expected.assert_eq(&serde_json::to_string_pretty(&defaulted(object)).unwrap());
}

#[test]
fn a_pod() {
    check(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "s",
            "containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "e"}, {"name": "c", "configMap": {"name": "c"}}]}}),
        &expect![[r#"
            {
              "apiVersion": "v1",
              "kind": "Pod",
              "metadata": {
                "name": "p"
              },
              "spec": {
                "serviceAccountName": "s",
                "containers": [
                  {
                    "name": "a",
                    "image": "nginx",
                    "ports": [
                      {
                        "containerPort": 80,
                        "protocol": "TCP"
                      }
                    ],
                    "resources": {
                      "limits": {
                        "cpu": "1"
                      },
                      "requests": {
                        "cpu": "1"
                      }
                    },
                    "env": [
                      {
                        "name": "N",
                        "valueFrom": {
                          "fieldRef": {
                            "fieldPath": "metadata.name",
                            "apiVersion": "v1"
                          }
                        }
                      }
                    ],
                    "readinessProbe": {
                      "httpGet": {
                        "port": 80,
                        "path": "/",
                        "scheme": "HTTP"
                      },
                      "timeoutSeconds": 1,
                      "periodSeconds": 10,
                      "successThreshold": 1,
                      "failureThreshold": 3
                    },
                    "imagePullPolicy": "Always",
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File"
                  }
                ],
                "volumes": [
                  {
                    "name": "e",
                    "emptyDir": {}
                  },
                  {
                    "name": "c",
                    "configMap": {
                      "name": "c",
                      "defaultMode": 420
                    }
                  }
                ],
                "enableServiceLinks": true,
                "dnsPolicy": "ClusterFirst",
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 30,
                "securityContext": {},
                "schedulerName": "default-scheduler",
                "serviceAccount": "s"
              }
            }"#]],
    );
}

#[test]
fn a_service() {
    check(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}}),
        &expect![[r#"
            {
              "apiVersion": "v1",
              "kind": "Service",
              "metadata": {
                "name": "s"
              },
              "spec": {
                "type": "NodePort",
                "sessionAffinity": "ClientIP",
                "ports": [
                  {
                    "port": 80,
                    "protocol": "TCP",
                    "targetPort": 80
                  }
                ],
                "sessionAffinityConfig": {
                  "clientIP": {
                    "timeoutSeconds": 10800
                  }
                },
                "externalTrafficPolicy": "Cluster",
                "internalTrafficPolicy": "Cluster"
              }
            }"#]],
    );
}

#[test]
fn an_external_name() {
    check(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"type": "ExternalName", "externalName": "example.com"}}),
        &expect![[r#"
            {
              "apiVersion": "v1",
              "kind": "Service",
              "metadata": {
                "name": "s"
              },
              "spec": {
                "type": "ExternalName",
                "externalName": "example.com",
                "sessionAffinity": "None"
              }
            }"#]],
    );
}

#[test]
fn a_deployment() {
    check(
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "a", "image": "i:1"}]}}}}),
        &expect![[r#"
            {
              "apiVersion": "apps/v1",
              "kind": "Deployment",
              "metadata": {
                "name": "d"
              },
              "spec": {
                "selector": {
                  "matchLabels": {
                    "a": "b"
                  }
                },
                "template": {
                  "metadata": {
                    "labels": {
                      "a": "b"
                    }
                  },
                  "spec": {
                    "containers": [
                      {
                        "name": "a",
                        "image": "i:1",
                        "imagePullPolicy": "IfNotPresent",
                        "terminationMessagePath": "/dev/termination-log",
                        "terminationMessagePolicy": "File",
                        "resources": {}
                      }
                    ],
                    "dnsPolicy": "ClusterFirst",
                    "restartPolicy": "Always",
                    "terminationGracePeriodSeconds": 30,
                    "securityContext": {},
                    "schedulerName": "default-scheduler"
                  }
                },
                "replicas": 1,
                "strategy": {
                  "type": "RollingUpdate",
                  "rollingUpdate": {
                    "maxUnavailable": "25%",
                    "maxSurge": "25%"
                  }
                },
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600
              }
            }"#]],
    );
}

#[test]
fn a_recreated_deployment_has_no_rolling_update() {
    let object = defaulted(json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "spec": {"strategy": {"type": "Recreate"}}}));
    assert_eq!(object["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn a_job() {
    check(
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {
            "template": {"metadata": {"labels": {"l": "m"}}, "spec": {"restartPolicy": "Never"}}}}),
        &expect![[r#"
            {
              "apiVersion": "batch/v1",
              "kind": "Job",
              "metadata": {
                "name": "j",
                "labels": {
                  "l": "m"
                }
              },
              "spec": {
                "template": {
                  "metadata": {
                    "labels": {
                      "l": "m"
                    }
                  },
                  "spec": {
                    "restartPolicy": "Never",
                    "dnsPolicy": "ClusterFirst",
                    "terminationGracePeriodSeconds": 30,
                    "securityContext": {},
                    "schedulerName": "default-scheduler"
                  }
                },
                "completions": 1,
                "parallelism": 1,
                "backoffLimit": 6,
                "completionMode": "NonIndexed",
                "suspend": false,
                "podReplacementPolicy": "TerminatingOrFailed",
                "manualSelector": false
              }
            }"#]],
    );
}

#[test]
fn image_pull_policies() {
    let rows = [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("registry:5000/nginx", "Always"),
        ("registry:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:00", "IfNotPresent"),
    ];
    for (image, expected) in rows {
        let pod = defaulted(json!({"apiVersion": "v1", "kind": "Pod",
            "spec": {"containers": [{"name": "a", "image": image}]}}));
        assert_eq!(
            pod["spec"]["containers"][0]["imagePullPolicy"], expected,
            "{image}"
        );
    }
}

#[test]
fn host_network_takes_the_ports_of_the_host() {
    let pod = defaulted(
        json!({"apiVersion": "v1", "kind": "Pod", "spec": {"hostNetwork": true,
        "containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80}]}]}}),
    );
    assert_eq!(pod["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
}

#[test]
fn small_kinds() {
    let rows = [
        (
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}),
            "/metadata/labels",
            json!({"kubernetes.io/metadata.name": "n"}),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Secret"}),
            "/type",
            json!("Opaque"),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "eA==", "b": "eQ=="},
                "stringData": {"b": "hello"}}),
            "/data",
            json!({"a": "eA==", "b": "aGVsbG8="}),
        ),
        (
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "spec": {"egress": [{"ports": [{"port": 1}]}]}}),
            "/spec",
            json!({"egress": [{"ports": [{"port": 1, "protocol": "TCP"}]}],
                "policyTypes": ["Ingress", "Egress"], "podSelector": {}}),
        ),
        (
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "roleRef": {"kind": "Role"}, "subjects": [{"kind": "User"}, {"kind": "ServiceAccount"}]}),
            "/subjects",
            json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io"}, {"kind": "ServiceAccount"}]),
        ),
        (
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "ports": [{"port": 1}]}),
            "/ports",
            json!([{"port": 1, "name": "", "protocol": "TCP"}]),
        ),
        (
            json!({"apiVersion": "v1", "kind": "LimitRange", "spec": {"limits": [{"type": "Container",
                "max": {"cpu": "2"}, "min": {"cpu": "1", "memory": "1Gi"}}]}}),
            "/spec/limits/0/defaultRequest",
            json!({"cpu": "2", "memory": "1Gi"}),
        ),
        (
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "spec": {}}),
            "/spec",
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1,
                "maxSurge": 0}}, "revisionHistoryLimit": 10}),
        ),
    ];
    for (object, pointer, expected) in rows {
        assert_eq!(
            defaulted(object.clone()).pointer(pointer),
            Some(&expected),
            "{object}"
        );
    }
}

#[test]
fn every_kind_takes_an_empty_object() {
    for kind in crate::kinds() {
        defaulted(json!({"apiVersion": kind.api_version(), "kind": kind.kind}));
    }
}
