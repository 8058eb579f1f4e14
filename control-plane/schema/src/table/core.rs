//! Rows of the remaining core kinds.

use serde_json::Value;

use super::cells::{Object, none_if_empty, scalar};
use super::time::age;

const ROLE_LABEL: &str = "node-role.kubernetes.io/";

pub(super) fn node(o: &Object<'_>) -> Vec<Value> {
    let mut status = match o.condition("Ready") {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if o.at("/spec/unschedulable") == true {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<String> = Vec::new();
    for (key, value) in o.at("/metadata/labels").as_object().into_iter().flatten() {
        if let Some(role) = key.strip_prefix(ROLE_LABEL).filter(|r| !r.is_empty()) {
            roles.push(role.to_owned());
        } else if key == "kubernetes.io/role" && value != "" {
            roles.push(scalar(value));
        }
    }
    roles.sort();
    roles.dedup();
    let address = |kind: &str| {
        o.list("/status/addresses")
            .iter()
            .find(|a| a["type"] == kind)
            .map_or_else(|| "<none>".to_owned(), |a| scalar(&a["address"]))
    };
    vec![
        o.name().into(),
        status.into(),
        none_if_empty(roles.join(",")).into(),
        o.age().into(),
        o.text("/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        o.text_or("/status/nodeInfo/osImage", "<unknown>").into(),
        o.text_or("/status/nodeInfo/kernelVersion", "<unknown>")
            .into(),
        o.text_or("/status/nodeInfo/containerRuntimeVersion", "<unknown>")
            .into(),
    ]
}

pub(super) fn namespace(o: &Object<'_>) -> Vec<Value> {
    o.named(vec![o.text("/status/phase").into()])
}

pub(super) fn config_map(o: &Object<'_>) -> Vec<Value> {
    let count = |at| o.count(at).as_u64().unwrap_or(0);
    o.named(vec![(count("/data") + count("/binaryData")).into()])
}

pub(super) fn secret(o: &Object<'_>) -> Vec<Value> {
    o.named(vec![o.text("/type").into(), o.count("/data")])
}

pub(super) fn service_account(o: &Object<'_>) -> Vec<Value> {
    o.named(vec![o.count("/secrets")])
}

/// An event, read through the names its fields have in core/v1 or events.k8s.io/v1.
struct EventFields {
    object: &'static str,
    message: &'static str,
    source: &'static str,
    reporter: &'static str,
    first: &'static str,
    last: &'static str,
    count: &'static str,
}

pub(super) fn event(o: &Object<'_>) -> Vec<Value> {
    let fields = EventFields {
        object: "/involvedObject",
        message: "/message",
        source: "/source",
        reporter: "/reportingComponent",
        first: "/firstTimestamp",
        last: "/lastTimestamp",
        count: "/count",
    };
    event_cells(o, &fields)
}

pub(super) fn event_v1(o: &Object<'_>) -> Vec<Value> {
    let fields = EventFields {
        object: "/regarding",
        message: "/note",
        source: "/deprecatedSource",
        reporter: "/reportingController",
        first: "/deprecatedFirstTimestamp",
        last: "/deprecatedLastTimestamp",
        count: "/deprecatedCount",
    };
    event_cells(o, &fields)
}

fn event_cells(o: &Object<'_>, fields: &EventFields) -> Vec<Value> {
    let first = o.text_or(fields.first, "");
    let first = if first.is_empty() {
        o.text("/eventTime")
    } else {
        first
    };
    let mut last = o.text_or(fields.last, "");
    if last.is_empty() {
        last = first;
    }
    let mut count = o.int(fields.count).max(1);
    if !o.at("/series").is_null() {
        last = o.text("/series/lastObservedTime");
        count = o.int("/series/count");
    }
    let part = |name: &str| o.text(&format!("{}/{name}", fields.object));
    let object = match (part("kind").to_lowercase(), part("name")) {
        (kind, "") => kind,
        (kind, name) => format!("{kind}/{name}"),
    };
    let (component, host) = match o.text(&format!("{}/component", fields.source)) {
        "" => (o.text(fields.reporter), o.text("/reportingInstance")),
        component => (component, o.text(&format!("{}/host", fields.source))),
    };
    let source = if host.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {host}")
    };
    vec![
        age(last, o.now).into(),
        o.text("/type").into(),
        o.text("/reason").into(),
        object.into(),
        part("fieldPath").into(),
        source.into(),
        o.text(fields.message).trim().into(),
        age(first, o.now).into(),
        count.to_string().into(),
        o.name().into(),
    ]
}

fn access_modes(modes: &[Value]) -> String {
    let order = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let shown: Vec<&str> = order
        .iter()
        .filter(|(long, _)| modes.iter().any(|m| m == long))
        .map(|(_, s)| *s)
        .collect();
    shown.join(",")
}

fn phase<'a>(o: &Object<'a>) -> &'a str {
    if o.is_deleted() {
        "Terminating"
    } else {
        o.text("/status/phase")
    }
}

pub(super) fn persistent_volume(o: &Object<'_>) -> Vec<Value> {
    let claim = match o.at("/spec/claimRef") {
        Value::Object(claim) => format!(
            "{}/{}",
            claim.get("namespace").map(scalar).unwrap_or_default(),
            claim.get("name").map(scalar).unwrap_or_default()
        ),
        _ => String::new(),
    };
    vec![
        o.name().into(),
        o.text("/spec/capacity/storage").into(),
        access_modes(o.list("/spec/accessModes")).into(),
        o.text("/spec/persistentVolumeReclaimPolicy").into(),
        phase(o).into(),
        claim.into(),
        o.text("/spec/storageClassName").into(),
        o.text_or("/spec/volumeAttributesClassName", "<unset>")
            .into(),
        o.text("/status/reason").into(),
        o.age().into(),
        o.text_or("/spec/volumeMode", "<unset>").into(),
    ]
}

pub(super) fn persistent_volume_claim(o: &Object<'_>) -> Vec<Value> {
    let volume = o.text("/spec/volumeName");
    let (capacity, modes) = match volume {
        "" => (String::new(), String::new()),
        _ => (
            o.text("/status/capacity/storage").to_owned(),
            access_modes(o.list("/status/accessModes")),
        ),
    };
    vec![
        o.name().into(),
        phase(o).into(),
        volume.into(),
        capacity.into(),
        modes.into(),
        o.text("/spec/storageClassName").into(),
        o.text_or("/spec/volumeAttributesClassName", "<unset>")
            .into(),
        o.age().into(),
        o.text_or("/spec/volumeMode", "<unset>").into(),
    ]
}

pub(super) fn resource_quota(o: &Object<'_>) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    let mut hard: Vec<_> = o
        .at("/status/hard")
        .as_object()
        .into_iter()
        .flatten()
        .collect();
    hard.sort_by_key(|(name, _)| *name);
    for (name, value) in hard {
        let used = o
            .at("/status/used")
            .get(name)
            .map_or_else(|| "0".to_owned(), scalar);
        let text = format!("{name}: {used}/{}", scalar(value));
        if name.starts_with("limits.") {
            limits.push(text)
        } else {
            requests.push(text)
        }
    }
    o.named(vec![requests.join(", ").into(), limits.join(", ").into()])
}
