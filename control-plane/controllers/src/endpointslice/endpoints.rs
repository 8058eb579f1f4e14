//! Which endpoints a service has, and through which ports: the reading of pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::meta;

/// An address family of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// The slice's addressType.
    pub(super) fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn has(self, address: &str) -> bool {
        match address.parse() {
            Ok(IpAddr::V4(_)) => self == Self::V4,
            Ok(IpAddr::V6(_)) => self == Self::V6,
            Err(_) => false,
        }
    }
}

pub(super) fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref())
        == Some("None")
}

/// The families of a service, from its ipFamilies or else its ClusterIP.
pub(super) fn families(service: &Service) -> Vec<Family> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let mut families: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .map(|family| {
            if family == "IPv6" {
                Family::V6
            } else {
                Family::V4
            }
        })
        .collect();
    families.sort();
    families.dedup();
    if families.is_empty() {
        let address = spec.cluster_ip.as_deref().unwrap_or_default();
        families.push(if Family::V6.has(address) {
            Family::V6
        } else {
            Family::V4
        });
    }
    families
}

/// The endpoints of a family, grouped by the ports they serve: pods may resolve a named port differently.
pub(super) type Desired = BTreeMap<PortSet, Vec<Endpoint>>;

/// Ports in a form that can be compared: name, number, protocol, application protocol.
pub(super) type PortSet = Vec<(String, Option<i32>, String, Option<String>)>;

pub(super) fn port_set(ports: &[EndpointPort]) -> PortSet {
    let mut set: PortSet = ports
        .iter()
        .map(|port| {
            (
                port.name.clone().unwrap_or_default(),
                port.port,
                port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port.app_protocol.clone(),
            )
        })
        .collect();
    set.sort();
    set
}

pub(super) fn ports_of(set: &PortSet) -> Vec<EndpointPort> {
    set.iter()
        .map(|(name, port, protocol, app_protocol)| EndpointPort {
            name: Some(name.clone()),
            port: *port,
            protocol: Some(protocol.clone()),
            app_protocol: app_protocol.clone(),
        })
        .collect()
}

pub(super) fn desired(
    service: &Service,
    family: Family,
    pods: &[&Arc<Pod>],
    zone_of: &impl Fn(&str) -> Option<String>,
) -> Desired {
    let mut groups = Desired::new();
    for pod in pods {
        if meta::pod_finished(pod) {
            continue;
        }
        let Some(address) = address(pod, family) else {
            continue;
        };
        let ports = port_set(&ports(service, pod));
        let endpoint = endpoint(service, pod, address, zone_of);
        groups.entry(ports).or_default().push(endpoint);
    }
    groups
}

fn address(pod: &Pod, family: Family) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|it| &it.ip);
    all.chain(&status.pod_ip)
        .find(|address| family.has(address))
        .cloned()
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: String,
    zone_of: &impl Fn(&str) -> Option<String>,
) -> Endpoint {
    let spec = service.spec.as_ref();
    let publish = spec
        .and_then(|spec| spec.publish_not_ready_addresses)
        .unwrap_or(false);
    let serving = meta::pod_ready(pod);
    let terminating = meta::is_deleting(&pod.metadata);
    let node = meta::node_of(pod);
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: node.map(str::to_owned),
        zone: node.and_then(zone_of),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// A pod has a DNS name of its own in the service that it names as its subdomain.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec
        .hostname
        .as_ref()
        .filter(|hostname| !hostname.is_empty())?;
    (spec.subdomain == service.metadata.name).then(|| hostname.clone())
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(port, pod)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    meta::ports(pod.spec.as_ref()?)
        .find(|it| {
            it.name.as_ref() == Some(name) && it.protocol.as_deref().unwrap_or("TCP") == protocol
        })
        .map(|it| it.container_port)
}
