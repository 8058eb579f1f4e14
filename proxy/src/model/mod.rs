//! What the node's services look like, decided: immutable values that a backend renders.
//!
//! [`service`] and [`endpoint`] read API objects, [`topology`] says which endpoints this node uses,
//! [`decide`] puts both together into one [`Decision`] per service port and family. Everything in
//! here is pure.

pub mod claims;
pub mod decide;
pub mod endpoint;
pub mod service;
pub mod topology;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use api::cidr::Family;
use api::meta::ObjectMeta;

pub use decide::{BySource, Decision, Path, Set, Source, SourceFilter, Verdict};

/// Transport protocol of a service port.
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
    /// All, in order.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Reads what an object says; empty means TCP.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// As rules and chain names write it.
    pub fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.lower())
    }
}

/// A namespace and a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ServiceName {
    /// From borrowed parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Identity of a service port: the same number for TCP and UDP is two of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    /// The service.
    pub service: ServiceName,
    /// Name of the port; empty for an only port.
    pub port: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
}

impl PortName {
    /// The least possible port of a service.
    pub fn first(service: &ServiceName) -> Self {
        Self {
            service: service.clone(),
            port: "".into(),
            protocol: Protocol::Tcp,
        }
    }
}

impl fmt::Display for PortName {
    /// `namespace/name:port`, without the colon for a port without a name; no protocol.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() {
            write!(f, "{}", self.service)
        } else {
            write!(f, "{}:{}", self.service, self.port)
        }
    }
}

/// The longest name that messages show.
const NAME_SHOWN_MAX: usize = 100;

/// Names an object, for messages and Events.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectRef {
    /// `Service`, `EndpointSlice` or `Node`.
    pub kind: &'static str,
    /// Namespace; empty for what has none.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Identity, where it is known.
    pub uid: Arc<str>,
}

impl ObjectRef {
    /// An object with this metadata.
    pub fn new(kind: &'static str, meta: &ObjectMeta) -> Self {
        Self {
            kind,
            namespace: meta.namespace.as_str().into(),
            name: meta.name.as_str().into(),
            uid: meta.uid.as_str().into(),
        }
    }

    /// The node itself. As kubelets do in Events, its name stands for its uid.
    pub fn node(name: &str) -> Self {
        Self {
            kind: "Node",
            namespace: "".into(),
            name: name.into(),
            uid: name.into(),
        }
    }

    /// A Service of which only the name is known.
    pub fn service(name: &ServiceName) -> Self {
        Self {
            kind: "Service",
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            uid: "".into(),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.name.chars().take(NAME_SHOWN_MAX).collect();
        let dots = if shown.len() < self.name.len() {
            "..."
        } else {
            ""
        };
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{} {}{slash}{shown}{dots}", self.kind, self.namespace)
    }
}

/// A value of an object as messages show it: quoted, and cut where it is long.
pub(crate) fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(NAME_SHOWN_MAX).collect();
    let dots = if shown.len() < text.len() { "..." } else { "" };
    format!("{shown:?}{dots}")
}

/// A part of an object that could not be used; the rest of it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object.
    pub object: ObjectRef,
    /// Path of the field, e.g. `spec.ports[1].port`.
    pub field: String,
    /// What is wrong with it, with the value.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.message)
    }
}

/// What selection needs to know of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Name.
    pub name: Arc<str>,
    /// Zone, from its label.
    pub zone: Option<Arc<str>>,
    /// Its primary addresses, one for each family at most.
    pub ips: Vec<IpAddr>,
    /// Addresses of cluster DNS that this process answers on.
    pub dns_ips: Vec<IpAddr>,
}

/// Settings that change verdicts, the same for every backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Packets of local pods can be told from others (`--detect-local-mode`).
    pub detect_local: bool,
    /// Traffic to cluster IPs is always masqueraded.
    pub masquerade_all: bool,
}

/// The decided service ports of one family.
pub type Decisions = BTreeMap<PortName, Arc<Decision>>;

/// Everything decided, for both families.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// IPv4.
    pub v4: Decisions,
    /// IPv6.
    pub v6: Decisions,
}

impl Snapshot {
    /// The service ports of one family.
    pub fn of(&self, family: Family) -> &Decisions {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The service ports of one family, to change.
    pub fn of_mut(&mut self, family: Family) -> &mut Decisions {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

#[cfg(test)]
mod tests;
