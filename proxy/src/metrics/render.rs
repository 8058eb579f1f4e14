//! The pages of numbers.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::{SystemTime, UNIX_EPOCH};

use api::cidr::Family;

use super::{Common, Histogram, Metrics, NoLocal, PerFamily, Text};
use crate::backend::{Mode, TableRules};

impl Metrics {
    /// The page `/metrics`.
    pub fn render(&self) -> String {
        let mut text = Text::default();
        if let Ok(families) = self.families.lock() {
            self.render_syncs(&families, &mut text);
            self.render_changes(&families, &mut text);
            self.render_mode(&families, &mut text);
        }
        if let Ok(common) = self.common.lock() {
            render_common(&common, &mut text);
        }
        self.render_own(&mut text);
        let mut page = text.finish();
        if let Ok(more) = self.more.lock() {
            for more in &more.0 {
                page.push_str(&more());
            }
        }
        page
    }

    /// The page `/metrics/slis` (`k8s.io/component-base/metrics/prometheus/slis`).
    pub fn render_slis(&self, checks: &[(&str, bool)]) -> String {
        let mut text = Text::default();
        let name = "kubernetes_healthcheck";
        text.head(name, "Result of a health check.", "gauge");
        for (check, healthy) in checks {
            let labels = [("name", "proxy"), ("type", *check)];
            text.sample(name, &labels, u8::from(*healthy));
        }
        let name = "kubernetes_healthchecks_total";
        text.head(name, "Results of health checks.", "counter");
        if let Ok(common) = self.common.lock() {
            for ((page, code), n) in &common.answers {
                let status = if *code == 200 { "success" } else { "error" };
                let labels = [("name", "proxy"), ("status", status), ("type", *page)];
                text.sample(name, &labels, n);
            }
        }
        text.finish()
    }

    fn render_syncs(&self, families: &BTreeMap<Family, PerFamily>, text: &mut Text) {
        type Pick = fn(&PerFamily) -> &Histogram;
        let every: &[(&str, &str, Pick)] = &[
            (
                "sync_proxy_rules_duration_seconds",
                "Time of a sync.",
                |of| &of.all,
            ),
            (
                "network_programming_duration_seconds",
                "Time from the change of a pod or service until the rules are in the kernel.",
                |of| &of.network,
            ),
        ];
        let partial: &[(&str, &str, Pick)] = &[
            (
                "sync_full_proxy_rules_duration_seconds",
                "Time of a sync of all rules.",
                |of| &of.full,
            ),
            (
                "sync_partial_proxy_rules_duration_seconds",
                "Time of a sync of changed rules.",
                |of| &of.partial,
            ),
        ];
        let conntrack: &[(&str, &str, Pick)] = &[(
            "conntrack_reconciler_sync_duration_seconds",
            "Time of a search for stale flows.",
            |of| &of.conntrack,
        )];
        let partial = if self.mode == Mode::Ipvs {
            &[]
        } else {
            partial
        };
        for (name, help, pick) in every.iter().chain(partial).chain(conntrack) {
            let name = format!("kubeproxy_{name}");
            text.head(&name, help, "histogram");
            for (family, of) in families {
                let family = family.to_string();
                pick(of).render(&name, &[("ip_family", &family)], text);
            }
        }
    }

    fn render_changes(&self, families: &BTreeMap<Family, PerFamily>, text: &mut Text) {
        type Pick = fn(&PerFamily) -> f64;
        let gauges: &[(&str, &str, Pick)] = &[
            (
                "sync_proxy_rules_last_timestamp_seconds",
                "When rules were last synced.",
                |of| seconds(of.synced),
            ),
            (
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "When a sync was last asked for.",
                |of| seconds(of.queued),
            ),
        ];
        for (name, help, pick) in gauges {
            per_family(families, name, help, "gauge", pick, text);
        }
        type Count = fn(&PerFamily) -> u64;
        let counts: &[(&str, &str, &str, Count)] = &[
            (
                "sync_proxy_rules_endpoint_changes_pending",
                "Changes of endpoints that are not in the kernel yet.",
                "gauge",
                |of| of.pending.endpoints,
            ),
            (
                "sync_proxy_rules_endpoint_changes_total",
                "Changes of endpoints.",
                "counter",
                |of| of.total.endpoints,
            ),
            (
                "sync_proxy_rules_service_changes_pending",
                "Changes of services that are not in the kernel yet.",
                "gauge",
                |of| of.pending.services,
            ),
            (
                "sync_proxy_rules_service_changes_total",
                "Changes of services.",
                "counter",
                |of| of.total.services,
            ),
            (
                "conntrack_reconciler_deleted_entries_total",
                "Stale flows deleted.",
                "counter",
                |of| of.conntrack_deleted,
            ),
        ];
        for (name, help, kind, pick) in counts {
            per_family(families, name, help, kind, pick, text);
        }
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let help = "Service ports with a Local policy, endpoints, and none of them on this node.";
        text.head(name, help, "gauge");
        for (family, of) in families {
            let family = family.to_string();
            let NoLocal { internal, external } = of.no_local;
            for (policy, n) in [("internal", internal), ("external", external)] {
                let labels = [("ip_family", &*family), ("traffic_policy", policy)];
                text.sample(name, &labels, n);
            }
        }
    }

