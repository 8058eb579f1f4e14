//! Disruption budgets, as evictions see them: how many pods may go is worked out from the pods
//! themselves at the time of asking, and noted in the budget's status.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::selector::LabelSelector;
use jiff::{SignedDuration, Timestamp};
use schema::kinds::{Kind, kind_by_resource};
use serde_json::{Value, json};

use super::create::timestamp;
use super::modify::{Part, Subject, modify};
use super::object::{list, prefix, text};
use crate::app::{App, Call};
use crate::http::error::{ApiError, Result};
use crate::store::Range;

/// How long a pod counts as leaving after its eviction was granted, as upstream's
/// DeletionTimeout of the disruption controller.
const DISRUPTION_LIFE: SignedDuration = SignedDuration::from_mins(2);

/// Takes one from the budget that covers the pod, or refuses with 429.
pub(super) async fn take(app: &Arc<App>, call: &Call, pod: &Value, dry_run: bool) -> Result<()> {
    let namespace = call.target.namespace();
    let Some(kind) = kind_by_resource("policy", "v1", "poddisruptionbudgets") else {
        return Ok(());
    };
    let covers = |budget: &Value| {
        let selector = LabelSelector::from_json(&budget["spec"]["selector"]);
        selector.is_ok_and(|selector| selector.matches_object(pod))
    };
    let budgets = read_all(app, kind, namespace).await?;
    let covering: Vec<&Value> = budgets.iter().filter(|budget| covers(budget)).collect();
    let budget = match covering[..] {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(ApiError::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let pods = match kind_by_resource("", "v1", "pods") {
        Some(pods) => read_all(app, pods, namespace).await?,
        None => Vec::new(),
    };
    let name = text(pod, "/metadata/name");
    let budget = text(budget, "/metadata/name");
    let subject = Subject {
        kind,
        namespace,
        name: budget,
        user: &call.user,
        manager: None,
    };
    modify(app, subject, Part::Whole, dry_run, |old| {
        let now = Timestamp::now();
        let status = count(old, &pods, now);
        if status.allowed() <= 0 {
            let mut refusal = ApiError::too_many(
                "Cannot evict pod as it would violate the pod's disruption budget.",
            );
            let text = format!(
                "The disruption budget {budget} needs {} healthy pods and has {} currently",
                status.desired, status.healthy
            );
            let cause = json!({"reason": "DisruptionBudget", "message": text});
            refusal.details.insert("causes".to_owned(), json!([cause]));
            return Err(refusal);
        }
        let mut new = old.clone();
        let mut disrupted = status.leaving;
        disrupted.insert(name.to_owned());
        let before = &old["status"]["disruptedPods"];
        let since = |pod: &String| match before[pod].as_str() {
            Some(since) => since.to_owned(),
            None => timestamp(now),
        };
        new["status"]["disruptedPods"] = disrupted
            .iter()
            .map(|pod| (pod.clone(), Value::from(since(pod))))
            .collect();
        new["status"]["disruptionsAllowed"] = (status.healthy - status.desired - 1).into();
        new["status"]["currentHealthy"] = (status.healthy - 1).into();
        new["status"]["desiredHealthy"] = status.desired.into();
        new["status"]["expectedPods"] = status.expected.into();
        Ok(new)
    })
    .await?;
    Ok(())
}

async fn read_all(app: &App, kind: &'static Kind, namespace: &str) -> Result<Vec<Value>> {
    let prefix = prefix(kind, namespace);
    let page = app
        .store
        .list(Range {
            prefix: &prefix,
            ..Range::default()
        })
        .await?;
    let parse = |value: &[u8]| serde_json::from_slice(value).map_err(ApiError::internal);
    page.items.iter().map(|kv| parse(&kv.value)).collect()
}

/// What a budget covers at one moment.
#[derive(Debug, PartialEq, Eq)]
struct Count {
    /// Pods it covers.
    expected: i64,
    /// Those that are ready and stay.
    healthy: i64,
    /// How many must stay.
    desired: i64,
    /// Pods whose eviction was granted and that are still there.
    leaving: BTreeSet<String>,
}

impl Count {
    fn allowed(&self) -> i64 {
        self.healthy - self.desired
    }
}

fn count(budget: &Value, pods: &[Value], now: Timestamp) -> Count {
    let selector = LabelSelector::from_json(&budget["spec"]["selector"]).ok();
    let covered: Vec<&Value> = pods
        .iter()
        .filter(|pod| {
            selector
                .as_ref()
                .is_some_and(|selector| selector.matches_object(pod))
        })
        .filter(|pod| !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed"))
        .collect();
    let leaving: BTreeSet<String> = budget["status"]["disruptedPods"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, since)| {
            let since: Option<Timestamp> = since.as_str().and_then(|text| text.parse().ok());
            since.is_some_and(|since| now.duration_since(since) < DISRUPTION_LIFE)
                && covered
                    .iter()
                    .any(|pod| text(pod, "/metadata/name") == *name)
        })
        .map(|(name, _)| name.clone())
        .collect();
    let healthy = covered.iter().filter(|pod| {
        let ready = list(pod, "/status/conditions")
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        ready
            && text(pod, "/metadata/deletionTimestamp").is_empty()
            && !leaving.contains(text(pod, "/metadata/name"))
    });
    let healthy = to_i64(healthy.count());
    let expected = to_i64(covered.len());
    let spec = &budget["spec"];
    let desired = match (
        share(&spec["minAvailable"], expected),
        share(&spec["maxUnavailable"], expected),
    ) {
        (Some(least), _) => least,
        (None, Some(most)) => expected - most,
        (None, None) => expected,
    };
    Count {
        expected,
        healthy,
        desired: desired.max(0),
        leaving,
    }
}

fn to_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A number, or a percentage of `total` rounded up.
fn share(value: &Value, total: i64) -> Option<i64> {
    let percent = |text: &str| text.strip_suffix('%')?.parse::<i64>().ok();
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => Some((percent(text)?.saturating_mul(total) + 99) / 100),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pods are `r`eady, `n`ot ready, `d`eleted or `l`eaving; answers how many may go.
    #[track_caller]
    fn check(spec: Value, pods: &str, allowed: i64) {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let mut budget = json!({"spec": spec});
        budget["spec"]["selector"] = json!({"matchLabels": {"a": "b"}});
        let pods: Vec<Value> = pods
            .chars()
            .enumerate()
            .map(|(n, state)| {
                let ready = if state == 'n' { "False" } else { "True" };
                let name = format!("p{n}");
                let mut pod = json!({
                    "metadata": {"name": name, "labels": {"a": "b"}},
                    "status": {"conditions": [{"type": "Ready", "status": ready}]},
                });
                if state == 'd' {
                    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                }
                if state == 'l' {
                    budget["status"]["disruptedPods"][name] = "2026-01-01T00:00:00Z".into();
                }
                pod
            })
            .collect();
        assert_eq!(count(&budget, &pods, now).allowed(), allowed, "{budget}");
    }

    #[test]
    fn rows() {
        check(json!({"minAvailable": 2}), "rrr", 1);
        check(json!({"minAvailable": 2}), "rrn", 0);
        check(json!({"minAvailable": 2}), "rrd", 0);
        check(json!({"minAvailable": 2}), "rrl", 0);
        check(json!({"minAvailable": "50%"}), "rrr", 1);
        check(json!({"maxUnavailable": 1}), "rrr", 1);
        check(json!({"maxUnavailable": 1}), "rrn", 0);
        check(json!({"maxUnavailable": "34%"}), "rrr", 2);
        check(json!({"maxUnavailable": 0}), "rrr", 0);
    }
}
