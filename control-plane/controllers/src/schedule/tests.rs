use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::fake::{self, Sim};
use crate::kinds::Kind;
use crate::view::Key;

fn state(nodes: &[Value], pods: &[Value]) -> State {
    let mut state = State::default();
    for node in nodes {
        let node: Node = serde_json::from_value(node.clone()).unwrap();
        state.set_node(&node.metadata.name.clone().unwrap(), Some(Arc::new(node)));
    }
    for pod in pods {
        put(&mut state, pod);
    }
    state
}

fn put(state: &mut State, pod: &Value) {
    let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod.clone()).unwrap());
    let node = pod.spec.as_ref().unwrap().node_name.clone().unwrap();
    state.set_pod(&Key::of(&pod.metadata), Some((&node, PodInfo::new(&pod))));
}

fn node_with(name: &str, change: Value) -> Value {
    let mut node = fake::node(name);
    merge(&mut node, &change);
    node
}

fn pod_with(name: &str, spec: Value) -> Value {
    let mut pod = fake::pod(name);
    merge(&mut pod, &json!({"spec": spec}));
    pod
}

fn merge(into: &mut Value, from: &Value) {
    match from {
        Value::Object(fields) => {
            for (key, value) in fields {
                merge(&mut into[key], value);
            }
        }
        other => *into = other.clone(),
    }
}

fn requests(cpu: &str, memory: &str) -> Value {
    json!({"containers": [{"name": "main", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]})
}

#[track_caller]
fn check(nodes: &[Value], pods: &[Value], pod: &Value, want: Result<&str, &str>) {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    let got = place(&state(nodes, pods), &pod).map_err(|unfit| unfit.to_string());
    assert_eq!(got.as_deref().map_err(String::as_str), want);
}

#[test]
fn filter_rows() {
    let three = [fake::node("n1"), fake::node("n2"), fake::node("n3")];
    let plain = fake::pod("p");
    check(&[], &[], &plain, Err("no nodes available to schedule pods"));
    check(&three, &[], &plain, Ok("n1"));
    check(
        &three,
        &[],
        &pod_with("p", requests("5", "1Gi")),
        Err("0/3 nodes are available: 3 Insufficient cpu."),
    );
    check(
        &three,
        &[],
        &pod_with("p", requests("5", "10Gi")),
        Err("0/3 nodes are available: 3 Insufficient cpu, 3 Insufficient memory."),
    );
    check(
        &[
            node_with("n1", json!({"spec": {"unschedulable": true}})),
            node_with(
                "n2",
                json!({"spec": {"taints": [{"key": "a", "value": "b", "effect": "NoSchedule"}]}}),
            ),
            node_with("n3", json!({"status": {"allocatable": {"pods": "0"}}})),
        ],
        &[],
        &plain,
        Err(
            "0/3 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint {a: b}, 1 node(s) were unschedulable.",
        ),
    );
    check(
        &[node_with(
            "n1",
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
        )],
        &[],
        &plain,
        Err(
            "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.",
        ),
    );
    check(
        &three,
        &[],
        &pod_with(
            "p",
            json!({"nodeSelector": {"kubernetes.io/hostname": "n2"}}),
        ),
        Ok("n2"),
    );
    check(
        &three,
        &[],
        &pod_with("p", json!({"nodeSelector": {"disk": "ssd"}})),
        Err("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."),
    );
    let port = |host: &str| json!({"containers": [{"name": "main", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": host}]}]});
    let mut taken = pod_with("taken", port("10.0.0.1"));
    taken["spec"]["nodeName"] = json!("n1");
    check(
        &three[..1],
        &[taken.clone()],
        &pod_with("p", port("10.0.0.2")),
        Ok("n1"),
    );
    check(
        &three[..1],
        &[taken],
        &pod_with("p", port("")),
        Err(
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
        ),
    );
}

#[test]
fn node_affinity_rows() {
    let nodes = [
        node_with(
            "n1",
            json!({"metadata": {"labels": {"size": "3", "disk": "hdd"}}}),
        ),
        node_with("n2", json!({"metadata": {"labels": {"size": "9"}}})),
    ];
    for (expression, want) in [
        (
            json!({"key": "disk", "operator": "In", "values": ["ssd", "hdd"]}),
            Some("n1"),
        ),
        (
            json!({"key": "disk", "operator": "NotIn", "values": ["hdd"]}),
            Some("n2"),
        ),
        (json!({"key": "disk", "operator": "Exists"}), Some("n1")),
        (
            json!({"key": "disk", "operator": "DoesNotExist"}),
            Some("n2"),
        ),
        (
            json!({"key": "size", "operator": "Gt", "values": ["5"]}),
            Some("n2"),
        ),
        (
            json!({"key": "size", "operator": "Lt", "values": ["5"]}),
            Some("n1"),
        ),
        (
            json!({"key": "size", "operator": "Lt", "values": ["x"]}),
            None,
        ),
    ] {
        let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [expression]}],
        }});
        let pod = pod_with("p", json!({"affinity": {"nodeAffinity": required}}));
        let refused =
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.";
        check(&nodes, &[], &pod, want.ok_or(refused));
    }
    let by_name = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}],
    }}}});
    check(&nodes, &[], &pod_with("p", by_name), Ok("n2"));
    let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "size", "operator": "In", "values": ["9"]}]}},
    ]}}});
    check(&nodes, &[], &pod_with("p", preferred), Ok("n2"));
}

