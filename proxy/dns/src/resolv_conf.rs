//! The name servers of `resolv.conf(5)`.

use std::net::{IpAddr, SocketAddr};

/// The servers that a resolver would ask, in order, at port 53. At most three, as glibc does.
pub fn upstreams(resolv_conf: &str) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let ip = words.next().and_then(|text| text.parse::<IpAddr>().ok());
        if let Some(ip) = ip.filter(|ip| !ip.is_unspecified()) {
            all.push(SocketAddr::new(ip, 53));
        }
    }
    all.truncate(3);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_in_order() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 192.0.2.1 # x\n\
                    nameserver  fd00::1\nnameserver fe80::1%eth0\nnameserver bad\n\
                    nameserver 0.0.0.0\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let all: Vec<String> = upstreams(text).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["192.0.2.1:53", "[fd00::1]:53", "192.0.2.2:53"]);
        assert!(upstreams("").is_empty());
    }
}
