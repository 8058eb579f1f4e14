//! Names of chains. They are kube-proxy's, to the letter, so that operators and their tools find
//! what they know, and a node can change from one to the other without a gap.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256};

use super::rule::ChainName;
use crate::model::PortName;

/// `XT_EXTENSION_MAXNAMELEN` of `linux/netfilter/x_tables.h`, less the final zero.
pub const CHAIN_NAME_MAX: usize = 28;

/// nat and filter: destinations of service traffic.
pub const SERVICES: &str = "KUBE-SERVICES";
/// nat: node ports. filter: health check ports.
pub const NODEPORTS: &str = "KUBE-NODEPORTS";
/// nat: masquerades what is marked.
pub const POSTROUTING: &str = "KUBE-POSTROUTING";
/// nat: marks for masquerading.
pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// filter: external addresses that cannot be served.
pub const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
/// filter: node ports that cannot be served (not a chain of kube-proxy's).
pub const EXTERNAL_NODEPORTS: &str = "KUBE-EXTERNAL-NODEPORTS";
/// filter: sources that may not use a load balancer address.
pub const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
/// filter: forwarding of service traffic.
pub const FORWARD: &str = "KUBE-FORWARD";
/// filter: martians on loopback.
pub const FIREWALL: &str = "KUBE-FIREWALL";
/// filter: there for a moment, to see whether rules can count into counters with names.
pub const COUNTED: &str = "KUBE-PROXY-COUNTED";
/// Counter of packets that were dropped since conntrack could not place them.
pub const COUNTER_INVALID: &str = "ct_state_invalid_dropped_pkts";
/// Counter of connections to node ports on loopback.
pub const COUNTER_LOCALHOST: &str = "localhost_nps_accepted_pkts";
/// All tables: its absence tells that someone flushed.
pub const CANARY: &str = "KUBE-PROXY-CANARY";

/// Chains of a name of their own.
pub const FIXED: [&str; 11] = [
    SERVICES,
    NODEPORTS,
    POSTROUTING,
    MARK_MASQ,
    EXTERNAL_SERVICES,
    EXTERNAL_NODEPORTS,
    PROXY_FIREWALL,
    FORWARD,
    FIREWALL,
    COUNTED,
    CANARY,
];

/// Beginnings of the names of chains that come and go with services.
pub const PREFIXES: [&str; 9] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-SEP-",
    // Dispatch trees; see `dispatch`.
    "KUBE-SVCS-",
    "KUBE-EXTS-",
    "KUBE-FWS-",
    "KUBE-NPS-",
];

/// Whether a chain of this name is ours. (`KUBE-KUBELET-CANARY` and `KUBE-MARK-DROP`, for example,
/// are the kubelet's.)
pub fn is_ours(name: &str) -> bool {
    FIXED.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// All endpoints of the port.
pub fn cluster(port: &PortName) -> ChainName {
    hashed("KUBE-SVC-", &identity(port))
}

/// The port's endpoints on this node.
pub fn local(port: &PortName) -> ChainName {
    hashed("KUBE-SVL-", &identity(port))
}

/// Entry for external addresses.
pub fn external(port: &PortName) -> ChainName {
    hashed("KUBE-EXT-", &identity(port))
}

/// Source ranges of load balancer addresses.
pub fn firewall(port: &PortName) -> ChainName {
    hashed("KUBE-FW-", &identity(port))
}

/// One endpoint of the port.
pub fn endpoint(port: &PortName, ip: IpAddr, number: u16) -> ChainName {
    let address = std::net::SocketAddr::new(ip, number);
    hashed("KUBE-SEP-", &format!("{}{address}", identity(port)))
}

/// A node of a dispatch tree by address: the network where that fits, a hash of `detail` else.
pub fn dispatch(prefix: &str, net: Option<IpNetwork>, detail: &str) -> ChainName {
    match net {
        Some(IpNetwork::V4(net)) if prefix.len() + net.to_string().len() <= CHAIN_NAME_MAX => {
            ChainName::new(&format!("{prefix}{net}"))
        }
        _ if prefix.len() + detail.len() <= CHAIN_NAME_MAX && !detail.contains([' ', ':']) => {
            ChainName::new(&format!("{prefix}{detail}"))
        }
        _ => hashed(prefix, detail),
    }
}

fn identity(port: &PortName) -> String {
    format!("{port}{}", port.protocol)
}

/// `prefix` and the first 16 letters of the base32 of the SHA-256 of `text`.
fn hashed(prefix: &str, text: &str) -> ChainName {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(text.as_bytes());
    let mut name = String::with_capacity(CHAIN_NAME_MAX);
    name.push_str(prefix);
    // 16 letters of 5 bits are 10 bytes.
    let bits = digest
        .iter()
        .take(10)
        .fold(0_u128, |bits, byte| (bits << 8) | u128::from(*byte));
    for i in (0..16).rev() {
        let letter = usize::try_from((bits >> (5 * i)) & 31).unwrap_or_default();
        name.push(char::from(LETTERS[letter]));
    }
    ChainName::new(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceName};

    #[track_caller]
    fn check(namespace: &str, name: &str, port: &str, protocol: Protocol, expect: &str) {
        let port = PortName {
            service: ServiceName::new(namespace, name),
            port: port.into(),
            protocol,
        };
        assert_eq!(cluster(&port).as_str(), expect);
    }

    #[test]
    fn names_that_every_cluster_has() {
        use Protocol::{Tcp, Udp};
        check(
            "default",
            "kubernetes",
            "https",
            Tcp,
            "KUBE-SVC-NPX46M4PTMTKRN6Y",
        );
        check(
            "kube-system",
            "kube-dns",
            "dns",
            Udp,
            "KUBE-SVC-TCOU7JCQXEZGVUNU",
        );
        check(
            "kube-system",
            "kube-dns",
            "dns-tcp",
            Tcp,
            "KUBE-SVC-ERIFXISQEP7F7OF4",
        );
        check(
            "kube-system",
            "kube-dns",
            "metrics",
            Tcp,
            "KUBE-SVC-JD5MR3NA4I4DYORP",
        );
    }

    #[test]
    fn ours_and_others() {
        assert!(is_ours("KUBE-SVC-NPX46M4PTMTKRN6Y"));
        assert!(is_ours("KUBE-SERVICES"));
        assert!(!is_ours("KUBE-KUBELET-CANARY"));
        assert!(!is_ours("CNI-HOSTPORT-DNAT"));
        assert!(!is_ours("POSTROUTING"));
    }
}
