//! Attaching pods: observe -> addresses -> plan -> apply -> result, and the way back.

use std::net::IpAddr;

use api::cni::{AddResult, Attachment, Error, ErrorCode};
use linux::Host;

use super::addressing::{self, Call};
use super::errors::{gathered, kernel, kernel_text, with_cleanup};
use crate::apply::{Hosts, apply, apply_all};
use crate::firewall::Firewall;
use crate::observe::{
    Observed, observe_add, observe_check, observe_del, observe_gc, observe_limits, observe_target,
};
use crate::plan::{
    Addresses, check, check_addition, entries_of, host_link_name, plan_add, plan_addition,
    plan_del, plan_gc, plan_wire, ports_of,
};
use crate::request::{Net, Pod};
use crate::result::result;

/// ADD: attaches a pod.
///
/// # Errors
/// Whatever stands in the way; nothing of this attachment is left then.
pub fn add(
    net: &Net,
    pod: &Pod,
    node: &mut dyn Host,
    inside: &mut dyn Host,
    firewall: &mut dyn Firewall,
    call: Call<'_>,
) -> Result<AddResult, Error> {
    let seen = observe_add(net, node, inside).map_err(kernel)?;
    if let Some(name) = &net.ipam_plugin {
        let mut hosts = Hosts {
            node,
            pod: Some(inside),
            firewall,
        };
        return add_wired(net, pod, name, &seen, &mut hosts, call);
    }
    let addresses = addressing::acquire(net, pod, node)?;
    let mut attach = || -> Result<AddResult, Error> {
        let plan = plan_add(net, pod, &addresses, &seen)?;
        let mut hosts = Hosts {
            node,
            pod: Some(inside),
            firewall,
        };
        apply(&plan.steps, &mut hosts).map_err(|e| kernel_text(&e.cause, &e))?;
        Ok(result(net, pod, &addresses, &plan))
    };
    attach().map_err(|error| with_cleanup(error, addressing::release(net, &pod.owner, call)))
}

/// ADD with addresses of a plugin, which finds the pod's interface there and packets passing.
fn add_wired(
    net: &Net,
    pod: &Pod,
    name: &str,
    seen: &Observed,
    hosts: &mut Hosts<'_>,
    call: Call<'_>,
) -> Result<AddResult, Error> {
    let steps = plan_wire(net, pod, seen)?;
    let wired = apply(&steps, hosts).map_err(|e| kernel_text(&e.cause, &e))?;
    let mut attach = || -> Result<AddResult, Error> {
        let addresses = addressing::acquire_from(net, name, call)?;
        // The plugin is told while the interface is still there.
        address(net, pod, &addresses, hosts)
            .map_err(|error| with_cleanup(error, addressing::release(net, &pod.owner, call)))
    };
    attach().map_err(|error| {
        let left = wired.take_back(hosts).into_iter().map(kernel);
        match gathered(std::iter::once(error.clone()).chain(left)) {
            Ok(()) => error,
            Err(all) => all,
        }
    })
}

/// What is left of ADD when the interface is there.
fn address(
    net: &Net,
    pod: &Pod,
    addresses: &Addresses,
    hosts: &mut Hosts<'_>,
) -> Result<AddResult, Error> {
    let Some(inside) = &mut hosts.pod else {
        return Err(Error::new(ErrorCode::IO, "the pod's namespace is not open"));
    };
    let mut seen = observe_add(net, hosts.node, *inside).map_err(kernel)?;
    if let Some(bridge) = &mut seen.bridge {
        // Others' ports are those that stand against another address of the bridge.
        bridge.ports = bridge.ports.saturating_sub(1);
    }
    let plan = plan_add(net, pod, addresses, &seen)?;
    apply(&plan.steps, hosts).map_err(|e| kernel_text(&e.cause, &e))?;
    Ok(result(net, pod, addresses, &plan))
}

/// ADD behind other plugins: host ports and rate limits for the pod of their result, which is
/// handed on with what was added.
///
/// # Errors
/// Whatever stands in the way; nothing that was added is left then.
pub fn add_to(
    net: &Net,
    pod: &Pod,
    previous: AddResult,
    node: &mut dyn Host,
    inside: &mut dyn Host,
    firewall: &mut dyn Firewall,
) -> Result<AddResult, Error> {
    let addresses = addresses_of(&previous, &pod.owner.ifname);
    let ifname = &pod.owner.ifname;
    let target = observe_target(net, ifname, &addresses, node, inside).map_err(kernel)?;
    let entries = ports_of(net, &pod.owner, &addresses);
    let addition = plan_addition(net, &pod.owner, entries, &target)?;
    let mut hosts = Hosts {
        node,
        pod: Some(inside),
        firewall,
    };
    apply(&addition.steps, &mut hosts).map_err(|e| kernel_text(&e.cause, &e))?;
    let mut result = previous;
    result.interfaces.extend(addition.interface);
    Ok(result)
}

