//! WireGuard devices and their far ends (`linux/wireguard.h`, generic netlink).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnetwork::IpNetwork;

use crate::error::{Error, Result};
use crate::genl::{GenlSocket, Request};
use crate::nfnetlink::{attribute, attributes, put, put_nested};

/// The family's name and version (`WG_GENL_NAME`, `WG_GENL_VERSION`).
const FAMILY: (&str, u8) = ("wireguard", 1);

const CMD_GET_DEVICE: u8 = 0;
const CMD_SET_DEVICE: u8 = 1;

const DEVICE_IFNAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;

const PEER_PUBLIC_KEY: u16 = 1;
const PEER_PRESHARED_KEY: u16 = 2;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_ALLOWED_IPS: u16 = 9;

const FLAG_REMOVE_ME: u32 = 1;
const FLAG_REPLACE_ALLOWED_IPS: u32 = 2;

const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_LENGTH: u16 = 3;

/// Bytes of every key.
const KEY_BYTES: usize = 32;

/// A key: private, public or shared. Written in base64, and never by `Debug`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(pub [u8; KEY_BYTES]);

/// A text that is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key of 32 bytes in base64")]
pub struct KeyParseError;

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(...)")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl FromStr for Key {
    type Err = KeyParseError;

    fn from_str(text: &str) -> std::result::Result<Self, KeyParseError> {
        let bytes = STANDARD.decode(text.trim());
        let bytes = bytes.map_err(|_encoding| KeyParseError)?;
        bytes.try_into().map(Self).map_err(|_length| KeyParseError)
    }
}

/// What a device is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Its private key.
    pub private: Key,
    /// UDP port it listens on.
    pub port: u16,
}

/// A far end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its public key.
    pub key: Key,
    /// A secret shared with it besides the keys.
    pub psk: Option<Key>,
    /// Where it is; none until it is known.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep a way through NAT open; 0: none.
    pub keepalive: u16,
    /// What it may send and what is sent to it, sorted.
    pub allowed: Vec<IpNetwork>,
}

/// A device as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// What it was told.
    pub config: Config,
    /// The key that belongs to its private key.
    pub public: Key,
    /// Its far ends, sorted.
    pub peers: Vec<Peer>,
}

/// The door to WireGuard, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct WireGuard {
    genl: GenlSocket,
}

impl WireGuard {
    /// Opens the door.
    ///
    /// # Errors
    /// The kernel has no WireGuard (`is_not_found`).
    pub fn open() -> Result<Self> {
        Ok(Self {
            genl: GenlSocket::open(FAMILY.0, FAMILY.1)?,
        })
    }

    /// Looks at a device.
    ///
    /// # Errors
    /// No such device, or it is not WireGuard.
    pub fn device(&mut self, link: &str) -> Result<Device> {
        let op = format!("list the peers of {link}");
        let mut device = Device::default();
        let request = Request {
            command: CMD_GET_DEVICE,
            attributes: named(link),
        };
        let each = |attributes: &[u8]| read_device(attributes, &mut device);
        let interrupted = self.genl.dump(&op, &request, each)?;
        if interrupted {
            let again = io::Error::from_raw_os_error(libc::EINTR);
            return Err(Error::new(op, again));
        }
        for peer in &mut device.peers {
            peer.allowed.sort();
        }
        device.peers.sort();
        Ok(device)
    }

    /// Sets key and port of a device.
    ///
    /// # Errors
    /// No such device, or the port is taken.
    pub fn configure(&mut self, link: &str, config: &Config) -> Result<()> {
        let op = format!("set key and port {} of {link}", config.port);
        self.set(&op, config_body(link, config))
    }

    /// Adds or changes a far end.
    ///
    /// # Errors
    /// No such device.
    pub fn set_peer(&mut self, link: &str, peer: &Peer) -> Result<()> {
        let op = format!("set peer {} of {link}", peer.key);
        self.set(&op, peer_body(link, peer))
    }

    /// Removes a far end; one that is not there is no error.
    ///
    /// # Errors
    /// No such device.
    pub fn del_peer(&mut self, link: &str, key: Key) -> Result<()> {
        let op = format!("remove peer {key} of {link}");
        self.set(&op, removal_body(link, key))
    }

    fn set(&mut self, op: &str, attributes: Vec<u8>) -> Result<()> {
        let command = CMD_SET_DEVICE;
        let request = Request {
            command,
            attributes,
        };
        self.genl.ask(op, &request, |_| {})
    }
}

fn named(link: &str) -> Vec<u8> {
    let mut body = Vec::new();
    put(&mut body, DEVICE_IFNAME, &[link.as_bytes(), &[0]].concat());
    body
}

