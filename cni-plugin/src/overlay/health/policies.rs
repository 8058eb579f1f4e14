//! What the loop of network policies tells of itself.

use std::time::Duration;

use super::metric;

/// Sums over all syncs, and how it is since the last.
#[derive(Debug, Default)]
pub(super) struct Policies {
    /// They held once.
    held: bool,
    last: Option<policy::Told>,
    syncs: u64,
    failed: u64,
    changes: u64,
    cut: u64,
    took: Duration,
}

impl Policies {
    /// Takes what a sync came to.
    pub(super) fn take(&mut self, told: &policy::Told) {
        let add = |sum: &mut u64, n: usize| *sum += u64::try_from(n).unwrap_or(u64::MAX);
        self.syncs += 1;
        self.took += told.took;
        match &told.report {
            Some(report) => {
                add(&mut self.changes, report.objects);
                add(&mut self.cut, report.cut);
            }
            None => self.failed += 1,
        }
        self.held |= told.holds;
        self.last = Some(told.clone());
    }

    /// Whether they are in the kernel.
    pub(super) fn hold(&self) -> bool {
        self.last.as_ref().is_some_and(|told| told.holds)
    }

    /// What is wrong.
    pub(super) fn problem(&self) -> Option<&str> {
        match &self.last {
            _ if !self.held => Some("network policies are not enforced yet"),
            Some(told) if !told.holds => Some("network policies are not up to date"),
            Some(told) => told.unjudged.as_deref(),
            None => None,
        }
    }

    /// In Prometheus' text format.
    pub(super) fn metrics(&self) -> String {
        let last = self.last.as_ref();
        let isolated = last.map(|told| told.isolated).unwrap_or_default();
        let judged = last.is_some_and(|told| told.unjudged.is_none());
        let count = |n: usize| n.to_string();
        let mut text = String::new();
        for (name, kind, help, value) in [
            (
                "ready",
                "gauge",
                "1 while all policies are in the kernel",
                count(self.hold().into()),
            ),
            (
                "policies",
                "gauge",
                "Policies that select a pod of this node",
                count(last.map_or(0, |told| told.policies)),
            ),
            (
                "bridged_judged",
                "gauge",
                "1 while what pods of this node say to each other is judged",
                count(judged.into()),
            ),
            (
                "syncs_total",
                "counter",
                "Comparisons, of all or of some",
                self.syncs.to_string(),
            ),
            (
                "failures_total",
                "counter",
                "Comparisons that failed",
                self.failed.to_string(),
            ),
            (
                "changes_total",
                "counter",
                "Objects made, changed or deleted in the kernel",
                self.changes.to_string(),
            ),
            (
                "cut_connections_total",
                "counter",
                "Connections that were cut since policies forbid them",
                self.cut.to_string(),
            ),
            (
                "sync_seconds_total",
                "counter",
                "Time spent in all comparisons",
                self.took.as_secs_f64().to_string(),
            ),
        ] {
            text += &metric(&format!("policy_{name}"), kind, help, &value);
        }
        text += "# HELP seaway_policy_isolated_pods Pods of this node that policies select.\n\
                 # TYPE seaway_policy_isolated_pods gauge\n";
        for (direction, n) in ["ingress", "egress"].iter().zip(isolated) {
            text += &format!("seaway_policy_isolated_pods{{direction=\"{direction}\"}} {n}\n");
        }
        text
    }
}
