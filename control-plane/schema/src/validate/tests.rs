use serde_json::json;

use super::*;
use crate::kind_of;

/// Errors of a new object after defaulting, as texts.
#[track_caller]
fn errors(mut object: Value) -> Vec<String> {
    let kind = kind_of(&object).unwrap();
    crate::defaults::apply(kind, &mut object);
    create(kind, &object)
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[track_caller]
fn check(object: Value, expected: &[&str]) {
    assert_eq!(errors(object), expected);
}

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec})
}

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "default"}, "spec": spec})
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "default"}, "spec": spec})
}

#[test]
fn good_objects() {
    check(
        pod(
            json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80, "name": "http"}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        "resources": {"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "100m"}},
        "readinessProbe": {"tcpSocket": {"port": "http"}}}], "volumes": [{"name": "v", "emptyDir": {}}],
        "tolerations": [{"operator": "Exists"}]}),
        ),
        &[],
    );
    check(
        service(json!({"ports": [{"port": 80, "targetPort": "http"}], "selector": {"a": "b"}})),
        &[],
    );
    check(
        service(json!({"clusterIP": "None", "clusterIPs": ["None"]})),
        &[],
    );
    check(
        service(json!({"type": "ExternalName", "externalName": "example.com."})),
        &[],
    );
    check(
        deployment(
            json!({"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata":
        {"labels": {"a": "b", "c": "d"}}, "spec": {"containers": [{"name": "a", "image": "i"}]}}}),
        ),
        &[],
    );
}

#[test]
fn metadata_rows() {
    let named =
        |metadata: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
    check(
        named(json!({"namespace": "default"})),
        &["metadata.name: Required value: name or generateName is required"],
    );
    check(named(json!({"name": "a.b-c", "namespace": "default"})), &[]);
    assert!(
        errors(named(json!({"name": "A_b", "namespace": "default"})))[0].starts_with(
            "metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist"
        )
    );
    assert!(
        errors(named(
            json!({"name": "a", "namespace": "x", "labels": {"-a": "b", "c": "d e"}})
        ))
        .iter()
        .all(|e| e.starts_with("metadata.labels: Invalid value: "))
    );
    check(
        named(
            json!({"name": "a", "namespace": "x", "ownerReferences": [{"kind": "K", "name": "n", "uid": "u"}]}),
        ),
        &["metadata.ownerReferences[0].apiVersion: Invalid value: \"\": version must not be empty"],
    );
    let role = |name: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": name}})
    };
    check(role("system:node"), &[]);
    check(
        role("a/b"),
        &["metadata.name: Invalid value: \"a/b\": may not contain '/'"],
    );
}

#[test]
fn pod_rows() {
    check(pod(json!({})), &["spec.containers: Required value"]);
    check(
        pod(json!({"containers": [{"name": "a"}, {"name": "a", "image": "i"}]})),
        &[
            "spec.containers[0].image: Required value",
            "spec.containers[1].name: Duplicate value: \"a\"",
        ],
    );
    check(
        pod(
            json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 99999}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
        ),
        &[
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            "spec.containers[0].ports[0].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive",
        ],
    );
    check(
        pod(json!({"containers": [{"name": "a", "image": "i"}], "restartPolicy": "Sometimes"})),
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ],
    );
    check(
        pod(json!({"containers": [{"name": "a", "image": "i",
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}]})),
        &[
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ],
    );
    check(
        pod(
            json!({"containers": [{"name": "a", "image": "i", "livenessProbe": {"periodSeconds": 3}}]}),
        ),
        &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
    );
    check(
        pod(
            json!({"containers": [{"name": "a", "image": "i"}], "volumes": [{"name": "v", "secret": {},
            "emptyDir": {}}, {"name": "v", "emptyDir": {}}]}),
        ),
        &[
            "spec.volumes[0].emptyDir: Forbidden: may not specify more than 1 volume type",
            "spec.volumes[0].secret.secretName: Required value",
            "spec.volumes[1].name: Duplicate value: \"v\"",
        ],
    );
}

#[test]
fn affinity_rows() {
    let with = |rest: Value| {
        let mut spec = json!({"containers": [{"name": "a", "image": "i"}]});
        for (name, value) in rest.as_object().unwrap() {
            spec[name] = value.clone();
        }
        pod(spec)
    };
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    check(
        with(
            json!({"affinity": {"nodeAffinity": {required: {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "a", "operator": "Gt", "values": ["1"]}, {"key": "b", "operator": "Near"}]}]}}}}),
        ),
        &[
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[1].operator: Invalid value: \"Near\": not a valid selector operator",
        ],
    );
    check(
        with(
            json!({"affinity": {"podAntiAffinity": {required: [{"labelSelector": {"matchLabels": {"a": "b"}}}]}}}),
        ),
        &[
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty",
        ],
    );
    check(
        with(
            json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "Panic"}]}),
        ),
        &[
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Panic\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
        ],
    );
}

