//! Elements of our sets and maps as types, and how the kernel has them.

use std::net::IpAddr;

use api::cidr::Family;
use ipnetwork::IpNetwork;
use linux::nftables::{Element, Value as Bytes, Verdict, concat};

use super::sets::SetName;
use crate::model::{Protocol, Set};

/// An address and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
}

/// Where connections for a service port arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Front {
    /// Address; `None` for a node port.
    pub ip: Option<IpAddr>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// Bits of the number of a service port.
const PORT_BITS: u32 = 17;
/// Bits below the number and the set in a [`Word`].
const LOW_BITS: u32 = 14;

/// The highest number of a service port.
pub const PORT_MAX: u32 = (1 << PORT_BITS) - 1;
/// The highest number of a pick, and of an endpoint that clients stay with.
pub const LOW_MAX: u16 = (1 << LOW_BITS) - 1;
/// What names a service port in a word.
pub const PORT_MASK: u32 = PORT_MAX << (LOW_BITS + 1);
/// What names a set of endpoints in a word.
pub const SET_MASK: u32 = PORT_MASK | 1 << LOW_BITS;
/// What a word says of the set.
pub const LOW_MASK: u32 = LOW_MAX as u32;

/// A set of endpoints of one service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId {
    /// Number of the service port, from 1 to [`PORT_MAX`].
    pub port: u32,
    /// [`crate::model::Set::Local`].
    pub local: bool,
}

impl SetId {
    /// Of a service port.
    pub fn new(port: u32, set: Set) -> Self {
        Self {
            port,
            local: set == Set::Local,
        }
    }

    /// The word that names it.
    fn word(self) -> u32 {
        self.port << (LOW_BITS + 1) | u32::from(self.local) << LOW_BITS
    }

    fn of(word: u32) -> Self {
        Self {
            port: word >> (LOW_BITS + 1),
            local: word & (1 << LOW_BITS) != 0,
        }
    }
}

/// A set of endpoints, and in it the number of a pick or of an endpoint: 32 bits, as the priority
/// of a packet carries them from rule to rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word {
    /// Set.
    pub set: SetId,
    /// Up to [`LOW_MAX`].
    pub low: u16,
}

impl Word {
    fn bytes(self) -> [u8; 4] {
        (self.set.word() | u32::from(self.low)).to_ne_bytes()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let word = number(bytes)?;
        Some(Self {
            set: SetId::of(word),
            low: u16::try_from(word & LOW_MASK).ok()?,
        })
    }
}

/// How one endpoint of a set is chosen: the chain that does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pick {
    /// How many endpoints, at least one.
    pub count: u32,
    /// Seconds for which a client stays with its endpoint; 0: no affinity.
    pub affinity_seconds: u32,
}

/// What the names of chains that choose begin with.
pub const PICK_PREFIX: &str = "one-of-";

impl Pick {
    /// The name of its chain.
    pub fn chain(self) -> String {
        match self.affinity_seconds {
            0 => format!("{PICK_PREFIX}{}", self.count),
            seconds => format!("{PICK_PREFIX}{}-for-{seconds}s", self.count),
        }
    }

    /// What a chain of this name does.
    pub fn of_chain(chain: &str) -> Option<Self> {
        let rest = chain.strip_prefix(PICK_PREFIX)?;
        let (count, seconds) = match rest.split_once("-for-") {
            Some((count, seconds)) => (count, seconds.strip_suffix('s')?),
            None => (rest, "0"),
        };
        let pick = Self {
            count: count.parse().ok()?,
            affinity_seconds: seconds.parse().ok()?,
        };
        (pick.chain() == chain && pick.count > 0).then_some(pick)
    }
}

/// What is done with the connections of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// Dropped.
    Drop,
    /// Refused.
    Reject,
    /// To one of the endpoints anywhere.
    Cluster,
    /// To one of the endpoints on this node.
    Local,
}

impl Fate {
    /// All, by their bits.
    pub const ALL: [Self; 4] = [Self::Drop, Self::Reject, Self::Cluster, Self::Local];

    /// Two bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Reject => 1,
            Self::Cluster => 2,
            Self::Local => 3,
        }
    }

    fn of(bits: u32) -> Self {
        Self::ALL[(bits & 3) as usize]
    }
}

/// What a front leads to, for each source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// Number of the service port.
    pub port: u32,
    /// For pods, the node, and all others.
    pub fates: [Fate; 3],
    /// Whether they are masqueraded.
    pub masquerade: [bool; 3],
    /// Only some sources are let through.
    pub filtered: bool,
}

/// Where [`Service`] has what in a word.
pub mod bit {
    /// Fates: two bits for each source.
    pub const FATES: u32 = 0;
    /// Masquerade: a bit for each source.
    pub const MASQUERADE: u32 = 6;
    /// Only some sources are let through.
    pub const FILTERED: u32 = 9;
}

