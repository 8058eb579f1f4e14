//! What the cluster's names mean: services as they are told, kept so that one change touches that
//! service alone. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::cidr::parse_ip;
use api::core::Service;
use api::discovery::EndpointSlice;
use hickory_proto::rr::Name;

/// How many seconds an answer may be remembered, positive or not. CoreDNS' default: endpoints come and
/// go within seconds, and a question costs microseconds.
pub const TTL: u32 = 5;

/// A text that is not a domain name.
#[derive(Debug, thiserror::Error)]
#[error("cluster domain {0:?} is not a domain name")]
pub struct BadDomain(String);

/// The names of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    pub(crate) domain: Name,
    pub(crate) addresses: Vec<IpAddr>,
    namespaces: BTreeMap<String, BTreeMap<String, Entry>>,
    reverse: BTreeMap<IpAddr, BTreeSet<Owner>>,
    ready: bool,
    serial: u32,
}

/// Whose an address is: namespace, service, and the endpoint's label for one of a headless service.
type Owner = (String, String, Option<String>);

/// A service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// By protocol (`_tcp`) and port name (`_http`): where it is.
    pub(crate) srv: BTreeMap<String, BTreeMap<String, BTreeSet<Target>>>,
}

/// What a service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its own addresses.
    Cluster(Vec<IpAddr>),
    /// Its ready endpoints, by label.
    Headless(BTreeMap<String, BTreeSet<IpAddr>>),
    /// Another name.
    External(Name),
}

impl Default for Kind {
    fn default() -> Self {
        Self::Cluster(Vec::new())
    }
}

/// Where a named port is: at the service itself, or at an endpoint of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) label: Option<String>,
    pub(crate) port: u16,
}

