//! The verbs: request -> observe -> lease -> plan -> apply -> result. What goes wrong becomes an
//! error of the specification here.

use std::fs;
use std::path::Path;

use api::cni::{AddResult, Attachment, Dns, Error, ErrorCode, Version, VersionResult};
use linux::{Host, Kernel, NetNs};
use serde_json::{Value, json};

use crate::apply::{Hosts, apply, apply_all};
use crate::conf::Field;
use crate::ipam::{self, AllocateError, Lease};
use crate::lease_store::{LeaseError, LeaseStore};
use crate::observe::{observe_add, observe_check, observe_del, observe_gc};
use crate::plan::{check, host_link_name, plan_add, plan_del, plan_gc};
use crate::request::{Command, Env, IpamConf, Net, Pod, Request, Verb};
use crate::result::{parse_resolv_conf, result};

/// Runs one call of the plugin: gives what goes to standard output, if anything does.
///
/// # Errors
/// What goes to standard output instead, with a non-zero exit.
pub fn run(env: Env<'_>, input: &[u8]) -> Result<Option<Value>, Error> {
    let command = Command::parse(env)?;
    if command == Command::Version {
        return version(input).map(Some);
    }
    let Request { version, net, verb } = Request::parse(command, env, input)?;
    let answer = match verb {
        Verb::Add(pod) => with_hosts(&pod.netns, |node, inside| add(&net, &pod, node, inside))
            .map(|added| Some(json!(added.in_version(version)))),
        Verb::Check(pod, previous) => with_hosts(&pod.netns, |node, inside| {
            check_attachment(&net, &pod, &previous, node, inside)
        })
        .map(|()| None),
        Verb::Del { owner, netns } => {
            // What is gone need not be taken apart.
            let inside = netns.and_then(|path| Kernel::open_in(NetNs::open(path).ok()?).ok());
            with_node(|node| del(&net, &owner, node, inside)).map(|()| None)
        }
        Verb::Gc(valid) => with_node(|node| gc(&net, &valid, node)).map(|()| None),
        Verb::Status => status(&net).map(|()| None),
    };
    answer.map_err(|error| Error {
        cni_version: version.to_string(),
        ..error
    })
}

fn version(input: &[u8]) -> Result<Value, Error> {
    let bad = |e: serde_json::Error| Error::new(ErrorCode::DECODE, e.to_string());
    let asked = match input.trim_ascii() {
        b"" => None,
        text => {
            let value: Value = serde_json::from_slice(text).map_err(bad)?;
            Field::root(&value)
                .get("cniVersion")?
                .text()?
                .map(str::to_owned)
        }
    };
    let versions = VersionResult {
        cni_version: asked.unwrap_or_else(|| Version::NEWEST.to_string()),
        supported_versions: Version::ALL.iter().map(ToString::to_string).collect(),
    };
    Ok(json!(versions))
}

fn with_node<T>(work: impl FnOnce(&mut dyn Host) -> Result<T, Error>) -> Result<T, Error> {
    work(&mut Kernel::open().map_err(kernel)?)
}

fn with_hosts<T>(
    netns: &Path,
    work: impl FnOnce(&mut dyn Host, &mut dyn Host) -> Result<T, Error>,
) -> Result<T, Error> {
    let bad = |why: &dyn std::fmt::Display| {
        Error::new(ErrorCode::INVALID_ENVIRONMENT, format!("CNI_NETNS: {why}"))
    };
    let netns = NetNs::open(netns).map_err(|e| bad(&e))?;
    let mut node = Kernel::open().map_err(kernel)?;
    if *node.namespace() == netns {
        return Err(bad(&"is the network namespace that the plugin runs in"));
    }
    let mut pod = Kernel::open_in(netns).map_err(|e| bad(&e))?;
    work(&mut node, &mut pod)
}

