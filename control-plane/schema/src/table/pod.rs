//! The row of a pod: upstream's `printPod`, where STATUS is more than the phase.

use serde_json::Value;

use super::cells::Object;
use super::time::age;

/// Reason that stands on a pod whose node is gone.
const NODE_LOST: &str = "NodeLost";

#[derive(Default)]
struct Summary<'a> {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: &'a str,
    /// Counted apart: sidecars stay when the init phase is over.
    sidecar_restarts: i64,
    sidecar_last_restart: &'a str,
}

pub(super) fn pod(o: &Object<'_>) -> Vec<Value> {
    let summary = summarize(o);
    let restarts = match summary.restarts {
        0 => "0".to_owned(),
        n if summary.last_restart.is_empty() => n.to_string(),
        n => format!("{n} ({} ago)", age(summary.last_restart, o.now)),
    };
    let gates = o.list("/spec/readinessGates");
    let passed = gates
        .iter()
        .filter(|g| g["conditionType"].as_str().and_then(|t| o.condition(t)) == Some("True"));
    let gates_cell = match gates.len() {
        0 => "<none>".to_owned(),
        all => format!("{}/{all}", passed.count()),
    };
    let ip = match o.text("/status/podIPs/0/ip") {
        "" => o.text_or("/status/podIP", "<none>"),
        ip => ip,
    };
    vec![
        o.name().into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        o.age().into(),
        ip.into(),
        o.text_or("/spec/nodeName", "<none>").into(),
        o.text_or("/status/nominatedNodeName", "<none>").into(),
        gates_cell.into(),
    ]
}

fn summarize<'a>(o: &Object<'a>) -> Summary<'a> {
    let phase = o.text("/status/phase");
    let mut s = Summary {
        reason: o.text_or("/status/reason", "").to_owned(),
        total: o.list("/spec/containers").len(),
        ..Summary::default()
    };
    if s.reason.is_empty() {
        s.reason = phase.to_owned();
    }
    for condition in o.list("/status/conditions") {
        if condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated" {
            s.reason = "SchedulingGated".to_owned();
        }
    }
    s.total += o
        .list("/spec/initContainers")
        .iter()
        .filter(|c| is_sidecar(c))
        .count();

    let initializing = init_phase(o, &mut s);
    if !initializing || o.condition("Initialized") == Some("True") {
        main_phase(o, &mut s);
    }
    if o.is_deleted() && o.text("/status/reason") == NODE_LOST {
        s.reason = "Unknown".to_owned();
    } else if o.is_deleted() && !matches!(phase, "Succeeded" | "Failed") {
        s.reason = "Terminating".to_owned();
    }
    s
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// Looks at the init containers; true while one of them has not done its part.
fn init_phase<'a>(o: &Object<'a>, s: &mut Summary<'a>) -> bool {
    let specs = o.list("/spec/initContainers");
    for (index, status) in o.list("/status/initContainerStatuses").iter().enumerate() {
        let sidecar = specs
            .iter()
            .any(|c| c["name"] == status["name"] && is_sidecar(c));
        let restarts = status["restartCount"].as_i64().unwrap_or(0);
        s.restarts += restarts;
        later(&mut s.last_restart, status);
        if sidecar {
            s.sidecar_restarts += restarts;
            later(&mut s.sidecar_last_restart, status);
        }
        let terminated = &status["state"]["terminated"];
        if !terminated.is_null() && terminated["exitCode"].as_i64().unwrap_or(0) == 0 {
            continue;
        }
        if sidecar && status["started"] == true {
            s.ready += usize::from(status["ready"] == true);
            continue;
        }
        let waiting = status["state"]["waiting"]["reason"]
            .as_str()
            .unwrap_or_default();
        s.reason = if !terminated.is_null() {
            format!("Init:{}", terminated_reason(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", specs.len())
        };
        return true;
    }
    false
}

fn main_phase<'a>(o: &Object<'a>, s: &mut Summary<'a>) {
    s.restarts = s.sidecar_restarts;
    s.last_restart = s.sidecar_last_restart;
    let mut has_running = false;
    // Backwards, so that the first container's reason is the one that stays.
    for status in o.list("/status/containerStatuses").iter().rev() {
        s.restarts += status["restartCount"].as_i64().unwrap_or(0);
        later(&mut s.last_restart, status);
        let state = &status["state"];
        let waiting = state["waiting"]["reason"].as_str().unwrap_or_default();
        if !waiting.is_empty() {
            s.reason = waiting.to_owned();
        } else if !state["terminated"].is_null() {
            s.reason = terminated_reason(&state["terminated"]);
        } else if status["ready"] == true && !state["running"].is_null() {
            has_running = true;
            s.ready += 1;
        }
    }
    if s.reason == "Completed" && has_running {
        let ready = o.condition("Ready") == Some("True");
        s.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

fn terminated_reason(terminated: &Value) -> String {
    match terminated["reason"].as_str() {
        Some(reason) if !reason.is_empty() => reason.to_owned(),
        _ => match terminated["signal"].as_i64().unwrap_or(0) {
            0 => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
            signal => format!("Signal:{signal}"),
        },
    }
}

/// Moves `latest` to the end of the container's previous run, when that is later.
fn later<'a>(latest: &mut &'a str, status: &'a Value) {
    let finished = status["lastState"]["terminated"]["finishedAt"]
        .as_str()
        .unwrap_or_default();
    let parse = |text: &str| text.parse::<jiff::Timestamp>().ok();
    if parse(finished) > parse(latest) {
        *latest = finished;
    }
}