/// What stands at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// The zone itself.
    Apex,
    /// Nothing of its own, but there are names below it.
    Between,
    /// Addresses.
    Addresses(Vec<IpAddr>),
    /// Another name.
    Alias(&'a Name),
    /// Ports of the service `.1` in the namespace `.0`.
    Ports(&'a str, &'a str, &'a BTreeSet<Target>),
    /// The version of the specification.
    Version,
    /// No such name.
    Nothing,
}

impl Zone {
    /// An empty zone.
    ///
    /// # Errors
    /// `domain` is not a domain name.
    pub fn new(domain: &str, addresses: &[IpAddr]) -> Result<Self, BadDomain> {
        let bad = || BadDomain(domain.to_owned());
        let lower = domain.trim_end_matches('.').to_ascii_lowercase();
        let mut name = Name::from_ascii(&lower).map_err(|_syntax| bad())?;
        name.set_fqdn(true);
        if name.is_root() {
            return Err(bad());
        }
        Ok(Self {
            domain: name,
            addresses: addresses.to_vec(),
            namespaces: BTreeMap::new(),
            reverse: BTreeMap::new(),
            ready: false,
            serial: 1,
        })
    }

    /// The zone's name.
    pub fn domain(&self) -> &Name {
        &self.domain
    }

    /// Changes with every change.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    #[cfg(test)]
    pub(crate) fn set_serial(&mut self, serial: u32) {
        self.serial = serial;
    }

    /// Whether what is not in the zone does not exist.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Says that the zone is complete.
    pub fn set_ready(&mut self) {
        self.ready = true;
    }

    /// How many services there are.
    pub fn len(&self) -> usize {
        self.namespaces.values().map(BTreeMap::len).sum()
    }

    /// Whether there is no service.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// Puts a service in place of what was known of it. `slices` are all of its endpoint slices;
    /// they count for a headless service only.
    pub fn set<'a>(
        &mut self,
        service: &Service,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) {
        let namespace = service.metadata.namespace.to_ascii_lowercase();
        let name = service.metadata.name.to_ascii_lowercase();
        let entry = entry(service, slices);
        let old = self.namespaces.get(&namespace).and_then(|n| n.get(&name));
        if old == entry.as_ref() {
            return;
        }
        self.remove(&namespace, &name);
        if let Some(entry) = entry {
            for (ip, label) in reverse_of(&entry) {
                let owner = (namespace.clone(), name.clone(), label);
                self.reverse.entry(ip).or_default().insert(owner);
            }
            let services = self.namespaces.entry(namespace).or_default();
            services.insert(name, entry);
            self.serial = self.serial.wrapping_add(1);
        }
    }

    /// Forgets a service.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        let namespace = namespace.to_ascii_lowercase();
        let name = name.to_ascii_lowercase();
        let Some(services) = self.namespaces.get_mut(&namespace) else {
            return;
        };
        let Some(entry) = services.remove(&name) else {
            return;
        };
        if services.is_empty() {
            self.namespaces.remove(&namespace);
        }
        for (ip, label) in reverse_of(&entry) {
            if let Some(owners) = self.reverse.get_mut(&ip) {
                owners.remove(&(namespace.clone(), name.clone(), label));
                if owners.is_empty() {
                    self.reverse.remove(&ip);
                }
            }
        }
        self.serial = self.serial.wrapping_add(1);
    }

    /// Forgets every service for which `keep(namespace, name)` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &str) -> bool) {
        let mut gone = Vec::new();
        for (namespace, services) in &self.namespaces {
            let names = services.keys().filter(|name| !keep(namespace, name));
            gone.extend(names.map(|name| (namespace.clone(), name.clone())));
        }
        for (namespace, name) in gone {
            self.remove(&namespace, &name);
        }
    }

    /// What stands at the name whose labels, below the zone, are `labels`: lower-case, the last one
    /// first (`svc`, namespace, service, ...).
    pub(crate) fn find(&self, labels: &[&str]) -> Found<'_> {
        match labels {
            [] => Found::Apex,
            ["dns-version"] => Found::Version,
            ["svc" | "pod" | "dns"] => Found::Between,
            ["dns", "ns"] => Found::Addresses(self.addresses.clone()),
            ["pod", _] => Found::Between,
            ["pod", _, label] => match address_of_label(label) {
                Some(ip) => Found::Addresses(vec![ip]),
                None => Found::Nothing,
            },
            ["svc", namespace] if self.namespaces.contains_key(*namespace) => Found::Between,
            ["svc", namespace, name, rest @ ..] => self
                .namespaces
                .get_key_value(*namespace)
                .and_then(|(namespace, services)| {
                    let (name, entry) = services.get_key_value(*name)?;
                    entry.find(namespace, name, rest)
                })
                .unwrap_or(Found::Nothing),
            _ => Found::Nothing,
        }
    }

    /// The names of an address.
    pub(crate) fn names_of(&self, ip: IpAddr) -> Vec<Name> {
        let owners = self.reverse.get(&ip).into_iter().flatten();
        owners
            .filter_map(|(namespace, name, label)| self.name(namespace, name, label.as_deref()))
            .collect()
    }

    /// The full name of a service or of an endpoint of it; none if it would be too long.
    pub(crate) fn name(&self, namespace: &str, name: &str, label: Option<&str>) -> Option<Name> {
        let own = label.into_iter().chain([name, namespace, "svc"]);
        let labels = own.map(str::as_bytes).chain(self.domain.iter());
        Name::from_labels(labels).ok()
    }
}

impl Entry {
    fn find<'a>(&'a self, namespace: &'a str, name: &'a str, rest: &[&str]) -> Option<Found<'a>> {
        if let Kind::External(target) = &self.kind {
            return rest.is_empty().then_some(Found::Alias(target));
        }
        match (rest, &self.kind) {
            ([], Kind::Cluster(ips)) => Some(Found::Addresses(ips.clone())),
            ([], Kind::Headless(endpoints)) => {
                let all: BTreeSet<IpAddr> = endpoints.values().flatten().copied().collect();
                Some(Found::Addresses(all.into_iter().collect()))
            }
            ([protocol], _) if self.srv.contains_key(*protocol) => Some(Found::Between),
            ([protocol, port], _) => {
                let targets = self.srv.get(*protocol)?.get(*port)?;
                Some(Found::Ports(namespace, name, targets))
            }
            ([label], Kind::Headless(endpoints)) => {
                let ips = endpoints.get(*label)?;
                Some(Found::Addresses(ips.iter().copied().collect()))
            }
            _ => None,
        }
    }

    /// The addresses of one of its endpoints, or its own.
    pub(crate) fn addresses(&self, label: Option<&str>) -> Vec<IpAddr> {
        match (&self.kind, label) {
            (Kind::Cluster(ips), None) => ips.clone(),
            (Kind::Headless(endpoints), Some(label)) => endpoints
                .get(label)
                .into_iter()
                .flatten()
                .copied()
                .collect(),
            _ => Vec::new(),
        }
    }
}