/// ADD: attaches a pod.
///
/// # Errors
/// Whatever stands in the way; nothing of this attachment is left then.
pub fn add(
    net: &Net,
    pod: &Pod,
    node: &mut dyn Host,
    inside: &mut dyn Host,
) -> Result<AddResult, Error> {
    let seen = observe_add(net, node, inside).map_err(kernel)?;
    let leases = match &net.ipam {
        Some(ipam) => lease(net, ipam, pod)?,
        None => Vec::new(),
    };
    let mut attach = || -> Result<AddResult, Error> {
        let dns = dns(net)?;
        let plan = plan_add(net, pod, &leases, &seen)?;
        apply(
            &plan.steps,
            &mut Hosts {
                node,
                pod: Some(inside),
            },
        )
        .map_err(|e| kernel_text(&e.cause, &e))?;
        Ok(result(net, pod, &leases, &plan, dns))
    };
    attach().map_err(|error| match release(net, &pod.owner) {
        Ok(()) => error,
        Err(also) => {
            let details = format!("{}; also, giving the addresses back: {also}", error.details);
            Error {
                details: details.trim_start_matches("; ").to_owned(),
                ..error
            }
        }
    })
}

/// Leases one address of each set.
fn lease(net: &Net, ipam: &IpamConf, pod: &Pod) -> Result<Vec<Lease>, Error> {
    let store = LeaseStore::open(&ipam.data_dir, &net.name).map_err(io)?;
    let owned = store.of(&pod.owner).map_err(io)?;
    if let Some(address) = owned.first() {
        let why = format!(
            "{} of {} has address {address} already; DEL must come before another ADD",
            pod.owner.ifname, pod.owner.container_id
        );
        return Err(Error::new(ErrorCode::ADDRESS, why));
    }
    let taken = store.taken().map_err(io)?;
    let last = (0..ipam.sets.len())
        .map(|set| store.last(set))
        .collect::<Result<Vec<_>, _>>();
    let leases =
        ipam::allocate(&ipam.sets, &pod.ips, &taken, &last.map_err(io)?).map_err(address)?;
    match store.acquire(&pod.owner, &leases) {
        Ok(()) => Ok(leases),
        Err(error) => {
            // What was written before it names the owner, so it is found and given back.
            let also = store.release(&pod.owner).err().map(|e| e.to_string());
            Err(Error {
                details: also.unwrap_or_default(),
                ..io(error)
            })
        }
    }
}

fn release(net: &Net, owner: &Attachment) -> Result<(), LeaseError> {
    let Some(ipam) = &net.ipam else { return Ok(()) };
    if let Some(store) = LeaseStore::open_existing(&ipam.data_dir, &net.name)? {
        store.release(owner)?;
    }
    Ok(())
}

fn dns(net: &Net) -> Result<Dns, Error> {
    let file = net.ipam.as_ref().and_then(|ipam| ipam.resolv_conf.as_ref());
    match file {
        Some(file) if net.dns.is_empty() => {
            let text = fs::read_to_string(file);
            let bad = |e| format!("ipam.resolvConf: read {}: {e}", file.display());
            Ok(parse_resolv_conf(
                &text.map_err(|e| Error::new(ErrorCode::IO, bad(e)))?,
            ))
        }
        _ => Ok(net.dns.clone()),
    }
}

