//! Table T15: services and endpoints that come, change and go, step by step. After each step: the
//! ports that changed, and all endpoints.

use super::*;

/// Slices as `name: port/number[,..] ip[@node][,..]`, one for each part between `;`. `-` for none.
fn slices(text: &str) -> String {
    let mut out = String::new();
    for part in text.split(';').map(str::trim).filter(|part| *part != "-") {
        let (name, rest) = part.split_once(": ").unwrap();
        let (ports, ips) = rest.split_once(' ').unwrap_or((rest, ""));
        let ports: Vec<String> = ports
            .split(',')
            .map(|port| {
                let (name, number) = port.split_once('/').unwrap();
                format!("{{name: '{name}', port: {number}, protocol: UDP}}")
            })
            .collect();
        let endpoints: Vec<String> = ips
            .split(',')
            .filter(|ip| !ip.is_empty())
            .map(|ip| {
                let (ip, node) = ip.split_once('@').unwrap_or((ip, "other"));
                format!("{{addresses: [{ip}], nodeName: {node}}}")
            })
            .collect();
        out.push_str(&format!(
            "kind: EndpointSlice\nmetadata: {{name: {name}, namespace: ns, labels: {{kubernetes.io/service-name: s}}}}\naddressType: IPv4\nports: [{}]\nendpoints: [{}]\n---\n",
            ports.join(", "),
            endpoints.join(", ")
        ));
    }
    out
}

const PORTS: [&str; 6] = ["", "p11", "p12", "p13", "p14", "p22"];

/// The service of all rows, with a port for every name.
fn service_text() -> String {
    let ports: Vec<String> = PORTS
        .iter()
        .enumerate()
        .map(|(i, name)| format!("{{name: '{name}', port: {}, protocol: UDP}}", 80 + i))
        .collect();
    format!(
        "kind: Service\nmetadata: {{name: s, namespace: ns}}\nspec: {{clusterIP: 172.30.0.1, ports: [{}]}}\n---\n",
        ports.join(", ")
    )
}

/// `port -> address (local)` of every port that has endpoints.
fn endpoints(store: &Store) -> Vec<String> {
    let mut all = Vec::new();
    for (name, decision) in &store.snapshot().v4 {
        let targets = decision.targets.iter().map(|t| {
            let here = if t.local { "!" } else { "" };
            format!("{}:{}{here}", t.ip, t.port)
        });
        let targets: Vec<String> = targets.collect();
        if !targets.is_empty() {
            all.push(format!("{}={}", name.port, targets.join(",")));
        }
    }
    all
}

/// From one state to the next: what is there after it, and which ports changed.
#[track_caller]
fn check(before: &str, after: &str, expect: &[&str], changed: &[&str]) {
    let mut store = store_of(&format!("{}{}", service_text(), slices(before)));
    let (old, _) = crate::manifests::parse_documents(&slices(before));
    let (new, _) = crate::manifests::parse_documents(&slices(after));
    let name = |object: &crate::manifests::Object| match object {
        crate::manifests::Object::Slice(slice) => slice.metadata.name.clone(),
        other => panic!("{other:?}"),
    };
    let kept: BTreeSet<String> = new.iter().map(name).collect();
    for object in old
        .into_iter()
        .filter(|object| !kept.contains(&name(object)))
    {
        store.apply(object.deleted());
    }
    for object in new {
        store.apply(object.applied());
    }
    let changes = store.take_changes();
    let ports: Vec<&str> = changes.v4.iter().map(|change| &*change.name.port).collect();
    assert_eq!(ports, changed, "changed");
    assert_eq!(endpoints(&store), expect);
    // Flows to what is gone are stale, whatever way it went.
    for change in &changes.v4 {
        let serving = |decision: &Option<Arc<Decision>>| {
            decision
                .as_ref()
                .map(|d| d.serving.to_vec())
                .unwrap_or_default()
        };
        assert_ne!(serving(&change.old), serving(&change.new));
    }
}

