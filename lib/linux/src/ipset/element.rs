//! What the elements of sets are made of, and how they are written.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::nfnetlink::{attribute, put, put_nested};

const DATA_IP: u16 = 1;
pub(super) const DATA_PORT: u16 = 4;
const DATA_PROTO: u16 = 7;
const DATA_IP2: u16 = 20;
const DATA_CIDR2: u16 = 21;
const DATA_MARK: u16 = 27;
const IPADDR_V4: u16 = 1;
const IPADDR_V6: u16 = 2;

/// `NLA_F_NET_BYTEORDER`.
pub(super) const NETWORK_ORDER: u16 = 1 << 14;

/// What the elements of a set are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `hash:ip`.
    Ip,
    /// `hash:ip,port`.
    IpPort,
    /// `hash:ip,port` in which each element has a mark.
    IpPortMark,
    /// `hash:ip,port,ip`.
    IpPortIp,
    /// `hash:ip,port,net`.
    IpPortNet,
    /// `bitmap:port` of all ports.
    Port,
}

impl Kind {
    /// The kernel's name of the type.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Ip => "hash:ip",
            Self::IpPort | Self::IpPortMark => "hash:ip,port",
            Self::IpPortIp => "hash:ip,port,ip",
            Self::IpPortNet => "hash:ip,port,net",
            Self::Port => "bitmap:port",
        }
    }

    /// The oldest revision of the type that has all we use.
    pub(super) fn revision(self) -> u8 {
        match self {
            Self::Ip | Self::Port => 0,
            Self::IpPort | Self::IpPortIp => 1,
            Self::IpPortNet => 2,
            Self::IpPortMark => 5,
        }
    }
}

/// An element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// Address; of a bitmap of ports: none.
    pub ip: Option<IpAddr>,
    /// Protocol, where the set looks at it, and port.
    pub port: Option<(Option<u8>, u16)>,
    /// The second address, or a network.
    pub second: Option<IpNetwork>,
    /// Mark.
    pub mark: Option<u32>,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ip, self.port) {
            (Some(ip), _) => write!(f, "{ip}"),
            (None, Some((_, port))) => write!(f, "port {port}"),
            (None, None) => write!(f, "nothing"),
        }
    }
}

impl Element {
    pub(super) fn put(&self, out: &mut Vec<u8>, kind: Kind) {
        if let Some(ip) = self.ip {
            put_ip(out, DATA_IP, ip);
        }
        if let Some((protocol, port)) = self.port {
            put(out, DATA_PORT | NETWORK_ORDER, &port.to_be_bytes());
            if let Some(protocol) = protocol {
                put(out, DATA_PROTO, &[protocol]);
            }
        }
        if let Some(net) = self.second {
            put_ip(out, DATA_IP2, net.ip());
            if kind == Kind::IpPortNet {
                put(out, DATA_CIDR2, &[net.prefix()]);
            }
        }
        if let Some(mark) = self.mark {
            let both = [mark.to_be_bytes(), u32::MAX.to_be_bytes()].concat();
            put(out, DATA_MARK | NETWORK_ORDER, &both);
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let byte = |kind| attribute(bytes, kind).and_then(|value| value.first().copied());
        let net = |ip: IpAddr, cidr: Option<u8>| match cidr {
            Some(prefix) => IpNetwork::new(ip, prefix).ok(),
            None => Some(IpNetwork::from(ip)),
        };
        let port = match attribute(bytes, DATA_PORT) {
            Some(port) => {
                let port = u16::from_be_bytes(port.try_into().ok()?);
                Some((byte(DATA_PROTO), port))
            }
            None => None,
        };
        let second = match ip_of(bytes, DATA_IP2) {
            Some(ip) => Some(net(ip, byte(DATA_CIDR2))?),
            None => None,
        };
        let mark = attribute(bytes, DATA_MARK).and_then(|value| value.get(..4));
        Some(Self {
            ip: ip_of(bytes, DATA_IP),
            port,
            second,
            mark: mark.and_then(|mark| Some(u32::from_be_bytes(mark.try_into().ok()?))),
        })
    }
}

fn put_ip(out: &mut Vec<u8>, kind: u16, ip: IpAddr) {
    put_nested(out, kind, |out| match ip {
        IpAddr::V4(ip) => put(out, IPADDR_V4 | NETWORK_ORDER, &ip.octets()),
        IpAddr::V6(ip) => put(out, IPADDR_V6 | NETWORK_ORDER, &ip.octets()),
    });
}

fn ip_of(bytes: &[u8], kind: u16) -> Option<IpAddr> {
    let nested = attribute(bytes, kind)?;
    if let Some(v4) = attribute(nested, IPADDR_V4) {
        let octets: [u8; 4] = v4.try_into().ok()?;
        return Some(octets.into());
    }
    let octets: [u8; 16] = attribute(nested, IPADDR_V6)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn element(ip: &str) -> Element {
        Element {
            ip: Some(ip.parse().unwrap()),
            port: None,
            second: None,
            mark: None,
        }
    }

    /// What `ipset add` 7.17 sends of an element, without the line number at its end.
    #[track_caller]
    fn check(kind: Kind, element: &Element, hex: &str) {
        let mut bytes = Vec::new();
        element.put(&mut bytes, kind);
        let written: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(written, hex);
        assert_eq!(Element::read(&bytes), Some(*element));
    }

    #[test]
    fn elements_are_written_as_the_tool_writes_them() {
        check(Kind::Ip, &element("10.96.0.1"), "0c000180080001400a600001");
        check(
            Kind::Ip,
            &element("fd00::1"),
            "1800018014000240fd000000000000000000000000000001",
        );
        let mut web = element("10.96.0.1");
        web.port = Some((Some(6), 80));
        check(
            Kind::IpPort,
            &web,
            "0c000180080001400a60000106000440005000000500070006000000",
        );
        let mut marked = web;
        marked.port = Some((Some(17), 53));
        marked.mark = Some(0x5ea1_2345);
        check(
            Kind::IpPortMark,
            &marked,
            "0c000180080001400a600001060004400035000005000700110000000c001b405ea12345ffffffff",
        );
        let mut from = web;
        from.second = Some(net("192.168.0.0/24"));
        check(
            Kind::IpPortNet,
            &from,
            "0c000180080001400a600001060004400050000005000700060000000c00148008000140c0a800000500150018000000",
        );
        let mut pair = web;
        pair.second = Some(net("10.96.0.1/32"));
        check(
            Kind::IpPortIp,
            &pair,
            "0c000180080001400a600001060004400050000005000700060000000c001480080001400a600001",
        );
        let port = Element {
            ip: None,
            port: Some((None, 30080)),
            second: None,
            mark: None,
        };
        check(Kind::Port, &port, "0600044075800000");
    }
}