fn addresses_of(result: &AddResult, ifname: &str) -> Vec<IpAddr> {
    let nets = result.addresses_of(ifname);
    nets.iter().map(|net| net.ip()).collect()
}

/// DEL: detaches a pod, however much of it is left. `inside` is its namespace, unless that is gone.
///
/// # Errors
/// What could not be removed; everything else is.
pub fn del(
    net: &Net,
    owner: &Attachment,
    node: &mut dyn Host,
    mut inside: Option<impl Host>,
    firewall: &mut dyn Firewall,
    call: Call<'_>,
) -> Result<(), Error> {
    let mut hosts = Hosts {
        node,
        pod: inside.as_mut().map(|host| host as &mut dyn Host),
        firewall,
    };
    let seen = observe_del(net, owner, &mut hosts).map_err(kernel)?;
    if net.ipam_plugin.is_some() {
        // It may need the interface to give the address back, as DHCP does.
        let released = addressing::release(net, owner, call);
        let removed = apply_all(&plan_del(net, owner, &seen), &mut hosts);
        let failed = removed.err().unwrap_or_default().into_iter().map(kernel);
        return gathered(failed.chain(released.err()));
    }
    match apply_all(&plan_del(net, owner, &seen), &mut hosts) {
        // The address is free only when no interface and no host port has it.
        Ok(()) => addressing::release(net, owner, call),
        Err(failed) => gathered(failed.into_iter().map(kernel)),
    }
}

/// CHECK: compares a pod with the result of its ADD.
///
/// # Errors
/// Everything that is not as it was.
pub fn check_attachment(
    net: &Net,
    pod: &Pod,
    previous: &AddResult,
    node: &mut dyn Host,
    inside: &mut dyn Host,
    firewall: &mut dyn Firewall,
    call: Call<'_>,
) -> Result<(), Error> {
    let leased = addressing::check(net, &pod.owner, call)?;
    let host_link = host_link_name(&net.name, &pod.owner);
    let mut seen = observe_check(net, &host_link, &pod.owner, node, inside).map_err(kernel)?;
    let addresses = previous.addresses_of(&pod.owner.ifname);
    let lease = |address| crate::ipam::Lease {
        address,
        gateway: None,
    };
    let leases: Vec<_> = addresses.into_iter().map(lease).collect();
    let mut entries = entries_of(net, &pod.owner, &leases);
    if net.bridge.check_mac {
        let mac = seen.pod_link.as_ref().and_then(|link| link.mac);
        entries.guard = mac.map(|mac| (host_link.clone(), mac));
    }
    if !entries.is_empty() {
        seen.entries_missing = firewall.missing(&entries).map_err(kernel)?;
    }
    check(net, pod, previous, &leased, &seen)
}

/// CHECK of what was added behind other plugins.
///
/// # Errors
/// Everything that is not as it was.
pub fn check_addition_of(
    net: &Net,
    pod: &Pod,
    previous: &AddResult,
    node: &mut dyn Host,
    inside: &mut dyn Host,
    firewall: &mut dyn Firewall,
) -> Result<(), Error> {
    let addresses = addresses_of(previous, &pod.owner.ifname);
    let ifname = &pod.owner.ifname;
    let target = observe_target(net, ifname, &addresses, node, inside).map_err(kernel)?;
    let host_link = target.host_link.as_ref().map(|(name, _)| name.as_str());
    let limits = observe_limits(net, &pod.owner, host_link, node).map_err(kernel)?;
    let entries = ports_of(net, &pod.owner, &addresses);
    let missing = if entries.is_empty() {
        Vec::new()
    } else {
        firewall.missing(&entries).map_err(kernel)?
    };
    check_addition(net, pod, &limits, &missing)
}

/// GC: removes links, entries and leases of this network that belong to none of `valid`.
///
/// # Errors
/// What could not be removed; everything else is.
pub fn gc(
    net: &Net,
    valid: &[Attachment],
    node: &mut dyn Host,
    firewall: &mut dyn Firewall,
    call: Call<'_>,
) -> Result<(), Error> {
    let links = observe_gc(net, node).map_err(kernel)?;
    let steps = plan_gc(net, valid, &links);
    let mut hosts = Hosts {
        node,
        pod: None,
        firewall,
    };
    let failed = apply_all(&steps, &mut hosts).err().unwrap_or_default();
    let freed = addressing::gc(net, valid, call);
    gathered(failed.into_iter().map(kernel).chain(freed.err()))
}