impl Service {
    fn bytes(&self) -> [u8; 4] {
        let mut word = self.port << (LOW_BITS + 1) | u32::from(self.filtered) << bit::FILTERED;
        for (source, (fate, masquerade)) in (0..).zip(self.fates.iter().zip(self.masquerade)) {
            word |= fate.bits() << (bit::FATES + 2 * source);
            word |= u32::from(masquerade) << (bit::MASQUERADE + source);
        }
        word.to_ne_bytes()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let word = number(bytes)?;
        Some(Self {
            port: SetId::of(word).port,
            fates: [0, 1, 2].map(|source| Fate::of(word >> (bit::FATES + 2 * source))),
            masquerade: [0, 1, 2].map(|source| word & 1 << (bit::MASQUERADE + source) != 0),
            filtered: word & 1 << bit::FILTERED != 0,
        })
    }
}

/// Which element of which set. In the order in which elements are added: what leads to something
/// comes behind it. They are deleted in the opposite order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Number of a chain that chooses; it is made with its element.
    Pick(u16),
    /// An endpoint's address, for hairpins and invalid packets.
    EndpointIp(IpAddr),
    /// An endpoint that clients stay with, by its number.
    Sticky(Word),
    /// Slot of a set whose clients stay with their endpoints.
    StickySlot(SetId, u32),
    /// Slot of a set.
    Slot(SetId, u32),
    /// Sources that may use the load balancer addresses of a service port: first and last.
    Source(u32, IpAddr, IpAddr),
    /// An address of cluster DNS.
    DnsIp(IpAddr),
    /// An address on which node ports are served, where it is not all.
    NodeIp(IpAddr),
    /// Where connections arrive that go to endpoints anywhere.
    Cluster(Front),
    /// Where connections arrive that go to endpoints on this node.
    Local(Front),
    /// Where connections arrive.
    Front(Front),
    /// A cluster IP.
    ClusterIp(IpAddr),
    /// A network of cluster IPs: first and last.
    ServiceNet(IpAddr, IpAddr),
}

/// What an element leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// It is in the set.
    Nothing,
    /// The chain that chooses.
    Pick(Pick),
    /// An endpoint.
    Endpoint(Endpoint),
    /// A set with the number of a pick, or of an endpoint.
    Word(Word),
    /// What is done for each source.
    Service(Service),
}

/// First and last address of a network.
pub fn ends(net: &IpNetwork) -> (IpAddr, IpAddr) {
    (net.network(), net.broadcast())
}

impl Key {
    /// The set it is in.
    pub fn set(&self) -> SetName {
        match self {
            Self::Pick(_) => SetName::Picks,
            Self::EndpointIp(_) => SetName::EndpointIps,
            Self::Sticky(_) => SetName::StickyEndpoints,
            Self::StickySlot(..) => SetName::StickySlots,
            Self::Slot(..) => SetName::Endpoints,
            Self::Source(..) => SetName::Sources,
            Self::DnsIp(_) => SetName::DnsIps,
            Self::NodeIp(_) => SetName::NodeIps,
            Self::Cluster(_) => SetName::Cluster,
            Self::Local(_) => SetName::Local,
            Self::Front(_) => SetName::Services,
            Self::ClusterIp(_) => SetName::ClusterIps,
            Self::ServiceNet(..) => SetName::ServiceNets,
        }
    }

    /// The number of the service port that an element belongs to; 0 for what several share.
    pub fn port(&self, value: &Value) -> u32 {
        match (self, value) {
            (Self::Sticky(word), _) => word.set.port,
            (Self::StickySlot(set, _) | Self::Slot(set, _), _) => set.port,
            (Self::Source(port, ..), _) => *port,
            (_, Value::Service(service)) => service.port,
            (_, Value::Word(word)) => word.set.port,
            _ => 0,
        }
    }

    /// What names it to the kernel, in a table of `family`; of a range, its start.
    pub fn key_bytes(&self, family: Family) -> Vec<u8> {
        match self {
            Self::Pick(number) => u32::from(*number).to_ne_bytes().to_vec(),
            Self::EndpointIp(ip) => concat(&[&address(*ip), &address(*ip)]),
            Self::Sticky(word) => word.bytes().to_vec(),
            Self::StickySlot(set, slot) | Self::Slot(set, slot) => {
                concat(&[&set.word().to_ne_bytes(), &slot.to_ne_bytes()])
            }
            Self::Source(port, first, _) => source_key(*port, *first),
            Self::DnsIp(ip) | Self::NodeIp(ip) | Self::ClusterIp(ip) => address(*ip),
            Self::Cluster(front) | Self::Local(front) | Self::Front(front) => concat(&[
                &address(front.ip.unwrap_or_else(|| unspecified(family))),
                &[protocol_number(front.protocol)],
                &front.port.to_be_bytes(),
            ]),
            Self::ServiceNet(first, _) => address(*first),
        }
    }