    /// What only some modes have.
    fn render_mode(&self, families: &BTreeMap<Family, PerFamily>, text: &mut Text) {
        type Count = fn(&PerFamily) -> u64;
        let failures: (&str, &str, Count) = match self.mode {
            Mode::Iptables | Mode::Ipvs => (
                "sync_proxy_rules_iptables_restore_failures_total",
                "Syncs that failed.",
                |of| of.failures,
            ),
            Mode::Nftables => (
                "sync_proxy_rules_nftables_sync_failures_total",
                "Syncs that failed.",
                |of| of.failures,
            ),
            Mode::Ebpf => (
                "sync_proxy_rules_ebpf_sync_failures_total",
                "Syncs that failed.",
                |of| of.failures,
            ),
        };
        let (name, help, pick) = failures;
        per_family(families, name, help, "counter", &pick, text);
        if self.mode == Mode::Nftables {
            let name = "sync_proxy_rules_nftables_cleanup_failures_total";
            let help = "Deletions of unused objects that failed.";
            let none: Count = |_| 0;
            per_family(families, name, help, "counter", &none, text);
        }
        if self.mode != Mode::Iptables {
            return;
        }
        let name = "sync_proxy_rules_iptables_partial_restore_failures_total";
        let help = "Syncs of changed rules that failed; all rules are compared after it.";
        let pick: Count = |of| of.partial_failures;
        per_family(families, name, help, "counter", &pick, text);
        type Rules = fn(&TableRules) -> usize;
        let rules: [(&str, &str, Rules); 2] = [
            ("total", "Rules of ours.", |t| t.total),
            ("last", "Rules written by the last sync.", |t| t.last),
        ];
        for (which, help, pick) in rules {
            let name = format!("kubeproxy_sync_proxy_rules_iptables_{which}");
            text.head(&name, help, "gauge");
            for (family, of) in families {
                let family = family.to_string();
                for table in &of.tables {
                    let labels = [("ip_family", &*family), ("table", table.table)];
                    text.sample(&name, &labels, pick(table));
                }
            }
        }
    }

    fn render_own(&self, text: &mut Text) {
        let numbers = [
            (
                "repairs_total",
                "Times that rules of ours were found missing.",
                "counter",
                &self.repairs,
            ),
            (
                "object_problems_total",
                "Parts of objects that could not be used.",
                "counter",
                &self.problems,
            ),
            (
                "service_ports",
                "Service ports, over both families.",
                "gauge",
                &self.ports,
            ),
            (
                "events_sent_total",
                "Events sent to the API server.",
                "counter",
                &self.events,
            ),
            (
                "events_dropped_total",
                "Events left out since there were too many, or since they could not be sent.",
                "counter",
                &self.events_dropped,
            ),
        ];
        for (name, help, kind, number) in numbers {
            text.single(&format!("seaway_proxy_{name}"), help, kind, number.get());
        }
        let name = "process_start_time_seconds";
        let help = "When this process began to count.";
        text.single(name, help, "gauge", seconds(Some(self.started)));
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        if let Ok(bytes) = linux::process::resident_bytes(own) {
            let name = "process_resident_memory_bytes";
            text.single(name, "Memory in use.", "gauge", bytes);
        }
    }
}

fn render_common(common: &Common, text: &mut Text) {
    let name = "seaway_proxy_programming_latency_seconds";
    let help = "Time from an event of a service or its endpoints until it is in the kernel.";
    text.head(name, help, "histogram");
    common.latency.render(name, &[], text);
    let name = "seaway_proxy_conntrack_deleted_flows_total";
    text.head(name, "Stale flows deleted, by service port.", "counter");
    for (port, n) in &common.flows {
        text.sample(name, &[("service", port)], n);
    }
    for page in ["healthz", "livez"] {
        let name = format!("kubeproxy_proxy_{page}_total");
        text.head(&name, "Answers, by code.", "counter");
        for ((of, code), n) in &common.answers {
            if *of == page {
                text.sample(&name, &[("code", &code.to_string())], n);
            }
        }
    }
    let Some(pressure) = common.pressure else {
        return;
    };
    let numbers = [
        ("entries", "Tracked connections.", "gauge", pressure.entries),
        (
            "entries_limit",
            "Connections that can be tracked.",
            "gauge",
            pressure.limit,
        ),
        (
            "insert_failed_total",
            "Connections that could not be tracked since another one had the same addresses.",
            "counter",
            pressure.insert_failed,
        ),
        (
            "drop_total",
            "Connections that could not be tracked since the table was full.",
            "counter",
            pressure.dropped,
        ),
    ];
    for (name, help, kind, n) in numbers {
        text.single(&format!("seaway_proxy_conntrack_{name}"), help, kind, n);
    }
}

fn per_family<T: Display>(
    families: &BTreeMap<Family, PerFamily>,
    name: &str,
    help: &str,
    kind: &str,
    pick: &impl Fn(&PerFamily) -> T,
    text: &mut Text,
) {
    let name = format!("kubeproxy_{name}");
    text.head(&name, help, kind);
    for (family, of) in families {
        let family = family.to_string();
        text.sample(&name, &[("ip_family", &family)], pick(of));
    }
}

fn seconds(at: Option<SystemTime>) -> f64 {
    at.and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default()
        .as_secs_f64()
}
