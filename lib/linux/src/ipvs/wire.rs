//! Requests and answers of the IPVS family as bytes (`IPVS_CMD_*`, `IPVS_SVC_ATTR_*`,
//! `IPVS_DEST_ATTR_*` of `linux/ip_vs.h`). Numbers are in the machine's order, ports in the network's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{Command, Destination, Options, Protocol, Scheduler, Server, ServerId, Timeouts};
use crate::genl::Request;
use crate::nfnetlink::{attribute, put, put_nested};

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DEL_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DEST: u8 = 5;
const SET_DEST: u8 = 6;
const DEL_DEST: u8 = 7;
const GET_DEST: u8 = 8;
const SET_CONFIG: u8 = 12;
const GET_CONFIG: u8 = 13;

const ATTR_SERVICE: u16 = 1;
const ATTR_DEST: u16 = 2;
const ATTR_TIMEOUT_TCP: u16 = 4;
const ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const ATTR_TIMEOUT_UDP: u16 = 6;

const SVC_AF: u16 = 1;
const SVC_PROTOCOL: u16 = 2;
const SVC_ADDR: u16 = 3;
const SVC_PORT: u16 = 4;
const SVC_FWMARK: u16 = 5;
const SVC_SCHED_NAME: u16 = 6;
const SVC_FLAGS: u16 = 7;
const SVC_TIMEOUT: u16 = 8;
const SVC_NETMASK: u16 = 9;

const DEST_ADDR: u16 = 1;
const DEST_PORT: u16 = 2;
const DEST_FWD_METHOD: u16 = 3;
const DEST_WEIGHT: u16 = 4;
const DEST_U_THRESH: u16 = 5;
const DEST_L_THRESH: u16 = 6;
const DEST_ACTIVE: u16 = 7;
const DEST_INACTIVE: u16 = 8;
const DEST_AF: u16 = 11;

/// `IP_VS_SVC_F_*`.
const F_PERSISTENT: u32 = 1;
const F_ONEPACKET: u32 = 4;
const F_SCHED1: u32 = 8;
const F_SCHED2: u32 = 16;

/// `IP_VS_CONN_F_FWD_MASK`; its value for translation (`IP_VS_CONN_F_MASQ`) is 0.
const FORWARD_MASK: u32 = 7;

/// `AF_INET`, `AF_INET6`.
const INET: u16 = 2;
const INET6: u16 = 10;

/// Addresses take this much whatever their family (`union nf_inet_addr`).
const ADDRESS_BYTES: usize = 16;

fn family(ipv6: bool) -> u16 {
    if ipv6 { INET6 } else { INET }
}

