//! Getting addresses and giving them back: from the built-in allocator, or from a plugin.

use std::fs;
use std::net::IpAddr;

use api::cni::{Attachment, Dns, Error, ErrorCode};
use linux::Host;
use serde_json::Value;

use super::errors::{address, gathered, io, kernel};
use crate::audit;
use crate::delegate;
use crate::ipam::{self, AllocateError, Lease};
use crate::lease_store::{LeaseError, LeaseStore};
use crate::plan::{Addresses, alias_prefix};
use crate::request::{Env, IpamConf, Net, Pod};
use crate::result::parse_resolv_conf;

/// What a plugin that gives addresses is called with.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The environment.
    pub env: Env<'a>,
    /// The whole configuration.
    pub conf: &'a Value,
}

/// Gets addresses for a pod from the built-in allocator; none without ranges.
///
/// # Errors
/// The pool is full, the files cannot be written. Nothing is taken then.
pub(super) fn acquire(net: &Net, pod: &Pod, node: &mut dyn Host) -> Result<Addresses, Error> {
    let Some(ipam) = &net.ipam else {
        return Ok(Addresses::default());
    };
    // Before anything is taken.
    let dns = dns(ipam)?;
    let leases = lease(net, ipam, pod, node)?;
    Ok(Addresses::leased(net, leases, dns))
}

/// Gets addresses for a pod from plugin `name`.
///
/// # Errors
/// The plugin's error. It was told to give back what it may have taken then.
pub(super) fn acquire_from(net: &Net, name: &str, call: Call<'_>) -> Result<Addresses, Error> {
    let given = delegate::call(call.env, "ADD", name, call.conf)
        .and_then(|value| delegate::addresses(net, name, &value));
    given.map_err(|error| {
        // It may have taken one all the same.
        match delegate::call(call.env, "DEL", name, call.conf) {
            Ok(_) => error,
            Err(also) => super::errors::with_cleanup(error, Err(also)),
        }
    })
}