#[test]
fn toleration_rows() {
    let taint = |value: &str| Taint {
        key: "k".to_owned(),
        value: Some(value.to_owned()),
        effect: "NoSchedule".to_owned(),
        time_added: None,
    };
    let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
        key: Some(key.to_owned()),
        operator: Some(operator.to_owned()),
        value: Some(value.to_owned()),
        effect: Some(effect.to_owned()),
        toleration_seconds: None,
    };
    for (it, value, want) in [
        (toleration("k", "Exists", "", ""), "v", true),
        (toleration("", "Exists", "", ""), "v", true),
        (toleration("k", "Equal", "v", "NoSchedule"), "v", true),
        (toleration("k", "", "v", ""), "v", true),
        (toleration("k", "Equal", "w", ""), "v", false),
        (toleration("k", "Equal", "v", "NoExecute"), "v", false),
        (toleration("x", "Exists", "", ""), "v", false),
        (toleration("", "Equal", "v", ""), "v", false),
        (toleration("k", "Gt", "5", ""), "7", true),
        (toleration("k", "Lt", "5", ""), "7", false),
    ] {
        assert_eq!(tolerates(&it, &taint(value)), want, "{it:?} {value}");
    }
}

#[test]
fn pod_affinity_rows() {
    let zone =
        |name: &str, zone: &str| node_with(name, json!({"metadata": {"labels": {"zone": zone}}}));
    let nodes = [zone("n1", "a"), zone("n2", "a"), zone("n3", "b")];
    let mut web = fake::pod("web");
    web["spec"]["nodeName"] = json!("n3");
    let term = |topology: &str| json!([{"topologyKey": topology, "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let affinity = |kind: &str, topology: &str| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term(topology)}}});
    let mut other = pod_with("p", affinity("podAffinity", "zone"));
    other["metadata"]["labels"] = json!({"app": "other"});
    check(&nodes, &[web.clone()], &other, Ok("n3"));
    check(
        &nodes,
        &[],
        &other,
        Err("0/3 nodes are available: 3 node(s) didn't match pod affinity rules."),
    );
    // The first of a group that wants to be together may go anywhere.
    check(
        &nodes,
        &[],
        &pod_with("p", affinity("podAffinity", "zone")),
        Ok("n1"),
    );
    check(
        &nodes,
        &[web.clone()],
        &pod_with("p", affinity("podAntiAffinity", "zone")),
        Ok("n1"),
    );
    check(
        &nodes[2..],
        &[web],
        &pod_with("p", affinity("podAntiAffinity", "zone")),
        Err("0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."),
    );
    let mut repelling = pod_with("repelling", affinity("podAntiAffinity", "zone"));
    repelling["spec"]["nodeName"] = json!("n1");
    check(&nodes, &[repelling.clone()], &fake::pod("p"), Ok("n3"));
    check(
        &nodes[..2],
        &[repelling],
        &fake::pod("p"),
        Err("0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."),
    );
}

#[test]
fn topology_spread_rows() {
    let zone =
        |name: &str, zone: &str| node_with(name, json!({"metadata": {"labels": {"zone": zone}}}));
    let nodes = [zone("n1", "a"), zone("n2", "b"), fake::node("n3")];
    let spread = json!({"topologySpreadConstraints": [{
        "topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }]});
    let on = |name: &str, node: &str| {
        let mut pod = fake::pod(name);
        pod["spec"]["nodeName"] = json!(node);
        pod
    };
    check(
        &nodes,
        &[on("a", "n1")],
        &pod_with("p", spread.clone()),
        Ok("n2"),
    );
    check(
        &[
            nodes[0].clone(),
            node_with(
                "n2",
                json!({"metadata": {"labels": {"zone": "b"}}, "status": {"allocatable": {"pods": "0"}}}),
            ),
            nodes[2].clone(),
        ],
        &[on("a", "n1")],
        &pod_with("p", spread),
        Err(
            "0/3 nodes are available: 1 Too many pods, 1 node(s) didn't match pod topology spread constraints, \
             1 node(s) didn't match pod topology spread constraints (missing required label).",
        ),
    );
}

#[test]
fn replicas_spread_also_on_an_unevenly_filled_cluster() {
    let nodes = [fake::node("n1"), fake::node("n2"), fake::node("n3")];
    let mut state = state(&nodes, &[]);
    for index in 0..3 {
        let mut full = pod_with(&format!("full-{index}"), requests("1", "2Gi"));
        full["metadata"]["labels"] = json!({});
        full["spec"]["nodeName"] = json!("n1");
        put(&mut state, &full);
    }
    let mut places = Vec::new();
    for index in 0..6 {
        let mut pod = fake::pod(&format!("web-{index}"));
        pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]);
        let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
        let node = place(&state, &typed).unwrap();
        pod["spec"]["nodeName"] = json!(node);
        put(&mut state, &pod);
        places.push(node);
    }
    places.sort();
    assert_eq!(places, ["n1", "n1", "n2", "n2", "n3", "n3"]);
}

#[test]
fn requests_of_init_containers_sidecars_and_overhead() {
    let spec = serde_json::from_value(json!({
        "overhead": {"cpu": "10m"},
        "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Gi", "example.com/gpu": "2"}}}],
        "initContainers": [
            {"name": "early", "resources": {"requests": {"cpu": "50m"}}},
            {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "200m"}}},
            {"name": "late", "resources": {"requests": {"cpu": "400m"}}},
        ],
    })).unwrap();
    let amounts = state::requests(&spec);
    assert_eq!(
        amounts["cpu"], 610,
        "late init beside the sidecar, and the overhead"
    );
    assert_eq!(amounts["memory"], 1 << 30);
    assert_eq!(amounts["example.com/gpu"], 2);
}

