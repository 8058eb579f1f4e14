//! IPVS, the kernel's load balancer, over its generic netlink family (`linux/ip_vs.h`, version 1):
//! virtual servers and the destinations behind each.

mod wire;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::genl::{GenlSocket, Request};

/// The family's name; its module is `ip_vs`.
const FAMILY: &str = "IPVS";
const VERSION: u8 = 1;

/// How often a list that changed while it was read is read again.
const DUMP_TRIES: usize = 10;

/// Transport protocol of a virtual server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// `IPPROTO_*`.
    fn number(self) -> u16 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    fn of_number(number: u16) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// What a packet must have to belong to a virtual server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerId {
    /// This destination.
    Address {
        /// Protocol.
        protocol: Protocol,
        /// Address.
        ip: IpAddr,
        /// Port.
        port: u16,
    },
    /// This mark; it is looked at before the address.
    Mark {
        /// Of IPv6 packets, not IPv4.
        ipv6: bool,
        /// The whole mark, not 0.
        mark: u32,
    },
}

impl ServerId {
    /// Whether it is about IPv6 packets.
    pub fn is_ipv6(self) -> bool {
        match self {
            Self::Address { ip, .. } => ip.is_ipv6(),
            Self::Mark { ipv6, .. } => ipv6,
        }
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { protocol, ip, port } => {
                write!(f, "{protocol} {}", SocketAddr::new(*ip, *port))
            }
            Self::Mark { ipv6, mark } => {
                write!(f, "mark {mark:#x} IPv{}", if *ipv6 { 6 } else { 4 })
            }
        }
    }
}

/// How a destination is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheduler {
    /// Round robin.
    #[default]
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Locality-based least connections.
    Lblc,
    /// The same with replication.
    Lblcr,
    /// Source hashing.
    Sh,
    /// Destination hashing.
    Dh,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Maglev hashing.
    Mh,
    /// Weighted failover.
    Fo,
    /// Weighted overflow.
    Ovf,
}

impl Scheduler {
    /// All that the kernel has.
    pub const ALL: [Self; 13] = [
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Lblc,
        Self::Lblcr,
        Self::Sh,
        Self::Dh,
        Self::Sed,
        Self::Nq,
        Self::Mh,
        Self::Fo,
        Self::Ovf,
    ];

    /// The kernel's name; the module is `ip_vs_NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Lblc => "lblc",
            Self::Lblcr => "lblcr",
            Self::Sh => "sh",
            Self::Dh => "dh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Mh => "mh",
            Self::Fo => "fo",
            Self::Ovf => "ovf",
        }
    }

    /// By the kernel's name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|each| each.name() == name)
    }

    /// The flags that it takes, as `ipvsadm --sched-flags` names them.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Sh => &["sh-fallback", "sh-port"],
            Self::Mh => &["mh-fallback", "mh-port"],
            Self::Rr
            | Self::Wrr
            | Self::Lc
            | Self::Wlc
            | Self::Lblc
            | Self::Lblcr
            | Self::Dh
            | Self::Sed
            | Self::Nq
            | Self::Fo
            | Self::Ovf => &[],
        }
    }
}

/// Options of a virtual server (`IP_VS_SVC_F_*`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Options {
    /// Each packet of a UDP flow is scheduled by itself (`ONEPACKET`).
    pub one_packet: bool,
    /// `sh`, `mh`: falls back to another destination when the chosen one is unavailable (`SCHED1`).
    pub fallback: bool,
    /// `sh`, `mh`: the source's port is part of the hash (`SCHED2`).
    pub hash_port: bool,
}

impl Options {
    /// Adds the flag of `scheduler` that `ipvsadm --sched-flags` calls `name`; false when it has no
    /// such flag.
    #[must_use]
    pub fn add_flag(&mut self, scheduler: Scheduler, name: &str) -> bool {
        let known = scheduler.flags().contains(&name);
        if known && name.ends_with("-fallback") {
            self.fallback = true;
        } else if known {
            self.hash_port = true;
        }
        known
    }
}

/// A virtual server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// Which packets belong to it.
    pub id: ServerId,
    /// How a destination is chosen; `None`: by one that this code does not know.
    pub scheduler: Option<Scheduler>,
    /// Options.
    pub options: Options,
    /// Seconds for which a client stays with its destination.
    pub persistence: Option<u32>,
}