#[test]
fn service_rows() {
    check(service(json!({})), &["spec.ports: Required value"]);
    check(
        service(json!({"ports": [{"port": 99999, "targetPort": 80}]})),
        &["spec.ports[0].port: Invalid value: 99999: must be between 1 and 65535, inclusive"],
    );
    check(
        service(json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]})),
        &["spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}"],
    );
    check(
        service(json!({"ports": [{"port": 80, "name": "a"}, {"port": 81}]})),
        &["spec.ports[1].name: Required value"],
    );
    check(
        service(json!({"ports": [{"port": 80, "nodePort": 30000}]})),
        &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
    );
    check(
        service(
            json!({"type": "NodePort", "clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}),
        ),
        &[
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ],
    );
    check(
        service(json!({"ports": [{"port": 80}], "externalIPs": ["127.0.0.1", "x"]})),
        &[
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            "spec.externalIPs[1]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ],
    );
    check(
        service(json!({"ports": [{"port": 80, "targetPort": "a_b"}]})),
        &[
            "spec.ports[0].targetPort: Invalid value: \"a_b\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ],
    );
    check(
        service(json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"})),
        &[
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ],
    );
}

#[test]
fn workload_rows() {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "i"}]}});
    check(
        deployment(json!({"template": template})),
        &["spec.selector: Required value"],
    );
    check(
        deployment(json!({"selector": {"matchLabels": {"a": "c"}}, "template": template})),
        &[
            "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
        ],
    );
    check(
        deployment(
            json!({"selector": {"matchLabels": {"a": "b"}}, "template": template, "replicas": -1,
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}}),
        ),
        &[
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ],
    );
    let mut never = template.clone();
    never["spec"]["restartPolicy"] = "Never".into();
    check(
        deployment(json!({"selector": {"matchLabels": {"a": "b"}}, "template": never})),
        &[
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ],
    );
    check(
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "n"},
            "spec": {"template": template}}),
        &[
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ],
    );
}

#[test]
fn claims_of_a_stateful_set_are_volumes() {
    check(
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db", "namespace": "n"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "serviceName": "db",
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a",
                "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes":
                ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}}),
        &[],
    );
}

#[test]
fn other_rows() {
    check(
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "n"},
            "type": "kubernetes.io/tls", "data": {"tls.crt": "eA=="}}),
        &["data[tls.key]: Required value"],
    );
    check(
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r", "namespace": "n"},
            "rules": [{"apiGroups": [""], "resources": ["pods"]}]}),
        &["rules[0].verbs: Required value: verbs must contain at least one value"],
    );
    check(
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "e", "namespace": "n"},
            "addressType": "IPv4", "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": ["10.0.0.1"]}]}),
        &["endpoints[0].addresses[0]: Invalid value: \"fd00::1\": must be a valid IPv4 address"],
    );
    check(
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i", "namespace": "n"},
            "spec": {"rules": [{"http": {"paths": [{"path": "/", "backend": {"service": {"name": "s",
                "port": {"number": 80}}}}]}}]}}),
        &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
    );
}

#[track_caller]
fn check_update(mut old: Value, mut new: Value, expected: &[&str]) {
    let kind = kind_of(&old).unwrap();
    crate::defaults::apply(kind, &mut old);
    crate::defaults::apply(kind, &mut new);
    let found: Vec<String> = update(kind, &old, &new)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn what_may_not_change() {
    let spec = |label: &str| {
        json!({"selector": {"matchLabels": {"a": label}}, "template": {"metadata":
        {"labels": {"a": label}}, "spec": {"containers": [{"name": "a", "image": "i"}]}}})
    };
    check_update(
        deployment(spec("b")),
        deployment(spec("c")),
        &["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"],
    );
    let ip =
        |ip: &str| service(json!({"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]}));
    check_update(
        ip("10.96.0.5"),
        ip("10.96.0.6"),
        &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.6\"]: may not change once set"],
    );
    let container =
        |image: &str, name: &str| pod(json!({"containers": [{"name": name, "image": image}]}));
    check_update(container("a:1", "c"), container("a:2", "c"), &[]);
    let found = {
        let (old, new) = (container("a:1", "c"), container("a:1", "d"));
        update(kind_of(&old).unwrap(), &old, &new)
    };
    assert!(found.iter().any(|e| {
        e.to_string()
            .starts_with("spec: Forbidden: pod updates may not change fields other than")
    }));
    let secret = |kind: &str| {
        json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "s", "namespace": "n"}, "type": kind})
    };
    check_update(
        secret("a"),
        secret("b"),
        &["type: Invalid value: \"b\": field is immutable"],
    );
}

#[test]
fn the_status_a_client_gets() {
    let object = service(json!({"ports": [{"port": 99999}]}));
    let kind = kind_of(&object).unwrap();
    let found = [FieldError::invalid(
        "spec.ports[0].port",
        &json!(99999),
        PORT_RANGE,
    )];
    assert_eq!(
        status(kind, "s", &found),
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "Service \"s\" is invalid: spec.ports[0].port: Invalid value: 99999: must be between 1 and 65535, inclusive",
            "reason": "Invalid", "code": 422,
            "details": {"name": "s", "kind": "Service", "causes": [{"reason": "FieldValueInvalid",
                "message": "Invalid value: 99999: must be between 1 and 65535, inclusive",
                "field": "spec.ports[0].port"}]}})
    );
}

#[test]
fn no_kind_panics_on_an_empty_object() {
    for kind in crate::kinds() {
        let object = json!({"apiVersion": kind.api_version(), "kind": kind.kind});
        let wrong = json!({"metadata": [], "spec": "x", "status": 1, "rules": {}, "data": []});
        drop(create(kind, &object));
        drop(create(kind, &wrong));
        drop(update(kind, &object, &wrong));
    }
}
