//! Names and types.

use api::cidr::Family;
use linux::ipset::NAME_BYTES_MAX;

use super::{SetId, kind, set_name};

/// kube-proxy's sets (`pkg/proxy/ipvs/ipset.go` of Kubernetes 1.36) in the order of [`SetId::ALL`],
/// for IPv4 and IPv6, after those that only we have.
const NAMES_AND_TYPES: &[(&str, &str, &str)] = &[
    ("SEAWAY4-frontends", "SEAWAY6-frontends", "hash:ip,port"),
    ("SEAWAY4-inside", "SEAWAY6-inside", "hash:ip,port"),
    ("SEAWAY4-masq-all", "SEAWAY6-masq-all", "hash:ip,port"),
    ("SEAWAY4-refuse", "SEAWAY6-refuse", "hash:ip,port"),
    ("SEAWAY4-drop-all", "SEAWAY6-drop-all", "hash:ip,port"),
    (
        "SEAWAY4-drop-outside",
        "SEAWAY6-drop-outside",
        "hash:ip,port",
    ),
    ("KUBE-IPVS-IPS", "KUBE-6-IPVS-IPS", "hash:ip"),
    ("KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "hash:ip,port"),
    ("KUBE-EXTERNAL-IP", "KUBE-6-EXTERNAL-IP", "hash:ip,port"),
    (
        "KUBE-EXTERNAL-IP-LOCAL",
        "KUBE-6-EXTERNAL-IP-LOCAL",
        "hash:ip,port",
    ),
    ("KUBE-LOAD-BALANCER", "KUBE-6-LOAD-BALANCER", "hash:ip,port"),
    (
        "KUBE-LOAD-BALANCER-LOCAL",
        "KUBE-6-LOAD-BALANCER-LOCAL",
        "hash:ip,port",
    ),
    (
        "KUBE-LOAD-BALANCER-FW",
        "KUBE-6-LOAD-BALANCER-FW",
        "hash:ip,port",
    ),
    (
        "KUBE-LOAD-BALANCER-SOURCE-IP",
        "KUBE-6-LOAD-BALANCER-SOURCE-IP",
        "hash:ip,port,ip",
    ),
    (
        "KUBE-LOAD-BALANCER-SOURCE-CIDR",
        "KUBE-6-LOAD-BALANCER-SOURCE-CID",
        "hash:ip,port,net",
    ),
    ("KUBE-NODE-PORT-TCP", "KUBE-6-NODE-PORT-TCP", "bitmap:port"),
    ("KUBE-NODE-PORT-UDP", "KUBE-6-NODE-PORT-UDP", "bitmap:port"),
    (
        "KUBE-NODE-PORT-SCTP-HASH",
        "KUBE-6-NODE-PORT-SCTP-HASH",
        "hash:ip,port",
    ),
    (
        "KUBE-NODE-PORT-LOCAL-TCP",
        "KUBE-6-NODE-PORT-LOCAL-TCP",
        "bitmap:port",
    ),
    (
        "KUBE-NODE-PORT-LOCAL-UDP",
        "KUBE-6-NODE-PORT-LOCAL-UDP",
        "bitmap:port",
    ),
    (
        "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
        "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS",
        "hash:ip,port",
    ),
    (
        "KUBE-HEALTH-CHECK-NODE-PORT",
        "KUBE-6-HEALTH-CHECK-NODE-PORT",
        "bitmap:port",
    ),
    ("KUBE-LOOP-BACK", "KUBE-6-LOOP-BACK", "hash:ip,port,ip"),
];

#[test]
fn names_and_types() {
    let of = |set: SetId| {
        let name = |family| set_name(family, set);
        let (v4, v6) = (name(Family::V4), name(Family::V6));
        assert!(v4.len() <= NAME_BYTES_MAX && v6.len() <= NAME_BYTES_MAX);
        (v4, v6, kind(set).type_name())
    };
    let all: Vec<(String, String, &str)> = SetId::ALL.into_iter().map(of).collect();
    let wanted = NAMES_AND_TYPES.iter();
    let wanted: Vec<(String, String, &str)> = wanted
        .map(|(v4, v6, of_type)| ((*v4).to_owned(), (*v6).to_owned(), *of_type))
        .collect();
    assert_eq!(all, wanted);
}
