//! A Service object becomes service ports: every policy question that needs no endpoint is
//! answered here, once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use api::cidr::{Family, parse_cidr, parse_ip};
use api::core::Service;
use ebpf_common::maglev::{SIZE_DEFAULT, SIZES};
use ipnetwork::IpNetwork;

use super::{ObjectRef, PortName, Problem, Protocol, ServiceName, quoted};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where none is given, as the API server sets it.
const AFFINITY_SECONDS_DEFAULT: u32 = 10_800;

/// The annotation that says how an endpoint is chosen for clients outside: `random`, or `maglev` for
/// consistent hashing.
pub const ANNOTATION_BALANCING: &str = "seaway/balancing";

/// The annotation with the number of places in the table of consistent hashing.
pub const ANNOTATION_TABLE_SIZE: &str = "seaway/maglev-table-size";

/// The API's upper limit of it.
const AFFINITY_SECONDS_MAX: u32 = 86_400;

/// What all ports of a service share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// When the service was made (RFC 3339); empty where that is not told.
    pub created: Arc<str>,
    /// One cluster IP for each family at most.
    pub cluster_ips: Box<[IpAddr]>,
    /// External IPs.
    pub external_ips: Box<[IpAddr]>,
    /// Load balancer addresses with which packets arrive here.
    pub balancer_ips: Box<[IpAddr]>,
    /// Who may use the load balancer addresses, for each family; `None`: everybody.
    pub source_ranges_v4: Option<Vec<IpNetwork>>,
    /// As `source_ranges_v4`.
    pub source_ranges_v6: Option<Vec<IpNetwork>>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Seconds for which a client stays with its endpoint.
    pub affinity_seconds: Option<u32>,
    /// As [`super::Decision::table_size`].
    pub table_size: Option<u32>,
    /// Port of the health check of a load balancer service with `externalTrafficPolicy: Local`.
    pub health_check_node_port: Option<u16>,
}

impl Shared {
    /// Who may use the load balancer addresses of `family`; `None`: everybody.
    pub fn source_ranges(&self, family: Family) -> Option<&[IpNetwork]> {
        match family {
            Family::V4 => self.source_ranges_v4.as_deref(),
            Family::V6 => self.source_ranges_v6.as_deref(),
        }
    }

    /// The cluster IP of `family`.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        of_family(&self.cluster_ips, family).next()
    }
}

/// One port of a service, not yet split by family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Identity.
    pub name: PortName,
    /// Port on the service's addresses.
    pub port: u16,
    /// Port on the node's addresses.
    pub node_port: Option<u16>,
    /// Place in the service's list of ports.
    pub index: u16,
    /// What it has in common with its siblings.
    pub shared: Arc<Shared>,
}

impl ServicePort {
    /// Whether anybody outside the cluster can reach it, in `family`.
    pub fn externally_accessible(&self, family: Family) -> bool {
        self.node_port.is_some()
            || of_family(&self.shared.external_ips, family)
                .next()
                .is_some()
            || of_family(&self.shared.balancer_ips, family)
                .next()
                .is_some()
    }

    /// Whether some traffic goes to endpoints anywhere. Also with `externalTrafficPolicy: Local`
    /// pods and the node itself reach all endpoints through external addresses.
    pub fn uses_cluster_endpoints(&self, family: Family) -> bool {
        !self.shared.internal_local || self.externally_accessible(family)
    }

    /// Whether some traffic goes to endpoints on this node only.
    pub fn uses_local_endpoints(&self, family: Family) -> bool {
        self.shared.internal_local
            || (self.shared.external_local && self.externally_accessible(family))
    }
}

/// The addresses of one family.
pub fn of_family(ips: &[IpAddr], family: Family) -> impl Iterator<Item = IpAddr> + '_ {
    ips.iter()
        .copied()
        .filter(move |ip| Family::of(*ip) == family)
}

/// A service's ports, and what could not be used of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Ports with a data path; none for headless services and `ExternalName`.
    pub ports: Vec<ServicePort>,
    /// Parts left out.
    pub problems: Vec<Problem>,
}