/// A destination of a virtual server, reached by translation (`ip_vs` calls it masquerading).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Address and port.
    pub address: SocketAddr,
    /// Its share; 0: no new connections.
    pub weight: u32,
    /// Reached by translation; other ways are not ours.
    pub translated: bool,
    /// Connections that are up (TCP: established).
    pub active: u32,
    /// Other connections: that begin, that have ended a short while ago, and all of UDP.
    pub inactive: u32,
}

/// Time-outs of connections; zero: as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: Duration,
    /// TCP connections after a FIN.
    pub tcp_fin: Duration,
    /// UDP.
    pub udp: Duration,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A new virtual server.
    AddServer(Server),
    /// Other properties for a virtual server.
    SetServer(Server),
    /// Takes a virtual server away, with its destinations.
    DeleteServer(ServerId),
    /// A new destination.
    AddDestination(ServerId, SocketAddr, u32),
    /// Another weight for a destination.
    SetDestination(ServerId, SocketAddr, u32),
    /// Takes a destination away; its connections end.
    DeleteDestination(ServerId, SocketAddr),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddServer(server) => write!(f, "add virtual server {}", server.id),
            Self::SetServer(server) => write!(f, "change virtual server {}", server.id),
            Self::DeleteServer(id) => write!(f, "delete virtual server {id}"),
            Self::AddDestination(id, to, weight) => {
                write!(f, "add destination {to} of weight {weight} to {id}")
            }
            Self::SetDestination(id, to, weight) => {
                write!(f, "set weight of destination {to} of {id} to {weight}")
            }
            Self::DeleteDestination(id, to) => write!(f, "delete destination {to} of {id}"),
        }
    }
}

/// The load balancer of one network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct Ipvs {
    socket: GenlSocket,
}

impl Ipvs {
    /// Opens it; the kernel loads `ip_vs` if it can.
    ///
    /// # Errors
    /// The kernel has no IPVS (`is_not_found`).
    pub fn open() -> Result<Self> {
        let socket = GenlSocket::open(FAMILY, VERSION)?;
        Ok(Self { socket })
    }

    /// Makes changes in order. A refused one does not stop those after it; gives back which were
    /// refused, and why.
    ///
    /// # Errors
    /// No answer at all.
    pub fn apply(&mut self, commands: &[Command]) -> Result<Vec<(usize, Error)>> {
        let requests: Vec<Request> = commands.iter().map(wire::encode).collect();
        let refused = self.socket.change("change virtual servers", &requests)?;
        let named = |(i, e): (usize, io::Error)| (i, Error::new(commands[i].to_string(), e));
        Ok(refused.into_iter().map(named).collect())
    }

    /// All virtual servers of both families.
    ///
    /// # Errors
    /// The kernel's refusal, or a table that never holds still.
    pub fn servers(&mut self) -> Result<Vec<Server>> {
        self.list("list virtual servers", &wire::list_servers(), wire::server)
    }

    /// The destinations of one virtual server.
    ///
    /// # Errors
    /// As [`Ipvs::servers`]; a server that is not there has none.
    pub fn destinations(&mut self, id: ServerId) -> Result<Vec<Destination>> {
        let request = wire::list_destinations(id);
        let op = format!("list destinations of {id}");
        self.list(&op, &request, |attributes| {
            wire::destination(attributes, id.is_ipv6())
        })
    }

    fn list<T>(
        &mut self,
        op: &str,
        request: &Request,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let mut all = Vec::new();
            let interrupted = self.socket.dump(op, request, |attributes| {
                all.extend(read(attributes));
            })?;
            if !interrupted {
                return Ok(all);
            }
        }
        let why = format!("interrupted by changes {DUMP_TRIES} times");
        Err(Error::new(op, io::Error::from_raw_os_error(libc::EINTR)).with_detail(why))
    }

    /// The time-outs of connections.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn timeouts(&mut self) -> Result<Timeouts> {
        let mut timeouts = Timeouts::default();
        let op = "read time-outs of connections";
        self.socket.ask(op, &wire::get_timeouts(), |attributes| {
            timeouts = wire::timeouts(attributes);
        })?;
        Ok(timeouts)
    }

    /// Sets those time-outs that are not zero.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        let op = "set time-outs of connections";
        self.socket.ask(op, &wire::set_timeouts(timeouts), |_| {})
    }
}
