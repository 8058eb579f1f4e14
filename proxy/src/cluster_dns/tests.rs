use super::*;
use crate::manifests::{Object, parse_documents};

const HEADLESS: &str = "kind: Service\nmetadata: {name: h, namespace: ns}\nspec: {clusterIP: None, ports: [{port: 80}]}";
const SLICE: &str = "kind: EndpointSlice\nmetadata: {name: h-1, namespace: ns, labels: {kubernetes.io/service-name: h}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.1]}]";
const PLAIN: &str = "kind: Service\nmetadata: {name: h, namespace: ns}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}";

fn inputs(text: &str, event: fn(Object) -> Input) -> Vec<Input> {
    let (objects, complaints) = parse_documents(text);
    assert_eq!(complaints, Vec::<String>::new());
    objects.into_iter().map(event).collect()
}

fn apply(object: Object) -> Input {
    object.applied()
}

fn delete(object: Object) -> Input {
    object.deleted()
}

/// A manifest, and the event made of it.
type Step<'a> = (&'a str, fn(Object) -> Input);

/// Applies steps to an empty feed; the zone must answer with these addresses at the end.
#[track_caller]
fn check(keep_all: bool, steps: &[Step<'_>], expect: &str) {
    let zone = Handle::new("cluster.local", &[]).unwrap();
    let mut feed = Feed::new(zone.clone(), keep_all);
    for (text, event) in steps {
        for input in inputs(text, *event) {
            feed.apply(&input);
        }
    }
    zone.set_ready();
    let got = zone.update(|zone| format!("{:?}", zone));
    let found: Vec<&str> = ["10.0.0.1", "10.96.0.9"]
        .into_iter()
        .filter(|ip| got.contains(ip))
        .collect();
    assert_eq!(found.join(" "), expect, "{got}");
}

#[test]
fn events_in_any_order() {
    check(false, &[(HEADLESS, apply), (SLICE, apply)], "10.0.0.1");
    check(false, &[(SLICE, apply), (HEADLESS, apply)], "10.0.0.1");
    check(
        false,
        &[(SLICE, apply), (HEADLESS, apply), (SLICE, delete)],
        "",
    );
    check(
        false,
        &[(SLICE, apply), (HEADLESS, apply), (HEADLESS, delete)],
        "",
    );
    check(false, &[(PLAIN, apply), (SLICE, apply)], "10.96.0.9");
    check(
        true,
        &[(PLAIN, apply), (SLICE, apply), (HEADLESS, apply)],
        "10.0.0.1",
    );
    check(
        true,
        &[(HEADLESS, apply), (SLICE, apply), (PLAIN, apply)],
        "10.96.0.9",
    );
}