/// Reads a Service.
pub fn parse(service: &Service) -> Parsed {
    let spec = &service.spec;
    let headless = matches!(spec.cluster_ip.as_str(), "" | "None");
    if headless || spec.type_ == "ExternalName" {
        return Parsed::default();
    }
    let mut reader = Reader {
        object: ObjectRef::new("Service", &service.metadata),
        problems: Vec::new(),
    };
    let shared = Arc::new(reader.shared(service));
    let ports = if shared.cluster_ips.is_empty() {
        Vec::new()
    } else {
        reader.ports(service, &shared)
    };
    Parsed {
        ports,
        problems: reader.problems,
    }
}

/// Reads values and keeps account of the bad ones.
struct Reader {
    object: ObjectRef,
    problems: Vec<Problem>,
}

impl Reader {
    fn problem(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem {
            object: self.object.clone(),
            field: field.into(),
            message: message.into(),
        });
    }

    fn shared(&mut self, service: &Service) -> Shared {
        let spec = &service.spec;
        let (mut cluster_ips, field) = if spec.cluster_ips.is_empty() {
            let only = std::slice::from_ref(&spec.cluster_ip);
            (self.ips("spec.clusterIP", only), "spec.clusterIP")
        } else {
            let ips = self.ips("spec.clusterIPs", &spec.cluster_ips);
            (ips, "spec.clusterIPs")
        };
        let mut families = BTreeSet::new();
        let all = cluster_ips.len();
        cluster_ips.retain(|ip| families.insert(Family::of(*ip)));
        if cluster_ips.len() < all {
            self.problem(field, "more than one address of a family; the first counts");
        }
        let (source_ranges_v4, source_ranges_v6) = self.source_ranges(service);
        let external_local = spec.external_traffic_policy == "Local"
            && (matches!(spec.type_.as_str(), "NodePort" | "LoadBalancer")
                || !spec.external_ips.is_empty());
        let created = service.metadata.creation_timestamp.as_deref();
        Shared {
            created: created.unwrap_or_default().into(),
            cluster_ips: cluster_ips.into(),
            external_ips: self.ips("spec.externalIPs", &spec.external_ips).into(),
            balancer_ips: self.balancer_ips(service).into(),
            source_ranges_v4,
            source_ranges_v6,
            internal_local: spec.internal_traffic_policy == "Local",
            external_local,
            affinity_seconds: self.affinity(service),
            table_size: self.table_size(service),
            health_check_node_port: self.health_check_node_port(service),
        }
    }

    /// Unique addresses, in order.
    fn ips(&mut self, field: &str, texts: &[String]) -> Vec<IpAddr> {
        let mut ips = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            match parse_ip(text) {
                Some(ip) if !ips.contains(&ip) => ips.push(ip),
                Some(_) => {}
                None => self.problem(
                    format!("{field}[{i}]"),
                    format!("{} is no address", quoted(text)),
                ),
            }
        }
        ips
    }

    fn balancer_ips(&mut self, service: &Service) -> Vec<IpAddr> {
        let mut ips = Vec::new();
        for (i, ingress) in service.status.load_balancer.ingress.iter().enumerate() {
            // With ipMode Proxy packets never arrive with this destination, and pods must not be
            // short-cut past the balancer.
            if ingress.ip.is_empty() || ingress.ip_mode.as_deref() == Some("Proxy") {
                continue;
            }
            match parse_ip(&ingress.ip) {
                Some(ip) if !ips.contains(&ip) => ips.push(ip),
                Some(_) => {}
                None => self.problem(
                    format!("status.loadBalancer.ingress[{i}].ip"),
                    format!("{} is no address", quoted(&ingress.ip)),
                ),
            }
        }
        ips
    }

    /// For each family: `None` when everybody may come. Ranges of the other family alone restrict
    /// nothing; ranges that are all unreadable let nobody in.
    fn source_ranges(
        &mut self,
        service: &Service,
    ) -> (Option<Vec<IpNetwork>>, Option<Vec<IpNetwork>>) {
        let texts = &service.spec.load_balancer_source_ranges;
        let mut nets = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            match parse_cidr(text) {
                Ok(net) => nets.push(net),
                Err(e) => {
                    self.problem(format!("spec.loadBalancerSourceRanges[{i}]"), e.to_string());
                }
            }
        }
        if !texts.is_empty() && nets.is_empty() {
            return (Some(Vec::new()), Some(Vec::new()));
        }
        let of = |family| {
            let mut own: Vec<IpNetwork> = api::cidr::of_family(&nets, family).collect();
            own.sort();
            own.dedup();
            let open = own.is_empty() || own.iter().any(|net| net.prefix() == 0);
            (!open).then_some(own)
        };
        (of(Family::V4), of(Family::V6))
    }

    fn affinity(&mut self, service: &Service) -> Option<u32> {
        let spec = &service.spec;
        match spec.session_affinity.as_str() {
            "ClientIP" => {}
            "" | "None" => return None,
            other => {
                let text = format!("{} is unknown", quoted(other));
                self.problem("spec.sessionAffinity", text);
                return None;
            }
        }
        let config = spec.session_affinity_config.as_ref();
        let seconds = config
            .and_then(|c| c.client_ip.as_ref())
            .and_then(|c| c.timeout_seconds);
        let Some(seconds) = seconds else {
            return Some(AFFINITY_SECONDS_DEFAULT);
        };
        match u32::try_from(seconds) {
            Ok(seconds @ 1..=AFFINITY_SECONDS_MAX) => Some(seconds),
            _ => {
                self.problem(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    format!(
                        "{seconds} is not within 1..={AFFINITY_SECONDS_MAX}; the default is used"
                    ),
                );
                Some(AFFINITY_SECONDS_DEFAULT)
            }
        }
    }

    fn table_size(&mut self, service: &Service) -> Option<u32> {
        let field = |name: &str| format!("metadata.annotations[{name}]");
        match service.metadata.annotation(ANNOTATION_BALANCING) {
            Some("maglev") => {}
            None | Some("random") => return None,
            Some(other) => {
                let text = format!("{} is unknown; use maglev or random", quoted(other));
                self.problem(field(ANNOTATION_BALANCING), text);
                return None;
            }
        }
        let Some(text) = service.metadata.annotation(ANNOTATION_TABLE_SIZE) else {
            return Some(SIZE_DEFAULT);
        };
        let size = text.parse().ok().filter(|size| SIZES.contains(size));
        if size.is_none() {
            let text = format!("{} is none of {SIZES:?}; the default is used", quoted(text));
            self.problem(field(ANNOTATION_TABLE_SIZE), text);
        }
        size.or(Some(SIZE_DEFAULT))
    }

    fn health_check_node_port(&mut self, service: &Service) -> Option<u16> {
        let spec = &service.spec;
        let wanted = spec.type_ == "LoadBalancer" && spec.external_traffic_policy == "Local";
        if !wanted || spec.health_check_node_port == 0 {
            return None;
        }
        self.port("spec.healthCheckNodePort", spec.health_check_node_port)
    }

    fn port(&mut self, field: &str, number: i64) -> Option<u16> {
        match u16::try_from(number) {
            Ok(port) if port != 0 => Some(port),
            _ => {
                self.problem(field, format!("{number} is not within 1..=65535"));
                None
            }
        }
    }

    fn ports(&mut self, service: &Service, shared: &Arc<Shared>) -> Vec<ServicePort> {
        let name = ServiceName::new(&service.metadata.namespace, &service.metadata.name);
        let mut seen = BTreeSet::new();
        let mut ports = Vec::new();
        for (i, port) in service.spec.ports.iter().enumerate() {
            let field = |part: &str| format!("spec.ports[{i}].{part}");
            let Some(protocol) = Protocol::parse(&port.protocol) else {
                let text = format!("{} is unknown", quoted(&port.protocol));
                self.problem(field("protocol"), text);
                continue;
            };
            let Some(number) = self.port(&field("port"), port.port) else {
                continue;
            };
            let node_port = match port.node_port {
                0 => None,
                number => self.port(&field("nodePort"), number),
            };
            let key = PortName {
                service: name.clone(),
                port: port.name.as_str().into(),
                protocol,
            };
            if !seen.insert(key.clone()) {
                let name = quoted(&port.name);
                let text = format!("{name} ({protocol}) is there twice; the first counts");
                self.problem(field("name"), text);
                continue;
            }
            ports.push(ServicePort {
                name: key,
                port: number,
                node_port,
                index: u16::try_from(i).unwrap_or(u16::MAX),
                shared: shared.clone(),
            });
        }
        ports
    }
}
