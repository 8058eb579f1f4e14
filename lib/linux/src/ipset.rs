//! Sets of ipset (`linux/netfilter/ipset/ip_set.h`, protocol 6) over netlink: those kinds that
//! services need.

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::error::{Error, Result};
use crate::nfnetlink::{NfSocket, attribute, attributes, put, put_nested};

/// `NFNL_SUBSYS_IPSET`, in the upper byte.
const SUBSYSTEM: u16 = 6 << 8;
const CREATE: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const LIST: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const DELETE: u16 = SUBSYSTEM | 10;

/// All kernels since 2.6.39 speak it.
const PROTOCOL: u8 = 6;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;

const DATA_IP: u16 = 1;
const DATA_CIDR: u16 = 3;
const DATA_PORT: u16 = 4;
const DATA_PROTO: u16 = 7;
const DATA_FLAGS: u16 = 8;
const DATA_MAX_ELEMENTS: u16 = 19;
const DATA_IP2: u16 = 20;
const DATA_CIDR2: u16 = 21;
const DATA_MARK: u16 = 27;
const IPADDR_V4: u16 = 1;
const IPADDR_V6: u16 = 2;

/// `NLA_F_NET_BYTEORDER`.
const NETWORK_ORDER: u16 = 1 << 14;

/// `IPSET_FLAG_WITH_SKBINFO`.
const FLAG_WITH_MARK: u32 = 1 << 6;

/// Elements of a set at most.
const ELEMENTS_MAX: u32 = 1 << 20;

/// The kernel's limit for names (`IPSET_MAXNAMELEN`, less the final zero).
pub const NAME_BYTES_MAX: usize = 31;

/// What the elements of a set are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `hash:ip`.
    Ip,
    /// `hash:ip,port`.
    IpPort,
    /// `hash:ip,port` in which each element has a mark.
    IpPortMark,
    /// `hash:ip,port,net`.
    IpPortNet,
    /// `hash:net,net`.
    NetNet,
}

impl Kind {
    /// Type, and the oldest revision that has all we use.
    fn type_and_revision(self) -> (&'static str, u8) {
        match self {
            Self::Ip => ("hash:ip", 0),
            Self::IpPort => ("hash:ip,port", 1),
            Self::IpPortMark => ("hash:ip,port", 5),
            Self::IpPortNet => ("hash:ip,port,net", 2),
            Self::NetNet => ("hash:net,net", 0),
        }
    }
}

/// An element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// Address, or the first network.
    pub ip: IpNetwork,
    /// Protocol and port.
    pub port: Option<(u8, u16)>,
    /// The second network.
    pub second: Option<IpNetwork>,
    /// Mark.
    pub mark: Option<u32>,
}

