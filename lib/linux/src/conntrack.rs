//! Connection tracking: listing and deleting entries (`linux/netfilter/nfnetlink_conntrack.h`).

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::error::{Error, Result};
use crate::nfnetlink::{Message, NfSocket, attribute, put, put_nested};

/// Subsystem `NFNL_SUBSYS_CTNETLINK` in the upper byte.
const NEW: u16 = 0x100;
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
const GET_STATS_CPU: u16 = 0x104;

/// `CTA_STATS_INSERT_FAILED` and `CTA_STATS_DROP` of one processor.
const CTA_STATS_INSERT_FAILED: u16 = 9;
const CTA_STATS_DROP: u16 = 10;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM`: of the tuple given, only the protocol must agree.
const FILTER_PROTOCOL: u32 = 1 << 3;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// How often an interrupted list is started again. What is still missing then was made meanwhile.
const DUMP_TRIES: usize = 4;

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;

/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;

/// `IPPROTO_SCTP`.
pub const SCTP: u8 = 132;

/// For protocols with states: the attribute that holds it, and the value of an established one.
const STATES: [(u8, u16, u8); 2] = [
    // CTA_PROTOINFO_TCP, TCP_CONNTRACK_ESTABLISHED.
    (TCP, 1, 3),
    // CTA_PROTOINFO_SCTP, SCTP_CONNTRACK_ESTABLISHED.
    (SCTP, 3, 4),
];

/// The size of the table: `nf_conntrack`'s parameter, the same for all network namespaces.
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// How many buckets the table has.
///
/// # Errors
/// The kernel has no connection tracking, or does not tell.
pub fn buckets() -> Result<u64> {
    let read = || -> io::Result<u64> {
        let text = fs::read_to_string(BUCKETS)?;
        text.trim().parse().map_err(io::Error::other)
    };
    read().map_err(|e| Error::new(format!("read {BUCKETS}"), e))
}

/// Gives the table so many buckets.
///
/// # Errors
/// The kernel's refusal: only the first network namespace may.
pub fn set_buckets(buckets: u64) -> Result<()> {
    fs::write(BUCKETS, buckets.to_string())
        .map_err(|e| Error::new(format!("set {BUCKETS} to {buckets}"), e))
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// IP protocol.
    pub protocol: u8,
    /// As the first packet was sent.
    pub original: Tuple,
    /// As replies are sent: their source is where the packets really go.
    pub reply: Tuple,
    /// Tells this entry from a later one with the same tuple.
    id: Option<[u8; 4]>,
    zone: Option<[u8; 2]>,
}

impl Flow {
    /// An entry that was not read from the kernel (for tests of whoever chooses entries).
    pub fn new(protocol: u8, original: Tuple, reply: Tuple) -> Self {
        Self {
            protocol,
            original,
            reply,
            id: None,
            zone: None,
        }
    }

    /// Whether a rule has changed an address or a port of it.
    pub fn is_translated(&self) -> bool {
        self.reply.source != self.original.destination
            || self.reply.destination != self.original.source
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tuple {
            source,
            destination,
        } = self.original;
        let to = self.reply.source;
        let protocol = self.protocol;
        write!(f, "protocol {protocol}: {source} -> {destination} ({to})")
    }
}

/// How the table has fared, over all processors, since the network namespace exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that could not be entered since another one had the same tuple by then.
    pub insert_failed: u64,
    /// Packets dropped since the table was full or had no memory.
    pub dropped: u64,
}

/// The connection table of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Conntrack {
    socket: NfSocket,
}

impl Conntrack {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Self> {
        Ok(Self {
            socket: NfSocket::open()?,
        })
    }

    /// All entries of a protocol, in one family. Kernels from 5.8 on sort out others themselves.
    ///
    /// # Errors
    /// The kernel has no connection tracking, or does not answer.
    pub fn list(&mut self, ipv6: bool, protocol: u8) -> Result<Vec<Flow>> {
        let mut body = Vec::new();
        put_nested(&mut body, CTA_TUPLE_ORIG, |tuple| {
            put_nested(tuple, CTA_TUPLE_PROTO, |inner| {
                put(inner, CTA_PROTO_NUM, &[protocol])
            });
        });
        put_nested(&mut body, CTA_FILTER, |filter| {
            put(
                filter,
                CTA_FILTER_ORIG_FLAGS,
                &FILTER_PROTOCOL.to_ne_bytes(),
            );
        });
        let mut flows = self.dump(family(ipv6), &body)?;
        flows.retain(|flow| flow.protocol == protocol);
        Ok(flows)
    }

    /// All entries of both families. The kernel's walk through the table is what costs, so this is
    /// as dear as one call of [`Conntrack::list`].
    ///
    /// # Errors
    /// As [`Conntrack::list`].
    pub fn list_all(&mut self) -> Result<Vec<Flow>> {
        let any = u8::try_from(libc::AF_UNSPEC).unwrap_or_default();
        self.dump(any, &[])
    }

    fn dump(&mut self, family: u8, body: &[u8]) -> Result<Vec<Flow>> {
        let mut flows = Vec::new();
        for _ in 0..DUMP_TRIES {
            flows.clear();
            let each = |message: Message<'_>| flows.extend(parse(message));
            if !self
                .socket
                .dump("list connections", GET, family, body, each)?
            {
                break;
            }
        }
        Ok(flows)
    }

    /// How the table has fared.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn stats(&mut self) -> Result<Stats> {
        let mut stats = Stats::default();
        let number = |message: &Message<'_>, kind| {
            let bytes = attribute(message.attributes, kind).and_then(|v| v.try_into().ok());
            u64::from(bytes.map_or(0, u32::from_be_bytes))
        };
        let each = |message: Message<'_>| {
            stats.insert_failed += number(&message, CTA_STATS_INSERT_FAILED);
            stats.dropped += number(&message, CTA_STATS_DROP);
        };
        let op = "read connection statistics";
        self.socket.dump(op, GET_STATS_CPU, 0, &[], each)?;
        Ok(stats)
    }

    /// Adds an entry, established, for so many seconds.
    ///
    /// # Errors
    /// The kernel's refusal: also when there is one with one of its tuples.
    pub fn create(&mut self, flow: &Flow, seconds: u32) -> Result<()> {
        let mut body = Vec::new();
        put_nested(&mut body, CTA_TUPLE_ORIG, |out| {
            put_tuple(out, flow.protocol, flow.original);
        });
        put_nested(&mut body, CTA_TUPLE_REPLY, |out| {
            put_tuple(out, flow.protocol, flow.reply);
        });
        put(&mut body, CTA_TIMEOUT, &seconds.to_be_bytes());
        if let Some((_, kind, state)) = STATES.iter().find(|(p, ..)| *p == flow.protocol) {
            put_nested(&mut body, CTA_PROTOINFO, |out| {
                put_nested(out, *kind, |out| {
                    put(out, 1, &[*state]);
                    if flow.protocol == SCTP {
                        // Verification tags of both directions.
                        put(out, 2, &[0, 0, 0, 1]);
                        put(out, 3, &[0, 0, 0, 2]);
                    }
                });
            });
        }
        let family = family(flow.original.source.is_ipv6());
        let op = format!("create connection {flow}");
        self.socket.create(&op, NEW, family, &body)
    }

    /// Deletes exactly this entry; false when it is gone already.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete(&mut self, flow: &Flow) -> Result<bool> {
        let mut body = Vec::new();
        put_nested(&mut body, CTA_TUPLE_ORIG, |out| {
            put_tuple(out, flow.protocol, flow.original);
            if let Some(zone) = &flow.zone {
                put(out, CTA_TUPLE_ZONE, zone);
            }
        });
        if let Some(zone) = &flow.zone {
            put(&mut body, CTA_ZONE, zone);
        }
        if let Some(id) = &flow.id {
            put(&mut body, CTA_ID, id);
        }
        let family = family(flow.original.source.is_ipv6());
        let op = format!("delete connection {flow}");
        match self.socket.change(&op, DELETE, family, &body) {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }
}

fn family(ipv6: bool) -> u8 {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    u8::try_from(family).unwrap_or_default()
}

fn put_tuple(out: &mut Vec<u8>, protocol: u8, tuple: Tuple) {
    let Tuple {
        source,
        destination,
    } = tuple;
    put_nested(out, CTA_TUPLE_IP, |out| {
        for (ip, v4, v6) in [
            (source.ip(), CTA_IP_V4_SRC, CTA_IP_V6_SRC),
            (destination.ip(), CTA_IP_V4_DST, CTA_IP_V6_DST),
        ] {
            match ip {
                IpAddr::V4(ip) => put(out, v4, &ip.octets()),
                IpAddr::V6(ip) => put(out, v6, &ip.octets()),
            }
        }
    });
    put_nested(out, CTA_TUPLE_PROTO, |out| {
        put(out, CTA_PROTO_NUM, &[protocol]);
        put(out, CTA_PROTO_SRC_PORT, &source.port().to_be_bytes());
        put(out, CTA_PROTO_DST_PORT, &destination.port().to_be_bytes());
    });
}

fn parse(message: Message<'_>) -> Option<Flow> {
    if message.kind != NEW {
        return None;
    }
    let original = attribute(message.attributes, CTA_TUPLE_ORIG)?;
    let reply = attribute(message.attributes, CTA_TUPLE_REPLY)?;
    let (protocol, original) = parse_tuple(original)?;
    let (_, reply) = parse_tuple(reply)?;
    let id = attribute(message.attributes, CTA_ID);
    let zone = attribute(message.attributes, CTA_ZONE);
    Some(Flow {
        protocol,
        original,
        reply,
        id: id.and_then(|id| id.try_into().ok()),
        zone: zone.and_then(|zone| zone.try_into().ok()),
    })
}

fn parse_tuple(bytes: &[u8]) -> Option<(u8, Tuple)> {
    let ip = attribute(bytes, CTA_TUPLE_IP)?;
    let protocol = attribute(bytes, CTA_TUPLE_PROTO)?;
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(octets) = attribute(ip, v4) {
            return Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?));
        }
        let octets = <[u8; 16]>::try_from(attribute(ip, v6)?).ok()?;
        Some(IpAddr::from(octets))
    };
    // Protocols without ports (ICMP) have none.
    let port = |kind: u16| {
        let bytes = attribute(protocol, kind).and_then(|port| port.try_into().ok());
        bytes.map_or(0, u16::from_be_bytes)
    };
    let source = address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?;
    let destination = address(CTA_IP_V4_DST, CTA_IP_V6_DST)?;
    let tuple = Tuple {
        source: SocketAddr::new(source, port(CTA_PROTO_SRC_PORT)),
        destination: SocketAddr::new(destination, port(CTA_PROTO_DST_PORT)),
    };
    Some((*attribute(protocol, CTA_PROTO_NUM)?.first()?, tuple))
}
