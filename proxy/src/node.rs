//! The node this runs on: its addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use api::cidr::{Family, any_contains, of_family};
use linux::addr::Addr;
use linux::{Host, Kernel};

use crate::backend::{NodePortScope, ipvs};
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

/// All addresses of the node, sorted; those of services that mode ipvs has put on its device are not
/// the node's.
///
/// # Errors
/// The kernel's refusal.
pub fn own_ips(host: &mut Kernel) -> linux::Result<Vec<IpAddr>> {
    let addrs = host.all_addrs()?.into_iter();
    let addrs = addrs.filter(|(link, _)| link != ipvs::DEVICE);
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
