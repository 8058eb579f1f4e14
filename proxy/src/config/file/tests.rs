use expect_test::expect;

use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

#[test]
fn every_key_and_its_default() {
    expect![[r#"
        apiVersion: kubeproxy.config.k8s.io/v1alpha1
        kind: KubeProxyConfiguration
        featureGates: {}
        clientConnection:
          kubeconfig: ""
          acceptContentTypes: ""
          contentType: application/vnd.kubernetes.protobuf
          qps: 5.0
          burst: 10
        logging:
          format: text
          flushFrequency: 5s
          verbosity: 0
          vmodule: []
          options:
            text:
              splitStream: false
              infoBufferSize: "0"
            json:
              splitStream: false
              infoBufferSize: "0"
        hostnameOverride: ""
        bindAddress: "0.0.0.0"
        healthzBindAddress: 0.0.0.0:10256
        metricsBindAddress: 127.0.0.1:10249
        bindAddressHardFail: false
        enableProfiling: false
        showHiddenMetricsForVersion: ""
        mode: ""
        iptables:
          masqueradeBit: 14
          masqueradeAll: false
          localhostNodePorts: true
          syncPeriod: 30s
          minSyncPeriod: 0s
        ipvs:
          syncPeriod: 30s
          minSyncPeriod: 0s
          scheduler: ""
          schedulerFlags: []
          excludeCIDRs: []
          strictARP: false
          tcpTimeout: 0s
          tcpFinTimeout: 0s
          udpTimeout: 0s
        nftables:
          masqueradeBit: 14
          masqueradeAll: false
          syncPeriod: 30s
          minSyncPeriod: 0s
        winkernel:
          networkName: ""
          sourceVip: ""
          enableDSR: false
          rootHnsEndpointName: ""
          forwardHealthCheckVip: false
        detectLocalMode: ""
        detectLocal:
          bridgeInterface: ""
          interfaceNamePrefix: ""
        clusterCIDR: ""
        nodePortAddresses: []
        oomScoreAdj: -999
        conntrack:
          maxPerCore: 32768
          min: 131072
          tcpEstablishedTimeout: 24h0m0s
          tcpCloseWaitTimeout: 1h0m0s
          tcpBeLiberal: false
          udpTimeout: 0s
          udpStreamTimeout: 0s
        configSyncPeriod: 15m0s
        portRange: ""
        windowsRunAsService: false
        clusterDNS: []
        clusterDomain: cluster.local
        dnsUpstream: []
    "#]]
    .assert_eq(&KubeProxyConfiguration::default().to_yaml());
}

#[test]
fn what_is_written_is_read() {
    let default = KubeProxyConfiguration::default();
    assert_eq!(
        KubeProxyConfiguration::parse(&default.to_yaml()),
        Ok(default)
    );
    assert_eq!(
        KubeProxyConfiguration::parse(HEAD),
        Ok(KubeProxyConfiguration::default())
    );
}

/// What kubeadm writes: every key, empty where nothing was asked for.
#[test]
fn zero_and_null_mean_the_default() {
    let text = format!(
        "{HEAD}bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {{acceptContentTypes: \"\", burst: 0, contentType: \"\", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {{maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}}
detectLocal: {{bridgeInterface: \"\", interfaceNamePrefix: \"\"}}
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables: {{localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}}
ipvs: {{excludeCIDRs: null, minSyncPeriod: 0s, scheduler: \"\", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}}
logging: {{flushFrequency: 0, options: {{json: {{infoBufferSize: \"0\"}}, text: {{infoBufferSize: \"0\"}}}}, verbosity: 0}}
metricsBindAddress: \"\"
mode: \"\"
nftables: {{masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}}
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel: {{enableDSR: false, forwardHealthCheckVip: false, networkName: \"\", rootHnsEndpointName: \"\", sourceVip: \"\"}}
"
    );
    let mut expect = KubeProxyConfiguration {
        cluster_cidr: "10.244.0.0/16".to_owned(),
        ..KubeProxyConfiguration::default()
    };
    expect.client_connection.kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf".to_owned();
    assert_eq!(KubeProxyConfiguration::parse(&text), Ok(expect));
}

#[test]
fn an_ipv6_node_has_its_pages_on_ipv6() {
    let read = KubeProxyConfiguration::parse(&format!("{HEAD}bindAddress: \"::\"\n")).unwrap();
    assert_eq!(read.healthz_bind_address, "[::]:10256");
    assert_eq!(read.metrics_bind_address, "[::1]:10249");
}

#[track_caller]
fn check_error(text: &str, path: &str, what: &str) {
    let error = KubeProxyConfiguration::parse(text).unwrap_err();
    assert_eq!(error.path, path, "{error}");
    assert!(error.what.contains(what), "{error}");
}

#[test]
fn errors_name_the_key() {
    let with = |text: &str| format!("{HEAD}{text}\n");
    check_error(&with("nonsense: 1"), "nonsense", "unknown key");
    check_error(
        &with("conntrack: {maxPerCor: 1}"),
        "conntrack.maxPerCor",
        "unknown key",
    );
    check_error(
        &with("logging: {options: {text: {x: 1}}}"),
        "logging.options.text.x",
        "unknown key",
    );
    check_error(
        &with("iptables: {syncPeriod: 5}\nnftables: {syncPeriod: 5 s}"),
        "nftables.syncPeriod",
        "is no time",
    );
    check_error(&with("oomScoreAdj: low"), "oomScoreAdj", "expected i32");
    check_error(
        &with("featureGates: {Any: true, Other: maybe}"),
        "featureGates.Other",
        "expected a boolean",
    );
    check_error("kind: KubeProxyConfiguration\n", "apiVersion", "is missing");
    check_error(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: Pod\n",
        "kind",
        "\"Pod\" is not",
    );
    check_error(&with("mode: a\nmode: b"), ".", "mode");
    check_error("[", ".", "");
}