    /// As the kernel has it, in a table of `family`.
    pub fn element(&self, family: Family, value: &Value) -> Element {
        let key = self.key_bytes(family);
        match (self, value) {
            (Self::Source(port, _, last), _) => Element::range(key, source_key(*port, *last)),
            (Self::ServiceNet(_, last), _) => Element::range(key, address(*last)),
            (_, Value::Nothing) => Element::new(key),
            (_, Value::Pick(pick)) => Element::verdict(key, Verdict::Goto(pick.chain())),
            (_, Value::Endpoint(to)) => {
                Element::data(key, concat(&[&address(to.ip), &to.port.to_be_bytes()]))
            }
            (_, Value::Word(word)) => Element::data(key, word.bytes()),
            (_, Value::Service(service)) => Element::data(key, service.bytes()),
        }
    }

    /// Reads an element of one of our sets; `None` when it is none that we would write.
    pub fn read(set: SetName, family: Family, element: &Element) -> Option<(Self, Value)> {
        let key = element.key.as_slice();
        let data = match &element.value {
            Some(Bytes::Data(data)) => data.as_slice(),
            Some(Bytes::Verdict(_)) | None => &[],
        };
        let last = element.key_end.as_deref();
        let read = match set {
            SetName::Picks => {
                let number = u16::try_from(number(key)?).ok()?;
                let Some(Bytes::Verdict(Verdict::Goto(chain))) = &element.value else {
                    return None;
                };
                (Self::Pick(number), Value::Pick(Pick::of_chain(chain)?))
            }
            SetName::EndpointIps => {
                let (ip, _) = key.split_at_checked(key.len() / 2)?;
                (Self::EndpointIp(ip_of(ip)?), Value::Nothing)
            }
            SetName::StickyEndpoints => {
                let endpoint = Value::Endpoint(endpoint_of(data)?);
                (Self::Sticky(Word::read(key)?), endpoint)
            }
            SetName::StickySlots => {
                let [set, slot] = words(key)?;
                let key = Self::StickySlot(SetId::of(set), slot);
                (key, Value::Word(Word::read(data)?))
            }
            SetName::Endpoints => {
                let [set, slot] = words(key)?;
                let endpoint = Value::Endpoint(endpoint_of(data)?);
                (Self::Slot(SetId::of(set), slot), endpoint)
            }
            SetName::Sources => {
                let (port, first) = key.split_at_checked(4)?;
                let (_, last) = last?.split_at_checked(4)?;
                let port = SetId::of(number(port)?).port;
                (
                    Self::Source(port, ip_of(first)?, ip_of(last)?),
                    Value::Nothing,
                )
            }
            SetName::DnsIps => (Self::DnsIp(ip_of(key)?), Value::Nothing),
            SetName::NodeIps => (Self::NodeIp(ip_of(key)?), Value::Nothing),
            SetName::ClusterIps => (Self::ClusterIp(ip_of(key)?), Value::Nothing),
            SetName::Cluster => (
                Self::Cluster(front_of(key, family)?),
                Value::Word(Word::read(data)?),
            ),
            SetName::Local => (
                Self::Local(front_of(key, family)?),
                Value::Word(Word::read(data)?),
            ),
            SetName::Services => (
                Self::Front(front_of(key, family)?),
                Value::Service(Service::read(data)?),
            ),
            SetName::ServiceNets => (Self::ServiceNet(ip_of(key)?, ip_of(last?)?), Value::Nothing),
            SetName::Affinity => return None,
        };
        // Whatever is not written back as it was read is not ours.
        let (ours, value) = read;
        let back = ours.element(family, &value);
        let same = back.key == element.key && back.value == element.value;
        same.then_some(read)
    }
}

fn source_key(port: u32, ip: IpAddr) -> Vec<u8> {
    let port = SetId { port, local: false }.word();
    concat(&[&port.to_ne_bytes(), &address(ip)])
}

fn front_of(key: &[u8], family: Family) -> Option<Front> {
    let (ip, rest) = key.split_at_checked(key.len().checked_sub(8)?)?;
    let ip = ip_of(ip)?;
    Some(Front {
        ip: Some(ip).filter(|ip| *ip != unspecified(family)),
        protocol: protocol_of(*rest.first()?)?,
        port: u16::from_be_bytes(rest.get(4..6)?.try_into().ok()?),
    })
}

/// No address: what node ports have in its place.
pub fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

/// `IPPROTO_...`.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn protocol_of(number: u8) -> Option<Protocol> {
    Protocol::ALL
        .into_iter()
        .find(|protocol| protocol_number(*protocol) == number)
}

/// An address as packets have it.
pub fn address(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn endpoint_of(bytes: &[u8]) -> Option<Endpoint> {
    let (ip, port) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    Some(Endpoint {
        ip: ip_of(ip)?,
        port: u16::from_be_bytes(port.get(..2)?.try_into().ok()?),
    })
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut out = [0; N];
    let mut parts = bytes.chunks_exact(4);
    for word in &mut out {
        *word = number(parts.next()?)?;
    }
    parts.next().is_none().then_some(out)
}
