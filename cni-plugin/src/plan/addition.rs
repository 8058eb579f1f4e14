//! What is added to a link, whoever made it: entries of the firewall and rate limits.

use std::net::IpAddr;

use api::cni::{Attachment, Error, ErrorCode, Interface};

use super::{alias, mac_of_owner, owner_hash};
use crate::firewall::{Entries, ForwardOptions, Masquerade, Tag, forwards};
use crate::ipam::Lease;
use crate::request::{Net, Protocol};
use crate::step::{LinkChange, Side, Step};

/// The kernel's own MTU of a veth.
const MTU_DEFAULT: u32 = 1500;

/// Steps, and what the result tells of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addition {
    /// Changes, in order.
    pub steps: Vec<Step>,
    /// An interface that was made.
    pub interface: Option<Interface>,
}

/// What it is added to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// The node's end of the pod's link, with its MTU where that is known.
    pub host_link: Option<(String, Option<u32>)>,
    /// The link by which the node reaches the pod.
    pub route_dev: Option<String>,
    /// That link lets packets from 127.0.0.1 out already.
    pub localnet: bool,
}

/// A name for the device that holds back what comes from a pod.
pub fn ifb_name(network: &str, owner: &Attachment) -> String {
    let hash = owner_hash(network, owner) & super::NAME_HASH_MASK;
    format!("ifb{hash:011x}")
}

/// Host ports of a pod with these addresses.
pub fn ports_of(net: &Net, owner: &Attachment, addresses: &[IpAddr]) -> Entries {
    let ports = &net.ports;
    Entries {
        forwards: forwards(&ports.mappings, addresses),
        options: ForwardOptions {
            snat: ports.snat,
            masq_all: ports.masq_all,
            mark_chain: ports.mark_chain.clone(),
            conditions: ports.conditions.clone(),
            backend: ports.backend,
        },
        ..Entries::none(Tag::of(&net.name, owner))
    }
}

/// Host ports and masquerading of a pod with these leases.
pub fn entries_of(net: &Net, owner: &Attachment, leases: &[Lease]) -> Entries {
    let addresses: Vec<IpAddr> = leases.iter().map(|lease| lease.address.ip()).collect();
    let mut entries = ports_of(net, owner, &addresses);
    if net.masquerade {
        entries.masquerade_backend = net.masquerade_backend;
        let all = leases.iter().map(|lease| Masquerade {
            pod: lease.address.ip(),
            bridge: net.bridge.gateway_link(),
            network: lease.address,
        });
        entries.masquerades = all.collect();
    }
    entries
}

/// Plans firewall and limits.
///
/// # Errors
/// There is no link on the node that could be limited.
pub fn plan_addition(
    net: &Net,
    owner: &Attachment,
    entries: Entries,
    target: &Target,
) -> Result<Addition, Error> {
    let mut addition = Addition::default();
    let steps = &mut addition.steps;
    let from_loopback = entries.options.snat && entries.forwards.iter().any(|f| f.to.is_ipv4());
    if let Some(dev) = target
        .route_dev
        .as_ref()
        .filter(|_| from_loopback && !target.localnet)
    {
        let key = format!("net/ipv4/conf/{dev}/route_localnet");
        steps.push(Step::EnsureSysctl(Side::Node, key, "1".to_owned()));
    }
    if !entries.is_empty() {
        let udp = entries.forwards.iter().any(|f| f.protocol == Protocol::Udp);
        let entries = Box::new(entries);
        steps.push(Step::PutEntries(entries.clone()));
        steps.extend(udp.then_some(Step::ForgetUdp(entries)));
    }
    if net.shaping.is_empty() {
        return Ok(addition);
    }
    let Some((host_link, mtu)) = &target.host_link else {
        let why = "bandwidth: the pod's link has no end on the node that could be limited";
        return Err(Error::new(ErrorCode::INVALID_CONFIG, why));
    };
    if let Some(bucket) = net.shaping.ingress {
        steps.push(Step::Limit(host_link.clone(), bucket));
    }
    if let Some(bucket) = net.shaping.egress {
        let name = ifb_name(&net.name, owner);
        let mac = mac_of_owner(0x5c, &net.name, owner);
        steps.push(Step::AddIfb(name.clone(), mac, mtu.unwrap_or(MTU_DEFAULT)));
        let up = LinkChange {
            alias: Some(alias(&net.name, owner)),
            ..LinkChange::up()
        };
        steps.push(Step::SetLink(Side::Node, name.clone(), up));
        steps.push(Step::Limit(name.clone(), bucket));
        steps.push(Step::Detour(host_link.clone(), name.clone()));
        addition.interface = Some(Interface {
            name,
            mac: mac.to_string(),
            ..Interface::default()
        });
    }
    Ok(addition)
}
