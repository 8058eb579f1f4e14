//! Short ways to write pods and facts in tests.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::observed::{Container, Exit, Observed, Sandbox, State};

/// `name: {spec}` in a small YAML-like notation where bare words are strings; a spec without
/// containers gets one named `c`.
pub(crate) fn pod(text: &str) -> Pod {
    let (name, spec) = text.split_once(':').expect("name: {spec}");
    let mut spec = relaxed(spec.trim());
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "image": "sample"}]);
    }
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1},
        "spec": spec,
    }))
    .expect("a pod")
}

/// JSON with unquoted words.
pub(crate) fn relaxed(text: &str) -> Value {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word: String = rest
            .chars()
            .take_while(|c| c.is_alphanumeric() || "-_./".contains(*c))
            .collect();
        if c == '"' {
            let end = rest[1..].find('"').expect("closing quote") + 2;
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        } else if word.is_empty() {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            let plain = word.parse::<f64>().is_ok() || ["true", "false", "null"].contains(&&*word);
            let quote = if plain { "" } else { "\"" };
            out.push_str(&format!("{quote}{word}{quote}"));
            rest = &rest[word.len()..];
        }
    }
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

/// Second `s` of the tests' day.
pub(crate) fn at(s: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + s).expect("a time")
}

/// A ready sandbox and the containers given as `name#attempt=state`, where state is `up`, `new`, or an exit code.
pub(crate) fn observed(containers: &str) -> Observed {
    let container = |text: &str| {
        let (who, state) = text.split_once('=').expect("name#n=state");
        let (name, attempt) = who.split_once('#').unwrap_or((who, "0"));
        let state = match state {
            "up" => State::Running { started: at(0) },
            "new" => State::Created,
            code => State::Exited(Exit {
                code: code.parse().expect("exit code"),
                started: Some(at(0)),
                finished: Some(at(10)),
                ..Exit::default()
            }),
        };
        Container {
            id: format!("{name}-{attempt}"),
            name: name.to_owned(),
            attempt: attempt.parse().expect("attempt"),
            sandbox_id: "sb".to_owned(),
            image: "sample".to_owned(),
            image_id: "sha256:1".to_owned(),
            state,
        }
    };
    Observed {
        sandbox: Some(Sandbox {
            id: "sb".to_owned(),
            ready: true,
            ips: vec![
                "10.244.1.7".parse().expect("ip"),
                "fd00::7".parse().expect("ip"),
            ],
        }),
        containers: containers.split_whitespace().map(container).collect(),
    }
}
