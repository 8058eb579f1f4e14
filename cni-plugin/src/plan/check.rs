//! CHECK: what is there beside what ADD told.

use std::net::IpAddr;

use api::cni::{AddResult, Error, ErrorCode};
use ipnetwork::IpNetwork;

use super::host_link_name;
use crate::observe::{Attached, BridgeSeen, Limits};
use crate::request::{Net, Pod};
use crate::step::TokenBucket;

/// Compares what is there with the result of ADD.
///
/// # Errors
/// Everything that is not as it was.
pub fn check(
    net: &Net,
    pod: &Pod,
    previous: &AddResult,
    leased: &[IpAddr],
    seen: &Attached,
) -> Result<(), Error> {
    let mut wrong = Vec::new();
    let (ifname, bridge) = (&pod.owner.ifname, &net.bridge.name);
    let host_link = host_link_name(&net.name, &pod.owner);
    let inside = previous
        .interfaces
        .iter()
        .find(|i| i.name == *ifname && !i.sandbox.is_empty());
    if inside.is_none() && !previous.interfaces.is_empty() {
        wrong.push(format!("prevResult has no interface {ifname} in the pod"));
    }
    check_links(net, seen, &host_link, &mut wrong);
    wrong.extend(check_limits(net, &seen.limits));
    wrong.extend(seen.entries_missing.iter().cloned());
    match &seen.pod_link {
        None => wrong.push(format!("{ifname} is not there")),
        Some(link) => {
            let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
            let wanted = inside.map(|i| i.mac.as_str()).filter(|mac| !mac.is_empty());
            if let Some(wanted) = wanted.filter(|wanted| !wanted.eq_ignore_ascii_case(&mac)) {
                wrong.push(format!("{ifname} has hardware address {mac}, not {wanted}"));
            }
            if let Some(mtu) = inside.and_then(|i| i.mtu).filter(|mtu| *mtu != link.mtu) {
                wrong.push(format!("{ifname} has mtu {}, not {mtu}", link.mtu));
            }
            if !link.up && net.bridge.container_interface {
                wrong.push(format!("{ifname} is down"));
            }
        }
    }
    let addresses = previous.addresses_of(ifname);
    for address in &addresses {
        if !seen.addrs.contains(address) {
            wrong.push(format!("{ifname} has no address {address}"));
        }
        if net.ipam.is_some() && !leased.contains(&address.ip()) {
            wrong.push(format!("{} is not leased to this container", address.ip()));
        }
    }
    for route in &previous.routes {
        let there = |(dst, gw): &(IpNetwork, Option<IpAddr>)| {
            *dst == route.dst && (route.gw.is_none() || *gw == route.gw)
        };
        if !seen.routes.iter().any(there) {
            wrong.push(format!("no route to {}", route.dst));
        }
    }
    if net.bridge.gateway && net.bridge.vlans.is_none() {
        for gateway in previous.ips.iter().filter_map(|ip| ip.gateway) {
            let there = |b: &BridgeSeen| b.addrs.iter().any(|a| a.ip() == gateway);
            if !seen.bridge.as_ref().is_some_and(there) {
                wrong.push(format!("{bridge} has no address {gateway}"));
            }
        }
    }
    verdict(pod, &wrong)
}

fn verdict(pod: &Pod, wrong: &[String]) -> Result<(), Error> {
    if wrong.is_empty() {
        return Ok(());
    }
    let msg = format!("{} is not as ADD left it", pod.owner.container_id);
    Err(Error {
        details: wrong.join("; "),
        ..Error::new(ErrorCode::CHECK, msg)
    })
}

/// Compares what was added behind another plugin with what was asked for.
///
/// # Errors
/// Everything that is not as it was.
pub fn check_addition(
    net: &Net,
    pod: &Pod,
    limits: &Limits,
    entries_missing: &[String],
) -> Result<(), Error> {
    let mut wrong = check_limits(net, limits);
    wrong.extend(entries_missing.iter().cloned());
    verdict(pod, &wrong)
}

/// Rate limits that are not there, in words.
pub fn check_limits(net: &Net, seen: &Limits) -> Vec<String> {
    let both = [
        ("to", net.shaping.ingress, seen.ingress),
        ("from", net.shaping.egress, seen.egress),
    ];
    // The kernel keeps the burst as a time, so its bytes are not exact.
    let same = |a: TokenBucket, b: Option<TokenBucket>| b.is_some_and(|b| a.rate == b.rate);
    let lacks = |(way, wanted, there): (&str, Option<TokenBucket>, Option<TokenBucket>)| {
        let wanted = wanted.filter(|wanted| !same(*wanted, there))?;
        let there = there.map_or("none".to_owned(), |there| there.rate.to_string());
        let rate = wanted.rate;
        Some(format!(
            "the limit of what goes {way} the pod is {there}, not {rate} bytes a second"
        ))
    };
    both.into_iter().filter_map(lacks).collect()
}

fn check_links(net: &Net, seen: &Attached, host_link: &str, wrong: &mut Vec<String>) {
    let bridge = &net.bridge.name;
    match &seen.bridge {
        None => wrong.push(format!("bridge {bridge} is not there")),
        Some(there) if !there.up => wrong.push(format!("bridge {bridge} is down")),
        Some(_) => {}
    }
    let Some(link) = &seen.host_link else {
        wrong.push(format!("{host_link} is not there"));
        return;
    };
    if !link.up {
        wrong.push(format!("{host_link} is down"));
    }
    if link.master.is_none() || link.master != seen.bridge_index {
        wrong.push(format!("{host_link} is not a port of {bridge}"));
    }
    if net.bridge.hairpin && !link.port.is_some_and(|port| port.hairpin) {
        wrong.push(format!("{host_link} has hairpin off"));
    }
}