fn config_body(link: &str, config: &Config) -> Vec<u8> {
    let mut body = named(link);
    put(&mut body, DEVICE_PRIVATE_KEY, &config.private.0);
    put(&mut body, DEVICE_LISTEN_PORT, &config.port.to_ne_bytes());
    body
}

fn peer_body(link: &str, peer: &Peer) -> Vec<u8> {
    with_peer(link, |out| {
        put(out, PEER_PUBLIC_KEY, &peer.key.0);
        put(out, PEER_FLAGS, &FLAG_REPLACE_ALLOWED_IPS.to_ne_bytes());
        // All zero takes an old one away.
        put(out, PEER_PRESHARED_KEY, &peer.psk.unwrap_or_default().0);
        if let Some(endpoint) = peer.endpoint {
            put(out, PEER_ENDPOINT, &socket_address(endpoint));
        }
        put(out, PEER_KEEPALIVE, &peer.keepalive.to_ne_bytes());
        put_nested(out, PEER_ALLOWED_IPS, |out| {
            for (i, net) in (0..).zip(&peer.allowed) {
                put_nested(out, i, |out| put_network(out, net));
            }
        });
    })
}

fn removal_body(link: &str, key: Key) -> Vec<u8> {
    with_peer(link, |out| {
        put(out, PEER_PUBLIC_KEY, &key.0);
        put(out, PEER_FLAGS, &FLAG_REMOVE_ME.to_ne_bytes());
    })
}

fn with_peer(link: &str, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = named(link);
    put_nested(&mut body, DEVICE_PEERS, |out| put_nested(out, 0, write));
    body
}

fn put_network(out: &mut Vec<u8>, net: &IpNetwork) {
    let (family, address) = match net.network() {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let family = u16::try_from(family).unwrap_or_default();
    put(out, ALLOWED_FAMILY, &family.to_ne_bytes());
    put(out, ALLOWED_ADDRESS, &address);
    put(out, ALLOWED_LENGTH, &[net.prefix()]);
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let family = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let family = u16::try_from(family).unwrap_or_default();
    let mut out = family.to_ne_bytes().to_vec();
    out.extend(address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            out.extend(v4.ip().octets());
            out.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            out.extend(v6.flowinfo().to_ne_bytes());
            out.extend(v6.ip().octets());
            out.extend(v6.scope_id().to_ne_bytes());
        }
    }
    out
}

fn read_socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let ip: IpAddr = if family == libc::AF_INET {
        Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?).into()
    } else if family == libc::AF_INET6 {
        Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?).into()
    } else {
        return None;
    };
    Some(SocketAddr::new(ip, port))
}

/// Reads one message of a list. A far end with many networks goes on in the next message.
fn read_device(message: &[u8], device: &mut Device) {
    for (kind, value) in attributes(message) {
        match kind {
            DEVICE_PRIVATE_KEY => device.config.private = read_key(value),
            DEVICE_PUBLIC_KEY => device.public = read_key(value),
            DEVICE_LISTEN_PORT => device.config.port = read_u16(value),
            DEVICE_PEERS => {
                for (_, peer) in attributes(value) {
                    let Some(peer) = read_peer(peer) else {
                        continue;
                    };
                    match device.peers.last_mut() {
                        Some(last) if last.key == peer.key => last.allowed.extend(peer.allowed),
                        _ => device.peers.push(peer),
                    }
                }
            }
            _ => {}
        }
    }
}

fn read_peer(bytes: &[u8]) -> Option<Peer> {
    let psk = attribute(bytes, PEER_PRESHARED_KEY).map(read_key);
    let networks = attribute(bytes, PEER_ALLOWED_IPS).unwrap_or_default();
    Some(Peer {
        key: read_key(attribute(bytes, PEER_PUBLIC_KEY)?),
        psk: psk.filter(|key| *key != Key::default()),
        endpoint: attribute(bytes, PEER_ENDPOINT).and_then(read_socket_address),
        keepalive: attribute(bytes, PEER_KEEPALIVE).map_or(0, read_u16),
        allowed: attributes(networks)
            .filter_map(|(_, net)| read_network(net))
            .collect(),
    })
}

fn read_network(bytes: &[u8]) -> Option<IpNetwork> {
    let address = attribute(bytes, ALLOWED_ADDRESS)?;
    let ip = <[u8; 4]>::try_from(address)
        .map(IpAddr::from)
        .or_else(|_not_v4| <[u8; 16]>::try_from(address).map(IpAddr::from));
    let length = *attribute(bytes, ALLOWED_LENGTH)?.first()?;
    IpNetwork::new(ip.ok()?, length).ok()
}

fn read_key(bytes: &[u8]) -> Key {
    bytes.try_into().map(Key).unwrap_or_default()
}

fn read_u16(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_ne_bytes)
}

#[cfg(test)]
mod tests;
