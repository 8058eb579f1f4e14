use std::collections::BTreeSet;

use super::*;

/// Names that a mode has, without the suffixes of histograms.
fn names(mode: Mode) -> BTreeSet<String> {
    let text = Metrics::new(mode).render();
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .filter(|name| name.starts_with("kubeproxy_"))
        .map(|name| name.trim_start_matches("kubeproxy_").to_owned())
        .collect()
}

const EVERY: [&str; 13] = [
    "conntrack_reconciler_deleted_entries_total",
    "conntrack_reconciler_sync_duration_seconds",
    "network_programming_duration_seconds",
    "proxy_healthz_total",
    "proxy_livez_total",
    "sync_proxy_rules_duration_seconds",
    "sync_proxy_rules_endpoint_changes_pending",
    "sync_proxy_rules_endpoint_changes_total",
    "sync_proxy_rules_last_queued_timestamp_seconds",
    "sync_proxy_rules_last_timestamp_seconds",
    "sync_proxy_rules_no_local_endpoints_total",
    "sync_proxy_rules_service_changes_pending",
    "sync_proxy_rules_service_changes_total",
];

#[track_caller]
fn check(mode: Mode, more: &[&str]) {
    let expect: BTreeSet<String> = EVERY.iter().chain(more).map(|&n| n.to_owned()).collect();
    assert_eq!(names(mode), expect, "{}", mode.name());
}

#[test]
fn names_of_each_mode() {
    let partial = [
        "sync_full_proxy_rules_duration_seconds",
        "sync_partial_proxy_rules_duration_seconds",
    ];
    let [full, partial] = partial;
    let failures = "sync_proxy_rules_iptables_restore_failures_total";
    let iptables = [
        full,
        partial,
        failures,
        "sync_proxy_rules_iptables_partial_restore_failures_total",
        "sync_proxy_rules_iptables_total",
        "sync_proxy_rules_iptables_last",
    ];
    check(Mode::Iptables, &iptables);
    check(Mode::Ipvs, &[failures]);
    let nftables = [
        full,
        partial,
        "sync_proxy_rules_nftables_sync_failures_total",
        "sync_proxy_rules_nftables_cleanup_failures_total",
    ];
    check(Mode::Nftables, &nftables);
    let ebpf = [full, partial, "sync_proxy_rules_ebpf_sync_failures_total"];
    check(Mode::Ebpf, &ebpf);
}

/// The upper bounds of a histogram's buckets on a page.
fn bounds(page: &str, name: &str) -> Vec<String> {
    let start = format!("{name}_bucket{{");
    let lines = page.lines().filter(|line| line.starts_with(&start));
    let one = lines.filter(|line| line.contains("IPv4") || !line.contains("ip_family"));
    one.map(|line| line.split("le=\"").nth(1).unwrap())
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect()
}

#[test]
fn buckets() {
    let page = Metrics::new(Mode::Iptables).render();
    let sync = bounds(&page, "kubeproxy_sync_proxy_rules_duration_seconds");
    assert_eq!(sync.len(), 16);
    assert_eq!((&*sync[0], &*sync[14]), ("0.001", "16.384"));
    let network = bounds(&page, "kubeproxy_network_programming_duration_seconds");
    let mut expect: Vec<String> = ["0.25", "0.5"].map(str::to_owned).into();
    expect.extend((1..60).map(|n| n.to_string()));
    expect.extend((60..120).step_by(5).map(|n: u32| n.to_string()));
    expect.extend((120..=300).step_by(30).map(|n: u32| n.to_string()));
    expect.push("+Inf".to_owned());
    assert_eq!(network, expect);
    let own = bounds(&page, "seaway_proxy_programming_latency_seconds");
    assert_eq!(own[0], "0.00001");
}

#[track_caller]
fn has(page: &str, line: &str) {
    assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
}

#[test]
fn numbers_end_up_on_the_page() {
    let metrics = Metrics::new(Mode::Iptables);
    let changed = Changed {
        services: 2,
        endpoints: 3,
    };
    metrics.changed(Family::V4, changed);
    metrics.changed(Family::V4, changed);
    let page = metrics.render();
    has(
        &page,
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family=\"IPv4\"} 6",
    );
    let tables = vec![TableRules {
        table: "nat",
        total: 7,
        last: 5,
    }];
    let no_local = NoLocal {
        internal: 1,
        external: 4,
    };
    metrics.synced(
        Family::V4,
        false,
        Duration::from_millis(3),
        no_local,
        tables,
    );
    metrics.failed(Family::V6, false);
    metrics.failed(Family::V6, true);
    metrics.programmed(Family::V4, Duration::from_millis(600));
    metrics.latency(Duration::from_micros(70), 3);
    metrics.answered("healthz", 503);
    metrics.pressure(Pressure {
        entries: 1,
        limit: 2,
        insert_failed: 3,
        dropped: 4,
    });
    let page = metrics.render();
    for line in [
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family=\"IPv4\"} 0",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total{ip_family=\"IPv4\"} 6",
        "kubeproxy_sync_proxy_rules_service_changes_total{ip_family=\"IPv4\"} 4",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 4",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 0",
        "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"} 7",
        "kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv4\",table=\"nat\"} 5",
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv6\"} 2",
        "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv6\"} 1",
        "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.5\"} 0",
        "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"1\"} 1",
        "seaway_proxy_programming_latency_seconds_bucket{le=\"0.00005\"} 0",
        "seaway_proxy_programming_latency_seconds_bucket{le=\"0.0001\"} 3",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "seaway_proxy_conntrack_insert_failed_total 3",
    ] {
        has(&page, line);
    }
    let page = metrics.render_slis(&[("healthz", false), ("livez", true)]);
    has(
        &page,
        "kubernetes_healthcheck{name=\"proxy\",type=\"healthz\"} 0",
    );
    has(
        &page,
        "kubernetes_healthchecks_total{name=\"proxy\",status=\"error\",type=\"healthz\"} 1",
    );
}

#[test]
fn services_with_stale_flows_are_told_apart_up_to_a_limit() {
    let metrics = Metrics::new(Mode::Iptables);
    for i in 0..FLOW_PORTS_MAX + 5 {
        let port = PortName {
            service: crate::model::ServiceName::new("ns", &format!("s{i}")),
            port: "".into(),
            protocol: crate::model::Protocol::Udp,
        };
        metrics.conntrack(Family::V4, Duration::ZERO, &[(port, 1)].into());
    }
    let page = metrics.render();
    has(
        &page,
        "seaway_proxy_conntrack_deleted_flows_total{service=\"ns/s0\"} 1",
    );
    has(
        &page,
        "seaway_proxy_conntrack_deleted_flows_total{service=\"others\"} 5",
    );
}
