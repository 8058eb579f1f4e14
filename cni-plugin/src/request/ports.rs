//! What a runtime asks for beside a link: host ports and rate limits.

use std::net::IpAddr;

use api::cni::Error;

use crate::conf::Field;
use crate::role::Role;
use crate::step::TokenBucket;

/// Number of bits in a packet mark.
const MARK_BITS: u32 = 32;

/// Who translates and masquerades.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// Elements in a table of ours.
    Nftables,
    /// Rules in chains of ours.
    Iptables,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// As iptables and `portMappings` write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// `IPPROTO_*`.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address. None: any; an unspecified one: any of its family.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
}

/// Host ports of a pod, and how they are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports {
    /// The ports, sorted.
    pub mappings: Vec<PortMapping>,
    /// The host and the pod itself may use them: their address is masqueraded.
    pub snat: bool,
    /// Everyone's address is masqueraded.
    pub masq_all: bool,
    /// iptables only: another's chain that marks it.
    pub mark_chain: Option<String>,
    /// iptables only: more conditions on a rule of IPv4 and of IPv6.
    pub conditions: [Vec<String>; 2],
    /// Who does it; none: whatever the kernel has, nftables first.
    pub backend: Option<Backend>,
}

/// Limits on what goes to a pod and on what comes from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shaping {
    /// To the pod.
    pub ingress: Option<TokenBucket>,
    /// From the pod.
    pub egress: Option<TokenBucket>,
}

impl Shaping {
    /// Whether there is no limit.
    pub fn is_empty(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// Who does it, under key `key`.
pub(super) fn parse_backend(root: &Field<'_>, key: &str) -> Result<Option<Backend>, Error> {
    let field = root.get(key)?;
    match field.text()?.unwrap_or_default() {
        "" => Ok(None),
        "nftables" => Ok(Some(Backend::Nftables)),
        "iptables" => Ok(Some(Backend::Iptables)),
        other => Err(field.invalid(format_args!("{other:?} is neither nftables nor iptables"))),
    }
}

/// Reads `runtimeConfig.portMappings` and the keys of `portmap`.
pub(super) fn parse_ports(root: &Field<'_>, role: Role) -> Result<Ports, Error> {
    if !role.maps_ports() {
        return Ok(Ports::default());
    }
    let list = root.get("runtimeConfig")?.get("portMappings")?.list()?;
    let mut mappings = list
        .iter()
        .map(parse_mapping)
        .collect::<Result<Vec<_>, _>>()?;
    mappings.sort();
    mappings.dedup();
    let same = |a: &PortMapping, b: &PortMapping| {
        (a.protocol, a.host_ip, a.host_port) == (b.protocol, b.host_ip, b.host_port)
    };
    if let Some(pair) = mappings.windows(2).find(|pair| same(&pair[0], &pair[1])) {
        let (name, port) = (pair[0].protocol.name(), pair[0].host_port);
        let field = root.get("runtimeConfig")?.get("portMappings")?;
        return Err(field.invalid(format_args!("host port {port}/{name} leads to two ports")));
    }
    // No packet is marked here, so which bit is free does not matter.
    let bit = root.get("markMasqBit")?;
    if bit.number()?.is_some_and(|bit| bit >= MARK_BITS) {
        return Err(bit.invalid("must be from 0 to 31"));
    }
    let mark_chain = root.get("externalSetMarkChain")?.text()?;
    let ports = Ports {
        mappings,
        snat: root.get("snat")?.flag(true)?,
        masq_all: root.get("masqAll")?.flag(false)?,
        mark_chain: mark_chain.filter(|c| !c.is_empty()).map(str::to_owned),
        conditions: [
            root.get("conditionsV4")?.texts()?,
            root.get("conditionsV6")?.texts()?,
        ],
        backend: parse_backend(root, "backend")?,
    };
    // They are words of iptables, which say nothing to the other backend.
    if ports.backend != Some(Backend::Iptables) {
        for key in ["externalSetMarkChain", "conditionsV4", "conditionsV6"] {
            let field = root.get(key)?;
            if field.is_set() && !ports.mappings.is_empty() {
                return Err(field.unsupported("needs backend \"iptables\""));
            }
        }
    }
    Ok(ports)
}

fn parse_mapping(field: &Field<'_>) -> Result<PortMapping, Error> {
    let port = |key: &str| {
        let field = field.get(key)?;
        let number = field.number()?.unwrap_or(0);
        match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(field.invalid(format_args!("must be from 1 to 65535, not {number}"))),
        }
    };
    let protocol = field.get("protocol")?;
    let ip = field.get("hostIP")?;
    let text = ip.text()?.filter(|text| !text.is_empty());
    Ok(PortMapping {
        protocol: match protocol
            .text()?
            .unwrap_or("tcp")
            .to_ascii_lowercase()
            .as_str()
        {
            "tcp" | "" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => {
                let why = format_args!("{other:?} is none of tcp, udp, sctp");
                return Err(protocol.invalid(why));
            }
        },
        host_ip: match text {
            Some(_) => ip.parsed("an IP address")?,
            None => None,
        },
        host_port: port("hostPort")?,
        container_port: port("containerPort")?,
    })
}

/// Reads `runtimeConfig.bandwidth`, or the same keys on the level of the configuration itself.
pub(super) fn parse_shaping(root: &Field<'_>, role: Role) -> Result<Shaping, Error> {
    if !role.limits_rates() {
        return Ok(Shaping::default());
    }
    let wished = root.get("runtimeConfig")?.get("bandwidth")?;
    let from = if wished.is_set() { &wished } else { root };
    Ok(Shaping {
        ingress: parse_bucket(from, "ingressRate", "ingressBurst")?,
        egress: parse_bucket(from, "egressRate", "egressBurst")?,
    })
}

fn parse_bucket(from: &Field<'_>, rate: &str, burst: &str) -> Result<Option<TokenBucket>, Error> {
    let (rate, burst) = (from.get(rate)?, from.get(burst)?);
    match (rate.large()?.unwrap_or(0), burst.large()?.unwrap_or(0)) {
        (0, 0) => Ok(None),
        (0, _) => Err(rate.invalid("must be set as the burst is")),
        (_, 0) => Err(burst.invalid("must be set as the rate is")),
        (bits, at_once) => {
            let Ok(burst) = u32::try_from(at_once / 8) else {
                return Err(burst.invalid("must be less than 4 GiB"));
            };
            Ok(Some(TokenBucket {
                // Both are in bits; less than a byte is a byte.
                rate: (bits / 8).max(1),
                burst: burst.max(1),
            }))
        }
    }
}
