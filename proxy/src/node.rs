//! The node this runs on: its addresses, and the kernel settings that the rules need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use api::cidr::{Family, any_contains, of_family};
use linux::addr::Addr;
use linux::{Host, Kernel};

use crate::backend::NodePortScope;
use crate::config::NodePortAddresses;

/// The link that cluster DNS addresses are put on.
const LOOPBACK: &str = "lo";

/// Addresses of no host (RFC 5737, RFC 3849), by which the kernel is asked for its source address.
const NOWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// The node's addresses as the kernel has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// All, sorted.
    pub all: Vec<IpAddr>,
    /// Those that packets have which leave by the default route, one for each family at most.
    pub primary: Vec<IpAddr>,
}

impl Addresses {
    /// Asks the kernel.
    ///
    /// # Errors
    /// Its refusal.
    pub fn observe(host: &mut Kernel) -> linux::Result<Self> {
        let all = own_ips(host)?;
        Ok(Self {
            primary: primary_ips(None, &all),
            all,
        })
    }
}

/// All addresses of the node, sorted.
///
/// # Errors
/// The kernel's refusal.
pub fn own_ips(host: &mut Kernel) -> linux::Result<Vec<IpAddr>> {
    let addrs = host.all_addrs()?.into_iter();
    let mut ips: Vec<IpAddr> = addrs.map(|(_, addr)| addr.net.ip()).collect();
    ips.sort_unstable();
    ips.dedup();
    Ok(ips)
}

/// The node's address for each family: `given`, or the source address of packets that leave by the
/// default route, or any that is not loopback or link-local.
pub fn primary_ips(given: Option<IpAddr>, all: &[IpAddr]) -> Vec<IpAddr> {
    let families = Family::BOTH.into_iter().zip(NOWHERE);
    let primary = families.filter_map(|(family, nowhere)| {
        let given = given.filter(|ip| Family::of(*ip) == family);
        let usable = |ip: &&IpAddr| Family::of(**ip) == family && is_global(**ip);
        given
            .or_else(|| source_to(nowhere).filter(|ip| is_global(*ip)))
            .or_else(|| all.iter().find(usable).copied())
    });
    primary.collect()
}

fn is_global(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !ip.is_loopback() && !ip.is_unspecified() && !link_local
}

/// The source address for packets to `ip`. Connecting a UDP socket sends nothing.
fn source_to(ip: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(ip, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// On which of the node's addresses node ports of `family` are served.
pub fn node_port_scope(
    wanted: &NodePortAddresses,
    family: Family,
    primary: &[IpAddr],
    all: &[IpAddr],
) -> NodePortScope {
    let own = |ips: &[IpAddr], wanted: &dyn Fn(IpAddr) -> bool| {
        let own = ips.iter().copied();
        NodePortScope::Only(
            own.filter(|ip| Family::of(*ip) == family && wanted(*ip))
                .collect(),
        )
    };
    match wanted {
        NodePortAddresses::All => NodePortScope::All,
        NodePortAddresses::Primary => own(primary, &|_| true),
        NodePortAddresses::Within(nets) => {
            let mut nets_of = of_family(nets, family).peekable();
            // Networks of the other family say nothing about this one.
            if nets_of.peek().is_none() || nets_of.any(|net| net.prefix() == 0) {
                return NodePortScope::All;
            }
            own(all, &|ip| any_contains(nets, ip))
        }
    }
}

/// Kernel settings that the rules rely on.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// Node ports on 127.0.0.1.
    pub localhost: bool,
    /// Out-of-window packets are not invalid.
    pub tcp_be_liberal: bool,
}

/// Makes them so. Each that cannot be set is logged with what will not work.
pub fn ensure_settings(host: &mut Kernel, needs: Needs) {
    let mut ensure = |key: &str, value: &str, without: &str| match host.ensure_sysctl(key, value) {
        Ok(true) => tracing::info!("{key} set to {value}"),
        Ok(false) => {}
        Err(error) => tracing::warn!("{error}; {without}"),
    };
    if needs.localhost {
        let without = "node ports do not work on 127.0.0.1";
        ensure("net/ipv4/conf/all/route_localnet", "1", without);
    }
    if needs.tcp_be_liberal {
        let without = "connections through asymmetric routes may hang";
        ensure("net/netfilter/nf_conntrack_tcp_be_liberal", "1", without);
    }
    // Replies between two pods on one bridge must pass the rules that translate them back.
    let without = "a pod may not reach services whose endpoint is on the same bridge";
    for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let key = format!("net/bridge/{key}");
        if host.sysctl(&key).is_ok() {
            ensure_one(host, &key, without);
        }
    }
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        if host.sysctl(key).is_ok_and(|value| value == "0") {
            tracing::warn!("{key} is 0: nothing is forwarded to endpoints on other machines");
        }
    }
}

fn ensure_one(host: &mut Kernel, key: &str, without: &str) {
    match host.ensure_sysctl(key, "1") {
        Ok(true) => tracing::info!("{key} set to 1"),
        Ok(false) => {}
        Err(error) => tracing::warn!("{error}; {without}"),
    }
}

/// Puts the addresses of cluster DNS on loopback.
///
/// # Errors
/// The kernel's refusal.
pub fn ensure_dns_addresses(host: &mut Kernel, ips: &[IpAddr]) -> linux::Result<()> {
    for ip in ips {
        host.ensure_addr(LOOPBACK, &Addr::new((*ip).into()))?;
    }
    Ok(())
}

/// Takes the addresses of cluster DNS away.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_dns_addresses(host: &mut Kernel, ips: &[IpAddr]) -> linux::Result<()> {
    for ip in ips {
        host.ensure_no_addr(LOOPBACK, (*ip).into())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(nets: &[&str], family: Family, expect: Option<&[&str]>) {
        let parse = |text: &&str| api::cidr::parse_ip(text).unwrap();
        let all: Vec<IpAddr> = [
            "127.0.0.1",
            "192.168.0.2",
            "192.168.1.2",
            "::1",
            "2001:db8::1",
        ]
        .iter()
        .map(parse)
        .collect();
        let nets = nets
            .iter()
            .map(|net| api::cidr::parse_cidr(net).unwrap())
            .collect();
        let wanted = NodePortAddresses::Within(nets);
        let expect = match expect {
            None => NodePortScope::All,
            Some(ips) => NodePortScope::Only(ips.iter().map(parse).collect()),
        };
        assert_eq!(node_port_scope(&wanted, family, &[], &all), expect);
    }

    #[test]
    fn node_port_networks() {
        use Family::{V4, V6};
        check(&["192.168.0.0/24"], V4, Some(&["192.168.0.2"]));
        check(&["192.168.0.0/24"], V6, None);
        check(&["0.0.0.0/0"], V4, None);
        check(
            &["192.168.0.0/24", "192.168.1.0/24"],
            V4,
            Some(&["192.168.0.2", "192.168.1.2"]),
        );
        check(
            &["192.168.0.2/32", "192.168.0.0/24"],
            V4,
            Some(&["192.168.0.2"]),
        );
        check(&["127.0.0.1/32"], V4, Some(&["127.0.0.1"]));
        check(&["127.0.0.0/8"], V4, Some(&["127.0.0.1"]));
        check(&["203.0.113.0/24"], V4, Some(&[]));
        check(
            &["2001:db8::/64", "::1/128"],
            V6,
            Some(&["::1", "2001:db8::1"]),
        );
        check(&["10.0.0.0/8", "::/0"], V6, None);
    }
}
