//! The result of ADD, from plan and leases.

use api::cni::{AddResult, Dns, Interface, IpConfig};

use crate::plan::{AddPlan, Addresses};
use crate::request::{Net, Pod};

/// Where the pod's interface stands among the interfaces of the result.
const POD_INTERFACE: usize = 2;

/// The result in no version yet.
pub fn result(net: &Net, pod: &Pod, addresses: &Addresses, plan: &AddPlan) -> AddResult {
    let mtu = net.bridge.mtu;
    let outside = |name: &str, mac: String| Interface {
        name: name.to_owned(),
        mac,
        mtu,
        ..Interface::default()
    };
    let bridge_mac = plan
        .bridge_mac
        .map(|mac| mac.to_string())
        .unwrap_or_default();
    let mut interfaces = vec![
        // The bridge's MTU is the node's affair.
        Interface {
            mtu: None,
            ..outside(&net.bridge.name, bridge_mac)
        },
        outside(&plan.host_link, plan.host_mac.to_string()),
        Interface {
            sandbox: pod.netns.display().to_string(),
            ..outside(&pod.owner.ifname, plan.pod_mac.to_string())
        },
    ];
    interfaces.extend(plan.addition.interface.clone());
    let ips = addresses.leases.iter().map(|lease| IpConfig {
        version: None,
        address: lease.address,
        gateway: lease.gateway,
        interface: Some(POD_INTERFACE),
    });
    AddResult {
        cni_version: String::new(),
        interfaces,
        ips: ips.collect(),
        routes: plan.routes.clone(),
        dns: if net.dns.is_empty() {
            addresses.dns.clone()
        } else {
            net.dns.clone()
        },
    }
}

/// The result of the allocator alone: it made no interface.
pub fn ipam_result(addresses: &Addresses) -> AddResult {
    let ips = addresses.leases.iter().map(|lease| IpConfig {
        version: None,
        address: lease.address,
        gateway: lease.gateway,
        interface: None,
    });
    AddResult {
        ips: ips.collect(),
        routes: addresses.routes.clone(),
        dns: addresses.dns.clone(),
        ..AddResult::default()
    }
}

/// Name servers and search domains of a `resolv.conf`.
pub fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line
            .split(['#', ';'])
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let (Some(key), rest) = (words.next(), words.map(str::to_owned)) else {
            continue;
        };
        match key {
            "nameserver" => dns.nameservers.extend(rest.take(1)),
            "domain" => dns.domain = rest.take(1).collect(),
            "search" => dns.search = rest.collect(),
            "options" => dns.options.extend(rest),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_as_resolvers_read_it() {
        let dns = parse_resolv_conf(
            "# comment\nnameserver 10.96.0.10 ; x\nnameserver fd00::a\ndomain a.b\n\
             search old\nsearch a.b c.d\noptions ndots:5\noptions edns0\nsortlist x\n",
        );
        assert_eq!(dns.nameservers, ["10.96.0.10", "fd00::a"]);
        assert_eq!((dns.domain.as_str(), dns.search.len()), ("a.b", 2));
        assert_eq!(dns.options, ["ndots:5", "edns0"]);
    }
}