#[test]
fn an_unschedulable_pod_is_told_once_and_placed_when_there_is_room() {
    let mut sim = Sim::new(Config::default());
    sim.put(Kind::Pod, fake::pod("p"));
    sim.settle();
    let condition =
        |sim: &Sim| sim.get(Kind::Pod, "default", "p").unwrap()["status"]["conditions"][0].clone();
    assert_eq!(condition(&sim)["reason"], "Unschedulable");
    assert_eq!(
        condition(&sim)["message"],
        "no nodes available to schedule pods"
    );
    let told = sim
        .notes
        .iter()
        .filter(|note| note.reason == "FailedScheduling")
        .count();
    assert_eq!(told, 1);
    sim.put(Kind::Node, fake::node("n1"));
    sim.settle();
    assert_eq!(
        sim.get(Kind::Pod, "default", "p").unwrap()["spec"]["nodeName"],
        "n1"
    );
    let note = sim
        .notes
        .iter()
        .find(|note| note.reason == "Scheduled")
        .unwrap();
    assert_eq!(note.message, "Successfully assigned default/p to n1");
}

#[test]
fn gates_and_other_schedulers_are_left_alone() {
    let mut sim = Sim::new(Config::default());
    sim.put(Kind::Node, fake::node("n1"));
    sim.put(
        Kind::Pod,
        pod_with("gated", json!({"schedulingGates": [{"name": "wait"}]})),
    );
    sim.put(
        Kind::Pod,
        pod_with("other", json!({"schedulerName": "mine"})),
    );
    sim.settle();
    for name in ["gated", "other"] {
        assert!(
            sim.get(Kind::Pod, "default", name).unwrap()["spec"]["nodeName"].is_null(),
            "{name}"
        );
    }
    sim.edit(Kind::Pod, "default", "gated", |pod| {
        pod["spec"]["schedulingGates"] = json!(null)
    });
    sim.settle();
    assert_eq!(
        sim.get(Kind::Pod, "default", "gated").unwrap()["spec"]["nodeName"],
        "n1"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// However pods and nodes come and go and however late events are, no node is ever given more than it has.
    #[test]
    fn never_overcommits(
        nodes in prop::collection::vec((1_i64..4000, 1_i64..20), 1..5),
        pods in prop::collection::vec((0_i64..2000, 0_u8..4, any::<bool>()), 1..60),
        order in prop::collection::vec(0_usize..3, 0..120),
        flaky in prop::collection::vec(0_u8..3, 0..60),
        slow in any::<bool>(),
    ) {
        let mut sim = Sim::new(Config::default());
        sim.flaky = flaky.into();
        sim.slow = slow;
        for (index, (cpu, most)) in nodes.iter().enumerate() {
            let allocatable = json!({"cpu": format!("{cpu}m"), "memory": "1Gi", "pods": most.to_string()});
            sim.put(Kind::Node, node_with(&format!("n{index}"), json!({"status": {"allocatable": allocatable}})));
        }
        while sim.deliver() {}
        sim.order = order.into();
        for (index, (cpu, remove, work)) in pods.iter().enumerate() {
            sim.put(Kind::Pod, pod_with(&format!("p{index}"), requests(&format!("{cpu}m"), "0")));
            if *remove == 0 {
                sim.remove(Kind::Pod, "default", &format!("p{}", index / 2));
            }
            if *work {
                sim.deliver();
                sim.work();
            }
            check_room(&sim, &nodes)?;
        }
        sim.settle();
        check_room(&sim, &nodes)?;
    }
}

fn check_room(sim: &Sim, nodes: &[(i64, i64)]) -> Result<(), TestCaseError> {
    for (index, (cpu, most)) in nodes.iter().enumerate() {
        let name = format!("n{index}");
        let here: Vec<i64> = sim
            .list(Kind::Pod)
            .iter()
            .filter(|pod| pod["spec"]["nodeName"] == name.as_str())
            .map(|pod| {
                let text = pod["spec"]["containers"][0]["resources"]["requests"]["cpu"]
                    .as_str()
                    .unwrap();
                text.trim_end_matches('m').parse().unwrap()
            })
            .collect();
        prop_assert!(
            here.iter().sum::<i64>() <= *cpu,
            "{} has {:?} of {}",
            name,
            here,
            cpu
        );
        prop_assert!(i64::try_from(here.len()).unwrap() <= *most);
    }
    Ok(())
}