impl Zone {
    /// The service itself.
    pub(crate) fn entry(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.namespaces.get(namespace)?.get(name)
    }
}

/// What a service means; none when it has no names (no address yet; headless without a ready
/// endpoint, section 2.4.1 of the specification).
fn entry<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Option<Entry> {
    let spec = &service.spec;
    if spec.type_ == "ExternalName" {
        let mut target = Name::from_ascii(spec.external_name.to_ascii_lowercase()).ok()?;
        target.set_fqdn(true);
        return (!target.is_root()).then(|| Entry {
            kind: Kind::External(target),
            srv: BTreeMap::new(),
        });
    }
    if spec.cluster_ip == "None" {
        return headless(service, slices);
    }
    let mut ips: Vec<IpAddr> = spec
        .cluster_ips
        .iter()
        .filter_map(|ip| parse_ip(ip))
        .collect();
    if ips.is_empty() {
        ips.extend(parse_ip(&spec.cluster_ip));
    }
    let mut entry = Entry::default();
    for port in &spec.ports {
        entry.add_port(&port.protocol, &port.name, port.port, None);
    }
    entry.kind = Kind::Cluster(ips);
    (entry.kind != Kind::Cluster(Vec::new())).then_some(entry)
}

fn headless<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Option<Entry> {
    let mut entry = Entry::default();
    let mut endpoints: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for slice in slices {
        for endpoint in &slice.endpoints {
            let ready = endpoint.conditions.is_ready() || service.spec.publish_not_ready_addresses;
            let ip = endpoint.addresses.first().and_then(|ip| parse_ip(ip));
            let (true, Some(ip)) = (ready, ip) else {
                continue;
            };
            let hostname = endpoint.hostname.as_deref().filter(|name| is_label(name));
            let label = hostname.map_or_else(|| label_of_address(ip), str::to_ascii_lowercase);
            for port in &slice.ports {
                let name = port.name.as_deref().unwrap_or_default();
                let protocol = port.protocol.as_deref().unwrap_or_default();
                let number = port.port.unwrap_or(0);
                entry.add_port(protocol, name, number, Some(label.clone()));
            }
            endpoints.entry(label).or_default().insert(ip);
        }
    }
    if endpoints.is_empty() {
        return None;
    }
    entry.kind = Kind::Headless(endpoints);
    Some(entry)
}

impl Entry {
    /// Only named ports have a name in DNS.
    fn add_port(&mut self, protocol: &str, name: &str, port: i64, label: Option<String>) {
        let Ok(port @ 1..) = u16::try_from(port) else {
            return;
        };
        if !is_label(name) {
            return;
        }
        let protocol = if protocol.is_empty() { "tcp" } else { protocol };
        let protocol = format!("_{}", protocol.to_ascii_lowercase());
        let name = format!("_{}", name.to_ascii_lowercase());
        let ports = self.srv.entry(protocol).or_default();
        ports
            .entry(name)
            .or_default()
            .insert(Target { label, port });
    }
}

/// The addresses that lead back to names: cluster addresses, and endpoints that have a name of their
/// own (section 2.4.3).
fn reverse_of(entry: &Entry) -> Vec<(IpAddr, Option<String>)> {
    match &entry.kind {
        Kind::Cluster(ips) => ips.iter().map(|ip| (*ip, None)).collect(),
        Kind::Headless(endpoints) => {
            let pairs = endpoints.iter().flat_map(|(label, ips)| {
                let named = ips.iter().filter(|ip| label_of_address(**ip) != *label);
                named.map(|ip| (*ip, Some(label.clone())))
            });
            pairs.collect()
        }
        Kind::External(_) => Vec::new(),
    }
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.len() <= 62 && !text.contains('.')
}

/// `1-2-3-4` or `fd00--1`.
pub(crate) fn label_of_address(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// The address that [`label_of_address`] made `label` of.
fn address_of_label(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse();
    v4.ok().or_else(|| label.replace('-', ":").parse().ok())
}
