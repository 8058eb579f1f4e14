//! Rows of the kinds that run pods.

use serde_json::Value;

use super::cells::{Object, scalar};
use super::time::{human_duration, seconds_between};

const TEMPLATE: &str = "/spec/template/spec/containers";

pub(super) fn pod_template(o: &Object<'_>) -> Vec<Value> {
    let [names, images] = o.containers("/template/spec/containers");
    vec![
        o.name().into(),
        names,
        images,
        o.labels("/template/metadata/labels").into(),
    ]
}

pub(super) fn replica_set(o: &Object<'_>) -> Vec<Value> {
    let [names, images] = o.containers(TEMPLATE);
    // A ReplicationController's selector is a plain map.
    let selector = if o.text("/kind") == "ReplicationController" {
        o.labels("/spec/selector")
    } else {
        o.selector("/spec/selector")
    };
    vec![
        o.name().into(),
        o.int("/spec/replicas").into(),
        o.int("/status/replicas").into(),
        o.int("/status/readyReplicas").into(),
        o.age().into(),
        names,
        images,
        selector.into(),
    ]
}

fn ready_of_wanted(o: &Object<'_>) -> String {
    format!(
        "{}/{}",
        o.int("/status/readyReplicas"),
        o.int("/spec/replicas")
    )
}

pub(super) fn deployment(o: &Object<'_>) -> Vec<Value> {
    let [names, images] = o.containers(TEMPLATE);
    vec![
        o.name().into(),
        ready_of_wanted(o).into(),
        o.int("/status/updatedReplicas").into(),
        o.int("/status/availableReplicas").into(),
        o.age().into(),
        names,
        images,
        o.selector("/spec/selector").into(),
    ]
}

pub(super) fn stateful_set(o: &Object<'_>) -> Vec<Value> {
    let [names, images] = o.containers(TEMPLATE);
    vec![
        o.name().into(),
        ready_of_wanted(o).into(),
        o.age().into(),
        names,
        images,
    ]
}

pub(super) fn daemon_set(o: &Object<'_>) -> Vec<Value> {
    let [names, images] = o.containers(TEMPLATE);
    vec![
        o.name().into(),
        o.int("/status/desiredNumberScheduled").into(),
        o.int("/status/currentNumberScheduled").into(),
        o.int("/status/numberReady").into(),
        o.int("/status/updatedNumberScheduled").into(),
        o.int("/status/numberAvailable").into(),
        o.labels("/spec/template/spec/nodeSelector").into(),
        o.age().into(),
        names,
        images,
        o.selector("/spec/selector").into(),
    ]
}

pub(super) fn controller_revision(o: &Object<'_>) -> Vec<Value> {
    let owner = o
        .list("/metadata/ownerReferences")
        .iter()
        .find(|r| r["controller"] == true)
        .map_or_else(
            || "<none>".to_owned(),
            |owner| {
                let kind = scalar(&owner["kind"]).to_lowercase();
                let group = scalar(&owner["apiVersion"]);
                match group.split_once('/') {
                    Some((group, _)) => format!("{kind}.{group}/{}", scalar(&owner["name"])),
                    None => format!("{kind}/{}", scalar(&owner["name"])),
                }
            },
        );
    o.named(vec![owner.into(), o.int("/revision").into()])
}

pub(super) fn job(o: &Object<'_>) -> Vec<Value> {
    let succeeded = o.int("/status/succeeded");
    let completions = match (o.at("/spec/completions"), o.int("/spec/parallelism")) {
        (Value::Number(wanted), _) => format!("{succeeded}/{wanted}"),
        (_, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        _ => format!("{succeeded}/1"),
    };
    let time = |pointer: &str| o.text(pointer).parse::<jiff::Timestamp>().ok();
    let duration = time("/status/startTime").map_or_else(String::new, |start| {
        let end = time("/status/completionTime").unwrap_or(o.now);
        human_duration(seconds_between(start, end))
    });
    let is = |condition| o.condition(condition) == Some("True");
    let status = if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if o.is_deleted() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let [names, images] = o.containers(TEMPLATE);
    vec![
        o.name().into(),
        status.into(),
        completions.into(),
        duration.into(),
        o.age().into(),
        names,
        images,
        o.selector("/spec/selector").into(),
    ]
}

pub(super) fn cron_job(o: &Object<'_>) -> Vec<Value> {
    let suspend = match o.at("/spec/suspend") {
        Value::Bool(true) => "True",
        Value::Bool(false) => "False",
        _ => "<unset>",
    };
    let last = match o.text("/status/lastScheduleTime") {
        "" => "<none>".to_owned(),
        _ => o.since("/status/lastScheduleTime"),
    };
    let [names, images] = o.containers("/spec/jobTemplate/spec/template/spec/containers");
    vec![
        o.name().into(),
        o.text("/spec/schedule").into(),
        o.text_or("/spec/timeZone", "<none>").into(),
        suspend.into(),
        o.count("/status/active"),
        last.into(),
        o.age().into(),
        names,
        images,
        o.selector("/spec/jobTemplate/spec/selector").into(),
    ]
}

pub(super) fn disruption_budget(o: &Object<'_>) -> Vec<Value> {
    let bound = |pointer| match o.at(pointer) {
        Value::Null => "N/A".to_owned(),
        value => scalar(value),
    };
    o.named(vec![
        bound("/spec/minAvailable").into(),
        bound("/spec/maxUnavailable").into(),
        o.int("/status/disruptionsAllowed").into(),
    ])
}
