//! Routes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};

use crate::link::family;

/// `RTPROT` of routes that Seaway makes, by which they are told from everyone else's. Unassigned in
/// `linux/rtnetlink.h` and in iproute2's `rt_protos`.
pub const PROTOCOL_SEAWAY: u8 = 83;

/// `RTPROT_BOOT`, which `ip route add` uses.
pub const PROTOCOL_BOOT: u8 = 3;

/// Every table, in a [`RouteFilter`] (`RT_TABLE_UNSPEC`).
pub const TABLE_ANY: u32 = 0;

/// The main routing table.
pub const TABLE_MAIN: u32 = 254;

/// The table of the host's own addresses.
pub const TABLE_LOCAL: u32 = 255;

/// The metric the kernel writes into an IPv6 route that names none (`IP6_RT_PRIO_USER`).
const IPV6_METRIC_DEFAULT: u32 = 1024;

/// The bit of `RTAX_MTU` in `RTAX_LOCK` (`linux/rtnetlink.h`).
const LOCK_MTU: u32 = 1 << 2;

/// What happens to packets of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Kind {
    /// They are sent on.
    #[default]
    Unicast,
    /// They are for this host.
    Local,
    /// They are dropped without a word.
    Blackhole,
    /// They are refused with "unreachable".
    Unreachable,
    /// They are refused with "prohibited".
    Prohibit,
    /// Anything else the kernel shows (broadcast, multicast, ...). Never set.
    Other,
}

/// How far a route's next hop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Through a gateway.
    Universe,
    /// On the link itself.
    Link,
    /// On this host.
    Host,
}

/// A route with one next hop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination network; `0.0.0.0/0` or `::/0` for the default route.
    pub dst: IpNetwork,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Name of the link it leaves by.
    pub dev: Option<String>,
    /// Preferred source address.
    pub src: Option<IpAddr>,
    /// Priority, smaller wins; none: the kernel's default.
    pub metric: Option<u32>,
    /// Routing table.
    pub table: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// How far; none: what follows from kind and gateway.
    pub scope: Option<Scope>,
    /// What happens to the packets.
    pub kind: Kind,
    /// The next hop is on the link although no network of the link says so.
    pub onlink: bool,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Nothing that is learned of the path changes `mtu`. Without this the kernel heeds the `mtu` of
    /// an IPv6 route in what it sends itself, and not in what it forwards
    /// (`ip6_dst_mtu_maybe_forward`).
    pub mtu_locked: bool,
    /// Largest TCP segment to announce, in bytes.
    pub advmss: Option<u32>,
}

impl Route {
    /// A route to `dst` in the main table, marked as ours.
    pub fn to(dst: IpNetwork) -> Self {
        Self {
            dst,
            gateway: None,
            dev: None,
            src: None,
            metric: None,
            table: TABLE_MAIN,
            protocol: PROTOCOL_SEAWAY,
            scope: None,
            kind: Kind::Unicast,
            onlink: false,
            mtu: None,
            mtu_locked: false,
            advmss: None,
        }
    }

    /// Through this next hop.
    #[must_use]
    pub fn via(mut self, gateway: IpAddr) -> Self {
        self.gateway = Some(gateway);
        self
    }

    /// Out of this link.
    #[must_use]
    pub fn dev(mut self, dev: impl Into<String>) -> Self {
        self.dev = Some(dev.into());
        self
    }

    /// The next hop is on the link.
    #[must_use]
    pub fn onlink(mut self) -> Self {
        self.onlink = true;
        self
    }

    /// Whether it is a default route.
    pub fn is_default(&self) -> bool {
        self.dst.prefix() == 0
    }

    /// The scope that follows from kind and gateway, as `ip route` chooses it.
    fn scope_natural(&self) -> Scope {
        match self.kind {
            Kind::Local => Scope::Host,
            Kind::Unicast if self.gateway.is_none() && self.dst.is_ipv4() => Scope::Link,
            _ => Scope::Universe,
        }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.is_default() {
            true if self.dst.is_ipv6() => write!(f, "default (IPv6)")?,
            true => write!(f, "default")?,
            false => write!(f, "{}", self.dst)?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(dev) = &self.dev {
            write!(f, " dev {dev}")?;
        }
        Ok(())
    }
}

/// Which routes to list. `None` means any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteFilter<'a> {
    /// Only this family.
    pub ipv6: Option<bool>,
    /// Only this table, or [`TABLE_ANY`]; none: the main table.
    pub table: Option<u32>,
    /// Only of this maker.
    pub protocol: Option<u8>,
    /// Only out of this link.
    pub dev: Option<&'a str>,
}