/// Leases one address of each set.
fn lease(net: &Net, ipam: &IpamConf, pod: &Pod, node: &mut dyn Host) -> Result<Vec<Lease>, Error> {
    let store = LeaseStore::open(&ipam.data_dir, &net.name).map_err(io)?;
    if store.is_fresh() {
        refuse_lost(net, &store, node)?;
    }
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
    let leases = ipam::allocate(&ipam.sets, &pod.ips, &taken, &last.map_err(io)?);
    let leases = leases.map_err(|error| address(explained(error, net, ipam, &store)))?;
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

/// Pods are attached, but there is no lease and never was one: the files are lost, and the next
/// address would be one that a pod has.
fn refuse_lost(net: &Net, store: &LeaseStore, node: &mut dyn Host) -> Result<(), Error> {
    let prefix = alias_prefix(&net.name);
    let links = node.links().map_err(kernel)?;
    let ours = |alias: &Option<String>| alias.as_ref().is_some_and(|a| a.starts_with(&prefix));
    let pods = links.iter().filter(|link| ours(&link.alias)).count();
    if pods == 0 {
        return Ok(());
    }
    let why = format!(
        "the leases of network {} are lost: {} has none, but {pods} pods are attached; \
         `seaway-cni ipam audit --repair` writes them down again",
        net.name,
        store.dir().display()
    );
    Err(Error::new(ErrorCode::ADDRESS, why))
}

/// A full pool tells how much of it belongs to nobody.
fn explained(
    error: AllocateError,
    net: &Net,
    ipam: &IpamConf,
    store: &LeaseStore,
) -> AllocateError {
    match error {
        AllocateError::Full {
            pool,
            used,
            capacity,
            set,
            ..
        } => {
            let in_set = |ip: &IpAddr| ipam.sets.get(set).is_some_and(|set| set.holds(*ip));
            let gone = audit::gone(&net.name, store).unwrap_or_default();
            AllocateError::Full {
                pool,
                used,
                capacity,
                set,
                gone: gone.iter().filter(|ip| in_set(ip)).count(),
            }
        }
        other => other,
    }
}

fn dns(ipam: &IpamConf) -> Result<Dns, Error> {
    let Some(file) = &ipam.resolv_conf else {
        return Ok(Dns::default());
    };
    let text = fs::read_to_string(file);
    let bad = |e| format!("ipam.resolvConf: read {}: {e}", file.display());
    Ok(parse_resolv_conf(
        &text.map_err(|e| Error::new(ErrorCode::IO, bad(e)))?,
    ))
}

/// Gives all addresses of an attachment back. None is fine.
///
/// # Errors
/// The files cannot be written; the plugin's error.
pub(super) fn release(net: &Net, owner: &Attachment, call: Call<'_>) -> Result<(), Error> {
    if let Some(name) = &net.ipam_plugin {
        return delegate::call(call.env, "DEL", name, call.conf).map(drop);
    }
    let Some(ipam) = &net.ipam else { return Ok(()) };
    if let Some(store) = LeaseStore::open_existing(&ipam.data_dir, &net.name).map_err(io)? {
        store.release(owner).map_err(io)?;
    }
    Ok(())
}

/// Whether an attachment still has its addresses; gives those that are leased to it, none where a
/// plugin keeps them.
///
/// # Errors
/// The files cannot be read; the plugin's error.
pub(super) fn check(net: &Net, owner: &Attachment, call: Call<'_>) -> Result<Vec<IpAddr>, Error> {
    if let Some(name) = &net.ipam_plugin {
        return delegate::call(call.env, "CHECK", name, call.conf).map(|_| Vec::new());
    }
    let Some(ipam) = &net.ipam else {
        return Ok(Vec::new());
    };
    match LeaseStore::open_existing(&ipam.data_dir, &net.name).map_err(io)? {
        Some(store) => store.of_anyone(owner).map_err(io),
        None => Ok(Vec::new()),
    }
}

/// Gives back what belongs to none of `valid`.
///
/// # Errors
/// What could not be given back; everything else is.
pub(super) fn gc(net: &Net, valid: &[Attachment], call: Call<'_>) -> Result<(), Error> {
    if let Some(name) = &net.ipam_plugin {
        return delegate::call(call.env, "GC", name, call.conf).map(drop);
    }
    let Some(ipam) = &net.ipam else { return Ok(()) };
    let Some(store) = LeaseStore::open_existing(&ipam.data_dir, &net.name).map_err(io)? else {
        return Ok(());
    };
    let all = store.all().map_err(io)?;
    let keep = |owner: &Attachment| {
        valid.iter().any(|v| {
            v.container_id == owner.container_id
                && (owner.ifname.is_empty() || owner.ifname == v.ifname)
        })
    };
    // One that names nobody may be a running pod's: `ipam audit` can tell.
    let named = |owner: &Attachment| !owner.container_id.is_empty();
    let freed = all.iter().filter(|(_, owner)| named(owner) && !keep(owner));
    let mut failed: Vec<LeaseError> = freed
        .filter_map(|(address, owner)| store.evict(*address, owner).err())
        .collect();
    failed.extend(store.sweep().err());
    gathered(failed.into_iter().map(io))
}

/// Whether addresses can be had.
///
/// # Errors
/// Why not.
pub(super) fn status(net: &Net, call: Call<'_>) -> Result<(), Error> {
    if let Some(name) = &net.ipam_plugin {
        return delegate::call(call.env, "STATUS", name, call.conf).map(drop);
    }
    let Some(ipam) = &net.ipam else { return Ok(()) };
    let not_ready = |why: String| Error::new(ErrorCode::NOT_AVAILABLE, why);
    let open = || LeaseStore::open(&ipam.data_dir, &net.name);
    let store = open().map_err(|e| not_ready(e.to_string()))?;
    let taken = store.taken().map_err(|e| not_ready(e.to_string()))?;
    let room = ipam::has_room(&ipam.sets, &taken);
    room.map_err(|e| not_ready(explained(e, net, ipam, &store).to_string()))
}