/// DEL: detaches a pod, however much of it is left. `inside` is its namespace, unless that is gone.
///
/// # Errors
/// What could not be removed; everything else is.
pub fn del(
    net: &Net,
    owner: &Attachment,
    node: &mut dyn Host,
    inside: Option<impl Host>,
) -> Result<(), Error> {
    let mut inside = inside;
    let pod = inside.as_mut().map(|host| host as &mut dyn Host);
    let mut hosts = Hosts { node, pod };
    let seen = observe_del(net, owner, &mut hosts).map_err(kernel)?;
    let links = apply_all(&plan_del(net, owner, &seen), &mut hosts);
    // The address is free only when no interface has it.
    match links {
        Ok(()) => release(net, owner).map_err(io),
        Err(failed) => Err(gathered(&failed)),
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
) -> Result<(), Error> {
    let leased = match &net.ipam {
        None => Vec::new(),
        Some(ipam) => match LeaseStore::open_existing(&ipam.data_dir, &net.name).map_err(io)? {
            Some(store) => store.of(&pod.owner).map_err(io)?,
            None => Vec::new(),
        },
    };
    let host_link = host_link_name(&net.name, &pod.owner);
    let seen = observe_check(net, &host_link, &pod.owner.ifname, node, inside).map_err(kernel)?;
    check(net, pod, previous, &leased, &seen)
}

/// GC: removes links and leases of this network that belong to none of `valid`.
///
/// # Errors
/// What could not be removed; everything else is.
pub fn gc(net: &Net, valid: &[Attachment], node: &mut dyn Host) -> Result<(), Error> {
    let links = observe_gc(node).map_err(kernel)?;
    let steps = plan_gc(net, valid, &links);
    let removed = apply_all(&steps, &mut Hosts { node, pod: None });
    let freed = gc_leases(net, valid);
    match (removed, freed) {
        (Ok(()), Ok(())) => Ok(()),
        (Err(failed), Ok(())) => Err(gathered(&failed)),
        (Ok(()), Err(error)) => Err(io(error)),
        (Err(failed), Err(error)) => {
            let first = gathered(&failed);
            Err(Error {
                details: format!("{}; {error}", first.details),
                ..first
            })
        }
    }
}

fn gc_leases(net: &Net, valid: &[Attachment]) -> Result<(), LeaseError> {
    let Some(ipam) = &net.ipam else { return Ok(()) };
    let Some(store) = LeaseStore::open_existing(&ipam.data_dir, &net.name)? else {
        return Ok(());
    };
    let all = store.all()?;
    let keep = |owner: &Attachment| {
        valid.iter().any(|v| {
            v.container_id == owner.container_id
                && (owner.ifname.is_empty() || owner.ifname == v.ifname)
        })
    };
    let freed = all.iter().filter(|(_, owner)| !keep(owner));
    let mut failed: Vec<LeaseError> = freed
        .filter_map(|(address, owner)| store.evict(*address, owner).err())
        .collect();
    failed.pop().map_or(Ok(()), Err)
}

/// STATUS: whether ADD would work, as far as it can be told without a pod.
///
/// # Errors
/// Why it would not.
pub fn status(net: &Net) -> Result<(), Error> {
    let not_ready = |why: String| Error::new(ErrorCode::NOT_AVAILABLE, why);
    Kernel::open().map_err(|e| not_ready(e.to_string()))?;
    let Some(ipam) = &net.ipam else { return Ok(()) };
    let room = || -> Result<(), String> {
        let store = LeaseStore::open(&ipam.data_dir, &net.name).map_err(|e| e.to_string())?;
        let taken = store.taken().map_err(|e| e.to_string())?;
        ipam::has_room(&ipam.sets, &taken).map_err(|e| e.to_string())
    };
    room().map_err(not_ready)
}

fn kernel(error: linux::Error) -> Error {
    kernel_text(&error, &error)
}

/// An error of the kernel; one that may go away by itself tells the runtime to try again.
fn kernel_text(cause: &linux::Error, text: &dyn std::fmt::Display) -> Error {
    let passing = [libc_errno::EINTR, libc_errno::EAGAIN, libc_errno::ETIMEDOUT];
    let code = if cause.errno().is_some_and(|errno| passing.contains(&errno)) {
        ErrorCode::TRY_AGAIN
    } else {
        ErrorCode::KERNEL
    };
    Error::new(code, text.to_string())
}

/// The numbers of errors that pass (`asm-generic/errno.h`), the same on all machines we run on.
mod libc_errno {
    pub(super) const EINTR: i32 = 4;
    pub(super) const EAGAIN: i32 = 11;
    pub(super) const ETIMEDOUT: i32 = 110;
}

fn gathered(failed: &[linux::Error]) -> Error {
    let mut texts = failed.iter().map(ToString::to_string);
    let first = Error::new(ErrorCode::KERNEL, texts.next().unwrap_or_default());
    Error {
        details: texts.collect::<Vec<_>>().join("; "),
        ..first
    }
}

fn io(error: LeaseError) -> Error {
    let code = if error.is_passing() {
        ErrorCode::TRY_AGAIN
    } else {
        ErrorCode::IO
    };
    Error::new(code, error.to_string())
}

fn address(error: AllocateError) -> Error {
    Error::new(ErrorCode::ADDRESS, error.to_string())
}

#[cfg(test)]
mod tests;