impl RouteFilter<'_> {
    /// Whether `route` is asked for. The kernel filters most of it already, if it is new enough.
    pub(crate) fn wants(&self, route: &Route) -> bool {
        self.ipv6.is_none_or(|v6| v6 == route.dst.is_ipv6())
            && [route.table, TABLE_ANY].contains(&self.table.unwrap_or(TABLE_MAIN))
            && self.protocol.is_none_or(|p| p == route.protocol)
            && self.dev.is_none_or(|dev| route.dev.as_deref() == Some(dev))
    }
}

/// The message that adds, replaces or deletes `route`; `oif` is the index behind `route.dev`.
pub(crate) fn message(route: &Route, oif: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(&route.dst.ip());
    header.destination_prefix_length = route.dst.prefix();
    header.protocol = RouteProtocol::from(route.protocol);
    header.scope = match route.scope.unwrap_or_else(|| route.scope_natural()) {
        Scope::Universe => RouteScope::Universe,
        Scope::Link => RouteScope::Link,
        Scope::Host => RouteScope::Host,
    };
    header.kind = match route.kind {
        Kind::Unicast | Kind::Other => RouteType::Unicast,
        Kind::Local => RouteType::Local,
        Kind::Blackhole => RouteType::BlackHole,
        Kind::Unreachable => RouteType::Unreachable,
        Kind::Prohibit => RouteType::Prohibit,
    };
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    match u8::try_from(route.table) {
        Ok(table) => header.table = table,
        Err(_) => attributes.push(RouteAttribute::Table(route.table)),
    }
    if route.dst.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(route.dst.network().into()));
    }
    match route.gateway {
        Some(IpAddr::V6(gateway)) if route.dst.is_ipv4() => {
            attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway)));
        }
        Some(gateway) => attributes.push(RouteAttribute::Gateway(gateway.into())),
        None => {}
    }
    attributes.extend(oif.map(RouteAttribute::Oif));
    attributes.extend(route.src.map(|src| RouteAttribute::PrefSource(src.into())));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    let mut metrics = Vec::new();
    metrics.extend(route.mtu.map(RouteMetric::Mtu));
    metrics.extend(route.mtu_locked.then_some(RouteMetric::Lock(LOCK_MTU)));
    metrics.extend(route.advmss.map(RouteMetric::Advmss));
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// The message that lists routes; `oif` is the index behind `filter.dev`.
pub(crate) fn list(ipv6: bool, filter: &RouteFilter<'_>, oif: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = if ipv6 {
        netlink_packet_route::AddressFamily::Inet6
    } else {
        netlink_packet_route::AddressFamily::Inet
    };
    message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
    let table = filter.table.unwrap_or(TABLE_MAIN);
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RouteAttribute::Table(table));
    message.attributes.extend(oif.map(RouteAttribute::Oif));
    message
}

/// The message that asks by which route the kernel would send to `ip`.
pub(crate) fn lookup(ip: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(&ip);
    message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
    message
        .attributes
        .push(RouteAttribute::Destination(ip.into()));
    message
}

/// Reads a route and the index of its link. `None` for families and forms we never make (multipath).
pub fn parse(message: &RouteMessage) -> Option<(Option<u32>, Route)> {
    let ipv6 = message.header.address_family == netlink_packet_route::AddressFamily::Inet6;
    let any: IpAddr = if ipv6 {
        [0u8; 16].into()
    } else {
        [0u8; 4].into()
    };
    let mut dst = any;
    let mut oif = None;
    let mut route = Route::to(IpNetwork::new(any, 0).ok()?);
    route.table = u32::from(message.header.table);
    route.protocol = u8::from(message.header.protocol);
    route.onlink = message.header.flags.contains(RouteFlags::Onlink);
    route.kind = match message.header.kind {
        RouteType::Unicast => Kind::Unicast,
        RouteType::Local => Kind::Local,
        RouteType::BlackHole => Kind::Blackhole,
        RouteType::Unreachable => Kind::Unreachable,
        RouteType::Prohibit => Kind::Prohibit,
        _ => Kind::Other,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => {
                route.gateway = Some((*address).into())
            }
            RouteAttribute::PrefSource(address) => route.src = ip(address),
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|m| match m {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                route.mtu_locked = metrics
                    .iter()
                    .any(|m| matches!(m, RouteMetric::Lock(locked) if locked & LOCK_MTU != 0));
                route.advmss = metrics.iter().find_map(|m| match m {
                    RouteMetric::Advmss(advmss) => Some(*advmss),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(_) => return None,
            _ => {}
        }
    }
    if ipv6 && route.metric == Some(IPV6_METRIC_DEFAULT) {
        route.metric = None;
    }
    route.dst = IpNetwork::new(dst, message.header.destination_prefix_length).ok()?;
    let scope = match message.header.scope {
        RouteScope::Link => Scope::Link,
        RouteScope::Host => Scope::Host,
        _ => Scope::Universe,
    };
    // IPv6 routes have no scope of their own: what the kernel shows says nothing.
    route.scope = (!ipv6 && scope != route.scope_natural()).then_some(scope);
    Some((oif, route))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}
