//! Addresses and networks: parsing as Kubernetes does, families, the nth address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a network.
    pub fn of_net(net: &IpNetwork) -> Self {
        Self::of(net.ip())
    }

    /// Bits of an address.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The loopback network, which for IPv6 is one address.
    pub fn loopback(self) -> IpNetwork {
        match self {
            Self::V4 => {
                let ip = Ipv4Network::from(Ipv4Addr::LOCALHOST);
                truncated(Ipv4Network::new(ip.ip(), 8).unwrap_or(ip).into())
            }
            Self::V6 => IpNetwork::V6(Ipv6Network::from(Ipv6Addr::LOCALHOST)),
        }
    }
}

impl fmt::Display for Family {
    /// As EndpointSlice.addressType and Service.ipFamilies write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why a network could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a network (ADDRESS/LENGTH)")]
pub struct BadNetwork {
    /// What was given.
    pub text: String,
}

/// Reads an address. IPv4 numbers with leading zeros are decimal, as everywhere in Kubernetes
/// (`172.030.099.011` is 172.30.99.11). An IPv4 address in IPv6 clothes is an IPv4 address.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return parse_ipv4(text).map(IpAddr::V4);
    }
    let ip: Ipv6Addr = match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => {
            format!("{head}:{}", parse_ipv4(tail)?).parse().ok()?
        }
        _ => text.parse().ok()?,
    };
    Some(match ip.to_ipv4_mapped() {
        Some(v4) => IpAddr::V4(v4),
        None => IpAddr::V6(ip),
    })
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
    }
    parts.next().is_none().then(|| octets.into())
}

/// Reads a network; host bits are cut off (`10.0.0.7/8` is 10.0.0.0/8). Blanks around are allowed.
///
/// # Errors
/// Not of the form ADDRESS/LENGTH, or a length beyond the family's.
pub fn parse_cidr(text: &str) -> Result<IpNetwork, BadNetwork> {
    let bad = || BadNetwork {
        text: text.to_owned(),
    };
    let (ip, prefix) = text.trim().split_once('/').ok_or_else(bad)?;
    let ip = parse_ip(ip).ok_or_else(bad)?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let prefix = prefix.parse::<u8>().ok().ok_or_else(bad)?;
    let net = IpNetwork::new(ip, prefix).ok().ok_or_else(bad)?;
    Ok(truncated(net))
}

/// Reads networks separated by commas; an empty text is none.
///
/// # Errors
/// As [`parse_cidr`], for the first that is wrong.
pub fn parse_cidrs(text: &str) -> Result<Vec<IpNetwork>, BadNetwork> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts.map(parse_cidr).collect()
}

/// The network with its host bits cut off.
pub fn truncated(net: IpNetwork) -> IpNetwork {
    match net {
        IpNetwork::V4(v4) => Ipv4Network::new(v4.network(), v4.prefix()).map_or(net, IpNetwork::V4),
        IpNetwork::V6(v6) => Ipv6Network::new(v6.network(), v6.prefix()).map_or(net, IpNetwork::V6),
    }
}

/// The network that holds `ip` alone.
pub fn host_net(ip: IpAddr) -> IpNetwork {
    IpNetwork::from(ip)
}

/// The networks of one family.
pub fn of_family(nets: &[IpNetwork], family: Family) -> impl Iterator<Item = IpNetwork> + '_ {
    nets.iter()
        .copied()
        .filter(move |net| Family::of_net(net) == family)
}

/// Whether one of the networks holds `ip`.
pub fn any_contains(nets: &[IpNetwork], ip: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(ip))
}

/// Whether `outer` holds all of `inner`.
pub fn contains_net(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.ip())
}

/// The nth address of the network, counted from its first (0 is the network's own address).
pub fn nth_host(net: &IpNetwork, n: u128) -> Option<IpAddr> {
    let host_bits = Family::of_net(net).bits() - net.prefix();
    if host_bits < 128 && (n >> host_bits) != 0 {
        return None;
    }
    match net {
        IpNetwork::V4(v4) => {
            let first = u32::from(v4.network());
            Some(IpAddr::V4((first + u32::try_from(n).ok()?).into()))
        }
        IpNetwork::V6(v6) => Some(IpAddr::V6((u128::from(v6.network()) + n).into())),
    }
}

#[cfg(test)]
mod tests;