#[test]
fn update_endpoints_map() {
    // Nothing.
    check("-", "-", &[], &[]);
    // No change: a named port; several slices; several ports; many addresses.
    for (same, expect) in [
        ("a: p11/11 1.1.1.1@node", &["p11=1.1.1.1:11!"][..]),
        (
            "a: p11/11 1.1.1.1; b: p12/12 1.1.1.2",
            &["p11=1.1.1.1:11", "p12=1.1.1.2:12"],
        ),
        (
            "a: p11/11,p12/12 1.1.1.1@node; b: p13/13 1.1.1.3",
            &["p11=1.1.1.1:11!", "p12=1.1.1.1:12!", "p13=1.1.1.3:13"],
        ),
        (
            "a: p11/11,p12/12 1.1.1.1@node,1.1.1.2; b: p13/13,p14/14 1.1.1.3,1.1.1.4@node",
            &[
                "p11=1.1.1.1:11!,1.1.1.2:11",
                "p12=1.1.1.1:12!,1.1.1.2:12",
                "p13=1.1.1.3:13,1.1.1.4:13!",
                "p14=1.1.1.3:14,1.1.1.4:14!",
            ],
        ),
    ] {
        check(same, same, expect, &[]);
    }
    // Endpoints come and go.
    check("-", "a: /11 1.1.1.1@node", &["=1.1.1.1:11!"], &[""]);
    check("a: /11 1.1.1.1@node", "-", &[], &[""]);
    // An address and a port come and go.
    let (one, two) = ("a: p11/11 1.1.1.1", "a: p11/11,p12/12 1.1.1.1,1.1.1.2@node");
    let both = ["p11=1.1.1.1:11,1.1.1.2:11!", "p12=1.1.1.1:12,1.1.1.2:12!"];
    check(one, two, &both, &["p11", "p12"]);
    check(two, one, &["p11=1.1.1.1:11"], &["p11", "p12"]);
    // A slice comes and goes.
    let two = "a: p11/11 1.1.1.1; b: p22/22 2.2.2.2@node";
    check(one, two, &["p11=1.1.1.1:11", "p22=2.2.2.2:22!"], &["p22"]);
    check(two, one, &["p11=1.1.1.1:11"], &["p22"]);
    // A port gets another name, another number.
    check(
        one,
        "a: p12/11 1.1.1.1",
        &["p12=1.1.1.1:11"],
        &["p11", "p12"],
    );
    check(one, "a: p11/22 1.1.1.1", &["p11=1.1.1.1:22"], &["p11"]);
    // Much at once.
    check(
        "a: p11/11 1.1.1.1; b: p22/22 2.2.2.2@node,2.2.2.22@node; c: p12/12 2.2.2.3@node",
        "a: p11/11 1.1.1.1,1.1.1.11; c: p12/12 1.1.1.2; d: p14/14 4.4.4.4@node",
        &[
            "p11=1.1.1.1:11,1.1.1.11:11",
            "p12=1.1.1.2:12",
            "p14=4.4.4.4:14!",
        ],
        &["p11", "p12", "p14", "p22"],
    );
    // From no address to one, with a port without a name.
    check("a: /11 ", "a: /11 1.1.1.1@node", &["=1.1.1.1:11!"], &[""]);
    // An endpoint moves from slice to slice: nobody notices.
    check(
        "a: p11/11 1.1.1.1; b: p11/11 1.1.1.2",
        "a: p11/11 1.1.1.1,1.1.1.2",
        &["p11=1.1.1.1:11,1.1.1.2:11"],
        &[],
    );
}

/// BuildServiceMap: add and remove, headless, ExternalName, update.
#[test]
fn service_map() {
    let one = |spec: &str| {
        format!("kind: Service\nmetadata: {{name: a, namespace: ns}}\nspec: {spec}\n---\n")
    };
    let plain =
        "{clusterIP: 172.30.0.1, ports: [{name: x, port: 80}, {name: w, port: 81, protocol: UDP}]}";
    let ports = |store: &Store| {
        let names = store.snapshot().v4.keys();
        names
            .map(|name| format!("{name}/{}", name.protocol))
            .collect::<Vec<_>>()
    };
    for (spec, expect) in [
        (plain, &["ns/a:w/udp", "ns/a:x/tcp"][..]),
        ("{clusterIP: None, ports: [{port: 80}]}", &[]),
        ("{clusterIP: '', ports: [{port: 80}]}", &[]),
        (
            "{type: ExternalName, externalName: example.org, ports: [{port: 80}]}",
            &[],
        ),
        // kube-proxy's own words: an ExternalName with an address is one all the same.
        (
            "{type: ExternalName, clusterIP: 172.30.0.1, ports: [{port: 80}]}",
            &[],
        ),
        (
            "{type: LoadBalancer, clusterIP: 172.30.0.1, ports: [{port: 80, nodePort: 0}]}",
            &["ns/a/tcp"],
        ),
    ] {
        let mut store = store_of(&one(plain));
        let (objects, _) = crate::manifests::parse_documents(&one(spec));
        let object = objects.into_iter().next().unwrap();
        store.apply(object.clone().applied());
        store.take_changes();
        assert_eq!(ports(&store), expect, "{spec}");
        store.apply(object.deleted());
        store.take_changes();
        assert_eq!(ports(&store), Vec::<String>::new());
    }
}

/// TestNoEndpointsMetric and TestHealthCheckNodePortWhenTerminating: what the loop counts from.
#[test]
fn local_policies_without_local_endpoints() {
    use crate::model::Verdict;
    let spec = "{type: LoadBalancer, internalTrafficPolicy: Local, externalTrafficPolicy: Local, healthCheckNodePort: 31000, clusterIP: 172.30.0.1, ports: [{name: p11, port: 80, protocol: UDP, nodePort: 30080}]}";
    let service =
        format!("kind: Service\nmetadata: {{name: s, namespace: ns}}\nspec: {spec}\n---\n");
    let verdicts = |state: &str, terminating: bool| {
        let mut text = slices(state);
        if terminating {
            let conditions =
                "nodeName: node, conditions: {ready: false, serving: true, terminating: true}";
            text = text.replace("nodeName: node", conditions);
        }
        let store = store_of(&format!("{service}{text}"));
        let decision = store.snapshot().v4.values().next().unwrap().clone();
        let ready = store.local_ready(&ServiceName::new("ns", "s"), Family::V4);
        (
            decision.internal.pod.verdict,
            decision.external.outside.verdict,
            ready,
        )
    };
    let local = Verdict::Forward(crate::model::Set::Local);
    assert_eq!(verdicts("a: p11/11 1.1.1.1@node", false), (local, local, 1));
    assert_eq!(
        verdicts("a: p11/11 1.1.1.1", false),
        (Verdict::Drop, Verdict::Drop, 0)
    );
    assert_eq!(verdicts("-", false), (Verdict::Reject, Verdict::Reject, 0));
    // Traffic is still served where the health check says no.
    assert_eq!(verdicts("a: p11/11 1.1.1.1@node", true), (local, local, 0));
}