impl Element {
    fn put(&self, out: &mut Vec<u8>, kind: Kind) {
        put_ip(out, DATA_IP, self.ip.ip());
        if kind == Kind::NetNet {
            put(out, DATA_CIDR, &[self.ip.prefix()]);
        }
        if let Some((protocol, port)) = self.port {
            put(out, DATA_PORT | NETWORK_ORDER, &port.to_be_bytes());
            put(out, DATA_PROTO, &[protocol]);
        }
        if let Some(net) = self.second {
            put_ip(out, DATA_IP2, net.ip());
            put(out, DATA_CIDR2, &[net.prefix()]);
        }
        if let Some(mark) = self.mark {
            let both = [mark.to_be_bytes(), u32::MAX.to_be_bytes()].concat();
            put(out, DATA_MARK | NETWORK_ORDER, &both);
        }
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let byte = |kind| attribute(bytes, kind).and_then(|value| value.first().copied());
        let net = |ip: IpAddr, cidr: Option<u8>| match cidr {
            Some(prefix) => IpNetwork::new(ip, prefix).ok(),
            None => Some(IpNetwork::from(ip)),
        };
        let port = match attribute(bytes, DATA_PORT) {
            Some(port) => {
                let port = u16::from_be_bytes(port.try_into().ok()?);
                Some((byte(DATA_PROTO)?, port))
            }
            None => None,
        };
        let second = match ip_of(bytes, DATA_IP2) {
            Some(ip) => Some(net(ip, byte(DATA_CIDR2))?),
            None => None,
        };
        let mark = attribute(bytes, DATA_MARK).and_then(|value| value.get(..4));
        Some(Self {
            ip: net(ip_of(bytes, DATA_IP)?, byte(DATA_CIDR))?,
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

fn named(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, ATTR_PROTOCOL, &[PROTOCOL]);
    put(&mut out, ATTR_SETNAME, format!("{name}\0").as_bytes());
    out
}

/// The sets of one network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct IpSets {
    socket: NfSocket,
}

impl IpSets {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn open() -> Result<Self> {
        let socket = NfSocket::open()?;
        Ok(Self { socket })
    }

    /// Makes a set unless there is one of this name and kind.
    ///
    /// # Errors
    /// The kernel has no such sets, or one of this name is of another kind.
    pub fn create(&mut self, name: &str, kind: Kind, ipv6: bool) -> Result<()> {
        let (type_name, oldest) = kind.type_and_revision();
        let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
        let family = u8::try_from(family).unwrap_or_default();
        let mut body = named(name);
        put(
            &mut body,
            ATTR_TYPENAME,
            format!("{type_name}\0").as_bytes(),
        );
        put(&mut body, ATTR_REVISION, &[oldest]);
        put(&mut body, ATTR_FAMILY, &[family]);
        put_nested(&mut body, ATTR_DATA, |out| {
            put(
                out,
                DATA_MAX_ELEMENTS | NETWORK_ORDER,
                &ELEMENTS_MAX.to_be_bytes(),
            );
            if kind == Kind::IpPortMark {
                put(
                    out,
                    DATA_FLAGS | NETWORK_ORDER,
                    &FLAG_WITH_MARK.to_be_bytes(),
                );
            }
        });
        let op = format!("make set {name} of type {type_name}");
        self.socket
            .change(&op, CREATE, family, &body)
            .map_err(explain)
    }

    /// Deletes a set; no rule may use it.
    ///
    /// # Errors
    /// It is not there (`is_not_found`), or in use.
    pub fn destroy(&mut self, name: &str) -> Result<()> {
        let op = format!("delete set {name}");
        self.socket.change(&op, DESTROY, 0, &named(name))
    }

    /// The elements of a set.
    ///
    /// # Errors
    /// It is not there (`is_not_found`).
    pub fn elements(&mut self, name: &str) -> Result<Vec<Element>> {
        let mut all = Vec::new();
        let op = format!("list set {name}");
        self.socket.dump(&op, LIST, 0, &named(name), |message| {
            let Some(list) = attribute(message.attributes, ATTR_ADT) else {
                return;
            };
            all.extend(attributes(list).filter_map(|(_, data)| Element::read(data)));
        })?;
        Ok(all)
    }

    /// Adds an element; one that is there already gets its mark.
    ///
    /// # Errors
    /// The set is not there, or full.
    pub fn add(&mut self, name: &str, kind: Kind, element: &Element) -> Result<()> {
        self.change("add", ADD, name, kind, element)
    }

    /// Deletes an element; one that is not there is fine.
    ///
    /// # Errors
    /// The set is not there.
    pub fn delete(&mut self, name: &str, kind: Kind, element: &Element) -> Result<()> {
        let bare = Element {
            mark: None,
            ..*element
        };
        self.change("delete", DELETE, name, kind, &bare)
    }

    fn change(
        &mut self,
        verb: &str,
        message: u16,
        name: &str,
        kind: Kind,
        element: &Element,
    ) -> Result<()> {
        let family = match element.ip {
            IpNetwork::V4(_) => libc::AF_INET,
            IpNetwork::V6(_) => libc::AF_INET6,
        };
        let mut body = named(name);
        put_nested(&mut body, ATTR_DATA, |out| element.put(out, kind));
        let op = format!("{verb} {} in set {name}", element.ip);
        let family = u8::try_from(family).unwrap_or_default();
        self.socket
            .change(&op, message, family, &body)
            .map_err(explain)
    }
}

/// ipset's own error numbers (`IPSET_ERR_PRIVATE`) begin where the system's end.
const OWN_ERRORS: i32 = 4096;

/// `IPSET_ERR_FIND_TYPE`.
const NO_SUCH_TYPE: i32 = 4098;

fn explain(error: Error) -> Error {
    match error.errno() {
        Some(NO_SUCH_TYPE) => Error::new(error.op, io::Error::other("the kernel has no such sets")),
        Some(number @ OWN_ERRORS..) => {
            Error::new(error.op, io::Error::other(format!("ipset error {number}")))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn element(ip: &str) -> Element {
        Element {
            ip: net(ip),
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
        check(
            Kind::Ip,
            &element("10.96.0.1/32"),
            "0c000180080001400a600001",
        );
        check(
            Kind::Ip,
            &element("fd00::1/128"),
            "1800018014000240fd000000000000000000000000000001",
        );
        let mut web = element("10.96.0.1/32");
        web.port = Some((6, 80));
        check(
            Kind::IpPort,
            &web,
            "0c000180080001400a60000106000440005000000500070006000000",
        );
        let mut marked = web;
        marked.port = Some((17, 53));
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
        let mut pair = element("10.1.1.1/32");
        pair.second = Some(net("10.1.1.1/32"));
        check(
            Kind::NetNet,
            &pair,
            "0c000180080001400a01010105000300200000000c001480080001400a0101010500150020000000",
        );
    }
}