fn address_bytes(ip: IpAddr) -> [u8; ADDRESS_BYTES] {
    let mut bytes = [0; ADDRESS_BYTES];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

fn put_key(out: &mut Vec<u8>, id: ServerId) {
    put(out, SVC_AF, &family(id.is_ipv6()).to_ne_bytes());
    match id {
        ServerId::Address { protocol, ip, port } => {
            put(out, SVC_PROTOCOL, &protocol.number().to_ne_bytes());
            put(out, SVC_ADDR, &address_bytes(ip));
            put(out, SVC_PORT, &port.to_be_bytes());
        }
        ServerId::Mark { mark, .. } => put(out, SVC_FWMARK, &mark.to_ne_bytes()),
    }
}

fn put_server(out: &mut Vec<u8>, server: &Server) {
    put_key(out, server.id);
    let scheduler = server.scheduler.unwrap_or_default().name();
    put(out, SVC_SCHED_NAME, format!("{scheduler}\0").as_bytes());
    let flag = |on, flag| if on { flag } else { 0 };
    let options = server.options;
    let flags = flag(server.persistence.is_some(), F_PERSISTENT)
        | flag(options.one_packet, F_ONEPACKET)
        | flag(options.fallback, F_SCHED1)
        | flag(options.hash_port, F_SCHED2);
    // Flags, and which of them are told.
    let both = [flags.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
    put(out, SVC_FLAGS, &both);
    let seconds = server.persistence.unwrap_or(0);
    put(out, SVC_TIMEOUT, &seconds.to_ne_bytes());
    // Each client by itself: IPv4 takes a mask, IPv6 a length.
    let mask = if server.id.is_ipv6() { 128 } else { u32::MAX };
    put(out, SVC_NETMASK, &mask.to_ne_bytes());
}

fn put_destination(out: &mut Vec<u8>, to: SocketAddr, weight: Option<u32>) {
    put(out, DEST_AF, &family(to.is_ipv6()).to_ne_bytes());
    put(out, DEST_ADDR, &address_bytes(to.ip()));
    put(out, DEST_PORT, &to.port().to_be_bytes());
    let Some(weight) = weight else {
        return;
    };
    put(out, DEST_FWD_METHOD, &0_u32.to_ne_bytes());
    put(out, DEST_WEIGHT, &weight.to_ne_bytes());
    put(out, DEST_U_THRESH, &0_u32.to_ne_bytes());
    put(out, DEST_L_THRESH, &0_u32.to_ne_bytes());
}

/// The request for a change.
pub(super) fn encode(command: &Command) -> Request {
    let mut attributes = Vec::new();
    let out = &mut attributes;
    let mut about_destination = |id: ServerId, to: SocketAddr, weight: Option<u32>| {
        put_nested(out, ATTR_SERVICE, |out| put_key(out, id));
        put_nested(out, ATTR_DEST, |out| put_destination(out, to, weight));
    };
    let command = match command {
        Command::AddDestination(id, to, weight) => {
            about_destination(*id, *to, Some(*weight));
            NEW_DEST
        }
        Command::SetDestination(id, to, weight) => {
            about_destination(*id, *to, Some(*weight));
            SET_DEST
        }
        Command::DeleteDestination(id, to) => {
            about_destination(*id, *to, None);
            DEL_DEST
        }
        Command::AddServer(server) => {
            put_nested(out, ATTR_SERVICE, |out| put_server(out, server));
            NEW_SERVICE
        }
        Command::SetServer(server) => {
            put_nested(out, ATTR_SERVICE, |out| put_server(out, server));
            SET_SERVICE
        }
        Command::DeleteServer(id) => {
            put_nested(out, ATTR_SERVICE, |out| put_key(out, *id));
            DEL_SERVICE
        }
    };
    Request {
        command,
        attributes,
    }
}

/// The request for all virtual servers.
pub(super) fn list_servers() -> Request {
    Request {
        command: GET_SERVICE,
        attributes: Vec::new(),
    }
}

/// The request for the destinations of one.
pub(super) fn list_destinations(id: ServerId) -> Request {
    let mut attributes = Vec::new();
    put_nested(&mut attributes, ATTR_SERVICE, |out| put_key(out, id));
    Request {
        command: GET_DEST,
        attributes,
    }
}

/// The request for the time-outs.
pub(super) fn get_timeouts() -> Request {
    Request {
        command: GET_CONFIG,
        attributes: Vec::new(),
    }
}

/// The request that sets the time-outs, in whole seconds.
pub(super) fn set_timeouts(timeouts: &Timeouts) -> Request {
    let mut attributes = Vec::new();
    let all = [
        (ATTR_TIMEOUT_TCP, timeouts.tcp),
        (ATTR_TIMEOUT_TCP_FIN, timeouts.tcp_fin),
        (ATTR_TIMEOUT_UDP, timeouts.udp),
    ];
    for (kind, time) in all {
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        put(&mut attributes, kind, &seconds.to_ne_bytes());
    }
    Request {
        command: SET_CONFIG,
        attributes,
    }
}

fn u16_of(bytes: &[u8], kind: u16) -> Option<u16> {
    Some(u16::from_ne_bytes(attribute(bytes, kind)?.try_into().ok()?))
}

fn u32_of(bytes: &[u8], kind: u16) -> Option<u32> {
    let value = attribute(bytes, kind)?.get(..4)?;
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

fn port_of(bytes: &[u8], kind: u16) -> Option<u16> {
    Some(u16::from_be_bytes(attribute(bytes, kind)?.try_into().ok()?))
}

fn ip_of(bytes: &[u8], kind: u16, family: u16) -> Option<IpAddr> {
    let value: [u8; ADDRESS_BYTES] = attribute(bytes, kind)?.try_into().ok()?;
    match family {
        INET => Some(Ipv4Addr::new(value[0], value[1], value[2], value[3]).into()),
        INET6 => Some(Ipv6Addr::from(value).into()),
        _ => None,
    }
}

/// Reads a virtual server; `None` for what is none that we understand.
pub(super) fn server(attributes: &[u8]) -> Option<Server> {
    let bytes = attribute(attributes, ATTR_SERVICE)?;
    let family = u16_of(bytes, SVC_AF)?;
    let id = match u32_of(bytes, SVC_FWMARK) {
        Some(mark) => ServerId::Mark {
            ipv6: family == INET6,
            mark,
        },
        None => ServerId::Address {
            protocol: Protocol::of_number(u16_of(bytes, SVC_PROTOCOL)?)?,
            ip: ip_of(bytes, SVC_ADDR, family)?,
            port: port_of(bytes, SVC_PORT)?,
        },
    };
    let name = attribute(bytes, SVC_SCHED_NAME).unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    let flags = u32_of(bytes, SVC_FLAGS).unwrap_or(0);
    let has = |flag| flags & flag != 0;
    Some(Server {
        id,
        scheduler: Scheduler::parse(name.trim_end_matches('\0')),
        options: Options {
            one_packet: has(F_ONEPACKET),
            fallback: has(F_SCHED1),
            hash_port: has(F_SCHED2),
        },
        persistence: u32_of(bytes, SVC_TIMEOUT).filter(|_| has(F_PERSISTENT)),
    })
}

/// Reads a destination. A kernel before 3.18 does not tell its family: it is the server's.
pub(super) fn destination(attributes: &[u8], ipv6: bool) -> Option<Destination> {
    let bytes = attribute(attributes, ATTR_DEST)?;
    let of = u16_of(bytes, DEST_AF).unwrap_or(family(ipv6));
    Some(Destination {
        address: SocketAddr::new(ip_of(bytes, DEST_ADDR, of)?, port_of(bytes, DEST_PORT)?),
        weight: u32_of(bytes, DEST_WEIGHT)?,
        translated: u32_of(bytes, DEST_FWD_METHOD)? & FORWARD_MASK == 0,
        active: u32_of(bytes, DEST_ACTIVE).unwrap_or(0),
        inactive: u32_of(bytes, DEST_INACTIVE).unwrap_or(0),
    })
}

/// Reads time-outs.
pub(super) fn timeouts(attributes: &[u8]) -> Timeouts {
    let of = |kind| Duration::from_secs(u32_of(attributes, kind).unwrap_or(0).into());
    Timeouts {
        tcp: of(ATTR_TIMEOUT_TCP),
        tcp_fin: of(ATTR_TIMEOUT_TCP_FIN),
        udp: of(ATTR_TIMEOUT_UDP),
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
